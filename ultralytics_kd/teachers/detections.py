"""Detections with whole class-probability vectors: suppressed, and merged from several views or teachers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou
from ultralytics.utils.nms import non_max_suppression

from ..outputs import Branch, Layout, pixels

FUSE_IOU = 0.55  # overlap above which detections of different views are of one object, as in the paper of `fuse`


@dataclass(frozen=True)
class Sieve:
    """Which detections are kept.

    Attributes:
        conf (float): Least confidence.
        iou (float): Overlap above which two detections are of one object.
        topk (int): Most detections of an image.
    """

    conf: float = 0.05
    iou: float = 0.7
    topk: int = 100


@dataclass
class Detections:
    """What a view of an image shows, or several.

    Attributes:
        boxes (Tensor): Boxes of shape (n, 4) as x1, y1, x2, y2 in pixels.
        probs (Tensor): Class probabilities of shape (n, nc).
    """

    boxes: Tensor
    probs: Tensor


def suppress(branch: Branch, layout: Layout, sieve: Sieve) -> list[Detections]:
    """Return the detections in a branch's raw outputs, image by image, most confident first, in pixels.

    Args:
        branch (Branch): Raw outputs, scores and boxes among them.
        layout (Layout): The head that made them.
        sieve (Sieve): Which are kept.
    """
    return suppress_boxes(pixels(branch, layout), branch.scores.float().sigmoid(), sieve)


def suppress_boxes(boxes: Tensor, probs: Tensor, sieve: Sieve) -> list[Detections]:
    """Return what non-maximum suppression leaves of each image's boxes, most confident first.

    Suppression is blind to classes: one object is one detection, and its vector says what it may be.

    Args:
        boxes (Tensor): Boxes of shape (B, n, 4) as x1, y1, x2, y2 in pixels.
        probs (Tensor): Class probabilities of shape (B, n, nc).
        sieve (Sieve): Which are kept.
    """
    centred = torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2], probs), -1)
    _, kept = non_max_suppression(
        centred.transpose(1, 2),
        conf_thres=sieve.conf,
        iou_thres=sieve.iou,
        agnostic=True,
        max_det=sieve.topk,
        nc=probs.shape[-1],
        max_time_img=1e9,  # a slow machine must not answer less
        return_idxs=True,
    )
    index = [k.flatten().long() for k in kept]
    return [Detections(b[i], p[i]) for b, p, i in zip(boxes, probs, index)]


def surest(boxes: Tensor, probs: Tensor, sieve: Sieve) -> Detections:
    """Return an image's boxes that are sure enough of something, most confident first, without suppression.

    Args:
        boxes (Tensor): Boxes of shape (n, 4) as x1, y1, x2, y2 in pixels.
        probs (Tensor): Class probabilities of shape (n, nc).
        sieve (Sieve): Which are kept.
    """
    order = probs.amax(1).argsort(descending=True, stable=True)[: sieve.topk]
    order = order[probs[order].amax(1) > sieve.conf]
    return Detections(boxes[order], probs[order])


def fuse(views: list[Detections], known: Tensor, conf: float, weights: list[float] | None = None) -> Detections:
    """Merge the views of an image: weighted boxes fusion of Solovyev et al. (https://arxiv.org/abs/1910.13302).

    Detections gather around the most confident one. A box is the mean of its group, weighted by confidence; a
    probability is the mean over all views whose teacher knows the class, so that what one view alone sees counts less.

    Args:
        views (list[Detections]): Detections of every view.
        known (Tensor): Summed weight of the views whose teacher knows each class, shape (nc,).
        conf (float): Least confidence of a detection that is kept.
        weights (list[float], optional): Weight of every view, 1 if None.
    """
    boxes, probs = torch.cat([v.boxes for v in views]), torch.cat([v.probs for v in views])
    view = torch.cat([torch.full((len(v.boxes),), i, device=boxes.device) for i, v in enumerate(views)])
    order = probs.amax(1).argsort(descending=True, stable=True) if len(probs) else view.long()
    boxes, probs, view = boxes[order], probs[order], view[order]
    of_view = boxes.new_tensor(weights or [1.0] * len(views))
    near, free = box_iou(boxes, boxes) > FUSE_IOU, torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    merged, vectors = [], []
    for i in range(len(boxes)):
        if not free[i]:
            continue
        group = (near[i] & free).nonzero().flatten()
        free[group] = False
        best = np.unique(view[group].cpu().numpy(), return_index=True)[1]  # of every view its most confident one
        group = group[torch.as_tensor(np.sort(best), device=group.device)]
        share = of_view[view[group].long()][:, None]
        weight = probs[group].amax(1, keepdim=True) * share
        merged.append((boxes[group] * weight).sum(0) / weight.sum())
        vectors.append((probs[group] * share).sum(0) / known.clamp(min=1e-9))
    if not merged:
        return Detections(boxes[:0], probs[:0])
    boxes, probs = torch.stack(merged), torch.stack(vectors)
    order = probs.amax(1).argsort(descending=True, stable=True)
    order = order[probs[order].amax(1) > conf]
    return Detections(boxes[order], probs[order])
