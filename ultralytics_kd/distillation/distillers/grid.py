"""Terms of tasks whose heads speak at anchor points: detection, instance segmentation, pose and rotated boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import outputs
from ...errors import KDError
from ...outputs import ONE2MANY, Branch, Layout
from ...teachers import Reads, Teacher
from ...teachers.answers import SetAnswer
from ..assignment import assign
from ..task_aligned import Aligner
from ..terms import FeaturePair, Pair, Question, Term, build_terms
from .base import Distiller, common_maps


@dataclass(frozen=True)
class Partner:
    """A teacher's head beside the student's.

    Attributes:
        layout (Layout): The teacher's head, with the levels that both have.
        share (float): The teacher's weight.
    """

    layout: Layout
    share: float


class GridDistiller(Distiller):
    """Terms of a student with a head of detection, instance segmentation, pose or rotated boxes.

    Attributes:
        student_layout (Layout): The student's head.
        strides (tuple[int, ...]): Strides of the levels that are compared.
        partners (list[Partner]): Heads of the teachers; none where answers are sets of instances, which suit any head.
    """

    def __init__(self, args: Any, student: nn.Module, teacher: Teacher, stored: bool = False):
        """Build the terms for a student and a teacher.

        Args:
            args (Namespace): Arguments of the training.
            student (nn.Module): The student.
            teacher (Teacher): The teacher, inspected.
            stored (bool): Whether its answers were stored: sets of instances then.

        Raises:
            KDError: If the two cannot be matched.
        """
        self.student_layout = outputs.layout(student)
        self.aligner = Aligner()
        self._student, self._teacher = student, teacher
        layouts = self._teacher_layouts(stored)
        self.strides = common_levels(self.student_layout, layouts)
        self.partners = [Partner(layout.only(self.strides), share) for layout, share in layouts]
        maps = [] if stored else teacher.maps
        # A teacher that answers on a grid gives the maps of the levels that are compared, others all that fit
        own = self.student_layout.only(self.strides).maps if self.partners else self.student_layout.maps
        self._maps = [common_maps(each, own) for each in maps]
        super().__init__(args, self.student_layout.task)
        self.reads = self._reads()
        del self._student, self._teacher

    def _teacher_layouts(self, stored: bool) -> list[tuple[Layout, float]]:
        """Return the heads that answer, with the weight of each."""
        teacher = self._teacher
        if stored or teacher.layout is None:
            return []
        if teacher.answers_separately:
            layouts = [m.layout for m in teacher.members if m.layout is not None]
            return list(zip(layouts, teacher.shares))
        return [(teacher.layout, 1.0)]

    def _build(self, args: Any) -> dict[str, Term]:
        """Return the terms that are on, by the name of their weight."""
        student, teacher = self._student, self._teacher
        one = len(teacher.members) == 1 and len(self.partners) == 1 and teacher.original is not None
        heads, levels = None, []
        if one:
            heads = outputs.detect_head(student), outputs.detect_head(teacher.original)
            both = self.student_layout, teacher.layout
            levels = [tuple(layout.strides.index(s) for layout in both if layout) for s in self.strides]
        shares = teacher.shares
        question = Question(
            args,
            self.student_layout.only(self.strides),
            [p.layout for p in self.partners],
            self._maps,
            self.student_layout.maps,
            [shares[i] for i, m in enumerate(teacher.members) for _ in m.maps],
            heads,
            levels,  # type: ignore[arg-type]
        )
        return dict(build_terms(question, self.names))

    def _reads(self) -> Reads:
        """Return the parts of the teacher's answer that the terms read."""
        strides = {s for maps in self._maps for s in maps.strides} if "kd_feat" in self.terms else set()
        features = tuple(sorted(strides)) if getattr(self.terms.get("kd_feat"), "per_branch", True) is False else ()
        if not self.partners:
            return Reads(None, None, features)
        shared = self._shared()
        parts: dict[str, set[str]] = {shared[0]: set()}
        for term in self.terms.values():
            for branch in shared if term.per_branch else shared[:1]:
                parts.setdefault(branch, set()).update(term.reads)
        return Reads(parts, self.strides, features)

    def _shared(self) -> list[str]:
        """Return the branches that all heads have."""
        layouts = [p.layout for p in self.partners]
        return [b for b in self.student_layout.branches if all(b in each.branches for each in layouts)]

    @property
    def levels(self) -> str:
        """What is compared, in words for the start table."""
        strides = f"strides {list(self.strides)}"
        left = [s for s in self.student_layout.strides if s not in self.strides]
        if left:
            strides += f" (the student's {left} from labels alone)"
        if not self.partners:
            return f"{strides}, detections assigned as labels are to {' and '.join(self.student_layout.branches)}"
        return f"{strides}, {' and '.join(self._shared())}"

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
            answer (Answer | list[Answer] | SetAnswer): What the teacher says, or said, about the same images.
            head (Detect): The student's head.
            bases (Mapping[str, v8DetectionLoss], optional): Base loss of each branch: assigns sets, has weights.
            batch (Mapping[str, Any], optional): The batch; not looked at.

        Returns:
            (dict[str, Tensor]): A scalar for each term of the task, 0 where it is off.
        """
        student = outputs.branches(preds)
        zero = student[ONE2MANY].scores.new_zeros((), dtype=torch.float32)
        items = dict.fromkeys(self.names, zero)
        with torch.autocast(zero.device.type, enabled=False):  # a teacher in half precision must not overflow
            pairs = self._pairs(student, answer, head, bases or {})
            for name, term in self.terms.items():
                if term.per_branch:
                    value = sum((share * self.gains[p.name] * term(p) for share, p in pairs), zero)
                else:
                    # Features are trained through the first branch alone (one2one reads them detached). Without its
                    # gain, which falls from 0.8 to 0.1, the term would outweigh the labels in the end.
                    value = self.gains[ONE2MANY] * term(self._features(student, answer, pairs))
                items[name] = value * self.weights[name] * self.fade
        return items

    def _pairs(
        self, student: dict[str, Branch], answer: Any, head: Any, bases: Mapping[str, Any]
    ) -> list[tuple[float, Any]]:
        """Return each branch of the student beside what there is for it to learn from, and how much that counts."""
        if isinstance(answer, SetAnswer):
            if not any(term.per_branch for term in self.terms.values()):
                return []
            return [
                (1.0, assign(answer, b, out, self.student_layout, bases[b], self.aligner)) for b, out in student.items()
            ]
        layout = self.student_layout.only(self.strides)
        levels = [self.student_layout.strides.index(s) for s in self.strides]
        ours = {b: outputs.on_levels(out, self.student_layout, self.strides) for b, out in student.items()}
        answers = answer if isinstance(answer, list) else [answer]
        return [
            (p.share, Pair(b, out, a.branches[b], a.classes, layout, p.layout, head, levels, a, bases.get(b)))
            for p, a in zip(self.partners, answers)
            for b, out in ours.items()
            if b in a.branches
        ]

    def _features(self, student: dict[str, Branch], answer: Any, pairs: list[tuple[float, Any]]) -> FeaturePair:
        """Return the student's feature maps beside the teachers'."""
        answers = answer if isinstance(answer, list) else [answer]
        maps = [each for a in answers for each in a.features]
        confidence = None
        if pairs and isinstance(pairs[0][1], Pair) and outputs.SCORES in self.terms["kd_feat"].reads:
            first = pairs[0][1]
            confidence = outputs.level_scores(first.confidence, first.student.feats)
        return FeaturePair(student[ONE2MANY].feats, maps, confidence)


def common_levels(student: Layout, teachers: list[tuple[Layout, float]]) -> tuple[int, ...]:
    """Return the strides that the student and all teachers have; the student's if teachers answer with sets.

    Raises:
        KDError: If there are none.
    """
    strides = outputs.common_strides([student, *(layout for layout, _ in teachers)])
    if not strides:
        theirs = " and ".join(str(list(layout.strides)) for layout, _ in teachers)
        raise KDError(
            f"the student's levels have strides {list(student.strides)} and the teacher's {theirs}: none in common."
        )
    return strides
