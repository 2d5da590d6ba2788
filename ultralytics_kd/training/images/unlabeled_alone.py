"""Training on images without labels alone: the data have class names and a val set, and only the teacher teaches.

The batches come from the training's own loader, and all of their images count as images without labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.utils.torch_utils import unwrap_model

from ... import outputs
from ...config.label_free import lacks_training_images, with_train_entry
from ...distillation.loss import LABELED
from ...errors import KDError
from ...image_files import readable, training_share
from ...outputs import ONE2ONE
from ...teachers import Teacher
from .. import distributed
from ..answer_sources import LiveTeacher
from .unlabeled import UnlabeledPart
from .unlabeled_images import UnlabeledImages

TASKS = ("detect",)


class UnlabeledAlone(UnlabeledPart):
    """The images of `kd_unlabeled` where the data have no training images of their own."""

    alone = True

    def __init__(self, args: Any):
        """Find the images.

        Args:
            args (Namespace): Arguments of the training.

        Raises:
            KDError: If the task or an argument needs labels.
        """
        super().__init__(args)
        if args.task not in TASKS:
            raise KDError(
                f"data={args.data} has no training images, and task '{args.task}' needs some with labels: name them "
                f"under train:. Only {' and '.join(TASKS)} learns from kd_unlabeled alone."
            )
        if args.kd_weight is not None:
            raise KDError(
                f"'kd_weight={args.kd_weight}' compares gradients with those of labels, and data={args.data} has no "
                "training images: drop it."
            )
        if args.kd_keep:
            raise KDError(
                f"'kd_keep={args.kd_keep}' keeps old classes beside labels of others, and data={args.data} has no "
                "training images: drop it."
            )
        self._count = 0
        self._readable: list[str] = []

    def __len__(self) -> int:
        """Return the number of images that can be read; 0 before the loader is built."""
        return self._count

    def data_file(self, data: Any, folder: Path) -> str:
        """Return the data.yaml in a form that Ultralytics reads."""
        return with_train_entry(data, folder)

    def check_images(self) -> None:
        """Find the images that can be read, the same in all processes, before any process builds its data set.

        Raises:
            KDError: If none can be read.
        """
        self._readable = self._readable or distributed.from_first(lambda: readable(self.files))

    def training_set(self, trainer: Any) -> UnlabeledImages:
        """Return the images as the training set.

        Ultralytics lets the first process build its data set before the others, so nothing here may wait for them.

        Args:
            trainer (BaseTrainer): The trainer; its student is built.
        """
        files = training_share(self._readable or readable(self.files), self.args.fraction)
        stride = max(int(unwrap_model(trainer.model).stride.max()), 32)
        images = UnlabeledImages(files, self.args, trainer.data, stride)
        self._count = len(images)
        return images

    def open(self, trainer: Any) -> None:
        """Warn if some of the images are val images; the trainer's own loader reads them."""
        dataset = trainer.train_loader.dataset
        self._warn_of_val_images(getattr(dataset, "small", dataset).im_files, trainer)

    @property
    def ready(self) -> bool:
        """Always true: the batches have the images."""
        return True

    def add_to(self, batch: dict[str, Any]) -> None:
        """Note that no image of the batch has labels."""
        batch[LABELED] = 0

    def close_mosaic(self) -> None:
        """Do nothing: the trainer does it for its own loader."""


def unlabeled_part(args: Any) -> UnlabeledPart | None:
    """Return the images without labels of a run, None if it has none.

    Args:
        args (Namespace): Arguments of the training; paths in them become absolute.

    Raises:
        KDError: If there are none where `kd_unlabeled` says, or arguments conflict.
    """
    if not args.kd_unlabeled:
        return None
    return UnlabeledAlone(args) if lacks_training_images(args.data, args.task) else UnlabeledPart(args)


def needs_sets(student: nn.Module, teacher: Teacher) -> bool:
    """Return whether a student without labels of some classes must be taught by detections instead of anchor points.

    At anchor points an NMS-free head learns only from an NMS-free head; otherwise it learns from labels. Detections of
    any teacher can be assigned to it like labels. Without them it would forget classes that it keeps (`kd_keep`).

    Args:
        student (nn.Module): The student.
        teacher (Teacher): The teacher.
    """
    if teacher.layout is None or outputs.head_fault(student):
        return False
    return ONE2ONE in outputs.layout(student).branches and ONE2ONE not in teacher.layout.branches


class DetectionsOnly(LiveTeacher):
    """A teacher that answers with detections, though it has anchor points."""

    def _answer(self, images: Any) -> dict[str, Any]:
        """Return what the teacher adds to a batch of images."""
        return self._with_factor(self.teacher.answer_for_any_size(images))
