"""BatchNorm statistics after weight selection: what a student shows in eval mode is what it computes in training."""

from __future__ import annotations

import pytest
import torch
from conftest import STUDENT, TEACHER, make_model
from conftest import smooth_images as images
from torch import nn

from ultralytics_kd.outputs.norm_statistics import measure_statistics
from ultralytics_kd.outputs.weight_selection import select_weights


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    model = make_model(TEACHER)
    measure_statistics(model, images(32))
    return model.eval()


def largest_inputs(model: nn.Module, training: bool) -> dict[str, float]:
    """Return the largest value that each convolution reads, as the calibration of `quantize=8` takes it."""
    seen: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(lambda _, x, __, name=name: seen.__setitem__(name, float(x[0].abs().max())))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model.train(training)(images(32))
    for hook in hooks:
        hook.remove()
    return seen


def median_range(student: nn.Module) -> float:
    """Return what eval mode shows of the range that a training step has, the median over the convolutions."""
    shown, trained = largest_inputs(student, False), largest_inputs(student, True)
    return float(torch.tensor([shown[name] / max(trained[name], 1e-9) for name in shown]).median())


@pytest.mark.core
def test_ranges_of_a_selected_student_are_those_of_its_training(teacher):
    torch.manual_seed(1)
    plain, measured = make_model(STUDENT), make_model(STUDENT)
    select_weights(plain, teacher)
    select_weights(measured, teacher, images=images(32), fit=False)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), measured.parameters()))
    assert median_range(plain) < 0.7
    assert 0.9 < median_range(measured) < 1.1


def test_measured_statistics_are_those_of_the_images_and_nothing_else_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.03), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))
    model[1].running_mean.fill_(7.0)
    model[1].eval()  # as a frozen norm has it
    x, before, state = images(10), [p.clone() for p in model.parameters()], torch.get_rng_state()
    measure_statistics(model, x)
    z = model[0](x)
    torch.testing.assert_close(model[1].running_mean, z.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, z.var((0, 2, 3)))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert torch.equal(state, torch.get_rng_state()) and model[1].momentum == 0.03
    assert [m.training for m in model.modules()] == [True, True, False, True, True]


def test_all_images_count_alike_however_many_run_at_a_time(monkeypatch):
    norms = [nn.Sequential(nn.BatchNorm2d(3)) for _ in range(2)]
    measure_statistics(norms[0], images(10))
    monkeypatch.setattr("ultralytics_kd.outputs.norm_statistics.PIXELS", 4 * 64 * 64)
    measure_statistics(norms[1], images(10)[:9])  # three batches of three images
    torch.testing.assert_close(norms[1][0].running_mean, images(10)[:9].mean((0, 2, 3)))
    assert norms[1][0].num_batches_tracked == 3 and norms[0][0].num_batches_tracked == 1
