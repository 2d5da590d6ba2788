"""What a bench will train: arms, seeds and the arguments that all arms share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from ..config.arguments import ARGUMENTS, TASKS, check_combination, check_plain, whole_number
from ..config.recipes import check_arguments, check_recipe
from ..errors import KDError
from ..files import load_yaml, output_folder
from ..model import YOLO

ALONE, BUILTIN, KD = "alone", "builtin", "kd"
BUILTIN_ARGUMENTS = ("distill_model", "dis")
BENCH_ONLY: dict[str, Any] = {
    "arms": f"{ALONE},{BUILTIN},{KD}",
    "seeds": 3,
    "teacher_model": None,
    "teacher_epochs": None,
    "holdout": 0.0,
    "jobs": 1,
}
# Where a bench runs and what it prints, which changes no score
PLACE = ("project", "name", "exist_ok", "save_dir")
MAX_NAME, MAX_SEEDS = 100, 10_000
QUIET = {"plots": False, "verbose": False}


@dataclass(frozen=True)
class Arm:
    """One way to train the student.

    Attributes:
        name (str): Name in tables and folders.
        args (dict[str, Any]): Arguments on top of those that all arms share; the teacher still as the user named it,
            None if it is the one that the bench trains.
        teacher_key (str | None): Argument that takes the teacher, "teacher" or "distill_model"; None without one.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    teacher_key: str | None = None


@dataclass(frozen=True)
class Plan:
    """A checked bench.

    Attributes:
        save_dir (Path): Folder of the bench.
        common (dict[str, Any]): Ultralytics' arguments of every training.
        arms (list[Arm]): Arms, `alone` first.
        seeds (list[int]): Seeds of every arm.
        teacher_model (str | None): Model of the teacher that is trained first, if one is.
        teacher_epochs (int | None): Its epochs.
        classes (str | dict): The `kd_classes` of arms that have none of their own.
        holdout (float): Share of the training images that takes the place of the val set, 0 for the val set itself.
        jobs (int): Trainings at a time.
        task (str): Task of all models.
        trust (bool): Whether teachers may run code when they are opened.
    """

    save_dir: Path
    common: dict[str, Any]
    arms: list[Arm]
    seeds: list[int]
    teacher_model: str | None
    teacher_epochs: int | None
    classes: Any
    holdout: float
    jobs: int
    task: str = "detect"
    trust: bool = False


def make_plan(overrides: Mapping[str, Any]) -> Plan:
    """Check a bench's arguments, before anything is written or trained.

    Args:
        overrides (Mapping): `BENCH_ONLY` and Ultralytics' and kd arguments; the latter two may come from a `cfg` YAML.

    Raises:
        KDError: If an argument has no place in a bench or a value that cannot work.
        SyntaxError: If an argument is unknown.
    """
    check_plain(overrides)
    said = {k: v for k, v in overrides.items() if k != "cfg"}
    given = {**BENCH_ONLY, **_recipe(overrides.get("cfg"), said), **said}
    check_plain(given)
    own = {name: given.pop(name) for name in BENCH_ONLY}
    own["holdout"] = _share(own["holdout"])
    place = {name: given.pop(name) for name in PLACE if name in given}
    given = {**QUIET, **{k: v for k, v in given.items() if k != "mode"}}
    _check_common(given, own)
    special = {k: given.pop(k) for k in list(given) if k in ARGUMENTS or k in BUILTIN_ARGUMENTS}
    teacher = special.pop("teacher", None)
    _check_teacher(teacher, own["teacher_model"], own["teacher_epochs"])
    if teacher and own["holdout"]:
        LOGGER.warning(
            "holdout leaves a part of the training images for the scores: they mean something only if teacher="
            f"{teacher} has not been trained on that part (with teacher_model= it is not)."
        )
    arms = _arms(own["arms"], special, teacher)
    if str(own["arms"]).strip().lower().endswith((".yaml", ".yml")):
        for arm in arms:  # whose values win over the command's
            same = {k: v for k, v in said.items() if v == arm.args.get(k)}
            check_arguments(arm.args, f"arms={own['arms']}", same)
    get_cfg(overrides={**given, **place})
    task = given.get("task") or _task_of(given["model"])
    for arm in arms:
        _check_arm(arm, {**given, "task": task}, trained=own["teacher_model"] is not None)
    if own["holdout"] and task == "classify":
        raise KDError("'holdout' draws from a list of images, which the folders of a classification are not: drop it.")
    _check_used(teacher or own["teacher_model"], special, arms)
    return Plan(
        output_folder(get_cfg(overrides={"name": "bench", **place, "exist_ok": True, "task": task})),
        given,
        arms,
        _seeds(own["seeds"]),
        own["teacher_model"],
        own["teacher_epochs"],
        special.get("kd_classes", ARGUMENTS["kd_classes"].default),
        own["holdout"],
        whole_number("jobs", own["jobs"]),
        task,
        bool(special.get("kd_trust_teacher")),
    )


def _task_of(model: Any) -> str:
    """Return the task of a model; detection if it cannot be opened, which is said before anything is trained."""
    try:
        return str(YOLO(model).task)
    except (FileNotFoundError, ValueError, TypeError, ConnectionError):
        return "detect"


def _recipe(cfg: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a `cfg` YAML that a training would read, checked beside those that the command gives."""
    if not cfg:
        return {}
    recipe = check_recipe(cfg, said)
    drop = {"cfg", "mode", "seed", "save_dir"} | ({"resume"} if not recipe.get("resume") else set())
    return {k: v for k, v in recipe.items() if v is not None and k not in drop}


def _check_teacher(teacher: Any, model: Any, epochs: Any) -> None:
    """Raise unless a teacher is named or to be trained, not both."""
    if teacher is not None and not isinstance(teacher, (str, Path)):
        raise KDError("a bench trains in processes of its own: save the teacher and give its path.")
    if teacher and model:
        raise KDError("'teacher' names a trained teacher and 'teacher_model' has one trained: give one of them.")
    if bool(model) != (epochs is not None):
        raise KDError("'teacher_model' and 'teacher_epochs' go together: the teacher to train first, and for how long.")
    if model is not None and not isinstance(model, (str, Path)):
        raise KDError(f"'teacher_model={model}' is no model: give a file.")
    if epochs is not None:
        whole_number("teacher_epochs", epochs)


def _arms(arms: Any, special: dict[str, Any], teacher: Any) -> list[Arm]:
    """Return the arms; `alone` is always among them, as all others are compared with it."""
    named = _named_arms(arms)
    if named.pop(ALONE, None):
        raise KDError(f"arm '{ALONE}' is the student without a teacher and takes no arguments.")
    kd = {k: v for k, v in special.items() if k in ARGUMENTS}
    builtin = {k: v for k, v in special.items() if k in BUILTIN_ARGUMENTS}
    made = [Arm(ALONE)]
    for name, args in named.items():
        foreign = [k for k in args if k not in ARGUMENTS and k not in BUILTIN_ARGUMENTS]
        if foreign:
            raise KDError(
                f"arm '{name}' sets '{foreign[0]}': arms differ in kd arguments (or {', '.join(BUILTIN_ARGUMENTS)}) "
                "and share all others, or they could not be compared."
            )
        key = "distill_model" if name == BUILTIN or set(args) & set(BUILTIN_ARGUMENTS) else "teacher"
        own = builtin if key == "distill_model" else {**_kd_defaults(), **kd}
        made.append(Arm(name, {**own, key: str(teacher) if teacher else None, **args}, key))
    return made


def _kd_defaults() -> dict[str, Any]:
    """Return the kd arguments' defaults: a run says what it was made with, also when defaults have changed since."""
    return {name: argument.default for name, argument in ARGUMENTS.items() if name != "teacher"}


def _named_arms(arms: Any) -> dict[str, dict[str, Any]]:
    """Return arguments by arm name, from names, a dict, its JSON or a YAML file with one."""
    if isinstance(arms, str):
        text = arms.strip()
        if text.startswith("{"):
            try:
                arms = json.loads(text)
            except (ValueError, RecursionError) as e:
                raise KDError(f"'arms={arms}' is no JSON: {e}.") from e
        elif text.lower().endswith((".yaml", ".yml")):
            arms = load_yaml(text)
        else:
            arms = text.split(",")
    if isinstance(arms, (list, tuple, set)):
        arms = {str(name).strip(): {} for name in arms}
    if (
        not isinstance(arms, Mapping)
        or not arms
        or not all(isinstance(a, (Mapping, type(None))) for a in arms.values())
    ):
        raise KDError(
            f"'arms={arms}' is invalid: give names, e.g. {BENCH_ONLY['arms']}, or {{name: {{argument: value}}}}."
        )
    check_plain({"arms": arms})
    named = {str(name): dict(args or {}) for name, args in arms.items()}
    for name, args in named.items():
        letters = name.replace("-", "").replace("_", "").replace(".", "")
        if not letters.isalnum() or name[0] in ".-" or len(name.encode()) > MAX_NAME:
            raise KDError(
                f"arm '{name}' needs a name of letters, digits, '_', '-' and '.', no longer than {MAX_NAME} bytes: a "
                "folder is called so."
            )
        if name not in {ALONE, BUILTIN, KD} and not args:
            raise KDError(
                f"arm '{name}' is unknown: {ALONE}, {BUILTIN} and {KD} are there, others are defined with their "
                f'arguments, e.g. arms=\'{{"{name}": {{"kd_cls": 2.0}}}}\'.'
            )
    return named


def _check_arm(arm: Arm, common: dict[str, Any], trained: bool) -> None:
    """Raise if an arm's arguments cannot be trained with."""
    args = dict(arm.args)
    if arm.teacher_key == "distill_model" and "distill_model" not in DEFAULT_CFG_DICT:
        raise KDError(f"arm '{arm.name}' needs Ultralytics' own distillation, which this Ultralytics has not.")
    if arm.teacher_key and not args[arm.teacher_key]:
        if not trained:
            raise KDError(f"arm '{arm.name}' needs a teacher: give teacher=... or teacher_model=... teacher_epochs=...")
        args[arm.teacher_key] = "teacher.pt"
    try:
        check_combination({**vars(get_cfg(overrides={**common, **args})), "task": common["task"]})
    except KDError as e:
        raise KDError(f"arm '{arm.name}': {e}") from e


def _check_common(given: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise if an argument of every training cannot be compared with."""
    refused = {
        "seed": "give seeds=3 or seeds=0,1,2",
        "resume": "a bench goes on by itself when run again",
    }
    for name, why in refused.items():
        if name in given:
            raise KDError(f"'{name}' is no argument of a bench: {why}.")
    for name in ("data", "model"):
        if not isinstance(given.get(name), (str, Path)) or not str(given[name]).strip():
            raise KDError(f"a bench needs {name}=..., and one of it.")
    if given.get("task") not in (None, *TASKS):
        raise KDError(f"task '{given['task']}' cannot be compared yet: a bench is there for {', '.join(TASKS)}.")
    batch = given.get("batch", 16)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise KDError(f"'batch={batch}': a bench needs a batch size, as AutoBatch would give each arm another one.")
    if own["holdout"] and given.get("split", "val") != "val":
        raise KDError("'holdout' and 'split' exclude each other: the held-out images take the place of the val set.")
    if own["teacher_epochs"] and given.get("time"):
        raise KDError("'teacher_epochs' and 'time' exclude each other: with a time, epochs do not count.")


def _check_used(teacher: Any, special: dict[str, Any], arms: list[Arm]) -> None:
    """Raise if a teacher is given that teaches nobody, or an argument that no arm reads."""
    keys = {arm.teacher_key for arm in arms}
    for names, key in ((ARGUMENTS, "teacher"), (BUILTIN_ARGUMENTS, "distill_model")):
        given = [k for k in special if k in names and k != "kd_classes"]
        if given and key not in keys:
            raise KDError(f"'{given[0]}={special[given[0]]}' has no effect: no arm in arms reads it.")
    if teacher and not any(a.teacher_key for a in arms):
        raise KDError(f"no arm has a use for the teacher: add {BUILTIN} or {KD} to arms.")


def _seeds(seeds: Any) -> list[int]:
    """Return the seeds: 0 to n - 1 for a number, or those that are listed."""
    if isinstance(seeds, int) and not isinstance(seeds, bool) and 0 < seeds <= MAX_SEEDS:
        return list(range(seeds))
    if isinstance(seeds, str):
        seeds = [int(s) if s.strip().isdecimal() and len(s) < 10 else s for s in seeds.strip("[]").split(",")]
    listed = list(seeds) if isinstance(seeds, (list, tuple)) else []
    whole = all(type(s) is int and s >= 0 for s in listed)
    if not listed or not whole or len({*listed}) < len(listed):
        raise KDError(
            f"'seeds={seeds}' is invalid: give their number, at most {MAX_SEEDS}, or different ones of 0 or more, e.g. "
            "0,1,2."
        )
    return listed


def _share(holdout: Any) -> float:
    """Return the held-out share."""
    if isinstance(holdout, bool) or not isinstance(holdout, (int, float)) or not 0 <= holdout < 1:
        raise KDError(
            f"'holdout={holdout}' is invalid: give a share of the training images, 0 or more and less than 1."
        )
    return float(holdout)
