"""Entries of the base loss's class loss that count as unknown, not as background."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from test_teachers import batch_of, build
from ultralytics.cfg import get_cfg
from ultralytics.utils.tal import make_anchors

from ultralytics_kd import KDError
from ultralytics_kd.distillation.distillers import GridDistiller
from ultralytics_kd.distillation.ignored_background import (
    check_ignores_background,
    entries_inside,
    ignored_background,
)
from ultralytics_kd.distillation.loss import DistillationLoss
from ultralytics_kd.teachers import Instances, open_teacher

pytestmark = pytest.mark.core


def setup(cfg: str):
    """Return a student's loss, its predictions for a batch, whose gradient is kept, and what its classes' target is."""
    student = build(cfg, seed=1).train()
    student.args = get_cfg(overrides={"teacher": "t.pt"})
    teacher = open_teacher(build("yolo26n.yaml"))
    teacher.match(student.names)
    loss = DistillationLoss(student.init_criterion(), GridDistiller(student.args, student, teacher), student.model[-1])
    batch = batch_of()
    preds = student(batch["img"])
    branches = preds if "one2many" in preds else {"one2many": preds}
    target: dict[str, torch.Tensor] = {}
    for name, base in loss.bases.items():
        branches[name]["scores"].retain_grad()
        base.bce = partial(heard, base.bce, target, name)
    return loss, preds, branches, batch, target


def heard(bce, target: dict, name: str, scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Keep what a branch's scores shall become, and return their loss."""
    target[name] = wanted
    return bce(scores, wanted)


def gradients(loss, preds, branches, batch) -> tuple[torch.Tensor, dict, dict[str, torch.Tensor]]:
    """Return the base loss, its parts, and its gradient at the scores of each branch, shape (B, A, nc)."""
    for out in branches.values():
        out["scores"].grad = None
    total, items = loss.base(preds, batch)
    total.sum().backward(retain_graph=True)
    return total, items, {name: out["scores"].grad.transpose(1, 2).clone() for name, out in branches.items()}


@pytest.mark.parametrize("cfg", ["yolo26n.yaml", "yolo11n.yaml"])
def test_ignored_background_has_no_gradient_and_all_else_that_of_ultralytics(cfg):
    loss, preds, branches, batch, target = setup(cfg)
    whole, items, expected = gradients(loss, preds, branches, batch)
    torch.manual_seed(2)
    ignored = {name: torch.rand_like(g) < 0.5 for name, g in expected.items()}
    with ignored_background(loss.bases, ignored):
        part, part_items, got = gradients(loss, preds, branches, batch)
    for name, mask in ignored.items():
        unknown = mask & (target[name] == 0)
        assert expected[name][unknown].all() and not got[name][unknown].any()
        assert torch.equal(got[name][~unknown], expected[name][~unknown]) and got[name][~unknown].all()
    assert {k for k in items if not torch.equal(items[k], part_items[k])} == {"cls_loss"}
    assert 0 < part_items["cls_loss"] < items["cls_loss"] and part.sum() < whole.sum()
    again, _, after = gradients(loss, preds, branches, batch)
    assert torch.equal(again, whole) and all(torch.equal(after[k], expected[k]) for k in after)


def test_objects_are_never_ignored():
    loss, preds, branches, batch, target = setup("yolo26n.yaml")
    _, _, expected = gradients(loss, preds, branches, batch)
    with ignored_background(loss.bases, {name: torch.ones_like(g, dtype=torch.bool) for name, g in expected.items()}):
        _, _, got = gradients(loss, preds, branches, batch)
    for name, g in got.items():
        assert torch.equal(g != 0, target[name] > 0) and torch.equal(g[g != 0], expected[name][g != 0]) and g.any()


def test_blocks_add_up_and_an_error_ends_them():
    loss, preds, branches, batch, target = setup("yolo26n.yaml")
    shapes = {name: out["scores"].transpose(1, 2) for name, out in branches.items()}
    first = {name: torch.zeros_like(s, dtype=torch.bool) for name, s in shapes.items()}
    second = {"one2one": first["one2one"].clone()}
    first["one2one"][0], second["one2one"][1] = True, True
    own = {name: base.bce for name, base in loss.bases.items()}
    with pytest.raises(ZeroDivisionError), ignored_background(loss.bases, first):
        with ignored_background(loss.bases, second):
            _, _, got = gradients(loss, preds, branches, batch)
        assert torch.equal(got["one2one"] != 0, target["one2one"] > 0) and got["one2many"].all()
        raise ZeroDivisionError
    assert all(base.bce is own[name] for name, base in loss.bases.items())


def test_entries_are_those_of_the_classes_at_anchor_points_inside_the_boxes():
    loss, _, branches, *_ = setup("yolo26n.yaml")
    points, strides = make_anchors(branches["one2many"]["feats"], loss.base.one2many.stride, 0.5)
    points = points * strides
    boxes = torch.tensor([[0.0, 0, 64, 128], [32, 32, 96, 96], [10, 10, 12, 12]])
    some = Instances(boxes, torch.zeros(3), torch.tensor([0, 0, 1]), torch.ones(3))
    classes = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    mask = entries_inside(some, classes, loss.base.one2many.assigner, points, 2)
    x, y = points.unbind(1)
    left, middle = x < 64, (x > 32) & (x < 96) & (y > 32) & (y < 96)
    assert torch.equal(mask[0], torch.stack((left | middle, middle, torch.zeros_like(left)), 1))
    assert not mask[1, :, :2].any() and mask[1, :, 2].any()  # as for labels, a tiny box reaches some points around it
    none = Instances(boxes[:0], torch.zeros(0), torch.zeros(0).long(), torch.ones(0))
    assert not entries_inside(none, classes[:0], loss.base.one2many.assigner, points, 2).any()


def test_a_loss_without_a_class_loss_of_ultralytics_is_refused():
    loss, *_ = setup("yolo26n.yaml")
    check_ignores_background(loss.bases, "kd_x=1")
    with pytest.raises(KDError, match="'kd_x=1' needs Ultralytics' own loss, and object has no `bce`: drop one"):
        check_ignores_background({"one2many": object()}, "kd_x=1")
