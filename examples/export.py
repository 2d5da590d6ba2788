"""Export a distilled student in every precision of a format, and compare each with the student on val images, offline.

Without weights it draws a data set and distils a small student first. An export that fails here keeps its row in the
table, with the reason. The script installs nothing; the table names missing packages.

Usage:
    $ python examples/export.py [folder] [weights=best.pt data=data.yaml imgsz=640] [formats=all] [fraction=1.0]

`formats` is a list such as onnx,openvino or all. `fraction` is the share of the training images that calibrates INT8.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # before Ultralytics is imported

import numpy as np
import torch
from torch import Tensor
from ultralytics.cfg import get_cfg, merge_equals_args, parse_key_value_pair
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.engine.exporter import (
    FP16_FORMATS,
    FP32_UNSUPPORTED_FORMATS,
    INT8_FORMATS,
    W8A16_FORMATS,
    W8A32_FORMATS,
    export_formats,
)
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils import LOGGER
from ultralytics.utils.files import file_size

from ultralytics_kd import YOLO
from ultralytics_kd.bench.table import markdown
from ultralytics_kd.demo.shapes import draw_dataset

FORMATS = "torchscript,onnx,openvino,ncnn"
NEEDS_ALIYUN = (
    "MNN's converter installs aliyun-log-python-sdk when it is imported, and reports to a server: install that package "
    "first to allow it"
)
HEADS = {"NMS": None, "NMS-free": False}  # value of Ultralytics' `nms` argument for each head of YOLO26
CONFIDENT = 0.25  # boxes of the NMS-free head with a lower score are not compared: their order is random
COLUMNS = ("format", "precision", "head", "mAP50-95", "mAP50", "boxes (px)", "scores", "MB", "weights", "why not")


def main(folder: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Export a student to `folder`, and return a row of the table for each export."""
    imgsz = int(options.get("imgsz", 64 if "weights" not in options else 640))
    if "weights" in options:
        weights, data = Path(options["weights"]), str(options["data"])
    else:
        weights, data = distil(folder, imgsz)
    student = Student(weights, data, imgsz, folder, float(options.get("fraction", 1.0)))
    rows = student.references()
    for name, precision in cases(options.get("formats", FORMATS)):
        compared = [student.compare(name, precision, head) for head in student.outputs]
        same_reason = compared[0].get("why not") and len({row.get("why not") for row in compared}) == 1
        rows += [{**compared[0], "head": "any"}] if same_reason else compared
    table = to_markdown(rows)
    (folder / "export.json").write_text(json.dumps(rows, indent=1))
    (folder / "export.md").write_text(table)
    LOGGER.info(f"\n{table}\nSaved to {folder / 'export.md'} and export.json")
    return rows


def distil(folder: Path, imgsz: int) -> tuple[Path, str]:
    """Train a teacher and distil a student from it, on drawn images."""
    data = draw_dataset(folder / "data", train_images=32, val_images=8, size=imgsz)
    args = {"data": str(data), "imgsz": imgsz, "epochs": 2, "batch": 8, "plots": False, "project": str(folder)}
    YOLO("yolo26s.yaml").train(**args, name="teacher")
    teacher = str(folder / "teacher" / "weights" / "best.pt")
    YOLO("yolo26n.yaml").train(**args, name="student", teacher=teacher)
    return folder / "student" / "weights" / "best.pt", str(data)


def cases(formats: Any) -> Iterator[tuple[str, int | str]]:
    """Yield each format with each precision in which Ultralytics exports it."""
    text = ",".join(export_formats()["Argument"][1:]) if formats == "all" else str(formats)
    for name in (each.strip(" '") for each in text.strip("[]()").split(",")):
        formats_by_precision = {16: FP16_FORMATS, 8: INT8_FORMATS, "w8a16": W8A16_FORMATS, "w8a32": W8A32_FORMATS}
        if name not in FP32_UNSUPPORTED_FORMATS:
            yield name, 32
        yield from ((name, kind) for kind, formats in formats_by_precision.items() if name in formats)


class Student:
    """A trained detector and its outputs, which exports are compared with."""

    def __init__(self, weights: Path, data: str, imgsz: int, folder: Path, fraction: float):
        """Read the val images as validation does: letterboxed to a square."""
        self.weights, self.data, self.imgsz, self.folder, self.fraction = weights, data, imgsz, folder, fraction
        self.titles = dict(zip(export_formats()["Argument"], export_formats()["Format"]))
        args = get_cfg(overrides={"imgsz": imgsz, "task": "detect", "mode": "val", "data": data, "cache": False})
        info = check_det_dataset(data)
        dataset = build_yolo_dataset(args, info["val"], 1, info, mode="val", rect=False)
        self.images = [sample["img"][None].float() / 255 for sample in dataset]
        self.outputs: dict[str, list[Tensor]] = {}
        self.missing: dict[str, str] = {}  # formats whose package is not installed

    def references(self) -> list[dict[str, Any]]:
        """Validate the student with each of its heads, and keep its outputs."""
        rows = []
        for head, nms in HEADS.items():
            backend = AutoBackend(str(self.weights), end2end=nms is False, verbose=False)
            if nms is False and not backend.end2end:
                continue  # the student has one head only
            self.outputs[head] = self.run(backend)
            row = {"format": "PyTorch", "precision": 32, "head": head, "MB": file_size(self.weights)}
            rows.append({**row, **self.validate(self.weights, nms)})
        return rows

    def compare(self, name: str, precision: int | str, head: str) -> dict[str, Any]:
        """Export the student, validate the export, and compare its raw outputs with the student's."""
        row: dict[str, Any] = {"format": self.titles.get(name, name), "precision": precision, "head": head}
        if name == "mnn" and importlib.util.find_spec("aliyun") is None:
            self.missing[name] = NEEDS_ALIYUN
        if name in self.missing:
            return {**row, "why not": self.missing[name]}
        nms = HEADS[head]
        try:
            path = self.export(name, precision, nms)
            backend = AutoBackend(str(path), verbose=False)
            row["MB"] = file_size(path)
            row["weights"] = ", ".join(f"{kind} {share:.0%}" for kind, share in stored_kinds(path).items())
            if path.suffix == ".onnx" and quantizes(path):
                row["weights"] += "; Q/DQ nodes"
            if name == "openvino":  # it may compute in a lower precision than it stores
                running = backend.ov_compiled_model.get_property("INFERENCE_PRECISION_HINT").to_string()
                row["weights"] += f"; runs in {running}"
            if nms is False and not backend.end2end:
                return {**row, "why not": "has no top-k: Ultralytics exports the other head in place of this one"}
            row.update(self.validate(path, nms))
            row.update(differences(self.outputs[head], self.run(backend), nms is False))
        except Exception as e:  # the table shows the reason
            row["why not"] = reason(e)
            if isinstance(e, ImportError):
                self.missing[name] = row["why not"]
        return row

    def export(self, name: str, precision: int | str, nms: bool | None) -> Path:
        """Export a copy of the student in a new folder; INT8 is calibrated on training images."""
        folder = self.folder / "exports" / f"{name}-{precision}-{'one2one' if nms is False else 'one2many'}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        copy = shutil.copy(self.weights, folder / "student.pt")
        args: dict[str, Any] = {"format": name, "imgsz": self.imgsz, "nms": nms, "quantize": precision, "device": "cpu"}
        if precision in {8, "w8a16"} and "data" in dict(zip(self.titles, export_formats()["Arguments"]))[name]:
            args |= {"data": self.data, "fraction": self.fraction}
        return Path(YOLO(copy).export(**args))

    def validate(self, path: Path, nms: bool | None) -> dict[str, float]:
        """Return the scores of a validation by Ultralytics."""
        args = {"imgsz": self.imgsz, "batch": 1, "rect": False, "plots": False, "workers": 0, "verbose": False}
        box = YOLO(path, task="detect").val(
            data=self.data, nms=nms, device="cpu", project=str(self.folder), name="val", exist_ok=True, **args
        )
        return {"mAP50-95": float(box.box.map), "mAP50": float(box.box.map50)}

    def run(self, backend: AutoBackend) -> list[Tensor]:
        """Return a model's raw outputs for the val images, each (4 + nc, anchors), or (300, 6) without NMS."""
        outputs = []
        with torch.inference_mode():
            for image in self.images:
                output = backend(image)
                outputs.append((output[0] if isinstance(output, (list, tuple)) else output)[0].float().cpu().clone())
        return outputs


def differences(student: list[Tensor], export: list[Tensor], nms_free: bool) -> dict[str, float]:
    """Return the largest difference of a box's coordinates, in pixels of the network's input, and of a score.

    Outputs before NMS are compared anchor point by anchor point. The NMS-free head returns the 300 highest scores:
    these are compared in order, and each confident box is compared with the nearest box of its class.
    """
    boxes, scores = [0.0], [0.0]
    for a, b in zip(student, export, strict=True):
        if not nms_free:
            boxes.append(float((a[:4] - b[:4]).abs().max()))
            scores.append(float((a[4:] - b[4:]).abs().max()))
            continue
        scores.append(float((a[:, 4].sort().values - b[:, 4].sort().values).abs().max()))
        for row in a[a[:, 4] >= CONFIDENT]:
            same_class = b[b[:, 5] == row[5]]
            boxes.append(float((same_class[:, :4] - row[:4]).abs().amax(1).min()) if len(same_class) else float("inf"))
    return {"boxes (px)": max(boxes), "scores": max(scores)}


def stored_kinds(path: Path) -> dict[str, float]:
    """Return the share of an export's weights by the number format of the file; empty if unknown."""
    kinds: Counter[str] = Counter()
    if path.suffix == ".onnx":
        import onnx

        for tensor in onnx.load(path).graph.initializer:
            kinds[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += int(np.prod(tensor.dims))
    elif path.suffix == ".torchscript":
        for tensor in torch.jit.load(path).state_dict().values():
            kinds[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    elif path.name.endswith("_openvino_model"):
        import openvino

        for op in openvino.Core().read_model(next(path.glob("*.xml"))).get_ops():
            if op.get_type_name() == "Constant":
                kinds[op.get_element_type().to_string()] += int(np.prod(op.shape))
    elif path.name.endswith("_ncnn_model"):
        tag = int.from_bytes((path / "model.ncnn.bin").read_bytes()[:4], "little")  # precedes the first layer's weights
        kinds[{0x01306B47: "float16", 0x000D4B38: "int8", 0: "float32"}.get(tag, hex(tag))] += 1
    elif path.suffix == ".mnn":
        kinds = mnn_kinds(path)
    total = sum(kinds.values())
    return {kind: n / total for kind, n in kinds.most_common(2) if n / total >= 0.005}


def quantizes(path: Path) -> bool:
    """Return whether an ONNX file has nodes that quantize activations to INT8, however its weights are stored."""
    import onnx

    return any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def mnn_kinds(path: Path) -> Counter[str]:
    """Return the number of weights of an MNN file by number format."""
    from MNN.tools import mnnconvert

    file = path.with_suffix(".json")
    mnnconvert.convert(["", "-f", "MNN", "--modelFile", str(path), "--JsonFile", str(file)])
    kinds: Counter[str] = Counter()
    for op in json.loads(file.read_text())["oplists"]:
        main = op.get("main") or {}
        if quantized := main.get("quanParameter"):
            kind = {1: "int8", 2: "int8", 3: "float16", 4: "int8"}.get(quantized.get("type"), "quantized")
            kinds[kind] += len(quantized.get("buffer", [])) // (2 if kind == "float16" else 1)
        else:
            kinds["float32"] += len(main.get("weight", []))
    return kinds


def reason(error: Exception) -> str:
    """Return why an export failed, in one line."""
    if isinstance(error, ImportError) and error.name:
        return f"the package {error.name} is not installed"
    text = " ".join(str(error).replace("ERROR ❌️", "").split())
    text = re.sub(r"(?<![:/\w])(/[\w.+-]+)+/", "", text)  # folders are of no interest
    return (text or type(error).__name__).replace("|", "/")[:160]


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    digits = {"mAP50-95": ".4f", "mAP50": ".4f", "boxes (px)": ".3g", "scores": ".1e", "MB": ".1f"}
    names = {32: "FP32", 16: "FP16", 8: "INT8"}
    lines = [list(COLUMNS)]
    for row in rows:
        cells = {k: format(v, digits[k]) if k in digits else str(v) for k, v in row.items()}
        cells["precision"] = names.get(row["precision"], str(row["precision"]).upper())
        lines.append([cells.get(c, "") for c in COLUMNS])
    return markdown(lines)


if __name__ == "__main__":
    arguments = merge_equals_args(sys.argv[1:])
    folder = Path(next((arg for arg in arguments if "=" not in arg), None) or mkdtemp(prefix="export_"))
    folder.mkdir(parents=True, exist_ok=True)
    main(folder, dict(parse_key_value_pair(arg) for arg in arguments if "=" in arg))
