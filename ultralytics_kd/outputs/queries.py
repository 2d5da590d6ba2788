"""Predictions of RT-DETR's decoder: a set of queries, each a box with its class scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import RTDETRDecoder

from .grid import FeatureLayout
from .heads import find_head

GRID = ("anchors", "valid_mask")  # tensors of a decoder that are not buffers: `_apply` must convert them


def has_queries(model: nn.Module) -> bool:
    """Return whether a model ends in RT-DETR's decoder."""
    return isinstance(find_head(model), RTDETRDecoder)


def query_features(model: Any, channels: int) -> FeatureLayout:
    """Return the layout of the maps that the decoder reads, measured on a small image.

    Args:
        model (nn.Module): RT-DETR model.
        channels (int): Channels of its images.
    """
    decoder = find_head(model)
    side = 256
    maps: list[Tensor] = []
    hook = decoder.register_forward_pre_hook(lambda _, inputs: maps.extend(inputs[0]))
    first = next(model.parameters())
    try:
        with torch.no_grad():
            model(torch.zeros(1, channels, side, side, device=first.device, dtype=first.dtype))
    finally:
        hook.remove()
    return FeatureLayout(tuple(side // f.shape[-1] for f in maps), tuple(f.shape[1] for f in maps))


class RawDecoder(nn.Module):
    """Replaces the decoder of a frozen RT-DETR: returns all queries, without top-k, and the maps that it reads."""

    def __init__(self, decoder: Any):
        """Wrap the decoder."""
        super().__init__()
        self.decoder = decoder
        self.f, self.i = decoder.f, decoder.i

    def forward(self, feats: list[Tensor], batch: Any = None) -> dict[str, Any]:
        """Return boxes (B, Q, 4) as x, y, w, h in fractions of the image, class logits (B, Q, nc) and the maps."""
        _, (boxes, scores, *_) = self.decoder(feats)
        return {"boxes": boxes[-1], "scores": scores[-1], "feats": list(feats)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RawDecoder:
        """Move or convert the decoder, and its anchors for the last image size."""
        super()._apply(fn, recurse)
        for name in GRID:
            setattr(self.decoder, name, fn(getattr(self.decoder, name)))
        return self

    def __getattr__(self, name: str) -> Any:
        """Return the decoder's anchors: older releases of Ultralytics read them from a model's last layer."""
        return getattr(self.decoder, name) if name in GRID else super().__getattr__(name)


def use_raw_decoder(model: Any) -> None:
    """Make a frozen RT-DETR return all its queries instead of the best ones."""
    model.model[-1] = RawDecoder(model.model[-1])
