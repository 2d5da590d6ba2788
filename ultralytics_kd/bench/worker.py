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
import psutil

from ..errors import KDError
from ..files import write_whole
from ..model import YOLO
from .jobs import kill_tree
from .scores import score


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job and return its record.

    Args:
        job (Mapping): "args" of a training, or "weights" to be scored with "args" as they are; "classes" is how the
            classes of those weights stand for the data set's, "trained" where a finished training is noted.

    Returns:
        (dict): What `score` returns and, of a training, its "seconds", "epochs" and "batch".
    """
    if "weights" in job:
        return score(job["weights"], job["args"], job["classes"])
    note = Path(job["trained"])
    trained = read_note(note)
    if trained.get("job") != job["identity"] or not Path(trained["weights"]).exists():
        trained = {"job": job["identity"], **_train(dict(job["args"]))}
        write(note, trained)  # whatever becomes of the scores
    return {**score(trained["weights"], job["args"]), **{k: trained[k] for k in ("seconds", "epochs", "batch")}}


def read_note(note: Path) -> dict[str, Any]:
    """Return what is noted of a finished training, nothing if there is no note.

    Args:
        note (Path): The note.

    Raises:
        KDError: If it is damaged: a training is not done once more without asking.
    """
    if not note.exists():
        return {}
    try:
        trained = json.loads(note.read_text(encoding="utf-8"))
        kinds: dict[str, Any] = {"job": dict, "weights": str, "seconds": (int, float), "epochs": int, "batch": int}
        good = all(isinstance(trained[key], kind) for key, kind in kinds.items())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise KDError(f"{note} is damaged or another program's: delete it to train again.")
    return dict(trained)


def _train(args: dict[str, Any]) -> dict[str, Any]:
    """Train, and return where the weights are and what it took."""
    model = YOLO(args.pop("model"))
    model.train(**args)
    trainer = model.trainer
    best, last = Path(trainer.best), Path(trainer.last)
    # with val=False the depth task writes more columns in its last row than in its header; those read here come first
    log = pl.read_csv(trainer.csv, infer_schema_length=None, truncate_ragged_lines=True)
    return {
        "weights": str((best if best.exists() else last).absolute()),
        "seconds": float(log["time"][-1]),  # Ultralytics' own clock: epochs and their validation
        "epochs": int(log["epoch"][-1]),
        "batch": int(trainer.batch_size),  # halved if memory ran out
    }


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON that is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, f"{json.dumps(content, indent=2)}\n".encode())


def _end_with(bench: int) -> None:
    """End this process and those that it started when the bench has gone."""
    while os.getppid() == bench if os.name == "posix" else psutil.pid_exists(bench):
        time.sleep(1)
    kill_tree(os.getpid())


def main(file: str) -> None:
    """Do the job in a JSON file and write its record."""
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with, args=(job["bench"],), daemon=True).start()
    write(Path(job["record"]), {"job": job["identity"], "versions": job["versions"], **work(job)})


if __name__ == "__main__":
    main(sys.argv[1])
