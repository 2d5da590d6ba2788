"""The code of docs/extending.md runs as it stands there: in the user's own files, and as changes of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import ultralytics_kd

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
# A code block of the page with a comment that names its file
BLOCKS = re.findall(r"```(python|diff)\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL)
EXISTING = {  # files of the package that each extension changes, at most two
    "loss": {"ultralytics_kd/losses/box.py", "ultralytics_kd/config/arguments.py"},
    "term": {"ultralytics_kd/distillation/terms/build.py", "ultralytics_kd/config/arguments.py"},
    "teacher": {"ultralytics_kd/teachers/opening.py"},
}


def apply(folder: Path, file: str, diff: str) -> None:
    """Apply a diff without line numbers: its old lines are replaced where they stand."""
    lines = diff.splitlines(keepends=True)
    old, new = ("".join(line[1:] for line in lines if line[0] in kinds) for kinds in ("- ", "+ "))
    text = (folder / file).read_text()
    assert text.count(old) == 1, f"docs/extending.md changes lines of {file} that are not there once:\n{old}"
    (folder / file).write_text(text.replace(old, new))


def run(code: str, folder: Path, *arguments: str) -> str:
    """Run code in a folder, with the package of that folder if there is one."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT), str(ROOT / "tests")))}
    command = [sys.executable, "-c", code, *arguments]
    out = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)
    assert out.returncode == 0, out.stderr[-3000:]
    return out.stdout


TRAIN = """
import sys
from conftest import QUICK
from test_training import results
from pathlib import Path
from ultralytics_kd import YOLO
data, folder, *given = sys.argv[1:]
given = {name: float(value) if value.isdigit() else value for name, _, value in (g.partition("=") for g in given)}
YOLO("yolo26n.yaml").train(**{**QUICK, "epochs": 1}, data=data, project=folder, name="run", **given)
(row,) = results(Path(folder) / "run")
print("RESULT", *(f"{name}={row[f'train/{name}']}" for name in ("kd_cls", "kd_box", "kd_size", "kd_feat")
                  if f"train/{name}" in row))
"""


def trained(folder: Path, data: str, *given: str) -> dict[str, float]:
    """Train for an epoch and return the distillation losses."""
    out = run(TRAIN, folder, data, str(folder / "runs"), *given)
    line = next(line for line in out.splitlines() if line.startswith("RESULT"))
    return {name: float(value) for name, _, value in (part.partition("=") for part in line.split()[1:])}


def detector() -> torch.nn.Module:
    """Return a detector of torchvision that is not trained, but detects something."""
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=1.0)
    return model


@pytest.mark.nightly
def test_own_losses_and_an_own_teacher_need_no_change_of_the_package(tmp_path, data):
    for kind, file, code in BLOCKS:
        if "/" not in file:
            assert kind == "python"
            (tmp_path / file).write_text(code)
    torch.save(detector().state_dict(), tmp_path / "detector.pt")
    losses = ("kd_box_loss=my_losses:log_size", "kd_cls_loss=my_losses:squared")
    values = trained(tmp_path, data, "teacher=my_teacher:Detector", *losses)
    assert values["kd_cls"] > 0 and values["kd_box"] > 0


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """Return a folder with a copy of the package that has all extensions of the page."""
    folder = tmp_path_factory.mktemp("extended")
    package = Path(ultralytics_kd.__file__).parent
    shutil.copytree(package, folder / "ultralytics_kd", ignore=shutil.ignore_patterns("__pycache__"))
    for kind, file, code in BLOCKS:
        if kind == "diff":
            apply(folder, file, code)
        elif "/" in file:
            assert not (folder / file).exists()
            (folder / file).write_text(code)
    return folder


def test_each_extension_changes_at_most_two_files(extended):
    changed = {file for kind, file, _ in BLOCKS if kind == "diff"}
    assert changed == set().union(*EXISTING.values())
    assert all(len(files) <= 2 for files in EXISTING.values())


@pytest.mark.nightly
def test_a_loss_and_a_term_in_the_package_are_trained_with(extended, data, teacher):
    values = trained(extended, data, f"teacher={teacher}", "kd_box_loss=ciou", "kd_size=1", "kd_feat=1")
    assert list(values) == ["kd_cls", "kd_box", "kd_size", "kd_feat"] and all(v > 0 for v in values.values())
    assert "kd_size=0.0" in run("from ultralytics_kd.config import help_text; print(help_text())", extended)


DOCTEST = """
import doctest
from ultralytics_kd.losses import box
(ciou,) = (test for test in doctest.DocTestFinder().find(box) if test.name.endswith(".ciou_loss"))
print("EXAMPLES", len(ciou.examples), doctest.testmod(box).failed, "ciou_loss" in box.__all__)
"""


def test_the_loss_of_the_page_has_the_example_that_the_losses_tests_demand(extended):
    assert "EXAMPLES 3 0 True" in run(DOCTEST, extended)


TEACH = """
import sys, torch
from test_extending import detector
from ultralytics_kd.teachers import open_teacher
model = detector()
model.names = {0: "disc", 1: "box", 2: "bar"}
teacher = open_teacher(model)
teacher.match({0: "bar", 1: "disc"})
answer = teacher.prepare(torch.device("cpu"))(torch.rand(2, 3, 64, 64))
print("KIND", type(teacher).__name__, len(answer.bboxes) > 0, answer.probs.shape[1])
"""


def test_a_kind_of_teacher_in_the_package_answers(extended):
    assert "KIND TorchvisionDetector True 2" in run(TEACH, extended)
