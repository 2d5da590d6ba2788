"""Fusion of the detections of several views of an image, or of several teachers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .detections import Detections, of_each_image

FUSE_IOU = 0.55  # above this IoU, detections of different views show one object; from the paper that `fuse` cites


def fuse(
    views: Sequence[Sequence[Detections]], known: Tensor, conf: float, weights: Sequence[float] | None = None
) -> list[Detections]:
    """Fuse the detections of several views of some images, image by image.

    This is the weighted boxes fusion of Solovyev et al. (https://arxiv.org/abs/1910.13302). Detections are grouped
    around the most confident one. A box is the mean of its group, weighted by confidence. A probability is the mean
    over all views whose teacher knows the class. So an object that is in only one view gets a lower probability.

    Only the grouping runs on the host, for all images at once. So the host waits for a GPU only a few times, whatever
    the number of boxes.

    Args:
        views (Sequence[Sequence[Detections]]): For every view, the detections of each image; boxes of shape (n, 4).
        known (Tensor): Summed weight of the views whose teacher knows each class, shape (nc,).
        conf (float): Lowest confidence of a detection that is kept.
        weights (Sequence[float], optional): Weight of every view, 1 if None.

    Returns:
        (list[Detections]): Fused detections of each image, most confident first.
    """
    images = range(len(views[0]))
    parts = [(i, v, view[i]) for i in images for v, view in enumerate(views)]
    boxes, probs = torch.cat([p.boxes for *_, p in parts]), torch.cat([p.probs for *_, p in parts])
    sizes = [len(p.boxes) for *_, p in parts]
    image, view = (np.repeat([part[i] for part in parts], sizes) for i in (0, 1))

    order = probs.amax(1).argsort(descending=True, stable=True) if len(probs) else torch.zeros_like(probs[:, 0]).long()
    order = order[_on(probs.device, image)[order].argsort(stable=True)]  # by image, most confident first
    boxes, probs, view = boxes[order], probs[order], view[order.cpu().numpy()]
    group, owner = _groups(_overlaps(boxes, np.bincount(image, minlength=len(images)).tolist()))

    rows, slots = _one_of_each_view(group, view, len(views))
    share = np.ones(len(views), np.float32) if weights is None else np.asarray(weights, np.float32)
    shares, of_rows = _on(probs.device, share[view[rows]])[:, None], _on(probs.device, np.stack((rows, group[rows])))
    boxes, probs = boxes[of_rows[0]], probs[of_rows[0]]
    weight = probs.amax(1, keepdim=True) * shares
    summed = [_sums(x, of_rows[1], slots, len(owner)) for x in (boxes * weight, weight, probs * shares)]
    fused = summed[0] / summed[1], summed[2] / known.clamp(min=1e-9)
    return of_each_image(*fused, _on(probs.device, owner), len(images), conf)


def _on(device: torch.device, values: np.ndarray) -> Tensor:
    """Copy an array from the host to a device, without waiting for the copy."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _overlaps(boxes: Tensor, counts: list[int]) -> list[np.ndarray]:
    """Return for each image which of its boxes show one object, bool, shape (n, n), on the host.

    Args:
        boxes (Tensor): Boxes of all images, those of each image together, shape (N, 4).
        counts (list[int]): Number of boxes of each image.
    """
    from torchvision.ops import box_iou  # scoped: slow to import

    flat = torch.cat([(box_iou(own, own) > FUSE_IOU).flatten() for own in boxes.split(counts)]).cpu().numpy()
    ends = np.cumsum(np.square(counts))
    return [own.reshape(n, n) for own, n in zip(np.split(flat, ends[:-1]), counts)]


def _groups(overlaps: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Group boxes around the most confident one that is in no group yet.

    Args:
        overlaps (Sequence[np.ndarray]): For each image which boxes show one object, most confident first.

    Returns:
        group (np.ndarray): Group of each box of all images, shape (N,); -1 for a box without area, which is in none.
        owner (np.ndarray): Image of each group, shape (G,).
    """
    groups: list[np.ndarray] = [np.zeros(0, np.int64)]
    owner: list[int] = []
    for image, same in enumerate(overlaps):
        group, free = np.full(len(same), -1), np.ones(len(same), bool)
        for i in range(len(same)):
            if free[i]:
                members = same[i] & free
                group[members], free[members] = len(owner), False
                owner.append(image)
        groups.append(group)
    return np.concatenate(groups), np.array(owner, np.int64)


def _one_of_each_view(group: np.ndarray, view: np.ndarray, views: int) -> tuple[np.ndarray, list[int]]:
    """Return the rows of the most confident box of each view in each group.

    Args:
        group (np.ndarray): Group of each box, most confident first, shape (N,); -1 for none.
        view (np.ndarray): View of each box, shape (N,).
        views (int): Number of views.

    Returns:
        rows (np.ndarray): The rows, shape (R,): the first row of every group, then the second rows, and so on.
        slots (list[int]): Number of first rows, of second rows, and so on.
    """
    rows = np.flatnonzero(group >= 0)
    rows = rows[np.sort(np.unique(group[rows] * views + view[rows], return_index=True)[1])]
    by_group = np.argsort(group[rows], kind="stable")
    members = group[rows][by_group]
    slot = np.empty_like(rows)
    slot[by_group] = np.arange(len(rows)) - np.searchsorted(members, members)
    return rows[np.argsort(slot, kind="stable")], np.bincount(slot).tolist()


def _sums(values: Tensor, group: Tensor, slots: Sequence[int], groups: int) -> Tensor:
    """Return the sum of each group, shape (groups, k), added in the same order on every device.

    Args:
        values (Tensor): Values of shape (R, k): the first value of every group, then the second values, and so on.
        group (Tensor): Group of each value, shape (R,).
        slots (Sequence[int]): Number of first values, of second values, and so on.
        groups (int): Number of groups.
    """
    total = values.new_zeros(groups, values.shape[1])
    for own, where in zip(values.split(slots), group.split(slots)) if slots else ():
        total[where] += own
    return total
