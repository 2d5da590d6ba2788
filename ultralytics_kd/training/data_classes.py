"""The classes of the data set, and how a teacher's classes are matched with them."""

from __future__ import annotations

from typing import Any

from ..config import as_list
from ..report.datasets import class_names_of


def class_names(args: Any, data: dict[str, Any]) -> dict[int, str]:
    """Return the data set's class names; with `single_cls`, those before Ultralytics merged them into one.

    Args:
        args (Namespace): Arguments of the training.
        data (dict): Ultralytics' description of the data set.
    """
    if args.single_cls:
        return class_names_of(args.data, args.task)
    return dict(enumerate(data["names"])) if isinstance(data["names"], list) else data["names"]


def class_rules(args: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `match_classes` that do not depend on the teacher.

    Args:
        args (Namespace): Arguments of the training.
        data (dict): Ultralytics' description of the data set.
    """
    return {"spec": args.kd_classes, "keep": _kept_classes(args, data), "single_cls": bool(args.single_cls)}


def _kept_classes(args: Any, data: dict[str, Any]) -> list[int] | None:
    """Return the classes that `classes` keeps; Ultralytics adds the background of polygons to them.

    It ignores `classes` where it trains classifiers.
    """
    if args.classes is None or args.task == "classify":
        return None
    background = data.get("bg_class_idx")
    return [*as_list(args.classes), *([background] if background else [])]
