"""Which teacher class teaches which student class."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from ultralytics.nn.autobackend import check_class_names
from ultralytics.utils import LOGGER

from ..errors import KDError, NoSharedClassError
from ..files import YAML_ERRORS, check_yaml_text, load_yaml
from .plurals import match_plurals

UNKNOWN = -50.0  # a logit with a sigmoid of practically 0, within the range of half precision
SINGLE_CLASS = "item"  # Ultralytics' name of the only class under single_cls=True


@dataclass(frozen=True)
class ClassMap:
    """Match of teacher classes to student classes.

    Attributes:
        sources (dict[int, tuple[int, ...]]): Student class index -> the teacher's class indices that teach it.
        student_names (dict[int, str]): The student's classes.
        teacher_names (dict[int, str]): The teacher's classes.
        plurals (tuple[tuple[str, str], ...]): Teacher's and student's names that were matched as plural and singular.
        learned (tuple[int, ...] | None): Student classes that the training learns (`classes`); None for all.
    """

    sources: dict[int, tuple[int, ...]]
    student_names: dict[int, str]
    teacher_names: dict[int, str]
    plurals: tuple[tuple[str, str], ...] = ()
    learned: tuple[int, ...] | None = None
    _indices: dict[tuple, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def student(self) -> list[int]:
        """Student classes that are taught, in rising order."""
        return sorted(self.sources)

    @property
    def unmatched(self) -> list[str]:
        """Names of the classes that the student learns and no teacher class teaches."""
        return [name for i, name in self.learned_names.items() if i not in self.sources]

    @property
    def learned_names(self) -> dict[int, str]:
        """The student's classes without those that `classes` leaves out."""
        return {i: name for i, name in self.student_names.items() if self.learned is None or i in self.learned}

    @property
    def identity(self) -> bool:
        """Whether both sides have the same classes in the same order."""
        n = len(self.student_names)
        return len(self.teacher_names) == n and all(self.sources.get(i) == (i,) for i in range(n))

    def map_scores(self, scores: Tensor, softmax: bool = False) -> Tensor:
        """Return the teacher's logits for the student's taught classes.

        Where several teacher classes teach one student class, the result is their maximum. For logits of a softmax it
        is their logsumexp, which stands for the sum of their probabilities. If only one class is taught, softmax logits
        become its log-odds against all other classes.

        Args:
            scores (Tensor): Teacher logits (or probabilities, if not `softmax`) of shape (..., teacher nc).
            softmax (bool): Whether the logits are those of a softmax.

        Returns:
            (Tensor): Logits of shape (..., len(self.student)), in the order of `student`.
        """
        if self.identity:
            return scores
        if softmax and len(self.student) == 1:  # a softmax over one class carries no information; its odds do
            return self._odds(scores)
        if all(len(s) == 1 for s in self.sources.values()):
            return scores.index_select(-1, self.index(scores.device, [self.sources[i][0] for i in self.student]))
        columns = [scores.index_select(-1, self.index(scores.device, self.sources[i])) for i in self.student]
        return torch.stack([c.logsumexp(-1) if softmax else c.amax(-1) for c in columns], dim=-1)

    def map_softmax(self, scores: Tensor) -> Tensor:
        """Return `map_scores` for the logits of a softmax."""
        return self.map_scores(scores, softmax=True)

    def _odds(self, scores: Tensor) -> Tensor:
        """Return the log-odds of the one taught class against all other classes, shape (..., 1)."""
        own = self.sources[self.student[0]]
        others = [i for i in range(scores.shape[-1]) if i not in own]
        inside = scores.index_select(-1, self.index(scores.device, own)).logsumexp(-1, keepdim=True)
        if not others:
            return inside
        return inside - scores.index_select(-1, self.index(scores.device, others)).logsumexp(-1, keepdim=True)

    def taught(self, device: torch.device) -> Tensor | None:
        """Return the student's taught classes as an index tensor on a device; None for all classes in order."""
        return None if self.identity else self.index(device, self.student)

    def index(self, device: torch.device, classes: Iterable[int]) -> Tensor:
        """Return a cached index tensor; copying it to the device in every step would cause a device sync."""
        key = (device, tuple(classes))
        if key not in self._indices:
            self._indices[key] = torch.tensor(key[1], device=device)
        return self._indices[key]

    def all_scores(self, scores: Tensor, softmax: bool = False) -> Tensor:
        """Return logits for all of the student's classes; a class that no teacher class teaches gets `UNKNOWN`.

        Args:
            scores (Tensor): Teacher logits of shape (..., teacher nc).
            softmax (bool): Whether the logits are those of a softmax.

        Returns:
            (Tensor): Logits of shape (..., student nc).
        """
        mapped = scores.new_full((*scores.shape[:-1], len(self.student_names)), UNKNOWN)
        mapped[..., self.student] = self.map_scores(scores, softmax)
        return mapped


def match_classes(
    student_names: Mapping[int, str],
    teacher_names: Mapping[int, str],
    spec: str | Mapping[str, str] = "auto",
    keep: Iterable[int] | None = None,
    single_cls: bool = False,
    owner: str = "the teacher",
) -> ClassMap:
    """Match classes by name or by a given map.

    Args:
        student_names (Mapping[int, str]): Class names of the data set that the student learns, before `single_cls`
            merges them.
        teacher_names (Mapping[int, str]): Class names of the teacher.
        spec (str | Mapping): "auto" compares names: equal ones first, then those that differ in case, repeated spaces
            or underscores, then plural and singular. A mapping {teacher name: student name}, or the path of a YAML with
            one, sets the match.
        keep (Iterable[int], optional): Student classes that may be taught; all if None.
        single_cls (bool): Whether all student classes are merged to one class "item", as in Ultralytics. Every teacher
            class that matches one of them teaches it, and so does a teacher's only class.
        owner (str): The teacher, as an error names it.

    Returns:
        (ClassMap): The match.

    Raises:
        KDError: If a name in the map is unknown or stands for several classes, or no class matches.

    Examples:
        >>> match_classes({0: "car", 1: "person"}, {0: "people", 1: "bus", 2: "Car"}).sources
        {0: (2,), 1: (0,)}
        >>> match_classes({0: "vehicle"}, {0: "car", 1: "bus"}, {"car": "vehicle", "bus": "vehicle"}).sources
        {0: (0, 1)}
    """
    students, teachers = dict(student_names), dict(teacher_names)
    automatic = isinstance(spec, str) and spec.lower() == "auto"
    if single_cls and automatic and len(teachers) == 1:
        return ClassMap({0: tuple(teachers)}, {0: SINGLE_CLASS}, teachers)
    plurals: list[tuple[int, int]] = []
    if automatic:
        pairs, plurals = _match_names(in_words(students), in_words(teachers), single_cls)
    else:
        pairs = [
            (_index_of(teacher, teachers, "teacher"), _index_of(student, students, "data"))
            for teacher, student in load_map(spec).items()
        ]
    sources: dict[int, tuple[int, ...]] = {}
    for teacher_index, student_index in pairs:
        if keep is None or student_index in keep:
            known = sources.get(student_index, ())
            sources[student_index] = known if teacher_index in known else (*known, teacher_index)
    if pairs and not sources and keep is not None:
        shared = _list({j: f"{students[j]} ({j})" for _, j in pairs})
        raise NoSharedClassError(f"classes={list(keep)} leaves none of the classes that {owner} teaches: {shared}.")
    if not sources:
        raise NoSharedClassError(
            f"{owner} has no class in common with the data: it has {_list(teachers)}, the data has {_list(students)}; "
            'give kd_classes=\'{"teacher name": "student name"}\' if names differ.'
        )
    plural_names = tuple((str(teachers[i]), str(students[j])) for i, j in plurals if j in sources)
    if single_cls:
        sources, students = {0: tuple(sorted({i for each in sources.values() for i in each}))}, {0: SINGLE_CLASS}
    learned = None if keep is None or single_cls else tuple(i for i in students if i in keep)
    return ClassMap(sources, students, teachers, plural_names, learned)


def _match_names(
    students: Mapping[int, str], teachers: Mapping[int, str], merged: bool
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Match classes by name.

    Args:
        students (Mapping[int, str]): The student's classes. Classes that share a name are not taught, because the
            teacher cannot tell them apart.
        teachers (Mapping[int, str]): The teacher's classes.
        merged (bool): Whether the student's classes are merged to one; then shared names do not matter.

    Returns:
        pairs (list[tuple[int, int]]): Teacher and student index of every match.
        plurals (list[tuple[int, int]]): The matches whose names are plural and singular.
    """
    if students == teachers:  # even if several classes share a name
        return [(i, i) for i in students], []
    pairs = []
    doubtful: set[int] = set()
    for i, name in teachers.items():
        equal = [j for j, other in students.items() if _composed(other) == _composed(name)]
        # "a" must not teach "A" if the teacher also has an "A"
        similar = [
            j for j, other in students.items() if match_key(other) == match_key(name) and other not in teachers.values()
        ]
        matches = equal or similar
        if len(matches) > 1 and not merged:
            LOGGER.warning(
                f"the data has {len(matches)} classes named '{name}' ({matches}), which are not taught: give each "
                "class a name of its own."
            )
            doubtful.update(matches)
            continue
        pairs += [(i, j) for j in matches]
    teaching, taught = {i for i, _ in pairs}, {j for _, j in pairs} | doubtful
    plurals = match_plurals(
        {j: match_key(name) for j, name in students.items() if j not in taught},
        {i: match_key(name) for i, name in teachers.items() if i not in teaching},
    )
    return [*pairs, *plurals], plurals


def _index_of(name: object, names: Mapping[int, str], owner: str) -> int:
    """Return the index of a name in a map that the user gave."""
    equal = [i for i, other in names.items() if _composed(other) == _composed(name)]
    matches = equal or [i for i, other in names.items() if match_key(other) == match_key(name)]
    if not matches:
        words = "; only YOLO-World and YOLOE take words of your own" if owner == "teacher" else ""
        raise KDError(f"kd_classes names '{name}', which is not a class of the {owner}: {_list(names)}{words}.")
    if len(matches) > 1:
        raise KDError(f"kd_classes names '{name}', which stands for {len(matches)} classes of the {owner}: {matches}.")
    return matches[0]


def load_map(spec: str | Mapping[str, str]) -> Mapping[str, str]:
    """Return a map of class names: the given map, or one that is read from a text or a YAML file.

    Raises:
        KDError: If it is not a map of names.
    """
    loaded = spec if isinstance(spec, Mapping) else _read_map(spec)
    if not loaded or not all(_is_name(name) for name in (*loaded, *loaded.values())):
        given = "" if isinstance(spec, Mapping) else f"='{spec}'"
        advice = "give a line 'teacher name: student name' for each"
        raise KDError(f"kd_classes{given} holds no map from teacher class names to student class names: {advice}.")
    return loaded


def _is_name(value: object) -> bool:
    """Return whether a value of a YAML can be a class name: YAML reads some names as numbers and dates."""
    return isinstance(value, (str, float, date)) or (isinstance(value, int) and abs(value) <= sys.maxsize)


def _read_map(spec: Any) -> Mapping:
    """Return the mapping in a text or a YAML file; an empty one if it holds something else."""
    if not isinstance(spec, (str, Path)):
        raise KDError(f"kd_classes is a {type(spec).__name__}: give 'auto', a map, or a YAML file with one.")
    try:
        if str(spec).strip().startswith("{"):
            check_yaml_text(str(spec))
            loaded = yaml.safe_load(str(spec))
        else:
            loaded = load_yaml(spec)
    except (OSError, *YAML_ERRORS) as e:
        reason = " ".join(str(e).split())
        raise KDError(f"kd_classes='{spec}' is neither 'auto', nor a map, nor a readable YAML file: {reason}") from e
    return loaded if isinstance(loaded, Mapping) else {}


def class_names(model: Any) -> dict[int, str]:
    """Return a model's class names by index; an empty dict if it has none.

    Args:
        model (Any): Any object; its `names` are a mapping or a sequence.
    """
    names = getattr(model, "names", None)
    try:
        if names is not None and not isinstance(names, (str, Mapping)):
            names = dict(enumerate(names))
        return check_class_names(names) if isinstance(names, Mapping) and names else {}
    except (KeyError, ValueError, TypeError, OverflowError):  # not names, or indices with gaps
        return {}


def in_words(names: Mapping[int, str]) -> Mapping[int, str]:
    """Return class names with words in place of ImageNet's numbers, as Ultralytics shows them (n01440764: tench)."""
    if not str(names.get(0, "")).startswith("n0"):
        return names
    try:
        return check_class_names(dict(names))
    except (KeyError, ValueError):  # they only look like these numbers
        return names


def match_key(name: object) -> str:
    """Return a class name for comparison: without case, with single spaces, also in place of underscores."""
    return " ".join(_composed(name).casefold().replace("_", " ").split())


def _composed(name: object) -> str:
    """Return a class name with each letter as one character: a Mac writes an accent as a second one."""
    return unicodedata.normalize("NFC", str(name))


def _list(names: Mapping[int, str], most: int = 8) -> str:
    """Return the first names, and the number of the others."""
    shown = ", ".join(str(n) for n in list(names.values())[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
