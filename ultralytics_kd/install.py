"""The kd arguments in Ultralytics, in this process: no trainer ignores a teacher, and `YOLO` has those that distil.

After `yolo-kd enable` this happens while Ultralytics is being imported. What leans on more of it than is patched here,
the trainers that distil, is therefore imported when it is first asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ultralytics.utils import LOGGER

from .config import registration
from .config.recipes import check_call, check_unfinished
from .config.registration import register
from .errors import KDError

# What is patched here
PATCHED = {
    **registration.PATCHED,
    "ultralytics.models.yolo.model": ("YOLO.task_map", "YOLO.train(trainer)", "YOLO.tune(use_ray)"),
}


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
