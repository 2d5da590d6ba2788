"""Distil a teacher into a student from Python, offline. The data are drawn; both models train from scratch.

Usage:
    $ python examples/distill.py [folder]
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp

from ultralytics_kd import YOLO
from ultralytics_kd.demo.shapes import draw_dataset


def main(folder: Path) -> None:
    """Train a teacher and a student in `folder`, then predict with the student, without the plugin."""
    data = draw_dataset(folder / "data", train_images=16, val_images=4, size=64)
    args = {"data": str(data), "imgsz": 64, "epochs": 2, "batch": 8, "plots": False, "project": str(folder)}

    teacher = YOLO("yolo26s.yaml")
    teacher.train(**args, name="teacher")

    student = YOLO("yolo26n.yaml")
    student.train(**args, name="student", teacher=teacher, kd_cls=2.0, kd_box=8.0)

    from ultralytics import YOLO as PlainYOLO  # the student is an ordinary checkpoint

    best = PlainYOLO(folder / "student" / "weights" / "best.pt")
    best.predict(folder / "data" / "images" / "val" / "00000.png", imgsz=64, project=str(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else mkdtemp(prefix="distill_")))
