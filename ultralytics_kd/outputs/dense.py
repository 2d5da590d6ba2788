"""What models without anchor points return: class logits of an image or of pixels, depth, and what led to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import head as head_module

from .grid import FeatureLayout
from .heads import find_head

DENSE_HEADS = {"Classify": "classify", "SemanticSegment": "semantic", "Depth": "depth"}
DENSE_TASK_OF = {getattr(head_module, name): task for name, task in DENSE_HEADS.items() if hasattr(head_module, name)}
NEAREST, FARTHEST = 0.02, 147.0  # metres between which Ultralytics' depth head is not at its limits, uncalibrated
SIDE = 224  # of the image that a model is looked at with; some transformers read no other


def dense_output(task: str, preds: Any) -> Tensor:
    """Return what a model says, of training or of validation.

    Args:
        task (str): "classify", "semantic" or "depth".
        preds (Any): What the model returns.

    Returns:
        (Tensor): Class logits of shape (B, nc), per-pixel logits (B, nc, H, W), or depth (B, 1, H, W).
    """
    if task == "depth":
        return preds["depth"] if isinstance(preds, dict) else preds
    if isinstance(preds, (tuple, list)):  # classify in eval mode: probabilities, logits; semantic: main, auxiliary
        return preds[1] if task == "classify" else preds[0]
    return preds


def calibration(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return factor and offset by which a depth head in eval mode corrects the logarithm of what it says in training.

    Args:
        model (nn.Module): Model of a depth head, trained by Ultralytics.
    """
    head = find_head(model)
    one = next(model.parameters()).new_ones(1)
    return getattr(head, "cal_a", one), getattr(head, "cal_b", one - 1)


def uncalibrated(depth: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Return the depth that a head says in training, of one that it says in eval mode.

    Args:
        depth (Tensor): Depth of shape (B, 1, H, W) in eval mode.
        factor (Tensor): As `calibration` returns it.
        offset (Tensor): As `calibration` returns it.
    """
    return ((depth.log() - offset) / factor).exp()


def within_limits(depth: Tensor, said: Tensor) -> Tensor:
    """Return depth that is infinite where a head is at the limits of what it can say, and so knows no number.

    Args:
        depth (Tensor): Depth of shape (B, 1, H, W).
        said (Tensor): The same before calibration, which moves the limits.
    """
    return depth.where((said > NEAREST) & (said < FARTHEST), torch.inf)


@contextmanager
def tapped(model: nn.Module, take: Callable[[list[Tensor]], None], side: int = SIDE) -> Iterator[None]:
    """Hand over the feature maps that enter a model's head at every forward pass.

    Args:
        model (nn.Module): Model of a dense task.
        take (Callable): Is given the maps, each of shape (B, C, H, W); a vector is a map of one cell.
        side (int): Side of an image that it can read.
    """
    tap = _tap(model, side)
    if tap is None:
        yield
        return
    place, from_inputs = tap
    last = _channels_last(model)

    def hand_over(_: nn.Module, inputs: Any, output: Any) -> None:
        """Take the maps of one forward pass."""
        maps = inputs[0] if from_inputs else output
        maps = list(maps) if isinstance(maps, (list, tuple)) else [maps]
        maps = [f.movedim(-1, 1) if last and f.ndim == 4 else f for f in maps]
        take([f if f.ndim == 4 else f.flatten(1)[:, :, None, None] for f in maps])

    hook = place.register_forward_hook(hand_over)
    try:
        yield
    finally:
        hook.remove()


def dense_maps(model: nn.Module, task: str, channels: int, side: int = SIDE) -> FeatureLayout:
    """Return the maps that enter a model's head.

    A classifier has one, whose stride is of no account: it is given as 0, the same for every family. One from elsewhere
    may be made so that none is found.

    Args:
        model (nn.Module): The model.
        task (str): Its task.
        channels (int): Channels of its images.
        side (int): Side of an image that it can read.
    """
    seen: list[list[Tensor]] = []
    with tapped(model, seen.append, side):
        look(model, channels, side)
    maps = seen[-1] if seen else []
    strides = tuple(side // f.shape[-1] for f in maps) if task != "classify" else (0,) * len(maps)
    return FeatureLayout(strides, tuple(f.shape[1] for f in maps), bool(maps) and maps[-1].shape[-2:] == (1, 1))


def look(model: nn.Module, channels: int | None = None, side: int = SIDE) -> tuple[Any, int]:
    """Return what a model returns for one grey image, and the channels of that image; its state stays as it was.

    Args:
        model (nn.Module): The model.
        channels (int, optional): Channels of the image; those that its first convolution reads if None.
        side (int): Side of the image.
    """
    if channels is None:
        channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    first, training = next(model.parameters()), model.training
    try:
        with torch.no_grad():
            image = torch.full((1, channels, side, side), 0.5, device=first.device, dtype=first.dtype)
            return model.eval()(image), channels
    finally:
        model.train(training)


def _channels_last(model: Any) -> bool:
    """Return whether a model of timm says that its maps have their channels last."""
    return "NHWC" in str(getattr(model, "output_fmt", ""))


def _tap(model: Any, side: int) -> tuple[Any, bool] | None:
    """Return the module where the maps are found, and whether they are what it reads or what it returns, if any.

    Of a classifier from elsewhere it is what returns the last map before pooling. A transformer ends in tokens: there
    it is the vector that the last linear layer reads.
    """
    head = find_head(model)
    if type(head) in DENSE_TASK_OF:
        return head, True
    seen: list[tuple[nn.Module, tuple[int, ...]]] = []

    def note(module: nn.Module, _: Any, out: Any) -> None:
        """Take note of what a part of the model returns; a whole returns after its parts."""
        if isinstance(out, Tensor):
            seen.append((module, tuple(out.shape)))

    hooks = [m.register_forward_hook(note) for m in model.modules() if m is not model]
    try:
        look(model, side=side)
    finally:
        for hook in hooks:
            hook.remove()
    rows = 1 if _channels_last(model) else 2
    for module, shape in reversed(seen):
        if len(shape) == 3 or (len(shape) == 4 and shape[rows : rows + 2] != (1, 1)):
            if len(shape) == 4:
                return module, False
            break
    return next(((m, True) for m, _ in reversed(seen) if isinstance(m, nn.Linear)), None)
