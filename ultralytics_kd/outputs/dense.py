"""Outputs of models without anchor points: class logits of an image or of pixels, depth, and feature maps."""

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
NEAREST, FARTHEST = 0.02, 147.0  # metres: limits of Ultralytics' depth head before calibration, with a margin
SIDE = 224  # side in pixels of the image that `probe` uses; some transformers accept only this size


def dense_output(task: str, preds: Any) -> Tensor:
    """Return a model's main output, in training or in validation.

    Args:
        task (str): "classify", "semantic" or "depth".
        preds (Any): The model's predictions.

    Returns:
        (Tensor): Class logits of shape (B, nc), per-pixel logits (B, nc, H, W), or depth (B, 1, H, W).
    """
    if task == "depth":
        return preds["depth"] if isinstance(preds, dict) else preds
    if isinstance(preds, (tuple, list)):  # classify in eval mode: probabilities, logits; semantic: main, auxiliary
        return preds[1] if task == "classify" else preds[0]
    return preds


def calibration(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the factor and the offset of a depth head's calibration.

    In eval mode the head multiplies its log-depth by the factor and adds the offset. In training it does not.

    Args:
        model (nn.Module): Ultralytics' depth model.
    """
    head = find_head(model)
    one = next(model.parameters()).new_ones(1)
    return getattr(head, "cal_a", one), getattr(head, "cal_b", one - 1)


def uncalibrated(depth: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Undo a depth head's calibration: convert depth of eval mode to depth of training mode.

    Args:
        depth (Tensor): Depth of shape (B, 1, H, W) in eval mode.
        factor (Tensor): As `calibration` returns it.
        offset (Tensor): As `calibration` returns it.
    """
    return ((depth.log() - offset) / factor).exp()


def within_limits(depth: Tensor, uncalibrated: Tensor) -> Tensor:
    """Replace depth at a head's limits by infinity, because the true depth may lie beyond them.

    Args:
        depth (Tensor): Depth of shape (B, 1, H, W).
        uncalibrated (Tensor): The same depth before calibration; the limits hold for it.
    """
    return depth.where((uncalibrated > NEAREST) & (uncalibrated < FARTHEST), torch.inf)


@contextmanager
def capture_maps(model: nn.Module, receive: Callable[[list[Tensor]], None], side: int = SIDE) -> Iterator[None]:
    """Pass the feature maps that enter a model's head to a function, at every forward pass.

    Args:
        model (nn.Module): Model of a dense task.
        receive (Callable): Called with the maps, each of shape (B, C, H, W); a vector is a map of one cell.
        side (int): Side in pixels of an image that the model can read.
    """
    source = _find_maps(model, side)
    if source is None:
        yield
        return
    module, from_inputs = source
    channels_last = _channels_last(model)

    def forward_hook(_: nn.Module, inputs: Any, output: Any) -> None:
        """Pass on the maps of one forward pass."""
        maps = inputs[0] if from_inputs else output
        maps = list(maps) if isinstance(maps, (list, tuple)) else [maps]
        maps = [f.movedim(-1, 1) if channels_last and f.ndim == 4 else f for f in maps]
        receive([f if f.ndim == 4 else f.flatten(1)[:, :, None, None] for f in maps])

    hook = module.register_forward_hook(forward_hook)
    try:
        yield
    finally:
        hook.remove()


def dense_maps(model: nn.Module, task: str, channels: int, side: int = SIDE) -> FeatureLayout:
    """Return the layout of the maps that enter a model's head.

    A classifier has one map. Its stride is 0 in every family, so that student and teacher match. The layout of
    another library's classifier is empty if no map is found.

    Args:
        model (nn.Module): The model.
        task (str): Its task.
        channels (int): Channels of its images.
        side (int): Side in pixels of an image that it can read.
    """
    captured: list[list[Tensor]] = []
    with capture_maps(model, captured.append, side):
        probe(model, channels, side)
    maps = captured[-1] if captured else []
    strides = tuple(side // f.shape[-1] for f in maps) if task != "classify" else (0,) * len(maps)
    return FeatureLayout(strides, tuple(f.shape[1] for f in maps), bool(maps) and maps[-1].shape[-2:] == (1, 1))


def probe(model: nn.Module, channels: int | None = None, side: int = SIDE) -> tuple[Any, int]:
    """Return a model's predictions for one grey image, and the image's channels. The model's mode is restored.

    Args:
        model (nn.Module): The model.
        channels (int, optional): Channels of the image; if None, those that the first convolution reads.
        side (int): Side of the image in pixels.
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
    """Return whether a model is from timm and its maps have the channels last."""
    return "NHWC" in str(getattr(model, "output_fmt", ""))


def _find_maps(model: Any, side: int) -> tuple[Any, bool] | None:
    """Return the module with the maps, and whether the maps are its inputs (else its output); None without maps.

    In Ultralytics' models they are the head's inputs. In a classifier of another library they are the last map before
    pooling. A transformer ends in tokens: its map is the vector that the last linear layer reads.
    """
    head = find_head(model)
    if type(head) in DENSE_TASK_OF:
        return head, True
    shapes: list[tuple[nn.Module, tuple[int, ...]]] = []

    def record(module: nn.Module, _: Any, out: Any) -> None:
        """Record the shape of a module's output; a module returns after its children."""
        if isinstance(out, Tensor):
            shapes.append((module, tuple(out.shape)))

    hooks = [m.register_forward_hook(record) for m in model.modules() if m is not model]
    try:
        probe(model, side=side)
    finally:
        for hook in hooks:
            hook.remove()
    height_dim = 1 if _channels_last(model) else 2
    for module, shape in reversed(shapes):
        if len(shape) == 3 or (len(shape) == 4 and shape[height_dim : height_dim + 2] != (1, 1)):
            if len(shape) == 4:
                return module, False
            break
    return next(((m, True) for m, _ in reversed(shapes) if isinstance(m, nn.Linear)), None)
