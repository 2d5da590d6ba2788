"""The advice in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.utils import colorstr

from ..screen import HOUR, command, counted, duration, near, row
from .gradients import TOGETHER
from .scores import is_configuration
from .verdict import GO, NO_GO, SHORTLY, TRAINED

COLUMN = 19  # of the terminal, at which texts begin
COLOURS = {GO: "green", NO_GO: "red"}
MOST = 4  # classes that are named
FEW_LABELS = 30  # a score on fewer labels says little


def to_text(advice: dict[str, Any]) -> str:
    """Return the advice as text.

    Args:
        advice (dict): The advice, as `run_advice` returns it.
    """
    head = f", {advice['head']} head" if advice["head"] else ""
    asked = f"{Path(advice['model']).name} on {near(advice['data'])}, {advice['imgsz']} px{head}"
    lines = ["", f"{colorstr('Advice')} for {asked}"]
    lines += _row("student", student_text(advice))
    for teacher in advice["teachers"]:
        lines += ["", *_of_teacher(teacher, advice)]
    listed = f"{near(advice['list'])}: where labels and teacher contradict each other"
    if any("swapped" in teacher["contradictions"] for teacher in advice["teachers"]):
        listed += ". Of that, only objects of another class count for the verdict"
    lines += ["", *_row("page", near(advice["page"])), *_row("images", listed)]
    return "\n".join(lines)


def _of_teacher(teacher: dict[str, Any], advice: dict[str, Any]) -> list[str]:
    """Return the lines of a teacher."""
    verdict = colorstr(COLOURS.get(teacher["verdict"], "yellow"), "bold", teacher["verdict"])
    rows = {
        "score": score_text(teacher, advice),
        "lead in": better_text(teacher),
        "classes": classes_text(teacher),
        "against labels": against_text(teacher),
        "gradients": gradients_text(teacher),
        "step": cost_text(teacher, "ms"),
        "memory": cost_text(teacher, "memory"),
        counted(advice["epochs"], "epoch"): cost_text(teacher, "hours"),
    }
    lines = [f"{verdict}  {teacher['source']}", *_row("because", teacher["reason"])]
    for title, text in rows.items():
        lines += _row(title, text) if text else []
    return [*lines, *command(teacher["command"], column=COLUMN, indent=2)]


def _row(title: str, text: str) -> list[str]:
    """Return a title and its text, wrapped."""
    return row(title, text, COLUMN, 2)


def student_text(advice: dict[str, Any]) -> str:
    """Return what is known of the student's score."""
    metric, alone, origin = advice["metrics"][0], advice["alone"], advice["alone_origin"]
    if advice["student"] is None:
        why = "trained" if is_configuration(advice["model"]) else "trained for these classes"
        first = f"it is not {why}, so it has no score as it is"
    else:
        first = f"it scores {advice['student']['score']:.3f} {metric} as it is"
    if origin == TRAINED:
        return f"{first}; trained alone it scores {alone['score']:.3f} {metric}"
    if origin == SHORTLY:
        return f"{first}; alone, after {advice['probed']['words']}, {alone['score']:.3f} {metric}"
    return f"{first}; what it reaches alone is not known (baseline=alone.pt)"


def score_text(teacher: dict[str, Any], advice: dict[str, Any]) -> str:
    """Return a teacher's score, its image size, and its lead."""
    size = "" if teacher["imgsz"] == advice["imgsz"] else f" at {teacher['imgsz']} px"
    lead = "" if teacher["lead"] is None else f", {teacher['lead']:+.3f} over the student"
    split, used, total = (advice["val"][key] for key in ("split", "used", "total"))
    images = f"{used} {split} images" if used == total else f"{used} of {total} {split} images"
    return f"{teacher['score']:.3f} {advice['metrics'][0]}{size}{lead} ({images})"


def better_text(teacher: dict[str, Any]) -> str:
    """Return in which sizes and classes a teacher is better, and in which it is not; empty if that is not known."""
    if not teacher["better"]:
        return ""
    sizes, classes = (teacher["better"][what] for what in ("sizes", "classes"))
    parts = [f"{name} objects {value:+.3f}{_few(teacher['sizes'][name]['labels'])}" for name, value in sizes.items()]
    ordered = sorted(classes.items(), key=lambda item: -item[1])
    shown = ordered if len(ordered) <= 2 * MOST else [*ordered[:MOST], *ordered[-MOST:]]
    dots = "; classes, best and worst: " if len(shown) < len(ordered) else "; "
    named = ", ".join(f"{name} {value:+.3f}{_few(teacher['classes'][name]['labels'])}" for name, value in shown)
    return ", ".join(parts) + (dots if parts and named else "") + named


def _few(labels: int) -> str:
    """Return the number of labels behind a score if it is below `FEW_LABELS`, else an empty text."""
    return f" ({labels} labels)" if labels < FEW_LABELS else ""


def classes_text(teacher: dict[str, Any]) -> str:
    """Return how many classes a teacher knows, and which it does not."""
    facts, missing = teacher["facts"], teacher["unmatched"]
    text = f"{facts['covered']} of {facts['classes']}"
    if missing:
        more = f" and {len(missing) - MOST} more" if len(missing) > MOST else ""
        text += f"; it does not know {', '.join(missing[:MOST])}{more}, which only labels teach"
    return text


def against_text(teacher: dict[str, Any]) -> str:
    """Return how often a teacher contradicts the labels of training images."""
    found = teacher["contradictions"]
    if "labels" not in found:
        return f"{found['listed']} of {found['images']} training images"
    text = (
        f"{found['extra']} confident boxes without a label, {found['missed']} of {found['labels']} labels not seen, "
        f"{found['swapped']} with another class, in {found['images']} training images"
    )
    if found["swaps"]:
        first = found["swaps"][0]
        text += f"; most often '{first['label']}' is taken for '{first['teacher']}' ({first['count']})"
    return text


def gradients_text(teacher: dict[str, Any]) -> str:
    """Return ratio and cosine of the gradients of each term."""
    terms = teacher["gradients"].items()
    text = "; ".join(f"{name} {row['ratio']:.2f}x, cosine {row['cosine']:+.2f}" for name, row in terms)
    return f"{text} (x = norm over that of the labels' gradient)" if TOGETHER in teacher["gradients"] else text


def cost_text(teacher: dict[str, Any], what: str) -> str:
    """Return time of a step, memory or hours with and without a teacher."""
    arms = teacher["costs"]["arms"]
    first = next(iter(arms.values()))[what]
    if first is None:
        return ""
    texts = {
        "ms": lambda row: f"{row['ms']:.0f} ms ({row['ms'] / first:.2f}x)",
        "memory": lambda row: f"{row['memory']:.2f} GiB",
        "hours": lambda row: (
            duration(row["hours"] * HOUR)
            + (f" and {duration(row['making_hours'] * HOUR)} to make them" if "making_hours" in row else "")
        ),
    }
    text = ", ".join(f"{name} {texts[what](row)}" for name, row in arms.items())
    return f"{text}; without validation" if what == "hours" else text
