"""Measures what opening a cache of stored answers costs, and what reading from it adds to a data loader.

    python examples/speed/stored_answers.py folder=/tmp/answers
    python examples/speed/stored_answers.py folder=/tmp/answers images=1000,10000 loader=0      the first rows alone

It needs 5 GB for a million images. `memory` reads all answers at opening, as releases up to 0.2.0 did; `disk` is what
the package does. Answers and images are drawn: the same few photos lie under many names, as neither changes the time.
Opening and memory are measured in a process for each row. Memory is what the process alone holds (USS), after it has
read 10,000 answers. For the loader, all ways take turns on the same images; a round is one burst of batches of each,
and medians are given. CPU time is that of the workers, which other load on the machine disturbs less.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import cv2
import numpy as np
import psutil
from measurement import machine, read_settings, save
from torch.utils.data import DataLoader
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import LOGGER, TQDM

from ultralytics_kd.bench.table import markdown
from ultralytics_kd.cache.answers import StoredAnswers, map_probabilities
from ultralytics_kd.cache.copying import NAME
from ultralytics_kd.cache.dataset import AnsweredDataset
from ultralytics_kd.cache.keys import KeyIndex
from ultralytics_kd.cache.manifest import Manifest
from ultralytics_kd.cache.options import CACHE_ONLY
from ultralytics_kd.cache.parquet import content_hash
from ultralytics_kd.cache.scales import encode_rows
from ultralytics_kd.cache.shards import SCALE, Row, stored_rows
from ultralytics_kd.cache.store import Store
from ultralytics_kd.teachers.class_map import ClassMap, match_classes

PHOTOS = 64  # different images
LINKS = 30_000  # names of one file; file systems allow some 65,000
READS = 10_000  # answers that are read before memory is measured
KINDS = {"growth": (10, 20), "loader": (40, 80)}  # detections per image, classes


@dataclass
class Settings:
    """Settings of a measurement.

    Attributes:
        folder (str): Folder for images and caches; what is there already is used again.
        images (str): Numbers of images whose cache is opened, separated by commas.
        loader (int): Number of images of the data loader, 0 to leave it out.
        imgsz (int): Image size of the loader.
        batch (int): Batch size of the loader.
        workers (int): Processes of the loader.
        rounds (int): Bursts of each way.
        burst (int): Batches in a burst.
        out (str): File for the results, `.json`; the tables are written beside it.
    """

    folder: str = "stored_answers"
    images: str = "1000,10000,100000,1000000"
    loader: int = 100_000
    imgsz: int = 640
    batch: int = 16
    workers: int = 2
    rounds: int = 9
    burst: int = 20
    out: str = "stored_answers.json"

    def check(self) -> None:
        """Raise if the loader runs out of images before its last burst.

        Raises:
            ValueError: If so.
        """
        needed = (self.rounds + 1) * (2 * self.workers + self.burst) * self.batch  # as `burst` takes them
        if 0 < self.loader < needed:
            raise ValueError(
                f"loader={self.loader}: {self.rounds} rounds and a warm-up, of {self.burst} batches each and "
                f"{2 * self.workers} that are ready, need {needed} images. Give loader={needed} or more, or lower "
                "rounds, burst or batch."
            )


class AnswersInMemory:
    """All answers of a data set in a few arrays, as before answers stayed on disk."""

    def __init__(self, store: Store, files: list[str], classes: ClassMap, imgsz: int):
        """Read all answers.

        Args:
            store (Store): The cache.
            files (list[str]): Images of the data set.
            classes (ClassMap): Match of the cache's classes to the student's.
            imgsz (int): Image size of the training in pixels.
        """
        manifest, entries = store.manifest(), KeyIndex(store.folder).read()
        self.sided = len(manifest.scales) > 1
        stats = {f: (s.st_size, s.st_mtime_ns) for f in files for s in [os.stat(f)]}
        keys = {f: entries[f][2] for f in files if entries[f][:2] == stats[f]}
        wanted, arrays = set(keys.values()), {}
        for table in store.read():
            for row in stored_rows(table, manifest):
                if row.key in wanted:
                    probs, top_prob = map_probabilities(row.probs, classes), row.probs.max(1, initial=0)
                    best = probs.max(1, initial=0) / top_prob.clip(1) * row.scale_confidence.max(1, initial=0)
                    parts = row.boxes, probs, top_prob, row.scale_confidence, row.sides * np.float32(imgsz)
                    arrays[row.key] = tuple(part[best > manifest.conf * SCALE] for part in parts)
        self.columns = tuple(map(np.concatenate, zip(*arrays.values())))
        ends = np.cumsum([len(parts[0]) for parts in arrays.values()])
        spans = dict(zip(arrays, zip((0, *ends[:-1].tolist()), ends.tolist())))
        self.spans = {f: spans[key] for f, key in keys.items()}

    def check_shape(self, file: str, shape: tuple[int, int]) -> None:
        """Do nothing: before answers stayed on disk, the shape of images was not compared."""

    def __getitem__(self, file: str) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes and rows of an image, as `StoredAnswers` does."""
        boxes, probs, top_prob, scale_confidence, sides = (column[slice(*self.spans[file])] for column in self.columns)
        integers = (x.astype(np.float32) / SCALE for x in (probs, top_prob, scale_confidence))
        return boxes.copy(), encode_rows(*integers, sides)


WAYS = {"memory": AnswersInMemory, "disk": StoredAnswers}


# Drawing --------------------------------------------------------------------------------------------------------------
def draw_images(folder: Path, count: int, imgsz: int) -> list[str]:
    """Draw images and their labels, unless they are there, and return the files.

    Args:
        folder (Path): Folder of the data.
        count (int): Number of images.
        imgsz (int): Their longer side in pixels.
    """
    images, labels = folder / "images", folder / "labels"
    files = [images / f"{i:07d}.jpg" for i in range(count)]
    if not images.exists():
        images.mkdir(parents=True)
        labels.mkdir()
        rng, originals = np.random.default_rng(0), folder / "originals"
        originals.mkdir()
        for i, file in enumerate(TQDM(files, desc=f"Naming {count} images")):
            original = originals / f"{i % PHOTOS}-{i // PHOTOS // LINKS}"
            if not original.with_suffix(".jpg").exists():
                noise = rng.integers(0, 255, (imgsz * 3 // 80, imgsz // 20, 3), np.uint8)
                cv2.imwrite(str(original.with_suffix(".jpg")), cv2.resize(noise, (imgsz, imgsz * 3 // 4)))
                box = rng.uniform(0.2, 0.4, (8, 4))
                lines = [f"{c} " + " ".join(f"{x:.4f}" for x in xywh) for c, xywh in enumerate(box)]
                original.with_suffix(".txt").write_text("\n".join(lines))
            os.link(original.with_suffix(".jpg"), file)
            os.link(original.with_suffix(".txt"), labels / f"{file.stem}.txt")
    return [str(f) for f in files]


def draw_answers(folder: Path, files: list[str], kind: str, imgsz: int) -> Store:
    """Write a cache with drawn answers, unless it is there.

    Args:
        folder (Path): Folder of the cache.
        files (list[str]): Images.
        kind (str): Name in `KINDS`.
        imgsz (int): Width of the images in pixels.
    """
    store, (most, classes) = Store(folder), KINDS[kind]
    if any(folder.glob("files-*.parquet")):
        return store
    shutil.rmtree(folder, ignore_errors=True)
    names, scales = {i: f"class{i}" for i in range(classes)}, CACHE_ONLY["kd_cache_scales"]
    teachers = [{"name": "t.pt", "sha256": "0" * 64}]
    store.begin(Manifest(teachers, names, 640, 0.05, 0.7, 100, scales, False, "fp32"))
    rng, size, entries = np.random.default_rng(0), CACHE_ONLY["kd_cache_shard"], {}
    for first in TQDM(range(0, len(files), size), desc=f"Drawing {len(files)} answers"):
        rows = []
        for file in files[first : first + size]:
            count = int(rng.integers(0, 2 * most + 1))
            sides = rng.uniform(0.05, 0.4, (count, 2))
            boxes = np.concatenate((rng.uniform(sides / 2, 1 - sides / 2), sides), 1).astype(np.float32)
            probs = rng.dirichlet(np.full(classes, 0.05), count).reshape(count, classes).astype(np.float32)
            confidence = probs.max(1, keepdims=True, initial=0) * rng.uniform(0.5, 1, (count, len(scales)))
            # Files with the same content would share one answer
            key, stat = content_hash(file.encode()), os.stat(file)
            entries[file] = stat.st_size, stat.st_mtime_ns, key
            rows.append(Row(key, imgsz, imgsz * 3 // 4, boxes, probs, confidence))
        store.write(rows)
    KeyIndex(folder).write(entries)
    return store


# Opening --------------------------------------------------------------------------------------------------------------
def opening(way: str, folder: Path, count: int, kind: str, imgsz: int) -> dict[str, float]:
    """Open a cache in this process; return seconds, and the growth of memory in bytes per image.

    Args:
        way (str): Name in `WAYS`.
        folder (Path): Folder of images and cache.
        count (int): Number of images.
        kind (str): Name in `KINDS`.
        imgsz (int): Image size of the training.
    """
    files = [str(folder / "images" / f"{i:07d}.jpg") for i in range(count)]
    store, names = Store(folder / "cache"), {i: f"class{i}" for i in range(KINDS[kind][1])}
    classes, process = match_classes(names, names), psutil.Process()
    before, peak_before = process.memory_full_info(), peak_memory()
    began = perf_counter()
    answers = WAYS[way](store, files, classes, imgsz)
    seconds = perf_counter() - began
    for file in random.Random(0).choices(files, k=READS):
        answers[file]
    after = process.memory_full_info()
    return {
        "seconds": seconds,
        "uss": (after.uss - before.uss) / count,
        "rss": (after.rss - before.rss) / count,
        "peak": (peak_memory() - peak_before) / count,
    }


def peak_memory() -> int:
    """Return the largest resident memory that this process ever had, in bytes (Linux)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure_opening(folder: Path, count: int, kind: str, imgsz: int) -> list[dict[str, Any]]:
    """Return a row for each way; `disk` is opened first without the file of single answers, which it then makes."""
    rows = []
    (folder / "cache" / NAME).unlink(missing_ok=True)
    for way, label in (("memory", "memory"), ("disk", "disk, first time"), ("disk", "disk")):
        request = json.dumps([way, str(folder), count, kind, imgsz])
        done = subprocess.run([sys.executable, __file__, "opening", request], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{way}: {done.stderr.strip().splitlines()[-1]}")
        rows.append({"images": count, "way": label, **json.loads(done.stdout.strip().splitlines()[-1])})
        LOGGER.info(str(rows[-1]))
    return rows


# Loading --------------------------------------------------------------------------------------------------------------
def loaders(folder: Path, settings: Settings) -> dict[str, DataLoader]:
    """Return a loader without answers and one for each way, over the same images."""
    names = {i: f"class{i}" for i in range(KINDS["loader"][1])}
    classes, made = match_classes(names, names), {}
    for way in ("plain", *WAYS):
        args = get_cfg(overrides={"task": "detect", "mode": "train", "imgsz": settings.imgsz})
        data = {"names": names, "channels": 3, "nc": len(names)}
        dataset = build_yolo_dataset(args, str(folder / "images"), settings.batch, data, mode="train")
        if way != "plain":
            answers = WAYS[way](Store(folder / "cache"), dataset.im_files, classes, settings.imgsz)
            AnsweredDataset.adopt(dataset, answers)
        collate = type(dataset).collate_fn
        assert isinstance(dataset, YOLODataset)
        made[way] = DataLoader(dataset, settings.batch, True, num_workers=settings.workers, collate_fn=collate)
    return made


def burst(batches: Any, settings: Settings) -> tuple[float, float]:
    """Return seconds and CPU seconds of the workers per image, in one burst of batches.

    Args:
        batches (Iterator): A pass over a loader.
        settings (Settings): Settings of the measurement.
    """
    for _ in range(2 * settings.workers):  # these were ready while the others had their turn
        next(batches)
    workers = [psutil.Process(worker.pid) for worker in batches._workers]
    spent, began = sum(sum(w.cpu_times()[:2]) for w in workers), perf_counter()
    for _ in range(settings.burst):
        next(batches)
    seconds, used = perf_counter() - began, sum(sum(w.cpu_times()[:2]) for w in workers) - spent
    images = settings.burst * settings.batch
    return seconds / images, used / images


def measure_loading(folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """Return milliseconds per image of each way."""
    made = loaders(folder, settings)
    passes = {way: iter(loader) for way, loader in made.items()}
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in made}
    for turn in TQDM(range(settings.rounds + 1), desc="Loading"):
        for way in random.Random(turn).sample(list(made), len(made)):
            figures = burst(passes[way], settings)
            if turn:  # the first is a warm-up
                times[way].append(figures)
    rows = []
    for way, pairs in times.items():
        wall, cpu = ([pair[i] * 1e3 for pair in pairs] for i in (0, 1))
        files, answers = made[way].dataset.im_files, getattr(made[way].dataset, "answers", None)
        reads = [_read(answers, files) for _ in range(settings.rounds)] if answers else [0.0]
        rows.append(
            {
                "way": way,
                "ms": median(wall),
                "cpu_ms": median(cpu),
                "quartiles": [np.quantile(x, q) for x in (wall, cpu) for q in (0.25, 0.75)],
                "read_us": median(reads) * 1e6,
            }
        )
    return rows


def _read(answers: Any, files: list[str]) -> float:
    """Return the CPU seconds to read one answer, over a thousand random ones."""
    chosen = random.choices(files, k=1000)
    began = process_time()
    for file in chosen:
        answers[file]
    return (process_time() - began) / len(chosen)


def to_markdown(report: dict[str, Any]) -> str:
    """Return the tables of a report."""
    lines = [["images", "answers in", "opening", "memory per image", "peak while opening, per image"]]
    for r in report["opening"]:
        lines.append(
            [
                f"{r['images']:,}",
                r["way"],
                f"{r['seconds']:.2f} s",
                f"{r['uss']:,.0f} bytes ({r['uss'] * r['images'] / 2**20:,.0f} MiB in all)",
                f"{r['peak']:,.0f} bytes",
            ]
        )
    text = markdown(lines)
    if report["loading"]:
        lines = [
            [
                "answers in",
                "ms per image (quartiles)",
                "CPU ms per image (quartiles)",
                "CPU microseconds to read one answer",
            ]
        ]
        for r in report["loading"]:
            read = f"{r['read_us']:.0f}" if r["read_us"] else ""
            low, high, low_cpu, high_cpu = (f"{x:.1f}" for x in r["quartiles"])
            wall, cpu = f"{r['ms']:.1f} ({low} to {high})", f"{r['cpu_ms']:.1f} ({low_cpu} to {high_cpu})"
            lines.append([r["way"], wall, cpu, read])
        text += "\n" + markdown(lines)
    return text


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, write the results and print the tables.

    Args:
        arguments (list[str]): `name=value` for the fields of `Settings`.

    Returns:
        (dict): Content of the file: "settings", "machine", "opening" and "loading".

    Raises:
        ValueError: If the loader has too few images.
    """
    settings = read_settings(Settings, arguments)
    settings.check()
    root = Path(settings.folder)
    report: dict[str, Any] = {
        "settings": {**vars(settings), "folder": None, "out": None},
        "kinds": KINDS,
        "machine": machine(cores=os.cpu_count(), python=platform.python_version()),
        "opening": [],
        "loading": [],
    }
    for count in [int(x) for x in settings.images.split(",") if x]:
        folder = root / f"growth-{count}"
        draw_answers(folder / "cache", draw_images(folder, count, 64), "growth", 64)
        report["opening"] += measure_opening(folder, count, "growth", settings.imgsz)
    if settings.loader:
        folder = root / f"loader-{settings.loader}"
        draw_answers(folder / "cache", draw_images(folder, settings.loader, settings.imgsz), "loader", settings.imgsz)
        report["loading"] = measure_loading(folder, settings)
    save(report, to_markdown(report), settings.out)
    LOGGER.info(to_markdown(report))
    return report


if __name__ == "__main__":
    if sys.argv[1:2] == ["opening"]:
        way, path, count, kind, imgsz = json.loads(sys.argv[2])
        print(json.dumps(opening(way, Path(path), count, kind, imgsz)))
    else:
        main(sys.argv[1:])
