"""Checks of the first batches, on their own."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from ultralytics_kd.training.first_step import FirstStep


@pytest.fixture
def trainer():
    """Return what the checks read of a trainer."""
    student = SimpleNamespace(criterion=SimpleNamespace(inspect=None))
    return SimpleNamespace(model=student, optimizer=None, epoch=0, tloss={"kd_cls": torch.tensor(0.0)})


def distiller(fade: float = 1.0):
    return SimpleNamespace(terms={"kd_cls": None}, adapters=torch.nn.Module(), fade=fade)


def test_a_batch_that_ended_in_an_error_does_not_keep_its_graph(trainer):
    """After an out-of-memory error Ultralytics starts the epoch again with half the batch, and needs the memory."""
    first = FirstStep(distiller())
    term = torch.ones(3, requires_grad=True).exp().sum()
    kept = weakref.ref(term)
    first.inspect({"img": torch.zeros(1)}, {"kd_cls": term}, {"kd_cls": term})
    del term
    first.follow("on_train_epoch_start", trainer)
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("fade, warns", [(1.0, True), (0.0, False)])
def test_terms_that_the_schedule_has_turned_off_bring_no_warning(trainer, caplog, monkeypatch, fade, warns):
    monkeypatch.setattr("ultralytics.utils.LOGGER.propagate", True)
    first = FirstStep(distiller(fade))
    first.passed = True
    assert first.over != warns
    first.follow("on_train_epoch_end", trainer)
    assert ("kd_cls was 0 in every batch" in caplog.text) == warns
