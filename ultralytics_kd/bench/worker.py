"""One job of a bench in a process of its own: train a model or take one, score it, and leave a record.

A process for each training keeps the arms apart: none inherits another's random state, memory or half-warm GPU.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from ..model import YOLO
from .scores import score


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
        return score(job["weights"], args, job["classes"])
    model = YOLO(args["model"])
    model.train(**{k: v for k, v in args.items() if k != "model"})
    best, last = Path(model.trainer.best), Path(model.trainer.last)
    record = score(str(best if best.exists() else last), args)
    # Ultralytics' own clock: epochs and their validation, without the scores that only a bench takes
    return {**record, "seconds": float(pl.read_csv(model.trainer.csv, infer_schema_length=None)["time"][-1])}


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
