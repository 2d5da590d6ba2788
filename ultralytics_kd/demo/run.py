"""Trains a teacher, then the same student alone and distilled, and says what came of it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics import YOLO as StockYOLO
from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.patches import imread, imwrite
from ultralytics.utils.plotting import Annotator, colors
from ultralytics.utils.torch_utils import get_num_params

from ..config.arguments import ARGUMENTS
from ..config.checks import check_combination, check_plain, whole_number
from ..config.registration import register_arguments
from ..errors import KDError
from ..files import output_folder
from .shapes import CLASS_NAMES, draw_dataset
from .threads import AllCores

TEACHER, ALONE, DISTILLED = "teacher", "alone", "distilled"
DEMO_ONLY = {
    "teacher_model": "yolo26s.yaml",
    "teacher_epochs": 12,
    "train_images": 480,
    "val_images": 80,
}
TRAINING = {
    "model": "yolo26n.yaml",
    "epochs": 8,
    "imgsz": 96,
    "batch": 8,
    "nbs": 8,  # a step for every batch: a short run cannot afford to gather the gradients of several
    "optimizer": "AdamW",
    "lr0": 0.002,
    "warmup_epochs": 1.0,
    "mosaic": 0.0,
    "pretrained": False,
    "cache": "ram",
    "workers": 0,
    "plots": False,
    "verbose": False,
    "seed": 0,
}


@dataclass
class Arm:
    """One finished training.

    Attributes:
        name (str): "teacher", "alone" or "distilled".
        map50_95 (float): mAP50-95 of its best.pt on the val images.
        map50 (float): mAP50 of the same.
        parameters (int): Number of parameters.
        seconds (float): Wall time of the training, final validation included.
        weights (str): Path of best.pt.
    """

    name: str
    map50_95: float
    map50: float
    parameters: int
    seconds: float
    weights: str


def run_demo(overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Draw a data set, train teacher, student alone and student distilled, and compare them.

    Args:
        overrides (dict, optional): Ultralytics' and kd arguments over the demo's defaults, and the demo's own:
            `teacher_model`, `teacher_epochs`, `train_images` and `val_images`. kd arguments reach the distilled
            student alone.

    Returns:
        (dict): "arms" (a dict per arm, as in `Arm`), "gap_closed" (share of the distance from the student alone to the
            teacher, None if the teacher is no better), "save_dir" and "picture".
    """
    register_arguments()
    check_plain(overrides or {})
    given = {**DEMO_ONLY, **TRAINING, **(overrides or {})}
    own = {name: given.pop(name) for name in DEMO_ONLY}
    place: dict[str, Any] = {k: given.pop(k) for k in ("project", "name", "exist_ok") if k in given}
    _check(own, given)
    save_dir = output_folder(get_cfg(overrides={"name": "demo", **place, "task": "detect"}))
    data = draw_dataset(save_dir / "data", own["train_images"], own["val_images"], given["imgsz"], given["seed"])
    LOGGER.info(f"{colorstr('Demo:')} drew {own['train_images']} + {own['val_images']} images in {save_dir / 'data'}")
    common = {**given, "data": str(data), "project": str(save_dir), "exist_ok": True}
    plain = {k: v for k, v in common.items() if k not in ARGUMENTS}
    teacher = _train(TEACHER, {**plain, "model": own["teacher_model"], "epochs": own["teacher_epochs"]})
    arms = [teacher, _train(ALONE, plain), _train(DISTILLED, {**common, "teacher": teacher.weights})]
    picture = _draw_comparison(arms, data.parent / "images" / "val", save_dir / "comparison.png", given["imgsz"])
    alone, distilled = arms[1], arms[2]
    gap = teacher.map50_95 - alone.map50_95
    result = {
        "arms": {arm.name: asdict(arm) for arm in arms},
        "gap_closed": (distilled.map50_95 - alone.map50_95) / gap if gap > 0 else None,
        "save_dir": str(save_dir),
        "picture": str(picture),
    }
    (save_dir / "results.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    LOGGER.info(_report(arms, result))
    return result


def _check(own: dict[str, Any], given: dict[str, Any]) -> None:
    """Answer bad arguments before anything is drawn or trained.

    Raises:
        KDError: If an argument has no place in the demo or a value that cannot work.
        SyntaxError: If an argument is unknown.
    """
    for name in ("teacher", "data", "task", "mode", "resume", "cfg", "distill_model", "save_dir"):
        if name in given:
            raise KDError(f"'{name}' is no argument of the demo, which sees to it itself.")
    counts = {"imgsz": given["imgsz"], **{k: v for k, v in own.items() if k != "teacher_model"}}
    for name, value in {**counts, "epochs": given["epochs"]}.items():
        whole_number(name, value)
    check_combination({**vars(get_cfg(overrides=given)), "teacher": own["teacher_model"], "task": "detect"})
    for name in ("model", "teacher_model"):
        model = str(given["model"] if name == "model" else own[name])
        if not model.endswith((".yaml", ".yml")) or StockYOLO(model).task != "detect":
            raise KDError(f"'{name}={model}' is no architecture (.yaml) of a YOLO detector, which the demo trains.")


def _train(name: str, args: dict[str, Any]) -> Arm:
    """Train one arm from scratch and return its scores."""
    from ..model import YOLO

    LOGGER.info(f"\n{colorstr('Demo:')} training {name} ({args['model']}, {args['epochs']} epochs)")
    start = time.perf_counter()
    model = YOLO(args["model"])
    AllCores().attach(model)
    metrics = model.train(**{**args, "name": name})
    seconds = time.perf_counter() - start
    weights = str(model.trainer.best)
    return Arm(name, float(metrics.box.map), float(metrics.box.map50), get_num_params(model.model), seconds, weights)


def _report(arms: list[Arm], result: dict[str, Any]) -> str:
    """Return the table and one sentence on what was measured."""
    head = f"    {'':<10}{'mAP50-95':>10}{'mAP50':>9}{'parameters':>13}{'seconds':>9}  weights"
    rows = [
        f"    {a.name:<10}{a.map50_95:>10.4f}{a.map50:>9.4f}{a.parameters:>13,}{a.seconds:>9.0f}  {a.weights}"
        for a in arms
    ]
    gain, gap = arms[2].map50_95 - arms[1].map50_95, arms[0].map50_95 - arms[1].map50_95
    if gain > 0 and gap > 0:
        verdict = (
            f"Distillation gained {gain:.4f} mAP50-95 and closed {result['gap_closed']:.0%} of the gap to the teacher."
        )
    elif gain > 0:
        verdict = f"Distillation gained {gain:.4f} mAP50-95, although the teacher is no better than the student alone."
    else:
        verdict = f"Distillation did not help in this run: {gain:+.4f} mAP50-95."
    seen = f"Teacher, student alone and student distilled side by side: {result['picture']}"
    note = "One seed on drawn images: it shows how it works, not what it brings on your data."
    return "\n".join(("", colorstr("Demo:"), head, *rows, f"    {verdict} {note}", f"    {seen}"))


def _draw_comparison(arms: list[Arm], images: Path, file: Path, imgsz: int, rows: int = 5, tile: int = 320) -> Path:
    """Save a grid: val images from top to bottom; labels, teacher, alone and distilled from left to right."""
    files = sorted(images.glob("*.png"))[:rows]
    columns = [[_labelled(f, tile) for f in files]]
    for arm in arms:
        results = StockYOLO(arm.weights).predict([str(f) for f in files], imgsz=imgsz, conf=0.3, verbose=False)
        columns.append(
            [_boxes(f, r.boxes.xyxyn.cpu().numpy(), r.boxes.cls.tolist(), tile) for f, r in zip(files, results)]
        )
    titles = ["labels", *(f"{arm.name}  mAP50-95 {arm.map50_95:.3f}" for arm in arms)]
    grid = np.concatenate([np.concatenate([_title(t, tile), *c]) for t, c in zip(titles, columns)], axis=1)
    imwrite(str(file), grid)
    return file


def _labelled(file: Path, tile: int) -> np.ndarray:
    """Return an image with its labels drawn in."""
    text = (file.parents[2] / "labels" / file.parent.name / f"{file.stem}.txt").read_text(encoding="utf-8")
    rows = np.array([line.split() for line in text.splitlines()], dtype=float).reshape(-1, 5)
    xyxy = np.concatenate((rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2), axis=1)
    return _boxes(file, xyxy, rows[:, 0].tolist(), tile)


def _boxes(file: Path, xyxyn: np.ndarray, cls: list[float], tile: int) -> np.ndarray:
    """Return an image at tile size with boxes, given as shares of the image side, and class names."""
    image = cv2.resize(imread(str(file)), (tile, tile), interpolation=cv2.INTER_CUBIC)
    annotator = Annotator(image, line_width=2, font_size=12)
    for box, c in zip(xyxyn * tile, cls):
        annotator.box_label(box, CLASS_NAMES[int(c)], color=colors(int(c), bgr=True))
    return cv2.copyMakeBorder(annotator.result()[2:-2, 2:-2], 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _title(text: str, width: int, height: int = 36) -> np.ndarray:
    """Return a white strip with a column's title."""
    strip = np.full((height, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (8, height - 12), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return strip
