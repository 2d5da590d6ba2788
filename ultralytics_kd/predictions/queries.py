"""What RT-DETR's decoder says: a set of queries, each a box with its class scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import RTDETRDecoder

from .grid import FeatureLayout
from .heads import find_head


def has_queries(model: nn.Module) -> bool:
    """Return whether a model ends in RT-DETR's decoder."""
    return isinstance(find_head(model), RTDETRDecoder)


def query_features(model: Any, channels: int) -> FeatureLayout:
    """Return the maps that the decoder reads; their strides are found by looking at a small image.

    Args:
        model (nn.Module): RT-DETR model.
        channels (int): Channels of its images.
    """
    decoder = find_head(model)
    side = 256
    seen: list[Any] = []
    hook = decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    first = next(model.parameters())
    try:
        with torch.no_grad():
            model(torch.zeros(1, channels, side, side, device=first.device, dtype=first.dtype))
    finally:
        hook.remove()
    return FeatureLayout(tuple(side // f.shape[-1] for f in seen[0]), tuple(f.shape[1] for f in seen[0]))


class RawDecoder(nn.Module):
    """Stands for the decoder in a frozen RT-DETR: its queries as they are, without top-k, and the maps it read."""

    def __init__(self, decoder: Any):
        """Take the decoder over."""
        super().__init__()
        self.decoder = decoder
        self.f, self.i = decoder.f, decoder.i

    def forward(self, feats: list[Tensor], batch: Any = None) -> dict[str, Any]:
        """Return boxes (B, Q, 4) as x, y, w, h in shares of the image, class logits (B, Q, nc) and the maps."""
        _, (boxes, scores, *_) = self.decoder(feats)
        return {"boxes": boxes[-1], "scores": scores[-1], "feats": list(feats)}


def read_queries(model: Any) -> None:
    """Let a frozen RT-DETR return its queries in place of its predictions."""
    model.model[-1] = RawDecoder(model.model[-1])
