"""The page of a report: one HTML file that holds its pictures."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import jinja2
from ultralytics.utils.patches import imread

from ..screen import near
from .compared_model import BASELINE, STUDENT, TEACHER
from .object_sizes import SIZES
from .pictures import CROWD
from .score_names import END2END, HEADS

QUALITY = 85  # of the JPEGs in the page; the PNGs beside it are lossless


def write_page(report: dict[str, Any], folder: Path) -> None:
    """Write the page, pictures included.

    Args:
        report (dict): The content of `report.json`.
        folder (Path): Folder with the pictures.
    """
    pages = environment("report")
    charts = {name: data_uri(folder / file, ".png") for name, file in report["charts"].items()}
    photos = [{**row, "uri": data_uri(folder / row["picture"], ".jpg")} for row in report["images"]]
    levels = [{**row, "uri": data_uri(folder / row["picture"], ".jpg")} for row in report["levels"]]
    page = pages.get_template("page.html.jinja")
    text = page.render(report=report, charts=charts, photos=photos, levels=levels)
    # On Linux a file name may hold bytes that are not UTF-8; Python keeps them as characters that UTF-8 cannot encode
    Path(report["page"]).write_text(text, encoding="utf-8", errors="backslashreplace")


def environment(*rooms: str) -> jinja2.Environment:
    """Return a Jinja environment for pages whose templates are in some rooms (folders) of this package.

    Args:
        *rooms (str): The rooms; the first one that has a template wins.
    """
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader("ultralytics_kd", room) for room in rooms])
    # A class or head that a model lacks is undefined in the template, and the page shows a dash
    missing = jinja2.ChainableUndefined
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=missing)
    pages.filters |= {"number": number, "share": share, "signed": signed}
    pages.globals |= {"heads": HEADS, "size_limits": SIZES, "crowd": CROWD}
    return pages


def verdict(report: dict[str, Any]) -> list[str]:
    """Return the result of the report in sentences.

    Args:
        report (dict): Metrics, as `collect_metrics` returns them.
    """
    models, metric = report["models"], report["metrics"][0]
    score = {role: m["heads"][m["head"]]["score"] for role, m in models.items()}
    if TEACHER not in models:
        return [f"The student scores {score[STUDENT]:.3f} {metric}."]
    unmatched = models[TEACHER]["unmatched"]
    student = models[STUDENT]
    of_head = f" ({HEADS[student['head']]} head)" if len(student["heads"]) > 1 else ""
    first = f"The student scores {score[STUDENT]:.3f} {metric}{of_head}, its teacher {score[TEACHER]:.3f}"
    if report["kept"] is not None and not unmatched:
        first += f": it keeps {report['kept']:.0%} of the teacher's quality"
    sentences = [f"{first}."]
    sizes = {role: models[role].get("imgsz") for role in (TEACHER, STUDENT)}
    if sizes[TEACHER] != sizes[STUDENT]:
        sentences.append(f"The teacher sees images of {sizes[TEACHER]} px, the student of {sizes[STUDENT]} px.")
    if unmatched:
        sentences.append(f"The teacher does not know {', '.join(unmatched)}, which count as missed.")
    sentences += _cost(models)
    if BASELINE in models:
        gain = round(score[STUDENT], 3) - round(score[BASELINE], 3)
        change = f"{abs(gain):.3f} {'more' if gain > 0 else 'less'}" if gain else "the same"
        text = f"Distilled it scores {change} than trained alone ({score[BASELINE]:.3f})"
        closed = None if unmatched else report["gap"] and report["gap"]["overall"]
        sentences.append(text + (f" and closes {closed:.0%} of the gap to the teacher." if closed is not None else "."))
    return sentences + (_inherited(models) if report.get("initialized") else [])


def _inherited(models: dict[str, Any]) -> list[str]:
    """Return sentences that the student began with its teacher's weights, and how to measure what they bring."""
    student, teacher = models[STUDENT], models[TEACHER]
    text = "A training with kd_init=False shows what teaching brings without them"
    # From a teacher of another size the student took a part of the weights, which no other command does
    if student["parameters"] == teacher["parameters"]:
        text += f", and one of 'yolo train model={near(teacher['source'])}' what they bring without teaching"
    return ["It began with weights of its teacher (kd_init), and so with the teacher's epochs.", f"{text}."]


def _cost(models: dict[str, Any]) -> list[str]:
    """Return a sentence on the student's size and latency beside the teacher's; none if neither is known."""
    student, teacher = models[STUDENT], models[TEACHER]
    parts = []
    if student["parameters"] and teacher["parameters"]:
        parts.append(f"has {student['parameters'] / teacher['parameters']:.0%} of the teacher's parameters")
    timed = student["latency"] and teacher["latency"]
    if timed:
        student_ms, teacher_ms = student["latency"]["ms"], teacher["latency"]["ms"]
        parts.append(f"takes {student_ms:.1f} ms per image here, the teacher {teacher_ms:.1f} ms")
    nms = "without NMS" if student["head"] == END2END else "NMS included"
    how = f" Times are of one image at a time, {nms}." if timed else ""
    return [f"The student {' and '.join(parts)}.{how}"] if parts else []


def _known(value: Any) -> bool:
    """Return whether there is a value."""
    return value is not None and not isinstance(value, jinja2.Undefined)


def number(value: Any, digits: int = 3) -> str:
    """Return a number with `digits` decimals, a dash for None."""
    return f"{value:,.{digits}f}" if _known(value) else "-"


def share(value: Any) -> str:
    """Return a share in percent, a dash for None."""
    return f"{value:.0%}" if _known(value) else "-"


def signed(value: Any) -> str:
    """Return a difference with its sign, a dash for None."""
    return f"{round(value, 3) + 0.0:+.3f}" if _known(value) else "-"  # -0.0 + 0.0 is 0.0


def data_uri(file: Path, kind: str) -> str:
    """Return a picture as a data URI, a PNG as it is or encoded as JPEG.

    Args:
        file (Path): The PNG.
        kind (str): ".png" or ".jpg".
    """
    if kind == ".png":
        return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    _, data = cv2.imencode(kind, imread(str(file)), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
