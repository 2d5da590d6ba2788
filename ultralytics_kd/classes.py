"""Which teacher class teaches which student class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

from .errors import KDError


@dataclass(frozen=True)
class ClassMap:
    """Match of teacher classes to student classes.

    Attributes:
        sources (dict[int, tuple[int, ...]]): Student class index -> the teacher's class indices that teach it.
        student_names (dict[int, str]): The student's classes.
        teacher_names (dict[int, str]): The teacher's classes.
    """

    sources: dict[int, tuple[int, ...]]
    student_names: dict[int, str]
    teacher_names: dict[int, str]

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

    def map_scores(self, scores: Tensor) -> Tensor:
        """Return the teacher's logits for the student's taught classes.

        Where several teacher classes stand for one student class, the most confident one speaks.

        Args:
            scores (Tensor): Teacher logits of shape (..., teacher nc).

        Returns:
            (Tensor): Logits of shape (..., len(self.student)), in the order of `student`.
        """
        if self.identity:
            return scores
        if all(len(s) == 1 for s in self.sources.values()):
            index = torch.tensor([self.sources[i][0] for i in self.student], device=scores.device)
            return scores.index_select(-1, index)
        return torch.stack([scores[..., list(self.sources[i])].amax(-1) for i in self.student], dim=-1)

    def lookup(self) -> list[int]:
        """Return for each teacher class the student class that it teaches, -1 for none."""
        table = dict.fromkeys(range(len(self.teacher_names)), -1)
        table.update({t: s for s, sources in self.sources.items() for t in sources})
        return list(table.values())


def match_classes(
    student_names: Mapping[int, str], teacher_names: Mapping[int, str], spec: str | Mapping[str, str] = "auto"
) -> ClassMap:
    """Match classes by name or by a given map.

    Args:
        student_names (Mapping[int, str]): Class names of the data set that the student learns.
        teacher_names (Mapping[int, str]): Class names of the teacher.
        spec (str | Mapping): "auto" compares names without regard to case and spaces; a mapping
            {teacher name: student name}, or the path of a YAML with one, says it outright.

    Returns:
        (ClassMap): The match.

    Raises:
        KDError: If a name in the map is unknown, or no class is matched.
    """
    students = {_key(name): i for i, name in student_names.items()}
    teachers = {_key(name): i for i, name in teacher_names.items()}
    if isinstance(spec, str) and spec.lower() == "auto":
        pairs = [(i, students[name]) for name, i in teachers.items() if name in students]
    else:
        pairs = []
        for teacher_name, student_name in _load(spec).items():
            if _key(teacher_name) not in teachers:
                raise KDError(
                    f"kd_classes names '{teacher_name}', which is no class of the teacher: {_list(teacher_names)}."
                )
            if _key(student_name) not in students:
                raise KDError(
                    f"kd_classes names '{student_name}', which is no class of the data: {_list(student_names)}."
                )
            pairs.append((teachers[_key(teacher_name)], students[_key(student_name)]))
    if not pairs:
        raise KDError(
            f"teacher and student have no class in common: the teacher knows {_list(teacher_names)}, the data has "
            f'{_list(student_names)}; give kd_classes=\'{{"teacher name": "student name"}}\' if names differ.'
        )
    sources: dict[int, tuple[int, ...]] = {}
    for teacher_index, student_index in pairs:
        sources[student_index] = (*sources.get(student_index, ()), teacher_index)
    return ClassMap(sources, dict(student_names), dict(teacher_names))


def _load(spec: str | Mapping[str, str]) -> Mapping[str, str]:
    """Return the map itself, read from a YAML if a path is given."""
    if isinstance(spec, Mapping):
        return spec
    try:
        loaded = YAML.load(check_yaml(spec))
    except (OSError, AssertionError, ValueError) as e:
        raise KDError(f"kd_classes='{spec}' is neither 'auto' nor a readable YAML file: {e}") from e
    if not isinstance(loaded, Mapping) or not loaded:
        raise KDError(f"kd_classes='{spec}' holds no map from teacher class names to student class names.")
    return loaded


def _key(name: object) -> str:
    """Return a name without regard to case and spaces."""
    return " ".join(str(name).lower().split())


def _list(names: Mapping[int, str], most: int = 8) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(str(n) for n in list(names.values())[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
