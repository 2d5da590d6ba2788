"""With Ultralytics' own gains at 0, the kd terms alone teach a student what its teacher sees."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK, draw_dataset
from ultralytics import YOLO as StockYOLO
from ultralytics.utils import YAML
from ultralytics.utils.metrics import box_iou

from ultralytics_kd import YOLO

REAL_DATA = "ULTRALYTICS_KD_TEST_DATA"  # a folder that holds coco128; the study on it runs where this is set
# One step an epoch on images that stay as they are
STUDY = {
    **QUICK, "batch": 8, "nbs": 8, "warmup_epochs": 5, "warmup_bias_lr": 0.0, "cos_lr": True, "val": False,
    "save": False, "cache": "ram", "close_mosaic": 0, "mosaic": 0.0, "fliplr": 0.0, "scale": 0.0, "translate": 0.0,
    "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "erasing": 0.0,
}  # fmt: skip


@dataclass
class Agreement:
    """How far a student says what its teacher says.

    Attributes:
        detections (int): The teacher's detections.
        iou (float): Mean IoU of each with the student's best match.
        classes (float): Share of them whose best match touches by half and has the same class.
        invented (float): Share of the student's detections that match none of the teacher's.
    """

    detections: int
    iou: float
    classes: float
    invented: float


def agreement(student: Path, teacher: Path, images: Path, imgsz: int, conf: float = 0.4) -> Agreement:
    """Compare the detections of two checkpoints; one is looked for among less confident ones of the other.

    Images are padded to squares, as in training: models that know nothing but these pixels know no other padding.
    """

    args = {"imgsz": imgsz, "rect": False, "verbose": False}

    def detect(weights: Path, threshold: float) -> list[Any]:
        return [r.boxes for r in StockYOLO(weights).predict(images, **args, conf=threshold)]

    def matches(of: list[Any], among: list[Any]) -> tuple[list[float], list[bool]]:
        ious, same = [], []
        for left, right in zip(of, among):
            for box, cls in zip(left.xyxy, left.cls):
                iou = box_iou(box[None], right.xyxy)[0] if len(right) else torch.zeros(1)
                ious.append(iou.max().item())
                same.append(iou.max().item() > 0.5 and bool(right.cls[iou.argmax()] == cls))
        return ious, same

    ious, same = matches(detect(teacher, conf), detect(student, conf / 2))
    _, known = matches(detect(student, conf), detect(teacher, conf / 2))
    return Agreement(len(ious), sum(ious) / len(ious), sum(same) / len(same), 1 - sum(known) / max(len(known), 1))


def quick_statistics(trainer: Any) -> None:
    """Let BatchNorm's averages keep up with a training of a few hundred steps."""
    for norm in (m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 0.1


def train(model: str, **args: Any) -> Path:
    """Train a model from scratch and return its weights."""
    yolo = YOLO(model)
    yolo.add_callback("on_pretrain_routine_end", quick_statistics)
    yolo.train(**{**STUDY, **args})
    return yolo.trainer.last


def overfit(data: Path, folder: Path, imgsz: int, teacher_steps: int, steps: int) -> tuple[Agreement, Agreement]:
    """Train a teacher on a handful of images and a student by its answers alone.

    Returns:
        (tuple[Agreement, Agreement]): The student's agreement with the teacher after a few steps, and at the end.
    """
    args = {"data": str(data), "project": str(folder), "imgsz": imgsz}
    teacher = train("yolo26s.yaml", **args, epochs=teacher_steps, name="teacher")
    args |= {"teacher": str(teacher), "box": 0.0, "cls": 0.0, "dfl": 0.0}
    images = data.parent / "images" / "train"
    early, late = (
        agreement(train("yolo26n.yaml", **args, epochs=n, name=f"student{n}"), teacher, images, imgsz)
        for n in (5, steps)
    )
    return early, late


@pytest.mark.nightly
def test_kd_terms_alone_overfit_a_student_to_its_teachers_detections(tmp_path):
    early, late = overfit(draw_dataset(tmp_path / "data"), tmp_path, imgsz=64, teacher_steps=110, steps=110)
    assert late.detections >= 8, "the teacher must have learnt the images"
    assert early.iou < 0.3 and early.classes < 0.3
    assert late.iou > 0.85 and late.classes > 0.9 and late.invented < 0.1, late


@pytest.mark.slow
@pytest.mark.skipif(REAL_DATA not in os.environ, reason=f"{REAL_DATA} names no folder with coco128")
def test_kd_terms_alone_overfit_a_student_on_coco128(tmp_path):
    """The first eight images that have objects."""
    source = Path(os.environ[REAL_DATA]) / "coco128"
    labels = [f for f in sorted((source / "labels").rglob("*.txt")) if f.stat().st_size][:8]
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for label in labels:
            image = next((source / "images").rglob(f"{label.stem}.*"))
            shutil.copy2(image, tmp_path / "data" / "images" / split)
            shutil.copy2(label, tmp_path / "data" / "labels" / split)
    names = YAML.load(source / "data.yaml")["names"]
    data = tmp_path / "data" / "data.yaml"
    YAML.save(data, {"path": str(data.parent), "train": "images/train", "val": "images/val", "names": names})
    early, late = overfit(data, tmp_path, imgsz=160, teacher_steps=300, steps=500)
    print(f"\n{len(labels)} images of coco128: after 5 steps {asdict(early)}, at the end {asdict(late)}")
    assert late.detections >= 16, "the teacher must have learnt the images"
    assert late.iou > 0.8 and late.classes > 0.9 and late.invented < 0.2, late
