"""Which teacher class teaches which student class."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from ultralytics.nn.autobackend import check_class_names

from ..errors import KDError
from ..files import YAML_ERRORS, check_yaml_text, load_yaml

UNKNOWN = -50.0  # a logit whose sigmoid is 0 for every purpose, and that half precision can hold


@dataclass(frozen=True)
class ClassMap:
    """Match of teacher classes to student classes.

    Attributes:
        sources (dict[int, tuple[int, ...]]): Student class index -> the teacher's class indices that teach it.
        student_names (dict[int, str]): The student's classes.
        teacher_names (dict[int, str]): The teacher's classes.
        plurals (tuple[tuple[str, str], ...]): Teacher's and student's names that were matched as plural and singular.
    """

    sources: dict[int, tuple[int, ...]]
    student_names: dict[int, str]
    teacher_names: dict[int, str]
    plurals: tuple[tuple[str, str], ...] = ()
    _indices: dict[tuple, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def student(self) -> list[int]:
        """Student classes that are taught, in rising order."""
        return sorted(self.sources)

    @property
    def unmatched(self) -> list[str]:
        """Names of the student's classes that no teacher class teaches."""
        return [name for i, name in self.student_names.items() if i not in self.sources]

    @property
    def identity(self) -> bool:
        """Whether both sides have the same classes in the same order."""
        n = len(self.student_names)
        return len(self.teacher_names) == n and all(self.sources.get(i) == (i,) for i in range(n))

    def map_scores(self, scores: Tensor, exclusive: bool = False) -> Tensor:
        """Return the teacher's logits for the student's taught classes.

        Where several teacher classes stand for one student class, the most confident one speaks; of classes that
        exclude each other, as a softmax has them, all together.

        Args:
            scores (Tensor): Teacher logits (or probabilities, if not `exclusive`) of shape (..., teacher nc).
            exclusive (bool): Whether the logits are those of a softmax.

        Returns:
            (Tensor): Logits of shape (..., len(self.student)), in the order of `student`.
        """
        if self.identity:
            return scores
        if exclusive and len(self.student) == 1:  # a softmax over one class says nothing: its odds against all others
            return self._odds(scores)
        if all(len(s) == 1 for s in self.sources.values()):
            return scores.index_select(-1, self._index(scores.device, [self.sources[i][0] for i in self.student]))
        columns = [scores.index_select(-1, self._index(scores.device, self.sources[i])) for i in self.student]
        return torch.stack([c.logsumexp(-1) if exclusive else c.amax(-1) for c in columns], dim=-1)

    def map_exclusive(self, scores: Tensor) -> Tensor:
        """Return `map_scores` of the logits of a softmax."""
        return self.map_scores(scores, exclusive=True)

    def _odds(self, scores: Tensor) -> Tensor:
        """Return the log-odds of the one class that is taught, shape (..., 1)."""
        own = self.sources[self.student[0]]
        others = [i for i in range(scores.shape[-1]) if i not in own]
        inside, outside = (scores.index_select(-1, self._index(scores.device, part)) for part in (own, others))
        return (inside.logsumexp(-1) - outside.logsumexp(-1)).unsqueeze(-1) if others else inside

    def taught(self, device: torch.device) -> Tensor | None:
        """Return the student's taught classes as an index tensor on a device; None if they are all, in order."""
        return None if self.identity else self._index(device, self.student)

    def _index(self, device: torch.device, classes: Iterable[int]) -> Tensor:
        """Return an index tensor, made once: a copy to the device on every step would make the host wait."""
        key = (device, tuple(classes))
        if key not in self._indices:
            self._indices[key] = torch.tensor(key[1], device=device)
        return self._indices[key]

    def all_scores(self, scores: Tensor, exclusive: bool = False) -> Tensor:
        """Return logits for all of the student's classes, with next to no confidence in those that nobody teaches.

        Args:
            scores (Tensor): Teacher logits of shape (..., teacher nc).
            exclusive (bool): Whether the logits are those of a softmax.

        Returns:
            (Tensor): Logits of shape (..., student nc).
        """
        mapped = scores.new_full((*scores.shape[:-1], len(self.student_names)), UNKNOWN)
        mapped[..., self.student] = self.map_scores(scores, exclusive)
        return mapped


def match_classes(
    student_names: Mapping[int, str],
    teacher_names: Mapping[int, str],
    spec: str | Mapping[str, str] = "auto",
    keep: Iterable[int] | None = None,
) -> ClassMap:
    """Match classes by name or by a given map.

    Args:
        student_names (Mapping[int, str]): Class names of the data set that the student learns.
        teacher_names (Mapping[int, str]): Class names of the teacher.
        spec (str | Mapping): "auto" compares names, without regard to case and spaces where no name is equal, and to
            plural and singular where that finds none either; a mapping {teacher name: student name}, or the path of a
            YAML with one, says it outright.
        keep (Iterable[int], optional): Student classes that may be taught; all if None.

    Returns:
        (ClassMap): The match.

    Raises:
        KDError: If a name in the map is unknown or stands for several classes, or no class is matched.
    """
    students, teachers = dict(student_names), dict(teacher_names)
    plurals: list[tuple[int, int]] = []
    if isinstance(spec, str) and spec.lower() == "auto":
        pairs, plurals = _by_name(students, teachers)
    else:
        pairs = [
            (_find(theirs, teachers, "teacher"), _find(ours, students, "data"))
            for theirs, ours in load_map(spec).items()
        ]
    sources: dict[int, tuple[int, ...]] = {}
    for teacher_index, student_index in pairs:
        if keep is None or student_index in keep:
            sources[student_index] = (*sources.get(student_index, ()), teacher_index)
    if not sources:
        raise KDError(
            f"teacher and student have no class in common: the teacher knows {_list(teachers)}, the data has "
            f"{_list(students)}{'' if keep is None else f', of which classes={list(keep)} are used'}; "
            'give kd_classes=\'{"teacher name": "student name"}\' if names differ.'
        )
    said = tuple((str(teachers[i]), str(students[j])) for i, j in plurals if j in sources)
    return ClassMap(sources, students, teachers, said)


def _by_name(
    students: Mapping[int, str], teachers: Mapping[int, str]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (teacher index, student index) of classes of the same name, and which of them differ in number."""
    if students == teachers:  # even if several classes share a name
        return [(i, i) for i in students], []
    pairs = []
    for i, name in teachers.items():
        equal = [j for j, other in students.items() if str(other) == str(name)]
        # "a" must not teach "A" where the teacher has an "A" of its own
        alike = [
            j for j, other in students.items() if match_key(other) == match_key(name) and other not in teachers.values()
        ]
        found = equal or alike
        if len(found) > 1:
            raise KDError(
                f"the data has {len(found)} classes named '{name}': {found}; a class needs a name of its own."
            )
        pairs += [(i, j) for j in found]
    taught, teaching = {j for _, j in pairs}, {i for i, _ in pairs}
    plurals = [
        (i, j)
        for i, name in teachers.items()
        for j, other in students.items()
        if i not in teaching and j not in taught and _singular(name) == _singular(other)
    ]
    return [*pairs, *plurals], plurals


def _singular(name: object) -> str:
    """Return a name as `match_key` does, with its last word in the singular if it is a regular English plural."""
    key = match_key(name)
    if key.endswith("ies") and len(key) > 4:
        return f"{key[:-3]}y"
    if key.endswith(("sses", "xes", "zes", "ches", "shes")):
        return key[:-2]
    return key[:-1] if key.endswith("s") and not key.endswith(("ss", "us", "is")) and len(key) > 2 else key


def _find(name: object, names: Mapping[int, str], owner: str) -> int:
    """Return the index of a name in a map that the user gave."""
    equal = [i for i, other in names.items() if str(other) == str(name)]
    found = equal or [i for i, other in names.items() if match_key(other) == match_key(name)]
    if not found:
        raise KDError(f"kd_classes names '{name}', which is no class of the {owner}: {_list(names)}.")
    if len(found) > 1:
        raise KDError(f"kd_classes names '{name}', which stands for {len(found)} classes of the {owner}: {found}.")
    return found[0]


def load_map(spec: str | Mapping[str, str]) -> Mapping[str, str]:
    """Return the map itself, read from a YAML if a path is given, or from a text that is one.

    Raises:
        KDError: If there is none.
    """
    loaded = spec if isinstance(spec, Mapping) else _read_map(spec)
    if not loaded or not all(_is_name(name) for name in (*loaded, *loaded.values())):
        given = "" if isinstance(spec, Mapping) else f"='{spec}'"
        raise KDError(f"kd_classes{given} holds no map from teacher class names to student class names.")
    return loaded


def _is_name(value: object) -> bool:
    """Return whether a class may be called so: YAML makes numbers and dates of some names."""
    return isinstance(value, (str, float, date)) or (isinstance(value, int) and abs(value) <= sys.maxsize)


def _read_map(spec: Any) -> Mapping:
    """Return the mapping in a text or a YAML file; an empty one if something else is there."""
    if not isinstance(spec, (str, Path)):
        raise KDError(f"kd_classes is a {type(spec).__name__}: give 'auto', a map, or a YAML file with one.")
    try:
        if str(spec).strip().startswith("{"):
            check_yaml_text(str(spec))
            loaded = yaml.safe_load(str(spec))
        else:
            loaded = load_yaml(spec)
    except (OSError, *YAML_ERRORS) as e:
        said = " ".join(str(e).split())
        raise KDError(f"kd_classes='{spec}' is neither 'auto', nor a map, nor a readable YAML file: {said}") from e
    return loaded if isinstance(loaded, Mapping) else {}


def class_names(model: Any) -> dict[int, str]:
    """Return a model's class names by index, from whatever form they have; none if there are none.

    Args:
        model (Any): Any object; its `names` are looked at.
    """
    names = getattr(model, "names", None)
    try:
        if names is not None and not isinstance(names, (str, Mapping)):
            names = dict(enumerate(names))
        return check_class_names(names) if isinstance(names, Mapping) and names else {}
    except (KeyError, ValueError, TypeError, OverflowError):  # no names, or indices with gaps: teachers count them
        return {}


def match_key(name: object) -> str:
    """Return a class name without regard to case and spaces."""
    return " ".join(str(name).lower().split())


def _list(names: Mapping[int, str], most: int = 8) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(str(n) for n in list(names.values())[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
