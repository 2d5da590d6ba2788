"""Runs the demo: trains a teacher, then the same student alone and distilled, and compares them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ultralytics import YOLO as StockYOLO
from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.torch_utils import get_num_params

from ..config.arguments import ARGUMENTS
from ..config.checks import check_combination, check_plain, whole_number
from ..config.registration import register_arguments
from ..errors import KDError
from ..files import output_folder
from ..model import YOLO
from ..report.gap import gap_closed
from ..screen import command, duration, near, paragraph, row, table
from .comparison import draw_comparison
from .shapes import draw_dataset
from .threads import IdleCores

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
    "nbs": 8,  # an optimizer step for every batch: a short run has too few batches to accumulate gradients
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
        map50_95 (float): mAP50-95 of best.pt on the val images.
        map50 (float): mAP50 of the same weights.
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
            `teacher_model`, `teacher_epochs`, `train_images` and `val_images`. Only the distilled student gets the
            kd arguments.

    Returns:
        (dict): "arms" (a dict per arm, as in `Arm`), "gap_closed" (the gain divided by the teacher's lead over the
            student alone; None if it has no lead), "save_dir" and "picture".

    Raises:
        KDError: If the demo does not take an argument, or cannot work with its value.
        SyntaxError: If an argument is unknown.

    Examples:
        >>> from ultralytics_kd.demo import run_demo
        >>> result = run_demo({"epochs": 4, "kd_feat": 1.0})
        >>> result["arms"]["distilled"]["map50_95"], result["gap_closed"]
    """
    register_arguments()
    check_plain(overrides or {})
    training = {**DEMO_ONLY, **TRAINING, **(overrides or {})}
    options = {name: training.pop(name) for name in DEMO_ONLY}
    place: dict[str, Any] = {k: training.pop(k) for k in ("project", "name", "exist_ok") if k in training}
    _check(options, training)
    save_dir = output_folder(get_cfg(overrides={"name": "demo", **place, "task": "detect"}))
    train_images, val_images, imgsz = options["train_images"], options["val_images"], training["imgsz"]
    data = draw_dataset(save_dir / "data", train_images, val_images, imgsz, training["seed"])
    LOGGER.info(f"{colorstr('Demo:')} drew {train_images} + {val_images} images in {near(save_dir / 'data')}")
    common = {**training, "data": str(data), "project": str(save_dir), "exist_ok": True}
    plain = {k: v for k, v in common.items() if k not in ARGUMENTS}
    teacher = _train(TEACHER, {**plain, "model": options["teacher_model"], "epochs": options["teacher_epochs"]})
    alone, distilled = _train(ALONE, plain), _train(DISTILLED, {**common, "teacher": teacher.weights})
    arms = [teacher, alone, distilled]
    weights = {f"{arm.name}  mAP50-95 {arm.map50_95:.3f}": arm.weights for arm in arms}
    picture = draw_comparison(weights, data.parent / "images" / "val", save_dir / "comparison.png", imgsz)
    result = {
        "arms": {arm.name: asdict(arm) for arm in arms},
        "gap_closed": gap_closed(teacher.map50_95, alone.map50_95, distilled.map50_95),
        "save_dir": str(save_dir),
        "picture": str(picture),
    }
    (save_dir / "results.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    LOGGER.info(_report(arms, result))
    return result


def _check(options: dict[str, Any], training: dict[str, Any]) -> None:
    """Raise if an argument is invalid, before anything is drawn or trained."""
    for name in ("teacher", "data", "task", "mode", "resume", "cfg", "distill_model", "save_dir"):
        if name in training:
            raise KDError(f"the demo takes no '{name}': drop it.")
    counts = {"imgsz": training["imgsz"], **{k: v for k, v in options.items() if k != "teacher_model"}}
    for name, value in {**counts, "epochs": training["epochs"]}.items():
        whole_number(name, value)
    check_combination({**vars(get_cfg(overrides=training)), "teacher": options["teacher_model"], "task": "detect"})
    for name, source in (("model", training["model"]), ("teacher_model", options["teacher_model"])):
        model = str(source)
        if not model.endswith((".yaml", ".yml")) or StockYOLO(model).task != "detect":
            raise KDError(
                f"'{name}={model}' is not the architecture (.yaml) of a YOLO detector: the demo trains from scratch."
            )


def _train(name: str, args: dict[str, Any]) -> Arm:
    """Train one arm from scratch and return its scores."""
    title = {TEACHER: "the teacher", ALONE: "the student alone", DISTILLED: "the student with the teacher"}[name]
    LOGGER.info(f"\n{colorstr('Demo:')} training {title} ({Path(args['model']).name}, epochs={args['epochs']})")
    start = time.perf_counter()
    model = YOLO(args["model"])
    model.add_callback("on_train_batch_start", IdleCores())
    metrics = model.train(**{**args, "name": name})
    seconds = time.perf_counter() - start
    weights = str(model.trainer.best)
    return Arm(name, float(metrics.box.map), float(metrics.box.map50), get_num_params(model.model), seconds, weights)


def _report(arms: list[Arm], result: dict[str, Any]) -> str:
    """Return the table, with the gain in one sentence."""
    lines = table(
        [
            ["", "mAP50-95", "mAP50", "parameters", "time"],
            *([a.name, f"{a.map50_95:.4f}", f"{a.map50:.4f}", f"{a.parameters:,}", duration(a.seconds)] for a in arms),
        ]
    )
    gain = arms[2].map50_95 - arms[1].map50_95
    if gain > 0 and result["gap_closed"] is not None:
        verdict = (
            f"Distillation gained {gain:.4f} mAP50-95 and closed {result['gap_closed']:.0%} of the gap to the teacher."
        )
    elif gain > 0:
        verdict = f"Distillation gained {gain:.4f} mAP50-95, although the teacher is no better than the student alone."
    else:
        verdict = f"Distillation did not help in this run: {gain:+.4f} mAP50-95."
    note = "One seed on drawn images shows how distillation works, not what it gains on your data."
    return "\n".join(
        (
            "",
            colorstr("Demo:"),
            *lines,
            *paragraph(f"{verdict} {note}"),
            *row("weights", near(arms[2].weights)),
            *row("picture", near(result["picture"])),
            *command("yolo-kd bench data=your.yaml model=yolo26n.pt teacher=best.pt"),
        )
    )
