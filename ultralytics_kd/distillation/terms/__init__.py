"""What is compared, where and with which weight: a term is a loss, a region and a normaliser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ...config.arguments import class_loss
from ...errors import KDError
from ...outputs import FeatureLayout, Layout
from .base import FeaturePair, Pair
from .box import BoxTerm
from .crosskd import CrossKDTerm
from .dense import DensePair, DepthTerm, ImageTerm, PixelTerm
from .feature import FeatureTerm
from .keypoint import KeypointTerm
from .logit import ClassTerm
from .mask import MaskTerm

__all__ = ("DensePair", "FeaturePair", "Pair", "Question", "Term", "build_terms", "dense_terms")


class Term(Protocol):
    """A part of the distillation loss.

    Attributes:
        per_branch (bool): Whether it is computed for every head branch, with the branch's gain, or once, with the gain
            of the branch that trains the features.
        reads (frozenset[str]): Parts of the teacher's answer that it reads beside features.
        adapters (nn.Module | None): What trains with the student and does not ship.
    """

    per_branch: bool
    reads: frozenset[str]
    adapters: Any

    def __call__(self, pair: Any) -> Tensor:
        """Return the unweighted term, a scalar."""


@dataclass(frozen=True)
class Question:
    """What terms are built for.

    Attributes:
        args (Namespace): Arguments of the training.
        student (Layout): The student's head, with the levels that are compared.
        teachers (Sequence[Layout]): The teachers' heads, with the same levels; empty where they answer with sets.
        maps (Sequence[FeatureLayout]): Feature maps of every teacher, of strides that the student has.
        all_maps (FeatureLayout): The student's, of all levels.
        shares (Sequence[float]): Weight of every teacher.
        heads (tuple[Any, Any] | None): The student's and the one teacher's head, None without one such.
        levels (Sequence[tuple[int, int]]): Index of each level in these heads.
    """

    args: Any
    student: Layout
    teachers: Sequence[Layout]
    maps: Sequence[FeatureLayout]
    all_maps: FeatureLayout
    shares: Sequence[float]
    heads: tuple[Any, Any] | None
    levels: Sequence[tuple[int, int]]


def build_terms(question: Question, weights: Sequence[str]) -> dict[str, Term]:
    """Build the terms of a detection-like task whose weight is not 0.

    Args:
        question (Question): Whom they are for.
        weights (Sequence[str]): Names of the task's weights.

    Returns:
        (dict[str, Term]): Terms by the name of their weight.

    Raises:
        KDError: If a loss does not suit the heads.
    """
    args, student = question.args, question.student
    partners = question.teachers or (student,)
    makers: dict[str, Callable[[], Term]] = {
        "kd_cls": lambda: ClassTerm(class_loss(args, student.task), args.kd_tau),
        "kd_box": lambda: BoxTerm(args.kd_box_loss, args.kd_tau, student, partners),
        "kd_mask": MaskTerm,
        "kd_kpt": lambda: KeypointTerm(student, partners),
        "kd_feat": lambda: _crosskd(question) if args.kd_feat_loss == "crosskd" else _feature_term(question),
    }
    return {name: makers[name]() for name in weights if getattr(args, name)}


def dense_terms(
    args: Any, task: str, student: FeatureLayout, teachers: Sequence[FeatureLayout], shares: Sequence[float]
) -> dict[str, Term]:
    """Build the terms of classification, semantic segmentation or depth whose weight is not 0.

    Args:
        args (Namespace): Arguments of the training.
        task (str): Its task.
        student (FeatureLayout): Maps that enter the student's head.
        teachers (Sequence[FeatureLayout]): Those of every teacher, of strides that the student has.
        shares (Sequence[float]): Weight of every teacher.

    Returns:
        (dict[str, Term]): Terms by the name of their weight.

    Raises:
        KDError: If the feature term finds no maps, or no places in them that its loss could compare.
    """
    terms: dict[str, Term] = {}
    if task == "depth" and args.kd_depth:
        terms["kd_depth"] = DepthTerm()
    elif task != "depth" and args.kd_cls:
        terms["kd_cls"] = (ImageTerm if task == "classify" else PixelTerm)(class_loss(args, task), args.kd_tau)
    if args.kd_feat:
        if any(maps.vectors for maps in teachers) and args.kd_feat_loss in {"cwd", "mgd"}:
            raise KDError(
                f"kd_feat_loss={args.kd_feat_loss} compares places of a map, and what this teacher's classifier reads "
                "is one vector: use kd_feat_loss=pkd."
            )
        question = Question(args, None, (None,), teachers, student, shares, None, ())  # type: ignore[arg-type]
        terms["kd_feat"] = _feature_term(question)
    return terms


def _crosskd(question: Question) -> CrossKDTerm:
    """Return the cross-head term.

    Raises:
        KDError: If there is no one teacher with a YOLO head.
    """
    if question.student.task == "obb":
        raise KDError("kd_feat_loss=crosskd compares boxes that are not turned: use kd_feat_loss=pkd, cwd, mgd or sl2.")
    if question.heads is None:
        raise KDError(
            "kd_feat_loss=crosskd goes on through the head of one YOLO teacher, which this teacher has not: use "
            "kd_feat_loss=pkd, cwd or mgd."
        )
    shared = tuple(b for b in question.student.branches if b in question.teachers[0].branches)
    return CrossKDTerm(*question.heads, shared, list(question.levels))


def _feature_term(question: Question) -> FeatureTerm:
    """Return the feature term.

    Raises:
        KDError: If the teacher offers no feature maps of the student's strides, or not what the loss needs.
    """
    args = question.args
    if not any(maps.strides for maps in question.maps):
        raise KDError(
            f"kd_feat={args.kd_feat} compares feature maps, and the teacher offers none of the student's strides "
            f"{list(question.all_maps.strides)}: set kd_feat=0."
        )
    if args.kd_feat_loss == "sl2" and (not question.teachers or len(question.maps) > 1):
        raise KDError("kd_feat_loss=sl2 needs one teacher that scores every anchor point: use pkd, cwd or mgd.")
    return FeatureTerm(args.kd_feat_loss, args.kd_tau, question.all_maps, question.maps, question.shares)
