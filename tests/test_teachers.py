"""Teachers of every kind: other families, RT-DETR, several, the student's own average, models from elsewhere."""

from __future__ import annotations

import functools
import shutil
from copy import deepcopy
from pathlib import Path

import cv2
import pytest
import torch
from conftest import NAMES, make_model, save_model, unwrapped
from ultralytics import YOLO as StockYOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils import YAML
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.distillation.distillers import GridDistiller
from ultralytics_kd.distillation.loss import DistillationLoss
from ultralytics_kd.teachers import Reads, SetAnswer, open_teacher
from ultralytics_kd.teachers.ensemble import GridEnsemble, SetEnsemble

CPU = torch.device("cpu")
STUDENTS = ["yolo26n.yaml", "yolo12n.yaml", "yolo11n.yaml", "yolov8n.yaml", "yolov8n-p2.yaml", "yolo26n-p6.yaml"]
TEACHERS = [*STUDENTS, "yolov10n.yaml", "yolov8n-rtdetr.yaml"]
DAILY = {  # pairs of student and teacher that train for every change: almost every family is in one of them
    ("yolo26n.yaml", "yolo11n.yaml"),
    ("yolov8n.yaml", "yolo26n.yaml"),
    ("yolo12n.yaml", "yolov8n-rtdetr.yaml"),
    ("yolo26n-p6.yaml", "yolov10n.yaml"),
}


@functools.cache
def _built(cfg: str, seed: int = 0):
    torch.manual_seed(seed)
    if "rtdetr" not in cfg:
        return make_model(cfg)
    model = RTDETRDetectionModel(cfg, nc=3, verbose=False)
    decoder = model.model[-1]
    for layer in decoder.dec_score_head:  # sure of some of its queries, as a trained one is
        torch.nn.init.normal_(layer.weight, std=0.2)
        torch.nn.init.constant_(layer.bias, -1.0)
    for layer in (decoder.enc_bbox_head, *decoder.dec_bbox_head):
        torch.nn.init.normal_(layer.layers[-1].weight, std=0.1)
    return model.eval()


def build(cfg: str, seed: int = 0):
    """Return a model of its own."""
    model = deepcopy(_built(cfg, seed))
    model.names = dict(NAMES)
    return model


def batch_of(images: int = 2, imgsz: int = 128) -> dict:
    """Return images with two labelled objects each."""
    torch.manual_seed(1)
    boxes = torch.tensor([[0.3, 0.4, 0.3, 0.4], [0.7, 0.6, 0.4, 0.3]])
    return {
        "img": torch.rand(images, 3, imgsz, imgsz),
        "batch_idx": torch.arange(images).repeat_interleave(2).float(),
        "cls": torch.tensor([[0.0], [2.0]]).repeat(images, 1),
        "bboxes": boxes.repeat(images, 1),
    }


def pair(student_cfg: str, teacher, **args):
    """Return student, prepared teacher, distiller and the student's loss."""
    student = build(student_cfg, seed=1).train()
    student.args = get_cfg(overrides={"teacher": "t.pt", **args})
    teacher = teacher if hasattr(teacher, "prepare") else open_teacher(teacher)
    if teacher.classes is None:
        teacher.match(NAMES)
    distiller = GridDistiller(student.args, student, teacher)
    teacher.prepare(CPU, distiller.reads)
    return student, teacher, distiller, DistillationLoss(student.init_criterion(), distiller, student.model[-1])


def fit(student, teacher, distiller, loss, batch: dict, steps: int = 30, optimizer=torch.optim.AdamW) -> list[dict]:
    """Train on one batch, and return the items of every step."""
    optimizer = optimizer([*student.parameters(), *distiller.adapters.parameters()], lr=2e-3)
    batch = {**batch, "teacher": teacher(batch["img"])}
    log = []
    for _ in range(steps):
        total, items = loss(student(batch["img"]), batch)
        optimizer.zero_grad()
        total[3:].sum().backward()  # an untrained teacher contradicts the labels
        optimizer.step()
        log.append({k: float(v) for k, v in items.items()})
    return log


# Families -------------------------------------------------------------------------------------------------------------
def pairs() -> list:
    """Return all pairs, most of them for the night."""
    return [
        pytest.param(student, teacher, marks=() if (student, teacher) in DAILY else pytest.mark.nightly)
        for teacher in TEACHERS
        for student in STUDENTS
    ]


@pytest.mark.core
@pytest.mark.parametrize("student_cfg, teacher_cfg", pairs())
def test_every_family_learns_from_every_family(student_cfg, teacher_cfg):
    """All terms fall: DFL on one side or both, one head or two, other levels, queries in place of anchor points."""
    parts = pair(student_cfg, build(teacher_cfg), kd_cls=1.0, kd_box=1.0, kd_feat=4.0)
    log = fit(*parts, batch_of(), steps=40 if "rtdetr" in teacher_cfg else 12)
    for term in ("kd_cls", "kd_box", "kd_feat"):
        first, last = (sum(step[term] for step in part) / 3 for part in (log[:3], log[-3:]))
        assert 0 < last < 0.99 * first, term


@pytest.mark.core
@pytest.mark.parametrize(
    "student_cfg, teacher_cfg, strides, said",
    [
        ("yolo26n.yaml", "yolov8n-p2.yaml", (8, 16, 32), "strides 8, 16, 32, NMS head"),
        ("yolov8n-p2.yaml", "yolo26n.yaml", (8, 16, 32), "(the student's 4 from labels alone)"),
        (
            "yolo26n-p6.yaml",
            "yolo26n.yaml",
            (8, 16, 32),
            "(the student's 64 from labels alone), NMS and NMS-free heads",
        ),
        (
            "yolo26n.yaml",
            "yolov8n-rtdetr.yaml",
            (8, 16, 32),
            "detections assigned like labels, NMS and NMS-free heads",
        ),
    ],
)
def test_levels_that_both_have_are_distilled_and_said(student_cfg, teacher_cfg, strides, said):
    student, teacher, distiller, loss = pair(student_cfg, build(teacher_cfg), kd_cls=1.0, kd_box=1.0)
    assert distiller.strides == strides and said in distiller.levels
    batch = batch_of()
    total, _ = loss(student(batch["img"]), {**batch, "teacher": teacher(batch["img"])})
    total[3:].sum().backward()
    for stride, tower in zip(distiller.student_layout.strides, student.model[-1].cv3):
        touched = any(p.grad is not None and p.grad.any() for p in tower.parameters())
        assert touched == (stride in strides or "rtdetr" in teacher_cfg)


def test_levels_in_common_say_what_heads_of_equal_levels_say():
    """A teacher with a level more answers on the others as it does without being asked for fewer."""
    teacher = open_teacher(build("yolov8n-p2.yaml"))
    teacher.match(NAMES)
    images = torch.rand(2, 3, 128, 128)
    whole = teacher.prepare(CPU)(images).branches["one2many"]
    _, teacher, _, _ = pair("yolo26n.yaml", teacher, kd_cls=1.0, kd_box=1.0)
    part = teacher(images).branches["one2many"]
    fine = (128 // 4) ** 2
    torch.testing.assert_close(part.scores, whole.scores[:, fine:])
    torch.testing.assert_close(part.boxes, whole.boxes[:, fine:])


def test_no_level_in_common_is_refused():
    student = build("yolo26n.yaml")
    student.args = get_cfg(overrides={"teacher": "t.pt"})
    teacher = open_teacher(build("yolo11n.yaml"))
    teacher.layout = teacher.layout.only([32])
    student.model[-1].stride = torch.tensor([4.0, 8.0, 16.0])
    with pytest.raises(
        KDError, match=r"\[4, 8, 16\] and the teacher's \[32\]: .* none in common\. Give .*kd_cache=True"
    ):
        GridDistiller(student.args, student, teacher)


def test_teacher_with_a_coarser_level_reads_images_of_any_size_of_the_student():
    """An image side that is no multiple of 64 is padded for it, and its answer cropped."""
    _, teacher, distiller, _ = pair("yolo26n.yaml", build("yolo26n-p6.yaml"), kd_cls=1.0, kd_box=1.0)
    answer = teacher(torch.rand(1, 3, 96, 160)).branches["one2many"]
    points = sum((96 // s) * (160 // s) for s in distiller.strides)
    assert answer.scores.shape[1] == answer.boxes.shape[1] == points
    assert [tuple(f.shape[-2:]) for f in answer.feats] == [(96 // s, 160 // s) for s in distiller.strides]


# RT-DETR --------------------------------------------------------------------------------------------------------------
def test_queries_are_assigned_as_labels_are_and_reach_both_heads():
    student, teacher, _, loss = pair("yolo26n.yaml", build("yolov8n-rtdetr.yaml"), kd_cls=1.0, kd_box=1.0)
    batch = batch_of()
    answer = teacher(batch["img"])
    assert isinstance(answer, SetAnswer) and len(answer.bboxes) and (answer.probs.amax(1) > 0.05).all()
    total, _ = loss(student(batch["img"]), {**batch, "teacher": answer})
    total[3:].sum().backward()
    head = student.model[-1]
    for towers in (head.cv2, head.cv3, head.one2one_cv2, head.one2one_cv3):
        assert any(p.grad is not None and p.grad.any() for p in towers.parameters())


@pytest.mark.core
def test_queries_are_what_the_model_itself_detects():
    model = build("yolov8n-rtdetr.yaml")
    teacher = open_teacher(deepcopy(model))
    teacher.match(NAMES)
    teacher.prepare(CPU)
    images = torch.rand(1, 3, 128, 128)
    answer = teacher(images)
    with torch.no_grad():
        boxes, score, _ = model(images)[0][0].split((4, 1, 1), -1)
    best = answer.probs.amax(1).argmax()
    torch.testing.assert_close(answer.probs.amax(1)[best], score[0, 0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(answer.bboxes[best], boxes[0], rtol=1e-3, atol=1e-4)


def test_decoder_in_another_precision_takes_its_anchors_along():
    """It keeps those of the last size of image, at first of the 256 px that it was looked at with."""
    teacher = open_teacher(build("yolov8n-rtdetr.yaml"))
    teacher.prepare(CPU, dtype=torch.bfloat16)
    with torch.no_grad():
        assert teacher.model(torch.rand(1, 3, 256, 256).bfloat16())["scores"].dtype == torch.bfloat16


@pytest.mark.parametrize("loss", ["crosskd", "sl2"])
def test_feature_losses_that_need_a_grid_are_refused_for_a_set(loss):
    with pytest.raises(KDError, match=f"kd_feat_loss={loss}"):
        pair("yolo26n.yaml", build("yolov8n-rtdetr.yaml"), kd_feat=1.0, kd_feat_loss=loss)


# Classes --------------------------------------------------------------------------------------------------------------
def reorder(model, order: list[int | None], names: dict[int, str]):
    """Return a copy of a detector that scores its classes in another order; None is a class that it had not."""
    model = deepcopy(model)
    head = model.model[-1]
    for tower in (*head.cv3, *(getattr(head, "one2one_cv3", None) or ())):
        old, new = tower[-1], torch.nn.Conv2d(tower[-1].in_channels, len(order), 1)
        torch.nn.init.constant_(new.bias, 2.0)  # sure of it everywhere, so that it would be noticed
        with torch.no_grad():
            for i, source in enumerate(order):
                if source is not None:
                    new.weight[i], new.bias[i] = old.weight[source], old.bias[source]
        tower[-1] = new
    head.nc, head.no = len(order), len(order) + 4 * head.reg_max
    model.names = names
    return model


@pytest.mark.parametrize(
    "order, names, spec",
    [
        ([2, None, 0, 1], {0: "bar", 1: "zebra", 2: "disc", 3: "box"}, "auto"),
        ([1, None, 0, 2], {0: "a", 1: "b", 2: "c", 3: "d"}, {"a": "box", "c": "disc", "d": "bar"}),
        *(
            pytest.param(order, names, "auto", marks=pytest.mark.nightly)
            for order, names in (
                ([2, 0, 1], {0: "bar", 1: "disc", 2: "box"}),
                ([1, 2, 0], {0: " BOX", 1: "Bar", 2: "disc"}),
                ([1, 2, 0, None], {0: "boxes", 1: "bars", 2: "discs", 3: "zebras"}),
            )
        ),
    ],
)
def test_order_and_extra_classes_of_the_teacher_change_nothing(order, names, spec):
    """The same knowledge teaches the same student, weight by weight."""
    trained, begun = [], build("yolo26n.yaml", seed=1).state_dict()
    for model, how in ((build("yolo26n.yaml"), "auto"), (reorder(build("yolo26n.yaml"), order, names), spec)):
        teacher = open_teacher(model)
        teacher.match(NAMES, how)
        student, *rest = pair("yolo26n.yaml", teacher, kd_cls=1.0, kd_box=1.0)
        fit(student, *rest, batch_of(), steps=3, optimizer=torch.optim.SGD)
        trained.append(student.state_dict())
    for key, value in trained[0].items():
        if value.is_floating_point():  # but for rounding: a convolution with a channel more sums in another order
            moved, apart = (value - begun[key]).abs().max(), (value - trained[1][key]).abs().max()
            assert apart <= 0.01 * moved + 1e-6, key


def test_missing_class_of_the_teacher_gives_what_the_others_would():
    """A teacher that lacks a class is as one whose class was left out by a map; nobody pushes that class down."""
    whole, part = build("yolo26n.yaml"), reorder(build("yolo26n.yaml"), [0, 2], {0: "disc", 1: "bar"})
    gradients = []
    for model, spec in ((whole, {"disc": "disc", "bar": "bar"}), (part, "auto")):
        teacher = open_teacher(model)
        teacher.match(NAMES, spec)
        assert teacher.classes.unmatched == ["box"]
        student, teacher, _, loss = pair("yolo26n.yaml", teacher, kd_cls=1.0, kd_box=1.0)
        batch = batch_of()
        preds = student(batch["img"])
        for branch in preds.values():
            branch["scores"].retain_grad()
        loss(preds, {**batch, "teacher": teacher(batch["img"])})[0][3:].sum().backward()
        gradients.append({name: branch["scores"].grad for name, branch in preds.items()})
        for gradient in gradients[-1].values():
            assert not gradient[:, 1].any() and gradient[:, 0].any() and gradient[:, 2].any()
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-4, atol=1e-6)


def test_classes_that_a_set_does_not_know_get_no_push_either():
    class Two:
        names = ("disc", "bar")

        def teach(self, images):
            return [{"boxes": torch.tensor([[8.0, 8, 60, 60]]), "probs": torch.tensor([[0.9, 0.1]])} for _ in images]

    student, teacher, _, loss = pair("yolo26n.yaml", Two(), kd_cls=1.0, kd_box=1.0)
    batch = batch_of()
    preds = student(batch["img"])
    for branch in preds.values():
        branch["scores"].retain_grad()
    loss(preds, {**batch, "teacher": teacher(batch["img"])})[0][3:].sum().backward()
    for branch in preds.values():
        gradient = branch["scores"].grad
        assert not gradient[:, 1].any() and gradient[:, 0].any()


def test_plural_is_matched_when_the_exact_name_is_missing_and_said(quick, tmp_path, caplog):
    from ultralytics.utils import LOGGER

    save_model(tmp_path / "plural.pt", names={0: "Discs", 1: "box", 2: "bars"})
    LOGGER.propagate = True
    YOLO("yolo26n.yaml").train(**{**quick, "epochs": 1}, teacher=str(tmp_path / "plural.pt"))
    LOGGER.propagate = False
    assert "3 of 3 matched by name, of them as plural and singular: Discs = disc, bars = bar" in unwrapped(caplog.text)


# Several --------------------------------------------------------------------------------------------------------------
def test_grids_are_averaged_over_the_teachers_that_know_a_class():
    """Probabilities by weight, boxes by weight and confidence; one with DFL, one without; one lacks a class."""
    one, other = build("yolo26n.yaml"), reorder(build("yolo11n.yaml"), [0, 1], {0: "disc", 1: "box"})
    ensemble = open_teacher([one, other], weights=[3, 1])
    assert isinstance(ensemble, GridEnsemble)
    ensemble.match(NAMES)
    ensemble.prepare(CPU)
    images = torch.rand(1, 3, 64, 64)
    answer = ensemble(images).branches["one2many"]
    a, b = (m(images).branches["one2many"].scores.sigmoid() for m in ensemble.members)
    torch.testing.assert_close(answer.scores.sigmoid()[..., :2], 0.75 * a[..., :2] + 0.25 * b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer.scores.sigmoid()[..., 2], a[..., 2], rtol=1e-4, atol=1e-5)
    assert set(ensemble(images).branches) == {"one2many"}  # the other has no one2one branch


def test_one_teacher_twice_is_that_teacher():
    model = build("yolo26n.yaml")
    images = torch.rand(1, 3, 64, 64)
    answers = []
    for source in (model, [model, model]):
        teacher = open_teacher(source)
        teacher.match(NAMES)
        answers.append(teacher.prepare(CPU)(images).branches)
    assert answers[1].keys() == {"one2many"}  # two picks of one2one heads would be two half-sure objects
    from ultralytics_kd.outputs import distances, layout

    for name, branch in answers[0].items():
        if name not in answers[1]:
            continue
        torch.testing.assert_close(branch.scores.sigmoid(), answers[1][name].scores.sigmoid(), rtol=1e-3, atol=1e-5)
        boxes = distances(branch.boxes, layout(model))
        torch.testing.assert_close(boxes, answers[1][name].boxes, rtol=1e-3, atol=1e-3)


def test_features_of_teachers_with_other_levels_are_compared_on_those_that_all_have():
    both = open_teacher([build("yolov8n.yaml"), build("yolov8n-p2.yaml")])
    parts = pair("yolov8n-p2.yaml", both, kd_cls=1.0, kd_box=1.0, kd_feat=1.0)
    assert parts[2].strides == (8, 16, 32) and len(parts[2].terms["kd_feat"].adapters) == 6
    log = fit(*parts, batch_of(), steps=4)
    assert all(step["kd_feat"] > 0 for step in log)


class BoxesAlone(torch.nn.Module):
    """A detector of another library, without feature maps."""

    names = tuple(NAMES.values())

    def teach(self, images):
        found = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
        return {"detections": [found for _ in images]}


def test_features_count_in_full_beside_a_teacher_without_feature_maps():
    def feature_term(sources):
        student, teacher, _, loss = pair("yolo26n.yaml", open_teacher(sources), kd_cls=0, kd_box=0, kd_feat=1.0)
        batch = batch_of()
        return float(loss(student(batch["img"]), {**batch, "teacher": teacher(batch["img"])})[1]["kd_feat"])

    class FinerMaps(BoxesAlone):
        """Its feature map is at a stride that the student lacks."""

        strides, channels = (4,), (8,)

        def teach(self, images):
            maps = torch.zeros(len(images), 8, images.shape[-2] // 4, images.shape[-1] // 4)
            return {**super().teach(images), "features": [maps]}

    with_maps = build("yolov8n-rtdetr.yaml")
    alone = feature_term(with_maps)
    assert alone > 0
    for other in (BoxesAlone(), FinerMaps()):
        assert feature_term([with_maps, other]) == pytest.approx(alone, rel=1e-3)


def test_boxes_of_bins_are_decoded_in_full_precision_under_autocast():
    from ultralytics_kd.outputs import distances, layout

    head = layout(build("yolo11n.yaml"))
    raw = torch.randn(1, 50, 4 * head.reg_max, generator=torch.Generator().manual_seed(0)) * 3
    with torch.autocast("cpu", torch.bfloat16):
        mixed = distances(raw, head)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, distances(raw, head))


def test_autobatch_sees_a_student_that_teaches_itself(quick, monkeypatch):
    from ultralytics.engine import trainer as engine

    seen = []

    def look(model, **_):
        with torch.no_grad():
            seen.append(model(torch.rand(2, 3, 64, 64))[-2:])  # the terms
        return 4

    monkeypatch.setattr(engine, "check_train_batch_size", look)
    YOLO("yolo26n.yaml").train(**{**quick, "epochs": 1, "batch": -1}, teacher="ema")
    assert seen and all(v.ndim == 0 and v.isfinite() for v in seen[0])


@pytest.mark.nightly
@pytest.mark.core
def test_grid_and_queries_are_merged_as_sets():
    ensemble = open_teacher([build("yolo26n.yaml"), build("yolov8n-rtdetr.yaml")])
    assert isinstance(ensemble, SetEnsemble)
    student, teacher, distiller, loss = pair("yolo26n.yaml", ensemble, kd_cls=1.0, kd_box=1.0, kd_feat=1.0)
    log = fit(student, teacher, distiller, loss, batch_of())
    assert all(log[-1][t] < log[0][t] for t in ("kd_cls", "kd_feat"))


@pytest.mark.nightly
def test_several_teachers_of_the_command_line_are_trained_with_resumed_and_cached(quick, tmp_path):
    from ultralytics_kd import cli

    save_model(tmp_path / "a.pt", "yolo26s.yaml")
    save_model(tmp_path / "b.pt", "yolo11n.yaml", names={0: "box", 1: "disc"})
    args = [f"{k}={v}" for k, v in quick.items()]
    listed = f"teacher=[{tmp_path}/a.pt,{tmp_path}/b.pt]"
    assert cli.main(["train", "model=yolo26n.yaml", listed, "kd_teacher_weights=[2,1]", *args]) == 0
    saved = torch_load(Path(quick["project"]) / "run" / "weights" / "last.pt")["train_args"]
    assert saved["teacher"] == [f"{tmp_path}/a.pt", f"{tmp_path}/b.pt"] and saved["kd_teacher_weights"] == [2, 1]
    args = [a for a in args if not a.startswith("name=")]
    assert cli.main(["train", "model=yolo26n.yaml", listed, "kd_cache=True", "name=cached", *args]) == 0


@pytest.mark.parametrize(
    "given, message",
    [
        ({"kd_teacher_weights": [1, 2, 3]}, "3 numbers for 2 teachers"),
        ({"kd_teacher_weights": [1, -2]}, "a positive number for each teacher"),
        ({"kd_classes": {"nosuch": "disc"}}, "not a class of any teacher"),
        ({"kd_classes": {"disc": "disc"}}, "names no class of teacher="),
    ],
)
def test_errors_about_several_teachers(quick, tmp_path, given, message):
    save_model(tmp_path / "a.pt")
    save_model(tmp_path / "b.pt", names={0: "cat", 1: "dog", 2: "cow"})
    if "kd_classes" not in given:
        given = {**given, "kd_classes": {"disc": "disc", "cat": "box"}}
    with pytest.raises(KDError, match=message):
        YOLO("yolo26n.yaml").train(**quick, teacher=[str(tmp_path / "a.pt"), str(tmp_path / "b.pt")], **given)
    assert not Path(quick["project"]).exists()


# The student's own average --------------------------------------------------------------------------------------------
@pytest.mark.core
def test_moving_average_teaches_its_student(quick):
    seen = []
    model = YOLO("yolo26n.yaml")

    def look(trainer):
        images = torch.rand(1, 3, 64, 64)
        trainer.ema.ema.eval()
        with torch.no_grad():
            own = trainer.ema.ema(images)[1]["one2many"]["scores"].transpose(1, 2)
        said = trainer.teacher(images).branches["one2many"].scores
        seen.append((own, said, trainer.loss_items["kd_cls"]))

    model.add_callback("on_train_epoch_end", look)
    model.train(**{**quick, "nbs": 4}, teacher="ema")
    for own, said, kd in seen:
        torch.testing.assert_close(own, said)
        assert kd > 0
    ckpt = torch_load(Path(quick["project"]) / "run" / "weights" / "last.pt")
    assert ckpt["train_args"]["teacher"] == "ema"
    assert type(ckpt["model"].model[-1]).__name__ == "Detect"


@pytest.mark.nightly
def test_moving_average_is_resumed(quick, tmp_path):
    last = tmp_path / "last.pt"
    model = YOLO("yolo26n.yaml")
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**quick, teacher="ema")
    again = YOLO(last)
    again.train(resume=True)
    assert again.trainer.start_epoch == 1 and again.trainer.teacher.follows_student


def test_moving_average_refuses_what_it_cannot_mean(quick):
    for given, message in (
        ({"teacher": ["ema", "ema"]}, "cannot be one of several"),
        ({"teacher": "ema", "kd_classes": {"a": "disc"}}, "has the student's classes"),
        ({"teacher": "ema", "kd_cache": True}, "changes with the student"),
        ({"teacher": "ema", "kd_feat": 1.0, "kd_feat_loss": "crosskd"}, "kd_feat_loss=crosskd"),
    ):
        with pytest.raises(KDError, match=message):
            YOLO("yolo26n.yaml").train(**quick, **given)
        assert not Path(quick["project"]).exists()


# Exported files -------------------------------------------------------------------------------------------------------
@pytest.mark.core
@pytest.mark.parametrize(
    "nms", [pytest.param(False, id="one2many"), pytest.param(True, id="end to end", marks=pytest.mark.nightly)]
)
def test_exported_file_teaches_what_its_model_says(tmp_path, quick, nms):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    save_model(tmp_path / "model.pt", "yolo11n.yaml" if not nms else "yolo26n.yaml")
    path = StockYOLO(tmp_path / "model.pt").export(format="onnx", imgsz=64)
    exported, own = open_teacher(path), open_teacher(str(tmp_path / "model.pt"))
    images = torch.rand(3, 3, 64, 64)
    for teacher in (exported, own):
        teacher.match(NAMES)
        teacher.prepare(CPU)
    found, expected = (t.detect(images, exported.thresholds)[0] for t in (exported, own))
    if not nms:
        for a, b in zip(found, expected):
            assert abs(len(a.boxes) - len(b.boxes)) <= 2  # where an overlap is at the limit
            rows = [torch.cat((d.boxes / 64, d.probs), 1) for d in (a, b)]
            missing = torch.cdist(rows[0][:10], rows[1]).amin(1) > 0.02
            assert missing.sum() <= 2
    assert all(len(d.boxes) for d in found)
    model = YOLO("yolo26n.yaml")
    model.train(**{**quick, "epochs": 1, "imgsz": 96}, teacher=str(path))  # of another size than the file's
    assert model.trainer.loss_items["kd_cls"] > 0


# One2one safety -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("teacher_cfg", ["yolo11n.yaml", "yolov8n-rtdetr.yaml"])
def test_one2one_branch_gets_one_anchor_point_per_object_from_a_teacher_without_such_a_head(teacher_cfg):
    """A single-headed grid does not speak to it at all; a set is assigned by its own rule, one to one."""
    student, teacher, distiller, loss = pair("yolo26n.yaml", build(teacher_cfg), kd_cls=1.0, kd_box=1.0)
    batch = batch_of()
    answer = teacher(batch["img"])
    preds = student(batch["img"])
    from ultralytics_kd import outputs

    distiller.gains = loss.gains
    pairs = {p.name: p for _, p in distiller._pairs(outputs.branches(preds), answer, None, loss.bases)}
    if teacher_cfg == "yolo11n.yaml":
        assert set(pairs) == {"one2many"}
    else:
        assert pairs["one2one"].assigned.sum() <= len(answer.bboxes) < pairs["one2many"].assigned.sum()


class Labels:
    """A detector that finds every labelled object of a data set's val images, which it knows by their pixels."""

    names = ("bar", "disc", "box")  # another order than the data's
    side = 64

    def __init__(self, folder, sure=0.9):
        self.sure, self.known = sure, {}
        for file in sorted((folder / "images" / "val").glob("*.png")):
            rows = (folder / "labels" / "val" / f"{file.stem}.txt").read_text().splitlines()
            image = torch.from_numpy(cv2.imread(str(file))[..., ::-1].copy()).permute(2, 0, 1).float() / 255
            self.known[self.key(image)] = torch.tensor([[float(x) for x in row.split()] for row in rows])

    @staticmethod
    def key(image):
        return round(float(image.double().mean()), 5)

    def teach(self, images):
        top, left = ((s - self.side) // 2 for s in images.shape[-2:])  # val images have a border
        found = []
        for image in images[..., top : top + self.side, left : left + self.side]:
            rows = self.known.get(self.key(image), torch.zeros(0, 5))
            boxes = xywh2xyxy(rows[:, 1:]) * self.side + torch.tensor([left, top, left, top])
            labels = torch.tensor([1, 2, 0])[rows[:, 0].long()]
            found.append({"boxes": boxes, "scores": torch.full((len(rows),), self.sure), "labels": labels})
        return found


@pytest.mark.parametrize(
    "sure", [pytest.param([0.9], id="one"), pytest.param([0.9, 0.03], id="two", marks=pytest.mark.nightly)]
)
def test_scores_of_teachers_from_elsewhere_stand_beside_the_students(quick, sure, caplog):
    """What one is hardly sure of, less than is taught, counts in a mean average precision."""
    folder = Path(YAML.load(quick["data"])["path"])
    teachers = [Labels(folder, s) for s in sure]
    model = YOLO("yolo26n.yaml")
    model.train(**{**quick, "epochs": 1}, teacher=teachers if len(teachers) > 1 else teachers[0])
    assert model.trainer.teacher_metrics["metrics/mAP50-95(B)"] > 0.98
    assert "of the teacher's mAP50-95." in caplog.text


def test_several_grids_are_scored_by_what_they_say_together():
    one = build("yolo26n.yaml")
    teacher = open_teacher([one, one])
    teacher.match({0: "box", 1: "cup", 2: "disc"})  # bars are none of the student's classes, and cups nobody knows
    images = torch.rand(2, 3, 64, 96)
    one.end2end = False
    said = one.eval()(images)[0]
    scored = teacher.validator_model(3, {0: "box", 1: "cup", 2: "disc"})
    expected = torch.cat((said[:, :4], said[:, 5:6], torch.zeros_like(said[:, 4:5]), said[:, 4:5]), 1)
    found = scored(images)
    torch.testing.assert_close(found[:, 4:], expected[:, 4:], rtol=1e-3, atol=1e-3)
    open_boxes = (expected[:, 2:4] > 0).all(1)  # an untrained head has some that are inside out
    assert open_boxes.float().mean() > 0.5
    torch.testing.assert_close(
        found[:, :4].transpose(1, 2)[open_boxes], expected[:, :4].transpose(1, 2)[open_boxes], rtol=1e-3, atol=1e-2
    )


@pytest.mark.core
def test_rtdetr_is_scored_by_its_queries_without_suppression():
    model = build("yolov8n-rtdetr.yaml")
    images = torch.rand(2, 3, 64, 96)
    teacher = open_teacher(model)
    teacher.match(NAMES)
    rows = teacher.validator_model(3, NAMES)(images)
    said = model.eval()(images)[0]  # x, y, w, h as shares of the image, confidence and class, most confident first
    boxes = xywh2xyxy(said[..., :4]).clamp(0, 1) * torch.tensor([96, 64, 96, 64])
    assert said[:, 99, 4].min() > 0.001 and (rows[..., 4].diff() <= 0).all()
    for found, box, expected in zip(rows, boxes, said):
        seen = (box[:100, 2:] - box[:100, :2]).amin(1) > 1  # untrained queries also look outside the image
        one = torch.cat((box, expected[:, 4:]), -1)[:100][seen]
        nearest = (found[None] - one[:, None]).abs().amax(-1).amin(1)  # those as sure as each other have no order
        assert seen.sum() > 30 and nearest.max() < 0.01


# Validation changes no teacher ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "sources, scored",
    [
        (["yolo26n.yaml"], True),
        (["yolov8n-rtdetr.yaml"], True),
        (["yolo26n.yaml", "yolo26n.yaml"], True),
        (["yolo26n.yaml", "yolov8n-rtdetr.yaml"], True),
        (["ema"], False),
    ],
    ids=["grid", "queries", "grids", "sets", "average"],
)
def test_whether_a_teacher_can_be_validated_is_known_without_a_model(sources, scored, monkeypatch):
    opened = open_teacher([s if s == "ema" else build(s) for s in sources])
    monkeypatch.setattr(type(opened), "validator_model", lambda *_: pytest.fail("no model is needed"))
    assert opened.can_validate is scored


@pytest.mark.parametrize(
    "sources",
    [
        ["yolo26n.yaml", "yolov8n-rtdetr.yaml"],
        pytest.param(["yolov8n-rtdetr.yaml"], marks=pytest.mark.nightly),
        pytest.param(["yolo26n.yaml", "yolo26n.yaml"], marks=pytest.mark.nightly),
    ],
)
def test_teacher_answers_after_its_validation_as_before(sources):
    """With its thresholds, its precision and only the outputs that the terms read."""
    teacher = open_teacher([build(s) for s in sources])
    teacher.match(NAMES)
    teacher.prepare(CPU, Reads({"one2many": {"scores"}}, (8, 16), (16,)), torch.bfloat16)
    images = torch.rand(2, 3, 64, 64)
    before, models = teacher(images), [m.model for m in teacher.members]
    scored = teacher.validator_model(3, NAMES)(images)
    after = teacher(images)
    assert [m.model for m in teacher.members] == models and all(m.dtype is torch.bfloat16 for m in teacher.members)
    if isinstance(before, SetAnswer):
        assert torch.equal(before.bboxes, after.bboxes) and torch.equal(before.probs, after.probs)
        assert len(before.probs) and before.probs.amax(1).min() > teacher.thresholds.conf > 0.01
        assert 0.001 < scored[..., 4][scored[..., 4] > 0].min() < teacher.thresholds.conf
    else:
        assert torch.equal(before.branches["one2many"].scores, after.branches["one2many"].scores)
        assert not after.branches["one2many"].boxes.numel() and scored.shape[1] == 4 + 3
    assert [[f.shape for f in maps] for maps in before.features] == [[f.shape for f in maps] for maps in after.features]


# single_cls -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("members", [1, 2])
def test_single_cls_teaches_one_class_with_the_maximum_of_all_that_match(members):
    model = reorder(build("yolo26n.yaml"), [0, 2, 1], {0: "disc", 1: "zebra", 2: "boxes"})
    teacher, whole = (open_teacher([deepcopy(model) for _ in range(members)]) for _ in range(2))
    teacher.match(NAMES, single_cls=True)
    whole.match({0: "disc", 1: "box"})
    images = torch.rand(2, 3, 64, 64)
    one, both = (t.prepare(CPU)(images) for t in (teacher, whole))
    assert one.classes is None if members == 2 else one.classes.tolist() == [0]
    expected = both.branches["one2many"].scores.amax(-1, keepdim=True)
    torch.testing.assert_close(one.branches["one2many"].scores, expected, rtol=1e-3, atol=1e-3)
    scored = teacher.validator_model(1, {0: "item"}).eval()(images)
    scored = scored if isinstance(scored, torch.Tensor) else scored[1]["one2many"]["scores"]
    assert scored.shape[1] == (5 if members == 2 else 1)


def test_single_cls_of_a_set_keeps_the_detections_of_all_classes_that_match():
    teacher = open_teacher(build("yolov8n-rtdetr.yaml"))
    teacher.match({0: "bar", 1: "disc"}, single_cls=True)
    answer = teacher.prepare(CPU)(torch.rand(2, 3, 64, 64))
    assert answer.probs.shape[1] == 1 and len(answer.probs) and answer.classes.tolist() == [0]


def test_moving_average_of_a_single_class_is_that_class():
    teacher = open_teacher("ema")
    teacher.match(NAMES, keep=[1], single_cls=True)
    assert teacher.names == {0: "item"} and teacher.classes.identity


@pytest.mark.parametrize("names", [{0: "disc", 1: "zebra", 2: "bars"}, {0: "thing"}], ids=["several", "one"])
def test_student_of_a_single_class_begins_with_the_scores_of_a_matched_class(names):
    from ultralytics_kd.outputs.weight_selection import select_weights

    torch.manual_seed(0)
    big, student = make_model("yolo26s.yaml", len(names)), make_model("yolo26n.yaml", 1)
    big.names = names
    teacher = open_teacher(big)
    teacher.match(NAMES, single_cls=True)
    rows = {student: sources[0] for student, sources in teacher.classes.sources.items()}
    assert select_weights(student, big, None if teacher.classes.identity else rows) > 0
    ours, theirs = student.model[-1].cv3[0][-1], big.model[-1].cv3[0][-1]
    assert torch.equal(ours.bias, theirs.bias[:1])


def test_a_path_that_does_not_exist_is_looked_up_nowhere(tmp_path, monkeypatch):
    """Ultralytics would ask GitHub for a file of that name first."""
    monkeypatch.setattr("ultralytics.utils.downloads.attempt_download_asset", lambda *_, **__: pytest.fail("looked up"))
    with pytest.raises(KDError, match=r"bset\.pt was not found"):
        open_teacher(str(tmp_path / "weights" / "bset.pt"))
