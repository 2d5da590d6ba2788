"""Automatic weights of the terms: kd_weight."""

import pytest
import torch

from ultralytics_kd.distillation.balance import EVERY, FADES, LARGEST, Balance


def gradients(*rows):
    """Return losses whose gradients at the returned point are the rows."""
    point = torch.zeros(len(rows[0]), requires_grad=True)
    return [(point * torch.tensor(row)).sum() for row in rows], [point]


def measured(shares, base, *terms):
    """Return a balance that has seen one step with these gradients."""
    (loss, *losses), points = gradients(base, *terms)
    balance = Balance(shares)
    balance.update(loss, dict(zip(shares, losses)), points)
    return balance


def test_a_term_gets_its_share_of_the_labels_gradient_whatever_its_own_size():
    for size in (0.5, 2.0):
        factor = measured({"kd_cls": 0.5}, [2.0, 0.0], [size, 0.0]).factors()
        assert factor.item() * size == pytest.approx(0.5 * 2.0)


def test_each_term_has_a_share_of_its_own():
    balance = measured({"kd_cls": 0.5, "kd_box": 0.25}, [1.0, 0.0], [1.0, 0.0], [1.0, 0.0])
    assert balance.factors().tolist() == pytest.approx([0.5, 0.25])


def test_a_term_against_the_labels_is_off_and_one_across_them_is_faded():
    against = measured({"kd_cls": 0.5}, [1.0, 0.0], [-1.0, 0.1])
    across = measured({"kd_cls": 0.5}, [1.0, 0.0], [0.5 * FADES, 1.0])
    assert against.factors().item() == 0
    assert 0 < across.factors().item() < 0.5


def test_a_term_that_nearly_vanishes_is_not_blown_up():
    assert measured({"kd_cls": 0.5}, [1.0, 0.0], [1e-6, 0.0]).factors().item() == LARGEST
    assert measured({"kd_cls": 0.5}, [1.0, 0.0], [0.0, 0.0]).factors().item() == 0


def test_a_non_finite_gradient_changes_nothing():
    balance = measured({"kd_cls": 0.5}, [1.0, 0.0], [1.0, 0.0])
    (base, term), points = gradients([1.0, 0.0], [float("nan"), 0.0])
    balance.update(base, {"kd_cls": term}, points)
    assert balance.factors().item() == pytest.approx(0.5)


def test_gradients_are_measured_often_at_first_and_then_seldom(monkeypatch):
    steps = []
    balance = Balance({"kd_cls": 0.5})
    monkeypatch.setattr(balance, "_measure", lambda *_: steps.append(balance.step))
    (base, term), points = gradients([1.0], [1.0])
    for _ in range(2 * EVERY + 1):
        balance.update(base, {"kd_cls": term}, points)
    assert steps == [0, 1, 2, 4, 8, 16, 32, EVERY, 2 * EVERY]


def test_measuring_leaves_the_gradient_of_the_step_alone():
    weight = torch.ones(3, requires_grad=True)
    point = weight * 2
    base, term = (point**2).sum(), point.sum()
    Balance({"kd_cls": 0.5}).update(base, {"kd_cls": term}, [point])
    assert weight.grad is None
    (base + term).backward()
    assert weight.grad.tolist() == [10.0] * 3


def test_a_saved_state_goes_on_as_if_nothing_had_happened():
    first = measured({"kd_cls": 0.5}, [1.0, 0.0], [3.0, 1.0])
    second = Balance({"kd_cls": 0.5})
    second.load_state_dict(first.state_dict())
    (base, term), points = gradients([1.0, 1.0], [1.0, 0.5])
    for balance in (first, second):
        balance.update(base, {"kd_cls": term}, points)
    assert torch.equal(first.factors(), second.factors())
