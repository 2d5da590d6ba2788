"""Every task: its terms, its trainer, its recipe, and what a checkpoint of it is."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK
from task_models import OTHERS, SUFFIX, task_model
from ultralytics import YOLO as StockYOLO
from ultralytics.utils import LOGGER
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.bench.scores import score
from ultralytics_kd.config.arguments import GRID_TASKS, TASK_WEIGHTS
from ultralytics_kd.demo.tasks import draw_task_dataset
from ultralytics_kd.teachers import open_teacher
from ultralytics_kd.training.scores import evaluation

CPU = torch.device("cpu")
MAIN = {
    "detect": "metrics/mAP50-95(B)",
    "segment": "metrics/mAP50-95(M)",
    "pose": "metrics/mAP50-95(P)",
    "obb": "metrics/mAP50-95(B)",
    "classify": "metrics/accuracy_top1",
    "semantic": "metrics/mIoU",
    "depth": "metrics/delta1",
}


SOFTMAX_LOSSES = (("classify", "kl"), ("classify", "dist"), ("semantic", "kl"))
DAILY = ("segment", "classify", "depth")  # tasks that are trained for every change
REPORTED = ("segment", "classify", "depth")  # tasks whose runs end with plots and a report


def nightly_but(*every: str) -> list:
    """Return all tasks, for every change those that are named and the others for the night."""
    return [pytest.param(task, marks=() if task in every else pytest.mark.nightly) for task in OTHERS]


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
def teachers(tmp_path_factory):
    """Return a function that saves a task's teacher once: not trained, with scores that are spread."""
    made: dict[str, str] = {}

    def of(task: str, family: str = "yolo26s") -> str:
        name = f"{family}{SUFFIX[task]}"
        if name not in made:
            file = tmp_path_factory.mktemp("teachers") / f"{name}.pt"
            torch.save({"model": task_model(task, family), "train_args": {"task": task}}, file)
            made[name] = str(file)
        return made[name]

    return of


def rows(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's results.csv."""
    header, *lines = [line.split(",") for line in (run / "results.csv").read_text().splitlines()]
    return [dict(zip(header, map(float, line))) for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sets, teachers):
    """Return a function that distils a task once, with all terms and images without labels; some with plots."""
    made: dict[str, SimpleNamespace] = {}

    def of(task: str) -> SimpleNamespace:
        if task not in made:
            project = tmp_path_factory.mktemp("runs")
            last, model = project / "last.pt", YOLO(f"yolo26n{SUFFIX[task]}.yaml")
            model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
            said: list[str] = []
            handler = logging.Handler()
            handler.emit = lambda record: said.append(record.getMessage())
            LOGGER.addHandler(handler)
            extra = Path(sets("segment")).parent / "images" / "val"
            args = {**QUICK, "plots": task in REPORTED, "data": sets(task), "kd_feat": 1.0, "kd_unlabeled": str(extra)}
            model.train(**args, teacher=teachers(task), project=str(project), name="run")
            LOGGER.removeHandler(handler)
            made[task] = SimpleNamespace(trainer=model.trainer, folder=project / "run", last=last, said="\n".join(said))
        return made[task]

    return of


@pytest.mark.core
@pytest.mark.parametrize("task", nightly_but(*DAILY))
def test_task_is_distilled_by_the_trainer_of_its_name(task, runs):
    """All terms in the log, for train and val; teacher validated; a plain checkpoint."""
    run = runs(task)
    assert type(run.trainer).__name__.startswith("KD") and run.trainer.args.task == task
    for row in rows(run.folder):
        for term in TASK_WEIGHTS[task]:
            assert math.isfinite(row[f"val/{term}"]) and math.isfinite(row[f"train/{term}"])
        assert row["train/kd_feat"] > 0 and row["val/kd_feat"] > 0
    assert set(TASK_WEIGHTS[task]) <= set(run.trainer.distiller.terms)
    assert MAIN[task] in run.trainer.teacher_metrics and "Validating teacher" in run.said
    assert "parameters are from the teacher (kd_init)" in run.said and "6 without labels" in run.said
    if task in REPORTED:
        assert (run.folder / "results.png").exists() and (run.folder / "train_batch0.jpg").exists()
        check_report(run, task)
    ckpt = torch_load(run.folder / "weights" / "best.pt")
    assert getattr(ckpt["model"], "criterion", None) is None and ckpt["optimizer"] is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in ckpt["model"].modules())


@pytest.mark.nightly
@pytest.mark.parametrize("task", [task for task in OTHERS if task not in REPORTED])
def test_the_other_tasks_end_with_a_report_too(task, sets, teachers, tmp_path):
    given = {**QUICK, "plots": True, "data": sets(task), "kd_feat": 1.0, "project": str(tmp_path), "name": "run"}
    model = YOLO(f"yolo26n{SUFFIX[task]}.yaml")
    model.train(**given, teacher=teachers(task))
    assert (tmp_path / "run" / "results.png").exists()
    check_report(SimpleNamespace(folder=tmp_path / "run", trainer=model.trainer), task)


def check_report(run, task: str) -> None:
    """The run ends with a report: scores of both, what they agree on, val images side by side."""
    report = json.loads((run.folder / "report" / "report.json").read_text(encoding="utf-8"))
    heads = {role: model["heads"] for role, model in report["models"].items()}
    assert set(heads) == {"teacher", "student"} and all(m["latency"]["ms"] > 0 for m in report["models"].values())
    head = "nms" if task in GRID_TASKS else "output"
    assert heads["teacher"][head]["score"] == pytest.approx(run.trainer.teacher_metrics[MAIN[task]], abs=2e-3)
    assert len(report["images"]) == 6 and "curves" in report["charts"]
    same = report["agreement"]["student"]
    if task not in GRID_TASKS:
        assert 0 <= same["same"] <= 1 and same["distance"] >= 0
    if task != "depth":
        assert report["models"]["student"]["classes"]
    page = (run.folder / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 6 + len(report["levels"])


@pytest.mark.core
@pytest.mark.parametrize("tasks", [DAILY, pytest.param(tuple(OTHERS), marks=pytest.mark.nightly)], ids=["some", "all"])
def test_checkpoints_of_all_tasks_work_without_the_plugin(tasks, runs, sets, tmp_path):
    files = {task: (str(runs(task).folder / "weights" / "best.pt"), sets(task), MAIN[task]) for task in tasks}
    code = f"""
import sys
sys.modules["ultralytics_kd"] = None
from ultralytics import YOLO
for task, (weights, data, key) in {files!r}.items():
    metrics = YOLO(weights).val(data=data, imgsz=64, plots=False, verbose=False, project=r"{tmp_path}")
    print("SCORE", task, metrics.results_dict[key])
assert not any(m.startswith("ultralytics_kd.") for m in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, cwd=tmp_path)
    assert out.returncode == 0 and out.stdout.count("SCORE") == len(tasks), out.stderr[-2000:]


@pytest.mark.parametrize("task", ["segment", "semantic", "classify"])
def test_bench_scores_a_task_as_ultralytics_does(task, runs, sets):
    """Polygons read as pixels have a background that data.yaml does not name."""
    best, args = str(runs(task).folder / "weights" / "best.pt"), {"data": sets(task), "imgsz": 64, "batch": 4}
    own = StockYOLO(best).val(**args, plots=False, verbose=False, workers=0)
    ours = score(best, {**args, "workers": 0})["scores"]
    assert set(ours) == ({"nms", "end2end"} if task in GRID_TASKS else {"output"})
    found = ours["nms" if task in GRID_TASKS else "output"]["score"]
    assert found == pytest.approx(own.results_dict[MAIN[task]], abs=1e-6)


@pytest.mark.parametrize("task", nightly_but("classify"))
def test_resume_of_a_task(task, runs, monkeypatch):
    monkeypatch.setattr(evaluation, "write_report", lambda *_: None)  # the whole run had one
    again = YOLO(runs(task).last)
    again.train(resume=True)
    assert again.trainer.start_epoch == 1 and again.trainer.loss_items["kd_feat"] > 0


@pytest.mark.parametrize(
    "task, loss",
    [
        ("classify", "dkd"),
        ("semantic", "cwd"),
        *(pytest.param(*pair, marks=pytest.mark.nightly) for pair in SOFTMAX_LOSSES),
    ],
)
def test_class_losses_of_a_softmax_train(task, loss, sets, teachers, tmp_path):
    model = YOLO(f"yolo26n{SUFFIX[task]}.yaml")
    args = {**QUICK, "epochs": 1, "data": sets(task), "teacher": teachers(task), "project": str(tmp_path)}
    model.train(**args, kd_cls_loss=loss)
    assert model.trainer.loss_items["kd_cls"] > 0


def test_torchvision_classifier_teaches(sets, tmp_path):
    """As a module with names; its mean and std are applied, its feature maps compared."""
    from torchvision.models import resnet18

    model = resnet18(weights=None, num_classes=6)
    model.names = tuple(open_names())
    model.mean, model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model.task = "classify"
    trained, answers = YOLO("yolo26n-cls.yaml"), []
    images = torch.rand(2, 3, 64, 64)
    trained.add_callback("on_train_end", lambda t: answers.append(t.teacher(images.to(t.device)).value))
    trained.train(**{**QUICK, "epochs": 1}, data=sets("classify"), teacher=model, kd_feat=1.0, project=str(tmp_path))
    items = trained.trainer.loss_items
    assert items["kd_cls"] > 0 and items["kd_feat"] > 0
    assert "metrics/accuracy_top1" in trained.trainer.teacher_metrics
    images = images.to(trained.trainer.device)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1).to(images) for v in (model.mean, model.std))
    with torch.no_grad():
        expected = model.eval().to(images)((images - mean) / std)
    torch.testing.assert_close(answers[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "source",
    [
        "torchvision:resnet18",
        pytest.param("timm:resnet18", marks=pytest.mark.nightly),
        pytest.param("timm:vit_tiny_patch16_224", marks=pytest.mark.nightly),
    ],
)
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


@pytest.mark.parametrize(
    "library, name, channels, vectors",
    [
        ("torchvision", "resnet18", 512, False),
        ("torchvision", "googlenet", 1024, False),  # its last map is put together from four
        ("torchvision", "vit_b_32", 768, True),
        ("torchvision", "swin_t", 768, False),
        ("timm", "vit_tiny_patch16_224", 192, True),  # not the queries of its last attention
        ("timm", "swin_tiny_patch4_window7_224", 768, False),  # channels last
        ("timm", "swinv2_cr_tiny_ns_224", 768, False),
        ("timm", "swinv2_tiny_window8_256", 768, False),  # reads images of 256 px alone
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_what_a_classifier_of_another_library_reads_is_found(library, name, channels, vectors):
    module = pytest.importorskip("torchvision.models" if library == "torchvision" else "timm")
    model = getattr(module, name)(weights=None) if library == "torchvision" else module.create_model(name)
    model.names, model.task = {i: str(i) for i in range(1000)}, "classify"
    (maps,) = open_teacher(model, "classify").maps
    assert (maps.channels, maps.vectors) == ((channels,), vectors)


def test_vector_has_no_places_to_compare(sets, tmp_path):
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=6)
    model.names = dict(enumerate(open_names()))
    model.task = "classify"
    args = {**QUICK, "epochs": 1, "data": sets("classify"), "teacher": model, "kd_feat": 1.0, "batch": 7}
    with pytest.raises(KDError, match="kd_feat_loss=cwd compares positions of a map"):
        YOLO("yolo26n-cls.yaml").train(**args, kd_feat_loss="cwd", project=str(tmp_path / "cwd"))
    student = YOLO("yolo26n-cls.yaml")
    student.train(**args, project=str(tmp_path / "pkd"))
    assert math.isfinite(student.trainer.loss_items["kd_feat"]) and student.trainer.loss_items["kd_feat"] > 0


@pytest.mark.parametrize("source", ["torchvision:nosuchnet", "timm:nosuchnet"])
def test_classifier_that_a_library_has_not_is_one_sentence(source):
    with pytest.raises(KDError, match=f"teacher={source} could not be loaded from") as error:
        open_teacher(source, "classify")
    assert "\n" not in str(error.value)


def open_names() -> list[str]:
    """Return the classes of the drawn sets."""
    from ultralytics_kd.demo.shapes import CLASS_NAMES

    return sorted(CLASS_NAMES)


@pytest.mark.parametrize("task", nightly_but("segment"))
def test_moving_average_teaches_every_task(task, sets, tmp_path):
    model = YOLO(f"yolo26n{SUFFIX[task]}.yaml")
    args = {
        **QUICK,
        "epochs": 1,
        "data": sets(task),
        "teacher": "ema",
        "project": str(tmp_path),
        "nbs": 4,
        "kd_feat": 1.0,
    }
    model.train(**args)
    items = model.trainer.loss_items
    assert all(math.isfinite(items[t]) for t in TASK_WEIGHTS[task])
    assert items["kd_feat"] > 0 and items["kd_depth" if task == "depth" else "kd_cls"] > 0


@pytest.mark.parametrize("task", nightly_but("semantic"))
def test_several_teachers_of_a_task(task, sets, teachers, tmp_path):
    both = [teachers(task), teachers(task, "yolo26n")]
    model = YOLO(f"yolo26n{SUFFIX[task]}.yaml")
    model.train(**{**QUICK, "epochs": 1}, data=sets(task), teacher=both, kd_feat=1.0, project=str(tmp_path))
    items = model.trainer.loss_items
    assert all(math.isfinite(items[t]) for t in TASK_WEIGHTS[task]) and items["kd_feat"] > 0


def test_background_of_polygons_is_taught_too_when_classes_are_chosen(sets, tmp_path):
    """Ultralytics learns it from the labels then."""
    teacher = StockYOLO("yolo26n-sem.yaml")
    teacher.train(**{**QUICK, "epochs": 1, "val": False}, data=sets("semantic"), project=str(tmp_path), name="teacher")
    model = YOLO("yolo26n-sem.yaml")
    model.train(
        **{**QUICK, "epochs": 1, "classes": [1, 3]},
        data=sets("semantic"),
        teacher=str(tmp_path / "teacher" / "weights" / "last.pt"),
        project=tmp_path,
    )
    trainer = model.trainer
    assert trainer.teacher.classes.student == [1, 3, trainer.data["bg_class_idx"]]


@pytest.mark.parametrize(
    "task, given, message",
    [
        ("classify", {"kd_cls_loss": "bckd"}, "does not suit task 'classify': use kl or dkd or dist"),
        ("segment", {"kd_cls_loss": "dkd"}, "does not suit task 'segment'"),
        ("classify", {"kd_cls": 0.0}, "all distillation weights are 0"),
        ("semantic", {"kd_feat": 1.0, "kd_feat_loss": "crosskd"}, "needs the anchor points of a detector"),
        ("obb", {"kd_box_loss": "ld"}, "rotated"),
        ("segment", {"kd_cache": True}, "stores detections"),
        ("classify", {"teacher": "EXPORT"}, "predicts detections, which can only teach a detector"),
    ],
)
def test_what_does_not_suit_a_task_is_refused(task, given, message, sets, teachers, tmp_path):
    if given.get("teacher") == "EXPORT":
        copied = shutil.copy2(teachers(task), tmp_path / "model.pt")
        given = {"teacher": StockYOLO(copied).export(format="onnx", imgsz=64)}
    given = {"teacher": teachers(task), **given}
    with pytest.raises(KDError, match=message):
        YOLO(f"yolo26n{SUFFIX[task]}.yaml").train(**QUICK, data=sets(task), project=str(tmp_path / "runs"), **given)
    assert not (tmp_path / "runs").exists()


def test_weights_of_other_tasks_are_said_to_be_idle(sets, teachers, tmp_path, caplog):
    LOGGER.propagate = True
    YOLO("yolo26n-cls.yaml").train(
        **{**QUICK, "epochs": 1}, data=sets("classify"), teacher=teachers("classify"), kd_box=3.0, project=str(tmp_path)
    )
    LOGGER.propagate = False
    assert "'kd_box=3' has no effect: task 'classify' has the terms kd_cls, kd_feat" in caplog.text
