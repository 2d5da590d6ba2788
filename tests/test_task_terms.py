"""Terms and losses of every task but detection, on models that were not trained."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from task_models import OTHERS, task_model
from ultralytics.cfg import get_cfg

from ultralytics_kd import KDError, losses
from ultralytics_kd.config.arguments import TASK_WEIGHTS
from ultralytics_kd.distillation.distillers import build_distiller
from ultralytics_kd.distillation.loss import DistillationLoss
from ultralytics_kd.teachers import open_teacher

pytestmark = pytest.mark.core  # of .ci/releases

CPU = torch.device("cpu")


def parts(task: str, teacher, family: str = "yolo26n", **args):
    """Return student, prepared teacher, distiller and the student's loss, as a trainer would build them."""
    student = task_model(task, family, seed=1).train()
    student.args = get_cfg(overrides={"teacher": "t.pt", "task": task, **args})
    teacher = open_teacher(teacher, task)
    teacher.match(teacher.names)
    distiller = build_distiller(student.args, student, teacher)
    teacher.prepare(CPU, distiller.reads)
    return student, teacher, distiller, DistillationLoss(student.init_criterion(), distiller, student.model[-1])


def task_batch(task: str, images: int = 4, imgsz: int = 64) -> dict:
    """Return images without objects, in the form of the task's batches."""
    torch.manual_seed(1)
    batch = {"img": torch.rand(images, 3, imgsz, imgsz), "batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1)}
    batch["bboxes"] = torch.zeros(0, 5 if task == "obb" else 4)
    if task == "segment":
        batch |= {"masks": torch.zeros(images, imgsz // 4, imgsz // 4), "sem_masks": torch.zeros(images, 16, 16)}
    if task == "pose":
        batch["keypoints"] = torch.zeros(0, 5, 3)
    if task == "classify":
        batch["cls"] = torch.arange(images) % 3
    if task == "semantic":
        batch["semantic_mask"] = torch.randint(0, 6, (images, imgsz, imgsz))
    if task == "depth":
        batch["depth"] = torch.rand(images, imgsz, imgsz) + 1
    return batch


@pytest.mark.parametrize("task", OTHERS)
def test_terms_of_a_student_equal_to_its_teacher_are_zero(task):
    """Terms are 0 then, and grow when the student moves."""
    model = task_model(task)
    student, teacher, _, loss = parts(task, deepcopy(model))
    student.load_state_dict(model.state_dict())
    student.eval()
    batch = task_batch(task)
    batch["teacher"] = teacher(batch["img"])
    terms = [t for t in TASK_WEIGHTS[task] if t != "kd_feat"]
    with torch.no_grad():
        equal = loss(student(batch["img"]), batch)[1]
        for p in student.parameters():
            p.add_(0.05 * p.std(correction=0) * torch.randn_like(p))
        apart = loss(student(batch["img"]), batch)[1]
    for term in terms:
        assert equal[term].item() == pytest.approx(0, abs=2e-2), term
        assert apart[term] > equal[term], term


CROSS = [  # task, student's family, teacher's family
    ("segment", "yolo26n", "yolo11n"),
    ("segment", "yolov8n", "yolo26n"),
    ("pose", "yolo26n", "yolo11n"),
    ("pose", "yolov8n", "yolo26n"),
    ("pose", "yolo26n", "yolo26n"),
    ("obb", "yolo26n", "yolo11n"),
    ("obb", "yolov8n", "yolo26n"),
    ("classify", "yolo26n", "yolov8n"),
]


@pytest.mark.parametrize(
    "task, student_family, teacher_family",
    [*CROSS[::3], *(pytest.param(*c, marks=pytest.mark.nightly) for i, c in enumerate(CROSS) if i % 3)],
)
def test_terms_of_a_task_fall_between_families(task, student_family, teacher_family):
    student, teacher, _, loss = parts(task, task_model(task, teacher_family), student_family)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    batch = task_batch(task)
    batch["teacher"] = teacher(batch["img"])
    count, log = len(TASK_WEIGHTS[task]), []
    for _ in range(20):
        total, items = loss(student(batch["img"]), batch)
        optimizer.zero_grad()
        total[-count:].sum().backward()
        optimizer.step()
        log.append({k: float(v) for k, v in items.items()})
    for term in (t for t in TASK_WEIGHTS[task] if t != "kd_feat"):
        first, last = (sum(step[term] for step in part) / 3 for part in (log[:3], log[-3:]))
        assert 0 < last < 0.97 * first, (term, first, last)


def test_composed_masks_are_compared_not_coefficients():
    """Prototypes in another order, and coefficients with them, are the same masks."""
    student, teacher, _, loss = parts("segment", task_model("segment", "yolo26s"))
    batch = task_batch("segment")
    answer = teacher(batch["img"])
    order = torch.randperm(32)
    shuffled = deepcopy(answer)
    for branch in shuffled.branches.values():
        branch.extras["mask_coefficient"] = branch.extras["mask_coefficient"][..., order]
        branch.proto = branch.proto[:, order]
    with torch.no_grad():
        preds = student.eval()(batch["img"])
        one, other = (loss(preds, {**batch, "teacher": a})[1]["kd_mask"] for a in (answer, shuffled))
    assert one > 0
    torch.testing.assert_close(one, other)


def test_number_of_keypoints_must_be_the_same():
    student = task_model("pose")
    student.args = get_cfg(overrides={"teacher": "t.pt", "task": "pose"})
    other = type(student)("yolo26n-pose.yaml", nc=6, verbose=False)  # 17 keypoints
    teacher = open_teacher(other, "pose")
    teacher.match(teacher.names)
    with pytest.raises(KDError, match="student has 5 and the teacher 17: set kd_kpt=0, or give a teacher with 5"):
        build_distiller(student.args, student, teacher)


@pytest.mark.parametrize("loss", [losses.probiou_loss, losses.rotated_l1_loss, losses.angle_loss])
def test_equal_rotated_boxes_have_no_loss_in_any_description(loss):
    box = torch.tensor([[10.0, 12.0, 8.0, 3.0, 0.4]])
    same = [box + torch.tensor([0, 0, 0, 0, math.pi]), torch.tensor([[10.0, 12.0, 3.0, 8.0, 0.4 - math.pi / 2]])]
    one = torch.ones(1)
    for other in (box, *same):
        assert loss(other, box, one, 1.0) == pytest.approx(0, abs=1e-3)
    turned = box + torch.tensor([0, 0, 0, 0, 0.3])
    assert loss(turned, box, one, 1.0) > 0.02


@pytest.mark.parametrize("loss", [losses.probiou_loss, losses.rotated_l1_loss])
def test_gradient_opens_a_flat_rotated_box(loss):
    flat = torch.tensor([[5.0, 5.0, 0.0, 0.05, 0.0]], requires_grad=True)
    loss(flat, torch.tensor([[5.0, 5.0, 4.0, 4.0, 0.0]]), torch.ones(1), 1.0).backward()
    assert flat.grad[0, 2] < 0 and flat.grad[0, 3] < 0


@pytest.mark.parametrize("length", [400.0, 1e3, 1e5])
def test_slender_rotated_boxes_have_finite_gradients_with_any_weight(length):
    """Their covariance is singular in float32, and 0 times the derivative of a root at 0 is NaN."""
    torch.manual_seed(0)
    student, teacher = torch.rand(2, 2000, 5) * torch.tensor([length, length, length, 0.2, 6.0])
    student.requires_grad_()
    losses.probiou_loss(student, teacher, torch.zeros(2000), 1.0).backward()
    assert student.grad.isfinite().all()


def test_part_of_a_box_outside_the_image_does_not_change_the_mask_loss():
    student, teacher = torch.randn(2, 1, 8, 8)
    inside, beyond = torch.tensor([[0.0, 0.0, 5.0, 5.0]]), torch.tensor([[-5.0, -5.0, 5.0, 5.0]])
    torch.testing.assert_close(losses.mask_loss(student, teacher, inside), losses.mask_loss(student, teacher, beyond))


@pytest.mark.parametrize("task", ["segment", "pose"])
def test_terms_are_finite_on_outputs_in_half_precision(task):
    """Sums over all outputs overflow there, and 0 times such a sum would be NaN."""
    student, teacher, distiller, loss = parts(task, task_model(task, "yolo26s"))
    batch = task_batch(task)
    distiller.gains = {"one2many": 1.0, "one2one": 1.0}
    answer = teacher(batch["img"])
    with torch.no_grad():
        preds = student(batch["img"])
    for branch in preds.values():
        for name, value in branch.items():
            if isinstance(value, torch.Tensor):
                branch[name] = (value * 100).half().requires_grad_()
            elif name == "proto":
                branch[name] = tuple((v * 100 + 50).half().requires_grad_() for v in value)
    items = distiller(preds, answer, loss.head, loss.bases)
    assert all(v.isfinite() for v in items.values())
    sum(items.values()).backward()
    for branch in preds.values():
        leaves = [v for v in branch.values() if isinstance(v, torch.Tensor)]
        assert all(v.grad is None or v.grad.isfinite().all() for v in leaves)


def test_crosskd_is_refused_for_rotated_boxes():
    with pytest.raises(KDError, match="kd_feat_loss=crosskd does not support rotated boxes"):
        parts("obb", task_model("obb", "yolo26s"), kd_feat=1.0, kd_feat_loss="crosskd")


@pytest.mark.parametrize("importance", [None, 3.0])
def test_likelihood_of_a_keypoint_sums_both_coordinates_with_the_gain_of_the_base_loss(importance, monkeypatch):
    from ultralytics_kd.distillation.terms import keypoint

    _, teacher, distiller, loss = parts("pose", task_model("pose", "yolo26s"))
    student, batch = task_model("pose", seed=1).train(), task_batch("pose")
    answer, preds = teacher(batch["img"]), student(batch["img"])
    distiller.gains = {"one2many": 1.0, "one2one": 0.0}
    if importance:
        loss.bases["one2many"].target_weights = torch.full((5,), importance)

    def value(divergence: float) -> float:
        monkeypatch.setattr(keypoint, "laplace_kl", lambda a, *_: torch.full_like(a, divergence))
        return distiller(preds, answer, loss.head, loss.bases)["kd_kpt"].item()

    (pair,) = (p for _, p in distiller._pairs(preds_of(preds), answer, loss.head, loss.bases) if p.name == "one2many")
    weight = pair.most_confident(keypoint.PER_IMAGE)[2].sum()
    share = (weight / weight.clamp(min=1)).item()  # of the surest anchor points' weight, as of every part of the term
    hyp = loss.bases["one2many"].hyp
    # each coordinate adds its own divergence, as the base loss adds up both
    expected = distiller.weights["kd_kpt"] * hyp.rle / hyp.pose * 2 * (importance or 1.0) * share
    assert value(1.0) - value(0.0) == pytest.approx(expected, rel=1e-3)


def preds_of(preds) -> dict:
    """Return a student's branches."""
    from ultralytics_kd.outputs import branches

    return branches(preds)


def test_laplace_divergence_is_zero_at_equality_and_positive_elsewhere():
    place, scale = torch.tensor([0.3, -0.2]), torch.tensor([0.5, 0.1])
    assert losses.laplace_kl(place, place, scale, scale).abs().max() < 1e-6
    assert (losses.laplace_kl(place + 0.2, place, scale, scale) > 0).all()
    assert (losses.laplace_kl(place, place, scale * 2, scale) > 0).all()
    # numerically: the integral of q log(q / p)
    x = torch.linspace(-30, 30, 600001, dtype=torch.float64)
    q, p = torch.distributions.Laplace(0.3, 0.5), torch.distributions.Laplace(0.7, 0.9)
    expected = torch.trapezoid(q.log_prob(x).exp() * (q.log_prob(x) - p.log_prob(x)), x)
    got = losses.laplace_kl(torch.tensor(0.7), torch.tensor(0.3), torch.tensor(0.9), torch.tensor(0.5))
    assert got.item() == pytest.approx(expected.item(), abs=1e-4)


def test_depth_is_compared_where_the_teacher_is_valid():
    teacher = torch.full((1, 1, 8, 8), 3.0)
    student = teacher.clone()
    student[..., :2] = 9.0
    valid = torch.ones_like(teacher, dtype=torch.bool)
    assert losses.depth_loss(student, teacher, valid) > 0.1
    valid[..., :2] = False
    assert losses.depth_loss(student, teacher, valid) == 0
    assert losses.depth_loss(teacher.requires_grad_(), teacher.detach(), valid).item() == 0


def test_classes_that_the_teacher_of_a_softmax_lacks_get_no_gradient():
    """Both sides' softmax runs over the shared classes; several teacher classes for one add up."""
    student, teacher, distiller, _ = parts("classify", task_model("classify", "yolo26s"))
    names = dict(teacher.names)
    teacher.classes = None
    teacher.match(names, {names[0]: names[0], names[1]: names[1], names[2]: names[1]})
    images = torch.rand(4, 3, 64, 64)
    answer = teacher(images)
    logits = student(images)
    logits.retain_grad()
    distiller(logits, answer)["kd_cls"].backward()
    assert logits.grad[:, :2].any() and not logits.grad[:, 2:].any()
    with torch.no_grad():
        own = teacher._run(images)[0]
    torch.testing.assert_close(answer.value[:, 1], own[:, 1:3].logsumexp(1))


def test_one_matched_class_of_a_softmax_is_compared_by_its_odds_against_all_others():
    """A student that segments roads alone learns from a teacher that also knows cars."""
    from ultralytics_kd.teachers.class_map import match_classes

    match = match_classes({0: "road"}, {0: "road", 1: "car", 2: "sky"})
    logits = torch.tensor([[5.0, 10.0, 1.0]])
    expected = logits.softmax(1)[:, :1]
    torch.testing.assert_close(match.map_scores(logits, softmax=True).sigmoid(), expected)


def test_transformer_of_a_fixed_size_reads_images_of_any_size():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(image_size=224, patch_size=32, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16)
    model.names, model.task = {i: str(i) for i in range(1000)}, "classify"
    teacher = open_teacher(model, "classify")
    teacher.match(teacher.names)
    assert teacher.prepare(CPU)(torch.rand(2, 3, 64, 64)).value.shape == (2, 1000)


def test_a_single_matched_class_of_a_softmax_is_refused():
    teacher = open_teacher(task_model("classify"), "classify")
    with pytest.raises(KDError, match="knows one of the 6 classes"):
        teacher.match(teacher.names, {teacher.names[0]: teacher.names[0]})


def test_classifiers_of_different_classes_answer_separately():
    """Their softmaxes run over different classes, so they cannot be averaged."""
    one, other = task_model("classify"), task_model("classify", "yolo11n")
    names = dict(one.names)
    other.names = {i: (names[i] if i < 3 else f"other {i}") for i in names}
    teacher = open_teacher([one, other], "classify")
    teacher.match(names)
    student = task_model("classify", seed=1).train()
    student.args = get_cfg(overrides={"teacher": "t.pt", "task": "classify", "kd_cls_loss": "kl"})
    distiller = build_distiller(student.args, student, teacher)
    teacher.prepare(CPU, distiller.reads)
    images = torch.rand(4, 3, 64, 64)
    answers = teacher(images)
    logits = student(images)
    got = distiller(logits, answers)["kd_cls"]
    parts_of = [losses.kl(logits, answers[0].value, 4.0), losses.kl(logits[:, :3], answers[1].value, 4.0)]
    torch.testing.assert_close(got, 2.0 * sum(parts_of) / 2)
