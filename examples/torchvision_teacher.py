"""A torchvision detector as teacher of a YOLO, offline: any object with `names` and `teach(images)` is a teacher.

The trained Faster R-CNN of torchvision is `fasterrcnn_resnet50_fpn_v2(weights="DEFAULT")`, with
`weights.meta["categories"]` as names. This example trains a small one for a few steps on drawn data.

Usage:
    $ python examples/torchvision_teacher.py [folder]
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from ultralytics_kd import YOLO
from ultralytics_kd.demo.shapes import CLASS_NAMES, draw_dataset


class TorchvisionTeacher:
    """A detector of torchvision in the form of a teacher."""

    def __init__(self, detector: torch.nn.Module, names: tuple[str, ...]):
        """Take a detector and the names of its classes, without the background, which is torchvision's class 0."""
        self.detector, self.names = detector.eval(), names

    def to(self, device: torch.device) -> None:
        """Move to the training's device."""
        self.detector.to(device)

    def teach(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return the detections in images of shape (B, 3, H, W) in [0, 1], RGB: boxes in pixels, scores, labels."""
        return [{**each, "labels": each["labels"] - 1} for each in self.detector(list(images))]


def train_detector(folder: Path, steps: int = 30) -> torch.nn.Module:
    """Train a small Faster R-CNN on the drawn images."""
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=len(CLASS_NAMES) + 1, min_size=64, max_size=64
    )
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    files = sorted((folder / "images" / "train").glob("*.png"))
    for step in range(steps):
        chosen = [files[i % len(files)] for i in range(4 * step, 4 * step + 4)]
        images = [torch.from_numpy(cv2.imread(str(f))[..., ::-1].transpose(2, 0, 1) / 255).float() for f in chosen]
        loss = sum(detector(images, [read_labels(f) for f in chosen]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return detector


def read_labels(image: Path, size: int = 64) -> dict[str, Tensor]:
    """Return the labels of an image in torchvision's format."""
    file = image.parents[2] / "labels" / image.parent.name / f"{image.stem}.txt"
    rows = np.loadtxt(file, ndmin=2, dtype=np.float32)
    center, half = rows[:, 1:3] * size, rows[:, 3:] * size / 2
    boxes = np.concatenate((center - half, center + half), 1)
    return {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(rows[:, 0]).long() + 1}


def main(folder: Path) -> None:
    """Train a torchvision detector in `folder`, then a YOLO that learns from it."""
    data = draw_dataset(folder / "data", train_images=16, val_images=4, size=64)
    teacher = TorchvisionTeacher(train_detector(folder / "data"), CLASS_NAMES)
    YOLO("yolo26n.yaml").train(
        data=str(data),
        teacher=teacher,
        imgsz=64,
        epochs=2,
        batch=8,
        plots=False,
        project=str(folder),
        name="student",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else mkdtemp(prefix="distill_")))
