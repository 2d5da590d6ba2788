"""Scores of a finished model, from each of its heads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ultralytics.data.utils import convert_ndjson_to_yolo_if_needed
from ultralytics.utils.torch_utils import get_num_params

from .. import outputs
from ..config.arguments import GRID_TASKS
from ..errors import KDError
from ..model import YOLO
from ..report.datasets import class_names_of
from ..report.score_names import END2END, METRICS, NMS, ONE
from ..teachers import Teacher, open_teacher

# Arguments of a training that its scores depend on
VAL_ARGS = (
    *("data", "split", "imgsz", "batch", "device", "workers", "classes", "single_cls", "max_det", "conf", "iou"),
    *("agnostic_nms", "half", "quantize", "rect"),
)


def score(weights: str, args: dict[str, Any], classes: Any = "auto") -> dict[str, Any]:
    """Score finished weights on the val set of a data set.

    Args:
        weights (str): Path of a checkpoint.
        args (dict): Arguments of the training; those of `VAL_ARGS` count.
        classes (str | dict): How the classes of the weights stand for those of the data set, as `kd_classes`.

    Returns:
        (dict): "scores" by head: `nms`, and `end2end` where there is such a head, or `output`; "parameters", "weights"
            and "unmatched", the names of classes that the weights do not know.
    """
    task = YOLO(weights).task
    data = str(convert_ndjson_to_yolo_if_needed(args["data"]))
    names = class_names_of(data, task, bool(args.get("single_cls")))
    teacher = open_teacher(weights, task, trust=True)  # YOLO has opened it as it does any weights
    teacher.match(names, classes)
    assert teacher.classes is not None
    model = load(weights, teacher)
    if task in GRID_TASKS and teacher.layout is not None:
        heads = outputs.layout(model.model).branches
        scores = {NMS: _score(model, args, {"nms": None})}
        if outputs.ONE2ONE in heads:  # anew, as validation fuses a model and drops the head that it does not use
            scores[END2END] = _score(load(weights, teacher), args, {"nms": False})
    else:
        scores = {ONE: _score(model, args, {})}
    return {
        "scores": scores,
        "parameters": get_num_params(teacher.original),
        "weights": str(Path(weights).absolute()),
        "unmatched": teacher.classes.unmatched,
    }


def load(weights: str, teacher: Teacher) -> YOLO:
    """Load a model that answers in the classes of the data set.

    Args:
        weights (str): Path of a checkpoint.
        teacher (Teacher): The same, its classes matched with those of the data set.
    """
    model = YOLO(weights)
    assert teacher.classes is not None
    if not teacher.classes.identity:
        names = teacher.classes.student_names
        queries = teacher.task in GRID_TASKS and teacher.layout is None  # RT-DETR, which has a validator of its own
        model.model = None if queries else teacher.validator_model(len(names), names)
        if model.model is None:
            raise KDError(f"{weights} has other classes than the data, and cannot be scored in those.")
    return model


def _score(model: YOLO, args: dict[str, Any], head: dict[str, Any]) -> dict[str, float]:
    """Return a model's scores on the val set; of detectors by NMS over one2many, or from the end-to-end head."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = model.val(
            **{k: args[k] for k in VAL_ARGS if k in args}, **head, plots=False, verbose=False, project=folder
        )
    main, second = (float(metrics.results_dict[key]) for key, _ in METRICS[model.task])
    return {"score": main, "second": second}
