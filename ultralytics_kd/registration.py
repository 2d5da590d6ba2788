"""The kd arguments in Ultralytics, in this process: no trainer ignores a teacher, and `YOLO` has those that distil.

After `yolo-kd enable` this happens while Ultralytics is being imported. What leans on more of it than is patched here,
the trainers that distil, is therefore imported when it is first asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ultralytics.utils import LOGGER

from . import config
from .compat import check_parts
from .errors import KDError
from .recipes import check_call, check_merged

# What is patched here
PATCHED = {
    "ultralytics.engine.trainer": ("BaseTrainer.check_resume(overrides)",),
    "ultralytics.models.yolo.model": ("YOLO.task_map", "YOLO.train(trainer)", "YOLO.tune(use_ray)"),
}


def register() -> None:
    """Make the kd arguments known to Ultralytics, and let no trainer pass over them in silence; repeatable."""
    config.register()
    check_parts(PATCHED)
    from ultralytics.engine.trainer import BaseTrainer

    stock = BaseTrainer.check_resume
    if getattr(stock, "kd", False):
        return

    @functools.wraps(stock)
    def check_resume(self: BaseTrainer, overrides: dict[str, Any]) -> None:
        check_merged(overrides)
        stock(self, overrides)
        config.check_combination(vars(self.args))
        if config.has_teacher(vars(self.args)):
            _check_distils(self)
            return
        for name in config.ARGUMENTS:  # a plain run is saved as Ultralytics would, and resumed by it alone
            vars(self.args).pop(name, None)

    setattr(check_resume, "kd", True)  # noqa: B010 (the wrapped type has no such attribute)
    BaseTrainer.check_resume = check_resume


def _check_distils(trainer: Any) -> None:
    """Raise if a trainer would ignore its teacher."""
    from .trainer import DistillationMixin

    if not isinstance(trainer, DistillationMixin):
        raise KDError(
            f"{type(trainer).__name__} does not distil, so that teacher={trainer.args.teacher} would be ignored: YOLO "
            "models do, through ultralytics_kd.YOLO or with a trainer of ultralytics_kd.trainer."
        )


def install() -> None:
    """Let Ultralytics' own YOLO class train with the trainers that distil, in this process; repeatable."""
    register()
    from ultralytics.models.yolo.model import YOLO

    stock = YOLO.task_map.fget
    if getattr(stock, "kd", False):
        return

    def task_map(self: YOLO) -> dict[str, dict[str, Any]]:
        replaced = _replacement()
        return replaced(stock(self)) if replaced else stock(self)

    @functools.wraps(YOLO.tune)
    def tune(self: YOLO, *args: Any, **kwargs: Any) -> Any:
        from .model import tune

        return tune(self, *args, **kwargs)

    stock_train = YOLO.train

    @functools.wraps(stock_train)
    def train(self: YOLO, trainer: Any = None, **kwargs: Any) -> Any:
        check_call(kwargs)
        check_unfinished(self, kwargs)
        return stock_train(self, trainer=trainer, **kwargs)

    task_map.kd = True  # type: ignore[attr-defined]
    YOLO.task_map, YOLO.train, YOLO.tune = property(task_map), train, tune


def check_unfinished(model: Any, arguments: Mapping[str, Any]) -> None:
    """Raise if a finished run with a teacher is to be resumed: Ultralytics would begin another, on data of its own.

    Args:
        model (YOLO): The model of the run's checkpoint.
        arguments (Mapping): Those of `train`.

    Raises:
        KDError: If there is nothing to resume.
    """
    ckpt = model.ckpt or {}
    taught = config.has_teacher(ckpt.get("train_args") or {})
    if arguments.get("resume") is True and taught and not ckpt.get("optimizer"):
        raise KDError(
            f"{model.ckpt_path} is of a run that is finished: there is nothing to resume. To train it further, start a "
            "new run with data= and teacher=, and without resume."
        )


@functools.cache
def _replacement() -> Callable[[dict[str, dict[str, Any]]], dict[str, dict[str, Any]]] | None:
    """Return what puts trainers that distil into a map of tasks, or None with a warning where they cannot be imported.

    All that does not distil goes on then, and a trainer that is given a teacher says why it cannot.
    """
    try:
        from .model import with_distilling_trainers
    except KDError as e:
        LOGGER.warning(f"no training can have a teacher here: {e}")
        return None
    return with_distilling_trainers
