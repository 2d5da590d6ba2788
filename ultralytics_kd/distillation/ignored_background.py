"""Background that the base loss ignores, because it is unknown whether an object of a class is there.

A label file that lacks objects teaches the student that they are background. `ignored_background` keeps chosen entries
(image, anchor point, class) out of the class loss of Ultralytics' losses for heads with anchor points. An entry with a
positive target is never ignored: a label or a pseudo-box is assigned to it. Pseudo-boxes and kept classes
(`kd_keep`) both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import KDError
from ..teachers import Teacher
from ..teachers.answers import Instances

Choice = Callable[[Tensor], Tensor]  # from target scores to whether each entry is ignored, both of shape (B, A, nc)


def check_ignores_background(bases: Mapping[str, Any], argument: str) -> None:
    """Raise if a base loss is not Ultralytics' own, so that nothing in it can be ignored.

    Args:
        bases (Mapping[str, Any]): Base loss of each head branch.
        argument (str): The argument that needs it, for the error.

    Raises:
        KDError: If a base loss has no function `bce`.
    """
    for base in bases.values():
        if not callable(getattr(base, "bce", None)):
            raise KDError(
                f"'{argument}' needs Ultralytics' own loss, and {type(base).__name__} has no `bce`: drop one."
            )


@contextmanager
def ignored_background(bases: Mapping[str, Any], ignored: Mapping[str, Tensor | Choice]) -> Iterator[None]:
    """Let base losses ignore background within a block; nested blocks add up.

    The loss and its gradient are those of Ultralytics, without the class loss of the ignored entries. The divisor, the
    sum of the targets, does not change, because ignored entries have a target of 0.

    Args:
        bases (Mapping[str, Any]): Base loss of each head branch, `DistillationLoss.bases`.
        ignored (Mapping[str, Tensor | Callable]): For each branch, whether each entry is ignored if its target is 0;
            bool, shape (B, A, nc), or a function that returns this for the targets of the branch. A branch that is not
            named ignores nothing.
    """
    with ExitStack() as stack:
        for name, mask in ignored.items():
            base = bases[name]
            stack.callback(setattr, base, "bce", base.bce)
            base.bce = _without(base.bce, mask)
        yield


def _without(bce: Callable[[Tensor, Tensor], Tensor], ignored: Tensor | Choice) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a class loss that is 0 for ignored entries of the background.

    Args:
        bce (Callable): Returns the loss of every entry, from logits and targets of shape (B, A, nc).
        ignored (Tensor | Callable): Whether each entry is ignored if its target is 0, as in `ignored_background`.
    """

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        chosen = ignored if isinstance(ignored, Tensor) else ignored(target.detach())
        return bce(scores, target).masked_fill(chosen & (target == 0), 0)

    return loss


@torch.no_grad()
def entries_inside(instances: Instances, classes: Tensor, assigner: Any, points: Tensor, images: int) -> Tensor:
    """Return which entries lie inside instances, by the rule of the base loss for the anchor points of a label.

    Args:
        instances (Instances): N instances, in pixels.
        classes (Tensor): Classes that each instance stands for, bool, shape (N, nc).
        assigner (TaskAlignedAssigner): The base loss's assigner.
        points (Tensor): Anchor points in pixels, shape (A, 2).
        images (int): Number of images in the batch, B.

    Returns:
        (Tensor): Shape (B, A, nc), bool.
    """
    mask = torch.zeros((images, len(points), classes.shape[1]), dtype=torch.bool, device=points.device)
    instance, point = instances.pairs(assigner, points)
    pair, column = classes[instance].nonzero(as_tuple=True)
    mask[instances.image[instance[pair]], point[pair], column] = True
    return mask


def check_levels(given: str, distiller: Any, teacher: Teacher) -> None:
    """Raise if a teacher finds objects on levels that the student lacks: they would be background.

    A teacher that answers with detections is never refused: it reports objects of all its levels.

    Args:
        given (str): The argument that lets the teacher decide what is background, and its value.
        distiller (GridDistiller): The terms, which know both heads.
        teacher (Teacher): The teacher, inspected.

    Raises:
        KDError: If the student lacks a level of the teacher.
    """
    if not distiller.teacher_heads:
        return
    strides = {s for member in teacher.members if member.layout for s in member.layout.strides}
    if lacking := sorted(strides - set(distiller.student_layout.strides)):
        raise KDError(
            f"{given}: the teacher has levels of strides {lacking} and the student has none, so objects that only they "
            "find would be background: give a teacher with the student's levels, or drop it."
        )
