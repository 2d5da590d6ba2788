"""Make what stands in this folder: a run that was interrupted, and a cache, as an older release wrote them.

Run it with that release (0.1.0, before its modules moved into rooms): `python tests/former/make.py`. The tests resume
the run and train from the cache with the release of today.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from conftest import draw_dataset, save_model  # noqa: E402

from ultralytics_kd import YOLO  # noqa: E402
from ultralytics_kd.cache import make_cache  # noqa: E402

HEAD = "nc: 3\nend2end: True\nreg_max: 1\nscale: n\nscales: {n: [1.0, 1.0, 1024]}\n"
QUICK = {
    "imgsz": 64,
    "epochs": 4,
    "batch": 4,
    "workers": 0,
    "plots": False,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "device": "cpu",
    "amp": False,
    "verbose": False,
    "exist_ok": True,
}


def write_yaml(file: Path, width: int) -> str:
    """Write a detector of five convolutions and three levels, and return its file."""
    layers = [f"  - [-1, 1, Conv, [{w}, 3, 2]]\n" for w in (8, width, width, width, width)]
    file.write_text(f"{HEAD}backbone:\n{''.join(layers)}head:\n  - [[2, 3, 4], 1, Detect, [nc]]\n")
    return str(file)


def main() -> None:
    """Draw images, interrupt a distillation and resume it, then store answers and train from them."""
    os.chdir(tempfile.mkdtemp())
    data = str(draw_dataset(Path("shapes").absolute(), images=8))
    small, big = (write_yaml(Path(f"{name}.yaml"), width) for name, width in (("small", 8), ("big", 16)))
    torch.manual_seed(0)
    save_model(Path("teacher.pt"), big)
    taught = {**QUICK, "project": str(Path("runs").absolute()), "data": data, "teacher": "teacher.pt", "kd_init": False}

    model = YOLO(small)
    model.add_callback("on_model_save", interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        model.train(**taught, kd_feat=1.0, name="run")
    shutil.copytree("runs/run", HERE / "run", dirs_exist_ok=True, ignore=shutil.ignore_patterns("best.pt"))
    YOLO("runs/run/weights/last.pt").train(resume=True)
    shutil.copy("runs/run/results.csv", HERE / "resumed.csv")

    make_cache({"teacher": "teacher.pt", "data": data, "imgsz": 64, "kd_cache": "cache", "workers": 0, "device": "cpu"})
    YOLO(small).train(**taught, kd_cache="cache", kd_box=4.0, name="cached")
    shutil.copytree("cache", HERE / "cache", dirs_exist_ok=True, ignore=shutil.ignore_patterns(".lock", "files-*"))
    shutil.copy("runs/cached/results.csv", HERE / "cached.csv")
    for file in ("teacher.pt", "small.yaml", "big.yaml", "shapes"):
        if Path(file).is_dir():
            shutil.copytree(file, HERE / file, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.cache"))
        else:
            shutil.copy(file, HERE / file)


def interrupt(trainer: object) -> None:
    """Stop behind the checkpoints of the second epoch."""
    if trainer.epoch == 1:
        raise KeyboardInterrupt


if __name__ == "__main__":
    main()
