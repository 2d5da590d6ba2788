"""Scores of a finished model, from each of its heads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.autobackend import check_class_names
from ultralytics.utils.torch_utils import get_num_params

from .. import predictions
from ..classes import match_classes
from ..model import YOLO
from ..teacher import Teacher

NMS, END2END = "nms", "end2end"
# Arguments of a training that its scores depend on
VAL_ARGS = (
    *("data", "imgsz", "batch", "device", "workers", "classes", "single_cls", "max_det", "conf", "iou", "agnostic_nms"),
    *("half", "quantize", "rect"),
)


def score(weights: str, args: dict[str, Any], classes: Any = "auto") -> dict[str, Any]:
    """Score finished weights on the val set of a data set.

    Args:
        weights (str): Path of a checkpoint.
        args (dict): Arguments of the training; those of `VAL_ARGS` count.
        classes (str | dict): How the classes of the weights stand for those of the data set, as `kd_classes`.

    Returns:
        (dict): "scores" by head: `nms`, and `end2end` where there is such a head; "parameters" and "weights".
    """
    names = check_class_names(check_det_dataset(args["data"])["names"])

    def loaded() -> YOLO:
        """Return the model anew, as validation fuses it and drops the head that it does not use."""
        model = YOLO(weights)
        match = match_classes(names, Teacher(weights).names, classes)
        if not match.identity:  # a teacher with classes of its own answers in those of the data set
            predictions.map_head_classes(model.model, match.all_scores, len(names))
            model.model.names = names
        return model

    model = loaded()
    parameters, heads = get_num_params(model.model), predictions.layout(model.model).branches
    scores = {NMS: _score(model, args, None)}
    if predictions.ONE2ONE in heads:
        scores[END2END] = _score(loaded(), args, False)
    return {"scores": scores, "parameters": parameters, "weights": str(Path(weights).absolute())}


def _score(model: YOLO, args: dict[str, Any], nms: bool | None) -> dict[str, float]:
    """Return a model's scores on the val set, by NMS over its one2many head or from its end-to-end head."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = model.val(
            **{k: args[k] for k in VAL_ARGS if k in args}, nms=nms, plots=False, verbose=False, project=folder
        )
    box = metrics.box
    return {"map": float(box.map), "map50": float(box.map50), "precision": float(box.mp), "recall": float(box.mr)}
