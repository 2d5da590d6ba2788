"""Measures how cost grows: answering images, starting a program, and reporting on larger val sets.

    python examples/speed/growth.py                    writes results/growth.json and .md
    python examples/speed/growth.py only=start,report  a part of it; the other rows stay as they are

- `cache`: images per second of `yolo-kd cache` at one to four sizes, in this process and with one and two Ray actors.
- `start`: seconds of `import ultralytics_kd.model` beside `import ultralytics`, and from the start of a program to the
  first batch of its training, with a teacher and without. Each is a new process; all take turns.
- `report`: seconds of `yolo-kd report` for more and more val images.

Weights are random and images are drawn. `stored_answers.py` measures opening a cache of up to a million images, and
`plot.py` draws both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from measurement import machine, read_settings, save
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from ultralytics_kd.bench.table import markdown
from ultralytics_kd.cache import CACHE_ONLY, make_cache
from ultralytics_kd.demo.shapes import CLASS_NAMES, draw_dataset
from ultralytics_kd.report import run_report

RESULTS = Path(__file__).resolve().parent / "results"
FIRST_BATCH = """
import sys
from time import perf_counter
start = perf_counter()
from {package} import YOLO
model = YOLO("yolo26n.yaml")
class Begun(Exception): pass
def stop(trainer): raise Begun
model.add_callback("on_train_batch_start", stop)
try:
    model.train(**{arguments!r})
except Begun:
    print(perf_counter() - start)
"""


@dataclass
class Settings:
    """Settings of a measurement.

    Attributes:
        only (str): Parts to measure, separated by commas: cache, start, report.
        imgsz (int): Image size in pixels.
        images (int): Images that a cache answers.
        val (str): Numbers of val images of the reports, separated by commas.
        rounds (int): Times that each start is measured.
        out (str): File for the results, `.json`; the table is written beside it.
    """

    only: str = "cache,start,report"
    imgsz: int = 128
    images: int = 192
    val: str = "100,1000,5000"
    rounds: int = 5
    out: str = str(RESULTS / "growth.json")


def save_model(scale: str, file: Path) -> str:
    """Save a model of random weights with the classes of the drawn images, and return its path."""
    model = YOLO(f"yolo26{scale}.yaml")
    model.model = DetectionModel(f"yolo26{scale}.yaml", nc=len(CLASS_NAMES), verbose=False)
    model.model.names = dict(enumerate(CLASS_NAMES))
    model.save(file)
    return str(file)


def measure_cache(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each number of sizes and of Ray actors; loading and starting Ray are not counted."""
    data = draw_dataset(folder / "data", train_images=settings.images, val_images=2, size=settings.imgsz)
    teacher = save_model("s", folder / "s.pt")
    scales = list(CACHE_ONLY["kd_cache_scales"])
    rows = []
    for actors in (0, 1, 2):
        for count in range(1, len(scales) + 1):
            place = folder / f"answers-{actors}-{count}"
            given = {
                "data": str(data),
                "teacher": teacher,
                "kd_cache": str(place),
                "kd_cache_scales": scales[-count:],
                "imgsz": settings.imgsz,
                "kd_cache_shard": 16,
                "batch": 16,
                "workers": 0,
                "device": "cpu",
                **({"ray": actors} if actors else {}),
            }
            make_cache(given)
            written = sorted(file.stat().st_mtime for file in place.glob("answers-*.parquet"))
            shards = len(written) - max(actors, 1)  # the first of each actor counts its start
            rate = shards * 16 / (written[-1] - written[max(actors, 1) - 1])
            how = f"{actors} Ray actor{'s' * (actors > 1)}" if actors else "this process"
            sizes = f"{count} size{'s' * (count > 1)}"
            row = {"part": "cache", "what": f"{sizes}, {how}", "value": rate, "unit": "images/s"}
            rows.append({**row, "sizes": count, "actors": actors})
    return rows


def in_new_process(code: str, folder: Path) -> float:
    """Return the last line that a new Python process prints, as a number."""
    env = {**os.environ, "YOLO_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=env)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.strip().splitlines()[-1])


def measure_start(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """Return the median seconds of imports, and of trainings up to their first batch, each in a new process."""
    data = draw_dataset(folder / "few", train_images=8, val_images=4, size=settings.imgsz)
    teacher = save_model("s", folder / "start.pt")
    arguments = {
        "data": str(data),
        "epochs": 1,
        "imgsz": settings.imgsz,
        "batch": 4,
        "workers": 0,
        "device": "cpu",
        "plots": False,
        "project": str(folder / "runs"),
    }
    timed = "from time import perf_counter as t; s = t(); import {}; print(t() - s)"
    codes = {
        "import ultralytics (YOLO)": timed.format("ultralytics.models.yolo.model"),
        "import ultralytics_kd (YOLO)": timed.format("ultralytics_kd.model"),
        "to the first batch, no teacher": FIRST_BATCH.format(package="ultralytics", arguments=arguments),
        "to the first batch, teacher, kd_init=False": FIRST_BATCH.format(
            package="ultralytics_kd", arguments={**arguments, "teacher": teacher, "kd_init": False}
        ),
        "to the first batch, teacher, kd_init=fit": FIRST_BATCH.format(
            package="ultralytics_kd", arguments={**arguments, "teacher": teacher, "kd_init": "fit"}
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(settings.rounds):
        for name, code in codes.items():
            seconds[name].append(in_new_process(code, folder))
    return [{"part": "start", "what": name, "value": median(values), "unit": "s"} for name, values in seconds.items()]


def measure_report(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """Return the seconds of a report for each number of val images."""
    teacher, student = save_model("s", folder / "t.pt"), save_model("n", folder / "n.pt")
    rows = []
    for count in map(int, settings.val.split(",")):
        data = draw_dataset(folder / f"val-{count}", train_images=2, val_images=count, size=settings.imgsz)
        given = {"teacher": teacher, "student": student, "data": str(data), "imgsz": settings.imgsz, "batch": 16}
        begun = perf_counter()
        run_report({**given, "device": "cpu", "workers": 0, "project": str(folder / "reports")})
        seconds = perf_counter() - begun
        rows.append({"part": "report", "what": f"{count:,} val images", "value": seconds, "unit": "s", "images": count})
    return rows


PARTS: dict[str, Callable[[Settings, Path], list[dict[str, Any]]]] = {
    "cache": measure_cache,
    "start": measure_start,
    "report": measure_report,
}


def to_markdown(report: dict[str, Any]) -> str:
    """Return the table of a report."""
    lines = [["", "case", "measured"]]
    for row in report["table"]:
        digits = 0 if row["value"] >= 100 else 1 if row["value"] >= 10 else 2
        lines.append([row["part"], row["what"], f"{row['value']:.{digits}f} {row['unit']}"])
    return markdown(lines)


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Measure, write the results and print the table.

    Args:
        arguments (Sequence[str]): `name=value` for the fields of `Settings`.

    Raises:
        ValueError: If a part is unknown.
    """
    settings = read_settings(Settings, arguments)
    wanted = settings.only.split(",")
    if unknown := set(wanted) - PARTS.keys():
        raise ValueError(f"only={settings.only}: unknown {', '.join(sorted(unknown))}; use {', '.join(PARTS)}")
    out = Path(settings.out)
    before = json.loads(out.read_text(encoding="utf-8"))["table"] if out.is_file() else []
    rows: dict[str, list[dict[str, Any]]] = {part: [r for r in before if r["part"] == part] for part in PARTS}
    with tempfile.TemporaryDirectory() as name:
        for part in wanted:
            folder = Path(name) / part
            folder.mkdir()
            rows[part] = PARTS[part](settings, folder)
    report = {
        "settings": {k: v for k, v in asdict(settings).items() if k not in {"out", "only"}},
        "machine": machine(cores=os.cpu_count(), threads=torch.get_num_threads()),
        "table": [row for part in rows.values() for row in part],
    }
    save(report, to_markdown(report), out)
    LOGGER.info(to_markdown(report))
    return report


if __name__ == "__main__":
    main(sys.argv[1:])
