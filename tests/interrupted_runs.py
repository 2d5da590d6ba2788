"""Trainings that kill themselves at a chosen moment: orders come in as lines of JSON, exit statuses go out.

Everything is imported once; each training is a fork of this process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

from conftest import QUICK, STUDENT
from ultralytics.utils import LOGGER

from ultralytics_kd import YOLO
from ultralytics_kd.training.mixin import DistillationMixin
from ultralytics_kd.training.run import checkpoints

LOGGER.setLevel("ERROR")


def die(*_) -> None:
    """End this process at once, as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def countdown(count: int):
    """Return a function that kills the process when it is called for so many times."""
    left = SimpleNamespace(count=count)

    def tick(*_) -> None:
        left.count -= 1
        if left.count <= 0:
            die()

    return tick


def half_written(count: int) -> None:
    """Die in the middle of writing the bytes of a checkpoint."""
    stock, tick = Path.write_bytes, countdown(count)

    def write_bytes(self, content):
        if self.suffix == ".pt":
            stock(self, content[: len(content) // 2])
            tick()
        return stock(self, content)

    Path.write_bytes = write_bytes


def between_moves(count: int) -> None:
    """Die after a checkpoint was moved to its place, before the next is."""
    stock, tick = checkpoints.move_into_place, countdown(count)

    def move_into_place(part, target):
        stock(part, target)
        tick()

    checkpoints.move_into_place = move_into_place


def prepare(model: YOLO, moment: str, seed: int) -> None:
    """Set the trap."""
    rng = random.Random(seed)
    if moment == "batch":
        model.add_callback("on_train_batch_end", countdown(rng.randint(1, 5)))
    elif moment == "validation":
        model.add_callback("on_val_batch_end", countdown(rng.randint(1, 3)))
    elif moment == "results":  # the row is written, its checkpoint is not
        stock, tick = DistillationMixin.save_metrics, countdown(rng.randint(1, 2))
        DistillationMixin.save_metrics = lambda self, metrics: (stock(self, metrics), tick())[0]
    elif moment == "half a checkpoint":
        half_written(rng.randint(1, 3))
    elif moment == "between checkpoints":
        between_moves(rng.randint(1, 3))
    elif moment == "stripping":
        model.add_callback("on_train_epoch_end", lambda t: t.epoch + 1 == t.epochs and between_moves(3 + seed % 2))
    elif moment == "final validation":
        model.add_callback(
            "on_val_start", lambda v: not v.training and Path(str(v.save_dir), "weights", "best.pt").exists() and die()
        )
    elif moment == "any":
        threading.Timer(rng.uniform(0.2, 4.0), die).start()
    elif moment.startswith("saved "):  # right behind the checkpoint of an epoch
        model.add_callback("on_model_save", lambda t: t.epoch + 1 == int(moment[6:]) and die())


def run(order: dict) -> None:
    """Begin or resume a training, with a trap."""
    last = Path(order["project"]) / "run" / "weights" / "last.pt"
    model = YOLO(last if last.is_file() else STUDENT)
    prepare(model, order["moment"], order["seed"])
    if last.is_file():
        model.train(resume=True)
    else:
        fresh = {"project": order["project"], "name": "run", "exist_ok": True}
        model.train(**QUICK | {"epochs": order["epochs"], "save_period": 3}, **order["args"], **fresh)


for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            run(json.loads(line))
        except BaseException as e:
            print(type(e).__name__, e, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
