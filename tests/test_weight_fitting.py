"""`kd_init=fit`: selected weights are refitted, layer by layer, to the teacher's activations."""

from __future__ import annotations

import random
import re
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import STUDENT, TEACHER, make_model
from conftest import smooth_images as images
from torch import nn
from ultralytics.nn.tasks import ClassificationModel, DetectionModel, OBBModel, PoseModel, SegmentationModel

from ultralytics_kd import YOLO, KDError, config
from ultralytics_kd.outputs.weight_fitting import _Fit
from ultralytics_kd.outputs.weight_selection import select_weights
from ultralytics_kd.trainer import KDDetectionTrainer
from ultralytics_kd.training.calibration import calibration_batches


def scores(model) -> torch.Tensor:
    """Return a model's one2many logits on images that no fit has seen."""
    with torch.no_grad():
        return model.eval()(images(4, seed=1))[1]["one2many"]["scores"]


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return make_model(TEACHER)


def start(teacher, fitted: bool, **given):
    """Return a student that starts from a teacher's weights."""
    torch.manual_seed(1)
    student = make_model(STUDENT)
    assert select_weights(student, teacher, images=images(32) if fitted else None, **given)
    return student


@pytest.mark.core
def test_a_fitted_student_predicts_more_like_its_teacher_than_one_whose_weights_were_selected(teacher):
    target = scores(teacher)
    selected, fitted = (((scores(start(teacher, f)) - target) ** 2).mean() / target.var() for f in (False, True))
    assert fitted < 0.8 * selected  # half as many channels cannot compute all of a random teacher


def test_two_fits_are_equal_and_leave_teacher_and_modes_as_they_were(teacher):
    before, training = deepcopy(teacher.state_dict()), teacher.training
    first, second = start(teacher, True), start(teacher, True)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert teacher.training is training and first.training
    assert not any(
        hook for m in (*teacher.modules(), *first.modules()) for hook in (m._forward_hooks, m._forward_pre_hooks)
    )


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_recovers_a_linear_target(groups, with_norm):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, padding=1, groups=groups, bias=not with_norm)
    norm = nn.BatchNorm2d(12) if with_norm else None
    source = nn.Conv2d(8, 12, 3, padding=1, groups=groups)
    x = torch.rand(4, 8, 16, 16)
    patches = nn.functional.unfold(x, 3, padding=1)
    inputs = patches.reshape(4, groups, -1, 256).permute(1, 0, 3, 2).reshape(groups, 1024, -1)
    with torch.no_grad():
        target = source(x).flatten(2).reshape(4, groups, -1, 256).permute(1, 0, 3, 2).reshape(groups, 1024, -1)
        fit = _Fit(conv, norm, torch.arange(12), inputs, target)
        fit.write()
        output = conv(x) if norm is None else norm.eval()(conv(x))
    assert fit.explained > 0.95
    assert ((output - source(x)) ** 2).mean() / source(x).var() < 0.05


def test_classes_that_the_teacher_does_not_know_keep_their_own_weights(teacher):
    torch.manual_seed(1)
    own = make_model(STUDENT).model[-1].cv3[0][-1].weight.clone()
    fitted = start(teacher, True, classes={0: 2}).model[-1].cv3[0][-1].weight
    assert torch.equal(fitted[1:], own[1:]) and not torch.equal(fitted[0], own[0])


def test_images_for_the_fit_do_not_touch_the_random_streams_of_the_training(quick, tmp_path):
    trainer = KDDetectionTrainer(overrides={**quick, "model": STUDENT})
    trainer.setup_model()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first, second = (
        torch.cat([batch["img"] for batch in calibration_batches(trainer, trainer.preprocess_batch)]) for _ in range(2)
    )
    assert first.shape == (8, 3, 64, 64) and 0 <= first.min() < first.max() <= 1 and torch.equal(first, second)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


@pytest.mark.core
@pytest.mark.slow
def test_a_training_starts_from_the_fit_and_says_how_good_it_is(quick, tmp_path, caplog):
    torch.manual_seed(0)
    path = tmp_path / "teacher.pt"
    model = make_model(TEACHER)
    model.names = {0: "disc", 1: "box", 2: "bar"}
    torch.save({"model": model, "train_args": {"task": "detect"}}, path)
    student = YOLO(STUDENT)
    student.train(**{**quick, "epochs": 1}, teacher=str(path), kd_init="fit", val=False)
    assert student.trainer.initialized > 0
    assert (
        "convolutions fitted to the teacher's" in caplog.text
        and "parameters are from the teacher (kd_init)" in caplog.text
    )


def test_other_values_of_kd_init_are_refused():
    with pytest.raises(KDError, match="'kd_init=fitted' is invalid: it must be True, False, fit or auto"):
        config.check_values({"kd_init": "fitted"})


TASKS = {
    "segment": (SegmentationModel, "yolo26{}-seg.yaml"),
    "pose": (PoseModel, "yolo26{}-pose.yaml"),
    "obb": (OBBModel, "yolo26{}-obb.yaml"),
    "classify": (ClassificationModel, "yolo26{}-cls.yaml"),
    "detect 11": (DetectionModel, "yolo11{}.yaml"),
    "detect 12": (DetectionModel, "yolo12{}.yaml"),
}


@pytest.mark.nightly
@pytest.mark.parametrize("task", TASKS)
def test_heads_of_all_tasks_are_fitted(task, caplog):
    """The inputs of the head come near to the teacher's channels that the student took over."""
    kind, cfg = TASKS[task]
    torch.manual_seed(0)
    student, teacher = (kind(cfg.format(scale), nc=3, verbose=False) for scale in "ns")
    for _ in range(3):
        teacher.train()(images(8))  # statistics of its norm layers
    teacher.eval()
    assert select_weights(student, teacher, images=images(16)) > 0
    assert all(p.isfinite().all() for p in student.state_dict().values())
    share = float(re.search(r"reproduce\s+([\d.]+)%", caplog.text)[1])
    assert share > 50
