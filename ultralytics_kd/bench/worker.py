"""Runs one job of a bench in a process: trains a model or takes a trained one, scores it, and leaves a record.

Each training has its own process to keep the arms apart: none inherits another's random state, memory or GPU state.
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
import psutil

from ..model import YOLO
from .contents import changed
from .jobs import VERSIONS, kill_tree
from .records import TRAINING, read_note, write
from .scores import score, score_kept


def run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job and return its result.

    Args:
        job (Mapping): A training has its arguments in "args", and the file for the note of a finished training in
            "trained". A scoring has "weights", the "args" to score them with, and in "classes" how the classes of the
            weights map to those of the data set; "task" is that of the bench. If an arm of the bench keeps classes,
            "keeps" is True, and "kept" may be the data of the old classes.

    Returns:
        (dict): The result of `score` or `score_kept`; for a training also "seconds", "epochs" and "batch".
    """
    if "weights" in job:
        return _score(job, job["weights"], job["classes"])
    note = Path(job["trained"])
    training = read_note(note)
    if not training or changed(training["job"], job["identity"]) or not Path(training["weights"]).exists():
        training = {"job": job["identity"], **_train(dict(job["args"]))}
        write(note, training)  # before the scores: if they fail, the training is not lost
    return {**_score(job, training["weights"], "auto"), **{k: training[k] for k in TRAINING}}


def _score(job: Mapping[str, Any], weights: str, classes: Any) -> dict[str, Any]:
    """Return the scores of weights on the data of a job."""
    if job.get("keeps"):
        return score_kept(weights, job["args"], job["kept"], classes, job.get("task"))
    return score(weights, job["args"], classes, job.get("task"))


def _train(args: dict[str, Any]) -> dict[str, Any]:
    """Train, and return the path of the weights, the time, the epochs and the batch size."""
    model = YOLO(args.pop("model"))
    model.train(**args)
    trainer = model.trainer
    best, last = Path(trainer.best), Path(trainer.last)
    # With val=False the depth task's last row has more columns than the header; those read here come first
    log = pl.read_csv(trainer.csv, infer_schema_length=None, truncate_ragged_lines=True)
    return {
        "weights": str((best if best.exists() else last).absolute()),
        "seconds": float(log["time"][-1]),  # as Ultralytics measures it: epochs and their validation
        "epochs": int(log["epoch"][-1]),
        "batch": int(trainer.batch_size),  # Ultralytics halves it if memory runs out
    }


def _end_with(parent: int) -> None:
    """End this process and its children when the process that started it ends: the bench, or Ray's on this machine."""
    while os.getppid() == parent if os.name == "posix" else psutil.pid_exists(parent):
        time.sleep(1)
    kill_tree(os.getpid())


def main(file: str, parent: str) -> None:
    """Run the job in a JSON file and write its record."""
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    write(Path(job["record"]), {"job": job["identity"], "versions": VERSIONS, **run_job(job)})


if __name__ == "__main__":
    main(*sys.argv[1:])
