"""With Ultralytics' own gains at 0, the kd terms alone teach a student what its teacher sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import QUICK, draw_dataset
from ultralytics.utils.metrics import box_iou

from ultralytics_kd import YOLO

STUDY = {**QUICK, "imgsz": 96, "batch": 8, "mosaic": 0.0, "fliplr": 0.0, "scale": 0.0, "translate": 0.0, "hsv_v": 0.0}
STUDY |= {"hsv_s": 0.0, "hsv_h": 0.0, "erasing": 0.0, "warmup_epochs": 0.0, "val": False, "close_mosaic": 0, "nbs": 8}


def agreement(student: Path, teacher: Path, images: Path, imgsz: int, conf: float = 0.4) -> tuple[float, float]:
    """Return how well a student finds a teacher's detections: mean IoU of the best match, and class agreement."""
    from ultralytics import YOLO as StockYOLO

    kwargs = {"imgsz": imgsz, "verbose": False, "conf": conf}
    theirs = StockYOLO(teacher).predict(images, **kwargs)
    ours = StockYOLO(student).predict(images, **{**kwargs, "conf": conf / 2})
    ious, same = [], []
    for t, s in zip(theirs, ours):
        for box, cls in zip(t.boxes.xyxy, t.boxes.cls):
            iou = box_iou(box[None], s.boxes.xyxy)[0] if len(s.boxes) else torch.zeros(1)
            ious.append(iou.max().item())
            same.append(len(s.boxes) > 0 and iou.max() > 0.5 and s.boxes.cls[iou.argmax()].item() == cls.item())
    assert len(ious) >= 8, "the teacher must have learnt the images"
    return sum(ious) / len(ious), sum(same) / len(same)


def overfit(
    data: Path, folder: Path, imgsz: int = 96, epochs: int = 150, teacher_epochs: int = 150
) -> dict[str, float]:
    """Train a teacher on a handful of images, and a student by its answers alone; return their agreement."""
    args = {**STUDY, "data": str(data), "project": str(folder), "imgsz": imgsz}
    YOLO("yolo26s.yaml").train(**{**args, "epochs": teacher_epochs, "name": "teacher"})
    teacher, student = (folder / n / "weights" / "last.pt" for n in ("teacher", "student"))
    YOLO("yolo26n.yaml").train(
        **{**args, "epochs": epochs, "name": "student"}, box=0.0, cls=0.0, dfl=0.0, teacher=str(teacher)
    )
    iou, same = agreement(student, teacher, data.parent / "images" / "train", imgsz)
    return {"mean IoU of matched boxes": iou, "class agreement": same}


@pytest.mark.slow
def test_kd_terms_alone_overfit_a_student_to_its_teachers_detections(tmp_path):
    reached = overfit(draw_dataset(tmp_path / "data"), tmp_path)
    assert reached["mean IoU of matched boxes"] > 0.75
    assert reached["class agreement"] > 0.85
