"""Which channels of a teacher a narrower student should take.

It takes the channels that matter most to the teacher's predictions, but none that can be computed from those taken
already. Both are measured on images:

    How much a channel matters is how much the predictions would change if its activations were replaced by their mean:
        to first order activation times gradient, squared (Molchanov et al., CVPR 2019,
        https://arxiv.org/abs/1906.10771). There the gradient is that of the loss. Here it is that of all predictions,
        each with a random factor, so that no labels are needed. Confident predictions of a detector count more.
    What can be computed from channels that are taken need not be taken: later layers are refitted (`weight_fitting`).
        So channels are chosen one by one. The importance of each is multiplied by the share of its variance that the
        channels taken before leave unexplained.

`examples/study/README.md` has figures of this choice and of others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .dense import DENSE_TASK_OF, dense_output
from .grid import branches
from .heads import TASK_OF, find_head
from .weight_fitting import evaluating

IMAGES = 64  # most images that are measured
PIXELS = 2**16  # pixels of the images that run at a time; their activations are kept for the gradients
SMALL = 1e-12  # smallest share of a variance


class Importance(NamedTuple):
    """Measurements of a convolution's output channels, or of channels that several convolutions share.

    Attributes:
        change (Tensor): How much the predictions change without a channel, shape (channels,).
        covariance (Tensor): Covariance of the activations, times their number, shape (channels, channels).
    """

    change: Tensor
    covariance: Tensor

    def part(self, start: int, count: int) -> Importance:
        """Return the importance of `count` consecutive channels, from channel `start` on."""
        chosen = slice(start, start + count)
        return Importance(self.change[chosen], self.covariance[chosen, chosen])

    def __add__(self, other: Any) -> Importance:
        """Return the importance of channels that two convolutions share, or of channels in two batches."""
        return Importance(self.change + other.change, self.covariance + other.covariance)


def foremost(importance: Importance, count: int) -> Tensor:
    """Return the channels to take, in rising order.

    Args:
        importance (Importance): Measurements of all channels.
        count (int): Number of channels to take.
    """
    covariance, variance = importance.covariance, importance.covariance.diagonal().clamp(min=SMALL)
    left = variance.clone()  # the part of each channel's variance that taken channels do not explain
    rows = torch.zeros(count, len(left), dtype=left.dtype)  # of a Cholesky decomposition of the covariance
    taken: list[int] = []
    for i in range(count):
        gain = importance.change * left / variance
        gain[taken] = -1.0
        best = int(gain.argmax())
        taken.append(best)
        scale = left[best].clamp(min=SMALL * variance[best]).sqrt()
        rows[i] = (covariance[best] - rows[:i].T @ rows[:i, best]) / scale
        left = (left - rows[i].square()).clamp(min=0)
    return torch.tensor(sorted(taken), dtype=torch.long)


def measure_importance(model: Any, images: Tensor) -> dict[str, Importance]:
    """Return how much each output channel of a model's convolutions matters to the model's predictions.

    Args:
        model (nn.Module): Ultralytics model in float32; it is not changed.
        images (Tensor): Images, shape (N, C, H, W), on the model's device.

    Returns:
        (dict[str, Importance]): In float64 on the CPU, by the name of the convolution; empty for a head that is not
            known. If a convolution runs twice, only its last run is measured.
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Importance] = {}
    outputs: dict[str, Tensor] = {}
    with evaluating(model), _keeping_outputs(model, outputs), torch.enable_grad():
        for chunk in images[:IMAGES].split(max(1, PIXELS // (images.shape[2] * images.shape[3]))):
            outputs.clear()
            predicted = _predictions(model, model(chunk))
            if not predicted:
                return {}
            factors = [torch.randn(p.shape, generator=generator).to(p.device) for p in predicted]
            probe = torch.stack([(p * factor).sum() for p, factor in zip(predicted, factors)]).sum()
            gradients = torch.autograd.grad(probe, list(outputs.values()), allow_unused=True)
            for (name, output), gradient in zip(outputs.items(), gradients):
                if gradient is not None:
                    of_chunk = _importance(output.detach(), gradient)
                    found[name] = found[name] + of_chunk if name in found else of_chunk
    return found


def _importance(output: Tensor, gradient: Tensor) -> Importance:
    """Return the importance of channels from their activations and the gradient of the predictions, (B, C, ...)."""
    values = output.transpose(0, 1).flatten(1)
    values = values - values.mean(1, keepdim=True)
    change = (values * gradient.transpose(0, 1).flatten(1)).double().square().sum(1)
    return Importance(change.cpu(), (values @ values.T).double().cpu())


@contextmanager
def _keeping_outputs(model: Any, outputs: dict[str, Tensor]) -> Iterator[None]:
    """Within a block, keep the outputs of a model's convolutions after norm and activation.

    Args:
        model (nn.Module): The model.
        outputs (dict[str, Tensor]): Filled with the outputs, by the name of the convolution.
    """

    def keep(name: str, output: Tensor) -> None:
        # Outputs of frozen weights carry no gradient, and the one2one head of YOLO26 reads detached maps
        outputs[name] = output if output.requires_grad else output.requires_grad_()

    modules = dict(model.named_modules())
    hooks = []
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d):
            whole = modules[name.removesuffix(".conv")] if name.endswith(".conv") else module
            hooks.append(whole.register_forward_hook(lambda _, __, output, name=name: keep(name, output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _predictions(model: Any, preds: Any) -> Sequence[Tensor]:
    """Return the parts of a model's raw predictions; none for a head that is not known.

    Args:
        model (nn.Module): The model.
        preds (Any): What it returns in eval mode.
    """
    kind = type(find_head(model))
    if kind in DENSE_TASK_OF:
        return [dense_output(DENSE_TASK_OF[kind], preds)]
    parts: list[Tensor] = []
    for branch in branches(preds).values() if kind in TASK_OF else ():
        weight = branch.scores.detach().sigmoid().amax(2, keepdim=True).sqrt()
        parts += [part * weight for part in (branch.scores, branch.boxes, *branch.extras.values())]
    return parts
