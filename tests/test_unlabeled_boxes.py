"""Pseudo-boxes: what the teacher is sure of in images without labels enters the base loss (`kd_unlabeled_boxes`)."""

from __future__ import annotations

import math
import shutil
import threading
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
from conftest import STUDENT, TEACHER, draw_dataset
from task_models import task_model
from test_teachers import batch_of, build, pair
from test_training import results
from torchvision.ops import box_iou
from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy, xywhr2xyxyxyxy
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDDetectionTrainer, KDError, config, outputs
from ultralytics_kd.bench.plan import make_plan
from ultralytics_kd.distillation.distillers import GridDistiller
from ultralytics_kd.distillation.ignored_background import check_levels, ignored_background
from ultralytics_kd.distillation.loss import FINITE_FACTOR, LABELED, DistillationLoss
from ultralytics_kd.distillation.pseudo_boxes import DOUBT, IOU, PseudoBoxes, _as_labels, _kept, build_pseudo_boxes
from ultralytics_kd.teachers import SetAnswer, open_teacher
from ultralytics_kd.teachers.detections import Thresholds

NC = 3


def with_boxes(confidence: float = 0.5, cfg: str = STUDENT, teacher: str = TEACHER, **args):
    """Return student, teacher and a loss that takes the teacher's boxes for labels."""
    student, teacher, distiller, loss = pair(cfg, build(teacher), kd_unlabeled_boxes=confidence, **args)
    loss.pseudo = build_pseudo_boxes(student.args, distiller, teacher)
    return student, teacher, loss


def as_answer(batch: dict, rows: torch.Tensor, confidence: float = 0.9, classes=None) -> SetAnswer:
    """Return labels of a batch as a teacher's answer that is as sure of each."""
    cls = batch["cls"].flatten().long()[rows]
    return SetAnswer(batch["bboxes"][rows], torch.eye(NC)[cls] * confidence, batch["batch_idx"][rows], classes)


def first_labeled(batch: dict, count: int) -> dict:
    """Return a batch in which only the first images have labels."""
    rows = batch["batch_idx"] < count
    return {**{k: v if k == "img" else v[rows] for k, v in batch.items()}, LABELED: count}


def score_gradients(loss, preds, batch) -> dict[str, torch.Tensor]:
    """Return the gradient of the base parts of a loss at the scores of each branch, shape (B, A, nc)."""
    branches = preds if "one2many" in preds else {"one2many": preds}
    for out in branches.values():
        out["scores"].retain_grad()
        out["scores"].grad = None
    loss(preds, batch)[0][:3].sum().backward(retain_graph=True)
    return {name: out["scores"].grad.transpose(1, 2).clone() for name, out in branches.items()}


# What enters the base loss --------------------------------------------------------------------------------------------
@pytest.mark.core
@pytest.mark.parametrize("cfg", [STUDENT, pytest.param("yolo11n.yaml", marks=pytest.mark.nightly)])
def test_a_box_that_the_teacher_is_sure_of_counts_as_a_label(cfg):
    """Loss and parts are those of a batch of labels, times the share of the images that have some."""
    student, _, loss = with_boxes(cfg=cfg)
    batch = batch_of(3, 64)
    preds = student(batch["img"])
    expected, parts = loss.base(preds, batch)
    answer = as_answer(batch, batch["batch_idx"] >= 0)
    got, items = loss(preds, {**first_labeled(batch, 1), "teacher": answer})
    assert {k: items[k] for k in parts} == parts and items["kd_cls"] > 0
    torch.testing.assert_close(got[:3], expected / 3)
    plain, _ = loss.base(*loss._labeled(preds, first_labeled(batch, 1)))
    assert not torch.allclose(got[:3], plain)
    assert loss.pseudo.counts.__dict__ == {"images": 2, "boxes": 4, "doubtful": 0, "labeled": 1, "labels": 2}


def test_a_box_in_doubt_is_neither_an_object_nor_background():
    student, _, loss = with_boxes()
    batch = batch_of(2, 64)
    preds = student(batch["img"])
    labels, unlabeled = first_labeled(batch, 1), batch["batch_idx"] == 1
    gradients = {}
    for confidence in (DOUBT / 2, DOUBT + 0.01, 0.49, 0.5):
        answer = as_answer(batch, unlabeled, confidence)
        gradients[confidence] = score_gradients(loss, preds, {**labels, "teacher": answer})
    for name, nothing in gradients[DOUBT / 2].items():
        assert nothing.all()  # all background, also the labelled image's
        doubt = gradients[0.49][name]
        assert torch.equal(doubt, gradients[DOUBT + 0.01][name]) and torch.equal(doubt[0], nothing[0])
        unknown = doubt[1] == 0
        assert 0 < unknown.sum() < unknown[:, 0].numel() and unknown[:, 0].any() and unknown[:, 2].any()
        assert not unknown[:, 1].any() and torch.equal(doubt[1][~unknown], nothing[1][~unknown])
        assert gradients[0.5][name][1].all() and not torch.equal(gradients[0.5][name][0], nothing[0])


def found(probs: list[list[float]], boxes: list[list[float]], confidence: float = 0.5, classes=None, image: int = 1):
    """Return what is found in detections in the second of two images of 64 px."""
    student, _, loss = with_boxes(confidence)
    images = torch.rand(2, 3, 64, 64)
    answer = SetAnswer(torch.tensor(boxes), torch.tensor(probs), torch.full((len(boxes),), float(image)), classes)
    first = outputs.branches(student(images))["one2many"]
    return loss.pseudo.find(answer, first, loss.base.one2many.assigner, images, 1)


WHOLE, SMALL = [0.5, 0.5, 1.0, 1.0], [0.3, 0.3, 0.4, 0.4]


def test_duplicates_are_no_labels_and_no_doubt():
    """At an IoU above 0.7 the more confident one counts; a doubtful one above 0.5 shows that object too."""
    double, near, apart = [0.31, 0.3, 0.4, 0.4], [0.3, 0.3, 0.3, 0.4], [0.3, 0.3, 0.15, 0.4]
    result = found([[0.6, 0, 0], [0.9, 0, 0], [0.3, 0, 0]], [double, SMALL, near])
    assert result.bboxes.tolist() == [pytest.approx(SMALL)] and result.labels.tolist() == [0]
    assert not result.ignored.any() and result.doubtful == 0
    result = found([[0.9, 0, 0], [0.6, 0, 0], [0.3, 0, 0]], [SMALL, near, apart])
    assert len(result.bboxes) == 1 and result.ignored.any() and result.doubtful == 1


def test_another_class_that_a_box_might_have_is_in_doubt():
    result = found([[0.2, 0.05, 0.8]], [WHOLE])
    assert result.labels.tolist() == [2] and result.image.tolist() == [1]
    assert result.ignored[1, :, 0].all() and not result.ignored[1, :, 1:].any() and not result.ignored[0].any()


def test_objects_of_classes_that_the_teacher_does_not_know_may_be_anywhere():
    result = found([[0.9, 0.0]], [SMALL], classes=torch.tensor([2, 0]))
    assert result.labels.tolist() == [2]
    assert result.ignored[1, :, 1].all() and not result.ignored[1, :, ::2].any() and not result.ignored[0].any()


def test_the_teachers_answers_to_labelled_images_are_no_labels():
    result = found([[0.9, 0, 0], [0.3, 0, 0]], [SMALL, WHOLE], image=0)
    assert not len(result.labels) and not result.ignored.any() and not result.doubtful


def test_a_confidence_below_the_doubt_leaves_none():
    result = found([[0.06, 0, 0], [0.04, 0, 0]], [SMALL, WHOLE], confidence=0.05)
    assert len(result.labels) == 1 and not result.ignored.any()


@pytest.mark.parametrize("teacher", [TEACHER, pytest.param("rtdetr-resnet50.yaml", marks=pytest.mark.nightly)])
def test_detections_of_a_running_teacher_are_suppressed(teacher):
    student, teacher, loss = with_boxes(0.2, teacher=teacher, kd_cls=0.0, kd_box=0.0, kd_feat=1.0)
    batch = batch_of(3, 64)
    answer = teacher(batch["img"])
    if teacher.layout is not None:  # no term reads these, but the boxes do
        assert answer.branches["one2many"].boxes.shape[-1]
    first = outputs.branches(student(batch["img"]))["one2many"]
    result = loss.pseudo.find(answer, first, loss.base.one2many.assigner, batch["img"], 1)
    assert {1, 2} == {*result.image.tolist()} and result.image.tolist() == sorted(result.image.tolist())
    assert result.bboxes.min() >= 0 and result.bboxes.max() <= 1
    for image in (1, 2):
        boxes = xywh2xyxy(result.bboxes[result.image == image] * 64)
        overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
        assert overlaps.max() <= 0.7
        detections = teacher.detect(batch["img"][image:][:1], Thresholds(0.2, 1.0, 300))[0][0]
        assert 0 < len(boxes) < len(detections.boxes) or teacher.layout is None


@pytest.mark.parametrize("family", ["yolo11n", pytest.param("yolo26n", marks=pytest.mark.nightly)])
def test_rotated_boxes_are_labels_with_their_angle(family):
    """They are what Ultralytics' own decoding and suppression find, and count as labels."""
    student, source = task_model("obb", family).train(), task_model("obb", "yolo11n", seed=1).eval()
    student.args = get_cfg(overrides={"task": "obb", "teacher": "t.pt", "kd_unlabeled_boxes": 0.6})
    teacher = open_teacher(deepcopy(source), "obb")
    teacher.match(student.names)
    distiller = GridDistiller(student.args, student, teacher)
    teacher.prepare(torch.device("cpu"), distiller.reads)
    pseudo = build_pseudo_boxes(student.args, distiller, teacher)
    loss = DistillationLoss(student.init_criterion(), distiller, student.model[-1], pseudo=pseudo)
    torch.manual_seed(0)
    own = {"batch_idx": [0.0], "cls": [[1.0]], "bboxes": [[0.5, 0.5, 0.4, 0.3, 0.4]]}
    batch = {"img": torch.rand(2, 3, 128, 96), LABELED: 1, **{k: torch.tensor(v) for k, v in own.items()}}
    batch["teacher"] = teacher(batch["img"])
    preds = student(batch["img"])
    first, assigner = outputs.branches(preds)["one2many"], next(iter(loss.bases.values())).assigner
    result = pseudo.find(batch["teacher"], first, assigner, batch["img"], 1)

    whole = source(batch["img"][1:])[0]
    nc = len(student.names)
    (expected,) = non_max_suppression(whole, 0.1, 0.7, agnostic=True, nc=nc, rotated=True)
    expected = expected[expected[:, 4] >= 0.6]
    assert 5 < len(expected) == len(result.labels) and result.image.unique().tolist() == [1]
    boxes = result.bboxes * torch.tensor([96, 128, 96, 128, 1])
    assert (boxes[:, 2] >= boxes[:, 3]).all()
    torch.testing.assert_close(corners(boxes), corners(expected[:, [0, 1, 2, 3, 6]]), rtol=1e-2, atol=0.5)
    assert torch.equal(result.labels, expected[:, 5].long())
    added = {"batch_idx": result.image, "cls": result.labels[:, None], "bboxes": result.bboxes}
    both = {**batch, **{key: torch.cat((batch[key], value.float())) for key, value in added.items()}}
    with ignored_background(loss.bases, dict.fromkeys(loss.bases, result.ignored)):
        plain, _ = loss.base(preds, both)
    assert torch.equal(loss(preds, batch)[0][:4], plain / 2)


def corners(boxes):
    """Return the corners of rotated boxes in one order, shape (n, 4, 2)."""
    points = xywhr2xyxyxyxy(boxes)
    turn = (points - points.mean(1, keepdim=True)).flip(-1)
    order = torch.atan2(*turn.unbind(-1)).argsort(1)
    return points.gather(1, order[..., None].expand_as(points))


def test_rotated_pseudo_boxes_have_the_form_of_labels():
    """The base loss measures their sides one by one, and a head gives one box in several forms."""
    torch.manual_seed(0)
    boxes = torch.rand(200, 5) * torch.tensor([90, 90, 40, 40, 4 * math.pi]) + torch.tensor([0, 0, 4, 4, -2 * math.pi])
    made = _as_labels(boxes)
    assert (made[:, 2] >= made[:, 3]).all()
    assert (made[:, 4] >= -math.pi / 4).all() and (made[:, 4] < 3 * math.pi / 4 + 1e-6).all()
    same = (corners(made) - corners(boxes)).abs().amax((1, 2))
    assert (same < 1e-3).float().mean() > 0.98  # but for ties of the order


def test_small_rotated_boxes_are_as_good_in_the_last_image_of_a_batch_as_in_the_first():
    """Coordinates of 32 bits are exact to a pixel only where images lie far apart."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(300, 5, generator=generator) * torch.tensor([40.0, 40.0, 6.0, 6.0, 1.5])
    boxes[:, 2:4] += 3
    confidence, image = torch.rand(300, generator=generator), torch.zeros(300, dtype=torch.long)
    first = _kept(boxes, confidence, image, IOU)
    assert 0 < first.sum() < 300
    both = _kept(boxes.repeat(2, 1), confidence.repeat(2), torch.cat((image, image + 200)), IOU)
    assert torch.equal(both, first.repeat(2))


def test_several_teachers_of_rotated_boxes_are_refused():
    teacher = SimpleNamespace(answers_separately=True)
    with pytest.raises(KDError, match=r"'kd_unlabeled_boxes=0\.5' with task 'obb' is for one teacher: name one"):
        build_pseudo_boxes(SimpleNamespace(kd_unlabeled_boxes=0.5, task="obb"), None, teacher)


def test_an_answer_that_was_not_finite_leaves_the_labels_alone():
    student, _, loss = with_boxes()
    batch = batch_of(2, 64)
    preds = student(batch["img"])
    lost = {**first_labeled(batch, 1), "teacher": as_answer(batch, batch["batch_idx"] == 1)}
    lost[FINITE_FACTOR] = torch.tensor(0.0)
    expected, _ = loss.base(*loss._labeled(preds, lost))
    assert torch.equal(loss(preds, lost)[0][:3], expected) and loss.pseudo.counts.images == 0


def test_without_it_and_in_validation_the_base_loss_is_as_ever():
    student, _, loss = with_boxes()
    batch = batch_of(2, 64)
    preds, labels = student(batch["img"]), first_labeled(batch, 1)
    answer = as_answer(batch, batch["batch_idx"] >= 0)
    val = loss(preds, {**batch, "teacher": answer})[0][:3]
    assert torch.equal(val, loss.base(preds, batch)[0])
    loss.pseudo = None
    plain = loss(preds, {**labels, "teacher": answer})[0][:3]
    assert torch.equal(plain, loss.base(*loss._labeled(preds, labels))[0])


def test_a_teacher_with_levels_that_the_student_lacks_is_refused():
    _, teacher, loss = with_boxes()
    coarse = SimpleNamespace(layout=replace(teacher.layout, strides=(8, 16, 32, 64)))
    several = SimpleNamespace(members=[teacher, coarse], answers_separately=False)
    arguments = SimpleNamespace(kd_unlabeled_boxes=0.5)
    with pytest.raises(KDError, match=r"'kd_unlabeled_boxes=0\.5': the teacher has levels of strides \[64\]"):
        build_pseudo_boxes(arguments, loss.distiller, several)
    distiller = SimpleNamespace(teacher_heads=[], student_layout=loss.distiller.student_layout)
    assert build_pseudo_boxes(arguments, distiller, several).teacher is None  # their sets have objects of all levels


@pytest.mark.parametrize("sets", [False, True])
def test_kept_classes_refuse_a_teacher_with_levels_that_the_student_lacks(sets, monkeypatch):
    """Objects that it finds only there would be background of the kept classes."""
    _, teacher, loss = with_boxes()
    coarse = SimpleNamespace(layout=replace(teacher.layout, strides=(8, 16, 32, 64)))
    heads = [] if sets else loss.distiller.teacher_heads
    distiller = SimpleNamespace(teacher_heads=heads, student_layout=loss.distiller.student_layout)
    refused = pytest.raises(KDError, match=r"'kd_keep=True': the teacher has levels of strides \[64\]")
    with nullcontext() if sets else refused:
        check_levels("'kd_keep=True'", distiller, SimpleNamespace(members=[teacher, coarse]))


def test_a_loss_of_the_users_own_is_refused():
    _, _, loss = with_boxes()

    class Own:
        def __call__(self, preds, batch):
            return torch.zeros(3), {}

    with pytest.raises(KDError, match="'kd_unlabeled_boxes' needs Ultralytics' own loss, and Own has no `bce`"):
        type(loss)(Own(), loss.distiller, loss.head, pseudo=loss.pseudo)


# The argument ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, 50, float("nan"), False, "high", [0.5]])
def test_what_is_no_confidence_is_refused(value):
    with pytest.raises(KDError, match=rf"'kd_unlabeled_boxes={value}' is".replace("[", r"\[")):
        config.check_values({"kd_unlabeled_boxes": value})


@pytest.mark.parametrize(
    "given, message",
    [
        ({"teacher": None, "kd_unlabeled": None}, "'kd_unlabeled_boxes=0.5' has no effect without a teacher"),
        ({"kd_unlabeled": None}, "'kd_unlabeled_boxes=0.5' has no effect without images: add kd_unlabeled=FOLDER"),
        ({"task": "segment"}, "'kd_unlabeled_boxes=0.5' is supported for detect and obb, not for task 'segment'"),
        ({"task": "classify"}, "'kd_unlabeled_boxes=0.5' is supported for detect and obb"),
    ],
)
def test_combinations_without_a_meaning_are_refused(given, message):
    own = {"teacher": "t.pt", "task": "detect", "kd_unlabeled": "x", "kd_unlabeled_boxes": 0.5}
    with pytest.raises(KDError, match=message):
        config.check_combination(vars(get_cfg(overrides={**own, **given})))


def test_arms_of_a_bench_differ_in_it():
    common = {"data": "d.yaml", "model": STUDENT, "teacher_model": TEACHER, "teacher_epochs": 1}
    arms = {"both": {"kd_unlabeled": "rest", "kd_unlabeled_boxes": True}, "terms": {"kd_unlabeled": "rest"}}
    plan = make_plan({**common, "arms": arms})
    assert {a.name: a.args.get("kd_unlabeled_boxes") for a in plan.arms} == {"alone": None, "both": True, "terms": None}
    with pytest.raises(KDError, match=r"arm 'both': 'kd_unlabeled_boxes=0\.4' has no effect without images"):
        make_plan({**common, "arms": {"both": {"kd_unlabeled_boxes": 0.4}}})


# Trainings ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Return a folder of images without labels."""
    return str(draw_dataset(tmp_path_factory.mktemp("extra") / "shapes", images=6, seed=7).parent / "images" / "train")


@pytest.fixture
def log(caplog):
    """Return what Ultralytics logs."""
    LOGGER.propagate = True
    yield caplog
    LOGGER.propagate = False


def test_a_run_says_how_many_boxes_there_are_saves_it_and_resumes_with_it(quick, teacher, folder, tmp_path, log):
    last = tmp_path / "last.pt"
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**quick, teacher=teacher, kd_unlabeled=folder, kd_unlabeled_boxes=0.3)
    assert "1 for each with labels, boxes of confidence 0.3 or more are their labels" in " ".join(log.text.split())
    assert log.text.count("boxes for each image without labels are labels") == 1
    counts = model.trainer.distillation.pseudo.counts
    assert "images with labels have " in log.text and counts.images == 0  # logged and begun anew
    assert "kd_unlabeled_boxes: 0.3" in (model.trainer.save_dir / "args.yaml").read_text()
    assert torch_load(last)["train_args"]["kd_unlabeled_boxes"] == 0.3
    assert not (model.trainer.save_dir / "unlabeled_batch0.jpg").exists()  # without plots
    whole = results(Path(model.trainer.save_dir))
    again = YOLO(last)
    again.train(resume=True)
    assert again.trainer.start_epoch == 1 and again.trainer.distillation.pseudo.confidence == 0.3
    row = results(Path(again.trainer.save_dir))[1]
    assert row["train/cls_loss"] == pytest.approx(whole[1]["train/cls_loss"], rel=0.3)


def test_the_number_of_boxes_is_told_when_it_changes_by_half():
    _, _, loss = with_boxes()
    told = []
    for boxes in (20, 29, 0, 0, 31):
        loss.pseudo.counts.add(10, boxes, 5, 10, 25)
        told.append(loss.pseudo.news())
    assert told[0] == (
        "2.00 boxes for each image without labels are labels, 0.50 more are in doubt; images with labels have 2.50.",
        False,
    )
    nothing = "the teacher is not sure of any box in the images without labels (0.50 for each in doubt)"
    assert told[2] == (f"{nothing}: lower kd_unlabeled_boxes, or drop it.", True)
    assert told[1] == told[3] == ("", False) and told[4][0].startswith("3.10 boxes")
    assert loss.pseudo.news() == ("", False)


def test_a_picture_shows_the_boxes(tmp_path):
    student, _, loss = with_boxes()
    batch = batch_of(3, 64)
    preds, before = student(batch["img"]), batch["img"].clone()
    for confidence in (0.9, 0.2):
        answer = as_answer(batch, batch["batch_idx"] > 0, confidence)
        loss(preds, {**first_labeled(batch, 1), "teacher": answer})
        loss.pseudo.plot(batch["img"], {0: "disc", 1: "box", 2: "bar"}, tmp_path / f"{confidence}.png")
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(30)
    boxes, none = (cv2.imread(str(tmp_path / f"{confidence}.png")) for confidence in (0.9, 0.2))
    assert torch.equal(batch["img"], before) and boxes.shape == none.shape == (128, 128, 3)
    changed = (boxes != none).any(-1)
    assert changed[:64, :64].any() and changed[64:, :64].any() and not changed[:, 64:].any()


@pytest.mark.nightly
@pytest.mark.parametrize("more", [{"teacher": "ema"}, {"kd_teacher_imgsz": 96}, {"kd_weight": "auto"}, {"two": True}])
def test_other_teachers_and_arguments_go_with_it(quick, teacher, folder, more):
    given = [teacher, teacher] if more.pop("two", False) else teacher
    arguments = {"teacher": given, "kd_unlabeled": folder, "kd_unlabeled_boxes": True, **more}
    seen = []

    class Looking(KDDetectionTrainer):
        def optimizer_step(self):
            seen.append(self.distillation.pseudo.counts.images)
            super().optimizer_step()

    model = YOLO(STUDENT)
    model.train(**{**quick, "plots": "ema" in more.values()}, **arguments, nbs=4, trainer=Looking)
    assert (model.trainer.save_dir / "unlabeled_batch0.jpg").exists() == model.trainer.args.plots
    assert seen[:2] == [4, 8] and model.trainer.distillation.pseudo.confidence == 0.5
    assert isinstance(model.trainer.distillation.pseudo, PseudoBoxes)
