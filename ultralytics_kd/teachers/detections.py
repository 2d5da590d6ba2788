"""Detections with class-probability vectors, and which of them are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from ultralytics.utils.nms import non_max_suppression

from ..outputs import Branch, Layout, pixels

BOXES_AT_ONCE = 8192  # boxes compared in one call; its memory grows with the square of their number


@dataclass(frozen=True)
class Thresholds:
    """Which detections are kept.

    Attributes:
        conf (float): Lowest confidence.
        iou (float): IoU above which two detections count as one object.
        topk (int): Largest number of detections per image. A mosaic has those of four images.
    """

    conf: float = 0.05
    iou: float = 0.7
    topk: int = 300


@dataclass
class Detections:
    """Detections in one image.

    Attributes:
        boxes (Tensor): Boxes of shape (n, 4) as x1, y1, x2, y2 in pixels, or rotated (n, 5) as x, y, w, h, angle.
        probs (Tensor): Class probabilities of shape (n, nc).
    """

    boxes: Tensor
    probs: Tensor


def suppress(branch: Branch, layout: Layout, thresholds: Thresholds) -> list[Detections]:
    """Return the detections in a branch's raw outputs, image by image, most confident first, in pixels.

    Args:
        branch (Branch): Raw outputs with scores and boxes.
        layout (Layout): Layout of the head that made them.
        thresholds (Thresholds): Which detections are kept.
    """
    return suppress_boxes(pixels(branch, layout), branch.scores.float().sigmoid(), thresholds)


def suppress_boxes(boxes: Tensor, probs: Tensor, thresholds: Thresholds) -> list[Detections]:
    """Return each image's boxes after non-maximum suppression, most confident first.

    Suppression ignores classes: one object is one detection, and its vector holds the probability of each class.

    Args:
        boxes (Tensor): Boxes in pixels, shape (B, n, 4) as x1, y1, x2, y2, or rotated (B, n, 5) as x, y, w, h, angle.
        probs (Tensor): Class probabilities of shape (B, n, nc).
        thresholds (Thresholds): Which detections are kept.
    """
    from torchvision.ops import batched_nms  # scoped: slow to import

    if boxes.shape[-1] == 5:
        return _suppress_rotated(boxes, probs, thresholds)
    # All images at once: in Ultralytics' loop over images the host waits for a GPU five times per image
    confidence = probs.amax(-1)
    above = confidence > thresholds.conf
    counts = above.sum(1).tolist()
    image, place = above.nonzero(as_tuple=True)
    precise = precise_dtype(boxes.device)  # because batched_nms separates images by large offsets of coordinates
    found, confidence = boxes[image, place].to(precise), confidence[image, place].to(precise)
    kept, start = [], 0
    for count in _portions(counts):
        part = slice(start, start + count)
        kept.append(start + batched_nms(found[part], confidence[part], image[part], thresholds.iou))
        start += count
    order = torch.cat(kept)
    order = order[image[order].argsort(stable=True)]  # by image, most confident first
    image, place = image[order], place[order]
    sizes, starts = group_starts(image, len(boxes))
    rank = torch.arange(len(image), device=image.device) - starts
    first = (rank < thresholds.topk).nonzero().flatten()
    image, place = image[first], place[first]
    lengths = sizes.clamp(max=thresholds.topk).tolist()
    return [Detections(*each) for each in zip(boxes[image, place].split(lengths), probs[image, place].split(lengths))]


def group_starts(group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return the size of each group, shape (groups,), and for each member where its group starts, shape (N,).

    Args:
        group (Tensor): Group of each member, sorted, shape (N,).
        groups (int): Number of groups.
    """
    sizes = group.new_zeros(groups).index_add_(0, group, torch.ones_like(group))  # bincount would wait for a GPU
    return sizes, (sizes.cumsum(0) - sizes)[group]


def image_of_each(detections: list[Detections], device: torch.device) -> Tensor:
    """Return the image index of each detection, shape (N,), float32 as in Ultralytics' batches.

    Args:
        detections (list[Detections]): Detections of each image.
        device (torch.device): Where the result is.
    """
    counts = torch.tensor([len(d.boxes) for d in detections])  # repeated on the host, which would wait for a GPU
    image = torch.arange(len(detections), dtype=torch.float32).repeat_interleave(counts)
    return image.to(device, non_blocking=True)


def precise_dtype(device: torch.device) -> torch.dtype:
    """Return the most precise floating-point type of a device; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _portions(counts: list[int]) -> list[int]:
    """Return sums of consecutive counts, each at most `BOXES_AT_ONCE` unless a single count is greater."""
    portions = [0]
    for count in counts:
        if portions[-1] and portions[-1] + count > BOXES_AT_ONCE:
            portions.append(0)
        portions[-1] += count
    return portions


def _suppress_rotated(boxes: Tensor, probs: Tensor, thresholds: Thresholds) -> list[Detections]:
    """Return each image's rotated boxes after non-maximum suppression; as `suppress_boxes`."""
    _, kept = non_max_suppression(
        torch.cat((boxes[..., :4], probs, boxes[..., 4:]), -1).transpose(1, 2),
        conf_thres=thresholds.conf,
        iou_thres=thresholds.iou,
        agnostic=True,
        max_det=thresholds.topk,
        nc=probs.shape[-1],
        rotated=True,
        max_time_img=1e9,  # a slow machine must return the same detections
        return_idxs=True,
    )
    index = [k.flatten().long() for k in kept]
    return [Detections(b[i], p[i]) for b, p, i in zip(boxes, probs, index)]


def most_confident(boxes: Tensor, probs: Tensor, thresholds: Thresholds) -> list[Detections]:
    """Return each image's most confident boxes, most confident first, without suppression.

    Args:
        boxes (Tensor): Boxes of shape (B, n, 4) as x1, y1, x2, y2 in pixels.
        probs (Tensor): Class probabilities of shape (B, n, nc).
        thresholds (Thresholds): Which detections are kept.
    """
    images, count = probs.shape[:2]
    order = probs.amax(-1).argsort(descending=True, stable=True)[:, : thresholds.topk]
    row = (order + torch.arange(images, device=order.device)[:, None] * count).flatten()
    image = torch.arange(images, device=order.device)[:, None].expand_as(order).flatten()
    return _split(boxes.flatten(0, 1)[row], probs.flatten(0, 1)[row], image, images, thresholds.conf)


def of_each_image(boxes: Tensor, probs: Tensor, image: Tensor, images: int, conf: float) -> list[Detections]:
    """Return each image's detections, most confident first.

    Args:
        boxes (Tensor): Boxes of all images, shape (N, 4).
        probs (Tensor): Class probabilities, shape (N, nc).
        image (Tensor): Image index of each detection, shape (N,).
        images (int): Number of images.
        conf (float): Confidence above which they are kept.
    """
    order = probs.amax(1).argsort(descending=True, stable=True) if len(probs) else image
    order = order[image[order].argsort(stable=True)]
    return _split(boxes[order], probs[order], image[order], images, conf)


def _split(boxes: Tensor, probs: Tensor, image: Tensor, images: int, conf: float) -> list[Detections]:
    """Split the sorted detections of all images by image, and drop those with a confidence of `conf` or less."""
    kept = (probs.amax(1) > conf).nonzero().flatten() if len(probs) else image
    counts = image.new_zeros(images).index_add_(0, image[kept], torch.ones_like(kept)).tolist()
    return [Detections(*own) for own in zip(boxes[kept].split(counts), probs[kept].split(counts))]
