"""Trained or not is seen on the weights that arrived, and the start table counts where they came from."""

from __future__ import annotations

import pytest
import torch
from conftest import STUDENT, TEACHER, make_model, save_model
from ultralytics.nn.tasks import ClassificationModel, DetectionModel, PoseModel

from ultralytics_kd import YOLO
from ultralytics_kd.outputs.weight_origin import never_trained, trained_parameters
from ultralytics_kd.trainer import KDDetectionTrainer
from ultralytics_kd.training.beginning import Beginning
from ultralytics_kd.training.scores import tables


def share(model) -> float:
    """Return the share of a model's parameters that are trained."""
    parameters = list(trained_parameters(model))
    assert sum(p.numel() for p, _ in parameters) == sum(p.numel() for p in model.parameters())
    return sum(p.numel() for p, trained in parameters if trained) / sum(p.numel() for p, _ in parameters)


@pytest.mark.core
@pytest.mark.parametrize(
    "kind, cfg",
    [
        *((DetectionModel, cfg) for cfg in (STUDENT, "yolo26n.yaml", "yolov8n.yaml", "yolo12n.yaml")),
        (PoseModel, "yolo26n-pose.yaml"),
        (ClassificationModel, "yolo26n-cls.yaml"),
    ],
)
def test_a_new_model_has_no_trained_parameter(kind, cfg):
    model = kind(cfg, verbose=False)
    assert share(model) == 0 and never_trained(model)
    model.train()(torch.rand(2, 3, 64, 64))  # statistics alone tell
    assert share(model) > 0.9 and not never_trained(model)


def test_a_fused_model_counts_as_trained():
    assert share(make_model(STUDENT).eval().fuse(verbose=False)) == 1


def test_layers_that_ultralytics_made_anew_for_other_classes_are_not_trained():
    source, student = make_model(STUDENT, nc=3), DetectionModel(STUDENT, nc=5, verbose=False)
    for tower in (*source.model[-1].cv3, *source.model[-1].one2one_cv3, *source.model[-1].cv2):
        torch.nn.init.normal_(tower[-1].bias)
    student.load(source, verbose=False)
    names = {id(p): name for name, p in student.named_parameters()}
    untrained = {names[id(p)] for p, trained in trained_parameters(student) if not trained}
    head = len(student.model) - 1
    last = {f"model.{head}.{t}.{i}.2.{p}" for t in ("cv3", "one2one_cv3") for i in range(3) for p in ("weight", "bias")}
    assert last <= untrained and all(name.startswith(f"model.{head}.") for name in untrained)


def started(quick, teacher, **given) -> KDDetectionTrainer:
    """Return a trainer whose student is matched with its teacher."""
    trainer = KDDetectionTrainer(overrides={**quick, "teacher": teacher, **given})
    trainer.setup_model()
    return trainer


@pytest.mark.core
@pytest.mark.parametrize("case", ["nothing fits", "saved untrained", "pretrained=False"])
def test_a_student_whose_weights_did_not_arrive_starts_from_its_teacher(quick, teacher, tmp_path, case):
    other = str(save_model(tmp_path / "other.pt", "yolo11n.yaml"))
    own = str(save_model(tmp_path / "own.pt", STUDENT))
    new = DetectionModel(STUDENT, nc=3, verbose=False)
    torch.save({"model": new, "train_args": {"task": "detect"}}, tmp_path / "new.pt")
    given = {
        "nothing fits": {"model": STUDENT, "pretrained": other},
        "saved untrained": {"model": str(tmp_path / "new.pt")},
        "pretrained=False": {"model": own, "pretrained": False},
    }[case]
    trainer = started(quick, teacher, **given)
    assert trainer.initialized and 2 * trainer.distillation.beginning.own < sum(
        p.numel() for p in trainer.model.parameters()
    )


@pytest.mark.core
def test_a_student_that_arrived_trained_keeps_its_weights(quick, teacher, tmp_path):
    own = str(save_model(tmp_path / "own.pt", STUDENT))
    for given in ({"model": own}, {"model": STUDENT, "pretrained": own}):
        trainer = started(quick, teacher, **given)
        assert not trainer.initialized and trainer.distillation.beginning.own


@pytest.mark.parametrize(
    "asked, own, initialized, text",
    [
        (True, 49890, 0, "the student's own"),
        (True, 0, 49890, "49,890 of 49,890 parameters are from the teacher (kd_init)"),
        (False, 0, 0, "random (kd_init=False)"),
        (True, 0, 0, "random (kd_init: the teacher is no model of the same kind, as big or bigger, or is fused)"),
        (True, 49000, 0, "49,000 of 49,890 parameters are the student's own, 890 are random"),
        (True, 90, 49800, "90 of 49,890 parameters are the student's own, 49,800 are from the teacher (kd_init)"),
        (False, 90, 0, "90 of 49,890 parameters are the student's own, 49,800 are random (kd_init=False)"),
    ],
)
def test_the_start_table_counts_where_the_weights_came_from(asked, own, initialized, text):
    beginning = Beginning(own, initialized, bool(own or initialized))
    student = DetectionModel(STUDENT, nc=3, verbose=False)
    assert tables.initial_weights(student, asked, beginning) == text
    assert tables.initial_weights(student, asked, beginning, resumed=True) == "those of the interrupted run"


@pytest.mark.nightly
def test_a_teacher_that_was_never_trained_is_named(quick, caplog):
    untrained = DetectionModel(TEACHER, nc=3, verbose=False)
    untrained.names = {0: "disc", 1: "box", 2: "bar"}
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1}, teacher=untrained)
    assert "was never trained: its weights are random" in caplog.text


def test_a_convolution_whose_norm_alone_fits_a_file_is_untrained():
    """Of YOLO26m's weights 45% of YOLO26s's parameters fit, and with norms whose convolutions do not fit, 61%."""
    source, student = (DetectionModel(f"yolo26{scale}.yaml", nc=80, verbose=False) for scale in "ms")
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    weights = source.state_dict()
    fit = {k for k, p in student.named_parameters() if k in weights and weights[k].shape == p.shape}
    student.load(source, verbose=False)
    origin = {id(p): is_trained for p, is_trained in trained_parameters(student)}
    trained = {k for k, p in student.named_parameters() if origin[id(p)]}
    assert trained < fit and all(k.endswith(".2.bias") for k in fit - trained)  # outputs whose weights do not fit
    own = sum(p.numel() for k, p in student.named_parameters() if k in trained)
    total = sum(p.numel() for p in student.parameters())
    assert 0.4 * total < own < 0.5 * total
