"""Terms of tasks without anchor points: class logits of images and pixels, and depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...losses import binary_kl, cwd, depth_loss, dist, dkd, kl

TAUS = {"kl": 4.0, "dkd": 4.0, "dist": 1.0}  # temperatures of the classification losses, as published for small images
SAME = 1e-3  # what channels and pixels of padding may differ by; a step of an image of 8 bits is four times that


@dataclass
class DensePair:
    """What the student says beside what the teacher says.

    Attributes:
        student (Tensor): Class logits (B, nc), per-pixel logits (B, nc, H, W), or depth (B, 1, H, W).
        teacher (Tensor): The same of the teacher, logits those of `classes`.
        classes (Tensor | None): Indices of the student's classes that are taught; None if all.
        labels (Tensor | None): Class of each labelled image, the first ones of the batch.
        images (Tensor | None): The images, shape (B, C, height, width), of which padding is not learnt.
    """

    student: Tensor
    teacher: Tensor
    classes: Tensor | None = None
    labels: Tensor | None = None
    images: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The student's float32 logits of the taught classes."""
        return (self.student if self.classes is None else self.student.index_select(1, self.classes)).float()

    @property
    def inside(self) -> Tensor:
        """Whether each of the student's pixels, shape (B, 1, H, W), shows a part of the image."""
        if self.images is None:
            return torch.ones_like(self.student[:, :1], dtype=torch.bool)
        shown = shown_part(self.images).to(self.images.dtype)
        return F.interpolate(shown, self.student.shape[-2:], mode="area") > 0.5


def shown_part(images: Tensor) -> Tensor:
    """Return which pixels are not padding, which neither labels nor the teacher's own training said anything of.

    Padding are the rows and columns at the sides that have one grey throughout, as Ultralytics' letterbox and its
    random shift and scale leave them, before and after its change of colours.

    Args:
        images (Tensor): Images of shape (B, C, H, W) in [0, 1].

    Returns:
        (Tensor): Shape (B, 1, H, W), bool.
    """
    lightest, darkest = images.amax(1), images.amin(1)
    rows, columns = (lightest.amax(d) - darkest.amin(d) < SAME for d in (2, 1))
    return ~(_ends(rows)[:, None, :, None] | _ends(columns)[:, None, None])


def _ends(flags: Tensor) -> Tensor:
    """Return the runs of true flags, shape (B, n), that begin at either end."""
    first, last = (side.cumprod(1) for side in (flags.long(), flags.long().flip(1)))
    return (first + last.flip(1)).bool()


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
        inside = pair.inside
        student = student.where(inside, teacher)  # nothing to learn from padding
        if self.loss == "cwd":
            return cwd(student, teacher, self.tau)
        student, teacher = (x.movedim(1, -1).flatten(0, 2) for x in (student, teacher))
        share = inside.float().mean().clamp(min=1 / len(student))
        if pair.student.shape[1] == 1:  # one class against the background is a sigmoid
            return binary_kl(student, teacher, torch.ones_like(student[:, 0]), len(student) * share, self.tau)
        return kl(student, teacher, self.tau) / share


class DepthTerm:
    """Log-depth and its gradients where the teacher is not at the limits of what it can say, and not in padding."""

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
