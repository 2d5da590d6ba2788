"""Trainings that every tracker follows; run by test_trackers.py in a process of its own.

Comet and ClearML have no store on this machine: modules that only note what they are told stand in for them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from ultralytics.utils import SETTINGS

from ultralytics_kd import YOLO

HEARD: list[tuple[str, Any]] = []  # what Comet and ClearML were told: a method's name, and its arguments by position


class Listener:
    """An experiment, task or logger that notes what it is told; what no JSON can hold is noted as text."""

    def get_logger(self) -> Listener:
        """Return a logger, as ClearML's tasks do."""
        return self

    def __getattr__(self, name: str) -> Any:
        """Return a method of that name."""
        return lambda *args, **kwargs: HEARD.append(
            (name, json.loads(json.dumps([*args, *kwargs.values()], default=str)))
        )


def stand_in() -> None:
    """Put modules in the place of Comet and ClearML that offer what Ultralytics asks of them."""
    listener = Listener()
    for name in ("comet_ml", "clearml"):
        module: Any = ModuleType(name)
        module.__version__ = "1"
        sys.modules[name] = module
    sys.modules["comet_ml"].start = lambda project_name: listener
    sys.modules["comet_ml"].get_running_experiment = lambda: listener
    begun: list[Listener] = []
    sys.modules["clearml"].Task = type(
        "Task",
        (),
        {
            "current_task": staticmethod(lambda: begun[0] if begun else None),
            "init": staticmethod(lambda **_: begun.append(listener) or listener),
        },
    )


class Mute:
    """A teacher that has classes and no answer."""

    names = {0: "disc", 1: "box", 2: "bar"}  # noqa: RUF012

    def teach(self, images: torch.Tensor) -> Any:
        """Fail."""
        raise RuntimeError("nothing to say")


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Train alone, with two teachers, and with one that fails on the first batch."""
    on = ("tensorboard", "mlflow", "wandb")
    SETTINGS.update({**dict.fromkeys(on, True), "clearml": False, "comet": False, "dvc": False, "raytune": False})
    args, path = {**job["args"], "project": "shapes"}, job["teacher"]
    YOLO(job["student"]).train(**{**args, "name": "alone", "epochs": 1})
    try:
        YOLO(job["student"]).train(**args, name="mute", teacher=Mute())
        error = None
    except RuntimeError as e:
        error = str(e)
    stand_in()
    SETTINGS.update({"clearml": True, "comet": True})
    teachers = [path, YOLO(path)]  # one of them in memory
    YOLO(job["student"]).train(**args, name="taught", teacher=teachers, **job["kd"])
    return {"error": error, "heard": HEARD}


if __name__ == "__main__":
    Path("found.json").write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))), encoding="utf-8")
