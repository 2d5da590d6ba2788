"""Terms of semantic segmentation and depth: padding, limits, calibration, and several teachers."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from task_models import task_model
from test_task_terms import CPU, parts, task_batch

from ultralytics_kd import KDError
from ultralytics_kd.distillation.pairs import DensePair, not_padding
from ultralytics_kd.distillation.terms.dense import DepthTerm, PixelTerm
from ultralytics_kd.teachers import open_teacher

pytestmark = pytest.mark.core  # of .ci/releases


def padded(images: torch.Tensor, top: int, left: int, grey: float = 114 / 255) -> torch.Tensor:
    """Return images with their first rows and columns made padding."""
    images = images.clone()
    images[..., :top, :] = grey
    images[..., :, :left] = grey
    return images


@pytest.mark.parametrize("grey", [114 / 255, 0.31])  # as the letterbox leaves it, and after a change of brightness
def test_padding_is_distinguished_from_the_image(grey):
    images = torch.rand(2, 3, 32, 32)
    images[0, :, 20] = 0.5  # a grey row inside is a part of the image
    inside = not_padding(padded(images, 8, 4, grey))
    assert inside.shape == (2, 1, 32, 32)
    assert not inside[..., :8, :].any() and not inside[..., :4].any() and inside[..., 8:, 4:].all()
    assert not_padding(images).all()
    red = images.clone()
    red[:, 0, :8], red[:, 1:, :8] = 0.9, 0.1  # an even sky has a colour
    assert not_padding(red).all()


@pytest.mark.parametrize("term", [DepthTerm(), PixelTerm("kl", None), PixelTerm("cwd", None)])
def test_padding_has_no_gradient(term):
    torch.manual_seed(0)
    images = padded(torch.rand(2, 3, 64, 64), 32, 0)
    channels = 1 if isinstance(term, DepthTerm) else 3
    student, teacher = torch.rand(2, 2, channels, 16, 16) + 1
    student.requires_grad_()
    term(DensePair(student, teacher, images=images)).backward()
    assert not student.grad[:, :, :8].any() and student.grad[:, :, 8:].any()


@pytest.mark.parametrize("loss", ["kl", "cwd"])
def test_padding_does_not_change_the_loss_of_the_rest(loss):
    """The mean, or the softmax over positions, is over the image only, whatever the padding of the batch."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 1, 3, 16, 16)
    images, term = padded(torch.rand(1, 3, 64, 64), 32, 0), PixelTerm(loss, None)
    whole = term(DensePair(student[:, :, 8:], teacher[:, :, 8:]))
    torch.testing.assert_close(term(DensePair(student, teacher, images=images)), whole)


def test_batch_of_padding_only_has_a_loss_of_zero():
    images = torch.full((1, 3, 64, 64), 0.4)
    for term in (DepthTerm(), PixelTerm("kl", None), PixelTerm("cwd", None)):
        student = torch.ones(1, 1 if isinstance(term, DepthTerm) else 3, 16, 16, requires_grad=True)
        value = term(DensePair(student, torch.full_like(student, 2.0).detach(), images=images))
        value.backward()
        assert value.item() == 0 and not student.grad.any()


def calibrated(model, offset: float):
    """Return a copy of a depth model that Ultralytics has calibrated after its training."""
    model = deepcopy(model)
    model.model[-1].cal_b.fill_(offset)
    return model


def test_moving_average_of_a_calibrated_student_agrees_with_an_equal_student():
    """In training a student predicts uncalibrated depth: a calibrated target would make its scale drift."""
    student = calibrated(task_model("depth"), 0.5)
    from ultralytics.cfg import get_cfg

    from ultralytics_kd.distillation.distillers import build_distiller

    student.args = get_cfg(overrides={"teacher": "ema", "task": "depth"})
    teacher = open_teacher("ema", "depth")
    teacher.follow(student, lambda: student)
    teacher.match({0: "depth"})
    distiller = build_distiller(student.args, student, teacher)
    teacher.prepare(CPU, distiller.reads)
    batch = task_batch("depth")
    with torch.no_grad():
        answer = teacher(batch["img"])
        for m in student.modules():  # as in training, but for BatchNorm, which would make another model of it
            m.training = isinstance(m, type(student.model[-1]))
        assert distiller(student(batch["img"]), answer, batch=batch)["kd_depth"].item() == pytest.approx(0, abs=1e-5)


def test_teacher_answers_with_the_scale_that_it_was_calibrated_to():
    student, teacher, _, loss = parts("depth", calibrated(task_model("depth"), 0.5))
    student.load_state_dict(task_model("depth").state_dict())
    batch = task_batch("depth")
    batch["teacher"] = teacher(batch["img"])
    with torch.no_grad():
        apart = loss(student.eval()(batch["img"]), batch)[1]["kd_depth"]
    assert apart.item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("offset", [0.5, -0.5])
@pytest.mark.parametrize("log_depth", [-50.0, 50.0])
def test_limits_of_a_teacher_move_with_its_calibration(offset, log_depth):
    saturated = calibrated(task_model("depth"), offset)
    saturated.model[-1].head[-1].bias.data.fill_(log_depth)
    student, teacher, _, loss = parts("depth", saturated)
    batch = task_batch("depth")
    batch["teacher"] = teacher(batch["img"])
    assert loss(student(batch["img"]), batch)[1]["kd_depth"].item() == 0


def test_teacher_at_its_limits_does_not_spoil_the_mean_of_several():
    good, saturated = task_model("depth"), task_model("depth", seed=1)
    saturated.model[-1].head[-1].bias.data.fill_(50.0)
    alone, both = open_teacher(good, "depth"), open_teacher([good, saturated], "depth")
    images = torch.rand(2, 3, 64, 64)
    for teacher in (alone, both):
        teacher.match({0: "depth"})
        teacher.prepare(CPU)
    torch.testing.assert_close(both(images).value, alone(images).value)


@pytest.mark.parametrize("loss", ["kl", "cwd"])
def test_several_equal_teachers_of_pixels_answer_as_one_does(loss):
    teacher = open_teacher([task_model("semantic")] * 2, "semantic")
    teacher.match(teacher.members[0].names)
    teacher.prepare(CPU)
    images = torch.rand(2, 3, 64, 64)
    answer = teacher(images).value
    with torch.no_grad():
        one = teacher.members[0](images).value
    assert PixelTerm(loss, None)(DensePair(one, answer)).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("task", ["classify", "semantic"])
def test_moving_average_with_one_class_is_refused_for_a_softmax(task):
    teacher = open_teacher("ema", task)
    with pytest.raises(KDError, match="knows one of the 3 classes"):
        teacher.match({0: "a", 1: "b", 2: "c"}, keep=[1])


def test_classifier_whose_classes_are_all_one_is_refused():
    teacher = open_teacher(task_model("classify"), "classify")
    with pytest.raises(KDError, match="a softmax over one class carries no information: drop single_cls"):
        teacher.match(teacher.names, single_cls=True)
