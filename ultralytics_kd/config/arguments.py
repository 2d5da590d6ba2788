"""The kd arguments in groups: names, defaults, types, accepted values and help.

Importing this module changes nothing; `registration.register` makes the arguments known to Ultralytics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ultralytics.cfg as ul_cfg

from .sure_boxes import DEFAULT_CONFIDENCE
from .teacher_size import LARGEST_FACTOR

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
# Losses on class logits by task, the default first: detectors score classes by sigmoids, other heads by a softmax
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
TEMPERATURES = (0, 1000)  # bounds; beyond them probabilities no longer differ in float32
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")  # those of Ultralytics' `compile`


@dataclass(frozen=True)
class Argument:
    """One kd argument.

    Attributes:
        default (Any): Value when the user gives none.
        type (str): Type, as in Ultralytics' own configuration.
        help (str): One line of help.
        choices (tuple[str, ...]): Accepted values of an argument of type str; empty for any.
        number (bool): Whether the argument is a number, which must be finite and not negative.
        user_code (bool): Whether `module:name` of the user's own code is accepted beside the choices.
        bounds (tuple[float, float], optional): A number must be greater than the first and at most the second.
        values (str): Accepted values in words, if the other attributes do not say them.
    """

    default: Any
    type: str
    help: str
    choices: tuple[str, ...] = ()
    number: bool = False
    user_code: bool = False
    bounds: tuple[float, float] | None = None
    values: str = ""

    @property
    def range(self) -> str:
        """Accepted values in words, for the help and the documentation."""
        if self.values:
            return self.values
        if self.choices:
            return f"{', '.join(self.choices)}{', or module:name of your own' if self.user_code else ''}"
        if self.bounds:
            return f"greater than {self.bounds[0]:g}, at most {self.bounds[1]:g}"
        return "0 or more" if self.number else "True or False"


@dataclass(frozen=True)
class Group:
    """Arguments that belong together in the help and in the documentation.

    Attributes:
        title (str): Title.
        expert (bool): Whether most trainings leave them at their defaults.
        arguments (dict[str, Argument]): The arguments by name.
    """

    title: str
    expert: bool
    arguments: dict[str, Argument]


# The one table of kd arguments. The help, `yolo-kd cfg` and the documentation are made from it, in this order
GROUPS: tuple[Group, ...] = (
    Group(
        "Teacher",
        False,
        {
            "teacher": Argument(
                None,
                "str | list, optional",
                "trained model that guides the student; unset = plain training",
                values="a path, a name, ul:// URI, timm:NAME, module:object, ema, or a list of such",
            ),
            "kd_teacher_imgsz": Argument(
                None,
                "float, optional",
                "size of the teacher's images (detect, classify), larger than the student's; unset = the student's",
                values=f"pixels, or a factor of imgsz, greater than 1 and up to {LARGEST_FACTOR}",
            ),
            "kd_classes": Argument(
                "auto",
                "str | dict",
                "which of the student's classes each class of the teacher is; a map replaces the match by name",
                values="auto (by name), a {teacher: student} map, or a YAML with one",
            ),
            "kd_cache": Argument(
                False,
                "bool | str",
                "learn from stored answers of the teacher (yolo-kd cache)",
                values="their folder, or True: one among the runs, made if absent",
            ),
        },
    ),
    Group(
        "Weights of the terms",
        False,
        {
            "kd_cls": Argument(2.0, "float", "weight of the class-logit term, 0 = off", number=True),
            "kd_box": Argument(8.0, "float", "weight of the box term, 0 = off", number=True),
            "kd_mask": Argument(8.0, "float", "weight of the mask term (segment), 0 = off", number=True),
            "kd_kpt": Argument(12.0, "float", "weight of the keypoint term (pose), 0 = off", number=True),
            "kd_depth": Argument(1.0, "float", "weight of the depth term (depth), 0 = off", number=True),
            "kd_feat": Argument(
                None,
                "float, optional",
                "weight of the feature term, 0 = off; unset = off, but 1 with timm:NAME, and 4 with kd_keep if the "
                "student begins as its teacher",
                number=True,
            ),
        },
    ),
    Group(
        "More images, more classes",
        False,
        {
            "kd_unlabeled": Argument(
                None,
                "str | list, optional",
                "extra images without labels, which bring teacher terms only",
                values="a folder, a file that lists images, or several",
            ),
            "kd_unlabeled_ratio": Argument(
                1.0, "float", "images without labels for each labelled one in a batch", number=True, bounds=(0, 100)
            ),
            "kd_unlabeled_boxes": Argument(
                None,
                "bool | float, optional",
                "confidence from which on the teacher's boxes are labels of images without labels (detect, obb); "
                "unset = teacher terms only",
                values=f"between 0 and 1, or True: {DEFAULT_CONFIDENCE}",
            ),
            "kd_keep": Argument(
                None,
                "bool | str, optional",
                "new classes without forgetting (detect): the student keeps the classes of model= that the data do not "
                "label",
                values="True or old: those come first in its names; data: the data's come first",
            ),
            "kd_keep_data": Argument(
                None,
                "str, optional",
                "data of the old classes, whose val set is scored at the end (with kd_keep)",
                values="a data.yaml",
            ),
        },
    ),
    Group(
        "Losses and temperatures",
        True,
        {
            "kd_cls_loss": Argument(
                "auto",
                "str",
                "class-logit loss; auto = bckd for detectors, kl for classify and semantic",
                ("auto", "bckd", "qfl", "kl", "dkd", "dist", "cwd"),
                user_code=True,
            ),
            "kd_box_loss": Argument(
                "iou",
                "str",
                "box loss; ld needs DFL bins on both sides and is not for obb, where iou is ProbIoU",
                ("iou", "ld", "l1"),
                user_code=True,
            ),
            "kd_feat_loss": Argument(
                "pkd",
                "str",
                "feature loss; sl2 and crosskd for detectors, by one teacher with a YOLO head",
                ("pkd", "cwd", "mgd", "sl2", "crosskd"),
                user_code=True,
            ),
            "kd_tau": Argument(
                None,
                "float, optional",
                "temperature of all terms; unset = each loss's own (kl, dist and cwd 1, ld 10; classify: kl and dkd 4)",
                number=True,
                bounds=TEMPERATURES,
            ),
            "kd_cls_tau": Argument(
                None,
                "float, optional",
                "temperature of kd_cls (kl, dkd, dist, cwd); unset = kd_tau",
                number=True,
                bounds=TEMPERATURES,
            ),
            "kd_box_tau": Argument(
                None,
                "float, optional",
                "temperature of kd_box (ld); unset = kd_tau",
                number=True,
                bounds=TEMPERATURES,
            ),
            "kd_feat_tau": Argument(
                None,
                "float, optional",
                "temperature of kd_feat (cwd); unset = kd_tau",
                number=True,
                bounds=TEMPERATURES,
            ),
        },
    ),
    Group(
        "Course of the training",
        True,
        {
            "kd_init": Argument(
                "auto",
                "bool | str",
                "weights that the student begins with. True: if it has none, a part of the teacher's, if they are "
                "alike; fit: refitted to the teacher's activations; auto: as fit, and a trained student takes them if "
                "its loss falls",
                values="auto, fit, True or False",
            ),
            "kd_weight": Argument(
                None,
                "float | str, optional",
                "auto: the gradient of each term is held at a share of the labels', and a term that does not agree "
                "with them is turned off; a number is that share; unset = constant weights",
                bounds=(0, 100),
                values="auto, or greater than 0 and at most 100",
            ),
            "kd_schedule": Argument(
                "constant", "str", "how the terms fade over the run", ("constant", "linear", "cosine")
            ),
        },
    ),
    Group(
        "How the teacher runs",
        True,
        {
            "kd_teacher_weights": Argument(
                None,
                "list, optional",
                "weight of each teacher of a list; unset = equal",
                values="positive numbers, one for each",
            ),
            "kd_precision": Argument(
                "auto",
                "str",
                "precision that the teacher runs in; auto = half where the student trains in half, else fp32",
                ("auto", "fp32", "fp16", "bf16"),
            ),
            "kd_compile": Argument(
                False,
                "bool | str",
                "whether to compile the teacher",
                values=f"True, False or {', '.join(COMPILE_MODES)}",
            ),
            "kd_trust_teacher": Argument(
                False,
                "bool",
                "whether teachers may run code when they are opened; True only if you trust where they come from",
            ),
        },
    ),
)
ARGUMENTS: dict[str, Argument] = {name: argument for group in GROUPS for name, argument in group.arguments.items()}
WEIGHTS = ("kd_cls", "kd_box", "kd_mask", "kd_kpt", "kd_depth", "kd_feat")
AUTO_SHARE = 1.0  # norm of a term's gradient over that of the base loss, with kd_weight=auto and the default weight


def learned_classes(classes: Any, task: str) -> list[Any] | None:
    """Return the classes that a student with these arguments learns, None for all.

    Args:
        classes (Any): The argument `classes`, which only tasks with anchor points read.
        task (str): The student's task.
    """
    return as_list(classes) if classes is not None and task in GRID_TASKS else None


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
