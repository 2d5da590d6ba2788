"""Arms of a bench: the ways to train the student that it compares, and their checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT

from ..config.arguments import ARGUMENTS, GRID_TASKS, as_list, parse_list
from ..config.checks import check_combination, check_plain
from ..config.named_files import is_average
from ..config.user_code import names_library_model, names_object
from ..errors import KDError
from ..files import load_yaml
from ..teachers.opening import names_exported

ALONE, BUILTIN, KD = "alone", "builtin", "kd"
DEFAULT_ARMS = f"{ALONE},{BUILTIN},{KD}"
BUILTIN_ARGUMENTS = ("distill_model", "dis")  # of Ultralytics' own distillation
MAX_NAME = 100  # bytes


@dataclass(frozen=True)
class Arm:
    """One way to train the student.

    Attributes:
        name (str): Name in tables and folders.
        args (dict[str, Any]): Arguments that only this arm has. The teacher is named as the user named it; it is None
            if the bench trains it.
        teacher_key (str | None): Argument that takes the teacher, "teacher" or "distill_model"; None without a teacher.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    teacher_key: str | None = None


def default_arms(task: str, teacher: Any) -> str:
    """Return the arms that are compared if none are named: `builtin` only where Ultralytics' own distillation works.

    Args:
        task (str): The student's task.
        teacher (str | Path | list | None): The teacher of all arms; None if the bench trains it.
    """
    one_checkpoint = not isinstance(teacher, list) and not (
        names_object(str(teacher)) or is_average(teacher) or names_exported(teacher)
    )
    works = one_checkpoint and task in GRID_TASKS and "distill_model" in DEFAULT_CFG_DICT
    return DEFAULT_ARMS if works else f"{ALONE},{KD}"


def make_arms(arms: Any, distillation: Mapping[str, Any], teacher: Any) -> list[Arm]:
    """Return the arms. `alone` is always the first, as all others are compared with it.

    Args:
        arms (str | Mapping | Sequence): Arms as the user gives them: names, or a dict, JSON or YAML of arguments.
        distillation (Mapping): kd arguments and `BUILTIN_ARGUMENTS` of the whole bench.
        teacher (str | Path | list | None): The teacher of arms that do not name one.

    Raises:
        KDError: If an arm has an invalid name, or arguments that arms must share.
    """
    named = _arguments_by_name(arms)
    if named.pop(ALONE, None):
        raise KDError(f"arm '{ALONE}' is the student without a teacher and takes no arguments.")
    kd = {**_kd_defaults(), **{k: v for k, v in distillation.items() if k in ARGUMENTS}}
    builtin = {k: v for k, v in distillation.items() if k in BUILTIN_ARGUMENTS}
    result = [Arm(ALONE)]
    for name, args in named.items():
        shared = [k for k in args if k not in ARGUMENTS and k not in BUILTIN_ARGUMENTS]
        if shared:
            raise KDError(
                f"arm '{name}' sets '{shared[0]}': arms differ in kd arguments (or {', '.join(BUILTIN_ARGUMENTS)}) "
                "only; give all others to the whole bench."
            )
        uses_builtin = name == BUILTIN or set(args) & set(BUILTIN_ARGUMENTS)
        key, defaults = ("distill_model", builtin) if uses_builtin else ("teacher", kd)
        args = {**defaults, key: teacher or None, **args}
        args[key] = _named(args[key])
        backbone = any(map(names_library_model, as_list(args[key])))
        if key == "teacher" and args["kd_feat"] is None and not args["kd_keep"] and not backbone:
            args["kd_feat"] = 0.0  # what it means here, and what records of 0.2 have
        if key == "distill_model" and isinstance(args[key], list):
            raise KDError(
                f"arm '{name}' is Ultralytics' own distillation, which takes one teacher: leave the arm out, or give "
                "it one distill_model."
            )
        result.append(Arm(name, args, key))
    return result


def _named(teacher: Any) -> Any:
    """Return a teacher, or each of a list, as the text that names it."""
    teacher = parse_list(teacher)
    if isinstance(teacher, list):
        return [str(each) for each in teacher]
    return str(teacher) if teacher else None


def _kd_defaults() -> dict[str, Any]:
    """Return the kd arguments' defaults: records keep them, because later releases may have other defaults."""
    return {name: argument.default for name, argument in ARGUMENTS.items() if name != "teacher"}


def _arguments_by_name(arms: Any) -> dict[str, dict[str, Any]]:
    """Return the arguments of each arm, from names, a dict, its JSON or a YAML file with one."""
    arms = _read_arms(arms.strip()) if isinstance(arms, str) else arms
    if isinstance(arms, (list, tuple, set)):
        arms = {str(name).strip(): {} for name in arms}
    valid = isinstance(arms, Mapping) and arms and all(isinstance(a, (Mapping, type(None))) for a in arms.values())
    if not valid:
        raise KDError(f"'arms={arms}' is invalid: give names, e.g. {DEFAULT_ARMS}, or {{name: {{argument: value}}}}.")
    check_plain({"arms": arms})
    named = {str(name): dict(args or {}) for name, args in arms.items()}
    for name, args in named.items():
        _check_name(name)
        if name not in {ALONE, BUILTIN, KD} and not args:
            raise KDError(
                f"arm '{name}' is unknown: use {ALONE}, {BUILTIN} and {KD}, or define it with its arguments, e.g. "
                f'arms=\'{{"{name}": {{"kd_cls": 2.0}}}}\'.'
            )
    return named


def _read_arms(text: str) -> Any:
    """Return the arms in a text: JSON, the name of a YAML file, or names separated by commas."""
    if text.startswith("{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as e:
            raise KDError(f"'arms={text}' is not valid JSON: {e}.") from e
    return load_yaml(text) if is_yaml(text) else text.split(",")


def is_yaml(arms: Any) -> bool:
    """Return whether arms are given as the name of a YAML file."""
    return str(arms).strip().lower().endswith((".yaml", ".yml"))


def _check_name(name: str) -> None:
    """Raise if a name cannot be the name of a folder on every system."""
    letters = name.replace("-", "").replace("_", "").replace(".", "")
    if not letters.isalnum() or name[0] in ".-" or len(name.encode()) > MAX_NAME:
        raise KDError(
            f"arm '{name}' needs a name of letters, digits, '_', '-' and '.', no longer than {MAX_NAME} bytes: a "
            "folder has the same name."
        )


def check_arm(arm: Arm, common: Mapping[str, Any], trains_teacher: bool) -> None:
    """Raise if an arm cannot be trained with its arguments.

    Args:
        arm (Arm): The arm.
        common (Mapping): Arguments that all arms share, `task` among them.
        trains_teacher (bool): Whether the bench trains a teacher.

    Raises:
        KDError: If it cannot be trained.
    """
    args = dict(arm.args)
    if arm.teacher_key == "distill_model" and "distill_model" not in DEFAULT_CFG_DICT:
        raise KDError(
            f"arm '{arm.name}' needs Ultralytics' own distillation, which the installed release lacks: drop the arm."
        )
    if arm.teacher_key and not args[arm.teacher_key]:
        if not trains_teacher:
            raise KDError(f"arm '{arm.name}' needs a teacher: give teacher=... or teacher_model=... teacher_epochs=...")
        args[arm.teacher_key] = "teacher.pt"
    try:
        check_combination({**vars(get_cfg(overrides={**common, **args})), "task": common["task"]})
    except KDError as e:
        raise KDError(f"arm '{arm.name}': {e}") from e


def check_all_used(arms: list[Arm], distillation: Mapping[str, Any], teacher: Any) -> None:
    """Raise if no arm uses the teacher or an argument of the whole bench.

    Args:
        arms (list[Arm]): The arms.
        distillation (Mapping): kd arguments and `BUILTIN_ARGUMENTS` of the whole bench.
        teacher (Any): The teacher, or the model that is trained to be the teacher; None without one.

    Raises:
        KDError: If no arm uses one of them.
    """
    keys = {arm.teacher_key for arm in arms}
    for names, key in ((ARGUMENTS, "teacher"), (BUILTIN_ARGUMENTS, "distill_model")):
        # The teachers of builtin arms are scored with kd_classes too
        given = [k for k in distillation if k in names and k != "kd_classes"]
        if given and key not in keys:
            raise KDError(f"'{given[0]}={distillation[given[0]]}' has no effect: no arm in arms reads it.")
    if teacher and not any(arm.teacher_key for arm in arms):
        raise KDError(f"no arm uses the teacher: add {BUILTIN} or {KD} to arms.")
