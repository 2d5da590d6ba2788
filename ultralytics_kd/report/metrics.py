"""The metrics of a report, from models that have been validated and timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .compared_model import BASELINE, STUDENT, TEACHER, ComparedModel
from .dense import dense_agreement
from .gap import gap_closed
from .matching import agreement, calibration, disagreement
from .object_sizes import ap_by_size
from .score_names import METRICS
from .validation import Objects, ValidationResult

MIN_CLASS_LEAD = 0.02  # least lead in a class, which has fewer labels than all


def collect_metrics(
    models: Sequence[ComparedModel], preferred_head: str, imgsz: int, min_conf: float
) -> dict[str, Any]:
    """Return all numbers of a report.

    Args:
        models (Sequence[ComparedModel]): The student and, if given, teacher and baseline; validated and timed.
        preferred_head (str): Head that is compared, if a model has it.
        imgsz (int): Image size in pixels.
        min_conf (float): Lowest confidence of the detections that are compared.

    Returns:
        (dict): "metrics" (names of the two scores), "models" (metrics by role), "kept" (the student's share of the
            teacher's score), "lead" (student minus teacher by class), "gap" (see `gap`) and "agreement" with the
            teacher, by role. Without a teacher or baseline, the entries that need one are None or empty.
    """
    by_role = {model.role: model for model in models}
    task = by_role[STUDENT].loaded.task
    results = {role: model.results[model.head(preferred_head)] for role, model in by_role.items()}
    metrics: dict[str, Any] = {
        "metrics": [name for _, name in METRICS[task]],
        "models": {role: _model_metrics(model, preferred_head, imgsz) for role, model in by_role.items()},
        "kept": None,
        "lead": {},
        "gap": None,
        "agreement": {},
    }
    if TEACHER in results:
        metrics |= _beside_teacher(results, task, min_conf)
    return metrics


def _model_metrics(model: ComparedModel, preferred_head: str, imgsz: int) -> dict[str, Any]:
    """Return the metrics of one model."""
    head = model.head(preferred_head)
    result = model.results[head]
    assert model.loaded.classes is not None
    metrics = {
        "name": short_name(model),
        "source": model.loaded.source,
        "head": head,
        "heads": {name: {"score": r.score, "second": r.second} for name, r in model.results.items()},
        **model.costs(imgsz),
        "unmatched": list(model.loaded.classes.unmatched),
        "classes": result.classes,
    }
    if result.labels:
        metrics["sizes"] = ap_by_size(result.objects, result.labels)
        metrics["calibration"] = calibration(result.objects, result.labels)
    return metrics


def short_name(model: ComparedModel) -> str:
    """Return a short name: the name of the file, after the name of its run if the file is best.pt or last.pt.

    Args:
        model (ComparedModel): The model.
    """
    file = Path(model.loaded.source)
    of_run = file.stem in {"best", "last"} and file.parent.name == "weights"
    return f"{file.resolve().parents[1].name}, {file.name}" if of_run else model.loaded.name


def _beside_teacher(results: Mapping[str, ValidationResult], task: str, min_conf: float) -> dict[str, Any]:
    """Return the metrics that compare models with the teacher."""
    teacher, student = results[TEACHER], results[STUDENT]
    return {
        "lead": {
            name: metrics["score"] - teacher.classes[name]["score"]
            for name, metrics in student.classes.items()
            if name in teacher.classes
        },
        "kept": student.score / teacher.score if teacher.score > 0 else None,
        "gap": gap(teacher, results[BASELINE], student) if BASELINE in results else None,
        "agreement": {
            role: agreement(teacher.objects, result.objects, min_conf)
            if teacher.labels
            else dense_agreement(teacher.predictions, result.predictions, task, teacher.truth)
            for role, result in results.items()
            if role != TEACHER
        },
    }


def gap(teacher: ValidationResult, baseline: ValidationResult, student: ValidationResult) -> dict[str, Any]:
    """Return the share of the teacher's lead over the baseline that the student gains.

    Args:
        teacher (ValidationResult): The teacher.
        baseline (ValidationResult): The student trained alone.
        student (ValidationResult): The distilled student.

    Returns:
        (dict): "overall", and "classes" by name; None where the teacher leads by less than `gap.MIN_LEAD`, or
            `MIN_CLASS_LEAD`.
    """
    classes = {
        name: gap_closed(
            metrics["score"], baseline.classes[name]["score"], student.classes[name]["score"], MIN_CLASS_LEAD
        )
        for name, metrics in teacher.classes.items()
    }
    return {"overall": gap_closed(teacher.score, baseline.score, student.score), "classes": classes}


def worst_images(
    teacher: Mapping[str, Objects], student: Mapping[str, Objects], min_conf: float, count: int
) -> list[dict[str, Any]]:
    """Return the images on which teacher and student disagree most, most first.

    Args:
        teacher (Mapping[str, Objects]): The teacher's detections by image.
        student (Mapping[str, Objects]): The student's detections by image.
        min_conf (float): Lowest confidence of the detections that are compared.
        count (int): Number of images.

    Returns:
        (list[dict]): "file", "spent" (confidence of detections that only one model has, summed), and the numbers of
            detections "found", "missed" and "extra" (see `disagreement`).
    """
    rows: list[dict[str, Any]] = []
    for file, detections in teacher.items():
        unshared_conf, counts = disagreement(detections, student[file], min_conf)
        rows.append({"file": file, "spent": unshared_conf, **counts})
    return sorted(rows, key=lambda row: (-row["spent"], row["file"]))[:count]
