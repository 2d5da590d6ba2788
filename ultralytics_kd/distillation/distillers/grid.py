"""The terms of heads that predict at anchor points: detection, instance segmentation, pose and rotated boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import outputs
from ...config.arguments import TASK_WEIGHTS
from ...errors import KDError, ModelError
from ...outputs import ONE2MANY, ONE2ONE, Branch, FeatureLayout, Layout
from ...teachers import Reads, Teacher
from ...teachers.answers import SetAnswer
from ..assignment import assign
from ..pairs import AssignedPair, FeaturePair, Pair
from ..task_aligned import InstanceAssigner
from ..terms import Backbones, Heads, Term, TermContext, build_terms
from .base import Distiller, adapters_random_stream, backbones_of, common_maps


@dataclass(frozen=True)
class TeacherHead:
    """The head of a teacher that predicts at anchor points.

    Attributes:
        layout (Layout): The head, on the levels that are compared.
        share (float): The teacher's weight.
    """

    layout: Layout
    share: float


class GridDistiller(Distiller):
    """The terms of a student with a head of detection, instance segmentation, pose or rotated boxes.

    Attributes:
        student_layout (Layout): The student's head.
        strides (tuple[int, ...]): Strides of the levels that are compared.
        teacher_heads (list[TeacherHead]): Heads of the teachers; empty where they predict sets of instances.
        assigner (InstanceAssigner): Assigns sets of instances to the student's anchor points.
    """

    def __init__(self, args: Any, student: nn.Module, teacher: Teacher, stored: bool = False, as_sets: bool = False):
        """Build the terms for a student and a teacher.

        Args:
            args (Namespace): Arguments of the training.
            student (nn.Module): The student.
            teacher (Teacher): The teacher, inspected.
            stored (bool): Whether the teacher's answers come from a cache, which stores sets of instances.
            as_sets (bool): Whether a running teacher answers with a set although it has anchor points
                (`Teacher.answer_for_any_size`). Its feature maps can still be compared.

        Raises:
            KDError: If student and teacher cannot be matched.
        """
        if fault := outputs.head_fault(student):
            raise ModelError(args.model, f"{fault}.", "model")
        self.student_layout = outputs.layout(student)
        self.assigner = InstanceAssigner()
        backbones, teacher = backbones_of(teacher, args.imgsz), teacher.predictor
        heads = [] if stored or as_sets else _teacher_heads(teacher)
        self.strides = common_levels(self.student_layout, [head.layout for head in heads])
        self.teacher_heads = [TeacherHead(head.layout.only(self.strides), head.share) for head in heads]
        # Of a teacher that predicts at anchor points, only the maps of the compared levels are used
        student_maps = self.student_layout.only(self.strides).maps if heads else self.student_layout.maps
        unread = stored or backbones is not None
        teacher_maps = [] if unread else [common_maps(maps, student_maps) for maps in teacher.maps]
        task = self.student_layout.task
        context = self._context(args, student, teacher, teacher_maps, backbones)
        with adapters_random_stream(args.seed):
            terms = build_terms(context, TASK_WEIGHTS[task])
        super().__init__(args, task, terms, self._reads(terms, teacher_maps, args.kd_unlabeled_boxes is not None))

    def _context(
        self,
        args: Any,
        student: nn.Module,
        teacher: Teacher,
        teacher_maps: Sequence[FeatureLayout],
        backbones: Backbones | None,
    ) -> TermContext:
        """Return the heads, feature maps and arguments that the terms are built from."""
        heads = None
        if len(teacher.members) == 1 and len(self.teacher_heads) == 1 and teacher.original is not None:
            assert teacher.layout is not None
            student_levels, teacher_levels = (
                [layout.strides.index(s) for s in self.strides] for layout in (self.student_layout, teacher.layout)
            )
            levels = list(zip(student_levels, teacher_levels))
            heads = Heads(outputs.detect_head(student), outputs.detect_head(teacher.original), levels)
        return TermContext(
            args,
            self.student_layout.only(self.strides),
            [head.layout for head in self.teacher_heads],
            self.student_layout.maps,
            teacher_maps,
            [share for share, member in zip(teacher.shares, teacher.members) for _ in member.maps],
            heads,
            backbones,
        )

    def _reads(self, terms: Mapping[str, Term], teacher_maps: Sequence[FeatureLayout], boxes: bool) -> Reads:
        """Return the parts of the teacher's answer that the terms read; with `boxes`, those of its boxes too."""
        compares_maps = any(not term.per_branch for term in terms.values())
        strides = {s for maps in teacher_maps for s in maps.strides} if compares_maps else set()
        features = tuple(sorted(strides))
        if not self.teacher_heads:
            return Reads({ONE2MANY: {outputs.SCORES, outputs.BOXES}}, None, features)
        branches = self._common_branches()
        parts: dict[str, set[str]] = {branches[0]: {outputs.SCORES, outputs.BOXES, outputs.ANGLES} if boxes else set()}
        for term in terms.values():
            for branch in branches if term.per_branch else branches[:1]:
                parts.setdefault(branch, set()).update(term.reads)
        return Reads(parts, self.strides, features)

    def _common_branches(self) -> list[str]:
        """Return the branches that all heads have."""
        layouts = [head.layout for head in self.teacher_heads]
        return [b for b in self.student_layout.branches if all(b in layout.branches for layout in layouts)]

    def points(self, preds: Any) -> list[Tensor]:
        """Return the feature maps that enter the head, or its outputs where all layers below are frozen."""
        raw = outputs.raw_branches(preds)[ONE2MANY]
        return [x for x in raw["feats"] if x.requires_grad] or [raw[outputs.SCORES], raw[outputs.BOXES]]

    @property
    def levels(self) -> str:
        """The compared levels and branches, as text for the table at the start of a training."""
        strides = f"strides {_listed(self.strides)}"
        if not any(term.per_branch for term in self.terms.values()):
            return f"features at {strides}"
        others = [s for s in self.student_layout.strides if s not in self.strides]
        if others:
            strides += f" (the student's {_listed(others)} from labels alone)"
        if not self.teacher_heads:
            return f"{strides}, detections assigned like labels, {_heads(self.student_layout.branches)}"
        return f"{strides}, {_heads(self._common_branches())}"

    def __call__(
        self,
        preds: Any,
        answer: Any,
        head: Any = None,
        bases: Mapping[str, Any] | None = None,
        batch: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted terms.

        Args:
            preds (dict | tuple): The student's raw predictions.
            answer (Answer | list[Answer] | SetAnswer): The teacher's answer, or one of each teacher.
            head (Detect): The student's head.
            bases (Mapping[str, v8DetectionLoss], optional): Base loss of each branch: its assigner and its gains.
            batch (Mapping[str, Any], optional): Not used.

        Returns:
            (dict[str, Tensor]): A scalar for each term.
        """
        student = outputs.branches(preds)
        zero = student[ONE2MANY].scores.new_zeros((), dtype=torch.float32)
        items = dict.fromkeys(self.terms, zero)
        with torch.autocast(zero.device.type, enabled=False):  # a teacher's outputs could overflow in half precision
            pairs = self._pairs(student, answer, head, bases or {})
            for name, term in self.terms.items():
                if term.per_branch:
                    value = sum((share * self.gains[p.name] * term(p) for share, p in pairs), zero)
                else:
                    # Only the first branch trains the features (one2one reads them detached). Its gain falls from
                    # 0.8 to 0.1; without this factor the term would outweigh the labels at the end
                    value = self.gains[ONE2MANY] * term(self._feature_pair(student, answer, pairs, term))
                items[name] = value * self.weights[name] * self.fade
        return items

    def _pairs(
        self, student: dict[str, Branch], answer: Any, head: Any, bases: Mapping[str, Any]
    ) -> list[tuple[float, Pair | AssignedPair]]:
        """Return a pair for each branch of the student and each teacher, with the teacher's weight."""
        if isinstance(answer, SetAnswer):
            if not any(term.per_branch for term in self.terms.values()):
                return []
            layout = self.student_layout
            return [(1.0, assign(answer, b, out, layout, bases[b], self.assigner)) for b, out in student.items()]
        layout = self.student_layout.only(self.strides)
        levels = [self.student_layout.strides.index(s) for s in self.strides]
        compared = {b: outputs.on_levels(out, self.student_layout, self.strides) for b, out in student.items()}
        answers = answer if isinstance(answer, list) else [answer]
        return [
            (t.share, Pair(b, out, a.branches[b], a.classes, layout, t.layout, head, levels, a, bases.get(b)))
            for t, a in zip(self.teacher_heads, answers)
            for b, out in compared.items()
            if b in a.branches
        ]

    @staticmethod
    def _feature_pair(
        student: dict[str, Branch], answer: Any, pairs: list[tuple[float, Pair | AssignedPair]], term: Term
    ) -> FeaturePair:
        """Return the student's feature maps and the teachers', with the teacher's confidence if the term reads it."""
        answers = answer if isinstance(answer, list) else [answer]
        maps = [each for a in answers for each in a.features]
        confidence, first = None, pairs[0][1] if pairs else None
        if isinstance(first, Pair) and outputs.SCORES in term.reads:
            confidence = outputs.level_scores(first.confidence, first.student.feats)
        return FeaturePair(student[ONE2MANY].feats, maps, confidence)


def _teacher_heads(teacher: Teacher) -> list[TeacherHead]:
    """Return the heads of a teacher that predict at anchor points, on all of their levels."""
    if teacher.layout is None:
        return []
    if teacher.answers_separately:
        layouts = [member.layout for member in teacher.members if member.layout is not None]
        return [TeacherHead(layout, share) for layout, share in zip(layouts, teacher.shares)]
    return [TeacherHead(teacher.layout, 1.0)]


def common_levels(student: Layout, teachers: Sequence[Layout]) -> tuple[int, ...]:
    """Return the strides that the student and all teachers have.

    Args:
        student (Layout): The student's head.
        teachers (Sequence[Layout]): Heads of the teachers; empty where they predict sets of instances.

    Raises:
        KDError: If they have none in common.
    """
    strides = outputs.common_strides([student, *teachers])
    if not strides:
        teacher_strides = " and ".join(str(list(layout.strides)) for layout in teachers)
        raise KDError(
            f"the student's levels have strides {list(student.strides)} and the teacher's {teacher_strides}: they have "
            "none in common. Give another teacher; or a detector's answers can be stored, with kd_cache=True."
        )
    return strides


def _heads(branches: Sequence[str]) -> str:
    """Return the names of branches as reports show them."""
    names = {ONE2MANY: "NMS", ONE2ONE: "NMS-free"}
    return f"{' and '.join(names[branch] for branch in branches)} head{'s' * (len(branches) > 1)}"


def _listed(strides: Iterable[int]) -> str:
    """Return strides as text."""
    return ", ".join(f"{stride:g}" for stride in strides)
