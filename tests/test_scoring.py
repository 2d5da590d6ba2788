"""A teacher that cannot be scored at the end of a run, and one that was trained at another image size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import STUDENT, TEACHER, make_model, save_model
from task_models import task_model

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.cache import make_cache
from ultralytics_kd.distillation.distillers.grid import GridDistiller
from ultralytics_kd.teachers import open_teacher
from ultralytics_kd.teachers.sizes import size_warnings, trained_size
from ultralytics_kd.teachers.validation import check_scorable
from ultralytics_kd.training.answer_sources import CachedTeacher
from ultralytics_kd.training.scores import evaluation


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    """Return a teacher whose checkpoint says that it was trained at 640 px."""
    path = save_model(tmp_path_factory.mktemp("size") / "640.pt", TEACHER)
    ckpt = torch.load(path, weights_only=False)
    torch.save({**ckpt, "train_args": {"task": "detect", "imgsz": 640}}, path)
    return str(path)


# Scores ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [[5, 3], [5, 2], [17, 2]])
def test_pose_teacher_of_other_keypoints_than_the_data_is_not_scored(shape):
    teacher = open_teacher(type(task_model("pose"))("yolo26n-pose.yaml", nc=6, verbose=False), "pose")
    message = r"^teacher=PoseModel in memory predicts keypoints of kpt_shape \[17, 3\] and the data has "
    with pytest.raises(KDError, match=message):
        check_scorable(teacher, {"kpt_shape": shape})
    check_scorable(teacher, {"kpt_shape": [17, 3]})


def test_teacher_without_keypoints_is_scored_on_any_data(teacher):
    check_scorable(open_teacher(teacher), {"names": {0: "a"}})
    check_scorable(open_teacher(teacher), {"kpt_shape": [5, 3]})


def test_run_with_a_teacher_that_cannot_be_scored_says_why_and_makes_no_report(warnings, tmp_path, monkeypatch):
    teacher = open_teacher(type(task_model("pose"))("yolo26n-pose.yaml", nc=6, verbose=False), "pose")
    distillation = SimpleNamespace(teacher=teacher, teacher_metrics={}, open_again=lambda data: None, keeping=None)
    trainer = SimpleNamespace(
        data={"names": {0: "a"}, "kpt_shape": [5, 3]}, metrics={"fitness": 1.0}, world_size=1, save_dir=tmp_path
    )
    trainer.best = tmp_path / "best.pt"
    monkeypatch.setattr(evaluation, "report_training", pytest.fail)
    evaluation.score_teacher(distillation, trainer, pytest.fail)
    trainer.last = trainer.best
    evaluation.write_report(distillation, trainer)
    reason = "predicts keypoints of kpt_shape [17, 3] and the data has [5, 3]: it cannot be scored on it."
    assert len(warnings) == 2 and all(reason in sentence for sentence in warnings)
    assert "Only the teacher's scores are missing; the student is whole." in warnings[0]
    assert f"the report in {tmp_path / 'report'} could not be written: teacher=" in warnings[1]
    assert trainer.metrics == {"fitness": 1.0}


def test_student_with_another_head_is_named(teacher):
    args = SimpleNamespace(model="mine.yaml", seed=0)
    with pytest.raises(KDError, match=r"^model=mine.yaml ends in 'Linear', not in a YOLO head"):
        GridDistiller(args, torch.nn.Linear(2, 2), open_teacher(teacher))


# Sizes ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("imgsz, warns", [(319, True), (320, False), (640, False), (1279, False), (1280, True)])
def test_very_different_sizes_than_the_teachers_own_are_warned_of(small, imgsz, warns):
    teacher = open_teacher(small)
    sentences = size_warnings(teacher.members, imgsz)
    assert len(sentences) == warns
    advice = "add kd_teacher_imgsz=640" if imgsz < 640 else "set imgsz nearer to 640"
    assert all(f"teacher={small} was trained at 640 px and sees {imgsz} px" in s and advice in s for s in sentences)


def test_the_advice_for_another_size_is_what_the_teacher_allows():
    shared = {"source": "t.pt", "trained_imgsz": 640, "fixed_imgsz": None}
    pose, detector = (SimpleNamespace(**shared, task=task) for task in ("pose", "detect"))
    assert size_warnings([pose], 64)[0].endswith(": set imgsz nearer to 640.")
    assert size_warnings([detector], 64, own_images=True)[0].endswith(": set kd_teacher_imgsz nearer to 640.")
    assert size_warnings([detector], 64, "folder")[0].endswith(": make its answers with kd_cache_imgsz=640.")


@pytest.mark.parametrize(
    "ckpt, size",
    [
        ({"train_args": {"imgsz": 320}}, 320),
        ({"train_args": {"imgsz": [320, 640]}}, 640),
        ({"train_args": {"imgsz": "large"}}, None),
        ({"train_args": {"imgsz": 0}}, None),
        ({"train_args": {"imgsz": []}}, None),
        ({"train_args": {}}, None),
        ({"train_args": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_size_of_the_training_is_read_from_the_checkpoint(ckpt, size):
    assert trained_size(ckpt) == size


def test_size_is_known_of_files_and_of_models_that_are_from_files(small, teacher):
    assert open_teacher(small).trained_imgsz == open_teacher(YOLO(small)).trained_imgsz == 640
    assert open_teacher(teacher).trained_imgsz is None  # its checkpoint does not tell; 640 is Ultralytics' default
    assert open_teacher(make_model(TEACHER)).trained_imgsz is None
    assert [m.trained_imgsz for m in open_teacher([small, teacher]).members] == [640, None]


def test_a_run_says_once_that_its_teacher_is_of_another_size(quick, small, warnings):
    YOLO(STUDENT).train(**{**quick, "epochs": 1}, teacher=small)
    assert sum("was trained at 640 px and sees 64 px" in sentence for sentence in warnings) == 1


def test_with_stored_answers_their_size_counts_unless_they_were_made_in_this_run(small):
    teacher, store = open_teacher(small), SimpleNamespace(folder="answers", manifest=lambda: SimpleNamespace(imgsz=64))
    (sentence,) = CachedTeacher(store, None, teacher).size_warnings(640)
    assert "sees 64 px for kd_cache=answers" in sentence
    assert CachedTeacher(store, None, teacher, made=True).size_warnings(640) == []  # the making has logged it
    store.manifest = lambda: SimpleNamespace(imgsz=640)
    assert CachedTeacher(store, None, teacher).size_warnings(64) == []


@pytest.mark.nightly
def test_with_stored_answers_the_size_that_they_were_computed_at_counts(quick, small, data, tmp_path, warnings):
    given = {"teacher": small, "data": data, "workers": 0, "device": "cpu", "kd_cache_scales": 1}
    make_cache({**given, "imgsz": 64, "kd_cache_imgsz": 320, "kd_cache": str(tmp_path / "own")})
    YOLO(STUDENT).train(**{**quick, "epochs": 1}, teacher=small, kd_cache=str(tmp_path / "own"))
    assert not any("was trained at" in sentence for sentence in warnings)
    YOLO(STUDENT).train(**{**quick, "epochs": 1, "name": "small"}, teacher=small, kd_cache=True)
    said = [sentence for sentence in warnings if "was trained at 640 px and sees 64 px for kd_cache=" in sentence]
    assert len(said) == 1
    folder = said[0].partition("kd_cache=")[2].partition(",")[0]
    warnings.clear()
    YOLO(STUDENT).train(**{**quick, "epochs": 1, "name": "again"}, teacher=small, kd_cache=folder)
    assert sum(f"kd_cache={folder}" in sentence and Path(folder).is_dir() for sentence in warnings) == 1
