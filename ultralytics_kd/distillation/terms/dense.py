"""Terms of tasks without anchor points: class logits of images and of pixels, and depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...losses import binary_kl, depth_loss, dkd
from ...losses.logit import IMAGE_LOSSES, PIXEL_LOSSES
from ..pairs import DensePair
from .named_losses import named_loss

NEVER = -1e30  # a logit whose share in any softmax is 0
IMAGE_TAUS = {"kl": 4.0, "dkd": 4.0}  # default temperatures of classification, as published for small images


class ImageTerm:
    """Compares class logits of whole images.

    The softmax of both sides runs over the classes that both know, so other classes get no gradient.
    """

    per_branch = True
    reads: frozenset[str] = frozenset()
    adapters: nn.Module | None = None

    def __init__(self, loss: str, tau: float | None):
        """Choose the loss.

        Args:
            loss (str): A name in `IMAGE_LOSSES`, or "module:name" of the user's own function.
            tau (float | None): Temperature; None for the value in `IMAGE_TAUS`, or else the loss's default.

        Raises:
            KDError: If the user's function cannot be imported.
        """
        self.loss = named_loss("kd_cls_loss", loss, IMAGE_LOSSES, tau or IMAGE_TAUS.get(loss))
        self.needs_labels = IMAGE_LOSSES.get(loss) is dkd

    def __call__(self, pair: DensePair) -> Tensor:
        """Return the term, a scalar."""
        student, teacher = pair.logits, pair.teacher.float()
        return self._labelled(pair, student, teacher) if self.needs_labels else self.loss(student, teacher)

    def _labelled(self, pair: DensePair, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the term of a loss that needs labels, over the images whose class both sides know."""
        if pair.labels is None or student.shape[1] < 2:
            return student.sum() * 0
        labels, count = pair.labels.long(), len(pair.labels)
        student, teacher = student[:count], teacher[:count]
        if pair.classes is not None:  # a label becomes its index among the matched classes
            same = labels[:, None] == pair.classes[None]
            kept = same.any(1).nonzero().flatten()
            labels, student, teacher = same[kept].long().argmax(1), student[kept], teacher[kept]
        return self.loss(student, teacher, labels) if len(labels) else student.sum() * 0


class PixelTerm:
    """Compares class logits of every pixel outside padding."""

    per_branch = True
    reads: frozenset[str] = frozenset()
    adapters: nn.Module | None = None

    def __init__(self, loss: str, tau: float | None):
        """Choose the loss.

        Args:
            loss (str): A name in `PIXEL_LOSSES`, or "module:name" of the user's own function.
            tau (float | None): Temperature; None for the loss's default.

        Raises:
            KDError: If the user's function cannot be imported.
        """
        self.loss, self.tau = named_loss("kd_cls_loss", loss, PIXEL_LOSSES, tau), tau or 1.0
        self.by_pixel, self.by_channel = loss == "kl", loss == "cwd"

    def __call__(self, pair: DensePair) -> Tensor:
        """Return the term, a scalar."""
        student, teacher = pair.logits, pair.teacher.float()
        if student.shape[-2:] != teacher.shape[-2:]:
            teacher = F.interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=False)
        inside = pair.inside
        if self.by_channel:  # its softmax is over positions: those in padding must have no share in it
            return self.loss(student.masked_fill(~inside, NEVER), teacher.masked_fill(~inside, NEVER))
        student = student.where(inside, teacher)  # equal in padding, so that it adds no loss
        if not self.by_pixel:
            return self.loss(student, teacher)
        student, teacher = (x.movedim(1, -1).flatten(0, 2) for x in (student, teacher))
        share = inside.float().mean().clamp(min=1 / len(student))
        if pair.student.shape[1] == 1:  # a single class is scored by a sigmoid against the background
            return binary_kl(student, teacher, torch.ones_like(student[:, 0]), len(student) * share, self.tau)
        return self.loss(student, teacher) / share


class DepthTerm:
    """Compares log-depth and its gradients outside padding, where the teacher's depth is not at its limits."""

    per_branch = True
    reads: frozenset[str] = frozenset()
    adapters: nn.Module | None = None

    def __call__(self, pair: DensePair) -> Tensor:
        """Return the term, a scalar."""
        student, teacher = pair.student.float(), pair.teacher.float()
        if student.shape[-2:] != teacher.shape[-2:]:
            teacher = F.interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=True)
        valid = teacher.isfinite() & pair.inside
        return depth_loss(student, torch.where(valid, teacher, 1.0), valid)
