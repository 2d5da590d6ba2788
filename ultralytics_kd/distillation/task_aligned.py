"""Task-aligned assignment of many instances: the rule of Ultralytics' assigner, on the pairs that can matter.

`TaskAlignedAssigner` (Feng et al., TOOD, https://arxiv.org/abs/2108.07755) works on every instance beside every anchor
point, which is little for labels and much for a teacher's answers, of which there are several times as many. Here an
instance meets only the anchor points inside it. The outcome is that of the assigner itself, whose settings are read;
`Aligner` finds out whether the installed one still does what this module does. One thing is new, as labels are certain
and answers are not: of several instances at one anchor point the surer one has the better right to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.tal import TaskAlignedAssigner

from ..teachers.answers import Instances

ROUNDING = 1e-3  # largest difference of a fit that rounding explains
TIES = 0.02  # largest share of anchor points that may go to another instance of equal right


@dataclass
class Assignment:
    """Anchor points that have an instance, P of them.

    Attributes:
        image (Tensor): Index of the image, shape (P,).
        point (Tensor): Index of the anchor point, shape (P,).
        instance (Tensor): Index of the instance, shape (P,).
        fit (Tensor): What the base loss asks of a label's class there, from 0 to 1, shape (P,): how the alignment
            compares to the best of the instance, times the largest overlap.
    """

    image: Tensor
    point: Tensor
    instance: Tensor
    fit: Tensor

    @property
    def share(self) -> Tensor:
        """The alignment over that of the instance's best anchor point, from 0 to 1, shape (P,)."""
        count = int(self.instance.max()) + 1 if len(self.instance) else 0
        best = self.fit.new_zeros(count).scatter_reduce_(0, self.instance, self.fit, "amax")
        return self.fit / best[self.instance].clamp(min=1e-9)


@torch.no_grad()
def align(assigner: Any, scores: Tensor, boxes: Tensor, points: Tensor, instances: Instances) -> Assignment:
    """Assign instances to anchor points.

    Args:
        assigner (TaskAlignedAssigner): The base loss's assigner.
        scores (Tensor): The student's class logits, shape (B, A, nc).
        boxes (Tensor): The student's boxes in pixels of the input, shape (B, A, 4).
        points (Tensor): Anchor points in pixels of the input, shape (A, 2).
        instances (Instances): What is to be assigned.

    Returns:
        (Assignment): Which instance each anchor point has, those alone that have one.
    """
    count, anchors = len(instances.boxes), len(points)
    instance, point = instances.pairs(assigner, points)
    image = instances.image[instance]
    cell = image * anchors + point  # an anchor point of an image
    overlap = assigner.iou_calculation(instances.boxes[instance], boxes[image, point])
    score = scores[image, point, instances.labels[instance]].sigmoid()  # one index each: flattening copies all scores
    metric = score.pow(assigner.alpha) * overlap.pow(assigner.beta)

    chosen = _best(metric, instance, assigner.topk)
    # Several instances chose the anchor point: the one of the highest overlap has it, whether or not it chose it. Of
    # two answers to one object the surer one must, or the other would teach that nothing much is there
    takers = torch.zeros(len(boxes) * anchors, dtype=torch.int32, device=boxes.device).index_add_(0, cell, chosen.int())
    contested = (takers[cell] > 1).nonzero().flatten()
    right = overlap[contested] * instances.confidence[instance[contested]]
    chosen[contested] = _first_of_largest(right, cell[contested], len(takers))
    if assigner.topk2 != assigner.topk:
        left = chosen.nonzero().flatten()
        chosen[left] = _best(metric[left], instance[left], assigner.topk2)

    kept = (chosen & (metric > 0)).nonzero().flatten()
    image, point, instance, metric, overlap = (x[kept] for x in (image, point, instance, metric, overlap))
    best_metric = metric.new_zeros(count).scatter_reduce_(0, instance, metric, "amax")
    best_overlap = metric.new_zeros(count).scatter_reduce_(0, instance, overlap, "amax")
    fit = metric * best_overlap[instance] / (best_metric[instance] + assigner.eps)
    return Assignment(image, point, instance, fit)


def _best(values: Tensor, group: Tensor, k: int) -> Tensor:
    """Return whether each value is among the k largest of its group; groups are in order, values not negative."""
    # Floats that are not negative are ordered as their bits are: one sort by group and value in place of two
    largest_first = 0x7FFFFFFF - values.float().view(torch.int32).long()
    order = (group << 32 | largest_first).argsort(stable=True)
    sizes = torch.bincount(group)
    starts = (sizes.cumsum(0) - sizes)[group]
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device)
    return rank - starts < k


def _first_of_largest(values: Tensor, cell: Tensor, total: int) -> Tensor:
    """Return whether each value is the largest of its cell, the first of them if there are several."""
    most = values.new_full((total,), -1).scatter_reduce_(0, cell, values, "amax")
    largest = values == most[cell]
    index = torch.arange(len(cell), device=cell.device)
    first = index.new_full((total,), len(cell)).scatter_reduce_(0, cell[largest], index[largest], "amin")
    return largest & (first[cell] == index)


class Aligner:
    """Assigns the quick way if the installed assigner does the same, as the first instances show, else by that."""

    def __init__(self) -> None:
        self._ways: dict[str, Callable[..., Assignment]] = {}

    def __call__(self, branch: str, *question: Any) -> Assignment:
        """Assign instances to the anchor points of a head branch.

        Args:
            branch (str): Name of the branch.
            *question (Any): What `align` takes.
        """
        way = self._ways.get(branch)
        if way is not None:
            return way(*question)
        found = align_densely(*question)
        if len(found.fit):
            quick = _same_rule(found, *question)
            self._ways[branch] = align if quick else align_densely
            if not quick:
                LOGGER.warning(
                    f"{colorstr('kd:')} this Ultralytics assigns labels by a rule of its own: stored answers are "
                    "assigned by it too, which takes longer."
                )
        return found


def _same_rule(
    found: Assignment, assigner: Any, scores: Tensor, boxes: Tensor, points: Tensor, instances: Instances
) -> bool:
    """Return whether `align` assigns labels as the assigner did."""
    if type(assigner) is not TaskAlignedAssigner:
        return False
    labels = replace(instances, confidence=torch.ones_like(instances.confidence))
    try:
        quick = align(assigner, scores, boxes, points, labels)
    except (AttributeError, TypeError):  # its parts have other names now
        return False
    return same(quick, found, *scores.shape[:2])


def same(one: Assignment, other: Assignment, images: int, anchors: int) -> bool:
    """Return whether two assignments are the same but for a few ties.

    Args:
        one (Assignment): The first.
        other (Assignment): The second.
        images (int): Number of images.
        anchors (int): Number of anchor points.
    """
    fits, owners = [], []
    for found in (one, other):
        cell = found.image * anchors + found.point
        fits.append(found.fit.new_zeros(images * anchors).index_put_((cell,), found.fit))
        owners.append(torch.full((images * anchors,), -1, device=cell.device).index_put_((cell,), found.instance))
    other_owner = (owners[0] != owners[1]) & (torch.stack(fits).amax(0) > ROUNDING)
    differs = ((fits[0] - fits[1]).abs() > ROUNDING) | other_owner
    return bool(differs.sum() <= TIES * len(other.fit))


@torch.no_grad()
def align_densely(assigner: Any, scores: Tensor, boxes: Tensor, points: Tensor, instances: Instances) -> Assignment:
    """Return what `align` returns, from the assigner itself.

    Args:
        assigner (TaskAlignedAssigner): The base loss's assigner.
        scores (Tensor): As for `align`.
        boxes (Tensor): As for `align`.
        points (Tensor): As for `align`.
        instances (Instances): As for `align`.
    """
    per_image = torch.bincount(instances.image, minlength=len(boxes))
    order = instances.image.argsort(stable=True)
    within = torch.arange(len(order), device=boxes.device) - (per_image.cumsum(0) - per_image)[instances.image[order]]
    place = instances.image[order], within
    shape = len(boxes), int(per_image.max()) if len(order) else 0
    truth, row = boxes.new_zeros((*shape, 4)), torch.zeros(shape, dtype=torch.long, device=boxes.device)
    truth[place], row[place] = instances.boxes[order], order
    labels = instances.labels[row].unsqueeze(-1) if len(order) else row.unsqueeze(-1)
    valid = truth.any(-1, keepdim=True).to(truth.dtype)
    _, _, target, foreground, owner = assigner(scores.sigmoid(), boxes, points, labels, truth, valid)
    image, point = foreground.nonzero(as_tuple=True)
    fit = target[image, point].sum(-1)  # one class has all of it
    instance = row[image, owner[image, point].long()] if len(order) else image
    return Assignment(image, point, instance, fit)
