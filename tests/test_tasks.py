"""Every task: its terms, its trainer, its recipe, and what a checkpoint of it is."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from ultralytics import YOLO as StockYOLO
from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDError, losses
from ultralytics_kd.config import GRID_TASKS, TASK_WEIGHTS, TASKS
from ultralytics_kd.criterion import DistillationLoss, build_distiller
from ultralytics_kd.demo.tasks import draw_task_dataset
from ultralytics_kd.teachers import open_teacher

CPU = torch.device("cpu")
SUFFIX = {
    "detect": "",
    "segment": "-seg",
    "pose": "-pose",
    "obb": "-obb",
    "classify": "-cls",
    "semantic": "-sem",
    "depth": "-depth",
}
MAIN = {
    "detect": "metrics/mAP50-95(B)",
    "segment": "metrics/mAP50-95(M)",
    "pose": "metrics/mAP50-95(P)",
    "obb": "metrics/mAP50-95(B)",
    "classify": "metrics/accuracy_top1",
    "semantic": "metrics/mIoU",
    "depth": "metrics/delta1",
}
OTHERS = [task for task in TASKS if task != "detect"]  # detection has tests of its own


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Return a function that draws a task's data set once."""
    made: dict[str, str] = {}

    def of(task: str) -> str:
        if task not in made:
            made[task] = str(draw_task_dataset(tmp_path_factory.mktemp("sets") / task, task, 16, 6, 64))
        return made[task]

    return of


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, sets):
    """Return a function that trains a task's teacher once, too short to be good, and makes it sure of something."""
    made: dict[str, str] = {}

    def of(task: str, family: str = "yolo26s") -> str:
        name = f"{family}{SUFFIX[task]}"
        if name not in made:
            project = tmp_path_factory.mktemp("teachers")
            args = {**QUICK, "epochs": 8, "batch": 8, "nbs": 8, "val": False}
            StockYOLO(f"{name}.yaml").train(**args, data=sets(task), project=str(project), name="run")
            made[name] = str(project / "run" / "weights" / "last.pt")
            if task in GRID_TASKS:
                spread_scores(made[name])
        return made[name]

    return of


def spread_scores(path: str) -> None:
    """Let a checkpoint's class scores spread over (0, 1) as those of a longer training do."""
    ckpt = torch_load(path)
    head = ckpt["model"].model[-1]
    for tower in (*head.cv3, *(getattr(head, "one2one_cv3", None) or ())):
        tower[-1].weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        tower[-1].bias.data.fill_(-1.0)
    torch.save(ckpt, path)


def rows(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's results.csv."""
    header, *lines = [line.split(",") for line in (run / "results.csv").read_text().splitlines()]
    return [dict(zip(header, map(float, line))) for line in lines]


@pytest.mark.parametrize("task", OTHERS)
def test_task_is_distilled_by_the_trainer_of_its_name(task, sets, teachers, tmp_path, caplog):
    """All terms in the log, for train and val; teacher validated; a plain checkpoint."""
    LOGGER.propagate = True
    model = YOLO(f"yolo26n{SUFFIX[task]}.yaml")
    model.train(
        **{**QUICK, "plots": True},
        data=sets(task),
        teacher=teachers(task),
        kd_feat=1.0,
        project=str(tmp_path),
        name="run",
    )
    LOGGER.propagate = False
    assert type(model.trainer).__name__.startswith("KD") and model.trainer.args.task == task
    for row in rows(tmp_path / "run"):
        for term in TASK_WEIGHTS[task]:
            assert math.isfinite(row[f"val/{term}"]) and math.isfinite(row[f"train/{term}"])
        assert row["train/kd_feat"] > 0 and row["val/kd_feat"] > 0
    assert set(TASK_WEIGHTS[task]) <= set(model.trainer.distiller.terms)
    assert MAIN[task] in model.trainer.teacher_metrics and "Validating teacher" in caplog.text
    assert "parameters from the teacher (kd_init)" in caplog.text
    assert (tmp_path / "run" / "results.png").exists() and (tmp_path / "run" / "train_batch0.jpg").exists()
    ckpt = torch_load(tmp_path / "run" / "weights" / "best.pt")
    assert getattr(ckpt["model"], "criterion", None) is None and ckpt["optimizer"] is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in ckpt["model"].modules())


@pytest.mark.parametrize("task", OTHERS)
def test_checkpoint_of_a_task_works_without_the_plugin(task, sets, teachers, tmp_path):
    YOLO(f"yolo26n{SUFFIX[task]}.yaml").train(
        **{**QUICK, "epochs": 1}, data=sets(task), teacher=teachers(task), project=str(tmp_path), name="run"
    )
    code = f"""
import sys
sys.modules["ultralytics_kd"] = None
from ultralytics import YOLO
model = YOLO(r"{tmp_path}/run/weights/best.pt")
metrics = model.val(data=r"{sets(task)}", imgsz=64, plots=False, verbose=False, project=r"{tmp_path}")
print("SCORE", metrics.results_dict["{MAIN[task]}"])
assert not any(m.startswith("ultralytics_kd.") for m in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, cwd=tmp_path)
    assert out.returncode == 0 and "SCORE" in out.stdout, out.stderr[-2000:]


# Terms ----------------------------------------------------------------------------------------------------------------
def parts(task: str, teacher, data: str, family: str = "yolo26n", **args):
    """Return student, prepared teacher, distiller and the student's loss, as a trainer would build them."""
    torch.manual_seed(0)
    student = StockYOLO(f"{family}{SUFFIX[task]}.yaml").model
    teacher = open_teacher(teacher, task)
    if task not in {"semantic", "depth"}:
        student = type(student)(f"{family}{SUFFIX[task]}.yaml", nc=len(teacher.names), verbose=False, **pose(task))
    elif task == "semantic":
        student = type(student)(f"{family}{SUFFIX[task]}.yaml", nc=len(teacher.names), verbose=False)
    student = student.train()
    student.args = get_cfg(overrides={"teacher": "t.pt", "task": task, "data": data, **args})
    teacher.match(teacher.names)
    distiller = build_distiller(student.args, student, teacher)
    teacher.prepare(CPU, distiller.reads)
    return student, teacher, distiller, DistillationLoss(student.init_criterion(), distiller, student.model[-1])


def pose(task: str) -> dict:
    """Return what a pose model is built with beside its classes."""
    return {"data_kpt_shape": [5, 3]} if task == "pose" else {}


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
        batch["semantic_mask"] = torch.randint(0, 7, (images, imgsz, imgsz))
    if task == "depth":
        batch["depth"] = torch.rand(images, imgsz, imgsz) + 1
    return batch


@pytest.mark.parametrize("task", OTHERS)
def test_a_student_equal_to_its_teacher_has_nothing_left_to_learn(task, sets, teachers):
    """Terms are 0 then, and grow when the student moves."""
    model = torch_load(teachers(task, "yolo26n"))["model"].float()
    student, teacher, _, loss = parts(task, deepcopy(model), sets(task))
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


@pytest.mark.parametrize("task, student_family, teacher_family", CROSS)
def test_terms_of_a_task_fall_between_families(task, student_family, teacher_family, sets, teachers):
    student, teacher, _, loss = parts(task, teachers(task, teacher_family), sets(task), student_family)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    batch = task_batch(task)
    batch["img"] = real_images(sets(task), task)
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


def real_images(data: str, task: str) -> torch.Tensor:
    """Return four images of a drawn set."""
    import cv2

    folder = Path(data) / "train" if task == "classify" else Path(data).parent / "images" / "train"
    files = sorted(folder.rglob("*.png"))[:4]
    return torch.stack(
        [torch.from_numpy(cv2.imread(str(f))[..., ::-1].transpose(2, 0, 1) / 255).float() for f in files]
    )


def test_masks_are_compared_as_composed_not_coefficient_by_coefficient(sets, teachers):
    """Prototypes in another order, and coefficients with them, are the same masks."""
    student, teacher, _, loss = parts("segment", teachers("segment"), sets("segment"))
    batch = task_batch("segment")
    batch["img"] = real_images(sets("segment"), "segment")
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


def test_number_of_keypoints_must_be_the_same(sets, teachers):
    other = StockYOLO("yolo26n-pose.yaml").model  # 17 keypoints
    other.names = {i: n for i, n in enumerate(open_teacher(teachers("pose"), "pose").names.values())}
    student = type(other)("yolo26n-pose.yaml", nc=6, data_kpt_shape=[5, 3], verbose=False)
    student.args = get_cfg(overrides={"teacher": "t.pt", "task": "pose"})
    teacher = open_teacher(type(other)("yolo26n-pose.yaml", nc=6, verbose=False), "pose")
    teacher.match(teacher.names)
    with pytest.raises(KDError, match="student has 5 keypoints and the teacher 17"):
        build_distiller(student.args, student, teacher)


@pytest.mark.parametrize("loss", [losses.probiou_loss, losses.rotated_l1_loss, losses.angle_loss])
def test_rotated_boxes_that_are_the_same_are_the_same_however_described(loss):
    box = torch.tensor([[10.0, 12.0, 8.0, 3.0, 0.4]])
    same = [box + torch.tensor([0, 0, 0, 0, math.pi]), torch.tensor([[10.0, 12.0, 3.0, 8.0, 0.4 - math.pi / 2]])]
    one = torch.ones(1)
    for other in (box, *same):
        assert loss(other, box, one, 1.0) == pytest.approx(0, abs=1e-3)
    turned = box + torch.tensor([0, 0, 0, 0, 0.3])
    assert loss(turned, box, one, 1.0) > 0.02


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


def test_depth_is_learnt_where_the_teacher_is_valid():
    teacher = torch.full((1, 1, 8, 8), 3.0)
    student = teacher.clone()
    student[..., :2] = 9.0
    valid = torch.ones_like(teacher, dtype=torch.bool)
    assert losses.depth_loss(student, teacher, valid) > 0.1
    valid[..., :2] = False
    assert losses.depth_loss(student, teacher, valid) == 0
    assert losses.depth_loss(teacher.requires_grad_(), teacher.detach(), valid).item() == 0


@pytest.mark.parametrize("loss", ["kl", "dkd", "dist"])
def test_classification_losses_train(loss, sets, teachers, tmp_path):
    model = YOLO("yolo26n-cls.yaml")
    model.train(
        **{**QUICK, "epochs": 1},
        data=sets("classify"),
        teacher=teachers("classify"),
        kd_cls_loss=loss,
        project=str(tmp_path),
    )
    assert model.trainer.loss_items["kd_cls"] > 0


@pytest.mark.parametrize("loss", ["kl", "cwd"])
def test_semantic_losses_train(loss, sets, teachers, tmp_path):
    model = YOLO("yolo26n-sem.yaml")
    model.train(
        **{**QUICK, "epochs": 1},
        data=sets("semantic"),
        teacher=teachers("semantic"),
        kd_cls_loss=loss,
        project=str(tmp_path),
    )
    assert model.trainer.loss_items["kd_cls"] > 0


def test_classes_that_the_teacher_of_a_softmax_lacks_get_no_gradient(sets, teachers):
    """Both sides' softmax runs over the shared classes; several teacher classes for one add up."""
    student, teacher, distiller, _ = parts("classify", teachers("classify"), sets("classify"))
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


def test_torchvision_classifier_teaches(sets, tmp_path):
    """As a module with names; its mean and std are applied, its feature maps compared."""
    from torchvision.models import resnet18

    model = resnet18(weights=None, num_classes=6)
    model.names = tuple(open_names())
    model.mean, model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model.task = "classify"
    trained = YOLO("yolo26n-cls.yaml")
    trained.train(**{**QUICK, "epochs": 1}, data=sets("classify"), teacher=model, kd_feat=1.0, project=str(tmp_path))
    items = trained.trainer.loss_items
    assert items["kd_cls"] > 0 and items["kd_feat"] > 0
    assert "metrics/accuracy_top1" in trained.trainer.teacher_metrics
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.mean, model.std))
    with torch.no_grad():
        expected = model.eval()((images - mean) / std)
    torch.testing.assert_close(trained.trainer.teacher(images).value, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("source", ["torchvision:resnet18", "timm:resnet18", "timm:vit_tiny_patch16_224"])
def test_classifier_of_another_library_is_named_by_a_text(source, sets, tmp_path, monkeypatch):
    """Weights would be downloaded: here the libraries' own models without them. ImageNet's classes are mapped."""
    import timm.models._builder
    import torchvision.models
    import torchvision.models._api

    empty = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: empty)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_, **__: None)
    teacher = open_teacher(source, "classify")
    assert len(teacher.names) == 1000 and teacher.mean is not None and len(teacher.maps[0].channels) == 1
    student = YOLO("yolo26n-cls.yaml")
    student.train(
        **{**QUICK, "epochs": 1},
        data=sets("classify"),
        teacher=source,
        kd_classes={teacher.names[0]: "disc", teacher.names[1]: "tile", teacher.names[2]: "tile"},
        kd_feat=1.0,
        project=str(tmp_path),
    )
    items = student.trainer.loss_items
    assert items["kd_cls"] > 0 and items["kd_feat"] > 0
    assert student.trainer.args.teacher == source


@pytest.mark.parametrize("source", ["torchvision:nosuchnet", "timm:nosuchnet"])
def test_classifier_that_a_library_has_not_is_one_sentence(source):
    with pytest.raises(KDError, match=f"teacher={source} could not be had from") as error:
        open_teacher(source, "classify")
    assert "\n" not in str(error.value)


def open_names() -> list[str]:
    """Return the classes of the drawn sets."""
    from ultralytics_kd.demo.shapes import CLASS_NAMES

    return sorted(CLASS_NAMES)


@pytest.mark.parametrize("task", OTHERS)
def test_moving_average_teaches_every_task(task, sets, tmp_path):
    model = YOLO(f"yolo26n{SUFFIX[task]}.yaml")
    args = {**QUICK, "data": sets(task), "teacher": "ema", "project": str(tmp_path), "nbs": 4, "kd_feat": 1.0}
    model.train(**args)
    items = model.trainer.loss_items
    assert all(math.isfinite(items[t]) for t in TASK_WEIGHTS[task])
    assert items["kd_feat"] > 0 and items["kd_depth" if task == "depth" else "kd_cls"] > 0


@pytest.mark.parametrize("task", OTHERS)
def test_several_teachers_of_a_task(task, sets, teachers, tmp_path):
    both = [teachers(task), teachers(task, "yolo26n")]
    model = YOLO(f"yolo26n{SUFFIX[task]}.yaml")
    model.train(**{**QUICK, "epochs": 1}, data=sets(task), teacher=both, kd_feat=1.0, project=str(tmp_path))
    items = model.trainer.loss_items
    assert all(math.isfinite(items[t]) for t in TASK_WEIGHTS[task]) and items["kd_feat"] > 0


@pytest.mark.parametrize("task", OTHERS)
def test_unlabelled_images_join_every_task(task, sets, teachers, tmp_path):
    extra = Path(sets("segment")).parent / "images" / "val"
    model = YOLO(f"yolo26n{SUFFIX[task]}.yaml")
    model.train(
        **{**QUICK, "epochs": 1, "plots": True},
        data=sets(task),
        teacher=teachers(task),
        kd_unlabeled=str(extra),
        project=str(tmp_path),
    )
    assert all(math.isfinite(v) for v in model.trainer.loss_items.values())


@pytest.mark.parametrize("task", OTHERS)
def test_resume_of_a_task(task, sets, teachers, tmp_path):
    import shutil

    last = tmp_path / "last.pt"
    model = YOLO(f"yolo26n{SUFFIX[task]}.yaml")
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**QUICK, data=sets(task), teacher=teachers(task), kd_feat=1.0, project=str(tmp_path), name="run")
    again = YOLO(last)
    again.train(resume=True)
    assert again.trainer.start_epoch == 1 and again.trainer.loss_items["kd_feat"] > 0


@pytest.mark.parametrize(
    "task, given, message",
    [
        ("classify", {"kd_cls_loss": "bckd"}, "does not suit task 'classify': use kl or dkd or dist"),
        ("segment", {"kd_cls_loss": "dkd"}, "does not suit task 'segment'"),
        ("classify", {"kd_cls": 0.0}, "all distillation weights are 0"),
        ("semantic", {"kd_feat": 1.0, "kd_feat_loss": "crosskd"}, "needs the anchor points of a detector"),
        ("obb", {"kd_box_loss": "ld"}, "rotated"),
        ("segment", {"kd_cache": True}, "stores detections"),
    ],
)
def test_what_does_not_suit_a_task_is_refused(task, given, message, sets, teachers, tmp_path):
    with pytest.raises(KDError, match=message):
        YOLO(f"yolo26n{SUFFIX[task]}.yaml").train(
            **QUICK, data=sets(task), teacher=teachers(task), project=str(tmp_path / "runs"), **given
        )
    assert not (tmp_path / "runs").exists()


def test_weights_of_other_tasks_are_said_to_be_idle(sets, teachers, tmp_path, caplog):
    LOGGER.propagate = True
    YOLO("yolo26n-cls.yaml").train(
        **{**QUICK, "epochs": 1}, data=sets("classify"), teacher=teachers("classify"), kd_box=3.0, project=str(tmp_path)
    )
    LOGGER.propagate = False
    assert "'kd_box=3' has no effect: task 'classify' has the terms kd_cls, kd_feat" in caplog.text
