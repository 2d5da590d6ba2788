"""What only a GPU shows: mixed precision, compiled models, AutoBatch. `ULTRALYTICS_KD_TEST_DEVICE=0` asks for it.

With that variable every training of the other files runs on the GPU too, in full precision:

    ULTRALYTICS_KD_TEST_DEVICE=0 pytest -n 8
"""

from __future__ import annotations

import gc
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import DEVICE, QUICK, STUDENT, save_model
from task_models import SUFFIX, task_model
from test_training import results
from ultralytics.utils import LOGGER
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO
from ultralytics_kd.cache import make_cache
from ultralytics_kd.config.arguments import TASK_WEIGHTS, TASKS
from ultralytics_kd.demo.tasks import draw_task_dataset
from ultralytics_kd.teachers import GridTeacher

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


@pytest.mark.fits
@pytest.mark.parametrize("student", ["trained", "untrained"])
def test_a_fitted_beginning_measured_weights_and_larger_images_for_the_teacher(student, data, teacher, tmp_path):
    """kd_init=auto moves the student before Ultralytics does; kd_weight measures gradients in half precision."""
    model = YOLO(str(save_model(tmp_path / "own.pt", STUDENT)) if student == "trained" else STUDENT)
    args = {**GPU, "project": str(tmp_path), "name": "run", "kd_weight": "auto", "kd_teacher_imgsz": 96}
    model.train(**args, data=data, teacher=teacher)
    assert model.trainer.amp and model.trainer.distillation.beginning.trained
    assert all(math.isfinite(value) for row in kd_losses(tmp_path / "run") for value in row.values())
    balance = model.trainer.distiller.balance
    assert balance.step and balance.ratios().isfinite().all() and balance.ratios().device.type == "cuda"


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


def test_teacher_that_overflows_in_the_middle_costs_no_epoch(teacher, data, tmp_path, monkeypatch, caplog):
    """One answer counts nothing, the next ones come in float32; labels are learned from all along."""
    monkeypatch.setattr(LOGGER, "propagate", True)
    stock, count = GridTeacher._run, {"half": 0}

    def run(self, images):
        out = stock(self, images)
        count["half"] += self.dtype is torch.bfloat16
        if self.dtype is torch.bfloat16 and count["half"] > 3:
            for branch in out.values():
                branch.scores[:, ::5] = float("inf")
        return out

    monkeypatch.setattr(GridTeacher, "_run", run)
    torch.save({"model": task_model("detect", "yolo26s"), "train_args": {"task": "detect"}}, tmp_path / "teacher.pt")
    data = str(draw_task_dataset(tmp_path / "set", "detect", 16, 4, 64))
    model, gains = YOLO("yolo26n.yaml"), []
    model.add_callback("on_train_batch_start", lambda t: gains.append((t.epoch, t.model.criterion.base.o2m)))
    run_args = {**GPU, "amp": "bf16", "data": data, "project": str(tmp_path), "name": "run", "kd_feat": 1.0}
    model.train(**run_args, teacher=str(tmp_path / "teacher.pt"))
    assert count["half"] == 5 and "it continues in float32" in caplog.text and "recovering" not in caplog.text
    rows = results(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(v) for row in rows for v in row.values())
    assert len(gains) == 8 and sorted({gain for _, gain in gains}, reverse=True)[0] == gains[0][1]


def test_memory_that_runs_out_halves_the_batch_with_a_teacher_too(tmp_path):
    """For real: this process may have 3 GiB."""
    torch.save({"model": task_model("detect", "yolo26s"), "train_args": {"task": "detect"}}, tmp_path / "teacher.pt")
    data = str(draw_task_dataset(tmp_path / "set", "detect", 32, 4, 64))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(3 * 2**30 / total)
    try:
        model = YOLO("yolo26n.yaml")
        args = {**GPU, "imgsz": 640, "batch": 32, "epochs": 1, "data": data, "project": str(tmp_path), "name": "run"}
        model.train(**args, teacher=str(tmp_path / "teacher.pt"), kd_feat=1.0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert model.trainer.batch_size < 32
    assert all(v > 0 for v in kd_losses(tmp_path / "run")[0].values())


def test_memory_of_the_device_is_flat_over_epochs_and_given_back(data, teacher, tmp_path):
    gc.collect()
    torch.cuda.empty_cache()
    before, used = torch.cuda.memory_allocated(), []
    model = YOLO("yolo26n.yaml")
    model.add_callback("on_fit_epoch_end", lambda t: (gc.collect(), used.append(torch.cuda.memory_allocated())))
    model.train(**{**GPU, "epochs": 30}, data=data, project=str(tmp_path), teacher=teacher, kd_feat=1.0)
    assert max(used[15:30]) - max(used[5:15]) < 2**20
    left = torch.cuda.memory_allocated() - before  # the student, its average and its optimizer's state, and no teacher
    parameters = sum(p.numel() for p in model.trainer.model.parameters())
    assert left < 6 * 4 * parameters < 4 * 9_950_186 * 2


@pytest.fixture(scope="module")
def two_gpus():
    """Skip without two GPUs, which tests of NCCL need; return their names as `device`."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    return "0,1"


@pytest.mark.parametrize(
    "args",
    [
        {"kd_feat": 1.0},
        {"kd_feat": 1.0, "compile": True},
        {"kd_compile": True},
        {"kd_cache": True},
        {"kd_weight": "auto"},
        {"kd_teacher_imgsz": 96},
    ],
    ids=lambda args: "-".join(args),
)
def test_two_processes_over_nccl_leave_what_one_process_leaves(args, two_gpus, data, teacher, tmp_path):
    """Ultralytics launches a process for each GPU. Terms are finite, and the student is like one of a single GPU."""
    found = {}
    for name, device in (("one", DEVICE), ("two", two_gpus)):
        model = YOLO("yolo26n.yaml")
        run = {**GPU, "device": device, "epochs": 2, "name": name, "project": str(tmp_path), **args}
        model.train(**run, data=data, teacher=teacher, kd_init=False)
        rows = kd_losses(tmp_path / name)
        assert len(rows) == 2 and all(math.isfinite(v) for row in rows for v in row.values())
        found[name] = rows[0], torch_load(tmp_path / name / "weights" / "last.pt", map_location="cpu")
    (one, alone), (two, together) = found["one"], found["two"]
    assert one.keys() == two.keys()
    assert two == pytest.approx(one, rel=0.5)  # other images in each batch, and statistics of half a batch
    assert alone["model"].state_dict().keys() == together["model"].state_dict().keys()


def test_resumed_run_of_two_processes_over_nccl_ends_as_it_should(two_gpus, data, teacher, tmp_path):
    """A run that was cut after its first epoch goes on with both processes, its teacher and its adapters."""
    args = {**GPU, "device": two_gpus, "epochs": 3, "project": str(tmp_path), "name": "run"}
    cut = tmp_path / "cut.py"
    cut.write_text("def stop(trainer):\n    if trainer.epoch == 0:\n        raise SystemError('cut')\n")
    model = YOLO("yolo26n.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        from cut import stop  # the launched processes import it too

        model.add_callback("on_model_save", stop)
        with pytest.raises(subprocess.CalledProcessError):
            model.train(**args, data=data, teacher=teacher, kd_feat=1.0)
    YOLO(tmp_path / "run" / "weights" / "last.pt").train(resume=True)
    assert [int(row["epoch"]) for row in results(tmp_path / "run")] == [1, 2, 3]
    assert all(row["train/kd_feat"] > 0 for row in results(tmp_path / "run"))
