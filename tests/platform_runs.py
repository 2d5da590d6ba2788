"""Trainings that report to a Platform that fails in many ways; run by test_platform.py in a process of its own."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import ultralytics_platform._client as sdk
from ultralytics.utils import SETTINGS, uploads
from ultralytics.utils.callbacks import platform

from ultralytics_kd import YOLO, KDError

# Waits are shortened, and nothing else: a request that is not answered is given up after this many seconds
platform._send.__defaults__ = (*platform._send.__defaults__[:-1], 0.25)
sdk._retry_delay = lambda *_: 0.01
uploads.sleep = lambda _: None


def train(name: str, job: dict[str, Any], teacher: Any, **args: Any) -> dict[str, Any]:
    """Train once, and return what came of it."""
    stdout, begun = sys.stdout, time.time()
    try:
        YOLO(job["student"]).train(**job["args"], project="someone/My Project", name=name, teacher=teacher, **args)
        error = None
    except KDError as e:
        error = str(e)
    run = Path("runs/detect/someone/My Project") / name
    seconds, released = time.time() - begun, sys.stdout is stdout
    sys.stdout = stdout
    if error:
        return {"error": error, "released": released}
    best = torch.load(run / "weights" / "best.pt", weights_only=False)["model"].state_dict()
    with open(run / "results.csv", encoding="utf-8") as f:
        rows = [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(f)]
    return {
        "weights": hashlib.sha256(b"".join(v.numpy().tobytes() for v in best.values())).hexdigest(),
        "rows": rows,
        "seconds": seconds,
        "released": released,
    }


def interrupt(trainer: Any) -> None:
    """Be a failure in the second epoch."""
    if trainer.epoch == 1:
        raise InterruptedError


def resume(job: dict[str, Any]) -> None:
    """Train with a failure in between, and go on."""
    student = YOLO(job["student"])
    student.add_callback("on_train_epoch_start", interrupt)
    args = {**job["args"], "epochs": 2, "project": "someone/My Project", "name": "resumed"}
    with suppress(InterruptedError):
        student.train(**args, teacher=job["teacher"])
    YOLO("runs/detect/someone/My Project/resumed/weights/last.pt").train(resume=True)


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Train under every fault, without a key, with every kind of teacher and without one."""
    SETTINGS.update(dict.fromkeys(("clearml", "comet", "dvc", "mlflow", "raytune"), False))
    path, key = job["teacher"], os.environ.pop("ULTRALYTICS_API_KEY")
    found = {"no key": train("no-key", job, path)}
    os.environ["ULTRALYTICS_API_KEY"] = "wrong"
    found["refused"] = train("refused", job, path)
    os.environ["ULTRALYTICS_API_KEY"] = key
    found |= {name: train(name, job, path) for name in job["faults"]}
    longer = {**job, "args": {**job["args"], "epochs": 500}}
    found["cancelled"] = train("cancelled", longer, path)
    found["cancelled-early"] = train("cancelled-early", longer, path)
    found["several"] = train("several", job, [path, YOLO(path)], kd_teacher_weights=[2, 1], kd_classes={"disc": "box"})
    found["average"] = train("average", job, "ema")
    found["alone"] = train("alone", job, None)
    resume(job)
    found["other classes"] = train("other-classes", job, path, kd_classes={"unheard of": "disc"})
    return found


if __name__ == "__main__":
    found = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    platform._executor.shutdown(wait=True)
    Path("found.json").write_text(json.dumps(found), encoding="utf-8")
