"""Scores of teachers and student on the val images, and where a teacher is better."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.model import YOLO
from ultralytics.utils import LOGGER

from ..config.arguments import learned_classes
from ..errors import KDError, ModelError, NoSharedClassError
from ..report.compared_model import ComparedModel
from ..report.datasets import channels_of, class_names_of
from ..report.object_sizes import ap_by_size
from ..report.score_names import END2END, NMS
from ..report.validation import ValidationResult, validate
from ..teachers import Teacher, match_channels, open_teacher
from ..teachers.validation import check_scorable
from .sample import Part


@dataclass(frozen=True)
class Judge:
    """How models are scored.

    Attributes:
        task (str): Their task.
        args (Namespace): Ultralytics' arguments for a validation.
        names (dict[int, str]): Classes of the data, as the student has them.
        validator (type): The task's validator.
        folder (Path): Folder for what Ultralytics writes.
    """

    task: str
    args: Namespace
    names: dict[int, str]
    validator: type
    folder: Path

    def predictions(self, model: ComparedModel, part: Part) -> ValidationResult:
        """Return scores, predictions and labels of a model on images.

        Args:
            model (ComparedModel): The model.
            part (Part): The images.
        """
        head = model.head(END2END if self.args.nms is False else NMS)
        own = {"data": part.data, "split": part.split, "imgsz": model.imgsz or self.args.imgsz}
        own["nms"] = False if head == END2END else None
        return validate(model.copy(self.names), self.validator, Namespace(**{**vars(self.args), **own}), self.folder)


def make_judge(args: Namespace, task: str, model: str, folder: Path) -> Judge:
    """Return how models of a task are scored on a data set.

    Args:
        args (Namespace): Ultralytics' arguments for a validation.
        task (str): Task of the models.
        model (str): The student.
        folder (Path): Folder for what Ultralytics writes.
    """
    names = class_names_of(args.data, task, args.single_cls)
    return Judge(task, args, names, YOLO(model).task_map[task]["validator"], folder)


def open_candidate(source: str, args: Namespace, task: str, imgsz: int | None) -> ComparedModel:
    """Open a teacher that is to be judged, its classes matched with those of the data.

    Args:
        source (str): The teacher.
        args (Namespace): Ultralytics' arguments for a validation.
        task (str): Task of the student.
        imgsz (int | None): Size of its images in pixels; None for the student's.

    Raises:
        KDError: If it cannot teach, or cannot be scored.
    """
    teacher = _open(source, args, task)
    learned = learned_classes(args.classes, task)
    teacher.match(class_names_of(args.data, task), args.kd_classes, learned, bool(args.single_cls))
    return ComparedModel("teacher", teacher, imgsz=imgsz)


def open_reference(source: str, args: Namespace, task: str, names: Mapping[int, str], argument: str) -> ComparedModel:
    """Open a student that was trained for the classes of the data.

    Args:
        source (str): The student.
        args (Namespace): Ultralytics' arguments for a validation.
        task (str): Its task.
        names (Mapping[int, str]): Classes of the data.
        argument (str): The argument that names it, for errors.

    Raises:
        KDError: If it has other classes, or cannot be scored.
    """
    try:
        model = _open(source, args, task)
        model.match(names)
    except ModelError as e:
        raise e.for_argument(argument) from e
    except NoSharedClassError as e:
        known = ", ".join(map(str, model.names.values()))
        reason = f"knows none of the classes of data={args.data}: its classes are {known}."
        raise ModelError(source, reason, argument) from e
    return ComparedModel("student", model)


def is_configuration(source: str) -> bool:
    """Return whether a model is a configuration; names without a suffix and `ul://` URIs are trained weights.

    Args:
        source (str): The model as `model=` takes it.
    """
    return Path(source).suffix in {".yaml", ".yml"}


def student_as_it_is(source: str, args: Namespace, task: str, names: Mapping[int, str]) -> ComparedModel | None:
    """Return the student if it is trained for the classes of the data already, else None.

    Args:
        source (str): The student.
        args (Namespace): Ultralytics' arguments for a validation.
        task (str): Its task.
        names (Mapping[int, str]): Classes of the data.
    """
    if is_configuration(source):
        return None
    try:
        model = open_reference(source, args, task, names, "model")
    except KDError:
        return None
    assert model.loaded.classes is not None
    return model if model.loaded.classes.identity else None


def _open(source: str, args: Namespace, task: str) -> Teacher:
    """Open a model that reads the images of the data and can be scored.

    Raises:
        KDError: If it cannot be opened, read the images or be scored.
    """
    model = open_teacher(source, task, trust=bool(args.kd_trust_teacher))
    match_channels(model, channels_of(args.data, task))
    if not model.can_validate:
        raise ModelError(source, "cannot be scored, and advice depends on its score: give trained weights (.pt).")
    if task == "pose":
        check_scorable(model, check_det_dataset(args.data))
    return model


def taught(model: ComparedModel) -> set[int]:
    """Return the classes of the data that a model knows."""
    assert model.loaded.classes is not None
    return set(model.loaded.classes.student)


def figures(model: ComparedModel, result: ValidationResult, imgsz: int) -> dict[str, Any]:
    """Return what the advice says about a model's score.

    Args:
        model (ComparedModel): The model.
        result (ValidationResult): Its result on the val images.
        imgsz (int): Image size of the student in pixels.

    Returns:
        (dict): "score", "second", "classes" (score and labels by name), "sizes" (the same by object size; empty without
            boxes), "imgsz", "parameters" and "gflops"; the latter two are None if unknown. A model that does not know
            all classes has no "sizes": those that it does not know would count 0 in each.
    """
    assert model.loaded.classes is not None
    costs, sized = model.costs(imgsz), result.labels and not model.loaded.classes.unmatched
    return {
        "score": result.score,
        "second": result.second,
        "classes": {name: {k: row[k] for k in ("score", "labels")} for name, row in result.classes.items()},
        "sizes": ap_by_size(result.objects, result.labels) if sized else {},
        **{name: costs[name] for name in ("imgsz", "parameters", "gflops")},
    }


def lead(teacher: Mapping[str, Any], alone: Mapping[str, Any], unmatched: list[str]) -> float:
    """Return by how much a teacher is better than a student; a class that it does not teach counts 0.

    Args:
        teacher (Mapping): The teacher's figures.
        alone (Mapping): The student's figures.
        unmatched (list[str]): Classes that the teacher does not know: the student learns them from labels alone.
    """
    if not unmatched:
        return _difference(teacher["score"], alone["score"])
    return sum(lead_by(teacher, alone, "classes", unmatched).values()) / max(len(alone["classes"]), 1)


def lead_by(
    teacher: Mapping[str, Any], alone: Mapping[str, Any], what: str, unmatched: Sequence[str] = ()
) -> dict[str, float]:
    """Return by how much a teacher is better in each class or object size that both have a score for.

    Args:
        teacher (Mapping): The teacher's figures.
        alone (Mapping): The student's figures.
        what (str): "classes" or "sizes".
        unmatched (Sequence[str]): Classes that the teacher does not know, for "classes".
    """
    return {
        name: _difference(row["score"], alone[what][name]["score"])
        for name, row in teacher[what].items()
        if name not in unmatched and row["score"] is not None and alone[what].get(name, {}).get("score") is not None
    }


def _difference(ours: float, theirs: float) -> float:
    """Return the difference of two scores rounded to three digits, which is what a reader of these scores computes."""
    return round(round(ours, 3) - round(theirs, 3), 3)


def computes_more(teacher: Mapping[str, Any], student: Any, imgsz: int) -> float | None:
    """Return how many times the student's computation a teacher's is, each at its own image size; None if unknown.

    Args:
        teacher (Mapping): The teacher's figures.
        student (nn.Module): The student.
        imgsz (int): The student's image size in pixels.
    """
    from ultralytics.utils.torch_utils import get_flops

    with torch.no_grad():
        own = get_flops(student, imgsz)
    if not own or not teacher["gflops"]:
        LOGGER.debug("the computation of teacher or student is unknown")
        return None
    return float(teacher["gflops"] / own)
