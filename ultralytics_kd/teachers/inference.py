"""What makes a frozen model cheap to run: fused, no more of it than is read, in the right layout and portions."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv
from ultralytics.utils.torch_utils import attempt_compile

from .. import outputs

MAX_ACTIVATION = 31 * 2**20  # bytes; glibc's allocator gives larger blocks back to the system each time


def lean_copy(
    original: nn.Module,
    reads: Mapping[str, Collection[str]],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    compile: bool | str = False,
    strides: Sequence[int] | None = None,
) -> tuple[Any, Any]:
    """Return a copy of a model with a YOLO head that runs fast and returns raw outputs, and its whole head in float32.

    Args:
        original (nn.Module): Model with a detection-like head; it stays untouched.
        reads (Mapping[str, Collection[str]]): Parts of the outputs that are read, as `predictions.towers` names them
            and "proto", by branch.
        device (torch.device): Where it runs.
        dtype (torch.dtype): Precision that it runs in.
        compile (bool | str): Whether to compile it, or `torch.compile`'s mode.
        strides (Sequence[int], optional): Strides of the levels that are read; all if None.
    """
    model = fused_copy(original)
    head = deepcopy(outputs.detect_head(model)).to(device)  # of its own: in float32, and open to gradients
    outputs.read_raw(model, reads, strides)
    return placed(model, device, dtype, compile), head


def fused_copy(original: nn.Module) -> Any:
    """Return a frozen copy of an Ultralytics model with its BatchNorm folded into the convolutions."""
    model: Any = deepcopy(original).float().eval().requires_grad_(False)
    with outputs.keep_branches(model):
        model.fuse(verbose=False)
    return model


def placed(model: Any, device: torch.device, dtype: torch.dtype, compile: bool | str = False) -> Any:
    """Return a frozen model on its device, in its precision and in the layout that is fastest there.

    Args:
        model (nn.Module): Frozen model; it is changed.
        device (torch.device): Where it runs.
        dtype (torch.dtype): Precision that it runs in.
        compile (bool | str): Whether to compile it, or `torch.compile`'s mode.
    """
    # Measured on CPUs: a tenth to a fifth faster. On CUDA it is what the student trains in, and suits half precision.
    layout = torch.channels_last if device.type in {"cpu", "cuda"} else torch.contiguous_format
    model = model.to(device=device, dtype=dtype).to(memory_format=layout)
    if device.type == "cpu" and not compile:
        fuse_activations(model)
    return attempt_compile(model, device=device, mode=compile)


def fuse_activations(model: nn.Module) -> bool:
    """Let oneDNN apply SiLU while it convolves, on a CPU, and return whether it does.

    The operator is the one that `torch.compile` puts into its graphs. It is no public interface: where it is missing or
    answers otherwise, the model stays as it is.
    """
    convs = [m for m in model.modules() if isinstance(m, Conv) and type(m.act) in {nn.SiLU, nn.Identity}]
    if not convs or not torch.backends.mkldnn.is_available():
        return False
    probe = convs[0].conv
    x = torch.linspace(-2, 2, probe.in_channels * 64, dtype=probe.weight.dtype).view(1, -1, 8, 8)
    try:
        with torch.no_grad():
            torch.testing.assert_close(_onednn(convs[0], x), convs[0].forward(x), rtol=0.02, atol=0.02)
    except (AttributeError, RuntimeError, TypeError, AssertionError):
        return False
    for module in convs:
        module.forward = functools.partial(_onednn, module)  # as Ultralytics' own fuse() does
    return True


def _onednn(module: Any, x: Tensor) -> Tensor:
    """Return what a fused Conv returns, convolution and activation in one pass over memory."""
    conv = module.conv
    activation = "swish" if isinstance(module.act, nn.SiLU) else "none"
    shape = conv.padding, conv.stride, conv.dilation, conv.groups
    return torch.ops.mkldnn._convolution_pointwise(x, conv.weight, conv.bias, *shape, activation, [], "")


def portions(images: Tensor, first: nn.Conv2d, itemsize: int) -> tuple[Tensor, ...]:
    """Split a batch on a CPU so that the largest activation, the first layer's, stays a block that is kept in memory.

    At 640 px a YOLO26s takes a fifth less time image by image than on a batch of 8, whose blocks are fetched from the
    system and given back each time, page by page.

    Args:
        images (Tensor): Images of shape (B, C, H, W).
        first (nn.Conv2d): The model's first convolution.
        itemsize (int): Bytes per value of its output.
    """
    if images.device.type != "cpu":
        return (images,)
    area = images.shape[-2] * images.shape[-1] / (first.stride[0] * first.stride[1])
    count = math.ceil(len(images) * first.out_channels * area * itemsize / MAX_ACTIVATION)
    return images.split(math.ceil(len(images) / count))
