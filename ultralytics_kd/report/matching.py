"""How much two models, or a model and the labels, say the same: pairs of boxes, shares, calibration, object sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from ultralytics.utils.metrics import ap_per_class, batch_probiou, box_iou

from .validation import Objects

THRESHOLDS = np.linspace(0.5, 0.95, 10)
# COCO's: https://cocodataset.org/#detection-eval; areas in square pixels of the image file
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
BINS = 10
TIE = 0.01  # IoU that an equal class is worth when boxes are paired


def overlaps(first: Objects, second: Objects) -> np.ndarray:
    """Return the IoU of every pair, shape (N, M); ProbIoU of rotated boxes."""
    if not len(first.cls) or not len(second.cls):
        return np.zeros((len(first.cls), len(second.cls)))
    a, b = torch.from_numpy(first.boxes).float(), torch.from_numpy(second.boxes).float()
    return (batch_probiou if a.shape[1] == 5 else box_iou)(a, b).numpy()


def pairs(first: Objects, second: Objects, least: float = 0.5) -> list[tuple[int, int, float]]:
    """Return the one-to-one pairs with the greatest sum of IoU, as index, index and IoU; ties go to equal classes.

    A detector may say two classes of one box, so that ties are common.

    Args:
        first (Objects): Objects of an image.
        second (Objects): Others of the same image.
        least (float): Least IoU of a pair.
    """
    iou = overlaps(first, second)
    worth = np.where(iou >= least, iou + TIE * (first.cls[:, None] == second.cls), 0)
    rows, columns = linear_sum_assignment(-worth)
    return [(int(i), int(j), float(iou[i, j])) for i, j in zip(rows, columns) if iou[i, j] >= least]


def agreement(teacher: Mapping[str, Objects], model: Mapping[str, Objects], conf: float) -> dict[str, Any]:
    """Return how far a model says what its teacher says.

    Args:
        teacher (Mapping[str, Objects]): The teacher's detections by image.
        model (Mapping[str, Objects]): The model's.
        conf (float): Least confidence of detections that count, of both.

    Returns:
        (dict): "detections" of the teacher; the shares of them that the model finds at IoU 0.5 ("found50") and 0.75
            ("found75"); the share of those found at 0.5 that it gives the same class ("same_class"); "extra", the share
            of the model's detections that are none of the teacher's; "bias" and "difference", the mean and the mean
            absolute difference of confidence to the teacher, of those found. None where nothing can be counted.
    """
    met: list[tuple[float, bool, float]] = []
    total = own = 0
    for file, said in teacher.items():
        theirs, mine = said.sure(conf), model[file].sure(conf)
        total, own = total + len(theirs.cls), own + len(mine.cls)
        met += [(iou, theirs.cls[i] == mine.cls[j], mine.conf[j] - theirs.conf[i]) for i, j, iou in pairs(theirs, mine)]
    steps = np.array([difference for *_, difference in met])
    return {
        "detections": total,
        "found50": len(met) / total if total else None,
        "found75": sum(iou >= 0.75 for iou, *_ in met) / total if total else None,
        "same_class": float(np.mean([same for _, same, _ in met])) if met else None,
        "extra": 1 - len(met) / own if own else None,
        "bias": float(steps.mean()) if met else None,
        "difference": float(np.abs(steps).mean()) if met else None,
    }


def disagreement(teacher: Objects, model: Objects, conf: float) -> tuple[float, dict[str, int]]:
    """Return how much confidence was spent on what the other did not see, and how many boxes were found and not.

    Args:
        teacher (Objects): The teacher's detections in an image.
        model (Objects): The model's.
        conf (float): Least confidence of detections that count.
    """
    theirs, mine = teacher.sure(conf), model.sure(conf)
    met = [(i, j) for i, j, _ in pairs(theirs, mine) if theirs.cls[i] == mine.cls[j]]
    agreed = sum(theirs.conf[i] + mine.conf[j] for i, j in met)
    spent = float(theirs.conf.sum() + mine.conf.sum() - agreed)
    return spent, {"found": len(met), "missed": len(theirs.cls) - len(met), "extra": len(mine.cls) - len(met)}


def calibration(model: Mapping[str, Objects], labels: Mapping[str, Objects], least: float = 0.05) -> dict[str, Any]:
    """Return how far confidence is the share of detections that are right (same class, IoU of at least 0.5).

    Args:
        model (Mapping[str, Objects]): Detections by image.
        labels (Mapping[str, Objects]): Labels by image.
        least (float): Least confidence of detections that count: below it nobody looks, and there are most of them.

    Returns:
        (dict): "error", the expected calibration error over `BINS` equal bins (Guo et al., ICML 2017,
            arXiv:1706.04599), None without detections; "bins" of detections with their mean "conf", the share that is
            "right" and their "count".
    """
    conf, right = [], []
    for file, found in model.items():
        kept = found.sure(least)
        claimed = claims(kept, labels[file], np.ones(len(labels[file].cls), bool), THRESHOLDS[:1])
        conf.append(kept.conf)
        right.append(claimed[:, 0] >= 0)
    confs, rights = (np.concatenate(x) if x else np.zeros(0) for x in (conf, right))
    place = np.minimum((confs * BINS).astype(int), BINS - 1)
    bins = [
        {
            "conf": float(confs[place == b].mean()),
            "right": float(rights[place == b].mean()),
            "count": int((place == b).sum()),
        }
        for b in range(BINS)
        if (place == b).any()
    ]
    error = sum(b["count"] * abs(b["conf"] - b["right"]) for b in bins) / len(confs) if bins else None
    return {"error": error, "bins": bins}


def claims(found: Objects, labels: Objects, counted: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return which label each detection claims, -1 for none, at every IoU threshold.

    Detections choose in the order of their confidence, as in Ultralytics' and COCO's evaluation: the label of their
    class with the greatest IoU that is free, one that counts before one that does not.

    Args:
        found (Objects): Detections of an image, N of them.
        labels (Objects): Its labels, M of them.
        counted (np.ndarray): Which labels count, shape (M,).
        thresholds (np.ndarray): IoU thresholds, T of them.

    Returns:
        (np.ndarray): Index of labels, shape (N, T).
    """
    claimed = np.full((len(found.cls), len(thresholds)), -1)
    if not len(labels.cls):
        return claimed
    iou = overlaps(labels, found) * (labels.cls[:, None] == found.cls)
    taken, column = np.zeros((len(labels.cls), len(thresholds)), bool), np.arange(len(thresholds))
    for j in np.flatnonzero((iou >= thresholds.min()).any(0)):
        value = iou[:, j, None]
        free = np.where(taken | (value < thresholds), 0, value + counted[:, None])
        best = free.argmax(0)
        hit = free[best, column] > 0
        claimed[j, hit] = best[hit]
        taken[best[hit], column[hit]] = True
    return claimed


def by_size(model: Mapping[str, Objects], labels: Mapping[str, Objects]) -> dict[str, dict[str, Any]]:
    """Return the box mAP of objects of each size, as COCO defines it.

    Labels of other sizes, detections that claim one of them, and detections of other sizes that claim nothing do not
    count.

    Args:
        model (Mapping[str, Objects]): Detections by image.
        labels (Mapping[str, Objects]): Labels by image.

    Returns:
        (dict): "score" (mAP50-95, None without such objects) and number of "labels" by name in `SIZES`.
    """
    return {name: size_score(model, labels, least, most) for name, (least, most) in SIZES.items()}


def size_score(
    model: Mapping[str, Objects], labels: Mapping[str, Objects], least: float, most: float
) -> dict[str, Any]:
    """Return the box mAP of objects whose area lies in a range, [least, most)."""
    hit, kept, conf, cls, target = [], [], [], [], []
    for file, found in model.items():
        truth = labels[file]
        counted = (truth.areas >= least) & (truth.areas < most)
        claimed = claims(found, truth, counted, THRESHOLDS)
        fits = (found.areas >= least) & (found.areas < most)
        right = (claimed >= 0) & np.append(counted, False)[claimed]
        hit.append(right)
        kept.append(right | ((claimed < 0) & fits[:, None]))
        conf.append(found.conf)
        cls.append(found.cls)
        target.append(truth.cls[counted])
    targets = np.concatenate(target) if target else np.zeros(0)
    if not len(targets):
        return {"score": None, "labels": 0}
    hits, keeps, confs, classes = (np.concatenate(x) for x in (hit, kept, conf, cls))
    scores = []
    for t in range(len(THRESHOLDS)):  # which detections count differs between thresholds
        k = keeps[:, t]
        # ap_per_class returns (..., ap, ...): area under precision and recall of every class with targets
        scores.append(ap_per_class(hits[k, t : t + 1], confs[k], classes[k], targets)[5].mean())
    return {"score": float(np.mean(scores)), "labels": len(targets)}
