"""Making a cache on many devices and machines, with Ray Data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from ultralytics.utils.checks import check_requirements

from ..teacher import Teacher
from .answering import Answerer
from .build import Portion, Work, answer
from .store import Store


class PortionAnswerer:
    """A Ray actor that holds the teachers on one device, and answers and writes portions."""

    def __init__(self, work: Work, cuda: bool):
        """Load the teachers.

        Args:
            work (Work): The question, the folder and how images are read.
            cuda (bool): Whether the actor was given a GPU.
        """
        teachers = [Teacher(source) for source in work.sources]
        for teacher in teachers:
            teacher.inspect()
        self.work, self.store = work, Store(work.folder)
        self.answerer = Answerer(teachers, work.manifest, torch.device("cuda" if cuda else "cpu"))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer the portions in a batch of Ray's and return how many images each has."""
        counts = []
        for files, keys in zip(batch["files"], batch["keys"]):
            portion = Portion(list(files), list(keys))
            self.store.write(list(answer(self.answerer, portion, self.work, lambda n: None)))
            counts.append(len(portion.files))
        return {"images": counts}


def answer_on_ray(work: Work, portions: list[Portion], workers: bool | int, done: Callable[[int], Any]) -> None:
    """Answer portions with one actor per device.

    The folder, the images and the teachers must be reachable by the same paths on every machine. Without a cluster
    (`RAY_ADDRESS`) Ray starts on this machine.

    Args:
        work (Work): The question, the folder and how images are read.
        portions (list[Portion]): What is to be answered.
        workers (bool | int): Number of actors; True for one per GPU, or per CPU where there are no GPUs.
        done (Callable): Called with the number of images of each portion that is written.
    """
    check_requirements("ray[data]>=2.40")
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        resources = ray.cluster_resources()
        cuda = resources.get("GPU", 0) >= 1
        actors = int(resources["GPU"] if cuda else resources["CPU"]) if workers is True else int(workers)
        items = [{"files": p.files, "keys": p.keys} for p in portions]
        written = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            PortionAnswerer,
            fn_constructor_args=(work, cuda),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
            num_gpus=1 if cuda else 0,
        )
        for row in written.iter_rows():
            done(int(row["images"]))
    finally:
        if ours:
            ray.shutdown()
