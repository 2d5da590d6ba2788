"""Sets of instances are assigned to anchor points as the base loss assigns labels."""

from copy import deepcopy

import pytest
import torch
from conftest import make_model
from ultralytics.cfg import get_cfg
from ultralytics.utils.tal import TaskAlignedAssigner

from ultralytics_kd import outputs
from ultralytics_kd.distillation import task_aligned
from ultralytics_kd.distillation.assignment import CONFIDENT, assign
from ultralytics_kd.distillation.distillers import GridDistiller
from ultralytics_kd.distillation.loss import DistillationLoss
from ultralytics_kd.distillation.task_aligned import InstanceAssigner, assign_dense, assign_sparse, same_assignment
from ultralytics_kd.teachers import Instances, SetAnswer, open_teacher
from ultralytics_kd.teachers.class_map import match_classes

pytestmark = pytest.mark.core  # of .ci/releases

NAMES = {0: "a", 1: "b", 2: "c"}


def setup(cfg, images=2, **args):
    """Return student, loss and a batch whose labels are also its stored answers."""
    torch.manual_seed(0)
    student = make_model(cfg).train()
    teacher = open_teacher(make_model("yolo26n.yaml"))
    teacher.classes = match_classes(NAMES, NAMES)
    teacher.inspect()
    student.args = get_cfg(overrides={"teacher": "t.pt", "kd_cache": "c", "kd_feat": 0, "imgsz": 96, **args})
    loss = DistillationLoss(
        student.init_criterion(), GridDistiller(student.args, student, teacher, stored=True), student.model[-1]
    )
    boxes = torch.tensor([[0.3, 0.3, 0.4, 0.5], [0.5, 0.5, 0.9, 0.8], [0.7, 0.6, 0.3, 0.3], [0.2, 0.8, 0.2, 0.2]])
    cls, index = torch.tensor([0, 1, 2, 1]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    batch = {"img": torch.rand(images, 3, 96, 96), "batch_idx": index, "cls": cls.view(-1, 1).float(), "bboxes": boxes}
    batch["teacher"] = SetAnswer(boxes, torch.eye(3)[cls], index, None)
    return student, loss, batch


@pytest.mark.parametrize("cfg", ["yolo26n.yaml", "yolo11n.yaml", "yolov10n.yaml"])
def test_labels_as_answers_have_the_targets_of_the_base_loss(cfg, monkeypatch):
    """Class targets, boxes and anchor points are those of the assigner of each branch."""
    student, loss, batch = setup(cfg)
    preds = student(batch["img"])
    calls = []
    forward = TaskAlignedAssigner.forward

    def spy(self, *args):
        assignment = forward(self, *args)
        calls.append((self, deepcopy(assignment)))
        return assignment

    monkeypatch.setattr(TaskAlignedAssigner, "forward", spy)
    loss.base(preds, batch)
    expected = {id(assigner): assignment for assigner, assignment in calls}
    for name, out in outputs.branches(preds).items():
        pair = assign(batch["teacher"], name, out, loss.distiller.student_layout, loss.bases[name], InstanceAssigner())
        _, boxes, scores, foreground, instance = expected[id(loss.bases[name].assigner)]
        shown = foreground | (out.scores.amax(-1) > CONFIDENT)
        assert foreground.sum() > 0 and len(pair.target) == shown.sum()
        owner = instance[foreground] + foreground.nonzero()[:, 0] * 10
        best = {int(i): scores[foreground].amax(1)[owner == i].max() for i in owner.unique()}
        share = scores[foreground] / torch.stack([best[int(i)] for i in owner])[:, None]
        torch.testing.assert_close(pair.target[pair.assigned], share, rtol=1e-5, atol=1e-6)
        assert not pair.target[~pair.assigned].any()
        assert torch.equal(pair.assigned, foreground[shown])
        strides = torch.cat(
            [torch.full((f.shape[-1] * f.shape[-2], 1), float(s)) for f, s in zip(out.feats, student.stride)]
        )
        torch.testing.assert_close(pair.teacher_boxes[pair.assigned], (boxes / strides)[foreground])


def test_uncertain_answers_have_lower_targets():
    student, loss, batch = setup("yolo26n.yaml")
    preds = student(batch["img"])
    branch = outputs.branches(preds)["one2many"]
    arguments = ("one2many", branch, loss.distiller.student_layout, loss.bases["one2many"], InstanceAssigner())
    full, answer = assign(batch["teacher"], *arguments), batch["teacher"]
    half = assign(SetAnswer(answer.bboxes, answer.probs / 2 + 0.1, answer.batch_idx, None), *arguments)
    on = full.assigned
    torch.testing.assert_close(half.target[on].amax(-1), full.target[on].amax(-1) * 0.6)
    assert (half.target[on] > 0).all()  # all classes of the vector have a target
    assert not half.target[~on].any()


def test_background_has_a_target_of_0_where_the_student_is_confident():
    student, loss, batch = setup("yolo26n.yaml")
    branch = outputs.branches(student(batch["img"]))["one2many"]
    branch.scores[:, :5] = 3.0
    branch.scores[:, 5:] = -10.0
    nothing = SetAnswer(torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0), None)
    pair = assign(
        nothing, "one2many", branch, loss.distiller.student_layout, loss.bases["one2many"], InstanceAssigner()
    )
    assert len(pair.target) == 10 and not pair.assigned.any() and not pair.target.any()
    assert pair.avg_factor == 1 and not pair.box_weight.any()


@pytest.mark.parametrize("images", [pytest.param(1, marks=pytest.mark.nightly), 2])
@pytest.mark.parametrize("kd_cls_loss", ["bckd", "qfl", "kl"])
@pytest.mark.parametrize("kd_box_loss", ["iou", "l1"])
def test_losses_are_finite_with_and_without_instances(images, kd_cls_loss, kd_box_loss):
    student, loss, batch = setup("yolo26n.yaml", images, kd_cls_loss=kd_cls_loss, kd_box_loss=kd_box_loss)
    keep = batch["batch_idx"] < images
    batch = {k: v[keep] if k in ("batch_idx", "cls", "bboxes") else v for k, v in batch.items()}
    some = SetAnswer(batch["bboxes"], torch.rand(int(keep.sum()), 3), batch["batch_idx"], None)
    none = SetAnswer(torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0), None)
    for answer in (some, none):
        student.zero_grad()
        total, items = loss(student(batch["img"]), {**batch, "teacher": answer})
        total[3:].sum().backward()
        gradients = [p.grad for p in student.parameters() if p.grad is not None]
        assert torch.isfinite(total).all() and all(torch.isfinite(g).all() for g in gradients)
        assert items["kd_box"] > 0 if answer is some else items["kd_box"] == 0
        assert "kd_feat" not in items
        if answer is some:
            assert items["kd_cls"] > 0 and any(g.any() for g in gradients)


def test_only_matched_classes_learn_from_stored_answers():
    """Answers of classes that the student has as 2 and 0; its class 1 gets no gradient."""
    student, loss, batch = setup("yolo26n.yaml", kd_box=0.0)
    answer = SetAnswer(batch["bboxes"], torch.tensor([[0.1, 0.9]] * 4), batch["batch_idx"], torch.tensor([2, 0]))
    total, _ = loss(student(batch["img"]), {**batch, "teacher": answer})
    total[3:].sum().backward()
    gradient = sum(branch[-1].bias.grad.abs() for branch in student.model[-1].cv3)
    assert gradient[1] == 0 and gradient[0] > 0 and gradient[2] > 0


def test_shape_and_batch_size_do_not_change_the_targets_of_an_image():
    """In rectangular batches boxes are shares of width and height; images without answers in between."""
    student, loss, _ = setup("yolo26n.yaml")
    student.eval()
    image = torch.rand(1, 3, 64, 128)
    alone = SetAnswer(torch.tensor([[0.5, 0.5, 0.25, 0.5]]), torch.tensor([[0.1, 0.8, 0.0]]), torch.zeros(1), None)
    among = SetAnswer(alone.bboxes, alone.probs, torch.ones(1), None)
    with torch.no_grad():
        for answer, images, row in ((alone, image, 0), (among, torch.cat((image * 0, image, image * 0)), 1)):
            out = outputs.branches(student(images))["one2many"]
            out.scores.fill_(-10)
            pair = assign(
                answer, "one2many", out, loss.distiller.student_layout, loss.bases["one2many"], InstanceAssigner()
            )
            assert len(pair.target) > 1 and pair.assigned.all()
            if row == 0:
                expected = pair
            torch.testing.assert_close(pair.target, expected.target, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(pair.teacher_boxes, expected.teacher_boxes)
    sides = expected.teacher_boxes[:, 2:] - expected.teacher_boxes[:, :2]
    torch.testing.assert_close(sides[:, 0], sides[:, 1])  # 0.25 of 128 and 0.5 of 64


@pytest.mark.parametrize("topk, topk2", [(10, 10), (7, 1), (10, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_the_sparse_rule_assigns_as_ultralytics_assigner_does(topk, topk2, seed):
    """Crowded images, tiny and equal boxes, empty boxes and images without any."""
    torch.manual_seed(seed)
    assigner = TaskAlignedAssigner(topk=topk, num_classes=5, alpha=0.5, beta=6.0, stride=[8, 16, 32], topk2=topk2)
    grid = [((torch.arange(128 // s) + 0.5) * s, s) for s in (8, 16, 32)]
    points = torch.cat([torch.cartesian_prod(axis, axis) for axis, _ in grid])
    centre, side = points + torch.randn(4, len(points), 2) * 4, torch.rand(4, len(points), 2) * 40 + 4
    boxes, scores = torch.cat((centre - side / 2, centre + side / 2), -1), torch.randn(4, len(points), 5)
    image = torch.randint(0, 3, (60,)).sort().values  # the last image has none
    centre, side = torch.rand(60, 2) * 128, torch.rand(60, 2).pow(2) * 80 + 1
    truth = torch.cat((centre - side / 2, centre + side / 2), -1)
    truth[7], truth[9] = truth[6], 0
    image[7] = image[6]
    labels = torch.randint(0, 5, (60,))
    question = (assigner, scores, boxes, points, Instances(truth, labels, image.sort().values, torch.ones(60)))
    sparse, dense = assign_sparse(*question), assign_dense(*question)
    assert same_assignment(sparse, dense, 4, len(points))
    assert len(sparse.target_score) > 20 and sparse.target_score.max() > 0.2
    other = TaskAlignedAssigner(topk=topk, num_classes=5, alpha=0.5, beta=3.0, stride=[8, 16, 32], topk2=topk2)
    assert not same_assignment(assign_sparse(other, *question[1:]), dense, 4, len(points))


def test_the_more_confident_of_two_predictions_of_one_object_gets_the_anchor_points():
    """A weak duplicate with a higher overlap must not lower the student's confidence."""
    assigner = TaskAlignedAssigner(topk=10, num_classes=2, alpha=0.5, beta=6.0, stride=[8], topk2=10)
    axis = (torch.arange(8) + 0.5) * 8
    points = torch.cartesian_prod(axis, axis)
    boxes = torch.tensor([[16.0, 16.0, 46.0, 46.0]]).expand(1, 64, 4)
    truth = torch.tensor([[16.0, 16.0, 48.0, 48.0], [16.0, 16.0, 46.0, 46.0]])
    for confidence, owner in (((0.9, 0.2), 0), ((0.2, 0.9), 1), ((1.0, 1.0), 1)):
        given = Instances(truth, torch.zeros(2).long(), torch.zeros(2).long(), torch.tensor(confidence))
        assignment = assign_sparse(assigner, torch.zeros(1, 64, 2), boxes, points, given)
        assert len(assignment.target_score) >= 10 and (assignment.instance == owner).float().mean() > 0.5
        assert assignment.relative_score.max() == 1


def test_another_rule_of_ultralytics_is_followed_by_calling_its_assigner(monkeypatch):
    """An assigner that changes in an update, or is of another class, decides itself."""
    student, loss, batch = setup("yolo26n.yaml")
    branch = outputs.branches(student(batch["img"]))["one2many"]
    base, assigner, messages = loss.bases["one2many"], InstanceAssigner(), []
    monkeypatch.setattr(task_aligned.LOGGER, "warning", messages.append)
    monkeypatch.setattr(base.assigner, "get_box_metrics", lambda *a: (torch.rand(2, 2, 189), torch.rand(2, 2, 189)))
    arguments = (batch["teacher"], "one2many", branch, loss.distiller.student_layout, base, assigner)
    for batches in (1, 2, 3):
        assert not messages, batches
        assign(*arguments)
    calls = []
    monkeypatch.setattr(
        base.assigner, "forward", lambda *a: (calls.append(1), TaskAlignedAssigner.forward(base.assigner, *a))[1]
    )
    assign(*arguments)
    assert calls and len(messages) == 1 and "assigns labels by another rule" in messages[0]


def test_a_batch_with_many_ties_does_not_decide_the_rule(monkeypatch):
    """With few anchor points of an untrained student ties may be more than the tolerance; the next batch agrees."""
    student, loss, batch = setup("yolo26n.yaml")
    branch, assigner, messages = outputs.branches(student(batch["img"]))["one2many"], InstanceAssigner(), []
    monkeypatch.setattr(task_aligned.LOGGER, "warning", messages.append)
    verdicts, stock = [False], task_aligned.same_assignment
    monkeypatch.setattr(task_aligned, "same_assignment", lambda *a: verdicts.pop() if verdicts else stock(*a))
    for _ in range(2):
        assign(batch["teacher"], "one2many", branch, loss.distiller.student_layout, loss.bases["one2many"], assigner)
    assert assigner._rules == {"one2many": assign_sparse} and not messages
