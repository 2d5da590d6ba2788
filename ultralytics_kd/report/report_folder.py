"""The folder of a report: metrics, charts, pictures of images and feature maps, and the page."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.patches import imwrite
from ultralytics.utils.torch_utils import get_cpu_info

from ..compat import versions
from ..screen import near, paragraph, row
from . import plots
from .compared_model import STUDENT, TEACHER, ComparedModel
from .dense import worst_dense_images
from .feature_maps import draw_feature_maps
from .latency import measure_latency
from .metrics import collect_metrics, worst_images
from .options import Options
from .page import verdict, write_page
from .pictures import draw_boxes, draw_dense
from .score_names import END2END, HEADS, METRICS, NMS
from .validation import ValidationResult

FEATURE_IMAGES = 2  # images whose feature maps are shown
CHARTS = ("latency", "classes", "calibration", "curves")


@dataclass
class EvaluationSetup:
    """How models are evaluated, and the command that repeats it.

    Attributes:
        names (dict[int, str]): Classes of the data.
        validator (type[BaseValidator]): The task's validator.
        device (torch.device): Where the models are timed.
        command (str): Command line that makes the report again; empty if there is none.
        initialized (int | None): Number of the student's parameters that began with the teacher's weights; None if it
            is not known.
    """

    names: dict[int, str]
    validator: type
    device: torch.device
    command: str = ""
    initialized: int | None = None


def write_report(models: Sequence[ComparedModel], setup: EvaluationSetup, options: Options) -> dict[str, Any]:
    """Validate and time models, and write the page, its pictures and its metrics.

    Args:
        models (Sequence[ComparedModel]): The student and, if given, teacher and baseline, their classes matched.
        setup (EvaluationSetup): How they are evaluated.
        options (Options): The checked options.

    Returns:
        (dict): The content of `report.json`.
    """
    args, folder = options.args, options.folder
    preferred_head = END2END if args.nms is False else NMS
    with tempfile.TemporaryDirectory() as scratch:
        for model in models:
            model.validate(setup.validator, args, setup.names, Path(scratch))
    measure_latency(models, preferred_head, args, setup.names, setup.device)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_pictures(folder)
    report: dict[str, Any] = {
        **_description(models, setup, options),
        **collect_metrics(models, preferred_head, args.imgsz, options.match_conf),
        "initialized": setup.initialized,
        "charts": {},
        "images": [],
        "levels": [],
        "trained": [],
    }
    report["verdict"], report["page"] = verdict(report), str(folder / "report.html")
    _write_metrics(report, folder)  # now, in case drawing a picture ends the program
    _draw_charts(report, folder, METRICS[args.task][0][0])
    _draw_images(report, models, preferred_head, setup, options)
    _write_metrics(report, folder)
    write_page(report, folder)
    sentences = (line for sentence in report["verdict"] for line in paragraph(sentence))
    LOGGER.info("\n".join(("", colorstr("Report:"), *sentences, *row("page", near(report["page"])))))
    return report


def _remove_pictures(folder: Path) -> None:
    """Remove the pictures that an older report in the folder names; other files there are the user's."""
    try:
        older = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        named = [*older["charts"].values(), *(each["picture"] for part in ("images", "levels") for each in older[part])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there is none, or it is not of this package
        return
    for name in named:
        if Path(str(name)).name == name:
            (folder / name).unlink(missing_ok=True)


def _description(models: Sequence[ComparedModel], setup: EvaluationSetup, options: Options) -> dict[str, Any]:
    """Return the task, the data, the machine and the versions of a report."""
    device, args = setup.device, options.args
    result = next(iter(next(model for model in models if model.role == STUDENT).results.values()))
    return {
        "task": args.task,
        "data": str(args.data),
        "split": args.split or "val",
        "imgsz": args.imgsz,
        "count": len(result.labels or result.truth),
        "counted": {"classify": "images", "semantic": "pixels"}.get(args.task, "labels"),
        "match_conf": options.match_conf,
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "command": setup.command,
        "device": str(torch.cuda.get_device_name(device) if device.type == "cuda" else get_cpu_info()),
        "threads": torch.get_num_threads(),
        "rounds": min(len(model.times) for model in models),
        "versions": versions(),
        "heads": sorted({head for model in models for head in model.heads}, reverse=True),
        "save_dir": str(options.folder),
    }


def _write_metrics(report: dict[str, Any], folder: Path) -> None:
    """Write `report.json`."""
    (folder / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")


def _draw_or_warn(name: str, draw: Callable[..., Any], *args: Any) -> Any:
    """Call a function that draws; warn and return None if it fails, so that the report is still written."""
    try:
        return draw(*args)
    except Exception as e:  # images that can no longer be read, fonts, sizes
        LOGGER.warning(f"{name} could not be drawn: {type(e).__name__}: {e}")
        return None


def _draw_charts(report: dict[str, Any], folder: Path, metric: str) -> None:
    """Draw the charts for which there is data.

    Args:
        report (dict): The report; fills "charts" and "trained".
        folder (Path): Folder of the charts.
        metric (str): Column of the first score in results.csv.
    """
    curves = {role: plots.read_curves(model["source"]) for role, model in report["models"].items() if role != TEACHER}
    tables = {role: table for role, table in curves.items() if table is not None}
    report["trained"] = list(tables)
    label = report["metrics"][0]
    heads = {plots.validated_head(report["models"][role]["source"]) for role in tables}
    if {NMS, END2END} <= set(report["heads"]) and len(heads) == 1:
        label += f", {HEADS[heads.pop()]} head"
    charts: dict[str, Callable[[Path], bool]] = {
        "latency": lambda file: plots.plot_latency(report, file),
        "classes": lambda file: plots.plot_classes(report, file),
        "calibration": lambda file: plots.plot_calibration(report, file),
        "curves": lambda file: plots.plot_curves(tables, metric, label, file),
    }
    for name in CHARTS:
        file = f"{name}.png"
        if _draw_or_warn(file, charts[name], folder / file):
            report["charts"][name] = file


def _draw_images(
    report: dict[str, Any],
    models: Sequence[ComparedModel],
    preferred_head: str,
    setup: EvaluationSetup,
    options: Options,
) -> None:
    """Draw the images on which teacher and student disagree most, and feature maps over the first of them.

    Args:
        report (dict): The report; fills "images" and "levels".
        models (Sequence[ComparedModel]): The validated models.
        preferred_head (str): Head whose predictions are drawn, if a model has it.
        setup (EvaluationSetup): How they were evaluated.
        options (Options): The checked options.
    """
    results = {model.role: model.results[model.head(preferred_head)] for model in models}
    if TEACHER not in results:
        return
    worst = _worst(results, options)
    root = os.path.commonpath([os.path.dirname(shown["file"]) for shown in worst]) if worst else ""
    for i, shown in enumerate(worst):
        file = shown.pop("file")
        name = Path(os.path.relpath(file, root)).as_posix()
        picture = _draw_or_warn(name, _draw_predictions, file, results, setup.names, options)
        if picture is not None:
            report["images"].append({**shown, "name": name, "picture": f"image-{i:02}.png"})
            imwrite(str(options.folder / f"image-{i:02}.png"), picture)
        if i >= FEATURE_IMAGES:
            continue
        maps = _draw_or_warn(f"levels of {name}", draw_feature_maps, models, file, options.args.imgsz, setup.device)
        if maps is not None:
            report["levels"].append({"name": name, "picture": f"levels-{i:02}.png"})
            imwrite(str(options.folder / f"levels-{i:02}.png"), maps)


def _worst(results: Mapping[str, ValidationResult], options: Options) -> list[dict[str, Any]]:
    """Return the images on which teacher and student disagree most."""
    teacher, student = results[TEACHER], results[STUDENT]
    if student.labels:
        return worst_images(teacher.objects, student.objects, options.match_conf, options.images)
    task = options.args.task
    return worst_dense_images(teacher.predictions, student.predictions, task, student.truth, options.images)


def _draw_predictions(
    file: str, results: Mapping[str, ValidationResult], names: Mapping[int, str], options: Options
) -> np.ndarray:
    """Return an image with the predictions of each model, and with its labels, side by side."""
    student = results[STUDENT]
    if student.labels:
        objects = {role: result.objects[file] for role, result in results.items()}
        return draw_boxes(file, student.labels[file], objects, names, options.match_conf)
    predictions = {role: result.predictions[file] for role, result in results.items()}
    return draw_dense(file, student.truth[file], predictions, names, options.args.task)
