"""How sure a teacher is of an object depends on how large it sees it, and augmentation changes that.

A stored answer is given to the whole image; in a mosaic or a zoom the same object may have half the side, and a teacher
that was asked there would often see nothing. So it is asked at several sizes, and every instance brings along how sure
the teacher was at each; the student is taught what was said at the size at which it sees the object, or lies between
what was said. With one size, what was said there is taught at all sizes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack(probs: np.ndarray, confidence: np.ndarray, seen: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Return what an instance brings along through augmentation, in one row each.

    Args:
        probs (np.ndarray): Probabilities of the taught classes, shape (n, k).
        confidence (np.ndarray): The largest probability of any class, shape (n,).
        seen (np.ndarray): How sure the teacher was at each size, shape (n, S).
        side (np.ndarray): Side in pixels at scale 1, the root of the area, shape (n,).

    Returns:
        (np.ndarray): With one size the probabilities; else of shape (n, k + S + 1), float32: probabilities as shares of
            the largest, `seen` and `side`.
    """
    if seen.shape[1] == 1:
        return probs
    shares = probs / np.maximum(confidence, 1e-6)[:, None]
    return np.concatenate((shares, seen, side[:, None]), 1, dtype=np.float32)


def unpack(boxes: Tensor, rows: Tensor, scales: list[float], shape: tuple[int, int], conf: float) -> tuple[Tensor, ...]:
    """Return the probabilities that suit the sizes at which instances are seen, and which instances are seen at all.

    Args:
        boxes (Tensor): Boxes after augmentation: x, y, w, h as shares of the image, shape (M, 4).
        rows (Tensor): What `pack` returned for each, shape (M, k) or (M, k + S + 1).
        scales (list[float]): Scales at which the teacher was asked, rising, S of them.
        shape (tuple[int, int]): Height and width of the images in pixels.
        conf (float): Least confidence of an instance that is taught.

    Returns:
        probs (Tensor): Probabilities of the taught classes, shape (M, k).
        taught (Tensor): Whether the teacher would see the instance, shape (M,), bool.
    """
    count = len(scales)
    if count == 1:
        return rows, torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    shares, seen, side = rows[:, : -count - 1], rows[:, -count - 1 : -1], rows[:, -1]
    height, width = shape
    now = (boxes[:, 2] * width * boxes[:, 3] * height).clamp(min=1e-6).sqrt() / side.clamp(min=1e-3)
    confidence = interpolate(now, scales, seen)
    return shares * confidence[:, None], confidence > conf


def interpolate(scale: Tensor, scales: list[float], values: Tensor) -> Tensor:
    """Return values in between, linear in the logarithm of the scale; beyond the ends it is the end's.

    Args:
        scale (Tensor): Where they are asked for, shape (M,), positive.
        scales (list[float]): Where they are known, rising, S of them.
        values (Tensor): What is known, shape (M, S).
    """
    known = torch.as_tensor(scales, dtype=values.dtype, device=values.device).log()
    x = scale.to(values.dtype).log().clamp(known[0], known[-1])
    right = torch.searchsorted(known, x.contiguous()).clamp(1, len(scales) - 1)
    part = (x - known[right - 1]) / (known[right] - known[right - 1])
    low, high = (values.gather(1, i[:, None])[:, 0] for i in (right - 1, right))
    return low + part * (high - low)
