"""The kd arguments: names, defaults, types, help and checks.

Importing this module changes nothing; `registration.register` makes the arguments known to Ultralytics.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import ultralytics.cfg as ul_cfg

from ..errors import KDError, KDTypeError
from .user_code import import_object, names_object

# Names of the terms of each task; those of tasks that the installed Ultralytics lacks are left out
TASK_WEIGHTS: dict[str, tuple[str, ...]] = {
    task: weights
    for task, weights in {
        "detect": ("kd_cls", "kd_box", "kd_feat"),
        "segment": ("kd_cls", "kd_box", "kd_mask", "kd_feat"),
        "pose": ("kd_cls", "kd_box", "kd_kpt", "kd_feat"),
        "obb": ("kd_cls", "kd_box", "kd_feat"),
        "classify": ("kd_cls", "kd_feat"),
        "semantic": ("kd_cls", "kd_feat"),
        "depth": ("kd_depth", "kd_feat"),
    }.items()
    if task in ul_cfg.TASKS
}
TASKS = tuple(TASK_WEIGHTS)  # tasks that can be distilled
GRID_TASKS = ("detect", "segment", "pose", "obb")  # those whose heads score classes and boxes at anchor points
# Losses on class logits by task, the first is its own: detectors score classes by sigmoids, others by a softmax
CLASS_LOSSES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(GRID_TASKS, ("bckd", "qfl", "kl")),
    "classify": ("kl", "dkd", "dist"),
    "semantic": ("kl", "cwd"),
    "depth": (),
}


@dataclass(frozen=True)
class Argument:
    """One kd argument.

    Attributes:
        default (Any): Value when the user gives none.
        type (str): Type as the help prints it.
        help (str): One line of help.
        choices (tuple[str, ...]): Accepted values of an argument of type str; empty for any.
        weight (bool): Whether the argument is a number that must be finite and not negative.
        own (bool): Whether `module:name` of the user's own code is accepted beside the choices.
    """

    default: Any
    type: str
    help: str
    choices: tuple[str, ...] = ()
    weight: bool = False
    own: bool = False


ARGUMENTS: dict[str, Argument] = {
    "teacher": Argument(
        None,
        "str | list, optional",
        "trained model that guides the student: path, name, ul:// URI, module:object, ema, or a list of such; unset = "
        "plain training",
    ),
    "kd_teacher_weights": Argument(None, "list, optional", "weight of each teacher of a list; unset = equal"),
    "kd_trust_teacher": Argument(
        False, "bool", "whether teachers may run code when they are opened; True only if you trust where they come from"
    ),
    "kd_cls": Argument(2.0, "float", "weight of the class-logit term, 0 switches it off", weight=True),
    "kd_box": Argument(8.0, "float", "weight of the box term, 0 switches it off", weight=True),
    "kd_mask": Argument(8.0, "float", "weight of the mask term (segment), 0 switches it off", weight=True),
    "kd_kpt": Argument(12.0, "float", "weight of the keypoint term (pose), 0 switches it off", weight=True),
    "kd_depth": Argument(1.0, "float", "weight of the depth term (depth), 0 switches it off", weight=True),
    "kd_feat": Argument(0.0, "float", "weight of the feature term, 0 switches it off", weight=True),
    "kd_cls_loss": Argument(
        "auto",
        "str",
        "class-logit loss; auto: bckd for detectors, kl for classify and semantic",
        ("auto", "bckd", "qfl", "kl", "dkd", "dist", "cwd"),
    ),
    "kd_box_loss": Argument(
        "iou", "str", "box loss; ld needs DFL bins on both sides; iou is ProbIoU for obb", ("iou", "ld", "l1")
    ),
    "kd_feat_loss": Argument(
        "pkd", "str", "feature loss, or module:name of your own", ("pkd", "cwd", "mgd", "sl2", "crosskd"), own=True
    ),
    "kd_tau": Argument(
        None,
        "float, optional",
        "temperature of all terms; unset = each loss's own (kl, dist and cwd 1, ld 10; classify: kl and dkd 4)",
        weight=True,
    ),
    "kd_cls_tau": Argument(
        None, "float, optional", "temperature of kd_cls (kl, dkd, dist, cwd); unset = kd_tau", weight=True
    ),
    "kd_box_tau": Argument(None, "float, optional", "temperature of kd_box (ld); unset = kd_tau", weight=True),
    "kd_feat_tau": Argument(None, "float, optional", "temperature of kd_feat (cwd); unset = kd_tau", weight=True),
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
    "kd_unlabeled": Argument(
        None, "str | list, optional", "folder or list of extra images without labels, which bring teacher terms only"
    ),
    "kd_unlabeled_ratio": Argument(1.0, "float", "images without labels for each labelled one in a batch", weight=True),
    "kd_classes": Argument(
        "auto", "str | dict", "teacher class -> student class: auto (by name), a {teacher: student} map or its YAML"
    ),
}
WEIGHTS = ("kd_cls", "kd_box", "kd_mask", "kd_kpt", "kd_depth", "kd_feat")
MAX_TAU = 1000  # beyond it probabilities no longer differ in float32
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")  # those of Ultralytics' `compile`
TEMPERED = ("kl", "dkd", "dist", "ld", "cwd")  # losses that kd_tau softens
MAX_RATIO = 100  # images without labels for each labelled one
MAX_DEPTH, MAX_PARTS = 20, 100_000  # of a list or map that an argument holds
MAX_NUMBER = 10**1000  # Python refuses to write some larger ones down


def check_values(cfg: Mapping[str, Any]) -> None:
    """Check kd arguments one by one, as far as that needs no other argument.

    Args:
        cfg (Mapping): Arguments; names that are not kd arguments are passed over.

    Raises:
        KDError: If a weight is negative or not finite, or a name is not among the choices.
        KDTypeError: If a value has the wrong type.
    """
    check_plain(cfg)
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
        if argument.choices and value not in argument.choices and not (argument.own and names_object(value)):
            near = get_close_matches(str(value), argument.choices, n=1)
            raise KDError(
                f"'{name}={value}' is an invalid value: valid ones are {', '.join(argument.choices)}"
                f"{', and module:name of your own' if argument.own else ''}"
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
    _check_teachers(cfg)
    _check_unlabeled(cfg)
    classes = cfg.get("kd_classes", "auto")
    if not isinstance(classes, (str, Path, Mapping)) or not classes:
        raise KDError(f"'kd_classes={classes}' is invalid: give auto, a {{teacher: student}} map or a YAML with one.")


def check_plain(given: Mapping[str, Any]) -> None:
    """Raise if an argument holds what neither a message nor args.yaml can hold: huge numbers, endless lists.

    Args:
        given (Mapping): Arguments.

    Raises:
        KDTypeError: If one does, or is not named by a text.
    """
    for name, value in given.items():
        if not isinstance(name, str):
            raise KDTypeError(f"arguments have names, and one is called by a {type(name).__name__}.")
        parts, count = [(value, 0)], 0
        while parts:
            part, depth = parts.pop()
            count += 1
            if depth > MAX_DEPTH or count > MAX_PARTS:
                raise KDTypeError(f"'{name}' holds a list or map that is nested too deeply or has too many parts.")
            if isinstance(part, int) and abs(part) >= MAX_NUMBER:
                raise KDTypeError(f"'{name}' holds a number of more than 1000 digits.")
            if isinstance(part, Mapping):
                part = [*part.keys(), *part.values()]
            if isinstance(part, (list, tuple, set, frozenset)):
                parts += [(inner, depth + 1) for inner in part]


def _check_teachers(cfg: Mapping[str, Any]) -> None:
    """Raise if weights of teachers are no weights."""
    weights = cfg.get("kd_teacher_weights")
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
    """Raise if the images without labels are no path or list of paths, or their ratio makes no sense."""
    folder = listed(cfg.get("kd_unlabeled"))
    places = folder if isinstance(folder, list) else [folder]
    if folder is not None and not (places and all(isinstance(f, (str, Path)) and str(f).strip() for f in places)):
        raise KDTypeError(f"'kd_unlabeled={folder}' is invalid: give a folder of images, a list of files, or several.")
    ratio = cfg.get("kd_unlabeled_ratio", 1.0)
    if ratio is not None and not 0 < ratio <= MAX_RATIO:
        raise KDError(
            f"'kd_unlabeled_ratio={ratio}' is an invalid value: it must be greater than 0 and at most {MAX_RATIO}."
        )


def as_list(value: Any) -> list[Any]:
    """Return a value that may be a list as one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def listed(value: Any) -> Any:
    """Return an argument that may be a list, with one in a text, as a command line has it, made a list.

    Args:
        value (Any): The argument; "[a.pt,b.pt]" becomes ["a.pt", "b.pt"].
    """
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("[") and text.endswith("]"):
        return [part for part in (p.strip().strip("'\"") for p in text[1:-1].split(",")) if part]
    return list(value) if isinstance(value, tuple) else value


def whole_number(name: str, value: Any) -> int:
    """Return a value that is a whole number of 1 or more.

    Raises:
        KDError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= sys.maxsize:
        raise KDError(
            f"'{name}={value}' is an invalid value: it must be a whole number of 1 or more, and of 64 bits at most."
        )
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
        raise KDError(f"task '{cfg.get('task')}' cannot be distilled: a teacher is supported for {', '.join(TASKS)}.")
    if cfg.get("kd_cache"):
        _check_stored(cfg)
    task_weights = TASK_WEIGHTS[cfg["task"]]
    if not any(cfg.get(k) for k in task_weights):
        raise KDError(
            f"all distillation weights are 0: set at least one of {', '.join(task_weights)}, or drop the teacher."
        )
    _check_losses(cfg)


def _check_losses(cfg: Mapping[str, Any]) -> None:
    """Raise if a loss does not suit the task."""
    task, asked = cfg["task"], cfg.get("kd_cls_loss", "auto")
    suitable = CLASS_LOSSES[task]
    if suitable and asked not in {"auto", *suitable}:
        raise KDError(f"'kd_cls_loss={asked}' does not suit task '{task}': use {' or '.join(suitable)}.")
    if cfg.get("kd_feat") and task not in GRID_TASKS and cfg.get("kd_feat_loss") in {"crosskd", "sl2"}:
        raise KDError(
            f"'kd_feat_loss={cfg['kd_feat_loss']}' needs the anchor points of a detector, which task '{task}' has not: "
            "use pkd, cwd or mgd."
        )


def own_loss(text: str) -> Any:
    """Return the feature loss of the user's own code that `kd_feat_loss` names.

    Args:
        text (str): `module:name` of a function, or of a class that makes an nn.Module.

    Raises:
        KDError: If it cannot be imported or called.
    """
    found = import_object("kd_feat_loss", text)
    if not callable(found):
        raise KDError(f"kd_feat_loss={text} is no function and no class, but a {type(found).__name__}.")
    return found


def class_loss(args: Any, task: str) -> str:
    """Return the loss on class logits that the arguments mean for a task.

    Args:
        args (Namespace): Arguments of the training.
        task (str): Its task.
    """
    return CLASS_LOSSES[task][0] if args.kd_cls_loss == "auto" else args.kd_cls_loss


def _check_stored(cfg: Mapping[str, Any]) -> None:
    """Raise if a term needs more than the detections that a cache stores."""
    if cfg.get("task") != "detect":
        raise KDError(f"'kd_cache' stores detections, which is not all that task '{cfg.get('task')}' learns: drop it.")
    if cfg.get("teacher") == "ema":
        raise KDError("'kd_cache' stores what a teacher says once, and teacher=ema changes with the student: drop one.")
    if cfg.get("kd_unlabeled"):
        raise KDError(
            "'kd_cache' has answers to the images of data= alone: drop it, so that kd_unlabeled's are answered too."
        )
    reason = "and kd_cache stores detections: drop kd_cache to have the teacher answer on every step, or"
    if cfg.get("kd_feat"):
        raise KDError(f"'kd_feat={cfg['kd_feat']}' compares whole feature maps, {reason} set kd_feat=0.")
    if cfg.get("kd_box") and cfg.get("kd_box_loss") == "ld":
        raise KDError(f"'kd_box_loss=ld' compares distributions over box bins, {reason} use kd_box_loss=iou or l1.")


def idle_arguments(cfg: Mapping[str, Any], own_precision: bool = False) -> list[str]:
    """Return a sentence for each kd argument that was set and changes nothing in a training with a teacher.

    Args:
        cfg (Mapping): All arguments of the training.
        own_precision (bool): Whether the teacher runs as it likes.
    """
    said, task = [], cfg["task"]
    used = TASK_WEIGHTS[task]
    for weight in WEIGHTS:
        loss = f"{weight}_loss"
        if weight not in used and cfg[weight] != ARGUMENTS[weight].default:
            said.append(f"'{weight}={cfg[weight]:g}' has no effect: task '{task}' has the terms {', '.join(used)}.")
        if loss in cfg and cfg[loss] != ARGUMENTS[loss].default and (weight not in used or not cfg[weight]):
            said.append(f"'{loss}={cfg[loss]}' has no effect: the term is off, as {weight}=0.")
    if not cfg["kd_unlabeled"] and cfg["kd_unlabeled_ratio"] != ARGUMENTS["kd_unlabeled_ratio"].default:
        said.append(f"'kd_unlabeled_ratio={cfg['kd_unlabeled_ratio']:g}' has no effect without kd_unlabeled.")
    reason = "with kd_cache no teacher runs while the student trains" if cfg["kd_cache"] else ""
    reason = reason or ("this teacher runs in a precision of its own" if own_precision else "")
    if reason:
        said += [
            f"'{name}={cfg[name]}' has no effect: {reason}."
            for name in ("kd_precision", "kd_compile")
            if cfg[name] != ARGUMENTS[name].default and not (name == "kd_precision" and cfg["kd_cache"] is True)
        ]
    losses = {cfg[f"{weight}_loss"] for weight in used if cfg[weight] and f"{weight}_loss" in cfg}
    if cfg["kd_cls_loss"] == "auto" and "kd_cls" in used:
        losses.add(CLASS_LOSSES[task][0])
    if cfg["kd_tau"] is not None and not losses & set(TEMPERED):
        said.append(f"'kd_tau={cfg['kd_tau']}' has no effect: of the losses only {', '.join(TEMPERED)} are softened.")
    return said


def temperature(args: Any, term: str) -> float | None:
    """Return the temperature that the arguments give a term; None for the loss's own.

    Args:
        args (Namespace): Arguments of the training.
        term (str): "kd_cls", "kd_box" or "kd_feat".
    """
    own: float | None = getattr(args, f"{term}_tau", None)
    return getattr(args, "kd_tau", None) if own is None else own


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
