"""How good a narrower student is that begins with its teacher's weights (`kd_init=fit`), before any training.

    python examples/study/fit.py DATA TEACHER [WIDTH ...]     writes results/fit.json and fit.md

DATA is a data.yaml, from whose training images the fit draws and on whose val images all are scored; give held-out
training images, such as those of a bench with `holdout=`. TEACHER is a detector. The students are the same model with
WIDTH times its channels (0.5 and 0.75), and random weights. Each is fitted twice: with evenly spaced channels of the
teacher, and with those that matter most, as `kd_init=fit` does. R2 is the share of the variance of the teacher's
activations that a layer reproduces.
"""

from __future__ import annotations

import json
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils.torch_utils import init_seeds

from ultralytics_kd.bench.table import markdown
from ultralytics_kd.outputs import weight_fitting, weight_selection
from ultralytics_kd.outputs.channel_importance import measure_importance

RESULTS = Path(__file__).resolve().parent / "results"
IMAGES = 64
WIDTHS = (0.5, 0.75)
CHOICES = {"evenly spaced": lambda model, images: None, "importance": measure_importance}


def training_images(data: str, imgsz: int) -> torch.Tensor:
    """Return augmented training images, shape (IMAGES, 3, imgsz, imgsz)."""
    init_seeds(0)
    described = check_det_dataset(data)
    args = get_cfg(overrides={"imgsz": imgsz, "task": "detect"})
    dataset = build_yolo_dataset(args, described["train"], IMAGES, described, mode="train", stride=32)
    chosen = torch.randperm(len(dataset))[:IMAGES].tolist()
    return torch.stack([dataset[i]["img"] for i in chosen]).float() / 255


def narrower(teacher: Any, width: float) -> DetectionModel:
    """Return a model of a teacher's architecture with a part of its channels, and random weights."""
    layout = deepcopy(teacher.yaml)
    depth, channels, most = layout["scales"][layout["scale"]]
    layout["scales"] = {layout["scale"]: [depth, channels * width, most]}
    torch.manual_seed(0)
    student = DetectionModel(layout, nc=layout["nc"], verbose=False)
    student.names, student.args = teacher.names, teacher.args
    return student


def scores(model: Any, data: str, imgsz: int) -> list[float]:
    """Return the mAP50-95 of the head with NMS and of the NMS-free one on the val images."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        torch.save({"model": deepcopy(model).half(), "train_args": {"task": "detect", "imgsz": imgsz}}, file)
        common = {"data": data, "imgsz": imgsz, "workers": 0, "plots": False, "verbose": False, "project": folder}
        return [float(YOLO(file).val(**common, nms=nms).box.map) for nms in (None, False)]


def fit(
    teacher: Any, width: float, choice: str, images: torch.Tensor
) -> tuple[DetectionModel, dict[str, float], float]:
    """Fit a student, and return it, the R2 of each layer, and the CPU seconds that it took."""
    student, found = narrower(teacher, width), {}

    def recorded(*args: Any) -> dict[str, float]:
        found.update(weight_fitting.fit_weights(*args))
        return found

    before = weight_selection.measure_importance, weight_selection.fit_weights
    weight_selection.measure_importance, weight_selection.fit_weights = CHOICES[choice], recorded
    start = process_time()
    try:
        weight_selection.select_weights(student, teacher, images=images)
    finally:
        weight_selection.measure_importance, weight_selection.fit_weights = before
    return student, found, process_time() - start


def main(data: str, file: str, widths: list[float]) -> None:
    """Measure all students, and write the tables."""
    torch.set_num_threads(1)
    teacher = load_checkpoint(file)[0].float().eval()
    imgsz = int(teacher.args["imgsz"] if isinstance(teacher.args, dict) else teacher.args.imgsz)
    images, rows = training_images(data, imgsz), []
    its_scores = scores(teacher, data, imgsz)
    for width in widths:
        for choice in CHOICES:
            student, layers, seconds = fit(teacher, width, choice, images)
            row = {"width": width, "channels": choice, "seconds": seconds, "scores": scores(student, data, imgsz)}
            rows.append({**row, "r2": layers})
    report = {"imgsz": imgsz, "images": IMAGES, "teacher": its_scores, "students": rows}
    (RESULTS / "fit.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    header = ["width", "channels", "mean R2", "worst layer", "NMS", "NMS-free", "teacher", "CPU s"]
    table = [
        [
            f"{row['width']:g}",
            row["channels"],
            f"{mean(row['r2'].values()):.3f}",
            "{}: {:.2f}".format(*min(row["r2"].items(), key=lambda item: item[1])),
            *(f"{score:.3f}" for score in row["scores"]),
            " / ".join(f"{score:.3f}" for score in its_scores),
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    text = markdown([header, *table])
    (RESULTS / "fit.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [float(width) for width in sys.argv[3:]] or list(WIDTHS))
