"""What makes the host wait for a GPU, counted on the CPU: each wait leaves the GPU idle until new work arrives."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NAMES, STUDENT, TEACHER
from task_models import task_model
from test_assignment import setup
from test_task_terms import parts, task_batch
from test_teachers import CPU, batch_of, build, pair
from test_unlabeled_boxes import first_labeled, with_boxes
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_iou, boxes
from ultralytics.cfg import get_cfg
from ultralytics.utils.nms import non_max_suppression

from ultralytics_kd import outputs
from ultralytics_kd.distillation.distillers import GridDistiller
from ultralytics_kd.distillation.keeping import ClassKeeper
from ultralytics_kd.distillation.loss import DistillationLoss
from ultralytics_kd.distillation.task_aligned import assign_sparse
from ultralytics_kd.distillation.terms.mask import MaskTerm
from ultralytics_kd.outputs import grid
from ultralytics_kd.teachers import detections, fusion, open_teacher
from ultralytics_kd.teachers.detections import Detections, Thresholds

# Operators whose outputs have a size, or a value in Python, that depends on values on the device
WAITING = {"nonzero", "_local_scalar_dense", "masked_select", "_unique2", "bincount", "repeat_interleave", "equal"}
READING = {"tolist", "item", "cpu", "numpy"}  # methods that copy values to the host
# A tensor of numbers in Python is copied to the device, and torch waits for that
WRITING = {"new_tensor", "tensor", "as_tensor"}
QUERIES = "yolov8n-rtdetr.yaml"


def place(frame: FrameType | None) -> str:
    """Return where this package made a call; empty if it was the base loss, which a run without a teacher has too."""
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if "/ultralytics_kd/" in file:
            base = name in {"_base_loss", "base"} or (name == "loss" and file.endswith("pseudo_boxes.py"))
            # On a GPU the answer to a batch is checked when the next one comes
            return "" if base or file.endswith("finite.py") else f"{file.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


class Operators(TorchDispatchMode):
    """Counts the operators called by this package for which the host would wait."""

    def __init__(self, places: Counter[str]) -> None:
        """Count into `places`."""
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operator, and run it."""
        name = func.overloadpacket.__name__
        masks = name in {"index", "index_put", "index_put_"} and any(
            i is not None and i.dtype is torch.bool for i in args[1]
        )
        if (name in WAITING or masks) and (where := place(sys._getframe())):
            self.places[f"{name} {where}"] += 1
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Counts the copies between host and device that this package makes."""

    def __init__(self, places: Counter[str]) -> None:
        """Count into `places`."""
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a function, and run it."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        writes = name == "new_tensor" or (name in WRITING and kwargs.get("device") is not None)
        if (name in READING or writes) and (where := place(sys._getframe())):
            self.places[f"{name} {where}"] += 1
        return func(*args, **kwargs)


@contextmanager
def waits() -> Any:
    """Yield the waits within a block, by place."""
    places: Counter[str] = Counter()
    with Functions(places), Operators(places):
        yield places


def of_a_step(student: Any, ask: Callable[[torch.Tensor], Any], loss: Any, batch: dict) -> Counter[str]:
    """Return the waits of a step: the teacher's answer, the loss and its gradient."""
    for _ in range(2):  # the first batch is checked, and compares the rules of assignment
        loss(student(batch["img"]), {**batch, "teacher": ask(batch["img"])})
    preds = student(batch["img"])
    with waits() as places:
        loss(preds, {**batch, "teacher": ask(batch["img"])})[0].sum().backward()
    return places


# Terms ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "args",
    [
        {},
        *({"kd_feat": 1.0, "kd_feat_loss": loss} for loss in ("pkd", "cwd", "mgd", "sl2", "crosskd")),
        {"kd_cls_loss": "qfl"},
        {"kd_cls_loss": "kl"},
        {"kd_box_loss": "l1"},
        {"kd_weight": "auto", "kd_feat": 1.0},
    ],
    ids=lambda args: " ".join(map(str, args.values())) or "defaults",
)
def test_terms_of_a_teacher_with_the_same_grid_wait_for_nothing(args):
    student, teacher, distiller, loss = pair(STUDENT, build(TEACHER), **args)
    if distiller.balance is not None:
        distiller.balance.step = 5  # of 1, 2, 4 and so on, in which gradients are measured
    assert not of_a_step(student, teacher, loss, batch_of(2, 64))


@pytest.mark.nightly
def test_bins_are_compared_without_waiting():
    student, teacher, _, loss = pair("yolov8n.yaml", build("yolov8n.yaml"), kd_box_loss="ld")
    assert not of_a_step(student, teacher, loss, batch_of(2, 64))


def test_teachers_with_a_common_grid_wait_for_nothing():
    student, teacher, _, loss = pair(STUDENT, open_teacher([build(TEACHER), build(TEACHER, seed=3)]))
    assert not of_a_step(student, teacher, loss, batch_of(2, 64))


def test_kept_classes_wait_for_nothing():
    student, teacher, distiller, loss = pair(STUDENT, build(TEACHER))
    loss.keeper = ClassKeeper([0], distiller.student_layout, distiller.strides)
    loss.keeper.flags(CPU)  # they are made once
    assert not of_a_step(student, teacher, loss, batch_of(2, 64))


def larger_images() -> tuple[Any, Any, Any]:
    """Return student, a teacher that sees larger images, and the loss."""
    student = build(STUDENT, seed=1).train()
    student.args = get_cfg(overrides={"teacher": "t.pt"})
    teacher = open_teacher(build(TEACHER))
    teacher.match(NAMES)
    distiller = GridDistiller(student.args, student, teacher, as_sets=True)
    teacher.prepare(CPU, distiller.reads)
    loss = DistillationLoss(student.init_criterion(), distiller, student.model[-1])
    return student, lambda images: teacher.answer_for_any_size(images.repeat(1, 1, 2, 2)), loss


def queries(keeps: bool = False, beside: tuple[str, ...] = ()) -> tuple[Any, Any, Any]:
    """Return student, a teacher that predicts a set, alone or beside others, and the loss."""
    members = [build(QUERIES), *(build(cfg) for cfg in beside)]
    student, teacher, distiller, loss = pair(STUDENT, open_teacher(members if beside else members[0]))
    distiller.assigner._rules = dict.fromkeys((outputs.ONE2MANY, outputs.ONE2ONE), assign_sparse)  # as for most runs
    if keeps:
        loss.keeper = ClassKeeper([0], distiller.student_layout, distiller.strides)
    return student, teacher, loss


@pytest.mark.parametrize(
    "parts_of, most",
    [
        pytest.param(queries, 16, id="queries", marks=pytest.mark.nightly),
        pytest.param(lambda: queries(keeps=True), 20, id="queries and kept classes", marks=pytest.mark.nightly),
        pytest.param(lambda: queries(beside=(TEACHER,)), 24, id="two teachers whose sets are merged"),
        pytest.param(larger_images, 18, id="kd_teacher_imgsz"),
        pytest.param(with_boxes, 14, id="pseudo-boxes"),
    ],
)
def test_detections_wait_a_few_times_whatever_the_batch(parts_of, most, monkeypatch):
    # torchvision takes many boxes image by image on a CPU, and those that we give it at once together on a GPU
    monkeypatch.setattr("torchvision.ops.batched_nms", boxes._batched_nms_coordinate_trick)
    student, ask, loss = parts_of()
    found = []
    for images in (3, 7):
        batch = batch_of(images, 64)
        if loss.pseudo is not None:
            batch = first_labeled(batch, 1)
        found.append(of_a_step(student, ask, loss, batch))
    assert found[0] == found[1] and 0 < found[0].total() <= most


def test_a_set_of_detections_waits_a_few_times_whatever_the_batch():
    """Suppression, one set for the student's images, and assignment to both branches."""
    found = {}
    for images in (2, 6):
        student, loss, batch = setup("yolo26n.yaml", images)
        preds = student(batch["img"])
        loss(preds, dict(batch))  # the first batch compares the rules of assignment
        with waits() as places:
            detections.suppress_boxes(
                torch.rand(images, 50, 4) * 64, torch.rand(images, 50, 3), detections.Thresholds()
            )
            loss(preds, dict(batch))
        found[images] = places
    assert found[2] == found[6] and found[2].total() <= 20


@pytest.mark.nightly
@pytest.mark.parametrize(
    "task, most, args",
    [
        ("segment", 4, {}),  # two branches; the most confident boxes, and how many each image has
        ("pose", 2, {}),
        ("obb", 0, {}),
        ("obb", 0, {"kd_box_loss": "l1"}),
        ("classify", 0, {}),
        ("classify", 0, {"kd_cls_loss": "dkd"}),
        ("classify", 0, {"kd_cls_loss": "dist"}),
        ("semantic", 0, {}),
        ("semantic", 0, {"kd_cls_loss": "cwd"}),
        ("depth", 0, {}),
    ],
)
def test_terms_of_other_tasks_wait_a_few_times_whatever_the_batch(task, most, args):
    student, teacher, _, loss = parts(task, task_model(task, seed=2), **args)
    found = [of_a_step(student, teacher, loss, task_batch(task, images=n)) for n in (2, 5)]
    assert found[0] == found[1] and found[0].total() <= most


# Same numbers without waiting -----------------------------------------------------------------------------------------
def views_of(images: int, views: int, seed: int) -> list[list[Detections]]:
    """Return views of some images with the same objects, shifted a little; some are empty, some boxes have no area."""
    random = torch.Generator().manual_seed(seed)
    centres, sides = (torch.rand(12, 2, generator=random) * x for x in (300, 100))
    objects, found = torch.cat((centres, centres + sides + 10), 1), []
    for count in torch.randint(0, 40, (views * images,), generator=random).tolist():
        rows = torch.randint(0, 12, (count,), generator=random)
        boxes = objects[rows] + torch.randn(count, 4, generator=random) * 3
        boxes[:1, 2:] = boxes[:1, :2]
        probs = torch.rand(count, 3, generator=random) ** 3
        probs[2:3] = probs[1:2]  # a tie
        found.append(Detections(boxes, probs))
    return [found[i::views] for i in range(views)]


def fused_one_by_one(views: list[Detections], known: torch.Tensor, conf: float, weights: list[float]) -> Detections:
    """Fuse the views of an image box by box, as the paper tells it."""
    boxes, probs = torch.cat([v.boxes for v in views]), torch.cat([v.probs for v in views])
    view = torch.cat([torch.full((len(v.boxes),), i) for i, v in enumerate(views)])
    order = probs.amax(1).argsort(descending=True, stable=True)
    boxes, probs, view = boxes[order], probs[order], view[order]
    same, free, fused = box_iou(boxes, boxes) > fusion.FUSE_IOU, torch.ones(len(boxes), dtype=torch.bool), []
    for i in range(len(boxes)):
        group = (same[i] & free).nonzero().flatten()
        if free[i] and len(group):
            free[group] = False
            group = group[np.sort(np.unique(view[group].numpy(), return_index=True)[1])]
            share = torch.tensor(weights)[view[group]][:, None]
            weight = probs[group].amax(1, keepdim=True) * share
            mean = (probs[group] * share).sum(0) / known.clamp(min=1e-9)
            fused.append(((boxes[group] * weight).sum(0) / weight.sum(), mean))
    boxes, probs = (torch.stack([f[i] for f in fused]) if fused else x[:0] for i, x in enumerate((boxes, probs)))
    order = probs.amax(1).argsort(descending=True, stable=True)
    order = order[probs[order].amax(1) > conf]
    return Detections(boxes[order], probs[order])


@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_all_images_together_are_fused_as_each(views, seed):
    given, known, weights = views_of(5, views, seed), torch.tensor([float(views), 0.5, 0.0]), [0.3, 0.7, 1.0, 0.1]
    fused = fusion.fuse(given, known, 0.05, weights[:views])
    assert sum(len(f.boxes) for f in fused) > 10
    for i, own in enumerate(fused):
        expected = fused_one_by_one([view[i] for view in given], known, 0.05, weights)
        assert torch.equal(own.boxes, expected.boxes) and torch.equal(own.probs, expected.probs)


@pytest.mark.parametrize("conf, topk", [(0.05, 300), (0.05, 20), (0.6, 300), (1.0, 300)])
def test_the_most_confident_of_all_images_are_those_of_each(conf, topk):
    torch.manual_seed(2)
    boxes, probs = torch.rand(4, 60, 4), torch.rand(4, 60, 3) ** 4
    probs[1, 30:] = probs[1, :30]  # ties
    found = detections.most_confident(boxes, probs, Thresholds(conf=conf, topk=topk))
    for own, b, p in zip(found, boxes, probs, strict=True):
        order = p.amax(1).argsort(descending=True, stable=True)[:topk]
        order = order[p[order].amax(1) > conf]
        assert torch.equal(own.boxes, b[order]) and torch.equal(own.probs, p[order])


def test_masks_of_an_image_are_composed_from_its_own_prototypes(monkeypatch):
    """Images without a confident box have none."""
    student, teacher, distiller, _ = parts("segment", task_model("segment", seed=2))
    images = task_batch("segment", images=4)["img"]
    (_, found), *_ = distiller._pairs(outputs.branches(student(images)), teacher(images), None, {})
    weight = found.box_weight.clone()
    weight[[0, 2]] = 0
    monkeypatch.setitem(found.__dict__, "box_weight", weight)
    image, point, _ = found.most_confident(32)
    seen = []
    stock = MaskTerm._masks
    monkeypatch.setattr(MaskTerm, "_masks", staticmethod(lambda *args: seen.append(args[1:]) or stock(*args)))
    assert MaskTerm()(found) > 0
    assert [i for i, _ in seen] == [1, 3] and all(torch.equal(points, point[image == i]) for i, points in seen)


@pytest.mark.parametrize("at_once", [1, 100, 8192])
@pytest.mark.parametrize(("conf", "topk"), [(0.05, 10), (0.05, 300), (0.7, 300), (1.0, 10)])
def test_all_images_together_give_the_detections_of_each(at_once, conf, topk, monkeypatch):
    """They are those of Ultralytics' function, which takes one image after another."""
    monkeypatch.setattr(detections, "BOXES_AT_ONCE", at_once)
    torch.manual_seed(1)
    centres, sides = torch.rand(4, 200, 2) * 640, torch.rand(4, 200, 2) * 200 + 5
    boxes, probs = torch.cat((centres - sides / 2, centres + sides / 2), -1), torch.rand(4, 200, 3) ** 4
    boxes[1, 100:], probs[2] = boxes[1, :100] + 0.5, 0.0  # twins in one image, nothing in another
    ours = detections.suppress_boxes(boxes, probs, detections.Thresholds(conf, 0.7, topk))
    centred = torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2], probs), -1)
    _, kept = non_max_suppression(
        centred.transpose(1, 2),
        conf_thres=conf,
        iou_thres=0.7,
        agnostic=True,
        max_det=topk,
        nc=3,
        return_idxs=True,
    )
    for each, b, p, index in zip(ours, boxes, probs, kept):
        assert torch.equal(each.boxes, b[index.flatten().long()])
        assert torch.equal(each.probs, p[index.flatten().long()])


def test_a_grid_is_made_once_and_can_be_trained_with(monkeypatch):
    """Also if a validation made it, whose tensors no gradient may pass."""
    made = []
    stock = grid.make_anchors
    monkeypatch.setattr(grid, "make_anchors", lambda *args: made.append(args) or stock(*args))
    grid._anchors.cache_clear()
    head = grid.Layout((8, 16), (4, 4), 3, 1, ("one2many",), "detect")
    with torch.inference_mode():
        grid.anchors([torch.zeros(2, 4, 8, 6), torch.zeros(2, 4, 4, 3)], head)
    points, strides = grid.anchors([torch.zeros(5, 4, 8, 6), torch.zeros(5, 4, 4, 3)], head)
    assert len(made) == 1 and not points.is_inference() and points.shape == (60, 2)
    assert points[:2].tolist() == [[0.5, 0.5], [1.5, 0.5]] and strides[[0, -1]].tolist() == [[8.0], [16.0]]
    (points * torch.ones(1, requires_grad=True)).sum().backward()
    grid.anchors([torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 2, 2)], head)
    assert len(made) == 2


def test_a_device_without_float64_suppresses_in_float32():
    assert detections.precise_dtype(torch.device("mps")) is torch.float32
    assert detections.precise_dtype(torch.device("cuda")) is torch.float64
