"""A teacher that sees larger images than its student (`kd_teacher_imgsz`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.models.yolo.detect import DetectionTrainer

from ..config.teacher_size import check_larger, teacher_size
from ..errors import KDError
from ..teachers import Teacher, sizes
from .answer_sources import LiveTeacher
from .first_step import HOOKS

STRIDE = 32  # the least that Ultralytics' image sizes are multiples of


class LargeImageTeacher(LiveTeacher):
    """A teacher that answers the training images before they are made smaller for the student.

    Images are loaded and augmented at the teacher's size. Its answer is a set of detections as shares of the image, or
    logits of the whole image, so it fits the small images too.

    Attributes:
        given (float): The argument `kd_teacher_imgsz`.
        multiple (int): The side of its images is a multiple of this.
    """

    def __init__(self, teacher: Teacher, given: float):
        """Take a teacher and the argument; the teacher answers once it is prepared."""
        super().__init__(teacher)
        self.given = given
        strides = [s for m in teacher.members if m.layout is not None for s in m.layout.strides]
        self.multiple = math.lcm(STRIDE, *strides)
        self._answer_kept: dict[str, Any] = {}
        self._boxes: Tensor | None = None  # of the labels, when the teacher answered

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
            KDError: If it is not greater than the student's.
        """
        side = teacher_size(self.given, student, self.multiple)
        check_larger(self.given, side, student)
        return side

    def size_warnings(self, imgsz: int) -> list[str]:
        """Return a sentence if the size was rounded, and one for each teacher that was trained at a different size."""
        side = self.imgsz(imgsz)
        rounded = [f"'kd_teacher_imgsz={self.given}' is rounded up to a multiple of {self.multiple}: {side} px."]
        own = sizes.size_warnings(self.teacher.members, side, own_images=True)
        return (rounded if side != teacher_size(self.given, imgsz) else []) + own

    @contextmanager
    def loading(self, args: Any) -> Iterator[None]:
        """Let Ultralytics build data sets of images of the teacher's size within a block.

        Args:
            args (Namespace): Arguments of the training.
        """
        with replaced(args, "imgsz", self.imgsz(args.imgsz)):
            yield

    def prepare(self, batch: dict[str, Any], trainer: Any, stock: Callable[[dict], dict]) -> dict[str, Any]:
        """Prepare a training batch: the teacher answers its images, then they are made smaller for the student.

        Args:
            batch (dict): The batch as it comes from the loader; its images go from the teacher's to the student's size.
            trainer (BaseTrainer): The trainer.
            stock (Callable): Its `preprocess_batch` without a distillation.

        Returns:
            (dict): The prepared batch, with the answer under "teacher" if the teacher is ready.

        Raises:
            KDError: If the images do not have the teacher's size.
        """
        with replaced(trainer.args, "multi_scale", 0.0):  # the teacher's images keep their size
            batch = stock(batch)
        images: Tensor = batch["img"]
        self._check_size(images, self.imgsz(trainer.args.imgsz))
        answer = self._answer(images) if self.teacher.ready else {}
        batch |= {**answer, "img": smaller(images, drawn_size(trainer), trainer.stride)}
        self._keep(batch, answer)
        return batch

    def _answer(self, images: Tensor) -> dict[str, Any]:
        """Return what the teacher adds to a batch."""
        return self._with_factor(self.teacher.answer_for_any_size(images))

    def _check_size(self, images: Tensor, side: int) -> None:
        """Raise unless the longer side of the images is the teacher's."""
        if max(images.shape[-2:]) != side:
            raise KDError(
                f"'kd_teacher_imgsz={self.given}' needs training images of {side} px, and they come with "
                f"{max(images.shape[-2:])} px: build_dataset must call super().build_dataset(...), which loads them at "
                f"that size; {HOOKS}."
            )

    def _keep(self, batch: dict[str, Any], answer: dict[str, Any]) -> None:
        """Note the small images as the answered ones, and keep what a later check needs."""
        self._answered_images.note(batch["img"])
        self._answer_kept = answer
        boxes = batch.get("bboxes")
        self._boxes = None if boxes is None else boxes.clone()

    def add_answer(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Check that a prepared batch still has the answer to its images, and put it back if code has dropped it.

        Args:
            batch (dict): The batch that the student's loss is computed for.

        Raises:
            KDError: If `preprocess_batch` of the user's does not call super(), or has moved the labels since.
        """
        if not self.teacher.ready:
            return batch
        where = self.passed_through or "preprocess_batch"
        if self._answered_images.are(batch["img"]):
            batch |= self._answer_kept
        elif "teacher" not in batch:
            raise KDError(
                f"kd_teacher_imgsz: {where} must call super().preprocess_batch(batch), which lets the teacher answer "
                f"the large images and makes them smaller for the student, and keep its entries; {HOOKS}."
            )
        elif self._boxes is not None and not torch.equal(self._boxes, batch["bboxes"]):
            raise KDError(
                f"kd_teacher_imgsz: {where} changes the labels' boxes after super().preprocess_batch(batch), and the "
                f"teacher has answered the images before: move boxes before that call; {HOOKS}."
            )
        return batch

    def forget(self) -> None:
        """Free the last answer."""
        self._answer_kept, self._boxes = {}, None

    def add_val_answer(self, batch: dict[str, Any], keep_features: bool) -> None:
        """Add nothing: val images are loaded at the student's size."""


@contextmanager
def replaced(args: Any, name: str, value: Any) -> Iterator[None]:
    """Give an argument another value within a block.

    Args:
        args (Namespace): Arguments.
        name (str): Its name.
        value (Any): The value.
    """
    before = getattr(args, name)
    setattr(args, name, value)
    try:
        yield
    finally:
        setattr(args, name, before)


def drawn_size(trainer: Any) -> int:
    """Return the side of the student's images in the next batch, in pixels; with `multi_scale` it is drawn.

    Args:
        trainer (BaseTrainer): The trainer.
    """
    side: int = trainer.args.imgsz
    if not trainer.args.multi_scale:
        return side
    # Ultralytics draws it: it resizes an image without content, by its own rule and random numbers
    return max(DetectionTrainer.preprocess_batch(trainer, {"img": torch.zeros(1, 1, side, side)})["img"].shape)


def smaller(images: Tensor, side: int, stride: int = STRIDE) -> Tensor:
    """Return images resized as Ultralytics' loader resizes: bilinear, without antialiasing.

    Args:
        images (Tensor): Images of shape (B, C, H, W), in floating point.
        side (int): Their new longer side in pixels, a multiple of the stride.
        stride (int): The new sides are rounded up to a multiple of it, as by `multi_scale`.
    """
    height, width = (math.ceil(s * side / (max(images.shape[-2:]) * stride)) * stride for s in images.shape[-2:])
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
