"""JSON files that the jobs of a bench leave: notes of finished trainings, and records of scores. Checked when read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import KDError
from ..files import write_whole
from ..report.score_names import END2END, NMS, ONE

RUN_COLUMNS = {"arm", "seed", "head"}  # columns of the table that a score must not overwrite


def _mapping(value: Any) -> bool:
    """Return whether a value is a mapping."""
    return isinstance(value, dict)


def _text(value: Any) -> bool:
    """Return whether a value is a text."""
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    """Return whether a value is a list of texts."""
    return isinstance(value, list) and all(map(_text, value))


def _number(value: Any) -> bool:
    """Return whether a value is a number that a column of a table can hold; NaN counts as one."""
    return type(value) in {int, float} and not abs(value) > sys.maxsize


def _whole(value: Any) -> bool:
    """Return whether a value is a whole number that a column of a table can hold."""
    return type(value) is int and _number(value)


def _scores(value: Any) -> bool:
    """Return whether a value maps one head or more to named numbers, with `score` and `second` among them."""
    return (
        isinstance(value, dict)
        and bool(value)
        and value.keys() <= {NMS, END2END, ONE}
        and all(
            isinstance(head, dict)
            and {"score", "second"} <= head.keys()
            and not RUN_COLUMNS & head.keys()
            and all(map(_number, head.values()))
            for head in value.values()
        )
    )


Fields = Mapping[str, Callable[[Any], bool]]
TRAINING: Fields = {"seconds": _number, "epochs": _whole, "batch": _whole}
NOTE: Fields = {"job": _mapping, "weights": _text, **TRAINING}
RECORD: Fields = {
    "job": _mapping, "versions": _mapping, "scores": _scores, "parameters": _whole, "weights": _text,
    "unmatched": _texts,
}  # fmt: skip


def read_record(file: Path, trained: bool) -> dict[str, Any]:
    """Return the record of a job.

    Args:
        file (Path): The record.
        trained (bool): Whether the job was a training.

    Raises:
        KDError: If it is not a valid record.
    """
    return _read(file, {**RECORD, **(TRAINING if trained else {})}, "delete it to run its job again")


def read_note(file: Path) -> dict[str, Any]:
    """Return the note of a finished training, empty if there is no note.

    Args:
        file (Path): The note.

    Raises:
        KDError: If it is damaged: a training is not repeated unless the user asks for it.
    """
    return _read(file, NOTE, "delete it to train again") if file.exists() else {}


def _read(file: Path, fields: Fields, advice: str) -> dict[str, Any]:
    """Return the content of a JSON file if all fields are valid."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # a folder in its place, not JSON, or nested too deeply
        content = None
    if not isinstance(content, dict) or not all(valid(content.get(name)) for name, valid in fields.items()):
        raise KDError(f"{file} is damaged or belongs to another program: {advice}.")
    return content


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Args:
        file (Path): The file; its folder is made if needed.
        content (Mapping): Content of the file.

    Raises:
        KDError: If the disk is full or cannot be written to.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, f"{json.dumps(content, indent=2)}\n".encode())
