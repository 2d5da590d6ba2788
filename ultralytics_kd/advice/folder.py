"""The folder of an advice: figures, the list of images to look at, their pictures, and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from ultralytics.utils.patches import imwrite

from ..report.validation import ValidationResult
from .contradictions import draw, write_list
from .options import Options
from .page import write_page


@dataclass(frozen=True)
class Shown:
    """What is shown of a teacher.

    Attributes:
        result (ValidationResult): Its predictions on training images.
        rows (list[dict]): Images on which it contradicts the labels, most first.
        taught (set[int]): Classes that it knows.
    """

    result: ValidationResult
    rows: list[dict[str, Any]]
    taught: set[int]


def write_folder(
    advice: dict[str, Any], shown: Mapping[str, Shown], options: Options, names: Mapping[int, str], start: float
) -> None:
    """Write the files of an advice.

    Args:
        advice (dict): The advice; fills "pictures" of every teacher, "list", "page" and "seconds".
        shown (Mapping[str, Shown]): What is shown of each teacher.
        options (Options): The checked arguments.
        names (Mapping[int, str]): Class names of the data.
        start (float): When the advice began, by `perf_counter`.
    """
    folder = options.folder
    for old in folder.glob("teacher-*-image-*.png"):
        old.unlink()
    advice["list"], advice["page"] = str(folder / "contradictions.csv"), str(folder / "advice.html")
    write_list({source: each.rows for source, each in shown.items()}, Path(advice["list"]))
    for number, teacher in enumerate(advice["teachers"]):
        teacher["pictures"] = _draw(shown[teacher["source"]], number, options, names)
    advice["seconds"] = perf_counter() - start
    write_page(advice, folder)
    (folder / "advice.json").write_text(json.dumps(advice, indent=2), encoding="utf-8")


def _draw(shown: Shown, number: int, options: Options, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Draw the images with the largest contradictions of a teacher, and return a row for each."""
    pictures = []
    for i, row in enumerate(shown.rows[: options.images]):
        name = f"teacher-{number}-image-{i:02}.png"
        picture = draw(shown.result, row["file"], options.task, names, options.match_conf, shown.taught)
        imwrite(str(options.folder / name), picture)
        kept = {k: v for k, v in row.items() if k not in {"file", "original"}}
        pictures.append({"picture": name, "image": row["original"], **kept})
    return pictures
