"""What the help of each command of `yolo-kd` says: its purpose, an example, and the arguments that only it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..screen import command, paragraph, row

COLUMN = 30  # at which texts begin, as in `yolo-kd help`


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        purpose (str): What it is for.
        example (str): A command line.
        own (Mapping[str, str]): Help of each argument that only this command has.
        others (str): A sentence on the arguments that it also takes; {} stands for their names.
    """

    purpose: str
    example: str
    own: Mapping[str, str]
    others: str


COMMANDS = {
    "advise": Command(
        "Looks at teacher, student and data for some minutes, before a training. It says GO, NO GO or UNCERTAIN, and "
        "why.",
        "yolo-kd advise data=coco8.yaml model=yolo26n.pt teacher=a.pt epochs=100",
        {
            "teacher": "one teacher, or several with commas; each is judged by itself",
            "baseline": "the same student trained alone, if there is one",
            "probe": "seconds to train the student alone if there is no baseline, 0 = not at all",
            "sample": "most val images to score, and most training images to compare with their labels",
            "images": "training images to show for each teacher",
            "match_conf": "confidence from which on a teacher's box contradicts labels",
        },
        "It takes all arguments of 'yolo-kd train', about which it asks. nms=False scores the NMS-free heads.",
    ),
    "bench": Command(
        "Does distillation help? It trains the student alone, with Ultralytics' own distill_model, and distilled, over "
        "several seeds.",
        "yolo-kd bench data=coco8.yaml model=yolo26n.pt teacher=a.pt epochs=100",
        {
            "arms": "what is compared: alone, builtin (distill_model), kd, or {name: {kd argument: value}} as JSON or "
            "in a YAML",
            "seeds": "number of seeds, or a list: 0,1,2",
            "teacher_model": "instead of teacher=: model of a teacher to train first",
            "teacher_epochs": "epochs of that teacher",
            "teacher_imgsz": "its image size in pixels; unset = imgsz",
            "holdout": "share of the training images to score on instead of the val set, for choosing settings",
            "jobs": "trainings at a time on this machine",
            "ray": "train on a Ray cluster: True, or how many at a time",
        },
        "It takes all arguments of 'yolo-kd train' but seed, resume and batch=-1.",
    ),
    "cache": Command(
        "Stores a teacher's answers to the training images once, so that trainings need not run it.",
        "yolo-kd cache data=coco8.yaml teacher=a.pt kd_cache=answers",
        {
            "kd_cache_imgsz": "size in pixels that the teacher sees, which may be less than imgsz; unset = "
            "kd_teacher_imgsz, or imgsz",
            "kd_cache_conf": "lowest confidence of a stored box",
            "kd_cache_iou": "overlap (IoU) from which on two boxes are one",
            "kd_cache_topk": "most boxes per image and size",
            "kd_cache_scales": "factors of the image size at which answers are made",
            "kd_cache_flip": "average with the answer to the mirror image",
            "kd_cache_shard": "images per file, which is what an interruption can lose",
            "ray": "answer on a Ray cluster: True, or the number of processes",
        },
        "Others, as in 'yolo-kd train': {}.",
    ),
    "demo": Command(
        "Tries it offline: draws images, trains a teacher, and compares a student alone and distilled.",
        "yolo-kd demo",
        {
            "teacher_model": "architecture of the teacher",
            "teacher_epochs": "its epochs",
            "train_images": "training images to draw",
            "val_images": "val images to draw",
        },
        "It takes all arguments of 'yolo-kd train' but data and teacher.",
    ),
    "enable": Command(
        "Lets the plain 'yolo' command, and every program that imports Ultralytics in this environment, understand kd "
        "arguments. It writes one file into site-packages.",
        "yolo-kd enable",
        {},
        "'yolo-kd disable' undoes it.",
    ),
    "disable": Command(
        "Makes the plain 'yolo' command Ultralytics' own again: it removes the file that 'yolo-kd enable' wrote.",
        "yolo-kd disable",
        {},
        "",
    ),
    "report": Command(
        "Shows teacher and student side by side on one page: accuracy, cost, agreement, pictures.",
        "yolo-kd report data=coco8.yaml teacher=a.pt student=best.pt baseline=alone.pt",
        {
            "teacher": "the trained teacher",
            "student": "the distilled student",
            "baseline": "the same student trained alone, if there is one",
            "images": "val images to show, largest disagreements first",
            "match_conf": "lowest confidence of the boxes that are compared and drawn",
        },
        "Others, as in 'yolo val': {}.",
    ),
}


def command_help(name: str, defaults: Mapping[str, Any], shared: Sequence[str] = ()) -> str:
    """Return the help of a command.

    Args:
        name (str): The command.
        defaults (Mapping): Defaults of the arguments that only this command has.
        shared (Sequence[str]): Names of the other arguments that it takes, if they are few.
    """
    its = COMMANDS[name]
    lines = ["", *paragraph(its.purpose), "", *command(its.example, title="", column=8)]
    lines += ["", "    Its own arguments"] if defaults else []
    for argument, default in defaults.items():
        lines += row(f"{argument}={_typed(default)}", its.own[argument], COLUMN, indent=6)
    others = its.others.format(", ".join(sorted(shared)))
    return "\n".join([*lines, *(["", *paragraph(others)] if others else []), ""])


def _typed(value: Any) -> str:
    """Return a default as it would be typed, a list without spaces."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(str, value))}]"
    return "" if value is None else str(value)
