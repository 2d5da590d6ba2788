"""Several teachers with one answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import outputs
from ..errors import KDError
from ..outputs import ONE2MANY, Branch, Layout, common_strides, distances
from .answers import Answer, Reads, SetAnswer
from .base import Teacher
from .class_map import ClassMap, load_map, match_key
from .dense import average
from .detections import Detections
from .fusion import fuse
from .prompted import give_prompts
from .sets import SetTeacher, as_set, grid_as_set
from .validation import DetectorModel


class Ensemble(Teacher):
    """Several teachers, of any family and with any classes. Each is matched with the student separately."""

    def __init__(self, members: Sequence[Teacher], weights: Sequence[float] | None = None):
        """Combine two or more teachers; `weights` are equal if None.

        Raises:
            KDError: If their tasks differ, or there is not one weight for each.
        """
        self._members = list(members)
        tasks = {m.task for m in members}
        if len(tasks) > 1:
            listed = ", ".join(f"{m.source} ({m.task})" for m in members)
            raise KDError(f"the teachers are of different tasks: {listed}; all must have the student's task.")
        weights = list(weights) if weights is not None else [1.0] * len(self._members)
        if len(weights) != len(self._members):
            raise KDError(
                f"kd_teacher_weights has {len(weights)} numbers for {len(self._members)} teachers: give one for each."
            )
        super().__init__(None, ", ".join(m.source for m in members), tasks.pop(), _all_names(members))
        self.shares = [w / sum(weights) for w in weights]
        self.portable = all(m.portable for m in members)

    @property
    def members(self) -> list[Teacher]:
        """The teachers behind the answer."""
        return self._members

    @property
    def name(self) -> str:
        """Short names of all."""
        return ", ".join(m.name for m in self._members)

    def inspect(self) -> None:
        """Inspect all teachers.

        Raises:
            KDError: If one cannot teach.
        """
        for member in self._members:
            member.inspect()
        self.channels = self._members[0].channels
        self.maps = [maps for m in self._members for maps in m.maps]

    def match(
        self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None, single_cls: bool = False
    ) -> None:
        """Match every teacher's classes with the student's; each uses the part of a map that names its classes.

        Raises:
            KDError: If a teacher has no class in common, or the map has a name that no teacher knows.
        """
        keep = None if keep is None else list(keep)
        if give_prompts(self._members, names, spec):
            self.names = _all_names(self._members)
        automatic = isinstance(spec, str) and spec.lower() == "auto"
        mapping = {} if automatic else dict(load_map(spec))
        known = {match_key(n) for m in self._members for n in m.names.values()}
        for name in mapping:
            if match_key(name) not in known:
                raise KDError(f"kd_classes names '{name}', which is not a class of any teacher.")
        for member in self._members:
            keys = {match_key(n) for n in member.names.values()}
            member_map = {teacher: student for teacher, student in mapping.items() if match_key(teacher) in keys}
            if not automatic and not member_map:
                raise KDError(f"kd_classes names no class of teacher={member.source}: add one, or drop that teacher.")
            member.match(names, "auto" if automatic else member_map, keep, single_cls)
        self.classes = self._union()

    def _union(self) -> ClassMap:
        """Return the map of the classes that any member teaches: each is one class of the common answer."""
        maps = [m.classes for m in self._members if m.classes is not None]
        names = maps[0].student_names
        taught = sorted({i for each in maps for i in each.sources})
        sources: dict[int, tuple[int, ...]] = {student: (column,) for column, student in enumerate(taught)}
        own = {column: names[student] for column, student in enumerate(taught)}
        return ClassMap(sources, names, own, learned=maps[0].learned)

    def _prepare(self, device: torch.device, reads: Reads, dtype: torch.dtype, compile: bool | str) -> None:
        """Prepare all members."""
        reads = self._member_reads(reads)
        for member in self._members:
            member.prepare(device, reads, dtype, self._fall_back, compile)

    def _member_reads(self, reads: Reads) -> Reads:
        """Return the parts to read from each member."""
        return reads

    def _run(self, images: Tensor) -> list[Any]:
        """Return the answers of all members."""
        return [m(images) for m in self._members]

    def _tensors(self, raw: list[Any]) -> list[Tensor]:
        """Return nothing: each member checks its own outputs."""
        return []

    def _columns(self, device: torch.device) -> list[Tensor]:
        """Return for each member the columns of its taught classes in an answer with the classes of all members."""
        assert self.classes is not None
        taught = self.classes.student
        maps = [m.classes for m in self._members if m.classes is not None]
        return [self.classes.index(device, [taught.index(i) for i in each.student]) for each in maps]

    def unprepared_copy(self) -> Teacher:
        """Return an unprepared ensemble with the same models and classes."""
        twin: Any = super().unprepared_copy()
        twin._members = [m.unprepared_copy() for m in self._members]
        return twin

    def fingerprint(self) -> str:
        """Return a hash of all members' fingerprints."""
        return hashlib.sha256("".join(m.fingerprint() for m in self._members).encode()).hexdigest()

    def release(self) -> None:
        """Free the memory of all members' weights."""
        for member in self._members:
            member.release()
        super().release()

    def parameters(self) -> int:
        """Return the number of parameters of all members."""
        return sum(m.parameters() for m in self._members)

    def gflops(self, imgsz: int) -> float:
        """Return the GFLOPs of all members at an image size."""
        return sum(m.gflops(imgsz) for m in self._members)


class GridEnsemble(Ensemble):
    """Detectors with levels in common: scores and boxes of every anchor point are averaged.

    A probability is the mean over the teachers that know the class. A box is the mean of decoded boxes, weighted by
    confidence. The common layout has no DFL and only a one2many branch: one2one heads may choose different anchor
    points for an object, and their mean would be two objects with half the confidence.
    """

    can_validate = True

    def inspect(self) -> None:
        """Inspect all teachers and the levels that they have in common."""
        super().inspect()
        strides = common_strides([m.layout for m in self._members if m.layout is not None])
        self.layout = Layout(strides, (0,) * len(strides), len(self.names), 1, (ONE2MANY,), self.task)

    def _member_reads(self, reads: Reads) -> Reads:
        """Return the parts to read from each member: boxes also need scores, which are their weights."""
        assert self.layout is not None
        parts = reads.parts or dict.fromkeys(self.layout.branches, ("scores", "boxes"))
        needed = {b: {*names, "scores"} if "boxes" in names else set(names) for b, names in parts.items()}
        self._strides = tuple(reads.strides or self.layout.strides)
        return Reads(needed, self._strides, reads.features)

    def _answer(self, raw: list[Answer], images: Tensor) -> Answer:
        """Return the mean of the members' answers."""
        assert self.classes is not None
        features = [maps for answer in raw for maps in answer.features]
        branches = {name: self._average([a.branches[name] for a in raw]) for name in raw[0].branches}
        return Answer(branches, self.classes.taught(images.device), self, features)

    def answer_for_any_size(self, images: Tensor) -> SetAnswer:
        """Return the detections in the members' mean, which is taken at the anchor points of these images."""
        assert self.layout is not None
        return grid_as_set(self(images), self.layout.only(self._strides), images)

    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a model that predicts the members' mean."""
        return DetectorModel(self.unprepared_copy(), nc, names)

    def _average(self, branches: list[Branch]) -> Branch:
        """Return the mean of one branch over the members."""
        assert self.classes is not None
        first = branches[0]
        points = first.scores.shape[:2]
        scores = first.scores.new_zeros((*points, len(self.classes.student)), dtype=torch.float32)
        weight = scores.new_zeros(scores.shape[-1])
        boxes, box_weight = scores.new_zeros((*points, 4)), scores.new_zeros((*points, 1))
        for member, branch, share, columns in zip(self._members, branches, self.shares, self._columns(scores.device)):
            if branch.scores.shape[-1]:
                probs = branch.scores.float().sigmoid()
                scores.index_add_(-1, columns, probs, alpha=share)
                weight.index_add_(0, columns, weight.new_full((len(columns),), share))
            if branch.boxes.shape[-1]:
                assert member.layout is not None
                confidence = probs.amax(-1, keepdim=True).clamp(min=1e-6) * share
                boxes += confidence * distances(branch.boxes.float(), member.layout.only(self._strides))
                box_weight += confidence
        logits = torch.logit(scores / weight.clamp(min=1e-9), eps=1e-6) if first.scores.shape[-1] else first.scores
        boxes = boxes / box_weight if first.boxes.shape[-1] else first.boxes
        return Branch(logits, boxes, first.feats)


class SeparateEnsemble(Ensemble):
    """Teachers whose outputs cannot be averaged element by element: the student learns from each answer.

    Their terms are weighted and summed.
    """

    answers_separately = True

    def inspect(self) -> None:
        """Inspect all teachers."""
        super().inspect()
        self.layout = self._members[0].layout

    def _answer(self, raw: list[Any], images: Tensor) -> list[Any]:
        """Return the answers of all members."""
        return raw


class DenseEnsemble(Ensemble):
    """Classifiers, semantic segmenters or depth estimators.

    Their answers are averaged if they teach the same classes. Otherwise the student learns from each answer: a softmax
    over some classes cannot be compared with a softmax over others.
    """

    def match(
        self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None, single_cls: bool = False
    ) -> None:
        """Match every teacher's classes with the student's; depth has none."""
        if self.task != "depth":
            super().match(names, spec, keep, single_cls)
            return
        for member in self._members:
            member.match(names, spec, keep, single_cls)
        self.classes = self._members[0].classes

    def _answer(self, raw: list[Any], images: Tensor) -> Any:
        """Return the mean of the members' answers, or all of them if they teach different classes."""
        maps = [m.classes for m in self._members if m.classes is not None]
        if any(each.student != maps[0].student for each in maps):
            return raw
        return average(raw, self.shares, self.task)


class SetEnsemble(Ensemble, SetTeacher):
    """Detectors without a common grid: their detections are merged by weighted boxes fusion."""

    def _member_reads(self, reads: Reads) -> Reads:
        """Return the parts to read from each member: scores and boxes of the branch that all teachers have."""
        return Reads({ONE2MANY: {"scores", "boxes"}}, None, reads.features)

    def _run(self, images: Tensor) -> list[Any]:
        """Return the raw outputs of all members."""
        return [m.run(images) for m in self._members]

    def _answer(self, raw: list[Any], images: Tensor) -> SetAnswer:
        """Return the merged detections in the student's classes."""
        assert self.classes is not None
        nc = len(self.classes.student)
        views, features, known = [], [], images.new_zeros(nc)
        for member, output, share, columns in zip(self._members, raw, self.shares, self._columns(images.device)):
            assert member.classes is not None
            detections, maps = member._detections(output, images, self.thresholds)
            features += maps
            views.append([_in_union(d, member.classes, columns, nc) for d in detections])
            known[columns] += share
        conf = self.thresholds.conf
        merged = fuse(views, known, conf, self.shares)
        names = dict.fromkeys(range(nc), "")
        answer = as_set(merged, features, ClassMap({i: (i,) for i in range(nc)}, names, names), conf, images)
        answer.classes = self.classes.taught(images.device)
        return answer


def _all_names(members: Sequence[Teacher]) -> dict[int, str]:
    """Return the names of the classes of all members, each once."""
    return dict(enumerate(dict.fromkeys(name for m in members for name in m.names.values())))


def _in_union(detections: Detections, classes: ClassMap, columns: Tensor, nc: int) -> Detections:
    """Return a member's detections with a column for each of the `nc` classes that any member teaches."""
    probs = detections.probs.new_zeros((len(detections.probs), nc))
    probs[:, columns] = classes.map_scores(detections.probs)
    return Detections(detections.boxes, probs)


def ensemble(members: Sequence[Teacher], weights: Sequence[float] | None = None) -> Ensemble:
    """Return several inspected teachers as one.

    Detectors are averaged if they share strides, else their detections are merged. For the other tasks with boxes the
    student learns from each answer; the dense tasks have a `DenseEnsemble`.
    """
    if members[0].task in outputs.DENSE_TASK_OF.values():
        return DenseEnsemble(members, weights)
    if members[0].task != "detect":
        return SeparateEnsemble(members, weights)
    layouts = [m.layout for m in members]
    grid = all(each is not None for each in layouts) and common_strides([e for e in layouts if e is not None])
    return (GridEnsemble if grid else SetEnsemble)(members, weights)
