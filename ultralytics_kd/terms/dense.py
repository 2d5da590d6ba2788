"""Terms of tasks without anchor points: class logits of images and pixels, and depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import binary_kl, cwd, depth_loss, dist, dkd, kl

TAUS = {"kl": 4.0, "dkd": 4.0, "dist": 1.0}  # temperatures of the classification losses, as published for small images
NEAREST, FARTHEST = 0.02, 147.0  # metres between which Ultralytics' depth head is not at its limits


@dataclass
class DensePair:
    """What the student says beside what the teacher says.

    Attributes:
        student (Tensor): Class logits (B, nc), per-pixel logits (B, nc, H, W), or depth (B, 1, H, W).
        teacher (Tensor): The same of the teacher, logits those of `classes`.
        classes (Tensor | None): Indices of the student's classes that are taught; None if all.
        labels (Tensor | None): Class of each labelled image, the first ones of the batch.
    """

    student: Tensor
    teacher: Tensor
    classes: Tensor | None = None
    labels: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The student's float32 logits of the taught classes."""
        return (self.student if self.classes is None else self.student.index_select(1, self.classes)).float()


class ImageTerm:
    """Class logits of whole images: Hinton's KL divergence, DKD or DIST.

    Both sides' softmax is taken over the classes that both know, so that others are left alone.
    """

    per_branch = True
    reads: frozenset[str] = frozenset()
    adapters: nn.Module | None = None

    def __init__(self, loss: str, tau: float | None):
        """Choose the loss.

        Args:
            loss (str): "kl", "dkd" or "dist".
            tau (float | None): Temperature; None for the loss's own.
        """
        self.loss, self.tau = loss, tau or TAUS[loss]

    def __call__(self, pair: DensePair) -> Tensor:
        """Return the term, a scalar."""
        student, teacher = pair.logits, pair.teacher.float()
        if self.loss == "kl":
            return kl(student, teacher, self.tau)
        if self.loss == "dist":
            return dist(student, teacher, self.tau)
        if pair.labels is None or student.shape[1] < 2:
            return student.sum() * 0
        labels, count = pair.labels.long(), len(pair.labels)
        if pair.classes is not None:  # in the order of the taught classes; images of others say nothing
            same = labels[:, None] == pair.classes[None]
            kept = same.any(1).nonzero().flatten()
            labels, student, teacher = same[kept].long().argmax(1), student[:count][kept], teacher[:count][kept]
        else:
            student, teacher = student[:count], teacher[:count]
        return dkd(student, teacher, labels, self.tau) if len(labels) else student.sum() * 0


class PixelTerm:
    """Class logits of every pixel: KL divergence, or channel-wise divergence (Shu et al., arXiv:2011.13256)."""

    per_branch = True
    reads: frozenset[str] = frozenset()
    adapters: nn.Module | None = None

    def __init__(self, loss: str, tau: float | None):
        """Choose the loss.

        Args:
            loss (str): "kl" or "cwd".
            tau (float | None): Temperature; None for 1.
        """
        self.loss, self.tau = loss, tau or 1.0

    def __call__(self, pair: DensePair) -> Tensor:
        """Return the term, a scalar."""
        student, teacher = pair.logits, pair.teacher.float()
        if student.shape[-2:] != teacher.shape[-2:]:
            teacher = F.interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=False)
        if self.loss == "cwd":
            return cwd(student, teacher, self.tau)
        student, teacher = (x.movedim(1, -1).flatten(0, 2) for x in (student, teacher))
        if pair.student.shape[1] == 1:  # one class against the background is a sigmoid
            return binary_kl(student, teacher, torch.ones_like(student[:, 0]), len(student), self.tau)
        return kl(student, teacher, self.tau)


class DepthTerm:
    """Log-depth and its gradients where the teacher is not at the limits of what it can say."""

    per_branch = True
    reads: frozenset[str] = frozenset()
    adapters: nn.Module | None = None

    def __call__(self, pair: DensePair) -> Tensor:
        """Return the term, a scalar."""
        student, teacher = pair.student.float(), pair.teacher.float()
        if student.shape[-2:] != teacher.shape[-2:]:
            teacher = F.interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=True)
        valid = teacher.isfinite() & (teacher > NEAREST) & (teacher < FARTHEST)
        return depth_loss(student, torch.where(valid, teacher, 1.0), valid)
