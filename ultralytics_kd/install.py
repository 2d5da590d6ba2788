"""All changes in Ultralytics' own modules, why and when they are made, and how they are undone.

`CHANGES` is the whole list. When its changes are made:

- Importing `ultralytics_kd` alone changes nothing.
- Importing a trainer or `YOLO` of this package calls `register`, which makes `ARGUMENT_CHANGES` and `TRAINER_CHANGES`
  (`config/registration.py`).
  A demo, bench, cache or report from Python makes `ARGUMENT_CHANGES` only.
- `yolo-kd` and, after `yolo-kd enable`, the import of Ultralytics call `install`, which makes `MODEL_CHANGES` too.
- `uninstall` undoes all of these; call `install` to make them again.
- A temporary change lasts as long as the block of code that its row names.

After `yolo-kd enable` this module is imported while Ultralytics is being imported. The trainers that distil need
modules of Ultralytics that do not exist by then, so they are imported on first use.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ultralytics.utils import LOGGER

from .compat import check_parts
from .config import changes
from .config.arguments import ARGUMENTS, has_teacher
from .config.changes import Change
from .config.recipes import call_with_recipe, calling, check_unfinished
from .config.registration import ARGUMENT_CHANGES, TRAINER_CHANGES, parts_of, register
from .errors import KDError

TaskMap = dict[str, dict[str, Any]]


# Replacements ---------------------------------------------------------------------------------------------------------
def _distilling_task_map(stock: property) -> property:
    """Return `YOLO.task_map` with the trainers that distil."""

    def task_map(self: Any) -> TaskMap:
        return {task: _Parts(parts) for task, parts in stock.__get__(self).items()}

    return property(task_map)


class _Parts(dict):
    """The classes of one task. Reading its trainer imports all trainers that distil: a prediction never does."""

    def __getitem__(self, key: str) -> Any:
        part = super().__getitem__(key)
        return _trainers().get(part, part) if key == "trainer" else part


def _checked_train(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Return `YOLO.train`, which checks recipes and kd arguments first."""

    @functools.wraps(stock)
    def train(self: Any, trainer: Any = None, **kwargs: Any) -> Any:
        with calling(kwargs):
            check_unfinished(self, kwargs)
            if trainer is None and has_teacher(kwargs):
                # It raises with the reason; Ultralytics' trainer would only say that it does not distil
                kwargs = distilling_model().sweep_arguments(kwargs)
            return stock(self, trainer=trainer, **kwargs)

    return train


def _checked_tune(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Return `YOLO.tune`, which checks a search over kd arguments, or with a teacher, first."""

    @functools.wraps(stock)
    def tune(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = call_with_recipe(kwargs)
        spaces = [each for each in (kwargs.get("space"), *args) if isinstance(each, Mapping)]  # Ray's may have no name
        if not any(name in ARGUMENTS for names in (given, *spaces) for name in names):
            return stock(self, *args, **kwargs)
        return distilling_model().tune(self, *args, **kwargs)

    return tune


# The list -------------------------------------------------------------------------------------------------------------
MODEL_CHANGES = (
    Change(
        "ultralytics.models.yolo.model",
        "YOLO.task_map",
        "Ultralytics' own YOLO trains with the trainers that distil.",
        _distilling_task_map,
    ),
    Change(
        "ultralytics.models.yolo.model",
        "YOLO.train(trainer)",
        "A recipe from a stranger runs no code, and kd arguments without a teacher are refused.",
        _checked_train,
    ),
    Change(
        "ultralytics.models.yolo.model",
        "YOLO.tune(use_ray)",
        "kd arguments in a search space are checked before the first training.",
        _checked_tune,
    ),
)
TEMPORARY_CHANGES = (
    Change(
        "ultralytics.engine.trainer",
        "strip_optimizer(updates)",
        "A checkpoint is stripped into a new file that then takes its place, so that an interrupted run loses nothing.",
        during="the final evaluation of a run with a teacher; ultralytics_kd.training.run.checkpoints",
    ),
    Change(
        "ultralytics.utils",
        "LOGGER",
        "A filter makes `strip_optimizer` log the name of the checkpoint and not that of the new file.",
        during="a checkpoint is stripped; ultralytics_kd.training.run.checkpoints",
    ),
    Change(
        "ultralytics.nn.tasks",
        "SAFE_LOAD",
        "Code that a teacher's file names does not run.",
        during="a teacher's file is opened; ultralytics_kd.teachers.opening",
    ),
    Change(
        "ultralytics.data.augment",
        "random",
        "The images of a mosaic meet at the same place at the student's and at the teacher's image size.",
        during="a mosaic at the teacher's size is laid out; ultralytics_kd.training.images.same_mosaics",
    ),
    Change(
        "ultralytics.cfg",
        "ARGV",
        "Ultralytics reads its command line there, and tells it from Python by the name `yolo`.",
        in_place=True,  # other modules hold this object, which is `sys.argv`
        during="`yolo-kd` runs Ultralytics' command line; ultralytics_kd.cli",
    ),
)
CHANGES: tuple[Change, ...] = (*ARGUMENT_CHANGES, *TRAINER_CHANGES, *MODEL_CHANGES, *TEMPORARY_CHANGES)


def install() -> None:
    """Let Ultralytics' own YOLO class distil, in this process; calling it again changes nothing.

    Raises:
        KDError: If Ultralytics lacks a part that is changed, or has an argument with the name of a kd argument.

    Examples:
        >>> from ultralytics_kd.install import install
        >>> install()
        >>> from ultralytics import YOLO
        >>> YOLO("yolo26n.pt").train(data="coco8.yaml", teacher="yolo26x.pt")
    """
    register()
    check_parts(parts_of(MODEL_CHANGES))
    changes.make(MODEL_CHANGES)


def uninstall() -> None:
    """Undo all that `install` and `register` have changed: Ultralytics is as it was before."""
    changes.undo()


def distilling_model() -> ModuleType:
    """Return the module of the `YOLO` that distils, which imports all trainers.

    Raises:
        KDError: If Ultralytics lacks a part that they need, or the installation of this package is incomplete.
    """
    try:
        return importlib.import_module(f"{__package__}.model")
    except ImportError as e:  # Ultralytics would say that its model does not support the mode
        raise KDError(f"a part of ultralytics_kd cannot be imported ({e}): install it again.") from e


@functools.cache
def _trainers() -> Mapping[Any, Any]:
    """Return the trainers that distil, by the trainer that each replaces; empty if they cannot be imported.

    Without them plain training still works, after a warning, and a training with a teacher raises an error with the
    reason.
    """
    try:
        trainers: Mapping[Any, Any] = distilling_model().TRAINERS
    except KDError as e:
        LOGGER.warning(f"distillation is unavailable in this environment: {e}")
        return {}
    return trainers
