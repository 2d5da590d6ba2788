"""The examples and recipes that the project ships do run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ultralytics.cfg import get_cfg
from ultralytics.utils import YAML

from ultralytics_kd import config

ROOT = Path(__file__).parents[1]
SHORTER = {"export.py": ["formats=torchscript"]}  # test_export.py has the others


LONG = {"custom_trainer.py", "distill.py", "export.py", "own_loss.py", "torchvision_teacher.py"}
FITTED = {"distill.py", "export.py"}  # here the teacher learns for an epoch, and the student begins with a fit to it
SCRIPTS = [
    pytest.param(script, id=script.name, marks=pytest.mark.nightly if script.name in LONG else ())
    for script in sorted((ROOT / "examples").glob("*.py"))
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_runs_offline(script, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(tmp_path), *SHORTER.get(script.name, ())]
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert out.returncode == 0, out.stderr[-3000:]
    header, *rows = [line.split(",") for line in (tmp_path / "student" / "results.csv").read_text().splitlines()]
    kd = float(rows[-1][header.index("train/kd_cls")])
    assert kd > 0 or (script.name in FITTED and "fitted to the teacher's" in out.stdout + out.stderr)


@pytest.mark.parametrize("recipe", sorted((ROOT / "cfg").glob("*.yaml")), ids=lambda p: p.name)
def test_recipe_is_a_valid_configuration(recipe):
    args = vars(get_cfg(overrides=YAML.load(recipe)))
    config.check_combination(args)
    assert args["teacher"].endswith(".pt") and args["model"].endswith(".pt")
