"""Reports: teacher, baseline and student side by side, as a page, pictures and figures."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.data.utils import convert_ndjson_to_yolo_if_needed
from ultralytics.models.yolo.model import YOLO
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, colorstr
from ultralytics.utils.patches import imwrite
from ultralytics.utils.torch_utils import get_cpu_info, select_device

from ..compat import versions
from ..config.arguments import GRID_TASKS, TASKS
from ..errors import KDError, first_line
from ..teachers import Teacher, open_teacher
from . import plots
from .compared_model import STUDENT, TEACHER, Contestant, measure_latency
from .datasets import class_names_of
from .dense import dense_worst
from .metrics import figures, worst
from .options import QUIET, REPORT_ONLY, USED, Options, check_names, check_options
from .page import verdict, write_page
from .pictures import dense_side_by_side, responses, side_by_side
from .score_names import END2END, METRICS, NMS
from .validation import Seen

LEVELS = 2  # images whose levels are shown
CHARTS = ("latency", "classes", "calibration", "curves")


@dataclass
class Subject:
    """What models are compared on.

    Attributes:
        names (dict[int, str]): Classes of the data.
        validator (type[BaseValidator]): The task's validator.
        device (torch.device): Where models are timed.
        command (str): How the report can be made again.
    """

    names: dict[int, str]
    validator: type
    device: torch.device
    command: str


def run_report(given: Mapping[str, Any]) -> dict[str, Any]:
    """Compare a student with its teacher, and with the same student trained alone, as `yolo-kd report` does.

    Args:
        given (Mapping): `teacher`, `student`, `data`, `baseline` if there is one, the other options of `REPORT_ONLY`,
            and of Ultralytics' arguments those in `USED`.

    Returns:
        (dict): What `report.json` holds; "save_dir" is the folder, "page" the page in it.

    Raises:
        KDError: If an argument is missing, unknown or invalid, or a model cannot be compared.
    """
    check_names(given)
    task = _task_of(given["student"])
    options = check_options(given, task)
    options.args.data = str(convert_ndjson_to_yolo_if_needed(options.args.data))
    names = class_names_of(options.args.data, task, options.args.single_cls)
    contestants = [
        Contestant(role, _open(role, source, options.args, names)) for role, source in options.models.items()
    ]
    validator = YOLO(str(given["student"])).task_map[task]["validator"]
    device = select_device(options.args.device, verbose=False)
    return write_report(contestants, Subject(names, validator, device, _command(given)), options)


def report_run(
    teacher: Teacher, student: Path, subject: Subject, training: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Write the report of a finished distillation.

    Args:
        teacher (Teacher): The teacher, its classes matched with those of the data; left out if it cannot be validated.
        student (Path): The finished student.
        subject (Subject): What they are compared on; its command is made here.
        training (Mapping): Arguments of the training.
        folder (Path): Folder of the report.

    Returns:
        (dict): What `report.json` holds.
    """
    rest = {"mode": "val", "split": "val", "rect": True, "compile": False, "cache": False, **QUIET}
    args = Namespace(**{**training, **rest})
    contestants = [Contestant(STUDENT, _open(STUDENT, str(student), args, subject.names))]
    if not teacher.follows_student and teacher.validator_model(len(subject.names), subject.names) is not None:
        contestants.insert(0, Contestant(TEACHER, teacher))
    command = command_of(args, str(student)) if len(contestants) > 1 and teacher.portable else ""
    options = Options({}, args, REPORT_ONLY["images"], REPORT_ONLY["match_conf"], folder)
    return write_report(contestants, replace(subject, command=command), options)


def command_of(args: Namespace, student: str) -> str:
    """Return the command line that makes the report of a finished training.

    Args:
        args (Namespace): Arguments of the training.
        student (str): The finished student.
    """
    places = {"project", "name", "exist_ok", "save_dir", "workers", "device", "split"}
    given = {"teacher": args.teacher, "student": student}
    for name in (n for n in USED if n not in places):
        value = getattr(args, name, None)
        if name in {"data", "imgsz"} or value != DEFAULT_CFG_DICT.get(name):
            given[name] = value
    return _command(given)


def _command(given: Mapping[str, Any]) -> str:
    """Return a command line with arguments as it reads them."""

    def text(value: Any) -> str:
        """Return a value without the spaces at which a command line would part it."""
        if isinstance(value, (list, tuple)):
            return f"[{','.join(map(str, value))}]"
        return json.dumps(value, separators=(",", ":")) if isinstance(value, dict) else str(value)

    return shlex.join(["yolo-kd", "report", *(f"{k}={text(v)}" for k, v in given.items())])


def _task_of(student: Any) -> str:
    """Return the task of the student.

    Raises:
        KDError: If there is no such file, or the task is none of those that are distilled.
    """
    if Path(str(student)).suffix.lower() != ".pt":
        raise KDError(f"student={student} is no PyTorch checkpoint: give trained weights (.pt).")
    try:
        task = YOLO(str(student)).task
    except FileNotFoundError as e:
        raise KDError(f"student={student} was not found: {first_line(e)}") from e
    if task not in TASKS:
        raise KDError(f"student={student} is a '{task}' model, and reports are made of {', '.join(TASKS)}.")
    return str(task)


def _open(role: str, source: Any, args: Namespace, names: Mapping[int, str]) -> Teacher:
    """Open a model and match its classes with those of the data.

    Raises:
        KDError: If it cannot be compared.
    """
    try:
        weights = args.kd_teacher_weights if role == TEACHER else None
        opened = open_teacher(source, args.task, weights, args.kd_trust_teacher)
        kept = args.classes if role == TEACHER and args.task in GRID_TASKS else None
        kept = [kept] if isinstance(kept, int) else kept
        opened.match(names, args.kd_classes if role == TEACHER else "auto", kept)
        opened.inspect()
        if opened.follows_student or opened.validator_model(len(names), names) is None:
            raise KDError(f"teacher={source} cannot be validated, which a report has to do.")
    except KDError as e:  # the sentences speak of a teacher, whatever is opened
        text = str(e).replace("teacher=", f"{role}=").replace("the teacher", f"the {role}")
        raise KDError(text) from e
    return opened


def write_report(contestants: Sequence[Contestant], subject: Subject, options: Options) -> dict[str, Any]:
    """Validate and time models, and write the page, its pictures and its figures.

    Args:
        contestants (Sequence[Contestant]): Teacher, baseline and student, as far as there are, classes matched.
        subject (Subject): What they are compared on.
        options (Options): How.

    Returns:
        (dict): What `report.json` holds.
    """
    args = options.args
    wanted = END2END if args.nms is False else NMS
    with tempfile.TemporaryDirectory() as scratch:
        for each in contestants:
            each.look(subject.validator, args, subject.names, Path(scratch))
    measure_latency(contestants, wanted, args, subject.names, subject.device)
    options.folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("image-*.png", "levels-*.png", *(f"{name}.png" for name in CHARTS)):  # of an older report
        for file in options.folder.glob(pattern):
            file.unlink()
    report: dict[str, Any] = {
        **_about(contestants, subject, options),
        **figures(contestants, wanted, args.imgsz, options.match_conf),
    }
    report |= {"charts": {}, "images": [], "levels": [], "trained": []}
    report["verdict"], report["page"] = verdict(report), str(options.folder / "report.html")
    _write_figures(report, options.folder)  # whatever becomes of the pictures
    _draw_charts(report, options.folder, METRICS[args.task][0][0])
    _draw_images(report, contestants, wanted, subject, options)
    _write_figures(report, options.folder)
    write_page(report, options.folder)
    LOGGER.info("\n".join((f"{colorstr('Report:')} {report['page']}", *(f"    {s}" for s in report["verdict"]))))
    return report


def _about(contestants: Sequence[Contestant], subject: Subject, options: Options) -> dict[str, Any]:
    """Return what was compared, where and with which versions."""
    device, args = subject.device, options.args
    looked = next(iter(next(each for each in contestants if each.role == STUDENT).seen.values()))
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else get_cpu_info()
    return {
        "task": args.task,
        "data": str(args.data),
        "split": args.split or "val",
        "imgsz": args.imgsz,
        "count": len(looked.labels or looked.truth),
        "counted": {"classify": "images", "semantic": "pixels"}.get(args.task, "labels"),
        "match_conf": options.match_conf,
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "command": subject.command,
        "device": str(on),
        "threads": torch.get_num_threads(),
        "rounds": min(len(each.times) for each in contestants),
        "versions": versions(),
        "heads": sorted({head for each in contestants for head in each.heads}, reverse=True),
        "save_dir": str(options.folder),
    }


def _write_figures(report: dict[str, Any], folder: Path) -> None:
    """Write the figures."""
    (folder / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")


def _attempt(what: str, draw: Callable[[], Any]) -> Any:
    """Return what a drawing returns, None if it fails: a report does not depend on one picture."""
    try:
        return draw()
    except Exception as e:  # files that cannot be read any more, fonts, sizes
        LOGGER.warning(f"{what} could not be drawn: {type(e).__name__}: {e}")
        return None


def _draw_charts(report: dict[str, Any], folder: Path, metric: str) -> None:
    """Draw the charts that there is something for."""
    curves = {role: plots.read_curves(model["source"]) for role, model in report["models"].items() if role != TEACHER}
    found = {role: table for role, table in curves.items() if table is not None}
    report["trained"] = list(found)
    draw: dict[str, Callable[[Path], bool]] = {
        "latency": lambda file: plots.plot_latency(report, file),
        "classes": lambda file: plots.plot_classes(report, file),
        "calibration": lambda file: plots.plot_calibration(report, file),
        "curves": lambda file: plots.plot_curves(found, metric, report["metrics"][0], file),
    }
    for name in CHARTS:
        if _attempt(f"{name}.png", lambda name=name: draw[name](folder / f"{name}.png")):  # type: ignore[misc]
            report["charts"][name] = f"{name}.png"


def _draw_images(
    report: dict[str, Any], contestants: Sequence[Contestant], wanted: str, subject: Subject, options: Options
) -> None:
    """Draw the images about which teacher and student disagree most, and the levels over the first of them."""
    seen = {each.role: each.seen[each.head(wanted)] for each in contestants}
    if TEACHER not in seen:
        return
    task, student = options.args.task, seen[STUDENT]
    boxes = bool(student.labels)
    rows = (
        worst(seen[TEACHER].objects, student.objects, options.match_conf, options.images)
        if boxes
        else dense_worst(seen[TEACHER].said, student.said, task, student.truth, options.images)
    )
    root = os.path.commonpath([os.path.dirname(row["file"]) for row in rows]) if rows else ""
    for place, row in enumerate(rows):
        file = row.pop("file")
        name = Path(os.path.relpath(file, root)).as_posix()
        picture = _attempt(name, lambda file=file: _picture(file, seen, boxes, subject, options))  # type: ignore[misc]
        if picture is not None:
            report["images"].append({**row, "name": name, "picture": f"image-{place:02}.png"})
            imwrite(str(options.folder / f"image-{place:02}.png"), picture)
        if place >= LEVELS:
            continue
        look = lambda file=file: responses(contestants, file, options.args.imgsz, subject.device)  # noqa: E731
        if (maps := _attempt(f"levels of {name}", look)) is not None:
            report["levels"].append({"name": name, "picture": f"levels-{place:02}.png"})
            imwrite(str(options.folder / f"levels-{place:02}.png"), maps)


def _picture(file: str, seen: Mapping[str, Seen], boxes: bool, subject: Subject, options: Options) -> np.ndarray:
    """Return an image once for each model and once with its labels."""
    if boxes:
        found = {role: s.objects[file] for role, s in seen.items()}
        return side_by_side(file, seen[STUDENT].labels[file], found, subject.names, options.match_conf)
    said = {role: s.said[file] for role, s in seen.items()}
    return dense_side_by_side(file, seen[STUDENT].truth[file], said, subject.names, options.args.task)
