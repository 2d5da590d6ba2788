"""The figures of a report, from models that have been validated and timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .compared_model import BASELINE, STUDENT, TEACHER, Contestant
from .dense import dense_agreement
from .matching import agreement, calibration, disagreement
from .object_sizes import ap_by_size
from .score_names import METRICS
from .validation import Objects, Seen

# A gap smaller than this is noise, and a share of it says nothing
LEAST_GAP = 0.001


def figures(contestants: Sequence[Contestant], wanted: str, imgsz: int, conf: float) -> dict[str, Any]:
    """Return all that a report says in numbers.

    Args:
        contestants (Sequence[Contestant]): Teacher, baseline and student, as far as there are.
        wanted (str): Head that stands for models that have it.
        imgsz (int): Image size.
        conf (float): Least confidence of detections that are compared.

    Returns:
        (dict): "models" by role, "metrics" (names of the two), "kept" (share of the teacher's score), "lead" of the
            student over the teacher by class, "gap" and "agreement" by role.
    """
    by_role = {each.role: each for each in contestants}
    task = by_role[STUDENT].opened.task
    stands = {role: each.seen[each.head(wanted)] for role, each in by_role.items()}
    report: dict[str, Any] = {
        "metrics": [name for _, name in METRICS[task]],
        "models": {role: _model(each, wanted, imgsz) for role, each in by_role.items()},
        "kept": None,
        "lead": {},
        "gap": None,
        "agreement": {},
    }
    if TEACHER in stands:
        teacher = stands[TEACHER]
        report["lead"] = {
            name: said["score"] - teacher.classes[name]["score"]
            for name, said in stands[STUDENT].classes.items()
            if name in teacher.classes
        }
        report["kept"] = _share(stands[STUDENT].score, teacher.score)
        if BASELINE in stands:
            report["gap"] = gap(teacher, stands[BASELINE], stands[STUDENT])
        report["agreement"] = {
            role: agreement(teacher.objects, seen.objects, conf)
            if teacher.labels
            else dense_agreement(teacher.said, seen.said, task, teacher.truth)
            for role, seen in stands.items()
            if role != TEACHER
        }
    return report


def _model(contestant: Contestant, wanted: str, imgsz: int) -> dict[str, Any]:
    """Return the figures of one model."""
    head = contestant.head(wanted)
    seen = contestant.seen[head]
    assert contestant.opened.classes is not None
    figures = {
        "name": _name(contestant),
        "source": contestant.opened.source,
        "head": head,
        "heads": {name: {"score": s.score, "second": s.second} for name, s in contestant.seen.items()},
        **contestant.costs(imgsz),
        "unmatched": list(contestant.opened.classes.unmatched),
        "classes": seen.classes,
    }
    if seen.labels:
        figures |= {
            "sizes": ap_by_size(seen.objects, seen.labels),
            "calibration": calibration(seen.objects, seen.labels),
        }
    return figures


def _name(contestant: Contestant) -> str:
    """Return what a model is called: its file, or the run whose best or last weights it is."""
    file = Path(contestant.opened.source)
    of_run = file.stem in {"best", "last"} and file.parent.name == "weights"
    return f"{file.resolve().parents[1].name}, {file.name}" if of_run else contestant.opened.name


def gap(teacher: Seen, baseline: Seen, student: Seen) -> dict[str, Any]:
    """Return the share of the teacher's lead over the baseline that the student has made up for.

    Args:
        teacher (Seen): The teacher.
        baseline (Seen): The student that was trained alone.
        student (Seen): The student that was taught.

    Returns:
        (dict): "overall" and "classes" by name; None where the teacher does not lead by `LEAST_GAP` at least.
    """
    classes = {
        name: closed(said["score"], baseline.classes[name]["score"], student.classes[name]["score"])
        for name, said in teacher.classes.items()
    }
    return {"overall": closed(teacher.score, baseline.score, student.score), "classes": classes}


def closed(teacher: float, baseline: float, student: float) -> float | None:
    """Return the share of a gap that is closed, None if there is none."""
    lead = teacher - baseline
    return (student - baseline) / lead if lead >= LEAST_GAP else None


def _share(part: float, whole: float) -> float | None:
    """Return a ratio, None of nothing."""
    return part / whole if whole > 0 else None


def worst(
    teacher: Mapping[str, Objects], student: Mapping[str, Objects], conf: float, count: int
) -> list[dict[str, Any]]:
    """Return the images about which teacher and student disagree most, most first.

    Args:
        teacher (Mapping[str, Objects]): The teacher's detections by image.
        student (Mapping[str, Objects]): The student's.
        conf (float): Least confidence of detections that count.
        count (int): Number of images.

    Returns:
        (list[dict]): "file", "spent" (confidence of detections that the other has not, summed), "found", "missed" and
            "extra" (numbers of detections).
    """
    rows: list[dict[str, Any]] = []
    for file, said in teacher.items():
        spent, counts = disagreement(said, student[file], conf)
        rows.append({"file": file, "spent": spent, **counts})
    return sorted(rows, key=lambda row: (-row["spent"], row["file"]))[:count]
