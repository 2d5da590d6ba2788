"""What only a GPU shows: mixed precision, compiled models, AutoBatch. `ULTRALYTICS_KD_TEST_DEVICE=0` asks for it.

With that variable every training of the other files runs on the GPU too, in full precision:

    ULTRALYTICS_KD_TEST_DEVICE=0 pytest -n 8
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import DEVICE, QUICK, save_model
from task_models import SUFFIX, task_model
from test_training import results
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO
from ultralytics_kd.cache import make_cache
from ultralytics_kd.config import TASK_WEIGHTS, TASKS
from ultralytics_kd.demo.tasks import draw_task_dataset

pytestmark = pytest.mark.skipif(DEVICE == "cpu", reason="ULTRALYTICS_KD_TEST_DEVICE names no GPU")
GPU = {**QUICK, "device": DEVICE, "amp": True, "batch": 8, "nbs": 8, "epochs": 4}

LOADING = {key: GPU[key] for key in ("imgsz", "batch", "workers", "device")}


def kd_losses(run: Path) -> list[dict[str, float]]:
    """Return the training losses of the distillation, epoch by epoch."""
    return [{k[6:]: v for k, v in row.items() if k.startswith("train/kd")} for row in results(run)]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_in_mixed_precision(task, tmp_path):
    """Terms are finite, that of the features falls, and the checkpoint is one for any device."""
    data = draw_task_dataset(tmp_path / "set", task, 32, 8, 64)
    teacher = tmp_path / "teacher.pt"
    torch.save({"model": task_model(task, "yolo26s"), "train_args": {"task": task}}, teacher)
    model = YOLO(f"yolo26n{SUFFIX[task]}.yaml")
    model.train(**GPU, data=str(data), project=str(tmp_path), name="run", teacher=str(teacher), kd_feat=1.0)
    first, *_, last = kd_losses(tmp_path / "run")
    assert model.trainer.amp and {*TASK_WEIGHTS[task], "kd_feat"} <= set(first)
    assert all(math.isfinite(v) for v in (*first.values(), *last.values()))
    assert last["kd_feat"] < first["kd_feat"]
    ckpt = torch_load(tmp_path / "run" / "weights" / "best.pt", map_location="cpu")
    assert {p.device.type for p in ckpt["model"].parameters()} == {"cpu"}


def test_terms_of_mixed_precision_are_those_of_full_precision(data, teacher, tmp_path):
    """The same steps, with rates too small to learn: what differs is rounding."""
    found = {}
    for amp in (False, True):
        args = {
            **GPU,
            "amp": amp,
            "epochs": 1,
            "kd_init": False,
            "optimizer": "SGD",
            "lr0": 1e-6,
            "warmup_epochs": 0,
            "name": str(amp),
        }
        YOLO("yolo26n.yaml").train(**args, data=data, project=str(tmp_path), teacher=teacher, kd_feat=1.0)
        found[amp] = kd_losses(tmp_path / str(amp))[0]
    assert found[True] == pytest.approx(found[False], rel=0.03)


@pytest.mark.parametrize("args", [{"compile": True}, {"kd_compile": True}], ids=["student", "teacher"])
def test_compiled_models(args, data, teacher, tmp_path):
    """Compiled student or teacher: the terms of the eager one."""
    found = {}
    for name, more in (("eager", {}), ("compiled", args)):
        model = YOLO("yolo26n.yaml")
        run = {**GPU, "optimizer": "SGD", "lr0": 1e-6, "warmup_epochs": 0, "epochs": 1, "name": name, **more}
        model.train(**run, data=data, project=str(tmp_path), teacher=teacher, kd_feat=1.0, kd_init=False)
        found[name] = kd_losses(tmp_path / name)[0]
    assert found["compiled"] == pytest.approx(found["eager"], rel=0.05)
    ckpt = torch_load(tmp_path / "compiled" / "weights" / "last.pt")
    assert not any("_orig_mod" in k for k in ckpt["model"].state_dict())


def test_autobatch_counts_the_teacher(data, teacher, tmp_path):
    """AutoBatch leaves room for the teacher: it never chooses a greater batch than without one."""
    chosen = {}
    for name, more in (("alone", {}), ("kd", {"teacher": teacher})):
        model = YOLO("yolo26n.yaml")
        args = {**GPU, "batch": 0.05, "imgsz": 640, "epochs": 1, "name": name, **more}
        model.train(**args, data=data, project=str(tmp_path))
        chosen[name] = model.trainer.batch_size
    assert 1 <= chosen["kd"] <= chosen["alone"]


@pytest.mark.parametrize("kind", ["rtdetr", "several", "ema", "cache"])
def test_other_teachers_in_mixed_precision(kind, data, teacher, tmp_path):
    """Sets, ensembles, the moving average and stored answers teach on the GPU."""
    other = str(save_model(tmp_path / "other.pt", "yolo11s.yaml"))
    if kind == "cache":  # in half precision, where the fixture's activations overflow
        torch.save({"model": task_model("detect", "yolo26s"), "train_args": {"task": "detect"}}, other)
        data, teacher = str(draw_task_dataset(tmp_path / "set", "detect", 16, 4, 64)), other
        make_cache({"data": data, "teacher": teacher, "kd_cache": str(tmp_path / "answers"), **LOADING})
    given: dict = {
        "rtdetr": {"teacher": rtdetr(tmp_path / "rtdetr.pt")},
        "several": {"teacher": [teacher, other]},
        "ema": {"teacher": "ema"},
        "cache": {"teacher": teacher, "kd_cache": str(tmp_path / "answers")},
    }[kind]
    model = YOLO("yolo26n.yaml")
    model.train(**GPU, data=data, project=str(tmp_path), name="run", **given)
    first, *_, last = kd_losses(tmp_path / "run")
    assert model.trainer.amp and all(math.isfinite(v) for v in (*first.values(), *last.values()))
    assert first["kd_cls"] > 0


def rtdetr(path: Path) -> str:
    """Save an untrained RT-DETR that is sure of some of its queries."""
    from test_teachers import build

    model = build("yolov8n-rtdetr.yaml")
    model.args, model.task = {}, "detect"
    torch.save({"model": model, "train_args": {"task": "detect"}}, path)
    return str(path)
