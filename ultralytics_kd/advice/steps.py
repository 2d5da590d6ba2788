"""Steps of trainings without a teacher, with one, and with its stored answers: gradients, time and memory."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.utils.torch_utils import select_device

from ..cache.build import build_cache
from ..cache.options import CACHE_ONLY
from ..cache.options import check_options as cache_options
from ..config import parse_list
from ..config.checks import check_combination
from ..errors import KDError
from ..image_files import find_unlabeled
from ..logs import quietly
from . import costs
from .commands import alone
from .gradients import BATCHES, compare_gradients
from .options import Options
from .sample import link_numbered, part_of
from .trial import Trial

PLAIN, TAUGHT, STORED = "alone", "with teacher", "stored answers"
ANSWERED = 32  # least number of training images on which the cost of stored answers is measured
ANSWERED_BATCHES = 3  # least number of batches; the first is not timed


def seconds_per_image(moments: list[tuple[float, int]]) -> float:
    """Return the time in which one image is answered.

    The first batch also waits for what is done once, such as opening the teacher. So it is left out, unless it is the
    only one.

    Args:
        moments (list[tuple[float, int]]): The start, with 0 images, and the end of each batch with its images; times in
            seconds.
    """
    first = 1 if len(moments) > 2 else 0
    images = sum(count for _, count in moments[first + 1 :])
    return (moments[-1][0] - moments[first][0]) / max(images, 1)


class Steps:
    """The trainings whose steps are measured.

    Attributes:
        plain (Trial): The training without a teacher, which is Ultralytics' own.
    """

    def __init__(self, options: Options, scratch: Path, warm: bool):
        """Set up the training without a teacher.

        Args:
            options (Options): The checked arguments.
            scratch (Path): Folder for what Ultralytics writes.
            warm (bool): Whether this process has trained already.
        """
        self._options, self._scratch = options, scratch
        self._device = select_device(options.args.device, verbose=False)
        if not warm:  # the first training of a process takes memory that later ones use again
            with closing(self._trial(alone(options.training), "first")) as first:
                first.step()
        self.plain, _, self._memory = costs.build_measured(
            lambda: self._trial(alone(options.training), "plain"), lambda _: None, self._device
        )

    def close(self) -> None:
        """Free what the training without a teacher holds."""
        self.plain.close()

    def measure(self, source: str) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
        """Return the gradients of a teacher's terms, and what it costs.

        Args:
            source (str): The teacher.

        Returns:
            gradients (dict): As `compare_gradients` returns them.
            costs (dict): "steps" of the whole training, "arms" as `costs.rows` returns them, with "making_hours" for
                stored answers, and "not_stored", why stored answers were not measured; empty if they were.
        """
        trials, memory = {PLAIN: self.plain}, {PLAIN: self._memory}
        answering, not_stored = 0.0, ""
        with ExitStack() as own:
            trials[TAUGHT], gradients, memory[TAUGHT] = costs.build_measured(
                lambda: self._trial({**self._options.training, "teacher": source}, "taught"),
                compare_gradients,
                self._device,
            )
            own.callback(trials[TAUGHT].close)
            try:
                with quietly(logging.ERROR):  # warnings were logged before; these would name a temporary folder
                    stored, answering = self._stored(source)
                    trials[STORED], _, memory[STORED] = costs.build_measured(
                        lambda: self._trial(stored, "stored"), lambda _: None, self._device
                    )
                own.callback(trials[STORED].close)
            except KDError as e:  # answers of this teacher, or for these terms, cannot be stored
                not_stored = str(e)
            rows, steps = self._rows(trials, memory, answering)
        return gradients, {"steps": steps, "arms": rows, "not_stored": not_stored}

    def _rows(
        self, trials: dict[str, Trial], memory: dict[str, float | None], answering: float
    ) -> tuple[dict[str, dict[str, Any]], int]:
        """Time the steps of the trainings; return their rows, as `measure` does, and the steps of the whole training.

        Args:
            trials (dict[str, Trial]): The trainings.
            memory (dict[str, float | None]): Their peak memory in GiB.
            answering (float): Seconds in which one image is answered.
        """
        seconds = costs.time_steps(trials)
        loading = {name: costs.loading_seconds(trial) for name, trial in trials.items()}
        trainer = self.plain.trainer
        steps = len(trainer.train_loader) * self._options.argument("epochs")
        rows = costs.rows(seconds, memory, loading, trainer.train_loader.num_workers, steps)
        if STORED in rows:
            images = len(trainer.train_loader.dataset) + len(self._unlabeled)
            rows[STORED]["making_hours"] = answering * images / 3600
        return rows, steps

    def _stored(self, source: str) -> tuple[dict[str, Any], float]:
        """Store a teacher's answers to some images; return arguments of a training on them, and seconds per image.

        Raises:
            KDError: If its answers cannot be stored.
        """
        options = self._options
        asked = get_cfg(overrides={**options.training, "teacher": source, "kd_cache": "answers"})
        check_combination({**vars(asked), "task": options.task})
        folder = self._scratch / f"stored-{len(list(self._scratch.glob('stored-*')))}"
        count = max(ANSWERED, ANSWERED_BATCHES * options.argument("batch"))
        part = part_of(options.args.data, options.task, "train", count, folder, copies=True)
        # The part's data.yaml has no test images, and a training asks for those that `split` names
        own = {**alone(options.training), "data": part.data, "split": part.split, "fraction": 1.0}
        if self._unlabeled:
            own["kd_unlabeled"] = str(link_numbered(self._unlabeled[:count], folder / "unlabeled"))
        args = get_cfg(overrides={"task": "detect", "mode": "train", **own})
        args.kd_cache = str(folder / "answers")
        for name in ("kd_trust_teacher", "kd_classes", "kd_precision", "kd_teacher_imgsz"):
            setattr(args, name, options.argument(name))
        moments = [(perf_counter(), 0)]
        build_cache(
            args,
            [source],
            cache_options(CACHE_ONLY),
            progress=lambda count: moments.append((perf_counter(), count)),
        )
        stored = {**options.training, **own, "teacher": source, "kd_cache": args.kd_cache}
        return stored, seconds_per_image(moments)

    @cached_property
    def _unlabeled(self) -> list[str]:
        """The images without labels, empty if there are none."""
        given = self._options.training.get("kd_unlabeled")
        return find_unlabeled(parse_list(given)) if given else []

    def _trial(self, training: dict[str, Any], name: str) -> Trial:
        """Return a training that is ready to take steps."""
        return Trial(training, self._scratch / name, BATCHES)
