"""Detections matched with those of another model, or with labels: agreement, disagreement and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ultralytics.utils.metrics import batch_probiou, box_iou

from .validation import Objects

BINS = 10
CLASS_BONUS = 0.01  # added to the IoU of boxes of the same class when boxes are paired


def overlaps(first: Objects, second: Objects) -> np.ndarray:
    """Return the IoU of every pair, shape (N, M); ProbIoU of rotated boxes."""
    if not len(first.cls) or not len(second.cls):
        return np.zeros((len(first.cls), len(second.cls)))
    a, b = torch.from_numpy(first.boxes).float(), torch.from_numpy(second.boxes).float()
    return (batch_probiou if a.shape[1] == 5 else box_iou)(a, b).numpy()


def pairs(
    first: Objects, second: Objects, min_iou: float = 0.5, same_class: bool = False
) -> list[tuple[int, int, float]]:
    """Return the one-to-one pairs with the greatest sum of IoU.

    A detector may predict one box with two classes, so ties are common. Pairs of the same class win them.

    Args:
        first (Objects): N objects of an image.
        second (Objects): M other objects of the same image.
        min_iou (float): Lowest IoU of a pair.
        same_class (bool): Whether only objects of the same class are paired.

    Returns:
        (list[tuple[int, int, float]]): Index in `first`, index in `second` and IoU of each pair.
    """
    from scipy.optimize import linear_sum_assignment  # scoped: slow to import

    same = first.cls[:, None] == second.cls
    iou = overlaps(first, second) * (same if same_class else 1)
    value = np.where(iou >= min_iou, iou + CLASS_BONUS * same, 0)
    rows, columns = linear_sum_assignment(-value)
    return [(int(i), int(j), float(iou[i, j])) for i, j in zip(rows, columns) if iou[i, j] >= min_iou]


def agreement(teacher: Mapping[str, Objects], model: Mapping[str, Objects], min_conf: float) -> dict[str, Any]:
    """Return how well a model's detections agree with its teacher's.

    Args:
        teacher (Mapping[str, Objects]): The teacher's detections by image.
        model (Mapping[str, Objects]): The model's detections by image.
        min_conf (float): Lowest confidence of the detections that are compared.

    Returns:
        (dict): "teacher_detections" and "own_detections", the numbers of detections of the teacher and of the model;
            "found50" and "found75", the shares of the teacher's detections that the model has at IoU 0.5 and 0.75;
            "same_class", the share of the pairs at IoU 0.5 with equal classes; "extra", the share of the model's
            detections without a pair; "bias" and "difference", the mean and the mean absolute difference of the model's
            confidence to the teacher's, over the pairs with equal classes. A value without data is None.
    """
    differences: list[float] = []
    found = found75 = teacher_count = model_count = 0
    for file, detections in teacher.items():
        first, second = detections.confident(min_conf), model[file].confident(min_conf)
        teacher_count, model_count = teacher_count + len(first.cls), model_count + len(second.cls)
        same = pairs(first, second, same_class=True)  # first, so that no box of another class takes a partner
        others = pairs(first.without([i for i, _, _ in same]), second.without([j for _, j, _ in same]))
        found += len(same) + len(others)
        found75 += len(pairs(first, second, 0.75))
        differences += [float(second.conf[j] - first.conf[i]) for i, j, _ in same]
    return {
        "teacher_detections": teacher_count,
        "own_detections": model_count,
        "found50": found / teacher_count if teacher_count else None,
        "found75": found75 / teacher_count if teacher_count else None,
        "same_class": len(differences) / found if found else None,
        "extra": 1 - found / model_count if model_count else None,
        "bias": float(np.mean(differences)) if differences else None,
        "difference": float(np.abs(differences).mean()) if differences else None,
    }


def disagreement(teacher: Objects, model: Objects, min_conf: float) -> tuple[float, dict[str, int]]:
    """Return how much the detections of two models in an image disagree.

    Args:
        teacher (Objects): The teacher's detections.
        model (Objects): The model's detections.
        min_conf (float): Lowest confidence of the detections that are compared.

    Returns:
        (float): Confidence of all detections without a pair of the same class, summed over both models.
        (dict): Numbers of detections: "found" (of both models), "missed" (only of the teacher) and "extra" (only of the
            model).
    """
    first, second = teacher.confident(min_conf), model.confident(min_conf)
    shared = [(i, j) for i, j, _ in pairs(first, second, same_class=True)]
    shared_conf = sum(first.conf[i] + second.conf[j] for i, j in shared)
    unshared_conf = float(first.conf.sum() + second.conf.sum() - shared_conf)
    count = len(shared)
    return unshared_conf, {"found": count, "missed": len(first.cls) - count, "extra": len(second.cls) - count}


def calibration(
    detections: Mapping[str, Objects], labels: Mapping[str, Objects], min_conf: float = 0.05
) -> dict[str, Any]:
    """Compare confidence with the share of detections that are right (same class, IoU of at least 0.5).

    Args:
        detections (Mapping[str, Objects]): Detections by image.
        labels (Mapping[str, Objects]): Labels by image.
        min_conf (float): Lowest confidence of the detections that count. Most lie below it, and are not used.

    Returns:
        (dict): "error", the expected calibration error over `BINS` equal bins (Guo et al., ICML 2017,
            arXiv:1706.04599), None without detections; "bins" of detections with their mean "conf", the share that is
            "right" and their "count".
    """
    kept = {file: objects.confident(min_conf) for file, objects in detections.items()}
    conf = np.concatenate([objects.conf for objects in kept.values()] or [np.zeros(0)])
    right = np.concatenate([correct(objects, labels[file]) for file, objects in kept.items()] or [np.zeros(0, bool)])
    bin_of = np.minimum((conf * BINS).astype(int), BINS - 1)
    bins = [
        {"conf": float(conf[inside].mean()), "right": float(right[inside].mean()), "count": int(inside.sum())}
        for inside in (bin_of == b for b in range(BINS))
        if inside.any()
    ]
    error = sum(b["count"] * abs(b["conf"] - b["right"]) for b in bins) / len(conf) if bins else None
    return {"error": error, "bins": bins}


def correct(detections: Objects, labels: Objects, min_iou: float = 0.5) -> np.ndarray:
    """Return which detections match a label, shape (N,).

    As in COCO's evaluation, detections choose in the order of their confidence. Each takes the free label of its class
    with the greatest IoU.

    Args:
        detections (Objects): N detections of an image, most confident first.
        labels (Objects): Its labels.
        min_iou (float): Lowest IoU of a match.
    """
    right = np.zeros(len(detections.cls), bool)
    iou = overlaps(labels, detections) * (labels.cls[:, None] == detections.cls)
    for j in np.flatnonzero((iou >= min_iou).any(0)):
        best = iou[:, j].argmax()
        if iou[best, j] >= min_iou:
            right[j] = True
            iou[best] = 0  # taken
    return right
