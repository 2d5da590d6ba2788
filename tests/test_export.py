"""Distilled students are exported, and trained quantization-aware; examples/export.py makes the comparison."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from conftest import QUICK, save_model
from ultralytics import YOLO as StockYOLO
from ultralytics.utils.patches import torch_load
from ultralytics.utils.torch_utils import is_qat

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.training import mixin

SPEC = importlib.util.spec_from_file_location("export_example", Path(__file__).parents[1] / "examples" / "export.py")
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)
MANY, ONE = example.HEADS
# Packages of a format, and how far its boxes (pixels) and scores may be from the student's: a few times the measured
# difference. The student is hardly trained, so boxes without an object differ most
CASES = [
    ("torchscript", 32, ONE, (), 0.05, 1e-4),
    ("onnx", 32, ONE, ("onnx", "onnxruntime"), 0.05, 1e-4),
    pytest.param("onnx", 16, ONE, ("onnx", "onnxruntime"), 3, 0.02, marks=pytest.mark.nightly),
    ("onnx", 8, MANY, ("onnx", "onnxruntime"), 60, 0.3),
    ("openvino", 16, ONE, ("openvino",), 20, 0.1),  # computes in bfloat16 on processors that support it
    ("ncnn", 16, MANY, ("ncnn", "pnnx"), 10, 0.05),
]
STORED = {32: {"float", "float32", "f32"}, 16: {"float16", "f16"}, 8: {"int8", "i8"}}


def save_student(folder: Path) -> Path:
    """Save weights of a student that is confident of few boxes, as a trained one is."""
    torch.manual_seed(1)
    path = save_model(folder / "student.pt", "yolo26n.yaml")
    ckpt = torch_load(path)
    head = ckpt["model"].model[-1]
    for tower in (*head.cv3, *head.one2one_cv3):
        tower[-1].weight.data /= 10
        torch.nn.init.constant_(tower[-1].bias, -2.0)
    torch.save(ckpt, path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data, teacher) -> Path:
    """Return the folder of a distillation that starts from weights with plausible scores and hardly changes them."""
    folder = tmp_path_factory.mktemp("student")
    student = save_student(folder)
    args = {**QUICK, "epochs": 1, "lr0": 1e-5, "warmup_epochs": 0, "data": data, "project": str(folder)}
    YOLO(student).train(**args, teacher=teacher, name="run")
    return folder / "run"


@pytest.fixture(scope="module")
def student(trained, data, tmp_path_factory):
    """Return the example's student, with its outputs for the val images."""
    student = example.Student(trained / "weights" / "best.pt", data, 64, tmp_path_factory.mktemp("exports"), 1.0)
    rows = student.references()
    assert [row["head"] for row in rows] == [MANY, ONE]
    confident = torch.cat(student.outputs[ONE])[:, 4] >= example.CONFIDENT
    assert confident.any()  # there are boxes to compare
    student.scores = {row["head"]: row["mAP50-95"] for row in rows}
    return student


@pytest.mark.parametrize("name, precision, head, packages, pixels, score", CASES, ids=lambda v: str(v).split()[0])
def test_export_predicts_what_the_student_predicts(student, name, precision, head, packages, pixels, score):
    for package in packages:
        pytest.importorskip(package)
    row = student.compare(name, precision, head)
    assert "why not" not in row
    assert row["boxes (px)"] < pixels and row["scores"] < score
    assert row["mAP50-95"] == pytest.approx(student.scores[head], abs=0.02)
    kind, share = row["weights"].partition(";")[0].partition(",")[0].split()
    assert kind in STORED[precision] and float(share.rstrip("%")) > 90


def test_a_failed_export_keeps_its_row_with_the_reason(student):
    row = student.compare("engine", 32, ONE)
    assert "GPU" in row["why not"] and "mAP50-95" not in row
    row = student.compare("torchscript", 8, ONE)
    assert "not supported" in row["why not"]
    table = example.to_markdown([row])
    assert "| TorchScript | INT8 | NMS-free |" in table and row["why not"] in table


def test_format_without_top_k_has_no_nms_free_head(student):
    for package in ("ncnn", "pnnx"):
        pytest.importorskip(package)
    row = student.compare("ncnn", 32, ONE)
    assert "no top-k" in row["why not"] and "boxes (px)" not in row


def test_differences_are_the_largest_of_the_outputs():
    many = [torch.rand(7, 84)]
    moved = [many[0].clone()]
    moved[0][2, 5] += 3.0
    moved[0][6, 9] += 0.25
    assert example.differences(many, moved, nms_free=False) == pytest.approx({"boxes (px)": 3.0, "scores": 0.25})
    one = torch.tensor([[0.0, 0, 8, 8, 0.9, 1], [20, 20, 30, 30, 0.8, 1], [5, 5, 9, 9, 0.1, 0]])
    swapped = one[[1, 0, 2]].clone()
    swapped[1, 0] += 2.0
    assert example.differences([one], [swapped], nms_free=True) == pytest.approx({"boxes (px)": 2.0, "scores": 0.0})
    swapped[1, 5] = 0  # then another box is the nearest of its class
    assert example.differences([one], [swapped], nms_free=True)["boxes (px)"] == pytest.approx(22.0)


# Quantization-aware training -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def quantized(tmp_path_factory, data, teacher) -> tuple[Path, YOLO]:
    """Return the folder of a quantization-aware distillation that was interrupted after its first epoch and resumed."""
    pytest.importorskip("modelopt.torch.quantization")
    folder = tmp_path_factory.mktemp("quantized")
    student = save_student(folder)

    def stop(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    interrupted = YOLO(student)
    interrupted.add_callback("on_train_epoch_start", stop)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train(**QUICK, teacher=teacher, quantize=8, kd_feat=1.0, data=data, project=str(folder), name="run")
    resumed = YOLO(folder / "run" / "weights" / "last.pt")
    resumed.train(resume=True)
    return folder / "run", resumed


@pytest.mark.nightly
def test_quantization_aware_distillation_trains_resumes_and_saves(quantized):
    run, model = quantized
    header, *rows = [line.split(",") for line in (run / "results.csv").read_text().splitlines()]
    rows = [dict(zip(header, map(float, row))) for row in rows]
    assert [row["epoch"] for row in rows] == [1, 2]
    for side in ("train", "val"):
        for term in ("kd_cls", "kd_box", "kd_feat"):
            assert all(0 < row[f"{side}/{term}"] < float("inf") for row in rows)
    ckpt = torch_load(run / "weights" / "best.pt")
    assert ckpt["modelopt"] and ckpt["train_args"]["quantize"] == 8 and ckpt["optimizer"] is None
    assert is_qat(StockYOLO(run / "weights" / "best.pt").model)
    assert "metrics/mAP50-95(B)" in model.trainer.teacher_metrics


@pytest.mark.nightly
def test_quantization_aware_student_is_exported_with_the_ranges_it_learned(quantized, data, tmp_path):
    onnx = pytest.importorskip("onnx")
    student = example.Student(quantized[0] / "weights" / "best.pt", data, 64, tmp_path, 1.0)
    student.outputs[ONE] = student.run(example.AutoBackend(str(student.weights), end2end=True, verbose=False))
    row = student.compare("onnx", 8, ONE)
    assert row["scores"] < 0.3  # one different rounding changes much in a student that is hardly trained
    path = next(tmp_path.rglob("*.onnx"))
    assert sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node) > 100
    assert "cannot export a QAT model" in student.compare("torchscript", 32, ONE)["why not"]


def test_quantization_needs_weights_with_ranges_to_learn(quick, teacher):
    with pytest.raises(KDError, match="quantize=8 fixes the ranges of activations before training"):
        YOLO("yolo26n.yaml").train(**quick, teacher=teacher, quantize=8, kd_init=False)
    assert not Path(quick["project"]).exists()


def test_quantization_without_its_package_is_an_error_that_names_it(quick, teacher, trained, monkeypatch):
    def missing(*_):
        raise ModuleNotFoundError("No module named 'modelopt'", name="modelopt")

    monkeypatch.setattr("ultralytics.engine.trainer.prepare_qat", missing)
    weights = shutil.copy(trained / "weights" / "best.pt", trained / "copy.pt")
    with pytest.raises(KDError, match=r"pip install \"nvidia-modelopt>=0.44\""):
        YOLO(weights).train(**quick, teacher=teacher, quantize=8)
    assert not Path(quick["project"]).exists() and mixin.NO_MODELOPT
