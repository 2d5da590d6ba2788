"""Measures what a teacher costs per training step on this machine; the documentation shows its table.

    python examples/speed/speed.py                                  YOLO26s and YOLO26x teach YOLO26n
    python examples/speed/speed.py teachers=m imgsz=640 batch=16 device=0 rounds=20
    python examples/speed/speed.py teachers=s arms=kd_cache rounds=41                     two arms, and less noise
    python examples/speed/speed.py device=0 compile=True kd_compile=True                  compiled students and teachers

Every arm is a real trainer with its own model. In each round every arm takes one step, in random order, so that other
load on the machine slows all arms alike. A step is all that Ultralytics' loop does with a batch: preparation, forward
pass, losses, backward pass, optimizer and callbacks. `limit` is the plain step plus a forward pass of the teacher,
fused and as Ultralytics predicts with it. It is the minimum for a method that runs the teacher in every step. Memory is
the peak during the steps, measured for each arm in a separate process. Weights are random and images are drawn, as
neither changes the time. On a GPU the steps of `limit` run the teacher in half precision, and the processes that
measure memory run together, as each sees only its own.
"""

from __future__ import annotations

import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measurement import machine, read_settings, save
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER, TQDM, YAML
from ultralytics.utils.torch_utils import autocast, select_device, unwrap_model

from ultralytics_kd import KDDetectionTrainer
from ultralytics_kd.advice.costs import memory_meter
from ultralytics_kd.bench.table import markdown
from ultralytics_kd.cache.keys import image_key
from ultralytics_kd.cache.manifest import Manifest
from ultralytics_kd.cache.options import CACHE_ONLY
from ultralytics_kd.cache.shards import Row
from ultralytics_kd.cache.store import Store
from ultralytics_kd.demo.shapes import draw_dataset
from ultralytics_kd.teachers import open_teacher

CLASSES = 80  # as many as COCO has
ANSWERS = 30  # stored detections per image
OFF = {"kd_cls": 0.0, "kd_box": 0.0, "kd_feat": 0.0}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "distill_model": {"distill_model": "TEACHER"},
    "kd_cls": {"teacher": "TEACHER", **OFF, "kd_cls": 2.0},
    "kd_box": {"teacher": "TEACHER", **OFF, "kd_box": 8.0},
    "kd_feat": {"teacher": "TEACHER", **OFF, "kd_feat": 1.0},
    "kd_cls + kd_box": {"teacher": "TEACHER"},
    "all three": {"teacher": "TEACHER", "kd_feat": 1.0},
    "kd_cache": {"teacher": "TEACHER", "kd_cache": "CACHE"},
    "limit": {},
}


@dataclass
class Settings:
    """Settings of a measurement.

    Attributes:
        teachers (str): Scales of the teachers, as letters of one word.
        student (str): Scale of the student.
        imgsz (int): Image size.
        batch (int): Batch size.
        rounds (int): Steps of every arm.
        device (str): Device; Ultralytics chooses it if empty.
        amp (bool): Whether to use mixed precision, if the device supports it.
        compile (bool): Whether students are compiled; Ultralytics compiles none with `distill_model`.
        kd_compile (bool): Whether our teachers are compiled, and that of `limit`.
        arms (str): Names in `ARMS`, separated by commas; "plain" is always measured, all are if empty.
        out (str): File for the results, `.json`; the table is written beside it.
    """

    teachers: str = "sx"
    student: str = "n"
    imgsz: int = 320
    batch: int = 8
    rounds: int = 11
    device: str = ""
    amp: bool = True
    compile: bool = False
    kd_compile: bool = False
    arms: str = ""
    out: str = "speed.json"

    @property
    def names(self) -> list[str]:
        """Names of the arms, in the order of the table.

        Raises:
            ValueError: If an arm is unknown.
        """
        wanted = {name.strip() for name in self.arms.split(",") if name.strip()}
        if unknown := wanted - ARMS.keys():
            raise ValueError(f"unknown arms {', '.join(sorted(unknown))}: use {', '.join(ARMS)}")
        return [name for name in ARMS if not wanted or name == "plain" or name in wanted]


class Arm:
    """A trainer that is ready to take steps.

    Attributes:
        trainer (DetectionTrainer): The trainer.
    """

    def __init__(self, name: str, settings: Settings, folder: Path, scale: str):
        """Build the trainer.

        Args:
            name (str): Name in `ARMS`.
            settings (Settings): Settings of the measurement.
            folder (Path): Folder of data, teachers and answers.
            scale (str): The teacher's scale.
        """
        places = {"TEACHER": str(folder / f"{scale}.pt"), "CACHE": str(folder / f"answers-{scale}")}
        arm_args = {k: places.get(v, v) if isinstance(v, str) else v for k, v in ARMS[name].items()}
        compiles = "teacher" in arm_args and "kd_cache" not in arm_args
        trainer_class = KDDetectionTrainer if "teacher" in arm_args else DetectionTrainer
        self.trainer: Any = trainer_class(
            overrides={
                "model": f"yolo26{settings.student}.yaml",
                "data": str(folder / "data.yaml"),
                "imgsz": settings.imgsz,
                "batch": settings.batch,
                "nbs": settings.batch,  # an optimizer step for every batch
                "device": settings.device or None,
                "amp": settings.amp,
                "compile": settings.compile,
                "optimizer": "AdamW",
                "epochs": 1,
                "workers": 0,
                "plots": False,
                "val": False,
                "project": str(folder / "runs"),
                "name": f"{name}-{scale}".replace(" ", ""),
                "exist_ok": True,
                **({"kd_init": False} if "teacher" in arm_args else {}),  # weights do not matter, and a fit takes time
                **({"kd_compile": settings.kd_compile} if compiles else {}),
                **arm_args,
            }
        )
        self.set_up()
        self.trainer.epoch = 0
        self.trainer.run_callbacks("on_train_epoch_start")
        self.trainer._model_train()
        self.trainer.optimizer.zero_grad()
        self.batch = next(iter(self.trainer.train_loader))
        self.teacher = None
        if name == "limit":
            self.teacher = YOLO(places["TEACHER"]).model.fuse(verbose=False).eval().to(self.trainer.device)
            if self.trainer.amp:
                self.teacher.half()
            if settings.kd_compile:
                self.teacher = torch.compile(self.teacher)

    def set_up(self) -> None:
        """Build the trainer's model, terms and loaders."""
        with patch("ultralytics.engine.trainer.check_amp", return_value=True):  # the check would download weights
            self.trainer._setup_train()

    def step(self) -> float:
        """Take a step and return its time in seconds."""
        trainer = self.trainer
        synchronize(trainer.device)
        start = perf_counter()
        trainer.run_callbacks("on_train_batch_start")
        with autocast(trainer.amp, device=trainer.device.type):
            batch = trainer.preprocess_batch(dict(self.batch))
            if self.teacher is not None:
                with torch.no_grad():
                    self.teacher(batch["img"].to(next(self.teacher.parameters()).dtype))
            if trainer.args.compile:  # as Ultralytics' loop does
                preds = trainer.model(batch["img"])
                loss, trainer.loss_items = unwrap_model(trainer.model).loss(batch, preds)
            else:
                loss, trainer.loss_items = trainer.model(batch)
            trainer.loss = loss.sum()
        trainer.scaler.scale(trainer.loss).backward()
        trainer.optimizer_step()
        trainer.run_callbacks("on_train_batch_end")
        synchronize(trainer.device)
        return perf_counter() - start

    def load(self) -> float:
        """Load and augment the images of one batch, and return the time in seconds."""
        dataset = self.trainer.train_loader.dataset
        start = perf_counter()
        for i in range(self.trainer.batch_size):
            dataset[i]
        return perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def prepare(settings: Settings, folder: Path) -> None:
    """Draw the images, and save teachers with random weights, and their answers if an arm reads them.

    Args:
        settings (Settings): Settings of the measurement.
        folder (Path): Folder for data, teachers and answers.
    """
    drawn = draw_dataset(folder / "shapes", train_images=max(16, settings.batch), val_images=2, size=settings.imgsz)
    data = {**YAML.load(drawn), "path": str(folder / "shapes"), "names": {i: f"class{i}" for i in range(CLASSES)}}
    YAML.save(folder / "data.yaml", data)
    for scale in settings.teachers:
        torch.manual_seed(0)
        model = YOLO(f"yolo26{scale}.yaml")
        model.model.names = data["names"]
        model.save(folder / f"{scale}.pt")
        if "kd_cache" in settings.names:
            store_answers(folder, scale, data["names"], settings.imgsz)


def store_answers(folder: Path, scale: str, names: dict[int, str], imgsz: int) -> None:
    """Write a cache with `ANSWERS` random detections in every image."""
    teacher, store, rng = (
        open_teacher(folder / f"{scale}.pt"),
        Store(folder / f"answers-{scale}"),
        np.random.default_rng(0),
    )
    store.begin(
        Manifest(
            teachers=[{"name": f"{scale}.pt", "sha256": teacher.fingerprint()}],
            names=names,
            imgsz=imgsz,
            conf=0.05,
            iou=0.7,
            topk=100,
            scales=CACHE_ONLY["kd_cache_scales"],
            flip=False,
            precision="fp32",
        )
    )
    rows = []
    for file in sorted((folder / "shapes/images/train").iterdir()):
        sides = rng.uniform(0.05, 0.4, (ANSWERS, 2))
        boxes = np.concatenate((rng.uniform(sides / 2, 1 - sides / 2), sides), 1).astype(np.float32)
        probs = rng.dirichlet(np.full(CLASSES, 0.05), ANSWERS).astype(np.float32)
        confidences = probs.max(1, keepdims=True) * rng.uniform(0.5, 1, (ANSWERS, len(CACHE_ONLY["kd_cache_scales"])))
        rows.append(Row(image_key(file), imgsz, imgsz, boxes, probs, confidences))
    store.write(rows)


def measure(arms: dict[str, Arm], rounds: int, scale: str) -> dict[str, list[float]]:
    """Return the times of every arm with one teacher, and the time to load a batch with and without answers.

    Args:
        arms (dict[str, Arm]): The arms.
        rounds (int): Steps of every arm.
        scale (str): The teacher's scale.
    """
    tasks: dict[str, Callable[[], float]] = {name: arm.step for name, arm in arms.items()}
    tasks |= {f"loading, {name}": arms[name].load for name in ("plain", "kd_cache") if name in arms}
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in TQDM(range(rounds + 2), desc=f"YOLO26{scale} teaches"):
        for name in random.sample(list(tasks), len(tasks)):
            seconds = tasks[name]()
            if turn > 1:  # the first two rounds are a warm-up
                times[name].append(seconds)
    return times


def measure_memory(settings: Settings, folder: Path, scale: str, name: str) -> float:
    """Return an arm's peak memory in GiB during its steps, measured in a separate process."""
    request = json.dumps([vars(settings), str(folder), scale, name])
    done = subprocess.run([sys.executable, __file__, "memory", request], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.strip().splitlines()[-1])


def peak_memory(settings: Settings, folder: Path, scale: str, name: str) -> float:
    """Return the peak memory in GiB during three steps: of the GPU if there is one, else of this process."""
    arm = Arm(name, settings, folder, scale)
    meter = memory_meter(arm.trainer.device)
    if arm.trainer.device.type == "cuda":
        torch.cuda.empty_cache()
    meter.reset_peak()
    for _ in range(3):
        arm.step()
    peak = meter.peak()
    if peak is not None:
        return peak / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if platform.system() == "Darwin" else 20)


def summarize(times: dict[str, list[float]], memory: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row for each arm: milliseconds with quartiles, the ratio to plain, and the added time.

    `of_limit` is the added time divided by that of the limit; None if the limit was not measured.

    Args:
        times (dict): Seconds of every step, by arm.
        memory (dict): Peak memory in GiB, by arm.
    """
    plain, limit = median(times["plain"]), median(times["limit"]) if "limit" in times else None
    rows = []
    for name in memory:
        middle, (low, _, high) = median(times[name]), quantiles(times[name], n=4)
        rows.append(
            {
                "arm": name,
                "ms": middle * 1e3,
                "low": low * 1e3,
                "high": high * 1e3,
                "over_plain": middle / plain,
                "of_limit": None if limit is None else (middle - plain) / (limit - plain),
                "memory": memory[name],
            }
        )
    return rows


def to_markdown(report: dict[str, Any]) -> str:
    """Return the table of a report."""
    lines = [["teacher", "arm", "ms per step (quartiles)", "over plain", "added time (limit = 1)", "peak memory"]]
    for scale, rows in report["teachers"].items():
        for row in rows:
            of_limit = "" if row["arm"] == "plain" or row["of_limit"] is None else f"{row['of_limit']:.2f}"
            lines.append(
                [
                    f"YOLO26{scale}",
                    row["arm"],
                    f"{row['ms']:.0f} ({row['low']:.0f} to {row['high']:.0f})",
                    f"{row['over_plain']:.2f}x",
                    of_limit,
                    f"{row['memory']:.2f} GiB",
                ]
            )
    return markdown(lines)


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, write the results and print the table.

    Args:
        arguments (list[str]): `name=value` for the fields of `Settings`.

    Returns:
        (dict): Content of the file: "settings", "machine", "teachers" and "loading".
    """
    settings = read_settings(Settings, arguments)
    LOGGER.info(f"Measuring {', '.join(settings.names)}")
    device = select_device(settings.device, verbose=False)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    report: dict[str, Any] = {
        "settings": {**vars(settings), "out": None},
        "machine": machine(gpu, threads=torch.get_num_threads()),
        "teachers": {},
        "loading": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(settings, folder)
        for scale in settings.teachers:
            with ThreadPoolExecutor(len(settings.names) if device.type == "cuda" else 1) as pool:
                peaks = pool.map(lambda arm, scale=scale: measure_memory(settings, folder, scale, arm), settings.names)
                arms = {name: Arm(name, settings, folder, scale) for name in settings.names}
                memory = dict(zip(settings.names, peaks))  # waits for them, so that they disturb no step
            times = measure(arms, settings.rounds, scale)
            report["teachers"][scale] = summarize(times, memory)
            report["loading"][scale] = {
                name.removeprefix("loading, "): median(seconds) * 1e3 / settings.batch
                for name, seconds in times.items()
                if name.startswith("loading, ")
            }
            save(report, to_markdown(report), settings.out)
    LOGGER.info(to_markdown(report))
    for scale, loading in report["loading"].items():
        stored = f", {loading['kd_cache']:.1f} ms with {ANSWERS} stored answers" if "kd_cache" in loading else ""
        LOGGER.info(f"YOLO26{scale}: loading and augmenting takes {loading['plain']:.1f} ms per image{stored}")
    return report


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        settings, path, scale, arm = json.loads(sys.argv[2])
        print(peak_memory(Settings(**settings), Path(path), scale, arm))
    else:
        main(sys.argv[1:])
