"""Task-aligned assignment of many instances to anchor points, by the rule of Ultralytics' assigner.

`TaskAlignedAssigner` (Feng et al., TOOD, https://arxiv.org/abs/2108.07755) compares every instance with every anchor
point. This is cheap for labels and expensive for a teacher's answers, which have several times as many instances.
`assign_sparse` compares an instance only with the anchor points inside it, and returns the same result with the same
settings. `InstanceAssigner` verifies this against the installed assigner.

There is one difference, because labels are certain and answers are not: where several instances claim one anchor point,
their overlap is multiplied by their confidence.
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
from ..teachers.detections import group_starts

ROUNDING = 1e-3  # largest difference of target scores that counts as rounding
MAX_TIES = 0.02  # largest share of anchor points that may go to another instance with an equal claim
BATCHES = 3  # batches that must disagree: one with few anchor points may have more ties than `MAX_TIES`


@dataclass
class Assignment:
    """The P anchor points that one of N instances is assigned to.

    Attributes:
        image (Tensor): Index of the image, shape (P,).
        point (Tensor): Index of the anchor point, shape (P,).
        instance (Tensor): Index of the instance, shape (P,).
        target_score (Tensor): The target of the label's class in the base loss, from 0 to 1, shape (P,): the alignment
            relative to the instance's best anchor point, times the instance's largest overlap.
        count (int): Number of instances, N.
    """

    image: Tensor
    point: Tensor
    instance: Tensor
    target_score: Tensor
    count: int

    @property
    def relative_score(self) -> Tensor:
        """The target score divided by the score of the instance's best anchor point, from 0 to 1, shape (P,)."""
        best = self.target_score.new_zeros(self.count).scatter_reduce_(0, self.instance, self.target_score, "amax")
        return self.target_score / best[self.instance].clamp(min=1e-9)


@torch.no_grad()
def assign_sparse(assigner: Any, scores: Tensor, boxes: Tensor, points: Tensor, instances: Instances) -> Assignment:
    """Assign instances to anchor points; each instance is compared only with the anchor points inside it.

    Args:
        assigner (TaskAlignedAssigner): The base loss's assigner.
        scores (Tensor): The student's class logits, shape (B, A, nc).
        boxes (Tensor): The student's boxes in pixels of the input, shape (B, A, 4).
        points (Tensor): Anchor points in pixels of the input, shape (A, 2).
        instances (Instances): The instances of all images.

    Returns:
        (Assignment): The anchor points with an instance.
    """
    count, anchors = len(instances.boxes), len(points)
    instance, point = instances.pairs(assigner, points)
    image = instances.image[instance]
    cell = image * anchors + point  # index of the anchor point in the batch
    overlap = assigner.iou_calculation(instances.boxes[instance], boxes[image, point])
    score = scores[image, point, instances.labels[instance]].sigmoid()  # flattening first would copy all scores
    metric = score.pow(assigner.alpha) * overlap.pow(assigner.beta)

    chosen = _top_k(metric, instance, count, assigner.topk)
    # Where several instances chose an anchor point, the one with the highest overlap gets it, even if it did not choose
    # it. The overlap is multiplied by the confidence: of two predictions of one object, the less confident one would
    # teach that hardly anything is there
    claims = torch.zeros(len(boxes) * anchors, dtype=torch.int32, device=boxes.device).index_add_(0, cell, chosen.int())
    contested = (claims[cell] > 1).nonzero().flatten()
    priority = overlap[contested] * instances.confidence[instance[contested]]
    chosen[contested] = _first_of_largest(priority, cell[contested], len(claims))
    if assigner.topk2 != assigner.topk:
        remaining = chosen.nonzero().flatten()
        chosen[remaining] = _top_k(metric[remaining], instance[remaining], count, assigner.topk2)

    kept = (chosen & (metric > 0)).nonzero().flatten()
    image, point, instance, metric, overlap = (x[kept] for x in (image, point, instance, metric, overlap))
    best_metric = metric.new_zeros(count).scatter_reduce_(0, instance, metric, "amax")
    best_overlap = metric.new_zeros(count).scatter_reduce_(0, instance, overlap, "amax")
    target_score = metric * best_overlap[instance] / (best_metric[instance] + assigner.eps)
    return Assignment(image, point, instance, target_score, count)


def _top_k(values: Tensor, group: Tensor, groups: int, k: int) -> Tensor:
    """Return whether each value is among the k largest of its group; groups are sorted, values are not negative."""
    # Non-negative floats sort like their bits, so one sort by group and value is enough
    largest_first = 0x7FFFFFFF - values.float().view(torch.int32).long()
    order = (group << 32 | largest_first).argsort(stable=True)
    _, starts = group_starts(group, groups)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device)
    return rank - starts < k


def _first_of_largest(values: Tensor, cell: Tensor, total: int) -> Tensor:
    """Return whether each value is the largest of its cell; of several equal ones, only the first counts."""
    maximum = values.new_full((total,), -1).scatter_reduce_(0, cell, values, "amax")
    largest = values == maximum[cell]
    index = torch.arange(len(cell), device=cell.device)
    candidates = torch.where(largest, index, len(cell))
    first = index.new_full((total,), len(cell)).scatter_reduce_(0, cell, candidates, "amin")
    return largest & (first[cell] == index)


class InstanceAssigner:
    """Assigns instances by the sparse rule if it agrees with the installed assigner, else by that assigner.

    For each head branch, the first batch on which both agree decides, or the third on which they differ.
    """

    def __init__(self) -> None:
        """Start without a decision."""
        self._rules: dict[str, Callable[..., Assignment]] = {}
        self._disagreed: dict[str, int] = {}  # number of batches by branch

    def __call__(
        self, branch: str, assigner: Any, scores: Tensor, boxes: Tensor, points: Tensor, instances: Instances
    ) -> Assignment:
        """Assign instances to the anchor points of a head branch.

        Args:
            branch (str): Name of the branch.
            assigner (TaskAlignedAssigner): The branch's assigner.
            scores (Tensor): As for `assign_sparse`.
            boxes (Tensor): As for `assign_sparse`.
            points (Tensor): As for `assign_sparse`.
            instances (Instances): As for `assign_sparse`.

        Returns:
            (Assignment): The anchor points with an instance.
        """
        rule = self._rules.get(branch)
        if rule is not None:
            return rule(assigner, scores, boxes, points, instances)
        dense = assign_dense(assigner, scores, boxes, points, instances)
        if len(dense.target_score):
            if _sparse_rule_agrees(dense, assigner, scores, boxes, points, instances):
                self._rules[branch] = assign_sparse
                return dense
            self._disagreed[branch] = self._disagreed.get(branch, 0) + 1
            if self._disagreed[branch] == BATCHES:
                self._rules[branch] = assign_dense
                LOGGER.warning(
                    f"{colorstr('kd:')} this release of Ultralytics assigns labels by another rule. Its own assigner "
                    "also assigns the teacher's detections, which takes longer."
                )
        return dense


def _sparse_rule_agrees(
    dense: Assignment, assigner: Any, scores: Tensor, boxes: Tensor, points: Tensor, instances: Instances
) -> bool:
    """Return whether `assign_sparse` assigns labels as the assigner did."""
    if type(assigner) is not TaskAlignedAssigner:
        return False
    labels = replace(instances, confidence=torch.ones_like(instances.confidence))
    try:
        sparse = assign_sparse(assigner, scores, boxes, points, labels)
    except (AttributeError, TypeError):  # a part of the assigner was renamed
        return False
    return same_assignment(sparse, dense, *scores.shape[:2])


def same_assignment(one: Assignment, other: Assignment, images: int, anchors: int) -> bool:
    """Return whether two assignments are the same, except for a few ties.

    Args:
        one (Assignment): The first.
        other (Assignment): The second.
        images (int): Number of images.
        anchors (int): Number of anchor points.
    """
    scores, owners = [], []
    for each in (one, other):
        cell = each.image * anchors + each.point
        scores.append(each.target_score.new_zeros(images * anchors).index_put_((cell,), each.target_score))
        owners.append(torch.full((images * anchors,), -1, device=cell.device).index_put_((cell,), each.instance))
    other_owner = (owners[0] != owners[1]) & (torch.stack(scores).amax(0) > ROUNDING)
    differs = ((scores[0] - scores[1]).abs() > ROUNDING) | other_owner
    return bool(differs.sum() <= MAX_TIES * len(other.target_score))


@torch.no_grad()
def assign_dense(assigner: Any, scores: Tensor, boxes: Tensor, points: Tensor, instances: Instances) -> Assignment:
    """Assign instances to anchor points by calling the assigner itself.

    Args:
        assigner (TaskAlignedAssigner): The base loss's assigner.
        scores (Tensor): As for `assign_sparse`.
        boxes (Tensor): As for `assign_sparse`.
        points (Tensor): As for `assign_sparse`.
        instances (Instances): As for `assign_sparse`.

    Returns:
        (Assignment): The anchor points with an instance.
    """
    order = instances.image.argsort(stable=True)
    per_image, starts = group_starts(instances.image[order], len(boxes))
    column = torch.arange(len(order), device=boxes.device) - starts
    place = instances.image[order], column
    shape = len(boxes), int(per_image.max()) if len(order) else 0
    padded, row = boxes.new_zeros((*shape, 4)), torch.zeros(shape, dtype=torch.long, device=boxes.device)
    padded[place], row[place] = instances.boxes[order], order
    labels = instances.labels[row].unsqueeze(-1) if len(order) else row.unsqueeze(-1)
    valid = padded.any(-1, keepdim=True).to(padded.dtype)
    _, _, target, foreground, owner = assigner(scores.sigmoid(), boxes, points, labels, padded, valid)
    image, point = foreground.nonzero(as_tuple=True)
    target_score = target[image, point].sum(-1)  # the targets of all other classes are 0
    instance = row[image, owner[image, point].long()] if len(order) else image
    return Assignment(image, point, instance, target_score, len(instances.boxes))
