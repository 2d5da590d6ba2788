"""Build the terms of a task whose weights are not 0.

A new term is a class in a file of its own and an entry in `TERMS` or `dense_terms`; its weight goes into
`config/arguments.py` (`ARGUMENTS`, `WEIGHTS`, `TASK_WEIGHTS`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ...config.arguments import ARGUMENTS, class_loss, temperature
from ...errors import KDError
from ...outputs import FeatureLayout, Layout
from .backbone import BackboneTerm
from .crosskd import CrossKDTerm
from .dense import DepthTerm, ImageTerm, PixelTerm
from .detection import BoxTerm, ClassTerm
from .feature import FeatureTerm
from .keypoint import KeypointTerm
from .mask import MaskTerm


class Term(Protocol):
    """A part of the distillation loss.

    Attributes:
        per_branch (bool): Whether the term is called with a `Pair` or `AssignedPair` for each head branch, and counts
            with the branch's gain. Otherwise it is called once with a `FeaturePair`. Tasks without anchor points call
            it with a `DensePair`.
        reads (frozenset[str]): Parts of the teacher's output that it reads, e.g. `outputs.SCORES`. Other parts may be
            missing: a teacher computes only what is read.
        adapters (nn.Module | None): Layers that train with the student and are not saved in the finished model.
    """

    per_branch: bool
    reads: frozenset[str]
    adapters: nn.Module | None

    def __call__(self, pair: Any) -> Tensor:
        """Return the unweighted term, a scalar."""


@dataclass(frozen=True)
class Heads:
    """The heads of the student and of its only teacher, for terms that use the teacher's layers.

    Attributes:
        student (Any): The student's detection head.
        teacher (Any): The teacher's detection head.
        levels (list[tuple[int, int]]): Index of each compared level in the student's and in the teacher's head.
    """

    student: Any
    teacher: Any
    levels: list[tuple[int, int]]


@dataclass(frozen=True)
class Backbones:
    """The backbones among the teachers: they have features and no predictions.

    Attributes:
        maps (Sequence[FeatureLayout]): Feature maps of each backbone.
        shares (Sequence[float]): Weight of each backbone; the weights sum to 1.
    """

    maps: Sequence[FeatureLayout]
    shares: Sequence[float]


@dataclass(frozen=True)
class TermContext:
    """The heads, feature maps and arguments from which the terms of a task with anchor points are built.

    Attributes:
        args (Namespace): Arguments of the training.
        student (Layout): The student's head, on the levels that are compared.
        teachers (Sequence[Layout]): The teachers' heads, on these levels; empty where they predict sets of instances.
        student_maps (FeatureLayout): The student's feature maps, of all levels.
        teacher_maps (Sequence[FeatureLayout]): Feature maps of every teacher, at strides that the student has.
        shares (Sequence[float]): Weight of every teacher that has feature maps.
        heads (Heads | None): The heads, if there is only one teacher and it has a YOLO head.
        backbones (Backbones | None): The backbones among the teachers. If there are any, only their maps are compared.
    """

    args: Any
    student: Layout
    teachers: Sequence[Layout]
    student_maps: FeatureLayout
    teacher_maps: Sequence[FeatureLayout]
    shares: Sequence[float]
    heads: Heads | None
    backbones: Backbones | None = None


def _class_term(context: TermContext) -> Term:
    """Return the class term."""
    return ClassTerm(class_loss(context.args, context.student.task), temperature(context.args, "kd_cls"))


def _box_term(context: TermContext) -> Term:
    """Return the box term."""
    return BoxTerm(context.args.kd_box_loss, temperature(context.args, "kd_box"), context.student, context.teachers)


def _keypoint_term(context: TermContext) -> Term:
    """Return the keypoint term."""
    return KeypointTerm(context.student, context.teachers)


def _feature_term(context: TermContext) -> Term:
    """Return the feature term, or the cross-head term.

    Raises:
        KDError: If the teacher lacks what the loss needs.
    """
    args = context.args
    if context.backbones is not None:
        return _backbone_term(args, context.student_maps, context.backbones)
    if args.kd_feat_loss == "crosskd":
        return _cross_head_term(context)
    _check_maps(args, context.student_maps, context.teacher_maps)
    if args.kd_feat_loss == "sl2" and (not context.teachers or len(context.teacher_maps) > 1):
        raise KDError("kd_feat_loss=sl2 needs one teacher that scores every anchor point: use pkd, cwd or mgd.")
    tau = temperature(args, "kd_feat")
    return FeatureTerm(args.kd_feat_loss, tau, context.student_maps, context.teacher_maps, context.shares)


# Terms of tasks with anchor points, by the name of their weight
TERMS: dict[str, Callable[[TermContext], Term]] = {
    "kd_cls": _class_term,
    "kd_box": _box_term,
    "kd_mask": lambda context: MaskTerm(),
    "kd_kpt": _keypoint_term,
    "kd_feat": _feature_term,
}


def build_terms(context: TermContext, weights: Sequence[str]) -> dict[str, Term]:
    """Build the terms of a task with anchor points whose weight is not 0.

    Args:
        context (TermContext): Student, teachers and arguments.
        weights (Sequence[str]): Names of the task's weights.

    Returns:
        (dict[str, Term]): Terms by the name of their weight.

    Raises:
        KDError: If a loss does not suit the heads.
    """
    return {name: TERMS[name](context) for name in weights if getattr(context.args, name)}


def dense_terms(
    args: Any,
    task: str,
    student: FeatureLayout,
    teachers: Sequence[FeatureLayout],
    shares: Sequence[float],
    backbones: Backbones | None = None,
) -> dict[str, Term]:
    """Build the terms of classification, semantic segmentation or depth whose weight is not 0.

    Args:
        args (Namespace): Arguments of the training.
        task (str): Its task.
        student (FeatureLayout): Maps that enter the student's head.
        teachers (Sequence[FeatureLayout]): Feature maps of every teacher, at strides that the student has.
        shares (Sequence[float]): Weight of every teacher.
        backbones (Backbones, optional): The backbones among the teachers.

    Returns:
        (dict[str, Term]): Terms by the name of their weight.

    Raises:
        KDError: If the feature term finds no maps, or only vectors for a loss that compares positions.
    """
    terms: dict[str, Term] = {}
    if task == "depth" and args.kd_depth:
        terms["kd_depth"] = DepthTerm()
    elif task != "depth" and args.kd_cls:
        kind = ImageTerm if task == "classify" else PixelTerm
        terms["kd_cls"] = kind(class_loss(args, task), temperature(args, "kd_cls"))
    if args.kd_feat and backbones is not None:
        terms["kd_feat"] = _backbone_term(args, student, backbones)
    elif args.kd_feat:
        if any(maps.vectors for maps in teachers) and args.kd_feat_loss in {"cwd", "mgd"}:
            raise KDError(
                f"kd_feat_loss={args.kd_feat_loss} compares positions of a map, but this teacher's classifier reads a "
                "single vector: use kd_feat_loss=pkd."
            )
        _check_maps(args, student, teachers)
        terms["kd_feat"] = FeatureTerm(args.kd_feat_loss, temperature(args, "kd_feat"), student, teachers, shares)
    return terms


def _backbone_term(args: Any, student: FeatureLayout, backbones: Backbones) -> BackboneTerm:
    """Return the term for backbones.

    Raises:
        KDError: If another loss is asked for, or the student has no maps.
    """
    if args.kd_feat_loss != ARGUMENTS["kd_feat_loss"].default:
        raise KDError(
            f"'kd_feat_loss={args.kd_feat_loss}' has no effect beside a backbone (timm:NAME), whose features are "
            "compared by their cosine: drop it."
        )
    _check_maps(args, student, backbones.maps)
    return BackboneTerm(student, backbones.maps, backbones.shares)


def _cross_head_term(context: TermContext) -> CrossKDTerm:
    """Return the cross-head term.

    Raises:
        KDError: If boxes are rotated, or there is not exactly one teacher with a YOLO head.
    """
    if context.student.task == "obb":
        raise KDError("kd_feat_loss=crosskd does not support rotated boxes: use kd_feat_loss=pkd, cwd, mgd or sl2.")
    if context.heads is None:
        raise KDError(
            "kd_feat_loss=crosskd needs exactly one teacher with a YOLO head, which scores every anchor point: use "
            "kd_feat_loss=pkd, cwd or mgd."
        )
    shared = tuple(b for b in context.student.branches if b in context.teachers[0].branches)
    return CrossKDTerm(context.heads.student, context.heads.teacher, shared, context.heads.levels)


def _check_maps(args: Any, student: FeatureLayout, teachers: Sequence[FeatureLayout]) -> None:
    """Check that there are feature maps to compare.

    Raises:
        KDError: If no teacher has feature maps of the student's strides.
    """
    if not any(maps.strides for maps in teachers):
        raise KDError(
            f"kd_feat={args.kd_feat} compares feature maps, but the teacher has none of the student's strides "
            f"{list(student.strides)}: set kd_feat=0."
        )
