"""The weights that a student begins with: its own, or a part of the teacher's (`kd_init`).

A student without trained weights takes the teacher's, if the teacher is as big or bigger and of the same architecture.
A student with trained weights keeps them, unless `kd_init=auto` finds that the teacher's are better: it compares the
base loss of both on training images, before the training. This comparison says nothing about a teacher that has learnt
these data from random weights. Then the student keeps its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.loss import v8ClassificationLoss

from ..outputs.weight_fitting import evaluating
from ..outputs.weight_origin import trained_parameters
from ..outputs.weight_selection import as_big_alike, select_weights
from ..screen import row
from ..teachers import Teacher
from ..teachers.scratch import same_data

LOSS_WEIGHTS = ("class_weights", "kpt_oks_sigmas")  # attributes of a model that its base loss reads
MOST_LOST = 1.5  # highest base loss with a part of the teacher's weights, as a multiple of the teacher's base loss
Batches = Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True)
class Beginning:
    """Where the weights of a student came from.

    Attributes:
        own (int): Number of its parameters that were trained before and keep their values.
        initialized (int): Number of its parameters that the teacher's weights initialized.
        trained (bool): Whether it begins with trained weights, its own or the teacher's.
    """

    own: int
    initialized: int
    trained: bool


def begin(
    student: Any,
    teacher: Teacher,
    how: bool | str,
    keypoints: Sequence[str] | None,
    batches: Batches,
    data: Any,
    quantizes: bool = False,
) -> Beginning:
    """Give a student the weights that it begins with.

    Args:
        student (nn.Module): The student; changed in place.
        teacher (Teacher): The teacher, its classes matched.
        how (bool | str): The `kd_init` argument.
        keypoints (Sequence[str] | None): Names of the data's keypoints, None if they are unknown.
        batches (Callable): Returns prepared training batches with their labels; the student moves to their device.
        data (str | Path): The `data` argument of the training.
        quantizes (bool): Whether ranges of activations are fixed before the training. Then norm layers need the
            statistics of the selected weights, even without a fit.
    """
    parameters = list(trained_parameters(student))
    trained = [p for p, is_trained in parameters if is_trained]
    own, total = sum(p.numel() for p in trained), sum(p.numel() for p, _ in parameters)
    giver = _giver(student, teacher) if how else None
    has_weights = 2 * own >= total  # a few layers that fit by chance do not make a trained student
    keeps_own = has_weights and not (how == "auto" and giver is not None and _may_be_better(student, giver, data))
    if giver is None or keeps_own:
        return Beginning(own, 0, has_weights)
    before = [p.detach().clone() for p in trained]
    fits = how in {"fit", "auto"}
    take = _take_if_better if has_weights else _take
    drawn, model = [], giver.original
    if fits or quantizes:
        drawn = _where_it_fits(batches())
        device = drawn[0]["img"].device
        student.to(device)
        model = deepcopy(model).to(device).float()
    count = take(student, giver, model, keypoints, drawn, fits)
    unchanged = sum(int((p == b.to(p.device)).sum()) for p, b in zip(trained, before))  # a fit may change them
    # A teacher that was trained from the student's weights still shares some of them
    return Beginning(min(unchanged, total - count), count, has_weights or count > 0)


def _giver(student: Any, teacher: Teacher) -> Teacher | None:
    """Return the first teacher whose weights fit the student, None if there is none."""
    models = (m for m in teacher.members if isinstance(m.original, nn.Module) and m.classes is not None)
    return next((m for m in models if as_big_alike(student, m.original)), None)


def _comparable(student: Any, giver: Teacher) -> bool:
    """Return whether the base loss of a teacher says how good its weights are for the student.

    A teacher with other classes, or with the same classes in another order, was not trained on these data. If its
    keypoints differ, its loss cannot be computed from the labels.
    """
    ours, theirs = student.model[-1], giver.original.model[-1]
    same_points = getattr(ours, "kpt_shape", None) == getattr(theirs, "kpt_shape", None)
    return giver.classes is not None and giver.classes.identity and same_points


def _may_be_better(student: Any, giver: Teacher, data: Any) -> bool:
    """Return whether a teacher's weights may be better than a student's own, and the base loss can tell.

    A teacher has a low loss on the images that it was trained on. If it began with random weights and saw no other
    images, a pretrained student overtakes it, although the student's loss is higher at first. With the weights of such
    a teacher, a student with COCO weights ended 0.05 lower on bccd than without a teacher (examples/study,
    `begin-scratch-bccd`).
    """
    if not _comparable(student, giver):
        return False
    if giver.scratch_data is None or not same_data(giver.scratch_data, data):
        return True
    _log(
        f"the student keeps its own weights. teacher={giver.source} began with random ones and has seen nothing but "
        "these data. To begin with the teacher's weights, give an untrained student, e.g. model=yolo26n.yaml."
    )
    return False


def _log(text: str) -> None:
    """Log a sentence about where the student begins, once for all processes."""
    if RANK in {-1, 0}:
        LOGGER.info("\n".join(row("kd_init:", text, column=9, indent=0)))


def _where_it_fits(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return batches on a device that has float64, which a fit needs; Apple's GPUs have none."""
    if batches[0]["img"].device.type != "mps":
        return batches
    return [{k: v.cpu() if isinstance(v, Tensor) else v for k, v in batch.items()} for batch in batches]


def _take(
    student: Any, giver: Teacher, model: Any, keypoints: Sequence[str] | None, batches: list[dict[str, Any]], fit: bool
) -> int:
    """Copy a teacher's weights into a student, and return the number of parameters that were set.

    Args:
        student (nn.Module): The student.
        giver (Teacher): The teacher.
        model (nn.Module): The teacher's model; with batches a float32 copy on their device, where the student is too.
        keypoints (Sequence[str] | None): Names of the data's keypoints.
        batches (list[dict]): Training batches; without any the weights are selected only.
        fit (bool): Whether the weights are refitted on the batches, or only the statistics of norm layers.
    """
    assert giver.classes is not None
    sources = {student_class: columns[0] for student_class, columns in giver.classes.sources.items()}
    matched = None if giver.classes.identity else sources
    images = torch.cat([batch["img"] for batch in batches]) if batches else None
    return select_weights(student, model, matched, keypoints, images, fit)


def _take_if_better(
    student: Any, giver: Teacher, model: Any, keypoints: Sequence[str] | None, batches: list[dict[str, Any]], fit: bool
) -> int:
    """Call `_take`, and undo it unless the base loss falls and comes close to the teacher's base loss.

    The student's own weights may be the better beginning even if their loss is high: a new head is learnt quickly, and
    features of a large data set are not. So a part of the teacher that lost much of what the teacher knew is not taken.
    """
    kept = deepcopy(student.state_dict())
    if hasattr(student, "args"):  # a classifier's loss reads no arguments
        model.args = student.args
    for name in LOSS_WEIGHTS:  # those that the teacher was trained with would make its loss another
        if hasattr(student, name) or hasattr(model, name):
            setattr(model, name, getattr(student, name, None))
    own, best = labels_loss(student, batches), labels_loss(model, batches)
    count = _take(student, giver, model, keypoints, batches, fit)
    taken = labels_loss(student, batches)
    better = bool(count) and taken < own and taken < MOST_LOST * best
    if not better:
        student.load_state_dict(kept)
    whose = "the teacher's" if better else "its own"
    images = sum(len(batch["img"]) for batch in batches)
    _log(
        f"the student begins with {whose} weights. Its base loss (eval mode, mean of {images} training images) is "
        f"{own:.3f} with its own and {taken:.3f} with the teacher's"
        + (f", which has {best:.3f} itself." if f"{best:.3f}" != f"{taken:.3f}" else ".")
    )
    return count if better else 0


@torch.no_grad()
def labels_loss(model: Any, batches: Sequence[Mapping[str, Any]]) -> float:
    """Return the base loss of a model in eval mode, per image, the mean over batches.

    Args:
        model (nn.Module): Model with the arguments of the training under `args`.
        batches (Sequence[Mapping]): Prepared training batches.
    """
    criterion = model.init_criterion()
    with evaluating(model):
        losses = [criterion(model(b["img"]), b)[0].sum() for b in batches]
    # A classifier's loss is a mean over images already, all others are times batch size
    counts = [1 if isinstance(criterion, v8ClassificationLoss) else len(b["img"]) for b in batches]
    return float(torch.stack([loss / count for loss, count in zip(losses, counts)]).mean())
