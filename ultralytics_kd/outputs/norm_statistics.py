"""BatchNorm statistics of a model, measured anew on images.

A student that begins with channels of its teacher's layers sums over fewer inputs. The teacher's statistics do not fit
what its layers put out. Training does not read them, but the student in eval mode does: in validation, and in the
calibration of activation ranges with `quantize=8`, which are fixed before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PIXELS = 2**18  # pixels of the images that run at a time


@torch.no_grad()
def measure_statistics(model: Any, images: Tensor) -> None:
    """Set the running statistics of every BatchNorm to the mean over batches of images.

    Args:
        model (nn.Module): Ultralytics model, changed in place; its mode and its random streams stay.
        images (Tensor): Images as the model sees them in training, shape (N, C, H, W), on its device.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    # Batches of equal size: a small last batch would have statistics of its own and count as much as the others
    batches = -(-len(images) * images.shape[2] * images.shape[3] // PIXELS)
    with _measuring(model, norms):
        for batch in images.tensor_split(min(batches, len(images))):
            model(batch)


@contextmanager
def _measuring(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Put only the BatchNorms into training mode, and let them average all batches with equal weight."""
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()  # neither dropout nor a head in training mode
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
