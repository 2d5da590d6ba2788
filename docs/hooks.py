"""Hooks of MkDocs.

They write the tables of kd arguments from the package's own, so that they cannot be out of date, and mark intervals.
"""

from __future__ import annotations

import re
from typing import Any

from ultralytics_kd.config.arguments import GROUPS, Argument

MARK = "<!-- table of kd arguments -->"
INTERVAL = re.compile(r"\([+-]\d\.\d+ to [+-]\d\.\d+\)")
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
    """Return a page with the tables in place of its mark.

    Args:
        markdown (str): The page as it was written.
        **_ (Any): Page, configuration and files, which are not needed.
    """
    return markdown.replace(MARK, arguments_table())


def on_page_content(html: str, **_: Any) -> str:
    """Return a page whose confidence intervals have a class, by which the style keeps them on one line.

    Args:
        html (str): The page.
        **_ (Any): Page, configuration and files, which are not needed.
    """
    return INTERVAL.sub(r'<span class="interval">\g<0></span>', html)


def arguments_table() -> str:
    """Return a table of kd arguments for each group, in Markdown."""
    lines = []
    for group in GROUPS:
        lines += [f"### {group.title}{' (for experts)' if group.expert else ''}", ""]
        lines += ["| argument | meaning | values | default |", "| --- | --- | --- | --- |"]
        lines += [_row(name, argument) for name, argument in group.arguments.items()]
        lines.append("")
    return "\n".join(lines)


def _row(name: str, argument: Argument) -> str:
    """Return the row of one argument."""
    shown = f"`{name}`"
    if name in SECTIONS:
        shown = f"[{shown}]({SECTIONS[name]})"
    cells = (shown, argument.help, argument.range, f"`{argument.default}`")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
