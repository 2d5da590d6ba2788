"""The page of an advice: one HTML file that holds its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..report.object_sizes import SIZES
from ..report.page import data_uri, environment
from ..screen import HOUR, counted, duration
from . import table
from .contradictions import KINDS, least_seen

TEXTS = ("score_text", "better_text", "classes_text", "against_text", "student_text", "gradients_text", "cost_text")


def write_page(advice: dict[str, Any], folder: Path) -> None:
    """Write the page, pictures included.

    Args:
        advice (dict): The content of `advice.json`.
        folder (Path): Folder with the pictures.
    """
    pages = environment("advice", "report")
    pages.globals |= {name: getattr(table, name) for name in TEXTS}
    seen = least_seen(advice["match_conf"])
    pages.globals |= {"kinds": KINDS, "seen": seen, "size_limits": SIZES, "counted": counted, "time": _time}
    uris = {
        row["picture"]: data_uri(folder / row["picture"], ".jpg")
        for teacher in advice["teachers"]
        for row in teacher["pictures"]
    }
    text = pages.get_template("advice.html.jinja").render(advice=advice, uris=uris, name=Path(advice["model"]).name)
    # On Linux a file name may hold bytes that are not UTF-8; Python keeps them as characters that UTF-8 cannot encode
    Path(advice["page"]).write_text(text, encoding="utf-8", errors="backslashreplace")


def _time(hours: Any) -> str:
    """Return hours as a time with its unit, a dash for none."""
    return duration(hours * HOUR) if isinstance(hours, (int, float)) else "-"
