"""kd_init=auto: a trained student begins with its own or with the teacher's weights, by the base loss of both."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import NAMES, QUICK, STUDENT, make_model, unwrapped
from task_models import task_model
from ultralytics import YOLO as StockYOLO
from ultralytics.cfg import get_cfg

from ultralytics_kd import YOLO
from ultralytics_kd.config.arguments import TASKS
from ultralytics_kd.demo.tasks import draw_task_dataset
from ultralytics_kd.teachers import open_teacher
from ultralytics_kd.trainer import KDDetectionTrainer
from ultralytics_kd.training import beginning
from ultralytics_kd.training.beginning import labels_loss

pytestmark = pytest.mark.fits
CERTAIN = {"good": -6.0, "bad": 3.0}  # class bias: a model that sees objects everywhere has a high loss


def saved(folder, kind: str, seed: int, **train_args) -> str:
    """Save a model that counts as trained, with a low or a high loss."""
    torch.manual_seed(seed)
    model = make_model(STUDENT)
    model.train()(torch.rand(4, 3, 64, 64))
    for tower in (*model.model[-1].cv3, *model.model[-1].one2one_cv3):
        tower[-1].bias.data.fill_(CERTAIN[kind])
        tower[-1].bias.data += 0.01 * torch.randn(3)
    for tower in (*model.model[-1].cv2, *model.model[-1].one2one_cv2):
        tower[-1].bias.data += 0.01 * torch.randn(4)
    model.names = dict(NAMES)
    path = folder / f"{kind}.pt"
    torch.save({"model": model, "train_args": {"task": "detect", **train_args}}, path)
    return str(path)


def begun(quick, tmp_path, student: str, teacher: str, **given) -> tuple[KDDetectionTrainer, dict, dict]:
    """Return a trainer whose student is matched with its teacher, and the weights of both files."""
    files = {kind: saved(tmp_path, kind, seed) for seed, kind in enumerate((student, teacher))}
    weights = {k: torch.load(f, weights_only=False)["model"].state_dict() for k, f in files.items()}
    trainer = KDDetectionTrainer(
        overrides={**quick, "model": files[student], "teacher": files[teacher], "kd_init": "auto", **given}
    )
    trainer.setup_model()
    return trainer, weights[student], weights[teacher]


def same(model, weights) -> bool:
    """Return whether a model has these weights, statistics included."""
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_trained_student_takes_the_weights_of_a_teacher_with_a_lower_loss(quick, tmp_path, caplog):
    trainer, _, teacher = begun(quick, tmp_path, "bad", "good")
    assert same(trainer.model, teacher)
    assert trainer.initialized == sum(p.numel() for p in trainer.model.parameters())
    assert "the student begins with the teacher's weights" in caplog.text


def test_a_size_that_ultralytics_rounds_up_is_rounded_for_it_too(quick, tmp_path):
    trainer, _, teacher = begun({**quick, "imgsz": 50}, tmp_path, "bad", "good")
    assert same(trainer.model, teacher)
    with pytest.raises(TypeError, match="is of invalid type"):
        begun({**quick, "imgsz": None}, tmp_path, "bad", "good")


def test_a_trained_student_keeps_weights_with_a_lower_loss_than_the_teachers(quick, tmp_path, caplog):
    trainer, own, _ = begun(quick, tmp_path, "good", "bad")
    assert same(trainer.model, own)
    assert not trainer.initialized and trainer.distillation.beginning.trained
    assert "the student begins with its own weights" in caplog.text


def test_a_part_that_lost_much_of_what_the_teacher_knew_is_not_taken(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(beginning, "MOST_LOST", 0.9)
    trainer, own, _ = begun(quick, tmp_path, "bad", "good")
    assert same(trainer.model, own) and not trainer.initialized


def test_a_trained_student_takes_nothing_from_a_teacher_of_other_classes(quick, tmp_path):
    classes = {NAMES[0]: NAMES[1], NAMES[1]: NAMES[0]}
    trainer, own, _ = begun(quick, tmp_path, "bad", "good", kd_classes=classes)
    assert same(trainer.model, own) and not trainer.initialized


def begun_beside(quick, tmp_path, **train_args) -> KDDetectionTrainer:
    """Return a trainer with a trained student, and a teacher with a lower loss and these arguments of its training."""
    student, teacher = saved(tmp_path, "bad", 0), saved(tmp_path, "good", 1, **train_args)
    trainer = KDDetectionTrainer(overrides={**quick, "model": student, "teacher": teacher, "kd_init": "auto"})
    trainer.setup_model()
    return trainer


def test_a_trained_student_keeps_its_weights_if_the_teacher_knows_nothing_but_these_data(quick, tmp_path, caplog):
    elsewhere = Path("/elsewhere", *Path(quick["data"]).parts[-2:])
    trainer = begun_beside(quick, tmp_path, model="yolo26s.yaml", pretrained=True, data=str(elsewhere))
    assert not trainer.initialized and trainer.distillation.beginning.trained
    own = torch.load(tmp_path / "bad.pt", weights_only=False)["model"]
    assert same(trainer.model, own.state_dict())
    assert "began with random ones and has seen nothing but these data" in unwrapped(caplog.text)


@pytest.mark.parametrize(
    "differently",
    [
        {"model": "yolo26s.pt"},
        {"pretrained": "yolo26s.pt"},
        {"data": "other.yaml"},
        {"data": "/elsewhere/another-set/data.yaml"},
        {"teacher": "yolo26x.pt"},
        {"data": None},
    ],
    ids=lambda given: str(next(iter(given.items()))),
)
def test_a_teacher_that_knows_more_than_these_data_gives_its_weights(quick, tmp_path, differently):
    train_args = {"model": "yolo26s.yaml", "pretrained": True, "data": quick["data"], **differently}
    assert begun_beside(quick, tmp_path, **train_args).initialized


@pytest.mark.parametrize("train_args", [{"model": "yolo26s.yaml"}, {"model": "yolo26s.pt", "pretrained": False}])
def test_a_model_in_memory_tells_too_that_it_was_trained_from_scratch(tmp_path, train_args):
    given = {"data": "set/data.yaml", "imgsz": 96, **train_args}
    file = saved(tmp_path, "good", 0, **given)
    trained = torch.load(file, weights_only=False)["model"]
    trained.args = get_cfg(overrides=given)  # as a trainer keeps them in its model
    for source in (file, StockYOLO(file), trained):
        assert open_teacher(source).scratch_data == "set/data.yaml"
    assert open_teacher(StockYOLO(file).model).trained_imgsz == 96  # Ultralytics keeps no more of its arguments
    resumed = saved(tmp_path, "bad", 0, data="set/data.yaml", model="last.pt", pretrained=False, resume="last.pt")
    assert open_teacher(resumed).scratch_data is None  # the checkpoint does not tell how it began


def test_the_weights_of_classes_in_the_teachers_training_do_not_make_its_loss_another(quick, tmp_path):
    student, teacher = saved(tmp_path, "bad", 0), saved(tmp_path, "good", 1)
    ckpt = torch.load(teacher, weights_only=False)
    ckpt["model"].class_weights = torch.full((3,), 1e-3)  # as `cls_pw` leaves them in a checkpoint
    torch.save(ckpt, teacher)
    trainer = KDDetectionTrainer(overrides={**quick, "model": student, "teacher": teacher, "kd_init": "auto"})
    trainer.setup_model()
    assert trainer.initialized


@pytest.mark.parametrize("how", [True, "fit"])
def test_without_auto_a_trained_student_keeps_its_weights(quick, tmp_path, how):
    trainer, own, _ = begun(quick, tmp_path, "bad", "good", kd_init=how)
    assert same(trainer.model, own) and not trainer.initialized


def test_the_loss_of_the_labels_is_that_of_ultralytics_and_leaves_the_model_alone(quick, tmp_path):
    model = make_model(STUDENT).train()
    model.args = get_cfg(overrides={"task": "detect"})
    before = deepcopy(model.state_dict())
    batch = {
        "img": torch.rand(2, 3, 64, 64),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.zeros(2, 1),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]] * 2),
    }
    value = labels_loss(model, [batch, batch])
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        expected = model.init_criterion()(model(batch["img"]), batch)[0].sum() / 2
    assert value == pytest.approx(float(expected))


@pytest.mark.parametrize("task", [t if t == "pose" else pytest.param(t, marks=pytest.mark.nightly) for t in TASKS])
def test_a_trained_student_of_every_task_keeps_weights_as_good_as_the_teachers(tmp_path, task):
    data = draw_task_dataset(tmp_path / "set", task, 6, 4, 64, seed=1)
    model = task_model(task)
    file = tmp_path / "teacher.pt"
    torch.save({"model": model, "train_args": {"task": task}}, file)
    quick = {**QUICK, "epochs": 1, "val": False, "project": str(tmp_path), "name": "run"}
    student = YOLO(str(file))
    student.train(**quick, data=str(data), teacher=str(file))
    assert student.trainer.distillation.beginning.trained and not student.trainer.initialized


@pytest.mark.parametrize("given", [{"rect": True}, {"imgsz": [64, 64]}, {"freeze": 2}, {"multi_scale": 0.5}])
def test_arguments_that_change_the_shape_of_batches_are_no_obstacle(quick, tmp_path, given, caplog):
    trainer, own, teacher = begun(quick, tmp_path, "bad", "good", **given)
    assert same(trainer.model, own if "freeze" in given else teacher)
