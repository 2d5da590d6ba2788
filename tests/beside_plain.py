"""One training three times: plain, with a teacher on every step, and with stored answers.

What plain Ultralytics takes must be taken with a teacher too, and what it refuses must be refused. Columns, files and
arguments of the plain run must be there, the terms must be finite and not zero, and the teacher must be scored.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultralytics import YOLO as StockYOLO
from ultralytics.utils import YAML

from ultralytics_kd import YOLO
from ultralytics_kd.config.arguments import ARGUMENTS

PLAIN, LIVE, STORED = "plain", "live", "stored"
OWN = ("save_dir", "name", "project", *ARGUMENTS)  # arguments that may differ between the runs


@dataclass
class Outcome:
    """What became of a training.

    Attributes:
        error (Exception | None): What it raised.
        rows (list[dict[str, float]]): Rows of results.csv.
        args (dict): Arguments in args.yaml.
        files (set[str]): Files of the run's folder, and of its weights.
        scored (bool): Whether the teacher was validated.
    """

    error: Exception | None = None
    rows: list[dict[str, float]] = field(default_factory=list)
    args: dict[str, Any] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    scored: bool = False


def train(way: str, model: Any, given: Mapping[str, Any], teacher: Any) -> Outcome:
    """Train in one way and return what became of it.

    Args:
        way (str): PLAIN, LIVE or STORED.
        model (Any): What the student is made from.
        given (Mapping): Arguments; `project` is the parent of the folders.
        teacher (Any): The teacher.
    """
    given = {"name": way, **given}
    if way != PLAIN:
        given |= {"teacher": teacher, "kd_cache": way == STORED}
    student = (StockYOLO if way == PLAIN else YOLO)(model)
    try:
        student.train(**given)
    except Exception as e:  # any error: the question is whether plain Ultralytics has one too
        return Outcome(error=e)
    folder = Path(student.trainer.save_dir)
    rows = []
    if (folder / "results.csv").exists():
        with open(folder / "results.csv", newline="") as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    files = {p.name for p in folder.iterdir()} | {p.name for p in folder.glob("weights/*")}
    args = YAML.load(folder / "args.yaml") if (folder / "args.yaml").exists() else {}
    return Outcome(None, rows, args, files, bool(getattr(student.trainer, "teacher_metrics", None)))


def differences(plain: Outcome, other: Outcome, terms: Collection[str], live: Collection[str] = ()) -> list[str]:
    """Return what is wrong with a run beside the plain one, in words; nothing if all is right.

    Args:
        plain (Outcome): The plain run.
        other (Outcome): The run with a teacher.
        terms (Collection[str]): Terms that must be finite and not zero in training.
        live (Collection[str]): Those that must be so in validation too.
    """
    if plain.error is not None or other.error is not None:
        if plain.error is not None and other.error is not None:
            return []
        return [f"plain: {_said(plain.error)}; with a teacher: {_said(other.error)}"]
    saved = {k: v for k, v in plain.args.items() if k not in OWN}
    wrong = [f"{k}={other.args.get(k)!r}, plain {v!r}" for k, v in saved.items() if other.args.get(k, ...) != v]
    wrong += [f"no file {name}" for name in sorted(plain.files - other.files)]
    if not other.scored:
        wrong.append("the teacher is not scored")
    if len(plain.rows) != len(other.rows):
        wrong.append(f"{len(other.rows)} rows, plain {len(plain.rows)}")
    for ours, theirs in zip(other.rows, plain.rows):
        wrong += [f"no column {k}" for k in theirs if k not in ours]
        wrong += [f"{k}={v}" for k, v in ours.items() if not math.isfinite(v) and math.isfinite(theirs.get(k, 0.0))]
        wrong += [f"train/{t} is {ours.get(f'train/{t}')}" for t in terms if not ours.get(f"train/{t}")]
        wrong += [f"val/{t} is {ours.get(f'val/{t}')}" for t in live if not ours.get(f"val/{t}")]
    return wrong


def print_row(tried: Any, plain: Outcome, wrong: Any) -> None:
    """Print a row of the matrix's table, for `pytest -s`: what was tried, what plain Ultralytics did, what is wrong."""
    taken = "taken" if plain.error is None else f"refused ({_said(plain.error)})"
    print(f"\n| {tried} | {taken} | {wrong or 'held'} |")


def _said(error: Exception | None) -> str:
    """Return the type and the first words of an error."""
    return "taken" if error is None else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
