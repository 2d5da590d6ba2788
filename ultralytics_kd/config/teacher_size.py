"""The size of the images that a teacher sees, if it is not the student's."""

from __future__ import annotations

import math
from typing import Any

from ..errors import KDError, KDTypeError

NAME = "kd_teacher_imgsz"
LARGEST_FACTOR = 16  # up to this number it is a factor of the student's size, above it a size in pixels
LARGEST_SIDE = 2**16  # in pixels; a mistyped size must not fill the memory
SIDES = 32  # sides of images are multiples of at least this
SIZED_TASKS = ("detect", "classify")  # their answers, boxes as shares of the image and logits, fit images of any size


def check_teacher_size(value: Any) -> None:
    """Check a value of `kd_teacher_imgsz` on its own.

    Args:
        value (Any): None, a factor, or a size in pixels.

    Raises:
        KDTypeError: If it is not a number.
        KDError: If it is neither a factor nor a size.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise KDTypeError(f"'{NAME}={value}' is invalid: it must be a size in pixels, or a factor of imgsz.")
    if not 1 < value <= LARGEST_SIDE or (value > LARGEST_FACTOR and value != int(value)):
        raise KDError(
            f"'{NAME}={value}' is an invalid value: give a whole number of pixels (17 to {LARGEST_SIDE}), or a factor "
            f"of imgsz (greater than 1, up to {LARGEST_FACTOR})."
        )


def teacher_size(value: float, imgsz: Any, multiple: int = 1) -> int:
    """Return the side of the teacher's images in pixels.

    Args:
        value (float): The checked argument: a size in pixels, or a factor.
        imgsz (int | list[int]): The student's image size in pixels; the largest one of a list, as in Ultralytics.
        multiple (int): The side is rounded up to a multiple of this.
    """
    side = value * student_size(imgsz) if value <= LARGEST_FACTOR else value
    return math.ceil(side / multiple) * multiple


def student_size(imgsz: Any) -> int:
    """Return an `imgsz` argument as one side in pixels."""
    return int(max(imgsz) if isinstance(imgsz, (list, tuple)) else imgsz)


def rounded_size(imgsz: Any) -> int:
    """Return an `imgsz` argument as one side in pixels, rounded up as Ultralytics does before a training."""
    return math.ceil(student_size(imgsz) / SIDES) * SIDES


def scored_size(value: float, imgsz: Any) -> int:
    """Return the side in pixels of the images that a teacher is scored on, before its strides are known.

    Args:
        value (float): The checked argument: a size in pixels, or a factor.
        imgsz (int | list[int]): The student's image size in pixels.
    """
    return teacher_size(value, rounded_size(imgsz), SIDES)


def check_scored_larger(value: float, imgsz: Any) -> None:
    """Raise unless the teacher sees larger images than the student, once both sizes are rounded.

    Args:
        value (float): The checked argument: a size in pixels, or a factor.
        imgsz (int | list[int]): The student's image size in pixels.

    Raises:
        KDError: If they are not larger.
    """
    check_larger(value, scored_size(value, imgsz), rounded_size(imgsz))


def check_larger(value: float, side: int, imgsz: Any) -> None:
    """Raise unless the teacher sees larger images than the student.

    Args:
        value (float): The argument, for the message.
        side (int): Side of the teacher's images in pixels.
        imgsz (int | list[int]): The student's image size in pixels.

    Raises:
        KDError: If they are not larger.
    """
    student = student_size(imgsz)
    if side == student:
        raise KDError(f"'{NAME}={value}' has no effect: the student's imgsz is {student} too; drop it, or give more.")
    if side < student:
        raise KDError(
            f"'{NAME}={value}' is smaller than imgsz={student}, and the teacher would see less than the student: give "
            "more, or drop it."
        )
