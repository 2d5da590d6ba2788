"""The distillation loss: Ultralytics' own loss plus the weighted terms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from ultralytics.utils.loss import v8ClassificationLoss
from ultralytics.utils.torch_utils import unwrap_model

from .. import outputs
from ..outputs import ONE2MANY
from ..teachers import Teacher
from .distillers import Distiller

LABELED = "kd_labeled"  # in a batch: how many of its images, the first ones, have labels; absent if all
SOUND = "kd_sound"  # in a batch: 0 if the teacher's answer held what is no number, else 1; absent if nobody need ask


class DistillationLoss:
    """A YOLO loss that also listens to the teacher in the batch.

    Without a teacher in the batch it is the base loss, bit for bit. Images without labels, which stand last in a batch
    that says so, are no business of the base loss.
    """

    def __init__(self, base: Any, distiller: Distiller, head: Any, trains: bool = True):
        """Wrap a base loss.

        Args:
            base (Any): Ultralytics' loss of the student.
            distiller (Distiller): The terms.
            head (nn.Module): Head of the model that this loss belongs to.
            trains (bool): Whether that model trains, and not its moving average, whose base loss nobody keeps up to
                date: the terms then take the gains that training used last, so that train and val can be compared.
        """
        self.base, self.distiller, self.head, self.trains = base, distiller, head, trains
        self.scaled = not isinstance(base, v8ClassificationLoss)  # the only one that is not times the batch size

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss per part times batch size, and its detached items.

        Args:
            preds (dict | tuple): The student's raw predictions.
            batch (dict): Images and labels, and under "teacher" the teacher's answer.

        Returns:
            loss (Tensor): Base parts and the task's terms, shape (n,), each times batch size as the base loss is.
            items (dict[str, Tensor]): The same by name, without gradient and not times batch size.
        """
        loss, items = self.base(*self._labeled(preds, batch))
        answer = batch.get("teacher")
        if answer is None:
            return loss, items
        if self.trains or not self.distiller.gains:
            self.distiller.gains = self.gains
        terms = self.distiller(preds, answer, self.head, self.bases, batch)
        kd = torch.stack(list(terms.values()))
        if batch.get(SOUND) is not None:
            kd = kd * batch[SOUND]
        items = {**items, **dict(zip(terms, kd.detach()))}
        if self.trains:
            self.distiller.faults.look(items)
        if self.scaled:  # as the base loss is; by the labelled images, so that others do not change the balance
            kd = kd * batch.get(LABELED, batch["img"].shape[0])
        return torch.cat([loss.reshape(-1), kd]), items

    @staticmethod
    def _labeled(preds: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return predictions and batch without the images that have no labels."""
        count, images = batch.get(LABELED), batch["img"]
        if count is None or count == len(images):
            return preds, batch
        return outputs.take_images(preds, count, len(images)), {**batch, "img": images[:count]}

    @property
    def bases(self) -> dict[str, Any]:
        """The base loss of each branch."""
        if hasattr(self.base, "o2m"):
            return {ONE2MANY: self.base.one2many, outputs.ONE2ONE: self.base.one2one}
        return {ONE2MANY: self.base}

    @property
    def gains(self) -> dict[str, float]:
        """The base loss's gain of each branch, which moves during an end-to-end training."""
        if hasattr(self.base, "o2m"):
            return {ONE2MANY: self.base.o2m, outputs.ONE2ONE: self.base.o2o}
        return {ONE2MANY: 1.0}

    def update(self) -> None:
        """Move the base loss's gains on by one epoch."""
        if hasattr(self.base, "update"):
            self.base.update()


class Rehearsal(nn.Module):
    """A student beside its teacher, whose forward and backward pass take the memory that a training step takes.

    AutoBatch profiles (a copy of) it in place of the student.
    """

    def __init__(self, student: nn.Module, teacher: Teacher, distiller: Distiller, unlabeled: float = 0.0):
        """Put the two side by side.

        Args:
            student (nn.Module): The student on its device.
            teacher (Teacher): The prepared teacher.
            distiller (Distiller): The terms.
            unlabeled (float): Images without labels that a step adds to each of the batch.
        """
        super().__init__()
        model: Any = unwrap_model(student)
        self.student, self.teacher, self.distiller, self.unlabeled = student, teacher, distiller, unlabeled
        self.stride, self.names, self.yaml = model.stride, model.names, model.yaml

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the student's predictions and the terms for images of shape (B, C, H, W).

        As one list, which the profilers of all releases can sum up: older ones do not look into what is nested.
        """
        more = math.ceil(len(images) * self.unlabeled)
        images = torch.cat((images, images[torch.arange(more) % len(images)])) if more else images
        answer = self.teacher(images.detach())
        model: Any = unwrap_model(self.student)
        with self.distiller.listening(model):
            preds = self.student(images)
            self.distiller.gains = dict.fromkeys((ONE2MANY, outputs.ONE2ONE), 1.0)
            loss = DistillationLoss(model.init_criterion(), self.distiller, outputs.find_head(model))
            terms = self.distiller(preds, answer, loss.head, loss.bases)
        return [leaf for leaf in tree_leaves(preds) if isinstance(leaf, Tensor)] + list(terms.values())
