"""The kd arguments: names, defaults, types, help and checks, and their registration with Ultralytics.

Importing this module changes nothing; [register][ultralytics_kd.config.register] makes the arguments known to every
part of Ultralytics that reads its configuration, in this process.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import ultralytics.cfg as ul_cfg
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT

from .errors import KDError, KDTypeError

TASKS = ("detect",)  # tasks that can be distilled


@dataclass(frozen=True)
class Argument:
    """One kd argument.

    Attributes:
        default (Any): Value when the user gives none.
        type (str): Type as the help prints it.
        help (str): One line of help.
        choices (tuple[str, ...]): Accepted values of an argument of type str; empty for any.
        weight (bool): Whether the argument is a number that must be finite and not negative.
    """

    default: Any
    type: str
    help: str
    choices: tuple[str, ...] = ()
    weight: bool = False


ARGUMENTS: dict[str, Argument] = {
    "teacher": Argument(
        None, "str, optional", "trained model that guides the student: path, name or ul:// URI; unset = plain training"
    ),
    "kd_cls": Argument(2.0, "float", "weight of the class-logit term, 0 switches it off", weight=True),
    "kd_box": Argument(8.0, "float", "weight of the box term, 0 switches it off", weight=True),
    "kd_feat": Argument(0.0, "float", "weight of the feature term, 0 switches it off", weight=True),
    "kd_cls_loss": Argument("bckd", "str", "class-logit loss", ("bckd", "qfl", "kl")),
    "kd_box_loss": Argument("iou", "str", "box loss; ld needs DFL bins on both sides", ("iou", "ld", "l1")),
    "kd_feat_loss": Argument("pkd", "str", "feature loss", ("pkd", "cwd", "mgd", "sl2", "crosskd")),
    "kd_tau": Argument(
        None, "float, optional", "temperature of kl, ld and cwd; unset = each loss's own (1, 10, 1)", weight=True
    ),
    "kd_schedule": Argument("constant", "str", "how the terms fade over the run", ("constant", "linear", "cosine")),
    "kd_init": Argument(
        True, "bool", "whether a student without trained weights begins with a part of the teacher's, if they are alike"
    ),
    "kd_precision": Argument(
        "auto",
        "str",
        "precision that the teacher runs in; auto: half where the student trains in half, else fp32",
        ("auto", "fp32", "fp16", "bf16"),
    ),
    "kd_compile": Argument(False, "bool | str", "whether to compile the teacher, or torch.compile's mode"),
    "kd_cache": Argument(
        False,
        "bool | str",
        "folder with stored answers of the teacher (yolo-kd cache); True: one among the runs, made if absent",
    ),
    "kd_classes": Argument(
        "auto", "str | dict", "teacher class -> student class: auto (by name), a {teacher: student} map or its YAML"
    ),
}
WEIGHTS = ("kd_cls", "kd_box", "kd_feat")
MAX_TAU = 1000  # beyond it probabilities no longer differ in float32
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")  # those of Ultralytics' `compile`
TEMPERED = ("kl", "ld", "cwd")  # losses that kd_tau softens


def register() -> None:
    """Make the kd arguments real Ultralytics arguments, as often as called.

    They then have defaults, are type- and range-checked by `get_cfg`, offered when an argument is misspelt, printed at
    start, and saved in `args.yaml` and checkpoints. `DEFAULT_CFG_DICT` is changed in place because every module of
    Ultralytics holds that very object.
    """
    if "teacher" in DEFAULT_CFG_DICT:
        return
    for name, argument in ARGUMENTS.items():
        DEFAULT_CFG_DICT[name] = argument.default
        setattr(DEFAULT_CFG, name, argument.default)
    ul_cfg.CFG_FLOAT_KEYS = ul_cfg.CFG_FLOAT_KEYS | {k for k, a in ARGUMENTS.items() if a.weight}
    ul_cfg.CFG_BOOL_KEYS = ul_cfg.CFG_BOOL_KEYS | {k for k, a in ARGUMENTS.items() if a.type == "bool"}
    ul_cfg.CFG_STR_KEYS = ul_cfg.CFG_STR_KEYS | {k for k, a in ARGUMENTS.items() if a.choices}
    ul_cfg.CLI_HELP_MSG += help_text()
    # Sweeps over several data sets start `yolo` as a process, from this very list: theirs must know the arguments too
    ul_cfg._YOLO_CLI_COMMAND[:] = [sys.executable, "-m", "ultralytics_kd"]
    stock_check = ul_cfg.check_cfg

    @functools.wraps(stock_check)
    def check_cfg(cfg: dict, hard: bool = True) -> None:
        check_values(cfg)  # first: its errors are sentences for users
        _simplify(cfg)
        try:
            stock_check(cfg, hard)
        except TypeError as e:  # Ultralytics' own sentences, as errors that the command line knows for sentences
            raise KDTypeError(str(e)) from e
        except ValueError as e:
            raise KDError(str(e)) from e

    ul_cfg.check_cfg = check_cfg


def _simplify(cfg: dict) -> None:
    """Turn checked values into those that args.yaml can hold, in place."""
    classes = cfg.get("kd_classes")
    if isinstance(classes, Mapping):
        cfg["kd_classes"] = dict(classes)
    elif isinstance(classes, Path):
        cfg["kd_classes"] = str(classes)
    if isinstance(cfg.get("kd_cache"), Path):
        cfg["kd_cache"] = str(cfg["kd_cache"])
    cfg.update({k: float(cfg[k]) for k, a in ARGUMENTS.items() if a.weight and cfg.get(k) is not None})


def check_values(cfg: Mapping[str, Any]) -> None:
    """Check kd arguments one by one, as far as that needs no other argument.

    Args:
        cfg (Mapping): Arguments; names that are not kd arguments are passed over.

    Raises:
        KDError: If a weight is negative or not finite, or a name is not among the choices.
        KDTypeError: If a value has the wrong type.
    """
    for name, argument in ARGUMENTS.items():
        value = cfg.get(name)
        if value is None:
            if name in cfg and argument.default is not None:
                raise KDTypeError(f"'{name}' is empty: drop it for its default, {argument.default}, or give a value.")
            continue
        if argument.weight and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise KDTypeError(f"'{name}={value}' is of invalid type {type(value).__name__}: it must be a number.")
        if argument.weight and not 0 <= value <= sys.float_info.max:
            raise KDError(f"'{name}={value}' is an invalid value: it must be a finite number, 0 or more.")
        if argument.type == "bool" and not isinstance(value, bool):
            raise KDTypeError(f"'{name}={value}' is of invalid type {type(value).__name__}: it must be True or False.")
        if argument.choices and value not in argument.choices:
            near = get_close_matches(str(value), argument.choices, n=1)
            raise KDError(
                f"'{name}={value}' is an invalid value: valid ones are {', '.join(argument.choices)}"
                f"{f' (did you mean {near[0]}?)' if near else ''}."
            )
    if cfg.get("kd_tau") is not None and not 0 < cfg["kd_tau"] <= MAX_TAU:
        raise KDError(
            f"'kd_tau={cfg['kd_tau']}' is an invalid value: a temperature is greater than 0 and at most {MAX_TAU}."
        )
    compile_mode = cfg.get("kd_compile", False)
    if not isinstance(compile_mode, (bool, str)):
        raise KDTypeError(
            f"'kd_compile={compile_mode}' is of invalid type {type(compile_mode).__name__}: it must be True, False or "
            "a mode of torch.compile."
        )
    if isinstance(compile_mode, str) and compile_mode not in COMPILE_MODES:
        raise KDError(f"'kd_compile={compile_mode}' is an invalid value: valid ones are {', '.join(COMPILE_MODES)}.")
    cache = cfg.get("kd_cache", False)
    if not isinstance(cache, (bool, str, Path)) or cache == "":
        raise KDTypeError(f"'kd_cache={cache}' is invalid: it must be True, False or a folder of stored answers.")
    classes = cfg.get("kd_classes", "auto")
    if not isinstance(classes, (str, Path, Mapping)) or not classes:
        raise KDError(f"'kd_classes={classes}' is invalid: give auto, a {{teacher: student}} map or a YAML with one.")


def whole_number(name: str, value: Any) -> int:
    """Return a value that is a whole number of 1 or more.

    Raises:
        KDError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise KDError(f"'{name}={value}' is an invalid value: it must be a whole number of 1 or more.")
    return value


def check_combination(cfg: Mapping[str, Any]) -> None:
    """Check the arguments of a training against each other.

    Args:
        cfg (Mapping): All arguments of the training.

    Raises:
        KDError: If kd arguments are given without a teacher, a teacher together with `distill_model` or for a task that
            cannot be distilled, or all weights are 0.
    """
    if not has_teacher(cfg):
        given = [k for k, a in ARGUMENTS.items() if k != "teacher" and cfg.get(k, a.default) != a.default]
        if given:
            raise KDError(f"'{given[0]}={cfg[given[0]]}' has no effect without a teacher: add teacher=PATH or drop it.")
        return
    if cfg.get("distill_model") is not None:
        raise KDError(
            "'teacher' and 'distill_model' exclude each other: 'teacher' is ultralytics_kd's distillation, "
            "'distill_model' is Ultralytics' own; keep one of them."
        )
    if cfg.get("task") not in TASKS:
        raise KDError(
            f"task '{cfg.get('task')}' cannot be distilled yet: a teacher is supported for {', '.join(TASKS)}."
        )
    if cfg.get("kd_cache"):
        _check_stored(cfg)
    if not any(cfg.get(k) for k in WEIGHTS):
        raise KDError(
            "all distillation weights are 0: set at least one of kd_cls, kd_box, kd_feat, or drop the teacher."
        )


def _check_stored(cfg: Mapping[str, Any]) -> None:
    """Raise if a term needs more than the detections that a cache stores."""
    reason = "and kd_cache stores detections: drop kd_cache to have the teacher answer on every step, or"
    if cfg.get("kd_feat"):
        raise KDError(f"'kd_feat={cfg['kd_feat']}' compares whole feature maps, {reason} set kd_feat=0.")
    if cfg.get("kd_box") and cfg.get("kd_box_loss") == "ld":
        raise KDError(f"'kd_box_loss=ld' compares distributions over box bins, {reason} use kd_box_loss=iou or l1.")


def idle_arguments(cfg: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each kd argument that was set and changes nothing in a training with a teacher."""
    said = []
    for weight in WEIGHTS:
        loss = f"{weight}_loss"
        if not cfg[weight] and cfg[loss] != ARGUMENTS[loss].default:
            said.append(f"'{loss}={cfg[loss]}' has no effect: the term is off, as {weight}=0.")
    if cfg["kd_cache"]:
        said += [
            f"'{name}={cfg[name]}' has no effect: with kd_cache no teacher runs while the student trains."
            for name in ("kd_precision", "kd_compile")
            if cfg[name] != ARGUMENTS[name].default and not (name == "kd_precision" and cfg["kd_cache"] is True)
        ]
    losses = {cfg[f"{weight}_loss"] for weight in WEIGHTS if cfg[weight]}
    if cfg["kd_tau"] is not None and not losses & set(TEMPERED):
        said.append(f"'kd_tau={cfg['kd_tau']}' has no effect: of the losses only {', '.join(TEMPERED)} are softened.")
    return said


def has_teacher(cfg: Mapping[str, Any]) -> bool:
    """Return whether the arguments name a teacher; 'teacher=', 'teacher=None' and 'teacher=False' do not."""
    teacher = cfg.get("teacher")
    return teacher is not None and teacher is not False and (not isinstance(teacher, str) or bool(teacher.strip()))


def help_text() -> str:
    """Return the kd arguments for the command line's help."""
    lines = [
        f"        {name}={'' if a.default is None else a.default}  {_describe(a)}" for name, a in ARGUMENTS.items()
    ]
    return "\n    Distillation arguments of ultralytics_kd, for 'train':\n" + "\n".join(lines) + "\n"


def cfg_text() -> str:
    """Return the kd arguments in the format of Ultralytics' default.yaml."""
    lines = [f"{name}: {'' if a.default is None else a.default} # {_describe(a)}" for name, a in ARGUMENTS.items()]
    title = "# Distillation settings (ultralytics_kd) "
    return f"{title}{'-' * (120 - len(title))}\n" + "\n".join(lines) + "\n"


def _describe(argument: Argument) -> str:
    """Return type, help and choices in one line."""
    choices = f": {', '.join(argument.choices)}" if argument.choices else ""
    return f"({argument.type}) {argument.help}{choices}"
