"""Confidence per scale: class probabilities that fit the size at which augmentation shows an object.

A teacher's confidence depends on the size of an object, and mosaic or zoom change that size. A cache therefore stores
the confidence at several scales, and augmentation carries these with each instance. The student learns the confidence
at the scale at which it sees the object, interpolated between the stored scales. With one stored scale, its confidence
is taught at every size.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def encode_rows(probs: np.ndarray, top_prob: np.ndarray, scale_confidence: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Return one row of numbers per instance, which augmentation carries.

    With several scales a row holds class shares, `probs / top_prob`. `decode_rows` multiplies them by the confidence at
    the size that the student sees.

    Args:
        probs (np.ndarray): Probabilities of the taught classes, shape (n, k).
        top_prob (np.ndarray): Largest probability of any teacher class, shape (n,).
        scale_confidence (np.ndarray): Confidence at each scale, shape (n, S).
        sides (np.ndarray): Width and height in pixels of the training image at scale 1, shape (n, 2).

    Returns:
        (np.ndarray): With one scale `probs`; else, of shape (n, k + S + 2), float32: class shares, `scale_confidence`
            and `sides`.
    """
    if scale_confidence.shape[1] == 1:
        return probs
    shares = probs / np.maximum(top_prob, 1e-6)[:, None]
    return np.concatenate((shares, scale_confidence, sides), 1, dtype=np.float32)


def decode_rows(
    boxes: Tensor, rows: Tensor, scales: list[float], shape: tuple[int, int], conf: float
) -> tuple[Tensor, Tensor]:
    """Return class probabilities at the sizes that instances have after augmentation.

    Args:
        boxes (Tensor): Boxes after augmentation: x, y, w, h as fractions of the image, shape (M, 4).
        rows (Tensor): Rows from `encode_rows`, shape (M, k) or (M, k + S + 2).
        scales (list[float]): The S scales of the cache, ascending.
        shape (tuple[int, int]): Height and width of the images in pixels.
        conf (float): Lowest confidence of an instance that is taught.

    Returns:
        probs (Tensor): Probabilities of the taught classes, shape (M, k).
        taught (Tensor): Indices of the instances that the teacher would detect at this size.
    """
    count = len(scales)
    if count == 1:
        return rows, torch.arange(len(rows), device=rows.device)
    shares, scale_confidence, sides = rows[:, : -count - 2], rows[:, -count - 2 : -2], rows[:, -2:]
    height, width = shape
    pixels = torch.stack((boxes[:, 2] * width, boxes[:, 3] * height), 1).clamp(min=1e-3)
    # The larger ratio of the two sides: an image border may cut one side, but it does not shrink the object
    scale = (pixels / sides.clamp(min=1e-3)).amax(1)
    probs = shares * interpolate(scale, scales, scale_confidence)[:, None]
    return probs, (probs.amax(1) > conf).nonzero().flatten()


@lru_cache(maxsize=8)
def _logarithms(scales: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the logarithms of scales; cached, because each copy to a device needs a sync."""
    return torch.tensor(scales, device=device).log()


def interpolate(scale: Tensor, scales: list[float], values: Tensor) -> Tensor:
    """Interpolate values linearly in the logarithm of the scale; outside the range, return the nearest end's value.

    Args:
        scale (Tensor): Positive scales at which values are wanted, shape (M,).
        scales (list[float]): The S scales at which values are given, ascending.
        values (Tensor): Given values, shape (M, S).

    Returns:
        (Tensor): Values at `scale`, shape (M,).
    """
    nodes = _logarithms(tuple(scales), values.device)
    x = scale.log().clamp(nodes[0], nodes[-1])
    right = torch.searchsorted(nodes, x.contiguous()).clamp(1, len(scales) - 1)
    fraction = (x - nodes[right - 1]) / (nodes[right] - nodes[right - 1])
    low, high = (values.gather(1, i[:, None])[:, 0] for i in (right - 1, right))
    return low + fraction * (high - low)
