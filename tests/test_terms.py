"""The terms of detection, over every combination of heads."""

import functools
import itertools
import pickle
from copy import deepcopy

import pytest
import torch
from conftest import make_model
from ultralytics.cfg import get_cfg

from ultralytics_kd import KDError, losses, outputs
from ultralytics_kd.distillation.distillers import GridDistiller
from ultralytics_kd.distillation.loss import DistillationLoss
from ultralytics_kd.teachers import open_teacher
from ultralytics_kd.teachers.class_map import match_classes

NAMES = {0: "a", 1: "b", 2: "c"}
HEADS = [  # student, teacher: end-to-end or single, DFL or not, 3 or 4 levels
    ("yolo26n.yaml", "yolo26s.yaml"),
    ("yolo26n.yaml", "yolo11s.yaml"),
    ("yolo26n.yaml", "yolov8s.yaml"),
    ("yolo11n.yaml", "yolo26s.yaml"),
    ("yolov8n.yaml", "yolo11s.yaml"),
    ("yolo12n.yaml", "yolo12s.yaml"),
    ("yolov10n.yaml", "yolov8s.yaml"),
    ("yolo26n-p2.yaml", "yolo26s-p2.yaml"),
    ("yolo26n-p6.yaml", "yolo26s-p6.yaml"),
    ("yolov8n-p6.yaml", "yolo26s-p6.yaml"),
]
LOSSES = {
    "kd_cls": ["bckd", "qfl", "kl"],
    "kd_box": ["iou", "l1", "ld"],
    "kd_feat": ["pkd", "cwd", "mgd", "sl2", "crosskd"],
}


@functools.cache
def _built(cfg):
    return make_model(cfg)


def build(cfg):
    """Return a model of its own; copying is quicker than building."""
    return deepcopy(_built(cfg))


def setup(student_cfg, teacher_cfg, images=2, imgsz=64, teacher=None, **args):
    """Return student, distiller, a batch with the teacher's answer, and the loss."""
    torch.manual_seed(0)
    student = build(student_cfg).train()
    teacher = open_teacher(teacher or build(teacher_cfg))
    teacher.classes = match_classes(NAMES, NAMES)
    weights = {"kd_cls": 0.0, "kd_box": 0.0, "kd_feat": 0.0}
    student.args = get_cfg(overrides={"teacher": "t.pt", "imgsz": imgsz, **weights, **args})
    distiller = GridDistiller(student.args, student, teacher)
    teacher.prepare(torch.device("cpu"), distiller.reads)
    batch = {
        "img": torch.rand(images, 3, imgsz, imgsz),
        "batch_idx": torch.zeros(0),
        "cls": torch.zeros(0, 1),
        "bboxes": torch.zeros(0, 4),
    }
    batch["teacher"] = teacher(batch["img"])
    loss = DistillationLoss(student.init_criterion(), distiller, student.model[-1])
    return student, teacher, distiller, batch, loss


def possible(loss_name, student_cfg, teacher_cfg):
    """LD needs bins on both sides."""
    return loss_name != "ld" or "26" not in student_cfg + teacher_cfg


@pytest.mark.parametrize(
    "student_cfg, teacher_cfg", [*HEADS[:2], *(pytest.param(*pair, marks=pytest.mark.nightly) for pair in HEADS[2:])]
)
def test_every_loss_has_a_finite_gradient_to_the_student_and_none_to_the_teacher(student_cfg, teacher_cfg):
    """At batch 1, in an image without objects, in training mode and validation mode."""
    imgsz = 128 if "-p" in student_cfg else 64  # BatchNorm needs more than one position
    for names in itertools.zip_longest(*LOSSES.values(), fillvalue=None):
        chosen = {w: n for w, n in zip(LOSSES, names) if n and possible(n, student_cfg, teacher_cfg)}
        args = {**dict.fromkeys(chosen, 1.0), **{f"{w}_loss": n for w, n in chosen.items()}}
        student, teacher, distiller, batch, loss = setup(student_cfg, teacher_cfg, 1, imgsz, **args)
        total, items = loss(student(batch["img"]), batch)
        assert {k for k in items if k in LOSSES and items[k] > 0} == set(chosen)
        for weight, part in zip(distiller.terms, total[3:]):
            student.zero_grad()
            part.backward(retain_graph=True)
            gradients = [p.grad for p in student.parameters() if p.grad is not None]
            assert all(g.isfinite().all() for g in gradients), chosen[weight]
            assert any(g.any() for g in gradients), chosen[weight]
        assert all(p.grad.isfinite().all() for p in distiller.adapters.parameters())
        trained = [p.grad.any() for p in distiller.adapters.parameters()]
        assert any(trained) or not trained
        assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
        with torch.no_grad():
            _, validation = loss(student.eval()(batch["img"]), batch)
        assert all(validation[w].isfinite() for w in chosen)


@pytest.mark.parametrize("loss_name", LOSSES["kd_feat"])
def test_terms_are_float32_under_mixed_precision(loss_name):
    """Autocast gives half-precision predictions and features to terms and adapters; the values hardly change."""
    args = {"kd_cls": 1.0, "kd_box": 1.0, "kd_feat": 1.0, "kd_feat_loss": loss_name}
    student, teacher, distiller, batch, loss = setup("yolo26n.yaml", "yolo26s.yaml", imgsz=128, **args)

    def step(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            torch.manual_seed(0)  # mgd draws what it hides
            preds = student(batch["img"])
            return loss(preds, {**batch, "teacher": teacher(batch["img"])})

    _, full = step(False)
    total, items = step(True)
    total[3:].sum().backward()
    for weight in LOSSES:
        assert items[weight].dtype == torch.float32
        torch.testing.assert_close(items[weight], full[weight], rtol=0.1, atol=0.01)
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in distiller.adapters.parameters())


def test_ld_is_refused_where_a_side_has_no_bins():
    with pytest.raises(KDError, match="the student has reg_max=1 and the teacher reg_max=16"):
        setup("yolo26n.yaml", "yolo11s.yaml", kd_box=1.0, kd_box_loss="ld")


class SetOfBoxes:
    """A teacher that predicts a set of detections: one box in every image."""

    names = NAMES

    def teach(self, images):
        one = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "probs": torch.tensor([[0.1, 0.8, 0.1]])}
        return [one for _ in images]


@pytest.mark.parametrize("student_cfg", ["yolo11n.yaml", "yolo26n.yaml"])
def test_ld_is_refused_for_a_teacher_that_predicts_a_set_of_detections(student_cfg):
    """Before training, whether the student has bins (YOLO11) or not (YOLO26)."""
    message = "kd_box_loss=ld compares distributions over box bins, but the teacher predicts a set of detections"
    with pytest.raises(KDError, match=f"{message}, which have none: use kd_box_loss=iou or l1"):
        setup(student_cfg, None, teacher=SetOfBoxes(), kd_box=1.0, kd_box_loss="ld")
    student, _, _, batch, loss = setup(student_cfg, None, teacher=SetOfBoxes(), kd_box=1.0)
    assert loss(student(batch["img"]), batch)[1]["kd_box"] > 0


@pytest.mark.core
@pytest.mark.parametrize(
    "cfg",
    [
        "yolo26n.yaml",
        "yolov8n-p2.yaml",
        *(pytest.param(f"{name}.yaml", marks=pytest.mark.nightly) for name in ("yolov8n", "yolo26n-p6", "yolov10n")),
    ],
)
@pytest.mark.parametrize(
    "weight, name",
    [(w, n) for w, names in LOSSES.items() for n in names if n != "mgd"],
)
def test_terms_of_a_student_equal_to_its_teacher_are_zero(cfg, weight, name):
    """The term is 0, and grows when the student moves. (MGD must generate what it hides: see its own test.)"""
    if not possible(name, cfg, cfg):
        return
    model = build(cfg)
    student, _, _, batch, loss = setup(cfg, cfg, teacher=model, **{weight: 1.0, f"{weight}_loss": name})
    student.load_state_dict(model.state_dict())
    student.eval()  # the teacher's BatchNorm statistics
    with torch.no_grad():
        equal = loss(student(batch["img"]), batch)[1][weight].item()
        for p in student.parameters():  # all levels: a channel-wise softmax over a level of one cell is always 1
            p.add_(0.05 * p.std(correction=0) * torch.randn_like(p))
        apart = loss(student(batch["img"]), batch)[1][weight].item()
    assert equal == pytest.approx(0, abs=1e-3)
    assert apart > max(5 * equal, 1e-2)


def test_mgd_is_at_its_minimum_when_the_block_generates_the_teachers_feature():
    from ultralytics_kd.losses import mgd_distance

    feature = torch.rand(2, 4, 8, 8)
    assert mgd_distance(feature.clone(), feature) == 0


def test_mgd_hides_positions_and_trains_its_generation_block():
    from ultralytics_kd.distillation.terms.feature import MGD

    torch.manual_seed(0)
    block = MGD(8, 16)
    seen = []
    block.generation.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    out = block(torch.ones(4, 8, 32, 32))
    hidden = (seen[0] == 0).all(1).float().mean().item()
    assert out.shape == (4, 16, 32, 32)
    assert hidden == pytest.approx(0.65, abs=0.03)
    out.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in block.generation.parameters())


@pytest.mark.core
def test_crosskd_leaves_the_students_batchnorm_statistics_alone():
    """Its second pass through the first head blocks must not count twice."""
    student, _, _, batch, loss = setup("yolo26n.yaml", "yolo26s.yaml", kd_feat=1.0, kd_feat_loss="crosskd")
    preds = student(batch["img"])
    before = {k: v.clone() for k, v in student.state_dict().items()}
    loss(preds, batch)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


@pytest.mark.core
def test_teacher_with_one_branch_teaches_only_one_to_many():
    """Its duplicates must not reach the branch that works without NMS."""
    student, _, _, batch, loss = setup("yolo26n.yaml", "yolo11s.yaml", kd_cls=1.0, kd_box=1.0)
    total, _ = loss(student(batch["img"]), batch)
    total[3:].sum().backward()
    head = student.model[-1]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.cv3.parameters())
    assert all(p.grad is None or not p.grad.any() for p in head.one2one_cv3.parameters())


@pytest.mark.core
def test_terms_follow_the_branch_gains_and_the_schedule():
    student, _, distiller, batch, loss = setup("yolo26n.yaml", "yolo26s.yaml", kd_cls=1.0, kd_schedule="linear")
    with torch.no_grad():
        preds = student.eval()(batch["img"])
        start = loss(preds, batch)[1]["kd_cls"]
        loss.base.o2m, loss.base.o2o = 0.0, 0.0
        assert loss(preds, batch)[1]["kd_cls"] == 0
        loss.base.o2m, loss.base.o2o = 1.6, 0.4
        torch.testing.assert_close(loss(preds, batch)[1]["kd_cls"], start * 2)
        distiller.start_epoch(0.75)
        torch.testing.assert_close(loss(preds, batch)[1]["kd_cls"], start * 2 * 0.25)
    for schedule, fade in (("cosine", 0.1464), ("constant", 1.0)):
        distiller.schedule = schedule
        distiller.start_epoch(0.75)
        assert distiller.fade == pytest.approx(fade, abs=1e-4)


def test_moving_average_is_measured_with_the_gains_of_the_model_that_trains():
    """Ultralytics updates the gains of that model's loss only; kd columns of train and val must be comparable."""
    student, _, distiller, batch, loss = setup("yolo26n.yaml", "yolo26s.yaml", kd_cls=1.0)
    average = DistillationLoss(student.init_criterion(), distiller, student.model[-1], trains=False)
    with torch.no_grad():
        preds = student.eval()(batch["img"])
        loss.base.o2m, loss.base.o2o = 0.1, 0.9
        expected = loss(preds, batch)[1]["kd_cls"]
        assert average.base.o2m == pytest.approx(0.8)
        torch.testing.assert_close(average(preds, batch)[1]["kd_cls"], expected)


def test_adapters_leave_the_global_random_stream_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    student, _, _, batch, loss = setup("yolo26n.yaml", "yolo26s.yaml", kd_feat=1.0, kd_feat_loss="mgd")
    preds = student(batch["img"])
    torch.manual_seed(3)
    first, second = (loss(preds, batch)[1]["kd_feat"] for _ in range(2))
    GridDistiller(student.args, student, batch["teacher"].teacher)
    assert torch.rand(1) == expected
    assert first != second  # another mask at every step


def test_weights_mean_the_same_at_any_batch_size():
    """The same image twice: equal items, twice the loss, as the base loss does."""
    student, teacher, _, batch, loss = setup("yolo26n.yaml", "yolo26s.yaml", images=1, kd_cls=1.0, kd_box=1.0)
    twice = {**batch, "img": batch["img"].repeat(2, 1, 1, 1)}
    twice["teacher"] = teacher(twice["img"])
    student.eval()
    with torch.no_grad():
        one, one_items = loss(student(batch["img"]), batch)
        two, two_items = loss(student(twice["img"]), twice)
    torch.testing.assert_close(two[3:], 2 * one[3:], rtol=1e-5, atol=0)
    torch.testing.assert_close(two_items["kd_cls"], one_items["kd_cls"], rtol=1e-5, atol=0)


@pytest.mark.core
def test_a_loss_asks_for_the_answer_that_a_batch_lacks():
    """A trainer with its own preprocess_batch can't train around the teacher; a batch without gradient asks nobody."""
    student, _, distiller, batch, _ = setup("yolo26n.yaml", "yolo26s.yaml", kd_cls=1.0)
    answer, asked = batch.pop("teacher"), []

    def ask(batch):
        asked.append(batch["img"])
        batch["teacher"] = answer

    loss = DistillationLoss(student.init_criterion(), distiller, student.model[-1], ask=ask)
    average = DistillationLoss(student.init_criterion(), distiller, student.model[-1], trains=False, ask=ask)
    preds = student(batch["img"])
    with torch.no_grad():
        assert torch.equal(loss(preds, dict(batch))[0], loss.base(preds, batch)[0]) and not asked
    assert loss(preds, dict(batch))[1]["kd_cls"] > 0 and asked.pop() is batch["img"]
    with torch.no_grad():
        assert average(preds, dict(batch))[1]["kd_cls"] > 0 and asked.pop() is batch["img"]


@pytest.mark.core
def test_copies_and_pickles_of_a_model_hold_the_base_loss_alone():
    student, *_, loss = setup("yolo26n.yaml", "yolo26s.yaml", kd_cls=1.0)
    student.criterion = loss
    assert type(deepcopy(student).criterion) is type(loss.base)
    assert type(pickle.loads(pickle.dumps(student)).criterion) is type(loss.base)


TAU_LOSSES = {"kd_cls": "kl", "kd_box": "ld", "kd_feat": "cwd"}


@pytest.mark.core
@pytest.mark.parametrize("term", TAU_LOSSES)
def test_the_temperature_of_a_term_wins_over_kd_tau_and_reaches_no_other_term(term):
    losses_of = {f"{name}_loss": loss for name, loss in TAU_LOSSES.items()}
    for cfg in ("yolo11n.yaml", "yolo11s.yaml"):
        build(cfg)  # the first build draws random numbers, which later ones do not

    def items(**args):
        student, _, _, batch, loss = setup(
            "yolo11n.yaml", "yolo11s.yaml", **dict.fromkeys(TAU_LOSSES, 1.0), **losses_of, **args
        )
        return loss(student(batch["img"]), batch)[1]

    default, softer, one, own = (
        items(),
        items(kd_tau=4.0),
        items(**{f"{term}_tau": 4.0}),
        items(kd_tau=4.0, **{f"{term}_tau": 7.0}),
    )
    for name in TAU_LOSSES:
        assert not torch.equal(default[name], softer[name])
        assert torch.equal(one[name], softer[name] if name == term else default[name])
        assert torch.equal(own[name], softer[name]) == (name != term)
    defaults = {"kd_cls_tau": 1.0, "kd_box_tau": 10.0, "kd_feat_tau": 1.0}
    assert all(torch.equal(value, default[name]) for name, value in items(**defaults).items())


@pytest.mark.core
def test_without_a_teacher_in_the_batch_the_loss_is_the_base_loss():
    student, _, _, batch, loss = setup("yolo26n.yaml", "yolo26s.yaml", kd_cls=1.0)
    del batch["teacher"]
    preds = student(batch["img"])
    expected, items = loss.base(preds, batch)
    got, got_items = loss(preds, batch)
    assert torch.equal(got, expected) and got_items.keys() == items.keys()


def test_unmatched_student_classes_get_no_gradient_from_the_teacher():
    teacher = make_model("yolo26s.yaml", nc=2)
    torch.manual_seed(0)
    student = make_model("yolo26n.yaml").train()
    student.args = get_cfg(overrides={"teacher": "t.pt", "kd_box": 0})
    teacher = open_teacher(teacher)
    teacher.classes = match_classes(NAMES, {0: "C", 1: "other"})
    teacher.prepare(torch.device("cpu"))
    images = torch.rand(2, 3, 64, 64)
    answer = teacher(images)
    assert answer.classes.tolist() == [2] and answer.branches["one2many"].scores.shape[-1] == 1
    batch = {"img": images, "batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    loss = DistillationLoss(student.init_criterion(), GridDistiller(student.args, student, teacher), student.model[-1])
    preds = student(images)
    for branch in preds.values():
        branch["scores"].retain_grad()
    total, _ = loss(preds, {**batch, "teacher": answer})
    total[3:].sum().backward()
    gradient = preds["one2many"]["scores"].grad.abs().sum((0, 2))
    assert gradient[2] > 0 and gradient[0] == gradient[1] == 0


@pytest.mark.core
def test_teacher_answers_with_the_outputs_of_the_model_in_eval_mode():
    """Fusing, skipping the decoding and running both branches at once change no value."""
    model = make_model("yolo26s.yaml").eval()
    teacher = open_teacher(model)
    teacher.classes = match_classes(NAMES, NAMES)
    teacher.prepare(torch.device("cpu"))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        raw = model(images)[1]
    answer = teacher(images)
    assert set(answer.branches) == {"one2many", "one2one"}
    for name, branch in answer.branches.items():
        torch.testing.assert_close(branch.scores, raw[name]["scores"].transpose(1, 2), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(branch.boxes, raw[name]["boxes"].transpose(1, 2), rtol=1e-3, atol=1e-3)
        assert not branch.scores.requires_grad


@pytest.mark.core
def test_decoded_boxes_equal_ultralytics_own():
    for cfg in ("yolo26n.yaml", "yolov8n.yaml"):
        model = make_model(cfg).eval()
        with torch.no_grad():
            for tower in model.model[-1].cv2:
                tower[-1].bias[: tower[-1].out_channels // 4] -= 2.2  # some anchor points lie left of their boxes
            decoded, raw = model(torch.rand(1, 3, 64, 64))
        layout = outputs.layout(model)
        branch = outputs.branches((decoded, raw))["one2many"]
        boxes = outputs.decode(branch.boxes, branch.feats, layout)
        stride = torch.cat([torch.full((f.shape[2] * f.shape[3],), s) for f, s in zip(branch.feats, layout.strides)])
        xyxy = boxes[0] * stride[:, None]
        xywh = torch.cat(((xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]), 1)
        sides = branch.boxes[0]
        # An anchor point outside a box has a negative distance: still a box, as long as opposite sides do not cross
        regular = (sides[:, :2] + sides[:, 2:] > 0).all(-1) if layout.reg_max == 1 else torch.ones(len(xywh)).bool()
        assert regular.any() and (layout.reg_max > 1 or (sides[regular] < 0).any())
        torch.testing.assert_close(xywh[regular], decoded[0, :4].T[regular], rtol=1e-4, atol=1e-3)


def test_anchor_points_of_half_precision_maps_are_those_of_float32():
    """bfloat16 can represent only every fourth of a thousand columns."""
    layout = outputs.layout(make_model("yolo26n.yaml"))
    feats = [torch.zeros(1, 8, 2, 8192 // s) for s in layout.strides]
    boxes = torch.full((1, sum(f.shape[2] * f.shape[3] for f in feats), 4), 2.0)
    fine, coarse = (
        outputs.pixels(outputs.Branch(boxes, boxes, [f.to(kind) for f in feats]), layout)
        for kind in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(fine, coarse) and fine[0, 1, 0] - fine[0, 0, 0] == layout.strides[0]


def test_box_with_crossed_sides_counts_as_flat_and_its_gradient_opens_it():
    """YOLO26 predicts plain distances: crossed sides must neither give an IoU above 1 nor lose their gradient."""
    layout = outputs.Layout((8,), (16,), 1, 1, ("one2many",))
    grid = [torch.zeros(1, 16, 1, 1)]
    student = torch.tensor([[[-3.0, 1.0, -2.0, 1.0]]], requires_grad=True)
    teacher = outputs.decode(torch.tensor([[[1.0, 1.0, 1.0, 1.0]]]), grid, layout)
    boxes = outputs.decode(student, grid, layout)
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    one = torch.ones(1)
    loss = losses.iou_loss(boxes[0], teacher[0], one, 1.0)
    assert 0 < loss < 2
    loss.backward()
    assert student.grad[0, 0, 0] < 0 and student.grad[0, 0, 2] < 0  # a step down the gradient opens the box


def test_box_of_a_small_object_beside_its_anchor_point_has_a_gradient():
    """Objects below a cell are trained on anchor points outside their box: one distance is negative."""
    layout = outputs.Layout((8,), (16,), 1, 1, ("one2many",))
    grid = [torch.zeros(1, 16, 1, 1)]
    teacher = outputs.decode(torch.tensor([[[-0.6, 1.0, 1.1, 1.0]]]), grid, layout)
    torch.testing.assert_close(teacher, torch.tensor([[[1.1, -0.5, 1.6, 1.5]]]))
    student = torch.tensor([[[-0.1, 1.0, 1.1, 1.0]]], requires_grad=True)
    loss = losses.iou_loss(outputs.decode(student, grid, layout)[0], teacher[0], torch.ones(1), 1.0)
    loss.backward()
    assert loss > 0.4 and student.grad[0, 0, 0] > 0
