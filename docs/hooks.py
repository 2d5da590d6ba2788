"""Hook of MkDocs: writes the table of kd arguments from the package's own table, so that it cannot be out of date."""

from __future__ import annotations

from typing import Any

from ultralytics_kd.config import ARGUMENTS
from ultralytics_kd.config.arguments import Argument

MARK = "<!-- table of kd arguments -->"
# Where an argument has a section of its own
SECTIONS = {
    "teacher": "teachers.md",
    "kd_teacher_imgsz": "teachers.md#a-teacher-that-sees-more",
    "kd_trust_teacher": "reliability.md#files-from-strangers",
    "kd_weight": "how-it-works.md#weights-from-measured-gradients",
    "kd_init": "how-it-works.md#where-a-student-begins",
    "kd_cache": "stored-answers.md",
    "kd_unlabeled": "images-without-labels.md",
    "kd_unlabeled_ratio": "images-without-labels.md",
    "kd_unlabeled_boxes": "images-without-labels.md#pseudo-boxes",
    "kd_keep": "new-classes.md",
    "kd_keep_data": "new-classes.md",
    "kd_classes": "teachers.md#classes",
    "kd_cls_loss": "extending.md#a-loss-in-your-own-file",
    "kd_box_loss": "extending.md#a-loss-in-your-own-file",
    "kd_feat_loss": "extending.md#a-loss-in-your-own-file",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with the table in place of its mark.

    Args:
        markdown (str): The page as it was written.
        **_ (Any): Page, configuration and files, which are not needed.
    """
    return markdown.replace(MARK, arguments_table())


def arguments_table() -> str:
    """Return the table of all kd arguments in Markdown."""
    rows = ["| argument | meaning | default |", "| --- | --- | --- |"]
    return "\n".join([*rows, *(_row(name, argument) for name, argument in ARGUMENTS.items())])


def _row(name: str, argument: Argument) -> str:
    """Return the row of one argument."""
    shown = f"`{name}`"
    if name in SECTIONS:
        shown = f"[{shown}]({SECTIONS[name]})"
    choices = f". One of {', '.join(f'`{choice}`' for choice in argument.choices)}" if argument.choices else ""
    meaning = argument.help.replace("|", "\\|")
    return f"| {shown} | {meaning}{choices} | `{argument.default}` |"
