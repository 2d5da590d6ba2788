"""What makes the host wait for a GPU, counted on the CPU: each wait leaves the GPU idle until new work arrives."""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import pytest
import torch
from conftest import make_model
from test_assignment import NAMES, setup
from torch.utils._python_dispatch import TorchDispatchMode
from ultralytics.cfg import get_cfg
from ultralytics.utils.nms import non_max_suppression

from ultralytics_kd.distillation.distillers import GridDistiller
from ultralytics_kd.distillation.loss import DistillationLoss
from ultralytics_kd.outputs import grid
from ultralytics_kd.teachers import detections, open_teacher
from ultralytics_kd.teachers.class_map import match_classes

# Operators whose outputs have a size, or a value in Python, that depends on values on the device
WAITING = {"nonzero", "_local_scalar_dense", "masked_select", "_unique2", "bincount", "repeat_interleave", "equal"}


class Waits(TorchDispatchMode):
    """Counts the operators called by this package for which the host would wait."""

    def __init__(self) -> None:
        """Start with none."""
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operator, and run it."""
        name = func.overloadpacket.__name__
        masks = name in {"index", "index_put", "index_put_"} and any(
            i is not None and i.dtype is torch.bool for i in args[1]
        )
        if name in WAITING or masks:
            ours = [f for f in traceback.extract_stack() if "/ultralytics" in f.filename]
            if ours and "ultralytics_kd" in ours[-1].filename:
                self.places[f"{name} {ours[-1].filename.rsplit('/', 1)[-1]}:{ours[-1].lineno}"] += 1
        return func(*args, **(kwargs or {}))


def test_terms_of_a_teacher_with_the_same_grid_wait_for_nothing():
    torch.manual_seed(0)
    student = make_model("yolo26n.yaml").train()
    teacher = open_teacher(make_model("yolo26s.yaml"))
    teacher.classes = match_classes(NAMES, NAMES)
    student.args = get_cfg(overrides={"teacher": "t.pt", "kd_feat": 1.0, "imgsz": 64})
    teacher.inspect()
    distiller = GridDistiller(student.args, student, teacher)
    teacher.prepare(torch.device("cpu"), distiller.reads)
    loss = DistillationLoss(student.init_criterion(), distiller, student.model[-1])
    images = torch.rand(2, 3, 64, 64)
    batch = {"img": images, "batch_idx": torch.zeros(1), "cls": torch.zeros(1, 1), "bboxes": torch.full((1, 4), 0.5)}
    teacher(images)  # the first answer is checked at once
    preds = student(images)
    with Waits() as waits:
        loss(preds, {**batch, "teacher": teacher._answer(teacher._run(images), images)})
    assert not waits.places


def test_a_set_of_detections_waits_a_few_times_whatever_the_batch():
    """Suppression, one set for the student's images, and assignment to both branches."""
    found = {}
    for images in (2, 6):
        student, loss, batch = setup("yolo26n.yaml", images)
        preds = student(batch["img"])
        loss(preds, dict(batch))  # the first batch compares the rules of assignment
        with Waits() as waits:
            detections.suppress_boxes(
                torch.rand(images, 50, 4) * 64, torch.rand(images, 50, 3), detections.Thresholds()
            )
            loss(preds, dict(batch))
        found[images] = sum(waits.places.values())
    assert found[2] == found[6] <= 20


@pytest.mark.parametrize("at_once", [1, 100, 8192])
@pytest.mark.parametrize(("conf", "topk"), [(0.05, 10), (0.05, 300), (0.7, 300), (1.0, 10)])
def test_all_images_together_give_the_detections_of_each(at_once, conf, topk, monkeypatch):
    """They are those of Ultralytics' function, which takes one image after another."""
    monkeypatch.setattr(detections, "BOXES_AT_ONCE", at_once)
    torch.manual_seed(1)
    centres, sides = torch.rand(4, 200, 2) * 640, torch.rand(4, 200, 2) * 200 + 5
    boxes, probs = torch.cat((centres - sides / 2, centres + sides / 2), -1), torch.rand(4, 200, 3) ** 4
    boxes[1, 100:], probs[2] = boxes[1, :100] + 0.5, 0.0  # twins in one image, nothing in another
    ours = detections.suppress_boxes(boxes, probs, detections.Thresholds(conf, 0.7, topk))
    centred = torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2], probs), -1)
    _, kept = non_max_suppression(
        centred.transpose(1, 2),
        conf_thres=conf,
        iou_thres=0.7,
        agnostic=True,
        max_det=topk,
        nc=3,
        return_idxs=True,
    )
    for each, b, p, index in zip(ours, boxes, probs, kept):
        assert torch.equal(each.boxes, b[index.flatten().long()])
        assert torch.equal(each.probs, p[index.flatten().long()])


def test_a_grid_is_made_once_and_can_be_trained_with(monkeypatch):
    """Also if a validation made it, whose tensors no gradient may pass."""
    made = []
    stock = grid.make_anchors
    monkeypatch.setattr(grid, "make_anchors", lambda *args: made.append(args) or stock(*args))
    grid._anchors.cache_clear()
    head = grid.Layout((8, 16), (4, 4), 3, 1, ("one2many",), "detect")
    with torch.inference_mode():
        grid.anchors([torch.zeros(2, 4, 8, 6), torch.zeros(2, 4, 4, 3)], head)
    points, strides = grid.anchors([torch.zeros(5, 4, 8, 6), torch.zeros(5, 4, 4, 3)], head)
    assert len(made) == 1 and not points.is_inference() and points.shape == (60, 2)
    assert points[:2].tolist() == [[0.5, 0.5], [1.5, 0.5]] and strides[[0, -1]].tolist() == [[8.0], [16.0]]
    (points * torch.ones(1, requires_grad=True)).sum().backward()
    grid.anchors([torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 2, 2)], head)
    assert len(made) == 2


def test_a_device_without_float64_suppresses_in_float32():
    assert detections.precise_dtype(torch.device("mps")) is torch.float32
    assert detections.precise_dtype(torch.device("cuda")) is torch.float64
