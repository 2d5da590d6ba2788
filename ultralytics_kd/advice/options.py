"""The arguments of `yolo-kd advise`: names, defaults, and what is refused before anything is written."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_cls_dataset, check_det_dataset, convert_ndjson_to_yolo_if_needed
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.checks import check_imgsz

from .. import outputs
from ..config.arguments import ARGUMENTS, GRID_TASKS, TASKS, as_list
from ..config.checks import check_combination, check_plain, whole_number
from ..config.named_files import is_average
from ..config.recipes import check_recipe
from ..config.registration import register_arguments
from ..config.teacher_size import SIDES, scored_size, student_size
from ..errors import KDError, KDTypeError, ModelError, first_line
from ..files import exists, output_folder
from ..image_files import image_files
from ..model import YOLO
from ..report.options import QUIET

# Arguments that only this command has, with their defaults
ADVICE_ONLY: dict[str, Any] = {
    "teacher": None,
    "baseline": None,
    "probe": 60,
    "sample": 1000,
    "images": 12,
    "match_conf": 0.5,
}
PLACE = ("project", "name", "exist_ok", "save_dir")
# Arguments of a validation that are arguments of a training too
VAL_ARGS = (
    *("data", "split", "batch", "device", "workers", "classes", "single_cls", "max_det", "iou", "agnostic_nms"),
    *("kd_classes", "kd_trust_teacher"),
)
REFUSED = {
    "resume": "it trains nothing that could be resumed: drop it",
    "time": "give epochs, for which it says the hours",
    "kd_cache": "it measures stored answers by itself: drop it",
    "distill_model": "it is about teacher=: drop it",
    "kd_teacher_weights": "it judges each teacher by itself: drop it",
}
# What a recipe, such as the args.yaml of a run, is taken without. Not its `time`, as it would be another training
OF_A_RUN = REFUSED.keys() - {"time"}
BUILTIN = "dis"  # weight of `distill_model`, which is in every args.yaml; a bench of other arms refuses it
LONGEST_PROBE = 24 * 3600  # seconds


@dataclass(frozen=True)
class Options:
    """The checked arguments of an advice.

    Attributes:
        task (str): Task of the student.
        training (dict[str, Any]): Arguments of the training that is asked about, without teacher and output folder.
        args (Namespace): All of Ultralytics' arguments for a validation of the student.
        teachers (list[str]): The teachers, each judged by itself.
        teacher_imgsz (int | None): Size of their images in pixels; None for the student's.
        baseline (str | None): The student trained alone.
        probe (float): Seconds that the student is trained alone for if there is no baseline; 0 for none.
        sample (int): Most val images that are scored, and most training images that are compared with their labels.
        images (int): Number of training images to show for each teacher.
        match_conf (float): Confidence from which on a teacher's detection contradicts the labels.
        folder (Path): Folder of the advice.
    """

    task: str
    training: dict[str, Any]
    args: Namespace
    teachers: list[str]
    teacher_imgsz: int | None
    baseline: str | None
    probe: float
    sample: int
    images: int
    match_conf: float
    folder: Path

    @property
    def split(self) -> str:
        """The split whose images models are scored on."""
        return str(self.args.split or "val")

    def argument(self, name: str) -> Any:
        """Return an argument of the training, Ultralytics' default if it is not given."""
        return self.training.get(name, DEFAULT_CFG_DICT[name])


def check_options(given: Mapping[str, Any]) -> Options:
    """Check the arguments.

    Args:
        given (Mapping): Arguments in `ADVICE_ONLY`, and those of a training.

    Raises:
        KDError: If an argument is missing or invalid, or advice cannot work with it.
        SyntaxError: If an argument is unknown.
    """
    register_arguments()
    check_plain(given)
    own, training, place = _parted(given)
    teachers = _teachers(own["teacher"])
    _check_training(training)
    for name in (*REFUSED, BUILTIN):  # unset, but a bench refuses some of them all the same
        training.pop(name, None)
    task = _task_of(training["model"], training.pop("task", None))
    for teacher in teachers:
        check_combination({**vars(get_cfg(overrides={**training, "teacher": teacher})), "task": task})
    training["data"] = str(convert_ndjson_to_yolo_if_needed(training["data"]))
    shared = {k: v for k, v in training.items() if k in VAL_ARGS}
    args = get_cfg(overrides={"mode": "val", "task": task, "rect": True, **QUIET, **shared})
    sides = training.get("imgsz", DEFAULT_CFG_DICT["imgsz"])
    args.imgsz = student_size([whole_number("imgsz", side) for side in as_list(sides)])
    if task != "classify":
        args.imgsz = check_imgsz(args.imgsz, stride=SIDES, max_dim=1)  # as validation does
    args.nms = training.pop("nms", None)
    _check_images(training["data"], task, args.split)
    size = training.get("kd_teacher_imgsz")
    return Options(
        task,
        training,
        args,
        teachers,
        None if size is None else scored_size(size, args.imgsz),
        str(own["baseline"]) if own["baseline"] else None,
        _seconds(own["probe"]),
        whole_number("sample", own["sample"]),
        own["images"] if own["images"] == 0 and own["images"] is not False else whole_number("images", own["images"]),
        _confidence(own["match_conf"]),
        output_folder(get_cfg(overrides={"mode": "val", "task": task, "name": "advise", **place})),
    )


def _parted(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the arguments of this command, of the training and of its folder; a `cfg` YAML is merged in."""
    command = {k: v for k, v in given.items() if k not in {"cfg", "mode"}}
    recipe = check_recipe(given["cfg"], command) if given.get("cfg") else {}
    kept = {k: v for k, v in recipe.items() if v is not None and k not in {"cfg", "mode", "save_dir", *OF_A_RUN}}
    merged = {**ADVICE_ONLY, **kept, **command}
    check_plain(merged)
    own = {name: merged.pop(name) for name in ADVICE_ONLY}
    place = {name: merged.pop(name) for name in PLACE if name in merged}
    return own, merged, place


def _teachers(value: Any) -> list[str]:
    """Return the teachers: one, a list, or a text with commas.

    Raises:
        KDError: If there is none, or one is an object in memory, "ema" or given twice.
    """
    if isinstance(value, str) and not exists(value):
        value = [part.strip().strip("'\"") for part in value.strip().strip("[]").split(",")]
    named = value if isinstance(value, (list, tuple)) else [value]
    if not named or not all(named):
        raise KDError("'yolo-kd advise' needs teacher=PATH, or several: teacher=a.pt,b.pt.")
    for teacher in named:
        if not isinstance(teacher, (str, Path)):
            raise KDTypeError(
                f"advice names teachers in commands: save the {type(teacher).__name__}, and give its path."
            )
        if is_average(teacher):
            raise KDError("teacher=ema is made during training and has no score before it: name a trained model.")
    texts = [str(teacher) for teacher in named]
    for text in texts:
        if texts.count(text) > 1:
            raise KDError(f"teacher={text} is given twice: name each teacher once.")
    return texts


def _check_training(training: Mapping[str, Any]) -> None:
    """Raise if an argument of the training is missing, or prevents a measurement."""
    for name in ("data", "model"):
        if not isinstance(training.get(name), (str, Path)) or not str(training[name]).strip():
            raise KDError(f"'yolo-kd advise' needs {name}=... with a single value.")
    for name, advice in REFUSED.items():
        if training.get(name) not in (None, False, ARGUMENTS[name].default if name in ARGUMENTS else None):
            raise KDError(f"'yolo-kd advise' takes no '{name}={training[name]}': {advice}.")
    if training.get("kd_keep"):  # in a recipe too: without it the training would be another one
        raise KDError(
            f"'yolo-kd advise' takes no 'kd_keep={training['kd_keep']}': it judges teachers by the classes that the "
            "data label, and kd_keep needs one for those that they do not: drop it."
        )
    batch, device = training.get("batch", 16), training.get("device")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise KDError(f"'batch={batch}': give a batch size, as AutoBatch could choose another one with a teacher.")
    if isinstance(device, (list, tuple)) or "," in str(device or ""):
        raise KDError(f"'device={device}': advice measures on one device, give e.g. device=0.")
    if training.get("nms"):
        raise KDError("'nms=False' scores the NMS-free heads; otherwise leave 'nms' out.")
    whole_number("epochs", training.get("epochs", DEFAULT_CFG_DICT["epochs"]))


def _task_of(source: Any, asked: Any) -> str:
    """Return the task of the student.

    Raises:
        KDError: If the model cannot be read or distilled, or has another task than `asked`.
    """
    try:
        model = YOLO(source)
    except FileNotFoundError as e:
        raise ModelError(source, "was not found: give a path, or a name that Ultralytics downloads.", "model") from e
    except (ConnectionError, TypeError, ValueError) as e:
        raise ModelError(source, f"could not be read as a YOLO model: {first_line(e)}", "model") from e
    task = str(model.task)
    if task not in TASKS:
        raise KDError(f"model={source} is a '{task}' model; a teacher is supported for {', '.join(TASKS)}.")
    if asked not in (None, task):
        raise KDError(f"model={source} is a '{task}' model, and task={asked} is given: drop the task.")
    if task in GRID_TASKS and (fault := outputs.head_fault(model.model)):
        raise ModelError(source, f"{fault}.", "model")
    return task


def _check_images(data: str, task: str, split: str | None) -> None:
    """Raise if a data set has no images to score on, or none to train on."""
    split = split or "val"
    try:
        described: dict[str, Any] = check_cls_dataset(data) if task == "classify" else check_det_dataset(data)
    except SyntaxError as e:  # Ultralytics' error for a data.yaml without `train` or `val`, or without right names
        message = " ".join(str(e).replace(" ❌", "").split())
        if "'train:' key" in message or "'val:' key" in message:
            message = f"data={data} lacks train: or val: images, and advice needs both: add them to it."
        raise KDError(message) from e
    except FileNotFoundError as e:
        raise KDError(f"data={data} cannot be read: {first_line(e)}") from e
    for name, purpose in ((split, "scores models on them"), ("train", "looks at their labels")):
        try:
            found = bool(described.get(name)) and bool(image_files(described[name]))
        except FileNotFoundError:
            found = False
        if not found:
            raise KDError(f"data={data} has no {name} images, and 'yolo-kd advise' {purpose}: add '{name}:' to it.")


def _seconds(value: Any) -> float:
    """Return the seconds of the probe."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise KDTypeError(f"'probe={value}' must be a number of seconds, 0 for no probe.")
    if not 0 <= value <= LONGEST_PROBE:
        raise KDError(f"'probe={value}' is an invalid value: give seconds, 0 to {LONGEST_PROBE}.")
    return float(value)


def _confidence(value: Any) -> float:
    """Return the confidence from which on a detection counts."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise KDTypeError(f"'match_conf={value}' must be a number.")
    if not 0 < value < 1:
        raise KDError(f"'match_conf={value}' is an invalid value: it must be greater than 0 and less than 1.")
    return float(value)
