"""The weights that a student begins with: its own, or a part of the teacher's (`kd_init`).

A student without trained weights takes the teacher's, if the teacher is as big or bigger and of the same architecture.
A student with trained weights keeps them, unless `kd_init=auto` finds that the teacher's are better: then the base loss
of both is compared on training images, before the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from ultralytics.utils import LOGGER, RANK

from ..outputs.weight_origin import trained_parameters
from ..outputs.weight_selection import as_big_alike, select_weights
from ..teachers import Teacher

Batches = Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True)
class Beginning:
    """Where the weights of a student came from.

    Attributes:
        own (int): Number of its parameters that came trained and stay.
        initialized (int): Number of its parameters that the teacher's weights initialized.
        trained (bool): Whether it begins with trained weights, its own or the teacher's.
    """

    own: int
    initialized: int
    trained: bool


def begin(
    student: Any, teacher: Teacher, how: bool | str, keypoints: Sequence[str] | None, batches: Batches
) -> Beginning:
    """Give a student the weights that it begins with.

    Args:
        student (nn.Module): The student; changed in place.
        teacher (Teacher): The teacher, its classes matched.
        how (bool | str): The `kd_init` argument.
        keypoints (Sequence[str] | None): Names of the data's keypoints, None if they are unknown.
        batches (Callable): Returns prepared training batches with their labels; the student's device follows theirs.
    """
    parameters = list(trained_parameters(student))
    trained = [p for p, is_trained in parameters if is_trained]
    own, total = sum(p.numel() for p in trained), sum(p.numel() for p, _ in parameters)
    giver = _giver(student, teacher) if how else None
    has_weights = 2 * own >= total  # a few that fit by chance make no trained student
    if giver is None or (has_weights and how != "auto"):
        return Beginning(own, 0, has_weights)
    before = [p.detach().clone() for p in trained]
    drawn = batches() if how in {"fit", "auto"} else []
    count = _take(student, giver, keypoints, drawn, keeps_better=has_weights)
    return Beginning(sum(int((p == b).sum()) for p, b in zip(trained, before)), count, has_weights or count > 0)


def _giver(student: Any, teacher: Teacher) -> Teacher | None:
    """Return the first teacher whose weights fit the student, None if there is none."""
    models = (m for m in teacher.members if isinstance(m.original, nn.Module) and m.classes is not None)
    return next((m for m in models if as_big_alike(student, m.original)), None)


def _take(
    student: Any, giver: Teacher, keypoints: Sequence[str] | None, batches: list[dict[str, Any]], keeps_better: bool
) -> int:
    """Put a teacher's weights into a student, and return how many parameters that are.

    Args:
        student (nn.Module): The student.
        giver (Teacher): The teacher.
        keypoints (Sequence[str] | None): Names of the data's keypoints.
        batches (list[dict]): Training batches to refit the weights on; without any they are selected only.
        keeps_better (bool): Whether the student keeps its own weights if their loss on the batches is lower.
    """
    assert giver.classes is not None
    sources = {student_class: columns[0] for student_class, columns in giver.classes.sources.items()}
    matched = None if giver.classes.identity else sources
    images, teacher = None, giver.original
    if batches:
        images = torch.cat([batch["img"] for batch in batches])
        student.to(images.device)
        teacher = deepcopy(teacher).to(images.device).float()
    own = deepcopy(student.state_dict()) if keeps_better else {}
    own_loss = labels_loss(student, batches) if keeps_better else 0.0
    count = select_weights(student, teacher, matched, keypoints, images)
    if count and keeps_better:
        loss = labels_loss(student, batches)
        better = loss < own_loss
        if not better:
            student.load_state_dict(own)
            count = 0
        if RANK in {-1, 0}:
            whose = "the teacher's" if better else "its own"
            LOGGER.info(
                f"kd_init=auto: the student begins with {whose} weights; on {len(images)} training images the loss of "
                f"the teacher's is {loss:.3f}, and that of its own {own_loss:.3f}"
            )
    return count


@torch.no_grad()
def labels_loss(model: Any, batches: Sequence[Mapping[str, Any]]) -> float:
    """Return the base loss of a model in eval mode, per image, the mean over batches.

    Args:
        model (nn.Module): Model with the arguments of the training under `args`.
        batches (Sequence[Mapping]): Prepared training batches.
    """
    criterion, training = model.init_criterion(), model.training
    model.eval()
    try:
        losses = [criterion(model(b["img"]), b)[0].sum() / len(b["img"]) for b in batches]
    finally:
        model.train(training)
    return float(torch.stack(losses).mean())
