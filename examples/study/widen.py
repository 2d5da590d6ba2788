"""Make a teacher from published weights: a YOLO26s that computes what a trained YOLO26n computes.

    python examples/study/widen.py yolo26n.pt yolo26s-wide.pt

Every channel of the small model appears once or more in the big one, and what reads it divides its weight among the
copies (Net2Net, Chen et al., https://arxiv.org/abs/1511.05641). The shares are random, so that copies get different
gradients and learn different things. Train it on your data before it teaches.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from ultralytics import YOLO
from ultralytics.nn.modules.block import Attention
from ultralytics.nn.tasks import DetectionModel

UNEVEN = 0.9  # shares of copies are drawn from 1 - UNEVEN to 1 + UNEVEN before they are scaled to a sum of 1


def widen(small: Any, cfg: str = "yolo26s.yaml", seed: int = 0) -> DetectionModel:
    """Return a wider model that computes what a small one computes.

    Args:
        small (DetectionModel): Trained model; it is not changed.
        cfg (str): The same architecture at a wider scale.
        seed (int): Seed of the shares.
    """
    big = DetectionModel(cfg, nc=small.model[-1].nc, verbose=False)
    heads = tuple(f"{name}." for name, module in big.named_modules() if isinstance(module, Attention))
    weights, generator = {k: v.float() for k, v in small.state_dict().items()}, torch.Generator().manual_seed(seed)
    wide = {}
    for name, value in big.state_dict().items():
        source = weights[name]
        # Attention heads are blocks of channels, so they are copied as a whole
        inside = name.startswith(heads)
        by_head = inside and (".qkv." in name or ".pe." in name), inside and ".proj." in name
        wide[name] = _wider(source, tuple(value.shape), by_head, generator) if value.ndim else source
    big.load_state_dict(wide)
    big.names, big.args = small.names, small.args
    return big


def _wider(source: Tensor, shape: tuple[int, ...], by_head: tuple[bool, bool], generator: torch.Generator) -> Tensor:
    """Return a parameter with copies of its output channels, and divided among copies of its input channels.

    Args:
        source (Tensor): The small model's parameter.
        shape (tuple[int, ...]): Its shape in the wide model.
        by_head (tuple[bool, bool]): Whether output and input channels are copied head by head.
        generator (Generator): Draws the shares.
    """
    wide = source[_copies(shape[0], source.shape[0], by_head[0])]
    if len(shape) < 4 or shape[1] == source.shape[1]:
        return wide.clone()
    inputs = _copies(shape[1], source.shape[1], by_head[1])
    shares = 1 + UNEVEN * (2 * torch.rand(shape[0], shape[1], 1, 1, generator=generator) - 1)
    sums = torch.zeros(shape[0], source.shape[1], 1, 1).index_add_(1, inputs, shares)
    return wide[:, inputs] * shares / sums[:, inputs]


def _copies(wide: int, small: int, by_head: bool) -> Tensor:
    """Return which of the small model's channels each channel of the wide one copies.

    Copies of a channel are neighbours. So the halves of a split stay halves, and parts of a concatenation stay parts.
    """
    channels = torch.arange(wide)
    return channels % small if by_head else channels * small // wide


if __name__ == "__main__":
    source, target = sys.argv[1:3]
    model: Any = YOLO(source).model
    torch.save({"model": widen(model), "train_args": dict(model.args)}, target)
