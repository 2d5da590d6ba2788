"""What a teacher costs per step: the table that the README shows, measured on this machine.

    python examples/speed/speed.py                                  YOLO26s and YOLO26x teach YOLO26n
    python examples/speed/speed.py teachers=m imgsz=640 batch=16 device=0 rounds=20
    python examples/speed/speed.py teachers=s arms=kd_cache rounds=41                     two arms, and less noise

Every arm is a real trainer with its own model; in each round every arm takes one step, in an order drawn anew, so that
what else the machine does hits all of them. A step is all that Ultralytics' loop does with a batch: preparation,
forward pass, losses, backward pass and optimizer. `limit` is the plain step and a forward pass of the teacher, fused
and as Ultralytics predicts with it: what a method that asks the teacher on every step cannot go below. Memory is
measured in a process for each arm: the peak during its steps. Weights are random and images drawn, as neither changes
the time.
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
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import numpy as np
import torch
import ultralytics
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER, TQDM, YAML
from ultralytics.utils.torch_utils import autocast, get_cpu_info, select_device

import ultralytics_kd
from ultralytics_kd import KDDetectionTrainer
from ultralytics_kd.bench.table import markdown
from ultralytics_kd.cache.keys import image_key
from ultralytics_kd.cache.manifest import Manifest
from ultralytics_kd.cache.options import CACHE_ONLY
from ultralytics_kd.cache.shards import Row
from ultralytics_kd.cache.store import Store
from ultralytics_kd.demo.shapes import draw_dataset
from ultralytics_kd.teachers import open_teacher

CLASSES = 80  # as many as COCO has
ANSWERS = 30  # stored instances per image
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
    """What is measured.

    Attributes:
        teachers (str): Scales of the teachers, in one word.
        student (str): Scale of the student.
        imgsz (int): Image size.
        batch (int): Batch size.
        rounds (int): Steps of every arm.
        device (str): Device; chosen if empty.
        amp (bool): Mixed precision where the device has it.
        arms (str): Names in `ARMS` beside "plain", separated by commas; all if empty.
        out (str): File of the results, `.json`; the table is written beside it.
    """

    teachers: str = "sx"
    student: str = "n"
    imgsz: int = 320
    batch: int = 8
    rounds: int = 11
    device: str = ""
    amp: bool = True
    arms: str = ""
    out: str = "speed.json"

    @property
    def names(self) -> list[str]:
        """Names of the arms, in the order of the table.

        Raises:
            ValueError: If there is no such arm.
        """
        asked = {name.strip() for name in self.arms.split(",") if name.strip()}
        if unknown := asked - ARMS.keys():
            raise ValueError(f"no arm is called {', '.join(sorted(unknown))}: they are {', '.join(ARMS)}")
        return [name for name in ARMS if not asked or name == "plain" or name in asked]


class Arm:
    """A trainer, ready to take steps.

    Attributes:
        trainer (DetectionTrainer): The trainer.
    """

    def __init__(self, name: str, settings: Settings, folder: Path, scale: str):
        """Build the trainer.

        Args:
            name (str): Name in `ARMS`.
            settings (Settings): What is measured.
            folder (Path): Folder of data, teachers and answers.
            scale (str): The teacher's scale.
        """
        places = {"TEACHER": str(folder / f"{scale}.pt"), "CACHE": str(folder / f"answers-{scale}")}
        given = {k: places.get(v, v) if isinstance(v, str) else v for k, v in ARMS[name].items()}
        kind = KDDetectionTrainer if "teacher" in given else DetectionTrainer
        self.trainer: Any = kind(
            overrides={
                "model": f"yolo26{settings.student}.yaml",
                "data": str(folder / "data.yaml"),
                "imgsz": settings.imgsz,
                "batch": settings.batch,
                "nbs": settings.batch,  # the optimizer works on every step
                "device": settings.device or None,
                "amp": settings.amp,
                "optimizer": "AdamW",
                "epochs": 1,
                "workers": 0,
                "plots": False,
                "val": False,
                "project": str(folder / "runs"),
                "name": f"{name}-{scale}".replace(" ", ""),
                "exist_ok": True,
                **given,
            }
        )
        self.trainer._setup_train()
        self.trainer.epoch = 0
        self.trainer._model_train()
        self.trainer.optimizer.zero_grad()
        self.batch = next(iter(self.trainer.train_loader))
        self.teacher = None
        if name == "limit":
            self.teacher = YOLO(places["TEACHER"]).model.fuse(verbose=False).eval().to(self.trainer.device)

    def step(self) -> float:
        """Take a step, and return the seconds."""
        trainer = self.trainer
        synchronize(trainer.device)
        start = perf_counter()
        with autocast(trainer.amp, device=trainer.device.type):
            batch = trainer.preprocess_batch(dict(self.batch))
            if self.teacher is not None:
                with torch.no_grad():
                    self.teacher(batch["img"])
            loss, trainer.loss_items = trainer.model(batch)
            trainer.loss = loss.sum()
        trainer.scaler.scale(trainer.loss).backward()
        trainer.optimizer_step()
        synchronize(trainer.device)
        return perf_counter() - start

    def load(self) -> float:
        """Load as many images as a batch has, augmented, and return the seconds."""
        dataset = self.trainer.train_loader.dataset
        start = perf_counter()
        for i in range(self.trainer.batch_size):
            dataset[i]
        return perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def prepare(settings: Settings, folder: Path) -> None:
    """Draw the images, and save teachers with random weights and their answers.

    Args:
        settings (Settings): What is measured.
        folder (Path): Where to.
    """
    drawn = draw_dataset(folder / "shapes", train_images=max(16, settings.batch), val_images=2, size=settings.imgsz)
    data = {**YAML.load(drawn), "path": str(folder / "shapes"), "names": {i: f"class{i}" for i in range(CLASSES)}}
    YAML.save(folder / "data.yaml", data)
    for scale in settings.teachers:
        torch.manual_seed(0)
        model = YOLO(f"yolo26{scale}.yaml")
        model.model.names = data["names"]
        model.save(folder / f"{scale}.pt")
        store_answers(folder, scale, data["names"], settings.imgsz)


def store_answers(folder: Path, scale: str, names: dict[int, str], imgsz: int) -> None:
    """Write a cache with `ANSWERS` drawn instances in every image."""
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
        seen = probs.max(1, keepdims=True) * rng.uniform(0.5, 1, (ANSWERS, len(CACHE_ONLY["kd_cache_scales"])))
        rows.append(Row(image_key(file), imgsz, imgsz, boxes, probs, seen))
    store.write(rows)


def measure(settings: Settings, folder: Path, scale: str) -> dict[str, Any]:
    """Return the times of every arm with one teacher, and the time to load a batch with and without answers.

    Args:
        settings (Settings): What is measured.
        folder (Path): Folder of data, teachers and answers.
        scale (str): The teacher's scale.
    """
    arms = {name: Arm(name, settings, folder, scale) for name in settings.names}
    work: dict[str, Callable[[], float]] = {name: arm.step for name, arm in arms.items()}
    work |= {f"loading, {name}": arms[name].load for name in ("plain", "kd_cache") if name in arms}
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in TQDM(range(settings.rounds + 2), desc=f"YOLO26{scale} teaches"):
        for name in random.sample(list(work), len(work)):
            seconds = work[name]()
            if turn > 1:  # the first ones warm up
                times[name].append(seconds)
    return times


def measure_memory(settings: Settings, folder: Path, scale: str, name: str) -> float:
    """Return an arm's peak memory in GiB during its steps, in a process of its own."""
    told = json.dumps([vars(settings), str(folder), scale, name])
    done = subprocess.run([sys.executable, __file__, "memory", told], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.strip().splitlines()[-1])


def peak_memory(settings: Settings, folder: Path, scale: str, name: str) -> float:
    """Return this process's peak memory in GiB during three steps: of the GPU if there is one, else of the process."""
    arm = Arm(name, settings, folder, scale)
    cuda, status = arm.trainer.device.type == "cuda", Path("/proc/self/status")
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(arm.trainer.device)
    elif status.exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    for _ in range(3):
        arm.step()
    if cuda:
        return torch.cuda.max_memory_allocated(arm.trainer.device) / 2**30
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if platform.system() == "Darwin" else 20)


def summarize(times: dict[str, list[float]], memory: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row for each arm: milliseconds with their quartiles, ratio to plain, and share of the limit's addition.

    The share is None where the limit was not measured.

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
    lines = [["teacher", "arm", "ms per step (quartiles)", "over plain", "added time, of the limit's", "peak memory"]]
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
        (dict): What is in the file: "settings", "machine", "teachers" and "loading".
    """
    kinds = {f.name: type(f.default) for f in fields(Settings)}
    given = dict(a.split("=", 1) for a in arguments)
    settings = Settings(**{k: v != "False" if kinds[k] is bool else kinds[k](v) for k, v in given.items()})
    LOGGER.info(f"Measuring {', '.join(settings.names)}")
    device = select_device(settings.device, verbose=False)
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else get_cpu_info()
    machine = {
        "device": str(on),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "ultralytics": ultralytics.__version__,
        "ultralytics_kd": ultralytics_kd.__version__,
    }
    report: dict[str, Any] = {
        "settings": {**vars(settings), "out": None},
        "machine": machine,
        "teachers": {},
        "loading": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(settings, folder)
        for scale in settings.teachers:
            memory = {a: measure_memory(settings, folder, scale, a) for a in settings.names}
            times = measure(settings, folder, scale)
            report["teachers"][scale] = summarize(times, memory)
            report["loading"][scale] = {
                name.removeprefix("loading, "): median(seconds) * 1e3 / settings.batch
                for name, seconds in times.items()
                if name.startswith("loading, ")
            }
            out = Path(settings.out)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(report, indent=2), encoding="utf-8")
            out.with_suffix(".md").write_text(to_markdown(report), encoding="utf-8")
    LOGGER.info(to_markdown(report))
    for scale, loading in report["loading"].items():
        stored = f", {loading['kd_cache']:.1f} ms with {ANSWERS} stored answers" if "kd_cache" in loading else ""
        LOGGER.info(f"YOLO26{scale}: loading and augmenting takes {loading['plain']:.1f} ms per image{stored}")
    return report


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        told, path, scale, arm = json.loads(sys.argv[2])
        print(peak_memory(Settings(**told), Path(path), scale, arm))
    else:
        main(sys.argv[1:])
