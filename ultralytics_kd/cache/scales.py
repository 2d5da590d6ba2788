"""How sure a teacher is of an object depends on how large it sees it, and augmentation changes that.

A stored answer is given to the whole image; in a mosaic or a zoom the same object may have half the side, and a teacher
that was asked there would often see nothing. So it is asked at several sizes, and every instance brings along how sure
the teacher was at each; the student is taught what was said at the size at which it sees the object, or lies between
what was said. With one size, what was said there is taught at all sizes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def pack(probs: np.ndarray, confidence: np.ndarray, seen: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Return what an instance brings along through augmentation, in one row each.

    Args:
        probs (np.ndarray): Probabilities of the taught classes, shape (n, k).
        confidence (np.ndarray): The largest probability of any class, shape (n,).
        seen (np.ndarray): How sure the teacher was at each size, shape (n, S).
        sides (np.ndarray): Width and height in pixels as the student sees them at scale 1, shape (n, 2).

    Returns:
        (np.ndarray): With one size the probabilities; else of shape (n, k + S + 2), float32: probabilities as shares of
            the largest, `seen` and `sides`.
    """
    if seen.shape[1] == 1:
        return probs
    shares = probs / np.maximum(confidence, 1e-6)[:, None]
    return np.concatenate((shares, seen, sides), 1, dtype=np.float32)


def unpack(boxes: Tensor, rows: Tensor, scales: list[float], shape: tuple[int, int], conf: float) -> tuple[Tensor, ...]:
    """Return the probabilities that suit the sizes at which instances are seen, and which instances are seen at all.

    Args:
        boxes (Tensor): Boxes after augmentation: x, y, w, h as shares of the image, shape (M, 4).
        rows (Tensor): What `pack` returned for each, shape (M, k) or (M, k + S + 2).
        scales (list[float]): Scales at which the teacher was asked, rising, S of them.
        shape (tuple[int, int]): Height and width of the images in pixels.
        conf (float): Least confidence of an instance that is taught.

    Returns:
        probs (Tensor): Probabilities of the taught classes, shape (M, k).
        taught (Tensor): Indices of the instances that the teacher would see.
    """
    count = len(scales)
    if count == 1:
        return rows, torch.arange(len(rows), device=rows.device)
    shares, seen, sides = rows[:, : -count - 2], rows[:, -count - 2 : -2], rows[:, -2:]
    height, width = shape
    now = torch.stack((boxes[:, 2] * width, boxes[:, 3] * height), 1).clamp(min=1e-3)
    # A border may have cut one side, which does not make what is left of the object smaller
    scale = (now / sides.clamp(min=1e-3)).amax(1)
    probs = shares * interpolate(scale, scales, seen)[:, None]
    return probs, (probs.amax(1) > conf).nonzero().flatten()


@lru_cache(maxsize=8)
def _logarithms(scales: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the logarithms of scales on a device; once, as copying to it makes the host wait."""
    return torch.tensor(scales, device=device).log()


def interpolate(scale: Tensor, scales: list[float], values: Tensor) -> Tensor:
    """Return values in between, linear in the logarithm of the scale; beyond the ends it is the end's.

    Args:
        scale (Tensor): Where they are asked for, shape (M,), positive.
        scales (list[float]): Where they are known, rising, S of them.
        values (Tensor): What is known, shape (M, S).
    """
    known = _logarithms(tuple(scales), values.device)
    x = scale.log().clamp(known[0], known[-1])
    right = torch.searchsorted(known, x.contiguous()).clamp(1, len(scales) - 1)
    part = (x - known[right - 1]) / (known[right] - known[right - 1])
    low, high = (values.gather(1, i[:, None])[:, 0] for i in (right - 1, right))
    return low + part * (high - low)
