"""The channels that a narrower student takes are those that matter to what its teacher predicts."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from conftest import STUDENT, TEACHER, make_model
from conftest import smooth_images as images
from torch import nn
from ultralytics.nn import tasks

from ultralytics_kd.outputs.channel_importance import Importance, foremost, measure_importance
from ultralytics_kd.outputs.channel_picks import Picks
from ultralytics_kd.outputs.weight_selection import select_weights

HEADS = {
    "detect": ("DetectionModel", "yolo26n.yaml"),
    "detect, one head": ("DetectionModel", "yolov8n.yaml"),
    "segment": ("SegmentationModel", "yolo26n-seg.yaml"),
    "pose": ("PoseModel", "yolo26n-pose.yaml"),
    "obb": ("OBBModel", "yolo26n-obb.yaml"),
    "classify": ("ClassificationModel", "yolo26n-cls.yaml"),
    "semantic": ("SemanticSegmentationModel", "yolo26n-sem.yaml"),
    "depth": ("DepthModel", "yolo26n-depth.yaml"),
}


def measured(values: torch.Tensor, change: list[float]) -> Importance:
    """Return the importance of channels with these activations, (channels, samples)."""
    values = (values - values.mean(1, keepdim=True)).double()
    return Importance(torch.tensor(change, dtype=torch.float64), values @ values.T)


def test_what_can_be_computed_from_taken_channels_is_not_taken():
    torch.manual_seed(0)
    free = torch.randn(3, 500)
    copies = torch.stack((free[0], 2 * free[0], free[0] + free[1], free[1], free[2]))
    assert foremost(measured(copies, [5.0, 4.0, 3.0, 2.0, 1.0]), 3).tolist() == [0, 3, 4]  # 2 is half explained by 0


def test_channels_that_depend_on_nothing_are_taken_by_what_they_change():
    torch.manual_seed(0)
    importance = measured(torch.linalg.qr(torch.randn(600, 6))[0].T, [1.0, 6.0, 2.0, 5.0, 3.0, 4.0])
    assert foremost(importance, 3).tolist() == [1, 3, 5] and foremost(importance, 6).tolist() == list(range(6))


@pytest.mark.core
def test_a_student_takes_the_channels_that_do_something():
    """Of a teacher in which every layer has as many silent channels as the student lacks."""
    torch.manual_seed(0)
    teacher, student = make_model(TEACHER), make_model(STUDENT)
    convs = {name: m.out_channels for name, m in teacher.named_modules() if isinstance(m, nn.Conv2d)}
    drawn = {name: Importance(torch.rand(count), torch.eye(count)) for name, count in convs.items()}
    live, modules = Picks(student, teacher, drawn), dict(teacher.named_modules())
    silenced = 0
    for name, pick in live.outputs.items():
        norm = modules.get(f"{name.removesuffix('conv')}bn")
        if norm is not None:
            silent = torch.ones(norm.num_features, dtype=torch.bool)
            silent[pick] = False
            norm.weight.data[silent] = norm.bias.data[silent] = 0
            silenced += int(silent.sum())
    assert silenced > 100
    assert select_weights(student, teacher, images=images(32))
    with torch.no_grad():
        ours, theirs = (m.eval()(images(4, seed=1))[1]["one2many"]["scores"] for m in (student, teacher))
    assert ((ours - theirs) ** 2).mean() < 0.02 * theirs.var()


def test_measuring_is_repeatable_and_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = make_model(TEACHER).requires_grad_(False).train()
    before, state = deepcopy(model.state_dict()), torch.get_rng_state()
    first, second = (measure_importance(model, images()) for _ in range(2))
    assert first and all(torch.equal(a, b) for k in first for a, b in zip(first[k], second[k]))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())


def test_a_head_that_is_not_known_gives_no_importance():
    model = make_model(STUDENT)
    model.model[-1].__class__ = type("Mine", (type(model.model[-1]),), {})
    assert measure_importance(model, images()) == {}


@pytest.mark.parametrize("task", HEADS)
def test_every_convolution_that_predicts_has_an_importance(task):
    kind, cfg = HEADS[task]
    if not hasattr(tasks, kind):
        pytest.skip("this release of Ultralytics does not have the task")
    torch.manual_seed(0)
    model = getattr(tasks, kind)(cfg, verbose=False).eval()
    found = measure_importance(model, images(2))
    convs = {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(found) > 0.9 * len(convs)
    assert all(each.change.shape == (convs[name],) and each.change.isfinite().all() for name, each in found.items())
    assert sum(bool(each.change.any()) for each in found.values()) > 0.9 * len(found)


def test_a_teacher_without_gradients_gives_evenly_spaced_channels_and_a_warning(caplog):
    torch.manual_seed(0)
    teacher, student = make_model(TEACHER).requires_grad_(False), make_model(STUDENT)

    def in_place(_, inputs):
        inputs[0].mul_(1.0)

    teacher.model[1].register_forward_pre_hook(in_place)
    assert select_weights(student, teacher, images=images(16))
    assert "channels are taken evenly spaced, as it gives no gradients" in caplog.text
    assert all(value.isfinite().all() for value in student.state_dict().values())
