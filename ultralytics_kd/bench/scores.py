"""Scores of a finished model, from each of its heads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ultralytics.data.utils import check_det_dataset, convert_ndjson_to_yolo_if_needed
from ultralytics.nn.autobackend import check_class_names
from ultralytics.utils.torch_utils import get_num_params

from .. import predictions
from ..classes import ClassMap, match_classes
from ..model import YOLO
from ..teachers import open_teacher

NMS, END2END = "nms", "end2end"
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
        (dict): "scores" by head: `nms`, and `end2end` where there is such a head; "parameters", "weights"
            and "unmatched", the names of classes that the weights do not know.
    """
    data = check_det_dataset(str(convert_ndjson_to_yolo_if_needed(args["data"])))
    names = {0: "item"} if args.get("single_cls") else check_class_names(data["names"])
    match = match_classes(names, open_teacher(weights).names, classes)
    model = load(weights, match)
    parameters, heads = get_num_params(model.model), predictions.layout(model.model).branches
    scores = {NMS: _score(model, args, None)}
    if predictions.ONE2ONE in heads:  # anew, as validation fuses a model and drops the head that it does not use
        scores[END2END] = _score(load(weights, match), args, False)
    return {
        "scores": scores,
        "parameters": parameters,
        "weights": str(Path(weights).absolute()),
        "unmatched": match.unmatched,
    }


def load(weights: str, match: ClassMap) -> YOLO:
    """Load a model that answers in the classes of the data set.

    Args:
        weights (str): Path of a checkpoint.
        match (ClassMap): How its classes stand for those of the data set.
    """
    model = YOLO(weights)
    if not match.identity:
        predictions.map_head_classes(model.model, match.all_scores, len(match.student_names))
        model.model.names = match.student_names
    return model


def _score(model: YOLO, args: dict[str, Any], nms: bool | None) -> dict[str, float]:
    """Return a model's scores on the val set, by NMS over its one2many head or from its end-to-end head."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = model.val(
            **{k: args[k] for k in VAL_ARGS if k in args}, nms=nms, plots=False, verbose=False, project=folder
        )
    box = metrics.box
    return {"map": float(box.map), "map50": float(box.map50), "precision": float(box.mp), "recall": float(box.mr)}
