"""Checks of kd arguments: each on its own, and all of them together."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..errors import KDError, KDTypeError
from .arguments import (
    ARGUMENTS,
    CLASS_LOSSES,
    COMPILE_MODES,
    GRID_TASKS,
    TASK_WEIGHTS,
    TASKS,
    Argument,
    as_list,
    has_teacher,
)
from .kept_classes import check_keep, check_keeping
from .named_files import is_average
from .sure_boxes import check_boxes_fit, check_sure_boxes
from .teacher_size import SIZED_TASKS, check_scored_larger, check_teacher_size
from .user_code import load_loss, names_library_model, names_object

EMPTY_TEACHER = "teacher is an empty text, perhaps an unset variable: name a teacher, or train with teacher=None."
MAX_DEPTH, MAX_PARTS = 20, 100_000  # of the lists and maps in an argument


# One argument at a time -----------------------------------------------------------------------------------------------
def check_values(cfg: Mapping[str, Any]) -> None:
    """Check each kd argument on its own.

    Args:
        cfg (Mapping): Arguments; names that are not kd arguments are skipped.

    Raises:
        KDError: If a weight is negative or not finite, or a name is not among the choices.
        KDTypeError: If a value has the wrong type.
    """
    check_plain(cfg)
    for name, argument in ARGUMENTS.items():
        if cfg.get(name) is not None:
            _check_value(name, cfg[name], argument)
        elif name in cfg and argument.default is not None:
            raise KDTypeError(f"'{name}' is empty: drop it for its default, {argument.default}, or give a value.")
    _check_weight(cfg.get("kd_weight"))
    _check_compile(cfg.get("kd_compile", False))
    init = cfg.get("kd_init", "auto")
    if not isinstance(init, bool) and init not in ("fit", "auto"):
        raise KDTypeError(f"'kd_init={init}' is invalid: it must be True, False, fit or auto.")
    cache = cfg.get("kd_cache", False)
    if not isinstance(cache, (bool, str, Path)) or cache == "":
        raise KDTypeError(f"'kd_cache={cache}' is invalid: it must be True, False or a folder of stored answers.")
    _check_teacher_weights(cfg.get("kd_teacher_weights"))
    check_teacher_size(cfg.get("kd_teacher_imgsz"))
    _check_unlabeled(cfg)
    check_sure_boxes(cfg.get("kd_unlabeled_boxes"))
    check_keep(cfg)
    classes = cfg.get("kd_classes", "auto")
    if not isinstance(classes, (str, Path, Mapping)) or not classes:
        raise KDError(f"'kd_classes={classes}' is invalid: give auto, a {{teacher: student}} map or a YAML with one.")


def _check_value(name: str, value: Any, argument: Argument) -> None:
    """Check a value against the type and the choices of its argument."""
    if argument.number and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise KDTypeError(f"'{name}={value}' is of invalid type {type(value).__name__}: it must be a number.")
    if argument.number and not 0 <= value <= sys.float_info.max:
        raise KDError(f"'{name}={value}' is an invalid value: it must be a finite number, 0 or more.")
    if argument.number:
        _check_bounds(name, value, argument)
    if argument.type == "bool" and not isinstance(value, bool):
        raise KDTypeError(f"'{name}={value}' is of invalid type {type(value).__name__}: it must be True or False.")
    if argument.choices and value not in argument.choices and not (argument.user_code and names_object(value)):
        near = get_close_matches(str(value), argument.choices, n=1)
        raise KDError(
            f"'{name}={value}' is an invalid value: valid ones are {', '.join(argument.choices)}"
            f"{', and module:name of your own' if argument.user_code else ''}"
            f"{f' (did you mean {near[0]}?)' if near else ''}."
        )


def _check_bounds(name: str, value: float, argument: Argument) -> None:
    """Check a number against the bounds of its argument."""
    if argument.bounds is None:
        return
    above, most = argument.bounds
    if not above < value <= most:
        raise KDError(f"'{name}={value}' is an invalid value: it must be greater than {above} and at most {most}.")


def _check_weight(share: Any) -> None:
    """Check `kd_weight`: None, auto, or a share of the base loss's gradient."""
    if share is None or share == "auto":
        return
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise KDTypeError(f"'kd_weight={share}' is invalid: it must be auto or a number.")
    _check_bounds("kd_weight", share, ARGUMENTS["kd_weight"])


def _check_compile(mode: Any) -> None:
    """Check `kd_compile`: a bool, or a mode of torch.compile."""
    if not isinstance(mode, (bool, str)):
        raise KDTypeError(
            f"'kd_compile={mode}' is of invalid type {type(mode).__name__}: it must be True, False or a mode of "
            "torch.compile."
        )
    if isinstance(mode, str) and mode not in COMPILE_MODES:
        raise KDError(f"'kd_compile={mode}' is an invalid value: valid ones are {', '.join(COMPILE_MODES)}.")


def _check_teacher_weights(weights: Any) -> None:
    """Check `kd_teacher_weights`: None, or positive numbers."""
    if weights is None:
        return
    numbers = isinstance(weights, (list, tuple)) and all(
        isinstance(w, (int, float)) and not isinstance(w, bool) and 0 < w <= sys.float_info.max for w in weights
    )
    if not numbers or not weights:
        raise KDError(
            f"'kd_teacher_weights={weights}' is invalid: give a positive number for each teacher, e.g. [2,1]."
        )


def _check_unlabeled(cfg: Mapping[str, Any]) -> None:
    """Check the places of the images without labels."""
    given = cfg.get("kd_unlabeled")
    places = as_list(given)
    if given is not None and not (places and all(isinstance(p, (str, Path)) and str(p).strip() for p in places)):
        raise KDTypeError(f"'kd_unlabeled={given}' is invalid: give a folder of images, a list of files, or several.")


# All arguments of a training ------------------------------------------------------------------------------------------
def check_combination(cfg: Mapping[str, Any]) -> None:
    """Check the arguments of a training against each other.

    Args:
        cfg (Mapping): All arguments of the training.

    Raises:
        KDError: If the teacher is an empty text, or if kd arguments are given without a teacher. With a teacher: if
            `distill_model` is given too, if the task cannot be distilled, if arguments conflict, or if all weights
            are 0.
    """
    if not has_teacher(cfg):
        if isinstance(cfg.get("teacher"), str):
            raise KDError(EMPTY_TEACHER)
        changed = [k for k, a in ARGUMENTS.items() if k != "teacher" and cfg.get(k, a.default) != a.default]
        if changed:
            raise without_teacher(changed[0], cfg[changed[0]])
        return
    if cfg.get("distill_model") is not None:
        raise KDError(
            "'teacher' and 'distill_model' exclude each other: 'teacher' is ultralytics_kd's distillation, "
            "'distill_model' is Ultralytics' own; keep one of them."
        )
    if cfg.get("task") not in TASKS:
        raise KDError(f"task '{cfg.get('task')}' cannot be distilled: a teacher is supported for {', '.join(TASKS)}.")
    if cfg.get("kd_cache"):
        _check_cache(cfg)
    if cfg.get("kd_teacher_imgsz") is not None:
        _check_teacher_imgsz(cfg)
    if cfg.get("kd_unlabeled_boxes") is not None:
        check_boxes_fit(cfg)
    if cfg.get("kd_weight") is not None and cfg.get("compile"):
        raise KDError(
            "'kd_weight' and 'compile' exclude each other: a compiled student hides the maps at which gradients are "
            "compared; drop one of them."
        )
    check_keeping(cfg)
    weights = TASK_WEIGHTS[cfg["task"]]
    if not any(cfg.get(k) for k in weights):
        raise KDError(f"all distillation weights are 0: set at least one of {', '.join(weights)}, or drop the teacher.")
    _check_losses(cfg)


def check_own_command(given: Iterable[str]) -> None:
    """Raise if a training is given an argument that only `yolo-kd cache` has.

    Args:
        given (Iterable[str]): Names of the arguments.

    Raises:
        KDError: If an argument of `yolo-kd cache` is among them.
    """
    for name in given:
        if str(name).startswith("kd_cache_"):  # a recipe's name may be a number, which another check refuses
            raise KDError(
                f"'{name}' is an argument of 'yolo-kd cache', which stores a teacher's answers: give it there, and "
                "train with kd_cache=FOLDER."
            )


def check_teacher_given(given: Collection[str], arguments: Mapping[str, Any]) -> None:
    """Raise if a command or call gives a kd argument, even with its default value, but no teacher.

    A call that gives `teacher=None` itself is left to `check_combination`: Ultralytics' tuner passes every argument on.

    Args:
        given (Collection[str]): Names that the command or call itself gives, without those of a `cfg` file.
        arguments (Mapping): All arguments of the training. A run that is resumed has its teacher in its checkpoint.

    Raises:
        KDError: If there is no teacher.
    """
    if "teacher" in given or arguments.get("resume") or has_teacher(arguments):
        return
    for name in ARGUMENTS:
        if name in given:
            raise without_teacher(name, arguments[name])


def without_teacher(name: str, value: Any) -> KDError:
    """Return the error for a kd argument that is given without a teacher.

    Args:
        name (str): The argument.
        value (Any): Its value.
    """
    return KDError(f"'{name}={value}' has no effect without a teacher: add teacher=PATH or drop it.")


def _check_losses(cfg: Mapping[str, Any]) -> None:
    """Check that each loss suits the task."""
    task, asked = cfg["task"], cfg.get("kd_cls_loss", "auto")
    suitable = CLASS_LOSSES[task]
    if suitable and asked not in {"auto", *suitable} and not names_object(asked):
        raise KDError(f"'kd_cls_loss={asked}' does not suit task '{task}': use {' or '.join(suitable)}.")
    if cfg.get("kd_feat") and task not in GRID_TASKS and cfg.get("kd_feat_loss") in {"crosskd", "sl2"}:
        raise KDError(
            f"'kd_feat_loss={cfg['kd_feat_loss']}' needs the anchor points of a detector, which task '{task}' lacks: "
            "use pkd, cwd or mgd."
        )


def check_user_losses(cfg: Mapping[str, Any]) -> None:
    """Import the user's own losses that a training uses, so that a fault in one shows before anything is written.

    Args:
        cfg (Mapping): All arguments of the training.

    Raises:
        KDError: If a loss cannot be imported.
    """
    for weight in TASK_WEIGHTS[cfg["task"]]:
        loss = cfg.get(f"{weight}_loss")
        if cfg.get(weight) and names_object(loss):
            load_loss(f"{weight}_loss", str(loss))


def _check_teacher_imgsz(cfg: Mapping[str, Any]) -> None:
    """Check that the teacher can see larger images than the student."""
    given, imgsz = f"'kd_teacher_imgsz={cfg['kd_teacher_imgsz']}'", cfg.get("imgsz")
    if cfg["task"] not in SIZED_TASKS:
        raise KDError(f"{given} is supported for {' and '.join(SIZED_TASKS)}, not for task '{cfg['task']}': drop it.")
    if not cfg.get("kd_cache"):
        _check_two_sizes(cfg, given)
    sides = imgsz if isinstance(imgsz, (list, tuple)) else [imgsz]
    if sides and all(isinstance(side, int) for side in sides):  # Ultralytics refuses others later
        check_scored_larger(cfg["kd_teacher_imgsz"], imgsz)


def _check_two_sizes(cfg: Mapping[str, Any], given: str) -> None:
    """Check that batches can show one scene at two sizes, to a teacher that runs.

    Args:
        cfg (Mapping): All arguments of the training.
        given (str): The argument that asks for two sizes, and its value.
    """
    for name in ("rect", "cutmix", "copy_paste", "augmentations"):
        if cfg.get(name) and not (name == "copy_paste" and cfg["task"] == "classify"):
            raise KDError(
                f"{given} and '{name}' exclude each other: an image would show another scene at each size; drop one of "
                "them."
            )
    if cfg["task"] == "detect":
        _check_set_losses(cfg, given)


def _check_set_losses(cfg: Mapping[str, Any], given: str) -> None:
    """Check that no loss compares anchor points, which images of two sizes do not share.

    Args:
        cfg (Mapping): All arguments of the training.
        given (str): The argument that makes the teacher answer with detections, and its value.
    """
    from ..losses.box import BIN_LOSSES, BOX_LOSSES  # here, as Ultralytics may not be fully imported before a training

    reason = "needs the teacher's answer at the student's anchor points"
    loss = cfg.get("kd_feat_loss")
    if cfg.get("kd_feat") and loss in {"sl2", "crosskd"}:
        raise KDError(f"'kd_feat_loss={loss}' {reason}, and with {given} it answers other images: use pkd, cwd or mgd.")
    loss = cfg.get("kd_box_loss")
    if cfg.get("kd_box") and loss in BIN_LOSSES:
        others = " or ".join(BOX_LOSSES)
        raise KDError(f"'kd_box_loss={loss}' {reason}, and with {given} it answers other images: use {others}.")


def _check_cache(cfg: Mapping[str, Any]) -> None:
    """Check that the terms need nothing but stored detections."""
    if cfg.get("task") != "detect":
        raise KDError(f"'kd_cache' stores detections, and task '{cfg.get('task')}' learns more than these: drop it.")
    if is_average(cfg.get("teacher")):
        raise KDError("'kd_cache' stores answers once, and teacher=ema changes with the student: drop one.")
    if cfg.get("kd_teacher_weights") is not None:
        raise KDError(
            "'kd_cache' and 'kd_teacher_weights' exclude each other: stored answers weigh all teachers alike."
        )
    backbone = next((each for each in as_list(cfg.get("teacher")) if names_library_model(each)), None)
    if backbone is not None:
        raise KDError(
            f"'kd_cache' stores detections, and teacher={backbone} teaches by features of the augmented images: drop "
            "one."
        )
    reason = "and kd_cache stores detections: drop kd_cache so that the teacher runs on every step, or"
    if cfg.get("kd_feat"):
        raise KDError(f"'kd_feat={cfg['kd_feat']}' compares whole feature maps, {reason} set kd_feat=0.")
    from ..losses.box import BIN_LOSSES, BOX_LOSSES  # here, as Ultralytics may not be fully imported before a training

    loss = cfg.get("kd_box_loss")
    if cfg.get("kd_box") and loss in BIN_LOSSES:
        others = " or ".join(BOX_LOSSES)
        raise KDError(f"'kd_box_loss={loss}' compares distributions over box bins, {reason} use kd_box_loss={others}.")


# Arguments of any command ---------------------------------------------------------------------------------------------
def check_plain(given: Mapping[str, Any]) -> None:
    """Raise if the name of an argument is not a text, or its value is too large or nested too deeply to print.

    A list may contain itself, and a few lines of YAML aliases can stand for a huge list.

    Args:
        given (Mapping): Arguments.

    Raises:
        KDTypeError: If a name is not a text, or a value has too many parts or is nested too deeply.
    """
    for name, value in given.items():
        if not isinstance(name, str):
            raise KDTypeError(f"the name of an argument must be a text, not {name!r} ({type(name).__name__}).")
        depth, level = 0, [value]
        while level:
            if depth > MAX_DEPTH or len(level) > MAX_PARTS:
                raise KDTypeError(f"'{name}' holds a list or map that is nested too deeply or has too many parts.")
            depth, level = depth + 1, list(islice(chain.from_iterable(map(_parts, level)), MAX_PARTS + 1))


def _parts(value: Any) -> Iterable[Any]:
    """Return the keys and values of a map, or the items of a list."""
    if isinstance(value, Mapping):
        return chain(value.keys(), value.values())
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()


def check_names(command: str, given: Iterable[str], allowed: Collection[str]) -> None:
    """Raise if a command does not know an argument.

    Args:
        command (str): The command, e.g. "yolo-kd cache".
        given (Iterable[str]): Names of the arguments.
        allowed (Collection[str]): Names that it knows.

    Raises:
        KDError: If a name is not among `allowed`.
    """
    for name in given:
        if name not in allowed:
            raise KDError(f"'{name}' is not an argument of '{command}': valid ones are {', '.join(allowed)}.")


def whole_number(name: str, value: Any) -> int:
    """Return a value that is a whole number of 1 or more.

    Args:
        name (str): Name of the argument, for errors.
        value (Any): Its value.

    Raises:
        KDError: If it is not a whole number of 1 or more, or has more than 64 bits.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= sys.maxsize:
        raise KDError(
            f"'{name}={value}' is an invalid value: it must be a whole number of 1 or more, and of 64 bits at most."
        )
    return value
