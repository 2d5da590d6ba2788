"""The distillation loss: Ultralytics' own loss plus the weighted terms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.loss import v8ClassificationLoss
from ultralytics.utils.torch_utils import unwrap_model

from . import predictions
from .alignment import Aligner
from .assignment import SetAnswer, assign
from .config import GRID_TASKS, TASK_WEIGHTS
from .errors import KDError
from .predictions import ONE2MANY, Branch, FeatureLayout, Layout
from .teachers import Reads, Teacher
from .terms import DensePair, FeaturePair, Pair, Question, Term, build_terms, dense_terms

LABELED = "kd_labeled"  # in a batch: how many of its images, the first ones, have labels; absent if all


class Distiller:
    """The terms of one run with their weights, schedule and adapters.

    It is no nn.Module, and copies of a model share it: what it trains must enter no EMA and no checkpointed model.

    Attributes:
        names (tuple[str, ...]): Names of all terms that the task has.
        weights (dict[str, float]): Weight of every term that is on.
        terms (dict[str, Term]): Terms by the name of their weight.
        adapters (nn.ModuleDict): What trains with the student and does not ship.
        progress (float): How much of the run is over, 0 to 1; the trainer moves it every epoch.
        gains (dict[str, float]): Gain of each head branch in the loss of the model that trains, as last used.
        reads (Reads): What the terms read of the teacher's answer: it need not compute more.
    """

    def __init__(self, args: Any, task: str):
        """Take note of the run's arguments.

        Args:
            args (Namespace): Arguments of the training.
            task (str): Its task.
        """
        self.names = TASK_WEIGHTS[task]
        self.weights = {name: float(getattr(args, name)) for name in self.names if getattr(args, name)}
        self.schedule: str = args.kd_schedule
        self.progress = 0.0
        self.gains: dict[str, float] = {}
        self.reads = Reads()
        # A random stream of its own: the student's training must not depend on what the adapters draw. They are built
        # on the CPU; `torch.manual_seed` would seed every other device too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(args.seed)
            self.terms: dict[str, Any] = self._build(args)
        self.adapters = nn.ModuleDict({k: t.adapters for k, t in self.terms.items() if t.adapters is not None})

    def _build(self, args: Any) -> dict[str, Any]:
        """Return the terms that are on, by the name of their weight."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict) -> Distiller:
        """Return itself: copies of a model share the distiller of the run."""
        return self

    @property
    def fade(self) -> float:
        """Factor of all terms at this point of the run."""
        if self.schedule == "linear":
            return 1 - self.progress
        return (1 + math.cos(math.pi * self.progress)) / 2 if self.schedule == "cosine" else 1.0

    @property
    def levels(self) -> str:
        """What is compared, in words for the start table."""
        raise NotImplementedError

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Keep what the terms need of a student's forward passes, beside what it returns.

        Args:
            model (nn.Module): The student, or its moving average.
        """
        yield  # detection-like heads return their inputs themselves

    def __call__(self, preds: Any, answer: Any, head: Any = None, bases: Mapping[str, Any] | None = None) -> dict:
        """Return the weighted terms.

        Args:
            preds (Any): The student's raw predictions.
            answer (Any): What the teacher says, or said, about the same images.
            head (nn.Module): The student's head.
            bases (Mapping[str, Any], optional): Base loss of each head branch.

        Returns:
            (dict[str, Tensor]): A scalar for each term of the task, 0 where it is off.
        """
        raise NotImplementedError


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
        self.student_layout = predictions.layout(student)
        self.aligner = Aligner()
        self._student, self._teacher = student, teacher
        layouts = self._teacher_layouts(stored)
        self.strides = common_levels(self.student_layout, layouts)
        self.partners = [Partner(layout.only(self.strides), share) for layout, share in layouts]
        maps = [] if stored else teacher.maps
        self._maps = [_common_maps(each, self.student_layout.maps) for each in maps]
        super().__init__(args, self.student_layout.task)
        self.reads = self._reads()
        del self._student, self._teacher

    def _teacher_layouts(self, stored: bool) -> list[tuple[Layout, float]]:
        """Return the heads that answer, with the weight of each."""
        teacher = self._teacher
        if stored or teacher.layout is None:
            return []
        if getattr(teacher, "plural", False):
            layouts = [m.layout for m in teacher.members if m.layout is not None]
            return list(zip(layouts, teacher.shares))  # type: ignore[attr-defined]
        return [(teacher.layout, 1.0)]

    def _build(self, args: Any) -> dict[str, Term]:
        """Return the terms that are on, by the name of their weight."""
        student, teacher = self._student, self._teacher
        one = len(teacher.members) == 1 and len(self.partners) == 1 and teacher.original is not None
        heads, levels = None, []
        if one:
            heads = predictions.detect_head(student), predictions.detect_head(teacher.original)
            both = self.student_layout, teacher.layout
            levels = [tuple(layout.strides.index(s) for layout in both if layout) for s in self.strides]
        shares = getattr(teacher, "shares", [1.0])
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

    def __call__(self, preds: Any, answer: Any, head: Any = None, bases: Mapping[str, Any] | None = None) -> dict:
        """Return the weighted terms.

        Args:
            preds (dict | tuple): The student's raw predictions.
            answer (Answer | list[Answer] | SetAnswer): What the teacher says, or said, about the same images.
            head (Detect): The student's head.
            bases (Mapping[str, v8DetectionLoss], optional): Base loss of each branch: assigns sets, has weights.

        Returns:
            (dict[str, Tensor]): A scalar for each term of the task, 0 where it is off.
        """
        student = predictions.branches(preds)
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
        ours = {b: predictions.on_levels(out, self.student_layout, self.strides) for b, out in student.items()}
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
        if pairs and isinstance(pairs[0][1], Pair) and predictions.SCORES in self.terms["kd_feat"].reads:
            first = pairs[0][1]
            confidence = predictions.level_scores(first.confidence, first.student.feats)
        return FeaturePair(student[ONE2MANY].feats, maps, confidence)


class DenseDistiller(Distiller):
    """Terms of classification, semantic segmentation and depth.

    Their heads do not return the maps that they read, so that the student is listened to while it runs, if maps are
    compared.

    Attributes:
        task (str): The task.
    """

    def __init__(self, args: Any, student: nn.Module, teacher: Teacher):
        """Build the terms for a student and a teacher.

        Args:
            args (Namespace): Arguments of the training.
            student (nn.Module): The student.
            teacher (Teacher): The teacher, inspected.

        Raises:
            KDError: If the two cannot be matched.
        """
        self.task = args.task
        self._maps = predictions.dense_maps(student, self.task, teacher.channels) if args.kd_feat else None
        self._teacher = teacher
        self._heard: list[Tensor] | None = None
        super().__init__(args, self.task)
        del self._teacher

    def _build(self, args: Any) -> dict[str, Any]:
        """Return the terms that are on, by the name of their weight."""
        own = self._maps or FeatureLayout((), ())
        maps = [_common_maps(each, own) for each in self._teacher.maps] if args.kd_feat else []
        self.reads = Reads(None, None, tuple(sorted({s for each in maps for s in each.strides})))
        shares = getattr(self._teacher, "shares", [1.0])
        return dict(dense_terms(args, self.task, own, maps, shares))

    @property
    def levels(self) -> str:
        """What is compared, in words for the start table."""
        return {"classify": "whole images", "semantic": "every pixel, at stride 8"}.get(self.task, "every pixel")

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Keep the maps that enter the student's head, if they are compared."""
        if self._maps is None:
            yield
            return

        def hear(maps: list[Tensor]) -> None:
            """Keep the maps of the last forward pass."""
            self._heard = maps

        with predictions.tapped(model, hear):
            yield

    def __call__(
        self, preds: Any, answer: Any, head: Any = None, bases: Any = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted terms.

        Args:
            preds (Any): The student's raw predictions.
            answer (DenseAnswer): What the teacher says about the same images.
            head (nn.Module): The student's head; not looked at.
            bases (Mapping[str, Any]): Base loss; not looked at.
            labels (Tensor, optional): Class of each labelled image of a classification.

        Returns:
            (dict[str, Tensor]): A scalar for each term of the task, 0 where it is off.
        """
        student = predictions.dense_output(self.task, preds)
        zero = student.new_zeros((), dtype=torch.float32)
        items = dict.fromkeys(self.names, zero)
        heard, self._heard = self._heard, None
        with torch.autocast(zero.device.type, enabled=False):
            pair = DensePair(student, answer.value, answer.classes, labels)
            for name, term in self.terms.items():
                if not term.per_branch and heard is None:
                    continue
                value = term(pair) if term.per_branch else term(FeaturePair(heard or [], answer.features))
                items[name] = value * self.weights[name] * self.fade
        return items


def build_distiller(args: Any, student: nn.Module, teacher: Teacher, stored: bool = False) -> Distiller:
    """Return the terms for a student and a teacher of a task.

    Args:
        args (Namespace): Arguments of the training.
        student (nn.Module): The student.
        teacher (Teacher): The teacher, inspected.
        stored (bool): Whether its answers were stored.

    Raises:
        KDError: If the two cannot be matched.
    """
    if args.task in GRID_TASKS:
        return GridDistiller(args, student, teacher, stored)
    return DenseDistiller(args, student, teacher)


class DistillationLoss:
    """A YOLO loss that also listens to the teacher in the batch.

    Without a teacher in the batch it is the base loss, bit for bit. Images without labels, which stand last in a batch
    that says so, are no business of the base loss.
    """

    def __init__(self, base: Any, distiller: Distiller, head: Any, trains: bool = True):
        """Wrap a base loss.

        Args:
            base (Any): Ultralytics' loss of the student.
            distiller (Distiller): The terms.
            head (nn.Module): Head of the model that this loss belongs to.
            trains (bool): Whether that model trains, and not its moving average, whose base loss nobody keeps up to
                date: the terms then take the gains that training used last, so that train and val can be compared.
        """
        self.base, self.distiller, self.head, self.trains = base, distiller, head, trains
        self.scaled = not isinstance(base, v8ClassificationLoss)  # the only one that is not times the batch size

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss per part times batch size, and its detached items.

        Args:
            preds (dict | tuple): The student's raw predictions.
            batch (dict): Images and labels, and under "teacher" the teacher's answer.

        Returns:
            loss (Tensor): Base parts and the task's terms, shape (n,), each times batch size as the base loss is.
            items (dict[str, Tensor]): The same by name, without gradient and not times batch size.
        """
        loss, items = self.base(*self._labeled(preds, batch))
        answer = batch.get("teacher")
        if answer is None:
            return loss, items
        if self.trains or not self.distiller.gains:
            self.distiller.gains = self.gains
        more = {} if self.scaled else {"labels": batch["cls"]}
        terms = self.distiller(preds, answer, self.head, self.bases, **more)
        kd = torch.stack(list(terms.values()))
        items = {**items, **{name: value.detach() for name, value in terms.items()}}
        if self.scaled:  # as the base loss is; by the labelled images, so that others do not change the balance
            kd = kd * batch.get(LABELED, batch["img"].shape[0])
        return torch.cat([loss.reshape(-1), kd]), items

    @staticmethod
    def _labeled(preds: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return predictions and batch without the images that have no labels."""
        count, images = batch.get(LABELED), batch["img"]
        if count is None or count == len(images):
            return preds, batch
        return predictions.take_images(preds, count, len(images)), {**batch, "img": images[:count]}

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

    def __init__(self, student: nn.Module, teacher: Teacher, distiller: Distiller, unlabeled: float = 0.0):
        """Put the two side by side.

        Args:
            student (nn.Module): The student on its device.
            teacher (Teacher): The prepared teacher.
            distiller (Distiller): The terms.
            unlabeled (float): Images without labels that a step adds to each of the batch.
        """
        super().__init__()
        model: Any = unwrap_model(student)
        self.student, self.teacher, self.distiller, self.unlabeled = student, teacher, distiller, unlabeled
        self.stride, self.names, self.yaml = model.stride, model.names, model.yaml

    def forward(self, images: Tensor) -> tuple[Any, list[Tensor]]:
        """Return the student's predictions and the terms for images of shape (B, C, H, W)."""
        more = math.ceil(len(images) * self.unlabeled)
        images = torch.cat((images, images[torch.arange(more) % len(images)])) if more else images
        answer = self.teacher(images.detach())
        model: Any = unwrap_model(self.student)
        with self.distiller.listening(model):
            preds = self.student(images)
            self.distiller.gains = dict.fromkeys((ONE2MANY, predictions.ONE2ONE), 1.0)
            loss = DistillationLoss(model.init_criterion(), self.distiller, predictions.find_head(model))
            terms = self.distiller(preds, answer, loss.head, loss.bases)
        return preds, list(terms.values())


def common_levels(student: Layout, teachers: list[tuple[Layout, float]]) -> tuple[int, ...]:
    """Return the strides that the student and all teachers have; the student's if teachers answer with sets.

    Raises:
        KDError: If there are none.
    """
    strides = predictions.common_strides([student, *(layout for layout, _ in teachers)])
    if not strides:
        theirs = " and ".join(str(list(layout.strides)) for layout, _ in teachers)
        raise KDError(
            f"the student's levels have strides {list(student.strides)} and the teacher's {theirs}: none in common."
        )
    return strides


def _common_maps(maps: FeatureLayout, student: FeatureLayout) -> FeatureLayout:
    """Return those of a teacher's feature maps whose strides the student has."""
    kept = [(s, c) for s, c in zip(maps.strides, maps.channels) if s in student.strides]
    return FeatureLayout(tuple(s for s, _ in kept), tuple(c for _, c in kept))
