"""The teacher's answers to val images are computed once: neither it nor they change between epochs."""

from __future__ import annotations

import polars as pl
import pytest
import torch
from conftest import STUDENT, save_model

from ultralytics_kd import YOLO
from ultralytics_kd.outputs import Branch
from ultralytics_kd.teachers import Answer, GridTeacher, SetAnswer
from ultralytics_kd.training import answer_sources
from ultralytics_kd.training.answer_sources import ValAnswers, map_tensors

SAMPLE = 4 * 12  # bytes of the pixels that are kept of one image of 3 x 32 x 32 values


def batch(*files: str) -> dict:
    """Return a batch of the images of these files."""
    generator = torch.Generator().manual_seed(ord(files[0][0]))
    return {"img": torch.rand(len(files), 3, 32, 32, generator=generator), "im_file": files}


def answer(value: float, features: bool = True) -> dict:
    """Return what a teacher adds to a batch."""
    feats = [torch.full((1, 4, 8, 8), value)]
    branch = Branch(torch.full((1, 64, 3), value), torch.full((1, 64, 4), value), feats)
    return {"teacher": Answer({"one2many": branch}, None, "the teacher", [feats] if features else [[]])}


def test_an_answer_is_computed_once_and_stays_the_same():
    answers, computed = ValAnswers(), []
    for _ in range(3):
        for name in ("a.png", "b.png"):
            given = answers.get(batch(name), lambda name=name: (computed.append(name), answer(ord(name[0])))[1], True)
            assert torch.equal(
                given["teacher"].branches["one2many"].scores, torch.full((1, 64, 3), float(ord(name[0])))
            )
    assert computed == ["a.png", "b.png"]


def test_feature_maps_are_kept_only_where_terms_compare_them():
    size = 64 * 7 * 4 + SAMPLE
    without, with_features = ValAnswers(), ValAnswers()
    without.get(batch("a.png"), lambda: answer(1.0), keep_features=False)
    with_features.get(batch("a.png"), lambda: answer(1.0), keep_features=True)
    assert without.used == size and with_features.used == size + 4 * 64 * 4  # shared maps count once
    kept = with_features.get(batch("a.png"), lambda: answer(2.0), keep_features=True)["teacher"]
    assert kept.features[0][0] is kept.branches["one2many"].feats[0]


def test_memory_is_bounded_and_what_does_not_fit_is_computed_again():
    answers, computed = ValAnswers(limit=64 * 7 * 4 + SAMPLE), []
    for _ in range(2):
        for name in ("a.png", "b.png"):
            answers.get(batch(name), lambda name=name: (computed.append(name), answer(0.0))[1], False)
    assert computed == ["a.png", "b.png", "b.png"] and answers.used == 64 * 7 * 4 + SAMPLE


def test_images_that_were_augmented_since_are_answered_anew():
    answers, computed = ValAnswers(), []
    for flipped in (False, True, False):
        images = batch("a.png")
        images["img"] = images["img"].flip(-1) if flipped else images["img"]
        given = answers.get(images, lambda f=flipped: (computed.append(f), answer(float(f)))[1], True)
        assert given["teacher"].branches["one2many"].scores.mean() == flipped
    assert computed == [False, True]


def test_batches_without_files_are_computed_every_time():
    answers, computed = ValAnswers(), []
    for _ in range(2):
        answers.get({"img": torch.rand(1, 3, 32, 32)}, lambda: (computed.append(1), answer(0.0))[1], True)
    assert len(computed) == 2 and answers.used == 0


def test_derived_values_of_a_set_are_not_kept():
    sets = SetAnswer(torch.rand(2, 4), torch.rand(2, 3), torch.zeros(2), None)
    sets.instances((32, 32))
    assert sets._instances and not map_tensors(sets, torch.clone)._instances


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"kd_feat": 1.0},
        *(
            pytest.param(each, marks=pytest.mark.nightly)
            for each in ({"kd_feat": 0.0}, {"kd_feat": 1.0, "kd_feat_loss": "crosskd"})
        ),
    ],
)
def test_the_val_columns_are_those_of_a_teacher_that_answers_in_every_epoch(quick, teacher, monkeypatch, given):
    calls, run = [], GridTeacher._run
    monkeypatch.setattr(GridTeacher, "_run", lambda self, images: (calls.append(len(images)), run(self, images))[1])
    logs, counts = [], []
    for limit in (answer_sources.VAL_BYTES, 0):
        monkeypatch.setattr(ValAnswers.__init__, "__defaults__", (limit,))
        calls.clear()
        model = YOLO(STUDENT)
        model.train(**{**quick, "name": f"limit-{limit}", "epochs": 3}, teacher=teacher, **given)
        logs.append(pl.read_csv(model.trainer.csv).drop("time"))
        counts.append(sum(calls))
        assert model.trainer.distillation.answers._val_answers.used == 0  # they are freed with the teacher
    assert logs[0].equals(logs[1]) and logs[0]["val/kd_cls"].min() > 0
    assert counts[1] - counts[0] == 2 * 4  # two more passes over four val images


@pytest.mark.slow
def test_a_set_teacher_and_several_teachers_are_kept_too(quick, teacher, tmp_path, monkeypatch):
    other = str(save_model(tmp_path / "other.pt", "yolo11s.yaml"))
    monkeypatch.setattr(ValAnswers, "get", counted := Counted(ValAnswers.get))
    YOLO(STUDENT).train(**quick, teacher=[teacher, other])
    assert counted.computed < counted.asked


class Counted:
    """Counts how often an answer is asked for and computed."""

    def __init__(self, get):
        self.get, self.asked, self.computed = get, 0, 0

    def __get__(self, answers, kind):
        def get(batch: dict, compute, keep_features: bool) -> dict:
            self.asked += 1
            return self.get(answers, batch, lambda: self._count(compute), keep_features)

        return get

    def _count(self, compute):
        self.computed += 1
        return compute()
