"""A teacher that sees larger images than its student (`kd_teacher_imgsz`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...config.teacher_size import check_larger, teacher_size
from ...distillation.loss import LABELED
from ...errors import KDError
from ...teachers import Teacher, sizes
from ..answer_sources import LiveTeacher
from ..first_step import HOOKS
from .two_sizes import LARGE, LARGE_LABELS, TwoSizes, at_two_sizes

STRIDE = 32  # Ultralytics' image sizes are multiples of at least this


class LargeImageTeacher(LiveTeacher):
    """A teacher that answers larger images of the same scenes than the student sees.

    The training data set holds both (`two_sizes`). The teacher's answer is a set of detections with boxes as shares of
    the image, or logits of the whole image, so it fits the student's images too.

    Attributes:
        given (float): The argument `kd_teacher_imgsz`.
        multiple (int): The side of the teacher's images is a multiple of this.
    """

    answers_val = False  # val images have the student's size

    def __init__(self, teacher: Teacher, given: float):
        """Take a teacher and the argument; the teacher answers once it is prepared."""
        super().__init__(teacher)
        self.given = given
        strides = [s for m in teacher.members if m.layout is not None for s in m.layout.strides]
        self.multiple = math.lcm(STRIDE, *strides)

    def fit(self, student: nn.Module) -> None:
        """Let the size be a multiple of the student's strides too.

        Args:
            student (nn.Module): The student.
        """
        strides = torch.as_tensor(getattr(student, "stride", STRIDE)).flatten().tolist()
        self.multiple = math.lcm(self.multiple, *(max(int(stride), 1) for stride in strides))

    def imgsz(self, student: Any) -> int:
        """Return the side of the teacher's images in pixels.

        Args:
            student (int | list[int]): The argument `imgsz`, in pixels.

        Raises:
            KDError: If it is not greater than the student's, or a teacher reads smaller images alone.
        """
        side = teacher_size(self.given, student, self.multiple)
        check_larger(self.given, side, student)
        sizes.check_reads(self.teacher.members, side, f"kd_teacher_imgsz={self.given}")
        return side

    def size_warnings(self, imgsz: int) -> list[str]:
        """Return a sentence if the size was rounded, and one for each teacher that was trained at a different size."""
        side = self.imgsz(imgsz)
        rounded = [f"'kd_teacher_imgsz={self.given}' is rounded up to a multiple of {self.multiple}: {side} px."]
        own = sizes.size_warnings(self.teacher.members, side, own_images=True)
        return (rounded if side != teacher_size(self.given, imgsz) else []) + own

    def data_set(self, build: Callable[[], Any], args: Any) -> TwoSizes:
        """Return a data set whose samples also hold larger images for the teacher.

        Args:
            build (Callable): Returns a data set of images of `args.imgsz`.
            args (Namespace): Arguments of the training.
        """
        return at_two_sizes(build, args, self.imgsz(args.imgsz))

    def _answer_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what the teacher adds to a training batch.

        Raises:
            KDError: If user code has dropped the larger images, or has moved the labels.
        """
        if LARGE not in batch:
            raise KDError(
                "kd_teacher_imgsz: the batches lack the teacher's images: build_dataset must call "
                "super().build_dataset(...), which loads them, and the loader and preprocess_batch must keep the entry "
                f"'{LARGE}'; {HOOKS}."
            )
        if self.passed_through and batch.get(LABELED) == 0:
            raise KDError(
                f"kd_teacher_imgsz: {self.passed_through} may move images, and without labels nothing tells whether "
                "the teacher's images still fit: leave images where they are, or drop kd_teacher_imgsz."
            )
        # Only after user code: Ultralytics moves no labels here, and comparing makes the host wait for a GPU
        boxes = batch.get(LARGE_LABELS) if self.passed_through else None
        if boxes is not None and not torch.equal(batch["bboxes"].cpu(), boxes.cpu()):
            raise KDError(
                f"kd_teacher_imgsz: {self.passed_through} changes the labels' boxes, and the teacher's images stay as "
                "they are: leave the boxes where they are, or drop kd_teacher_imgsz."
            )
        images: Tensor = batch[LARGE].to(batch["img"].device, non_blocking=True)
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return self._with_factor(self.teacher.answer_for_any_size(images))

    def add_val_answer(self, batch: dict[str, Any], keep_features: bool) -> None:
        """Add nothing: val images are loaded at the student's size alone."""
