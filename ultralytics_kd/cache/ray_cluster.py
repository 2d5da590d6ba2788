"""Filling a cache on many devices and machines, with Ray Data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from ..cluster import connected
from ..teachers import open_teacher
from .answering import Answerer
from .keys import image_key
from .store import Store
from .work import Portion, Work, answer_portion

HASH_CHUNK = 256  # images that one task hashes


def hash_files(batch: dict[str, Any]) -> dict[str, list[str]]:
    """Return paths and keys of the images in one of Ray's batches.

    Args:
        batch (dict): Lists of image files, under "files".
    """
    files = [str(file) for chunk in batch["files"] for file in chunk]
    return {"file": files, "key": [image_key(file) for file in files]}


class PortionAnswerer:
    """A Ray actor that holds the teachers on one device, and answers and writes portions."""

    def __init__(self, work: Work, cuda: bool):
        """Load the teachers.

        Args:
            work (Work): Teachers, folder, settings and how images are read.
            cuda (bool): Whether the actor has a GPU.
        """
        teachers = [open_teacher(source, trust=work.trust) for source in work.sources]
        if work.words is not None:
            work.words.give(teachers)
        self.work, self.store = work, Store(work.folder)
        self.answerer = Answerer(teachers, work.manifest, torch.device("cuda" if cuda else "cpu"))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer the portions in one of Ray's batches, and return the number of images of each."""
        counts = []
        for files, keys in zip(batch["files"], batch["keys"]):
            portion = Portion(list(files), list(keys))
            self.store.write(list(answer_portion(self.answerer, portion, self.work)))
            counts.append(len(portion.files))
        return {"images": counts}


class RayExecutor:
    """Hashes and answers images on a Ray cluster.

    It uses the cluster that is connected or that `RAY_ADDRESS` names, else it starts one on this machine. The cache
    folder, the images and the teachers must have the same paths on every machine.
    """

    def __init__(self, workers: bool | int):
        """Set the number of actors.

        Args:
            workers (bool | int): Number of actors; True for one per GPU, or per CPU where there are no GPUs.
        """
        self.workers = workers
        self._stack = ExitStack()

    def __enter__(self) -> RayExecutor:
        """Connect to the cluster."""
        self._stack.enter_context(connected("ray[data]>=2.40"))
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        return self

    def __exit__(self, *_: Any) -> None:
        """Disconnect, unless the process was connected before."""
        self._stack.close()

    def hash(self, files: list[str]) -> Iterator[tuple[str, str]]:
        """Yield path and key of each image."""
        import ray

        chunks = [{"files": files[i : i + HASH_CHUNK]} for i in range(0, len(files), HASH_CHUNK)]
        hashed = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(hash_files, batch_size=1)
        for row in hashed.iter_rows():
            yield row["file"], row["key"]

    def answer(self, work: Work, portions: list[Portion], progress: Callable[[int], Any]) -> None:
        """Answer portions with one actor per device; the actors write the shards.

        Args:
            work (Work): Teachers, folder, settings and how images are read.
            portions (list[Portion]): Images to answer.
            progress (Callable): Called with the number of images of each shard.
        """
        import ray

        resources = ray.cluster_resources()
        cuda = resources.get("GPU", 0) >= 1
        actors = int(resources["GPU"] if cuda else resources["CPU"]) if self.workers is True else int(self.workers)
        items = [{"files": p.files, "keys": p.keys} for p in portions]
        written = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            PortionAnswerer,
            fn_constructor_args=(work, cuda),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
            num_gpus=1 if cuda else 0,
        )
        for row in written.iter_rows():
            progress(int(row["images"]))
