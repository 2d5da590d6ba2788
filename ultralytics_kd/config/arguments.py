"""The kd arguments: names, defaults, types and help.

Importing this module changes nothing; `registration.register` makes the arguments known to Ultralytics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ultralytics.cfg as ul_cfg

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
GRID_TASKS = ("detect", "segment", "pose", "obb")  # tasks whose heads score classes and boxes at anchor points
# Losses on class logits by task, its default first: detectors score classes by sigmoids, other heads by a softmax
CLASS_LOSSES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(GRID_TASKS, ("bckd", "qfl", "kl")),
    "classify": ("kl", "dkd", "dist"),
    "semantic": ("kl", "cwd"),
    "depth": (),
}
# Losses of each term that take a temperature
TEMPERED: dict[str, tuple[str, ...]] = {
    "kd_cls": ("kl", "dkd", "dist", "cwd"),
    "kd_box": ("ld",),
    "kd_feat": ("cwd",),
}


@dataclass(frozen=True)
class Argument:
    """One kd argument.

    Attributes:
        default (Any): Value when the user gives none.
        type (str): Type as the help prints it.
        help (str): One line of help.
        choices (tuple[str, ...]): Accepted values of an argument of type str; empty for any.
        number (bool): Whether the argument is a number, which must be finite and not negative.
        user_code (bool): Whether `module:name` of the user's own code is accepted beside the choices.
    """

    default: Any
    type: str
    help: str
    choices: tuple[str, ...] = ()
    number: bool = False
    user_code: bool = False


ARGUMENTS: dict[str, Argument] = {
    "teacher": Argument(
        None,
        "str | list, optional",
        "trained model that guides the student: path, name, ul:// URI, timm:NAME, module:object, ema, or a list of "
        "such; unset = plain training",
    ),
    "kd_teacher_weights": Argument(None, "list, optional", "weight of each teacher of a list; unset = equal"),
    "kd_teacher_imgsz": Argument(
        None,
        "float, optional",
        "larger images for the teacher (detect, classify): their size in pixels or, up to 16, a factor of imgsz; "
        "unset = the student's",
    ),
    "kd_trust_teacher": Argument(
        False, "bool", "whether teachers may run code when they are opened; True only if you trust where they come from"
    ),
    "kd_cls": Argument(2.0, "float", "weight of the class-logit term, 0 switches it off", number=True),
    "kd_box": Argument(8.0, "float", "weight of the box term, 0 switches it off", number=True),
    "kd_mask": Argument(8.0, "float", "weight of the mask term (segment), 0 switches it off", number=True),
    "kd_kpt": Argument(12.0, "float", "weight of the keypoint term (pose), 0 switches it off", number=True),
    "kd_depth": Argument(1.0, "float", "weight of the depth term (depth), 0 switches it off", number=True),
    "kd_feat": Argument(0.0, "float", "weight of the feature term, 0 switches it off; 1 with timm:NAME", number=True),
    "kd_cls_loss": Argument(
        "auto",
        "str",
        "class-logit loss, or module:name of your own; auto: bckd for detectors, kl for classify and semantic",
        ("auto", "bckd", "qfl", "kl", "dkd", "dist", "cwd"),
        user_code=True,
    ),
    "kd_box_loss": Argument(
        "iou",
        "str",
        "box loss, or module:name of your own; ld needs DFL bins on both sides; iou is ProbIoU for obb",
        ("iou", "ld", "l1"),
        user_code=True,
    ),
    "kd_feat_loss": Argument(
        "pkd",
        "str",
        "feature loss, or module:name of your own",
        ("pkd", "cwd", "mgd", "sl2", "crosskd"),
        user_code=True,
    ),
    "kd_tau": Argument(
        None,
        "float, optional",
        "temperature of all terms; unset = each loss's own (kl, dist and cwd 1, ld 10; classify: kl and dkd 4)",
        number=True,
    ),
    "kd_cls_tau": Argument(
        None, "float, optional", "temperature of kd_cls (kl, dkd, dist, cwd); unset = kd_tau", number=True
    ),
    "kd_box_tau": Argument(None, "float, optional", "temperature of kd_box (ld); unset = kd_tau", number=True),
    "kd_feat_tau": Argument(None, "float, optional", "temperature of kd_feat (cwd); unset = kd_tau", number=True),
    "kd_weight": Argument(
        None,
        "float | str, optional",
        "auto: the gradient of each term is held at a share of the labels', and a term that does not agree with them "
        "is taken back; a number is that share; unset = constant weights",
    ),
    "kd_schedule": Argument("constant", "str", "how the terms fade over the run", ("constant", "linear", "cosine")),
    "kd_init": Argument(
        "auto",
        "bool | str",
        "weights that the student begins with. True: if it has none, a part of the teacher's, if they are alike; fit: "
        "refitted to the teacher's activations; auto: as fit, and a trained student takes them if its loss falls",
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
    "kd_unlabeled_ratio": Argument(1.0, "float", "images without labels for each labelled one in a batch", number=True),
    "kd_unlabeled_boxes": Argument(
        None,
        "bool | float, optional",
        "confidence from which on the teacher's boxes are labels of images without labels (detect, obb); True: 0.5; "
        "unset = teacher terms only",
    ),
    "kd_keep": Argument(
        None,
        "bool | str, optional",
        "new classes without forgetting (detect): the student keeps the classes of model= that the data do not label. "
        "True or old: those come first in its names; data: the data's come first",
    ),
    "kd_keep_data": Argument(
        None, "str, optional", "data.yaml of the old classes, whose val set is scored at the end (with kd_keep)"
    ),
    "kd_classes": Argument(
        "auto", "str | dict", "teacher class -> student class: auto (by name), a {teacher: student} map or its YAML"
    ),
}
WEIGHTS = ("kd_cls", "kd_box", "kd_mask", "kd_kpt", "kd_depth", "kd_feat")
AUTO_SHARE = 1.0  # norm of a term's gradient over that of the base loss, with kd_weight=auto and the default weight


def as_list(value: Any) -> list[Any]:
    """Return the value of an argument as a list.

    Args:
        value (Any): A list, a tuple, a text as on a command line ("[a.pt,b.pt]"), or a single element.

    Examples:
        >>> as_list("[a.pt,b.pt]"), as_list("a.pt"), as_list((1, 2))
        (['a.pt', 'b.pt'], ['a.pt'], [1, 2])
    """
    value = parse_list(value)
    return list(value) if isinstance(value, list) else [value]


def parse_list(value: Any) -> Any:
    """Parse the value of an argument that may be a list; a single value stays as it is.

    Args:
        value (Any): The value; "[a.pt,b.pt]" becomes ["a.pt", "b.pt"].
    """
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("[") and text.endswith("]"):
        return [part for part in (p.strip().strip("'\"") for p in text[1:-1].split(",")) if part]
    return list(value) if isinstance(value, tuple) else value


def class_loss(args: Any, task: str) -> str:
    """Return the loss on class logits that a task is trained with.

    Args:
        args (Namespace): Arguments of the training.
        task (str): Its task.
    """
    return CLASS_LOSSES[task][0] if args.kd_cls_loss == "auto" else args.kd_cls_loss


def temperature(args: Any, term: str) -> float | None:
    """Return the temperature of a term; None for the default of its loss.

    The temperature of one term, such as `kd_cls_tau`, overrides `kd_tau`, which is for all terms.

    Args:
        args (Namespace): Arguments of the training.
        term (str): "kd_cls", "kd_box" or "kd_feat".
    """
    own: float | None = getattr(args, f"{term}_tau", None)
    return getattr(args, "kd_tau", None) if own is None else own


def gradient_shares(args: Any, terms: Iterable[str]) -> dict[str, float] | None:
    """Return the share of the base loss's gradient that each term gets with `kd_weight`; None with constant weights.

    The weights of the terms then count relative to their defaults: twice the default weight is twice the share.

    Args:
        args (Namespace): Arguments of the training.
        terms (Iterable[str]): Names of the weights of the terms that are on.
    """
    if args.kd_weight is None:
        return None
    share = AUTO_SHARE if args.kd_weight == "auto" else float(args.kd_weight)
    return {name: share * getattr(args, name) / (ARGUMENTS[name].default or 1.0) for name in terms}


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
