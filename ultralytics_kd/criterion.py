"""The distillation loss: Ultralytics' own loss plus the weighted terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import unwrap_model

from . import predictions
from .alignment import Aligner
from .assignment import StoredAnswer, assign
from .config import WEIGHTS
from .errors import KDError
from .predictions import ONE2MANY, Branch, Layout
from .teacher import Answer, Teacher
from .terms import Pair, Term, build_terms


class Distiller:
    """The terms of one run with their weights, schedule and adapters.

    It is no nn.Module, and copies of a model share it: what it trains must enter no EMA and no checkpointed model.

    Attributes:
        student_layout (Layout): The student's head.
        teacher_layout (Layout): The teacher's head.
        weights (dict[str, float]): Weight of every term that is on.
        terms (dict[str, Term]): Terms by the name of their weight.
        adapters (nn.ModuleDict): What trains with the student and does not ship.
        progress (float): How much of the run is over, 0 to 1; the trainer moves it every epoch.
        gains (dict[str, float]): Gain of each head branch in the loss of the model that trains, as last used.
    """

    def __init__(self, args: Any, student: nn.Module, teacher: Teacher, stored: bool = False):
        """Build the terms for a student and a teacher.

        Args:
            args (Namespace): Arguments of the training.
            student (nn.Module): The student, a detection model.
            teacher (Teacher): The teacher, inspected.
            stored (bool): Whether its answers were stored: instances then, which suit any head.

        Raises:
            KDError: If the two cannot be matched.
        """
        self.student_layout = predictions.layout(student)
        self.teacher_layout = self.student_layout if stored else teacher.layout
        check_match(self.student_layout, self.teacher_layout)
        self.weights = {name: float(getattr(args, name)) for name in WEIGHTS if getattr(args, name)}
        self.schedule: str = args.kd_schedule
        self.aligner = Aligner()
        self.progress = 0.0
        self.gains: dict[str, float] = {}
        # A random stream of its own: the student's training must not depend on what the adapters draw. They are built
        # on the CPU; `torch.manual_seed` would seed every other device too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(args.seed)
            head = predictions.detect_head(student)
            self.terms: dict[str, Term] = build_terms(
                args, self.student_layout, self.teacher_layout, head, predictions.detect_head(teacher.original)
            )
        self.adapters = nn.ModuleDict({k: t.adapters for k, t in self.terms.items() if t.adapters is not None})

    def __deepcopy__(self, memo: dict) -> Distiller:
        """Return itself: copies of a model share the distiller of the run."""
        return self

    @property
    def reads(self) -> dict[str, set[str]]:
        """Parts of the teacher's answer that the terms read, by head branch: the teacher need not compute others."""
        shared = [b for b in self.student_layout.branches if b in self.teacher_layout.branches]
        reads: dict[str, set[str]] = {shared[0]: set()}
        for term in self.terms.values():
            for branch in shared if term.per_branch else shared[:1]:
                reads.setdefault(branch, set()).update(term.reads)
        return reads

    @property
    def fade(self) -> float:
        """Factor of all terms at this point of the run."""
        if self.schedule == "linear":
            return 1 - self.progress
        return (1 + math.cos(math.pi * self.progress)) / 2 if self.schedule == "cosine" else 1.0

    def __call__(
        self, preds: Any, answer: Answer | StoredAnswer, head: Any, bases: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted terms.

        Args:
            preds (dict | tuple): The student's raw predictions.
            answer (Answer | StoredAnswer): What the teacher says, or said, about the same images.
            head (Detect): The student's detection head.
            bases (Mapping[str, v8DetectionLoss], optional): Base loss of each branch, to assign stored answers.

        Returns:
            (dict[str, Tensor]): A scalar for each of kd_cls, kd_box and kd_feat, 0 where the term is off.
        """
        student = predictions.branches(preds)
        zero = student[ONE2MANY].scores.new_zeros((), dtype=torch.float32)
        items = dict.fromkeys(WEIGHTS, zero)
        with torch.autocast(zero.device.type, enabled=False):  # a teacher in half precision must not overflow
            pairs = self._pairs(student, answer, head, bases or {})
            for name, term in self.terms.items():
                # Features are trained through the first branch alone (one2one reads them detached). Without its gain,
                # which falls from 0.8 to 0.1, the feature term would outweigh the labels in the end.
                heard = pairs if term.per_branch else pairs[:1]
                value = sum((self.gains[p.name] * term(p) for p in heard), zero)
                items[name] = value * self.weights[name] * self.fade
        return items

    def _pairs(self, student: dict[str, Branch], answer: Any, head: Any, bases: Mapping[str, Any]) -> list[Any]:
        """Return each branch of the student beside what there is for it to learn from."""
        if isinstance(answer, StoredAnswer):
            return [assign(answer, b, out, self.student_layout, bases[b], self.aligner) for b, out in student.items()]
        return [
            Pair(b, out, answer.branches[b], answer.classes, self.student_layout, self.teacher_layout, head, answer)
            for b, out in student.items()
            if b in answer.branches
        ]


class DistillationLoss:
    """A YOLO detection loss that also listens to the teacher in the batch.

    Without a teacher in the batch it is the base loss, bit for bit.
    """

    def __init__(self, base: Any, distiller: Distiller, head: Any, trains: bool = True):
        """Wrap a base loss.

        Args:
            base (v8DetectionLoss | E2ELoss): Ultralytics' loss of the student.
            distiller (Distiller): The terms.
            head (Detect): Head of the model that this loss belongs to.
            trains (bool): Whether that model trains, and not its moving average, whose base loss nobody keeps up to
                date: the terms then take the gains that training used last, so that train and val can be compared.
        """
        self.base, self.distiller, self.head, self.trains = base, distiller, head, trains

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss per part times batch size, and its detached items.

        Args:
            preds (dict | tuple): The student's raw predictions.
            batch (dict): Images and labels, and under "teacher" the teacher's answer.

        Returns:
            loss (Tensor): Base parts and kd_cls, kd_box, kd_feat, shape (6,), each times batch size.
            items (dict[str, Tensor]): The same by name, without gradient and not times batch size.
        """
        loss, items = self.base(preds, batch)
        answer = batch.get("teacher")
        if answer is None:
            return loss, items
        if self.trains or not self.distiller.gains:
            self.distiller.gains = self.gains
        terms = self.distiller(preds, answer, self.head, self.bases)
        kd = torch.stack(list(terms.values()))
        items = {**items, **{name: value.detach() for name, value in terms.items()}}
        return torch.cat([loss, kd * batch["img"].shape[0]]), items

    @property
    def bases(self) -> dict[str, Any]:
        """The base loss of each branch."""
        if hasattr(self.base, "o2m"):
            return {ONE2MANY: self.base.one2many, predictions.ONE2ONE: self.base.one2one}
        return {ONE2MANY: self.base}

    @property
    def gains(self) -> dict[str, float]:
        """The base loss's gain of each branch, which moves during an end-to-end training."""
        if hasattr(self.base, "o2m"):
            return {ONE2MANY: self.base.o2m, predictions.ONE2ONE: self.base.o2o}
        return {ONE2MANY: 1.0}

    def update(self) -> None:
        """Move the base loss's gains on by one epoch."""
        if hasattr(self.base, "update"):
            self.base.update()


class Rehearsal(nn.Module):
    """A student beside its teacher, whose forward and backward pass take the memory that a training step takes.

    AutoBatch profiles (a copy of) it in place of the student.
    """

    def __init__(self, student: nn.Module, teacher: Teacher, distiller: Distiller):
        """Put the two side by side.

        Args:
            student (nn.Module): The student on its device.
            teacher (Teacher): The prepared teacher.
            distiller (Distiller): The terms.
        """
        super().__init__()
        model: Any = unwrap_model(student)
        self.student, self.teacher, self.distiller = student, teacher, distiller
        self.stride, self.names, self.yaml = model.stride, model.names, model.yaml

    def forward(self, images: Tensor) -> tuple[Any, list[Tensor]]:
        """Return the student's predictions and the terms for images of shape (B, C, H, W)."""
        answer = self.teacher(images.detach())
        preds = self.student(images)
        self.distiller.gains = dict.fromkeys(self.distiller.student_layout.branches, 1.0)
        return preds, list(self.distiller(preds, answer, predictions.detect_head(self.student)).values())


def check_match(student: Layout, teacher: Layout) -> None:
    """Check that every level of the student has one of the teacher's.

    Raises:
        KDError: If the strides differ.
    """
    if student.strides != teacher.strides:
        raise KDError(
            f"the student's levels have strides {list(student.strides)} and the teacher's {list(teacher.strides)}: "
            "take a teacher with the same levels (-p2 with -p2, -p6 with -p6)."
        )
