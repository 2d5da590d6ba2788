"""The plan of a bench: what it trains, from checked arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER, colorstr

from ..config.arguments import ARGUMENTS, GRID_TASKS, TASKS, as_list, parse_list
from ..config.checks import check_plain, whole_number
from ..config.recipes import check_arguments, check_recipe
from ..errors import KDError
from ..files import output_folder
from ..model import YOLO
from .arms import (
    BUILTIN,
    BUILTIN_ARGUMENTS,
    DEFAULT_ARMS,
    Arm,
    check_all_used,
    check_arm,
    default_arms,
    is_yaml,
    make_arms,
)
from .placement import gpus_of

BENCH_ONLY: dict[str, Any] = {
    "arms": DEFAULT_ARMS,
    "seeds": 3,
    "teacher_model": None,
    "teacher_epochs": None,
    "teacher_imgsz": None,
    "holdout": 0.0,
    "jobs": 1,
    "ray": False,
}
MAX_SEEDS = 10_000
# Arguments that change no score: those of the bench's folder, and those of what trainings draw and print
PLACE = ("project", "name", "exist_ok", "save_dir")
QUIET = {"plots": False, "verbose": False}


@dataclass(frozen=True)
class Plan:
    """A checked bench.

    Attributes:
        save_dir (Path): Folder of the bench.
        common (dict[str, Any]): Ultralytics' arguments of every training.
        arms (list[Arm]): Arms, `alone` first.
        seeds (list[int]): Seeds of every arm.
        teacher_model (str | None): Model of the teacher that the bench trains first; None if it trains none.
        teacher_epochs (int | None): Epochs of that teacher.
        teacher_imgsz (int | None): Image size that it is trained at in pixels; None for that of the students.
        classes (str | dict): The `kd_classes` of arms that do not set it.
        holdout (float): Share of the training images to score on; 0 scores on the val set.
        jobs (int): Number of trainings that run at the same time on this machine.
        task (str): Task of all models.
        trust (bool): Whether teachers may run code when they are opened.
        keeps (bool): Whether an arm keeps classes that the data do not label (`kd_keep`).
        kept (str | None): The `kd_keep_data` of that arm, on which all models are scored too.
        ray (bool | int): Whether a Ray cluster trains, and how many trainings at the same time; True for as many as
            have room.
    """

    save_dir: Path
    common: dict[str, Any]
    arms: list[Arm]
    seeds: list[int]
    teacher_model: str | None
    teacher_epochs: int | None
    teacher_imgsz: int | None
    classes: Any
    holdout: float
    jobs: int
    task: str = "detect"
    trust: bool = False
    keeps: bool = False
    kept: str | None = None
    ray: bool | int = False


def make_plan(overrides: Mapping[str, Any]) -> Plan:
    """Check a bench's arguments, before anything is written or trained.

    Args:
        overrides (Mapping): `BENCH_ONLY` and Ultralytics' and kd arguments; the latter two may come from a `cfg` YAML.

    Raises:
        KDError: If a bench does not take an argument, or cannot work with its value.
        SyntaxError: If an argument is unknown.
    """
    check_plain(overrides)
    command = {k: v for k, v in overrides.items() if k != "cfg"}
    given = {**_recipe(overrides.get("cfg"), command), **command}
    common = {**BENCH_ONLY, **QUIET, **given}
    check_plain(common)
    common.pop("mode", None)
    options = {name: common.pop(name) for name in BENCH_ONLY}
    options["holdout"] = _holdout(options["holdout"])
    ray = _ray(options["ray"], given)
    place = {name: common.pop(name) for name in PLACE if name in common}
    _check_common(common, options)
    distillation = {k: common.pop(k) for k in list(common) if k in ARGUMENTS or k in BUILTIN_ARGUMENTS}
    teacher = parse_list(distillation.pop("teacher", None))
    _check_teacher(teacher, options)
    get_cfg(overrides={**common, **place})
    task = common.get("task") or _task_of(common["model"])
    if "arms" not in given:
        options["arms"] = default_arms(task, teacher)
        if options["arms"] != DEFAULT_ARMS:
            LOGGER.info(
                f"{colorstr('Bench:')} no arm '{BUILTIN}': Ultralytics' own distillation takes one YOLO checkpoint as "
                f"the teacher, and does {', '.join(GRID_TASKS)}."
            )
    arms = make_arms(options["arms"], distillation, teacher)
    if is_yaml(options["arms"]):
        _check_trusted(arms, options["arms"], command)
    for arm in arms:
        check_arm(arm, {**common, "task": task}, trains_teacher=options["teacher_model"] is not None)
    if options["holdout"] and task == "classify":
        raise KDError("'holdout' splits a list of images, and a classification has folders of classes: drop it.")
    check_all_used(arms, distillation, teacher or options["teacher_model"])
    return Plan(
        output_folder(get_cfg(overrides={"name": "bench", **place, "exist_ok": True, "task": task})),
        common,
        arms,
        _seeds(options["seeds"]),
        options["teacher_model"],
        options["teacher_epochs"],
        options["teacher_imgsz"],
        distillation.get("kd_classes", ARGUMENTS["kd_classes"].default),
        options["holdout"],
        whole_number("jobs", options["jobs"]),
        task,
        bool(distillation.get("kd_trust_teacher")),
        any(arm.args.get("kd_keep") for arm in arms),
        _kept_data(arms),
        ray,
    )


def _ray(ray: Any, given: Mapping[str, Any]) -> bool | int:
    """Return whether a Ray cluster trains, or how many trainings it does at once.

    Raises:
        KDError: If the value is neither, or another argument contradicts it.
    """
    if isinstance(ray, bool) and not ray:
        return False
    if not isinstance(ray, bool):
        whole_number("ray", ray)
    if "jobs" in given:
        raise KDError("'jobs' and 'ray' exclude each other: ray=N is the number of trainings at a time on a cluster.")
    gpus_of(given.get("device"))
    return ray


def _kept_data(arms: list[Arm]) -> str | None:
    """Return the `kd_keep_data` of the arms; None if there is none.

    Raises:
        KDError: If they name several.
    """
    named = list(dict.fromkeys(str(arm.args["kd_keep_data"]) for arm in arms if arm.args.get("kd_keep_data")))
    if len(named) > 1:
        raise KDError(f"the arms name several kd_keep_data ({', '.join(named)}), and all are scored on one: give one.")
    return named[0] if named else None


def _recipe(cfg: Any, command: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a `cfg` YAML that a training would read, checked together with those of the command."""
    if not cfg:
        return {}
    recipe = check_recipe(cfg, command)
    drop = {"cfg", "mode", "seed", "save_dir"} | ({"resume"} if not recipe.get("resume") else set())
    return {k: v for k, v in recipe.items() if v is not None and k not in drop}


def _check_common(common: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise if an argument that all arms share prevents a comparison of the trainings."""
    refused = {
        "seed": "give seeds=3 or seeds=0,1,2",
        "resume": "run the same command again, and it continues by itself",
    }
    for name, advice in refused.items():
        if name in common:
            raise KDError(f"a bench takes no '{name}': {advice}.")
    for name in ("data", "model"):
        if not isinstance(common.get(name), (str, Path)) or not str(common[name]).strip():
            raise KDError(f"a bench needs {name}=... with a single value.")
    if common.get("task") not in (None, *TASKS):
        raise KDError(f"task '{common['task']}' cannot be compared yet: a bench supports {', '.join(TASKS)}.")
    batch = common.get("batch", 16)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise KDError(f"'batch={batch}': give a batch size, as AutoBatch could choose another one for each arm.")
    if options["holdout"] and common.get("split", "val") != "val":
        raise KDError("'holdout' and 'split' exclude each other: the held-out images take the place of the val set.")
    if options["teacher_epochs"] and common.get("time"):
        raise KDError("'teacher_epochs' and 'time' exclude each other: a time limit overrides epochs.")


def _check_teacher(teacher: Any, options: Mapping[str, Any]) -> None:
    """Raise if the teacher is ambiguous or not a file; warn if it may have been trained on held-out images."""
    model, epochs = options["teacher_model"], options["teacher_epochs"]
    if teacher is not None and not all(isinstance(each, (str, Path)) for each in as_list(teacher)):
        raise KDError("a bench trains in other processes: save the teacher and give its path.")
    if teacher and model:
        raise KDError("'teacher' names a trained teacher, 'teacher_model' one to train first: give one of them.")
    if bool(model) != (epochs is not None):
        raise KDError("'teacher_model' and 'teacher_epochs' go together: the teacher to train first, and for how long.")
    if model is not None and not isinstance(model, (str, Path)):
        raise KDError(f"'teacher_model={model}' is not a model: give a file.")
    if epochs is not None:
        whole_number("teacher_epochs", epochs)
    if options["teacher_imgsz"] is not None:
        if model is None:
            raise KDError("'teacher_imgsz' is the size that 'teacher_model' is trained at: give both, or neither.")
        whole_number("teacher_imgsz", options["teacher_imgsz"])
    if teacher and options["holdout"]:
        LOGGER.warning(
            f"holdout scores on a part of the training images: the scores are only valid if teacher={teacher} has not "
            "been trained on that part. A teacher that the bench trains (teacher_model=) has not seen it."
        )


def _check_trusted(arms: list[Arm], file: Any, command: Mapping[str, Any]) -> None:
    """Raise if a YAML file with arms names code that the command does not name too."""
    for arm in arms:
        repeated = {k: v for k, v in command.items() if v == arm.args.get(k)}
        check_arguments(arm.args, f"arms={file}", repeated)


def _task_of(model: Any) -> str:
    """Return the task of a model; detection if it cannot be opened, as `run_bench` reports that later."""
    try:
        return str(YOLO(model).task)
    except (FileNotFoundError, ValueError, TypeError, ConnectionError):
        return "detect"


def _seeds(seeds: Any) -> list[int]:
    """Return the seeds: 0 to n - 1 for a number, or the listed ones."""
    if isinstance(seeds, int) and not isinstance(seeds, bool) and 0 < seeds <= MAX_SEEDS:
        return list(range(seeds))
    if isinstance(seeds, str):
        seeds = [int(s) if s.strip().isdecimal() and len(s) < 10 else s for s in seeds.strip("[]").split(",")]
    listed = list(seeds) if isinstance(seeds, (list, tuple)) else []
    whole = all(type(s) is int and s >= 0 for s in listed)
    if not listed or not whole or len({*listed}) < len(listed):
        raise KDError(
            f"'seeds={seeds}' is invalid: give a number of seeds, at most {MAX_SEEDS}, or a list of different ones of "
            "0 or more, e.g. 0,1,2."
        )
    return listed


def _holdout(share: Any) -> float:
    """Return the share of training images to hold out."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise KDError(f"'holdout={share}' is invalid: give a share of the training images, 0 or more and less than 1.")
    return float(share)
