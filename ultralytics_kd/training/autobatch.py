"""A model for AutoBatch to profile in place of the student, so that the batch size leaves room for the teacher."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from ultralytics.utils.torch_utils import unwrap_model

from .. import outputs
from ..distillation.distillers import Distiller
from ..distillation.loss import DistillationLoss
from ..outputs import ONE2MANY, ONE2ONE
from ..teachers import Teacher


class StudentWithTeacher(nn.Module):
    """A student and its teacher, whose forward and backward pass take as much memory as a training step."""

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | None,
        distiller: Distiller,
        unlabeled: float = 0.0,
        imgsz: int | None = None,
    ):
        """Take student and teacher.

        Args:
            student (nn.Module): The student on its device.
            teacher (Teacher | None): The prepared teacher; None if its answers are stored.
            distiller (Distiller): The terms.
            unlabeled (float): Number of images without labels for each image of a batch.
            imgsz (int, optional): Side of the teacher's images in pixels if it answers with detections; None if it
                answers the student's images.
        """
        super().__init__()
        model: Any = unwrap_model(student)
        self.student, self.teacher, self.distiller, self.unlabeled = student, teacher, distiller, unlabeled
        self.imgsz = imgsz
        self.stride, self.names, self.yaml = model.stride, model.names, model.yaml

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the student's predictions and the terms for images of shape (B, C, H, W).

        They are returned as one flat list, because profilers of older releases do not look into nested outputs.
        """
        extra = math.ceil(len(images) * self.unlabeled)
        images = torch.cat((images, images[torch.arange(extra) % len(images)])) if extra else images
        model: Any = unwrap_model(self.student)
        if self.teacher is None:
            return _tensors(self.student(images))
        # Ultralytics profiles uninitialised memory, on which a teacher in half precision would overflow
        answer = self._answer(self.teacher, torch.zeros_like(images))
        with self.distiller.capturing_features(model):
            preds = self.student(images)
            self.distiller.gains = dict.fromkeys((ONE2MANY, ONE2ONE), 1.0)
            loss = DistillationLoss(model.init_criterion(), self.distiller, outputs.find_head(model))
            terms = self.distiller(preds, answer, loss.head, loss.bases)
        return _tensors(preds) + list(terms.values())

    def _answer(self, teacher: Teacher, images: Tensor) -> Any:
        """Return the teacher's answer to the images, which are enlarged first if the teacher sees larger ones."""
        if self.imgsz is None:
            return teacher(images)
        return teacher.answer_for_any_size(F.interpolate(images, (self.imgsz, self.imgsz), mode="bilinear"))


def _tensors(value: Any) -> list[Tensor]:
    """Return all tensors of nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
