"""Automatic weights of the terms: kd_weight."""

import pytest
import torch
from conftest import unwrapped
from test_terms import setup
from ultralytics.cfg import get_cfg

from ultralytics_kd import YOLO, config
from ultralytics_kd.config.arguments import AUTO_SHARE
from ultralytics_kd.distillation.balance import EVERY, FADES, LARGEST, OFF, Balance
from ultralytics_kd.errors import KDError


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


def test_a_term_against_or_across_the_labels_is_off_and_one_nearly_across_them_is_faded():
    against = measured({"kd_cls": 0.5}, [1.0, 0.0], [-1.0, 0.1])
    nearly_across = measured({"kd_cls": 0.5}, [1.0, 0.0], [(FADES + OFF) / 2, 1.0])
    across = measured({"kd_cls": 0.5}, [1.0, 0.0], [0.9 * OFF, 1.0])
    assert against.factors().item() == across.factors().item() == 0
    assert 0 < nearly_across.factors().item() < 0.5


def test_a_term_that_nearly_vanishes_is_not_blown_up():
    assert measured({"kd_cls": 0.5}, [1.0, 0.0], [1e-6, 0.0]).factors().item() == LARGEST


def test_a_term_without_a_gradient_at_the_points_keeps_its_constant_weight_and_is_named():
    balance = measured({"kd_cls": 0.5, "kd_feat": 0.5}, [1.0, 0.0], [1.0, 0.0], [0.0, 0.0])
    assert balance.factors().tolist() == [0.5, 1.0]
    assert balance.news() == [
        "kd_weight leaves kd_feat at its constant weight: it has no gradient where gradients are compared."
    ]
    assert balance.news() == []


def test_images_without_labels_change_no_factor():
    point = torch.ones(4, 2, requires_grad=True)
    base = (point[:2] * torch.tensor([1.0, 0.5])).sum()  # of the two images with labels
    factors = []
    for term in ((point[:2] * torch.tensor([0.5, 2.0])).sum(), (point * torch.tensor([0.5, 2.0])).sum()):
        balance = Balance({"kd_cls": 0.5})
        balance.update(base, {"kd_cls": term}, [point], labeled=2)
        factors.append(balance.factors().item())
    assert factors[0] == pytest.approx(factors[1])


def test_a_non_finite_gradient_changes_nothing():
    balance = measured({"kd_cls": 0.5}, [1.0, 0.0], [1.0, 0.0])
    (base, term), points = gradients([1.0, 0.0], [float("nan"), 0.0])
    balance.update(base, {"kd_cls": term}, points)
    assert balance.factors().item() == pytest.approx(0.5)


def test_a_step_with_a_non_finite_answer_changes_no_factor():
    balance = measured({"kd_cls": 0.5}, [1.0, 0.0], [1.0, 0.0])
    (base, term), points = gradients([1.0, 0.0], [0.0, 9.0])  # of an answer that was replaced by zeros
    balance.update(base, {"kd_cls": term}, points, counts=torch.tensor(0.0))
    assert balance.factors().item() == pytest.approx(0.5)


def test_a_student_with_a_frozen_body_is_measured_at_the_outputs_of_its_head():
    student, _, distiller, batch, loss = setup("yolo26n.yaml", "yolo26s.yaml", kd_cls=1.0, kd_box=1.0, kd_weight=0.5)
    for layer in student.model[:-1]:
        layer.requires_grad_(False)
    total, _ = loss(student(batch["img"]), batch)
    assert total.requires_grad and (distiller.balance.ratios() > 0).all()
    assert not any("has no gradient" in sentence for sentence in distiller.balance.news())


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


def norm_at_the_neck(loss: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
    """Return the norm of a loss's gradient at feature maps."""
    gradients = torch.autograd.grad(loss, maps, retain_graph=True)
    return torch.cat([g.flatten() for g in gradients]).norm()


@pytest.mark.parametrize("weight, share", [("auto", AUTO_SHARE), (0.2, 0.2)])
def test_the_terms_of_a_step_have_their_shares_at_the_maps_that_enter_the_head(weight, share, monkeypatch):
    monkeypatch.setattr("ultralytics_kd.distillation.balance.FADES", 1e-9)  # random models agree in nothing
    monkeypatch.setattr("ultralytics_kd.distillation.balance.OFF", -1.0)
    monkeypatch.setattr("ultralytics_kd.distillation.balance.LARGEST", 1e9)
    args = {"kd_cls": 2.0, "kd_box": 4.0, "kd_weight": weight}
    student, _, distiller, batch, loss = setup("yolo26n.yaml", "yolo26s.yaml", **args)
    preds = student(batch["img"])
    total, _ = loss(preds, batch)
    maps = preds["one2many"]["feats"]
    base, terms = total[:3].sum(), total[3:]
    agree = distiller.balance.cosines().add(1).clamp(max=1).tolist()  # of the fade between -1 and 0
    for term, part, asked in zip(terms, agree, (share, share / 2)):  # half the default weight is half the share
        assert float(norm_at_the_neck(term, maps) / norm_at_the_neck(base, maps)) == pytest.approx(
            asked * part, rel=1e-3
        )


def test_validation_and_the_moving_average_use_the_weights_of_training_and_measure_nothing():
    student, _, distiller, batch, loss = setup("yolo26n.yaml", "yolo26s.yaml", kd_cls=2.0, kd_weight="auto")
    loss(student(batch["img"]), batch)
    step, factor = distiller.balance.step, distiller.balance.factors()
    with torch.no_grad():
        preds = student.eval()(batch["img"])
        value = loss(preds, batch)[1]["kd_cls"]
        distiller.balance = None
        assert value == pytest.approx(float(factor * loss(preds, batch)[1]["kd_cls"]))
    assert step == 1


@pytest.mark.slow
def test_a_training_says_what_share_each_term_has_and_when_one_is_turned_off(quick, teacher, caplog, monkeypatch):
    monkeypatch.setattr("ultralytics_kd.distillation.balance.OFF", 2.0)  # no term agrees so well
    monkeypatch.setattr("ultralytics_kd.distillation.balance.FADES", 3.0)
    YOLO("yolo26n.yaml").train(**{**quick, "epochs": 2}, teacher=teacher, kd_weight=0.3, kd_box=0.0)
    assert "at 0.3 of the labels' gradient, loss bckd" in unwrapped(caplog.text)
    assert caplog.text.count("kd_cls is turned off") == 1


@pytest.mark.parametrize(
    "value, message",
    [
        ("much", "'kd_weight=much' is invalid: it must be auto or a number"),
        (True, "'kd_weight=True' is invalid"),
        (0, "greater than 0"),
        (float("nan"), "greater than 0"),
    ],
)
def test_other_values_are_refused(value, message):
    with pytest.raises(KDError, match=message):
        config.check_values({"kd_weight": value})


def test_a_compiled_student_is_refused():
    arguments = get_cfg(overrides={"task": "detect", "teacher": "t.pt", "kd_weight": "auto", "compile": True})
    with pytest.raises(KDError, match="'kd_weight' and 'compile' exclude each other"):
        config.check_combination(vars(arguments))
