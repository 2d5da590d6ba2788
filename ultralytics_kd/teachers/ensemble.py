"""Several teachers that speak with one voice."""

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
from .detections import Detections, fuse
from .sets import SetTeacher, as_set
from .validation import ScoredDetector


class Ensemble(Teacher):
    """Several teachers, each in its own family and classes, that are matched with the student one by one."""

    def __init__(self, members: Sequence[Teacher], weights: Sequence[float] | None = None):
        """Put teachers together.

        Args:
            members (Sequence[Teacher]): The teachers, two or more.
            weights (Sequence[float], optional): Weight of each; equal if None.

        Raises:
            KDError: If they are of different tasks, or there is not a weight for each.
        """
        self._members = list(members)
        tasks = {m.task for m in members}
        if len(tasks) > 1:
            said = ", ".join(f"{m.source} ({m.task})" for m in members)
            raise KDError(f"the teachers are of different tasks: {said}; all must have the student's task.")
        weights = list(weights) if weights is not None else [1.0] * len(self._members)
        if len(weights) != len(self._members):
            raise KDError(
                f"kd_teacher_weights has {len(weights)} numbers for {len(self._members)} teachers: give one for each."
            )
        names = dict(enumerate(dict.fromkeys(name for m in members for name in m.names.values())))
        super().__init__(None, ", ".join(m.source for m in members), tasks.pop(), names)
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
        """Look at all teachers.

        Raises:
            KDError: If one cannot teach, or they read images of different kinds.
        """
        for member in self._members:
            member.inspect()
        channels = {m.channels for m in self._members}
        if len(channels) > 1:
            raise KDError(f"the teachers read images of {sorted(channels)} channels: all must read the student's.")
        self.channels = channels.pop()
        self.maps = [maps for m in self._members for maps in m.maps]

    def match(self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None) -> None:
        """Match every teacher's classes with the student's; of a map each takes what it knows.

        Raises:
            KDError: If a teacher has no class in common, or the map has a name that nobody knows.
        """
        keep = None if keep is None else list(keep)
        automatic = isinstance(spec, str) and spec.lower() == "auto"
        mapping = {} if automatic else dict(load_map(spec))
        known = {match_key(n) for m in self._members for n in m.names.values()}
        for theirs in mapping:
            if match_key(theirs) not in known:
                raise KDError(f"kd_classes names '{theirs}', which is no class of any teacher.")
        for member in self._members:
            own = {match_key(n) for n in member.names.values()}
            part = {theirs: ours for theirs, ours in mapping.items() if match_key(theirs) in own}
            if not automatic and not part:
                raise KDError(f"kd_classes names no class of teacher={member.source}: drop that teacher, or add some.")
            member.match(names, "auto" if automatic else part, keep)
        self.classes = self._union(names)

    def _union(self, names: Mapping[int, str]) -> ClassMap:
        """Return the map of the classes that any of them teaches: each is one class of their common answer."""
        maps = [m.classes for m in self._members if m.classes is not None]
        taught = sorted({i for each in maps for i in each.sources})
        theirs = {i: names[ours] for i, ours in enumerate(taught)}
        if taught == list(names):
            theirs = dict(names)
        return ClassMap({ours: (i,) for i, ours in enumerate(taught)}, dict(names), theirs)

    def _build(self, dtype: torch.dtype) -> None:
        """Make all of them run."""
        reads = self._member_reads(self._reads)
        for member in self._members:
            member.prepare(self._device, reads, dtype, self._fall_back, self._compile)
        super()._build(self._members[0].dtype)

    def _member_reads(self, reads: Reads) -> Reads:
        """Return what is read of each of them."""
        return reads

    def _known(self, device: torch.device) -> list[Tensor]:
        """Return for every teacher where its classes stand among those that any of them teaches."""
        assert self.classes is not None
        taught = self.classes.student
        maps = [m.classes for m in self._members if m.classes is not None]
        return [torch.tensor([taught.index(i) for i in each.student], device=device) for each in maps]

    def fingerprint(self) -> str:
        """Return a hash of all of theirs."""
        return hashlib.sha256("".join(m.fingerprint() for m in self._members).encode()).hexdigest()

    def release(self) -> None:
        """Give the weights of all back to memory."""
        for member in self._members:
            member.release()
        super().release()

    def parameters(self) -> int:
        """Return the number of parameters of all."""
        return sum(m.parameters() for m in self._members)

    def gflops(self, imgsz: int) -> float:
        """Return the GFLOPs of all at an image size."""
        return sum(m.gflops(imgsz) for m in self._members)


class GridEnsemble(Ensemble):
    """Detectors with levels in common: scores and boxes of every anchor point are averaged.

    A probability is the mean over the teachers that know the class, a box the mean of decoded boxes weighted by
    confidence. Its layout is that of a head without DFL, and of one branch: one2one heads each pick an anchor point of
    their own for an object, and the mean of two picks is two half-sure objects.
    """

    def inspect(self) -> None:
        """Look at all teachers, and at what their grids have in common."""
        super().inspect()
        strides = common_strides([m.layout for m in self._members if m.layout is not None])
        self.layout = Layout(strides, (0,) * len(strides), len(self.names), 1, (ONE2MANY,), self.task)

    def _member_reads(self, reads: Reads) -> Reads:
        """Return what is read of each of them: boxes are weighted by scores."""
        assert self.layout is not None
        parts = reads.parts or dict.fromkeys(self.layout.branches, ("scores", "boxes"))
        wanted = {b: {*names, "scores"} if "boxes" in names else set(names) for b, names in parts.items()}
        self._strides = tuple(reads.strides or self.layout.strides)
        return Reads(wanted, self._strides, reads.features)

    def __call__(self, images: Tensor) -> Answer:
        """Return the mean of all answers."""
        assert self.classes is not None and self.layout is not None
        answers = [m(images) for m in self._members]
        features = [maps for answer in answers for maps in answer.features]
        branches = {name: self._average([a.branches[name] for a in answers]) for name in answers[0].branches}
        return Answer(branches, self.classes.taught(images.device), self, features)

    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a model that says what they say together."""
        return ScoredDetector(self, nc, names)

    def _average(self, said: list[Branch]) -> Branch:
        """Return the mean of one branch's answers."""
        assert self.classes is not None
        first = said[0]
        points = first.scores.shape[:2]
        scores = first.scores.new_zeros((*points, len(self.classes.student)), dtype=torch.float32)
        weight = scores.new_zeros(scores.shape[-1])
        boxes, sure = scores.new_zeros((*points, 4)), scores.new_zeros((*points, 1))
        for member, branch, share, place in zip(self._members, said, self.shares, self._known(scores.device)):
            if branch.scores.shape[-1]:
                probs = branch.scores.float().sigmoid()
                scores.index_add_(-1, place, probs, alpha=share)
                weight.index_add_(0, place, weight.new_full((len(place),), share))
            if branch.boxes.shape[-1]:
                assert member.layout is not None
                confidence = probs.amax(-1, keepdim=True).clamp(min=1e-6) * share
                boxes += confidence * distances(branch.boxes.float(), member.layout.only(self._strides))
                sure += confidence
        logits = torch.logit(scores / weight.clamp(min=1e-9), eps=1e-6) if first.scores.shape[-1] else first.scores
        boxes = boxes / sure if first.boxes.shape[-1] else first.boxes
        return Branch(logits, boxes, first.feats)


class PluralEnsemble(Ensemble):
    """Teachers of a task whose outputs cannot be averaged number by number: the student hears each of them.

    Their terms are weighted and summed.
    """

    answers_separately = True

    def inspect(self) -> None:
        """Look at all teachers."""
        super().inspect()
        self.layout = self._members[0].layout

    def __call__(self, images: Tensor) -> list[Any]:
        """Return the answers of all."""
        return [m(images) for m in self._members]


class DenseEnsemble(Ensemble):
    """Classifiers, semantic segmenters or depth estimators.

    Their answers are averaged if they teach the same classes. Otherwise each is heard on its own: what a softmax says
    of its own classes cannot be set off against what another says of others.
    """

    def match(self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None) -> None:
        """Match every teacher's classes with the student's; depth has none."""
        if self.task != "depth":
            super().match(names, spec, keep)
            return
        for member in self._members:
            member.match(names, spec, keep)
        self.classes = self._members[0].classes

    def __call__(self, images: Tensor) -> Any:
        """Return the mean of all answers."""
        assert self.classes is not None
        maps = [m.classes for m in self._members if m.classes is not None]
        answers = [m(images) for m in self._members]
        if any(each.student != maps[0].student for each in maps):
            return answers
        return average(answers, self.shares, self.task)


class SetEnsemble(Ensemble, SetTeacher):
    """Detectors that share no grid: their detections are merged by weighted boxes fusion."""

    def __call__(self, images: Tensor) -> SetAnswer:
        """Return the merged detections in the student's classes."""
        assert self.classes is not None
        views, features = [], []
        places = self._known(images.device)
        nc = len(self.classes.student)
        known = images.new_zeros(nc)
        for member, share, place in zip(self._members, self.shares, places):
            found, maps = member.answer(images, self.sieve)
            features += maps
            assert member.classes is not None
            views.append([_placed(d, member.classes, place, nc) for d in found])
            known[place] += share
        merged = [fuse([v[i] for v in views], known, self.sieve.conf, self.shares) for i in range(len(images))]
        own = ClassMap({i: (i,) for i in range(nc)}, dict.fromkeys(range(nc), ""), dict.fromkeys(range(nc), ""))
        answer = as_set(merged, features, own, self.sieve.conf, images)
        answer.classes = self.classes.taught(images.device)
        return answer

    def _member_reads(self, reads: Reads) -> Reads:
        """Return what is read of each of them: detections of the branch that all teachers have."""
        return Reads({ONE2MANY: {"scores", "boxes"}}, None, reads.features)


def _placed(found: Detections, classes: ClassMap, place: Tensor, nc: int) -> Detections:
    """Return detections in the classes that any of the teachers teaches."""
    probs = found.probs.new_zeros((len(found.probs), nc))
    probs[:, place] = classes.map_scores(found.probs)
    return Detections(found.boxes, probs)


def ensemble(members: Sequence[Teacher], weights: Sequence[float] | None = None) -> Ensemble:
    """Return several teachers as one: averaged where they share a grid, merged as sets of detections where not.

    Args:
        members (Sequence[Teacher]): The teachers, inspected.
        weights (Sequence[float], optional): Weight of each; equal if None.
    """
    if members[0].task in outputs.DENSE_TASK_OF.values():
        return DenseEnsemble(members, weights)
    if members[0].task != "detect":
        return PluralEnsemble(members, weights)
    layouts = [m.layout for m in members]
    grid = all(each is not None for each in layouts) and common_strides([e for e in layouts if e is not None])
    return (GridEnsemble if grid else SetEnsemble)(members, weights)
