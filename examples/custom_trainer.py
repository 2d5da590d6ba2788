"""Use a distilling trainer with Ultralytics' own YOLO class, and print the kd losses from a callback, offline.

Usage:
    $ python examples/custom_trainer.py [folder]
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp

from ultralytics import YOLO

from ultralytics_kd import KDDetectionTrainer
from ultralytics_kd.demo.shapes import draw_dataset


def main(folder: Path) -> None:
    """Train a teacher with plain Ultralytics, then a student that learns from its logits, boxes and features."""
    data = draw_dataset(folder / "data", train_images=16, val_images=4, size=64)
    args = {"data": str(data), "imgsz": 64, "epochs": 2, "batch": 8, "plots": False, "project": str(folder)}
    YOLO("yolo26s.yaml").train(**args, name="teacher")

    student = YOLO("yolo26n.yaml")
    student.add_callback("on_train_epoch_end", print_kd_losses)
    teacher = str(folder / "teacher" / "weights" / "best.pt")
    student.train(trainer=KDDetectionTrainer, teacher=teacher, kd_feat=1.0, kd_feat_loss="cwd", **args, name="student")


def print_kd_losses(trainer: KDDetectionTrainer) -> None:
    """Print the mean kd losses of the epoch."""
    print({name: round(float(value), 3) for name, value in trainer.tloss.items() if name.startswith("kd_")})


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else mkdtemp(prefix="distill_")))
