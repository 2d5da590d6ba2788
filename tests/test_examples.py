"""The examples and recipes that the project ships do run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ultralytics.cfg import get_cfg
from ultralytics.utils import YAML

from ultralytics_kd import config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "examples").rglob("*.md"))]
SHORTER = {"export.py": ["formats=torchscript"]}  # test_export.py has the others


LONG = {"distill.py", "export.py", "own_loss.py", "torchvision_teacher.py"}
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
    assert kd > 0 or (script.name in FITTED and "of the teacher's activations" in out.stdout + out.stderr)


@pytest.mark.parametrize("recipe", sorted((ROOT / "cfg").glob("*.yaml")), ids=lambda p: p.name)
def test_recipe_is_a_valid_configuration(recipe):
    args = vars(get_cfg(overrides=YAML.load(recipe)))
    config.check_combination(args)
    assert args["teacher"].endswith(".pt") and args["model"].endswith(".pt")


def test_readme_shows_every_argument_with_its_default():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, argument in config.ARGUMENTS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` "))
        assert f"`{argument.default}`" in row


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_module_that_the_architecture_names_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Architecture")[2].partition("\n## ")[0]
    names = set(re.findall(r"`((?:\w+/)*\w+(?:\.py|/))`", text))
    assert len(names) > 20
    assert not [
        name for name in names if not any((folder / name).exists() for folder in (ROOT, ROOT / "ultralytics_kd"))
    ]


def test_every_test_that_the_readme_names_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"pytest [^`\n]*?((?:tests/\w+\.py ?)+)(?:-k (\w+))?", text)
    assert len(commands) > 10
    for files, word in commands:
        names = [
            re.findall(r"^def (test_\w+)", (ROOT / file).read_text(encoding="utf-8"), re.M) for file in files.split()
        ]
        assert all(any(word in name for name in each) for each in names), (files, word)
