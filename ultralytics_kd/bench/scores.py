"""Scores of a finished model, for each of its heads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ultralytics.data.utils import check_det_dataset, convert_ndjson_to_yolo_if_needed
from ultralytics.utils.torch_utils import get_num_params

from .. import outputs
from ..config.arguments import GRID_TASKS, learned_classes
from ..errors import KDError, NoSharedClassError
from ..model import YOLO
from ..report.datasets import channels_of, class_names_of
from ..report.score_names import END2END, METRICS, NMS, ONE
from ..teachers import Teacher, match_channels, open_teacher
from ..teachers.validation import check_scorable

# Arguments of a training that validation reads too
VAL_ARGS = (
    *("data", "split", "imgsz", "batch", "device", "workers", "classes", "single_cls", "max_det", "conf", "iou"),
    *("agnostic_nms", "half", "quantize", "rect"),
)


def score(weights: str, args: dict[str, Any], classes: Any = "auto", task: str | None = None) -> dict[str, Any]:
    """Score finished weights on the val set of a data set.

    Args:
        weights (str): Path of a checkpoint.
        args (dict): Arguments of the training; only those in `VAL_ARGS` are used.
        classes (str | dict): How the classes of the weights map to those of the data set, as `kd_classes`.
        task (str, optional): Task that they are scored for, if it may differ from their own.

    Returns:
        (dict): "scores" by head: `nms`, and `end2end` if the model has such a head, or `output`; "parameters",
            "weights" and "unmatched", the names of classes that the weights lack.
    """
    task = task or str(YOLO(weights).task)
    data = str(convert_ndjson_to_yolo_if_needed(args["data"]))
    teacher = open_teacher(weights, task, trust=True)  # YOLO has opened these weights already
    match_channels(teacher, channels_of(data, task))
    learned = learned_classes(args.get("classes"), task)
    teacher.match(class_names_of(data, task), classes, learned, bool(args.get("single_cls")))
    assert teacher.classes is not None
    if task == "pose":
        check_scorable(teacher, check_det_dataset(data))
    # Validation fuses a model, which removes the head that it does not use, so each head gets a model of its own
    scores = {head: _score(load(weights, teacher), args, given) for head, given in _heads(teacher, task).items()}
    return {
        "scores": scores,
        "parameters": get_num_params(teacher.original),
        "weights": str(Path(weights).absolute()),
        "unmatched": teacher.classes.unmatched,
    }


def score_kept(
    weights: str, args: dict[str, Any], kept: str | None, classes: Any = "auto", task: str | None = None
) -> dict[str, Any]:
    """Score finished weights on the val set of a data set, and on that of the old classes.

    Args:
        weights (str): As for `score`.
        args (dict): As for `score`.
        kept (str | None): data.yaml of the old classes.
        classes (str | dict): As for `score`.
        task (str, optional): As for `score`.

    Returns:
        (dict): The result of `score`. Each head also has "kept", its main score on the old classes. Weights that know
            no class of a data set score 0 there: an old model knows no new class, and plain fine-tuning drops the old.
    """
    result = _score_or_zero(weights, args, classes, task)
    if kept is not None:
        old = _score_or_zero(weights, {**args, "data": kept}, classes, task)["scores"]
        result["scores"] = {head: {**s, "kept": old[head]["score"]} for head, s in result["scores"].items()}
    return result


def _score_or_zero(weights: str, args: dict[str, Any], classes: Any, task: str | None) -> dict[str, Any]:
    """Return the result of `score`, with 0 for weights that have no class in common with the data set."""
    try:
        return score(weights, args, classes, task)
    except NoSharedClassError:
        task = task or str(YOLO(weights).task)
        teacher = open_teacher(weights, task, trust=True)
        return {
            "scores": {head: {"score": 0.0, "second": 0.0} for head in _heads(teacher, task)},
            "parameters": get_num_params(teacher.original),
            "weights": str(Path(weights).absolute()),
            "unmatched": list(class_names_of(str(args["data"]), task).values()),
        }


def _heads(teacher: Teacher, task: str) -> dict[str, dict[str, Any]]:
    """Return a model's heads, and the argument with which Ultralytics validates each.

    Args:
        teacher (Teacher): The model as a teacher.
        task (str): The task that it is scored for.
    """
    if task not in GRID_TASKS or teacher.layout is None:
        return {ONE: {}}
    heads: dict[str, dict[str, Any]] = {NMS: {"nms": None}}
    if outputs.ONE2ONE in teacher.layout.branches:
        heads[END2END] = {"nms": False}
    return heads


def load(weights: str, teacher: Teacher) -> YOLO:
    """Load a model that reads the images of the data set and predicts its classes.

    Args:
        weights (str): Path of a checkpoint.
        teacher (Teacher): The same model as a teacher, its channels and classes matched with those of the data set.

    Raises:
        KDError: If the model has other channels or classes and cannot be validated on those of the data set.
    """
    model = YOLO(weights)
    assert teacher.classes is not None
    if outputs.takes_prompts(model.model) or teacher.task != model.task:
        # Ultralytics would validate it with prompts or masks; the teacher that was made from it is a plain model
        model.__class__, model.task, model.overrides["task"] = YOLO, teacher.task, teacher.task
        names = teacher.classes.student_names
        model.model = teacher.validator_model(len(names), names)
    elif not teacher.classes.identity or outputs.first_conv(model.model).in_channels != teacher.channels:
        names = teacher.classes.student_names
        rtdetr = teacher.task in GRID_TASKS and teacher.layout is None  # its validator cannot map classes
        if rtdetr or not teacher.can_validate:
            raise KDError(f"{weights} has other classes or channels than the data set and cannot be scored on these.")
        model.model = teacher.validator_model(len(names), names)
    return model


def _score(model: YOLO, args: dict[str, Any], head: dict[str, Any]) -> dict[str, float]:
    """Return a model's scores on the val set; `head` holds the argument that chooses a detector's head."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = model.val(
            **{k: args[k] for k in VAL_ARGS if k in args}, **head, plots=False, verbose=False, project=folder
        )
    main, second = (float(metrics.results_dict[key]) for key, _ in METRICS[model.task])
    return {"score": main, "second": second}
