"""The options of a report: names, defaults and checks."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.utils.checks import check_imgsz

from ..config.arguments import parse_list
from ..config.checks import check_names, check_plain, whole_number
from ..config.registration import register_arguments
from ..config.teacher_size import SIZED_TASKS, scored_size
from ..errors import KDError, KDTypeError
from ..files import output_folder

REPORT_ONLY: dict[str, Any] = {"teacher": None, "student": None, "baseline": None, "images": 12, "match_conf": 0.25}
# Arguments of Ultralytics and of distillation that a report reads
USED = (
    *("data", "imgsz", "batch", "device", "workers", "split", "classes", "single_cls", "max_det", "iou", "nms"),
    *("agnostic_nms", "project", "name", "exist_ok", "save_dir", "kd_classes", "kd_teacher_weights"),
    *("kd_trust_teacher", "kd_teacher_imgsz"),
)
# Those of its folder and of the machine, which no printed command has
PLACES = {"project", "name", "exist_ok", "save_dir", "workers", "device"}
# A validation for a report draws and writes nothing. With `val=True` Ultralytics would evaluate COCO's own files again
QUIET = {"plots": False, "verbose": False, "save_json": False, "save_txt": False, "val": False}


@dataclass(frozen=True)
class Options:
    """The checked options of a report.

    Attributes:
        models (dict[str, Any]): Source of each model by role: "teacher", "baseline" if there is one, and "student".
        args (Namespace): Ultralytics' arguments.
        images (int): Number of val images to show.
        match_conf (float): Lowest confidence of the detections that are compared and drawn.
        folder (Path): Folder of the report.
        teacher_imgsz (int | None): Size of the teacher's images in pixels; None for that of the other models.
    """

    models: dict[str, Any]
    args: Namespace
    images: int
    match_conf: float
    folder: Path
    teacher_imgsz: int | None = None


def check_options(given: Mapping[str, Any], task: str) -> Options:
    """Check the arguments of a report.

    Args:
        given (Mapping): Arguments in `REPORT_ONLY` and `USED`.
        task (str): Task of the student.

    Raises:
        KDError: If an argument is missing, unknown or invalid.
    """
    check_given(given)
    check_plain(given)
    options = {**REPORT_ONLY, **{k: v for k, v in given.items() if k in REPORT_ONLY}}
    overrides = {k: v for k, v in given.items() if k in USED}
    if overrides.get("nms"):
        raise KDError("'nms=False' compares the NMS-free heads; otherwise leave 'nms' out of a report.")
    images, conf = options["images"], options["match_conf"]
    if isinstance(images, bool) or images != 0:
        whole_number("images", images)
    if isinstance(conf, bool) or not isinstance(conf, (int, float)):
        raise KDTypeError(f"'match_conf={conf}' must be a number.")
    if not 0 < conf < 1:
        raise KDError(f"'match_conf={conf}' is an invalid value: it must be greater than 0 and less than 1.")
    register_arguments()
    # `rect` as in `yolo val`: the images of a batch are padded to the smallest shape that holds them
    args = get_cfg(overrides={"mode": "val", "task": task, "rect": True, **QUIET, **overrides})
    whole_number("imgsz", args.imgsz)
    if task != "classify":
        args.imgsz = check_imgsz(args.imgsz, stride=32, max_dim=1)  # as validation does
    folder_args = get_cfg(overrides={"mode": "val", "task": task, "name": "report", **overrides})
    models = {role: options[role] for role in ("teacher", "baseline", "student") if options[role]}
    models["teacher"] = parse_list(models["teacher"])
    return Options(models, args, int(images), float(conf), output_folder(folder_args), _teacher_imgsz(args, task))


def _teacher_imgsz(args: Namespace, task: str) -> int | None:
    """Return the size of the teacher's images in pixels, None if it is not given.

    Raises:
        KDError: If the task compares predictions pixel by pixel.
    """
    if args.kd_teacher_imgsz is None:
        return None
    if task not in SIZED_TASKS:
        raise KDError(
            f"'kd_teacher_imgsz={args.kd_teacher_imgsz}' is supported for {' and '.join(SIZED_TASKS)}, not for task "
            f"'{task}': drop it."
        )
    return scored_size(args.kd_teacher_imgsz, args.imgsz)


def check_given(given: Mapping[str, Any]) -> None:
    """Raise if a needed argument is missing, or an argument is unknown."""
    for name in ("teacher", "student", "data"):
        if not given.get(name):
            raise KDError(f"'yolo-kd report' needs {name}=PATH.")
    check_names("yolo-kd report", given, (*REPORT_ONLY, *USED))
