"""The confidence from which on a teacher's boxes are labels of images without labels (`kd_unlabeled_boxes`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import KDError, KDTypeError

NAME = "kd_unlabeled_boxes"
DEFAULT_CONFIDENCE = 0.5  # of kd_unlabeled_boxes=True
BOX_TASKS = ("detect", "obb")  # masks and keypoints of a teacher cannot be labels yet


def check_sure_boxes(value: Any) -> None:
    """Check a value of `kd_unlabeled_boxes` on its own.

    Args:
        value (Any): None, True, or a confidence.

    Raises:
        KDTypeError: If it is neither True nor a number.
        KDError: If it is a number that is not between 0 and 1.
    """
    if value is None or value is True:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise KDTypeError(f"'{NAME}={value}' is invalid: it must be a confidence, or True for {DEFAULT_CONFIDENCE}.")
    if not 0 < value < 1:
        raise KDError(f"'{NAME}={value}' is an invalid value: a confidence is greater than 0 and less than 1.")


def check_boxes_fit(cfg: Mapping[str, Any]) -> None:
    """Check that a training has images for `kd_unlabeled_boxes`, and labels that are boxes.

    Args:
        cfg (Mapping): All arguments of the training.

    Raises:
        KDError: If the task has no box labels, or `kd_unlabeled` is not given.
    """
    given = f"'{NAME}={cfg[NAME]}'"
    if cfg["task"] not in BOX_TASKS:
        raise KDError(f"{given} is supported for {' and '.join(BOX_TASKS)}, not for task '{cfg['task']}': drop it.")
    if not cfg.get("kd_unlabeled"):
        raise KDError(f"{given} has no effect without images: add kd_unlabeled=FOLDER, or drop it.")


def sure_confidence(value: Any) -> float:
    """Return the confidence from which on a detection is a label.

    Args:
        value (Any): The checked argument: True, or a confidence.
    """
    return DEFAULT_CONFIDENCE if value is True else float(value)
