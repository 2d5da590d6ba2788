"""One job of a bench in a process of its own: train a model or take one, score it, and leave a record.

A process for each training keeps the arms apart: none inherits another's random state, memory or half-warm GPU.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
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


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job and return its record.

    Args:
        job (Mapping): "args" of a training, or "weights" to be scored with "args" as they are; "classes" is how the
            classes of those weights stand for the data set's.

    Returns:
        (dict): "scores" by head (`nms`, and `end2end` where there is such a head), "parameters", "weights" and, of a
            training, "seconds".
    """
    args = dict(job["args"])
    if "weights" in job:
        return _scored(job["weights"], args, job["classes"])
    model = YOLO(args["model"])
    model.train(**{k: v for k, v in args.items() if k != "model"})
    best, last = Path(model.trainer.best), Path(model.trainer.last)
    record = _scored(str(best if best.exists() else last), args)
    # Ultralytics' own clock: epochs and their validation, without the scores that only a bench takes
    return {**record, "seconds": float(pl.read_csv(model.trainer.csv, infer_schema_length=None)["time"][-1])}


def _scored(weights: str, args: dict[str, Any], classes: Any = "auto") -> dict[str, Any]:
    """Return the record of finished weights."""
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


def _end_with(parent: int) -> None:
    """End this process when the bench that started it has gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(file: str) -> None:
    """Do the job in a JSON file and write its record beside the others."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    record = {"job": job["identity"], **work(job)}
    target = Path(job["record"])
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".tmp")
    part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    part.replace(target)  # a record is whole or not there


if __name__ == "__main__":
    main(sys.argv[1])
