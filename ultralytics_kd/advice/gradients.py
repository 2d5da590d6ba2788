"""Whether labels and terms pull the student in the same direction: ratio and cosine of their gradients."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.torch_utils import unwrap_model

from ..distillation.balance import Balance
from ..distillation.loss import LABELED, DistillationLoss
from .trial import Trial

BATCHES = 8  # training batches that are compared
TOGETHER = "together"  # name of the sum of all terms


def compare_gradients(trial: Trial) -> dict[str, dict[str, float]]:
    """Compare the gradient of each term, and of all together, with that of the base loss.

    They are compared where `kd_weight` does so: at the feature maps that enter the student's head, or at the head's
    output. The student is where its training would begin.

    Args:
        trial (Trial): A training with a teacher, before its first step.

    Returns:
        (dict): For each term that is on, and for `TOGETHER`: "ratio", norm of its gradient over that of the base loss,
            and "cosine" between the two; medians over the batches.
    """
    measured: dict[str, list[tuple[float, float]]] = {}
    for index in range(len(trial.batches)):
        for name, values in _one_batch(trial, index).items():
            measured.setdefault(name, []).append(values)
    return {
        name: {"ratio": median(ratio for ratio, _ in values), "cosine": median(cosine for _, cosine in values)}
        for name, values in measured.items()
    }


def _one_batch(trial: Trial, index: int) -> dict[str, tuple[float, float]]:
    """Return ratio and cosine of every term for one batch."""
    student: Any = unwrap_model(trial.trainer.model)  # a compiled one hides the maps at which gradients are compared
    loss, batch = student.criterion, trial.prepared(index)
    with torch.enable_grad():
        preds = student(batch["img"])
        base, terms = _parts(loss, preds, batch)
        on = {name: terms[name] for name in loss.distiller.weights}
        on[TOGETHER] = torch.stack([term.reshape(()) for term in on.values()]).sum()
        count = batch.get(LABELED, len(batch["img"])) if loss.scaled else 1
        balance = Balance(dict.fromkeys(on, 1.0))  # measures its first step
        balance.update(base / count, on, loss.distiller.points(preds), batch.get(LABELED))
    return dict(zip(on, zip(balance.ratios().tolist(), balance.cosines().tolist())))


def _parts(loss: DistillationLoss, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the base loss of a batch, as training computes it, and the terms before `kd_weight` scales them."""
    terms: dict[str, Tensor] = {}
    inspect, balance = loss.inspect, loss.distiller.balance
    loss.inspect, loss.distiller.balance = lambda batch, measured, scaled: terms.update(measured), None
    try:
        parts, _ = loss(preds, batch)
    finally:
        loss.inspect, loss.distiller.balance = inspect, balance
    return parts[: -len(terms)].sum(), terms
