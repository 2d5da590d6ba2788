"""Measures what a teacher costs in validation: the time of an epoch whose val set is as large as its training set.

    python examples/speed/validation.py                     writes results/validation.json and .md
    python examples/speed/validation.py rounds=5 images=64

Each round trains every arm once, in random order, so that other load on the machine slows all arms alike. In the arm
"asked every epoch" the teacher answers the val images again in each epoch. In "answers kept", as in every run of this
package, the answers of the first epoch serve the others, because they never change. Times are of the second epoch on.
Weights are random and images are drawn, as neither changes the time.
"""

from __future__ import annotations

import platform
import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from measurement import publish, read_settings
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import TQDM

from ultralytics_kd import KDDetectionTrainer
from ultralytics_kd.bench.table import markdown
from ultralytics_kd.demo.shapes import CLASS_NAMES, draw_dataset
from ultralytics_kd.training.answer_sources import ValAnswers

RESULTS = Path(__file__).resolve().parent / "results"
ARMS = ("plain", "asked every epoch", "answers kept")


@dataclass
class Settings:
    """Settings of a measurement.

    Attributes:
        teacher (str): Scale of the teacher.
        imgsz (int): Image size in pixels.
        batch (int): Batch size.
        images (int): Training images, and as many val images.
        epochs (int): Epochs of a training.
        rounds (int): Trainings of every arm.
        out (str): File for the results, `.json`; the table is written beside it.
    """

    teacher: str = "s"
    imgsz: int = 128
    batch: int = 8
    images: int = 64
    epochs: int = 3
    rounds: int = 5
    out: str = str(RESULTS / "validation.json")


class Clock:
    """Callbacks that note the seconds of each epoch, and of the validation in it."""

    def __init__(self) -> None:
        """Start without times."""
        self.epochs: list[float] = []
        self.validations: list[float] = []
        self._begun = self._trained = 0.0

    def callbacks(self) -> dict[str, Callable[[Any], None]]:
        """Return the callbacks by event."""
        return {
            "on_train_epoch_start": lambda _: setattr(self, "_begun", perf_counter()),
            "on_train_epoch_end": lambda _: setattr(self, "_trained", perf_counter()),
            "on_fit_epoch_end": lambda trainer: self._note() if trainer.epoch >= len(self.epochs) else None,
        }

    def _note(self) -> None:
        """Note the times of the epoch that has ended."""
        now = perf_counter()
        self.epochs.append(now - self._begun)
        self.validations.append(now - self._trained)


def train(arm: str, settings: Settings, folder: Path) -> Clock:
    """Train one arm, and return the times of its epochs.

    Args:
        arm (str): Name in `ARMS`.
        settings (Settings): Settings of the measurement.
        folder (Path): Folder with `data/data.yaml` and `teacher.pt`.
    """
    distils = arm != "plain"
    arguments = {
        "model": "yolo26n.yaml",
        "data": str(folder / "data" / "data.yaml"),
        "imgsz": settings.imgsz,
        "batch": settings.batch,
        "epochs": settings.epochs,
        "workers": 0,
        "plots": False,
        "device": "cpu",
        "project": str(folder / "runs"),
        "name": "run",
        "exist_ok": True,
        **({"teacher": str(folder / "teacher.pt"), "kd_init": False} if distils else {}),
    }
    trainer = (KDDetectionTrainer if distils else DetectionTrainer)(overrides=arguments)
    clock = Clock()
    for event, callback in clock.callbacks().items():
        trainer.add_callback(event, callback)
    asked = patch.object(ValAnswers, "get", lambda _, batch, compute, keep_features: compute())
    with asked if arm == "asked every epoch" else nullcontext():
        trainer.train()
    return clock


def measure(settings: Settings, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of epochs and validations by arm, without the first epoch of each training."""
    draw_dataset(folder / "data", train_images=settings.images, val_images=settings.images, size=settings.imgsz)
    teacher = YOLO(f"yolo26{settings.teacher}.yaml")
    teacher.model = DetectionModel(f"yolo26{settings.teacher}.yaml", nc=len(CLASS_NAMES), verbose=False)
    teacher.model.names = dict(enumerate(CLASS_NAMES))
    teacher.save(folder / "teacher.pt")
    times: dict[str, dict[str, list[float]]] = {arm: {"epoch": [], "validation": []} for arm in ARMS}
    for _ in TQDM(range(settings.rounds), desc="Rounds"):
        for arm in random.sample(ARMS, len(ARMS)):
            clock = train(arm, settings, folder)
            times[arm]["epoch"] += clock.epochs[1:]
            times[arm]["validation"] += clock.validations[1:]
    return times


def summarize(times: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Return a row for each arm: median seconds with quartiles, and the ratios to plain."""
    rows = []
    for arm, own in times.items():
        row: dict[str, Any] = {"arm": arm}
        for part, seconds in own.items():
            low, _, high = quantiles(seconds, n=4)
            row[part] = {
                "seconds": median(seconds),
                "low": low,
                "high": high,
                "over_plain": median(seconds) / median(times["plain"][part]),
            }
        rows.append(row)
    return rows


def to_markdown(report: dict[str, Any]) -> str:
    """Return the table of a report."""
    lines = [["arm", "validation, s (quartiles)", "over plain", "epoch, s (quartiles)", "over plain"]]
    for row in report["table"]:
        cells = [row["arm"]]
        for part in ("validation", "epoch"):
            own = row[part]
            cells += [
                f"{own['seconds']:.2f} ({own['low']:.2f} to {own['high']:.2f})",
                f"{own['over_plain']:.2f}x",
            ]
        lines.append(cells)
    return markdown(lines)


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, write the results and print the table.

    Args:
        arguments (list[str]): `name=value` for the fields of `Settings`.
    """
    settings = read_settings(Settings, arguments)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(settings, Path(folder))
    return publish(settings, summarize(times), to_markdown, system=platform.system(), threads=torch.get_num_threads())


if __name__ == "__main__":
    main(sys.argv[1:])
