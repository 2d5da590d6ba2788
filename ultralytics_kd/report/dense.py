"""What models without boxes say about val images: classes of images, classes and depth of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from .datasets import distinct

SIDE = 96  # to which maps are reduced before they are kept: a val set must fit into memory
NEAR = 1.25  # ratio of two depths that agree, as in delta1
VOID = 255  # Ultralytics' class of pixels that nothing is said of


@dataclass
class Said:
    """What a model, or the labels, say about one image.

    Attributes:
        values (np.ndarray): Class probabilities, shape (nc,); or of `SIDE` pixels along the longer side classes, or
            depths in metres, 0 where there is none, shape (h, w).
        shape (tuple[int, int]): Height and width of the image as the model saw it.
    """

    values: np.ndarray
    shape: tuple[int, int]


def keeping_dense(validator: Any, task: str) -> Any:
    """Return a validator that also keeps, reduced, what it is shown.

    Args:
        validator (type[BaseValidator]): The task's validator.
        task (str): "classify", "semantic" or "depth".
    """

    class Keeping(validator):
        """Keeps what it is shown."""

        def init_metrics(self, model: Any) -> None:
            """Begin with nothing."""
            super().init_metrics(model)
            self.kept: dict[str, Said] = {}
            self.truth: dict[str, Said] = {}

        def get_dataloader(self, dataset_path: Any, batch_size: int) -> Any:
            """Return the loader, of a classification one that does not shuffle: only order tells its files."""
            loader = super().get_dataloader(dataset_path, batch_size)
            if task != "classify":
                return loader
            return DataLoader(loader.dataset, batch_size, shuffle=False, num_workers=loader.num_workers)

        def update_metrics(self, preds: Tensor, batch: dict[str, Any]) -> None:
            """Count a batch, and keep it."""
            super().update_metrics(preds, batch)
            shape = tuple(batch["img"].shape[-2:])
            # Batches of a classification do not say which files they are of
            start = len(self.kept)
            files = batch.get("im_file") or [s[0] for s in self.dataloader.dataset.samples[start : start + len(preds)]]
            for i, file in enumerate(files):
                self.kept[str(file)] = Said(_reduced(preds[i], task), shape)
                self.truth[str(file)] = Said(_truth(batch, i, task, preds.shape[-1]), shape)

    return Keeping


def _truth(batch: dict[str, Any], i: int, task: str, nc: int) -> np.ndarray:
    """Return the labels of one image in the form of a prediction."""
    if task == "classify":
        return np.eye(nc, dtype=np.float16)[int(batch["cls"][i])]
    return _reduced(batch["semantic_mask" if task == "semantic" else "depth"][i], task)


def _reduced(values: Tensor, task: str) -> np.ndarray:
    """Return probabilities, or a map of `SIDE` pixels along its longer side; nearest ones, as classes have no mean."""
    if task == "classify":
        return values.float().cpu().numpy().astype(np.float16)
    maps = values.float().reshape(1, 1, *values.shape[-2:])
    scale = min(SIDE / max(maps.shape[-2:]), 1.0)
    size = [max(round(side * scale), 1) for side in maps.shape[-2:]]
    small = F.interpolate(maps, size, mode="nearest-exact")[0, 0].cpu().numpy()
    return small.astype(np.int16 if task == "semantic" else np.float16)


def pixel_classes(metrics: Any) -> dict[str, Any]:
    """Return "score" (IoU) and number of "labels" (pixels) of every class that has some.

    Args:
        metrics (SemanticMetrics): What the validator counted.
    """
    if metrics.matrix is None:
        return {}
    matrix = metrics.matrix.double().cpu()
    hits, rows, columns = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    first = len(matrix) - metrics.nc  # of one class the background is counted too
    names = distinct(metrics.names)
    return {
        name: {"score": float(hits[c] / (rows[c] + columns[c] - hits[c])), "labels": int(rows[c])}
        for c, name in ((i + first, names[i]) for i in range(metrics.nc))
        if rows[c] > 0
    }


def image_classes(names: Mapping[int, str], kept: Mapping[str, Said], truth: Mapping[str, Said]) -> dict[str, Any]:
    """Return top-1 accuracy and number of images of every class that has some.

    Args:
        names (Mapping[int, str]): Class names.
        kept (Mapping[str, Said]): What the model said.
        truth (Mapping[str, Said]): The labels.
    """
    right: dict[int, list[bool]] = {}
    for file, said in kept.items():
        label = int(truth[file].values.argmax())
        right.setdefault(label, []).append(int(said.values.argmax()) == label)
    return {names[c]: {"score": float(np.mean(hit)), "labels": len(hit)} for c, hit in sorted(right.items())}


def apart(one: Said, other: Said, task: str, truth: Said | None = None) -> tuple[float, float]:
    """Return how far two models are apart about an image, and the share of it on which they agree.

    Args:
        one (Said): What one says.
        other (Said): What the other says.
        task (str): "classify": total variation of the probabilities, and whether the first class is the same;
            "semantic": share of pixels with different classes, and with equal ones; "depth": mean absolute difference
            of log-depth, and share of pixels that are less than a factor of 1.25 apart.
        truth (Said | None): Labels, whose unlabelled pixels, padding among them, do not count in "semantic".
    """
    a, b = one.values.astype(np.float64), other.values.astype(np.float64)
    if task == "classify":
        return float(np.abs(a - b).sum() / 2), float(a.argmax() == b.argmax())
    if task == "semantic":
        counted = np.ones(a.shape, bool) if truth is None else truth.values != VOID
        same = float((a == b)[counted].mean()) if counted.any() else 1.0
        return 1 - same, same
    known = (a > 0) & (b > 0)
    if not known.any():
        return 0.0, 1.0
    ratio = np.abs(np.log(a[known]) - np.log(b[known]))
    return float(ratio.mean()), float((ratio < np.log(NEAR)).mean())


def dense_agreement(
    teacher: Mapping[str, Said], model: Mapping[str, Said], task: str, truth: Mapping[str, Said]
) -> dict[str, Any]:
    """Return "same" and "distance", the means over images of what `apart` returns.

    Args:
        teacher (Mapping[str, Said]): What the teacher says, by image.
        model (Mapping[str, Said]): What the model says.
        task (str): Their task.
        truth (Mapping[str, Said]): The labels.
    """
    found = [apart(said, model[file], task, truth[file]) for file, said in teacher.items()]
    pairs = np.array(found).reshape(-1, 2)
    distance, same = pairs.mean(0) if len(pairs) else (None, None)
    return {"same": None if same is None else float(same), "distance": None if distance is None else float(distance)}


def dense_worst(
    teacher: Mapping[str, Said], student: Mapping[str, Said], task: str, truth: Mapping[str, Said], count: int
) -> list[dict[str, Any]]:
    """Return the images about which teacher and student are farthest apart, farthest first.

    Args:
        teacher (Mapping[str, Said]): What the teacher says, by image.
        student (Mapping[str, Said]): What the student says.
        task (str): Their task.
        truth (Mapping[str, Said]): The labels.
        count (int): Number of images.

    Returns:
        (list[dict]): "file", "spent" (the distance) and "same".
    """
    rows: list[dict[str, Any]] = []
    for file, said in teacher.items():
        distance, same = apart(said, student[file], task, truth[file])
        rows.append({"file": file, "spent": distance, "same": same})
    return sorted(rows, key=lambda row: (-row["spent"], row["file"]))[:count]
