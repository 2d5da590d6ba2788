"""The image size that a teacher was trained at, compared with the size that it sees now."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ..config.teacher_size import SIZED_TASKS
from ..errors import ModelError
from .base import Teacher

# Ultralytics' default augmentation (scale=0.5) shows a model objects of 0.5 to 1.5 times their size. YOLO26n, trained
# at 640 px, keeps 86% of its mAP on COCO images at 0.5 times that size and 93% at 1.5 times, but 71% at twice and 67%
# at a third
SMALLEST, TOO_LARGE = 0.5, 2.0
LARGER = 1.5  # a teacher with fewer times the student's parameters leads only by larger images


def train_args(ckpt: Any) -> Mapping[str, Any]:
    """Return the arguments that a checkpoint's model was trained with; empty if the checkpoint does not tell.

    Args:
        ckpt (Any): The checkpoint, None if there is none.
    """
    args = ckpt.get("train_args") if isinstance(ckpt, Mapping) else None
    return args if isinstance(args, Mapping) else {}


def trained_size(ckpt: Any) -> int | None:
    """Return the image size that a checkpoint's model was trained at; None if the checkpoint does not tell.

    Args:
        ckpt (Any): The checkpoint, None if there is none.
    """
    size = train_args(ckpt).get("imgsz")
    sizes = size if isinstance(size, (list, tuple)) and size else [size]
    if not all(type(side) is int and 0 < side <= sys.maxsize for side in sizes):
        return None
    return max(sizes)


def size_warnings(
    teachers: Iterable[Teacher], imgsz: int, stored_in: str | None = None, own_images: bool = False
) -> list[str]:
    """Return a sentence for each teacher that was trained at a very different image size than it sees.

    Args:
        teachers (Iterable[Teacher]): The teachers.
        imgsz (int): Size that they see, in pixels; with stored answers, the size that they are computed at.
        stored_in (str, optional): Folder of the stored answers; None if the teachers run.
        own_images (bool): Whether they see larger images than the student, by `kd_teacher_imgsz`.
    """
    sentences = []
    setting = "kd_teacher_imgsz" if own_images else "imgsz"
    for teacher in teachers:
        fixed = teacher.fixed_imgsz
        if fixed is not None and imgsz > fixed:
            sentences.append(
                f"teacher={teacher.source} reads images of {fixed} px alone, so those of {imgsz} px are shrunk for it: "
                f"{_export_again(imgsz)}."
            )
        own = teacher.trained_imgsz
        if own is None or SMALLEST <= imgsz / own < TOO_LARGE:
            continue
        place = f"{imgsz} px" if stored_in is None else f"{imgsz} px for kd_cache={stored_in}"
        if stored_in is not None:
            advice = f"make its answers with kd_cache_imgsz={own}"
        elif not own_images and teacher.task in SIZED_TASKS and own > imgsz:
            advice = f"add kd_teacher_imgsz={own}"
        else:
            advice = f"set {setting} nearer to {own}"
        sentences.append(
            f"teacher={teacher.source} was trained at {own} px and sees {place}, where it may be much worse: {advice}."
        )
    return sentences


def check_reads(teachers: Iterable[Teacher], imgsz: int, given: str) -> None:
    """Check that teachers read images of a size that was asked for.

    Args:
        teachers (Iterable[Teacher]): The teachers.
        imgsz (int): The size, in pixels.
        given (str): The argument that asks for it, and its value.

    Raises:
        KDError: If a teacher is a file that reads smaller images alone.
    """
    for teacher in teachers:
        if teacher.fixed_imgsz is not None and imgsz > teacher.fixed_imgsz:
            raise ModelError(
                teacher.source,
                f"reads images of {teacher.fixed_imgsz} px alone, so '{given}' has no effect: {_export_again(imgsz)}, "
                f"or drop {given.split('=')[0]}.",
            )


def _export_again(imgsz: int) -> str:
    """Return the advice for a file that reads smaller images alone."""
    return f"export it with imgsz={imgsz} or dynamic=True"


def no_lead_warnings(teachers: Iterable[Teacher], imgsz: int, parameters: int) -> list[str]:
    """Return a sentence for each teacher that is hardly larger than the student and sees smaller images than it knows.

    Such a teacher led by its larger images. On circuit boards YOLO26n has 0.548 mAP50-95 at the 256 px that it was
    trained at, and 0.115 at the 128 px of its student, which reaches 0.205 alone (examples/study, `coco-deeppcb`).

    Args:
        teachers (Iterable[Teacher]): The teachers.
        imgsz (int): Size that they see, in pixels.
        parameters (int): Number of the student's parameters.
    """
    return [
        f"teacher={teacher.source} is no larger than the student, was trained at {own} px and sees {imgsz} px: it may "
        f"have nothing to teach. Add kd_teacher_imgsz={own}."
        for teacher in teachers
        if (own := teacher.trained_imgsz) is not None
        and SMALLEST * own <= imgsz < own  # below that `size_warnings` advises the same
        and teacher.task in SIZED_TASKS
        and 0 < teacher.parameters() < LARGER * parameters
    ]


def seen_smaller(teacher: Teacher, imgsz: int) -> str:
    """Return a sentence if a teacher sees smaller images than it was trained with; else an empty text.

    Args:
        teacher (Teacher): The teacher.
        imgsz (int): Size that it sees, in pixels.
    """
    own = teacher.trained_imgsz
    if own is None or imgsz >= own or teacher.task not in SIZED_TASKS:
        return ""
    return f"The teacher was trained at {own} px and saw {imgsz} px: kd_teacher_imgsz={own} shows it what it knows."
