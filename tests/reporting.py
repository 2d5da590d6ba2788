"""Quick trainings in processes of their own: under pytest Ultralytics reports to nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import save_model
from ultralytics.utils import YAML

import ultralytics_kd

ROOT = Path(ultralytics_kd.__file__).parents[1]
# YOLO26's head on five convolutions: the time of a quick training is that of its many modules
TINY = {
    "nc": 3,
    "end2end": True,
    "reg_max": 1,
    "backbone": [[-1, 1, "Conv", [width, 3, 2]] for width in (16, 16, 32, 32, 64)],
    "head": [[[2, 3, 4], 1, "Detect", ["nc"]]],
}
SIGNS = ("PYTEST_", "GITHUB_", "RUNNER_")  # by these Ultralytics tells that tests run


def tiny(folder: Path) -> tuple[str, str]:
    """Write a small student's architecture and a teacher of the same kind; return the paths of both."""
    YAML.save(folder / "tiny.yaml", TINY)
    torch.manual_seed(0)
    return str(folder / "tiny.yaml"), str(save_model(folder / "teacher.pt", str(folder / "tiny.yaml")))


def run_script(script: str, folder: Path, job: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
    """Run a script of this folder with a job to do, and return what it found."""
    (folder / "job.json").write_text(json.dumps(job))
    run_python([str(Path(__file__).with_name(script)), "job.json"], folder, env)
    return json.loads((folder / "found.json").read_text())


def run_python(args: list[str], folder: Path, env: dict[str, str], python: str = sys.executable) -> str:
    """Run an interpreter to its good end in a folder, with settings of its own, and return what it printed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(SIGNS)}
    clean |= {"YOLO_CONFIG_DIR": str(folder / "config"), "PYTHONPATH": str(ROOT), **env}
    (folder / "config").mkdir(exist_ok=True)
    done = subprocess.run([python, *args], capture_output=True, text=True, cwd=folder, env=clean, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr
