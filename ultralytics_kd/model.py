"""The Python face: a `YOLO` whose `train` takes a teacher."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ultralytics.models.yolo.model import YOLO as _YOLO

from .errors import KDError
from .trainer import TRAINERS


class YOLO(_YOLO):
    """Ultralytics' YOLO with distillation.

    Everything but `train` and `tune` is Ultralytics' own. They also take `teacher` and the kd arguments; without a
    teacher a training is Ultralytics', bit for bit.

    Examples:
        >>> from ultralytics_kd import YOLO
        >>> YOLO("yolo26n.pt").train(data="coco8.yaml", teacher="yolo26x.pt")
    """

    def train(self, trainer: Any = None, **kwargs: Any) -> Any:
        """Train, with a teacher if one is given.

        Args:
            trainer (type[BaseTrainer], optional): Trainer class in place of the task's.
            **kwargs (Any): Ultralytics' arguments, `teacher` and the kd arguments.

        Returns:
            (DetMetrics | dict): What Ultralytics' `train` returns.

        Raises:
            KDError: If the distillation cannot run as asked.
        """
        if isinstance(kwargs.get("data"), (list, tuple)) and trainer is None:
            _check_travels(kwargs.get("teacher"), "train on several data sets")
        return super().train(trainer=trainer, **kwargs)

    def tune(self, *args: Any, **kwargs: Any) -> Any:
        """Search hyperparameters as Ultralytics does, every training of it with a teacher if one is given.

        Args:
            *args (Any): Ultralytics' arguments.
            **kwargs (Any): Ultralytics' arguments, `teacher` and the kd arguments.

        Returns:
            (ResultGrid | None): What Ultralytics' `tune` returns.

        Raises:
            KDError: If the teacher is an object in memory.
        """
        _check_travels(kwargs.get("teacher"), "search")
        return super().tune(*args, **kwargs)

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """Map tasks to models, trainers, validators and predictors, with trainers that distil."""
        return _with_distilling_trainers(super().task_map)


def _check_travels(teacher: Any, purpose: str) -> None:
    """Raise if a teacher is no path: other processes could not be given it."""
    members = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    if not all(isinstance(each, (str, Path, type(None))) for each in members):
        raise KDError(f"a teacher in memory cannot follow to the processes that {purpose}: save it and give its path.")


def install() -> None:
    """Let Ultralytics' own YOLO class train with the trainers that distil, in this process; repeatable."""
    stock = _YOLO.task_map.fget
    if not getattr(stock, "kd", False):

        def task_map(self: _YOLO) -> dict[str, dict[str, Any]]:
            return _with_distilling_trainers(stock(self))

        task_map.kd = True  # type: ignore[attr-defined]
        _YOLO.task_map = property(task_map)


def _with_distilling_trainers(task_map: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the map with every trainer that has a distilling counterpart replaced by it."""
    return {
        task: {**parts, "trainer": TRAINERS.get(parts["trainer"], parts["trainer"])} for task, parts in task_map.items()
    }


if "ultralytics_kd._autoload" in sys.modules:  # `yolo-kd enable`: the plain YOLO class distils too
    install()
