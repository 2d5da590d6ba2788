"""The losses agree with the official implementations, handle edge cases, and their examples run."""

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ultralytics_kd import losses
from ultralytics_kd.config.arguments import ARGUMENTS, CLASS_LOSSES

pytestmark = pytest.mark.core  # of .ci/releases

GOLDEN = Path(__file__).parent / "golden"
VALUES = np.load(GOLDEN / "reference_losses.npz")
CASES = {
    "pkd": lambda s, t, z: losses.pkd(s, t),
    "cwd": lambda s, t, z: losses.cwd(s, t, tau=1.0),
    "cwd_tau4": lambda s, t, z: losses.cwd(s, t, tau=4.0),
    "mgd_distance": lambda s, t, z: losses.mgd_distance(s, t, alpha=2e-5),
    "crosskd_align": lambda s, t, z: losses.align(s, t).pow(2).sum(),
    "kl_tau1": lambda s, t, z: losses.kl(s, t, tau=1.0),
    "kl_tau4": lambda s, t, z: losses.kl(s, t, tau=4.0),
    "dist": lambda s, t, z: losses.dist(s, t, tau=1.0, beta=1.0, gamma=1.0),
    "dkd": lambda s, t, z: losses.dkd(s, t, z("labels"), tau=1.0, alpha=1.0, beta=8.0),
    "bckd_cls": lambda s, t, z: losses.bckd(s, t, avg_factor=7.0, beta=1.0),
    "crosskd_qfl": lambda s, t, z: losses.qfl(s, t, z("weight"), avg_factor=7.0, beta=1.0),
    "ld": lambda s, t, z: 0.25 * losses.ld(s, t, z("weight"), avg_factor=4.0, tau=10.0),
}


def test_every_reference_value_is_checked():
    """No entry of the reference file goes unused."""
    assert set(CASES) == set(json.loads((GOLDEN / "reference_losses.json").read_text()))


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_the_official_implementation(name):
    """Value and student gradient agree to 1e-5 relative; the teacher gets no gradient."""
    student = torch.from_numpy(VALUES[f"{name}.student"]).requires_grad_()
    teacher = torch.from_numpy(VALUES[f"{name}.teacher"]).requires_grad_()
    loss = CASES[name](student, teacher, lambda key: torch.from_numpy(VALUES[f"{name}.{key}"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(VALUES[f"{name}.loss"]), rel=1e-5)
    assert teacher.grad is None
    grad = torch.from_numpy(VALUES[f"{name}.grad"])
    assert (student.grad - grad).norm() <= 1e-5 * grad.norm()
    torch.testing.assert_close(student.grad, grad, rtol=1e-4, atol=1e-5 * grad.abs().max().item())


def test_dist_of_a_single_sample_has_no_relation_among_samples():
    logits = torch.randn(1, 5)
    assert losses.dist(logits, logits).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("adapted", [False, True])
def test_pkd_of_one_value_per_channel_is_zero(adapted):
    """The last batch of an epoch may have one image, and a vector has one position."""
    student, teacher = torch.randn(2, 1, 4, 1, 1)
    weight = torch.randn(4, 4, 1, 1, requires_grad=True)
    student.requires_grad_()
    loss = losses.pkd_adapted(student, weight, teacher) if adapted else losses.pkd(student, teacher)
    loss.backward()
    assert loss.item() == 0 and not student.grad.any()


def test_dkd_of_one_class_is_refused():
    with pytest.raises(ValueError, match="at least two classes"):
        losses.dkd(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))


MODULES = (losses.box, losses.feature, losses.logit, losses.task)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_every_public_loss_has_examples_that_run(module):
    tests = {test.name.rpartition(".")[2]: test for test in doctest.DocTestFinder().find(module)}
    assert all(tests[name].examples for name in module.__all__)
    assert doctest.testmod(module).failed == 0


def test_choices_of_the_arguments_are_the_names_in_the_tables_of_losses():
    """A loss is added in two files, its own and `config/arguments.py`; none is forgotten in either."""
    boxes = [*losses.box.BOX_LOSSES, *losses.box.BIN_LOSSES]
    assert sorted(ARGUMENTS["kd_box_loss"].choices) == sorted(boxes)
    assert set(losses.box.ROTATED_BOX_LOSSES) <= set(losses.box.BOX_LOSSES)
    assert set(ARGUMENTS["kd_feat_loss"].choices) == {*losses.feature.FEATURE_LOSSES, "crosskd"}
    tables = {
        "detect": losses.logit.ANCHOR_LOSSES,
        "classify": losses.logit.IMAGE_LOSSES,
        "semantic": losses.logit.PIXEL_LOSSES,
    }
    assert all(set(CLASS_LOSSES[task]) == set(table) for task, table in tables.items() if task in CLASS_LOSSES)
    assert set(ARGUMENTS["kd_cls_loss"].choices) == {"auto", *(name for table in tables.values() for name in table)}
