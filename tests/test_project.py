"""The files around the package agree with it and with each other: versions, Pythons, dependencies, scripts, links."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import ultralytics_kd

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PAGES = [ROOT / f"{name}.md" for name in ("CHANGELOG", "CODE_OF_CONDUCT", "CONTRIBUTING", "SECURITY")]
# Modules that are imported, and come with Ultralytics or with torch, which name them as what they need
BROUGHT = {"PIL", "cv2", "matplotlib", "yaml"}
MODULES = {"faster-coco-eval": "faster_coco_eval"}  # where the module of a package is named otherwise
OPTIONAL = {
    "huggingface_hub",
    "onnx",
    "ray",
    "timm",
}  # imported where they are used, with a sentence if they are missing


def steps(file: Path) -> list[dict]:
    """Return the steps of a workflow's jobs."""
    return [step for job in yaml.safe_load(file.read_text())["jobs"].values() for step in job["steps"]]


def released() -> list[tuple[str, str]]:
    """Return the versions of the changelog with their dates, the newest first."""
    return re.findall(r"^## \[(\d.*?)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)


def test_the_newest_release_is_the_same_everywhere():
    version, date = released()[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["date-released"]) == (version, date)
    assert PYPROJECT["tool"]["hatch"]["version"]["fallback-version"] == version
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Source"]


def test_the_changelog_keeps_its_form():
    heads = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert heads == ["[Unreleased]", *(f"[{version}] - {date}" for version, date in released())]
    versions = [Version(version) for version, _ in released()]
    assert versions == sorted(versions, reverse=True)
    kinds = set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for name in ("Unreleased", *(version for version, _ in released())):
        assert f"\n[{name}]: {PROJECT['urls']['Source']}/" in CHANGELOG


def test_the_version_can_be_compared_and_is_there_without_an_installation(monkeypatch):
    assert Version(ultralytics_kd.__version__)

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.delitem(vars(ultralytics_kd), "__version__", raising=False)
    assert Version(ultralytics_kd.__version__) < Version("0.1")
    vars(ultralytics_kd).pop("__version__")  # read anew by the next who asks


def test_the_named_pythons_are_those_that_are_allowed_and_tested():
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert PROJECT["requires-python"] == f">={classified[0]}"
    assert classified == [f"3.{minor}" for minor in range(10, 10 + len(classified))]
    tested = {
        python
        for file in WORKFLOWS
        for job in yaml.safe_load(file.read_text())["jobs"].values()
        for python in job.get("strategy", {}).get("matrix", {}).get("python", ())
        or [step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {})]
    }
    assert tested == set(classified)
    assert f"PYTHON:-{classified[0]}}}" in (ROOT / ".ci" / "lowest").read_text()


def test_every_dependency_has_a_lower_bound_and_every_import_is_one():
    needed = [Requirement(text) for text in PROJECT["dependencies"]]
    assert [r.name for r in needed if not any(s.operator == ">=" for s in r.specifier)] == []
    known = {MODULES.get(r.name, r.name) for r in needed} | BROUGHT | OPTIONAL | set(sys.stdlib_module_names)
    found = set()
    for file in (ROOT / "ultralytics_kd").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0] for name in names}
    assert found - known - {"ultralytics_kd"} == set()


def test_workflows_call_scripts_that_are_there_and_every_script_is_called():
    scripts = {f".ci/{file.name}" for file in (ROOT / ".ci").iterdir()}
    assert [name for name in scripts if not os.access(ROOT / name, os.X_OK)] == []
    commands = "\n".join(step.get("run", "") for file in WORKFLOWS for step in steps(file))
    called = set(re.findall(r"\.ci/\w+", commands))
    assert called <= scripts
    called |= {
        name for script in called for name in re.findall(r"^\.ci/\w+", (ROOT / script).read_text(), re.MULTILINE)
    }
    assert called == scripts


def test_only_what_publishes_may_write_and_it_has_no_token():
    allowed = {
        "release.yml": [{"id-token": "write"}],
        "docs.yml": [{"pages": "write", "id-token": "write"}],
    }
    for file in WORKFLOWS:
        workflow = yaml.safe_load(file.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        granted = [job["permissions"] for job in workflow["jobs"].values() if "permissions" in job]
        assert granted == allowed.get(file.name, [])
        assert "secrets." not in file.read_text()


def test_pre_commit_runs_what_the_checks_run_before_the_tests():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    checks = re.findall(r"^(?:ruff|mypy).*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert checks and set(checks) <= set(hooks)


@pytest.mark.parametrize("file", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda f: f.stem)
def test_issue_forms_have_what_the_page_needs(file):
    form = yaml.safe_load(file.read_text())
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_name_files_that_are_there(page):
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)]
    table = re.findall(r"^\| `([\w./]+)`", text, re.MULTILINE)
    named = [name for name in re.findall(r"`((?:tests|examples|\.ci|cfg|ultralytics_kd)/[\w./]*)`", text)]
    paths = [*links, *(path for path in table if "/" in path), *named]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    own = re.findall(r"https://github\.com/[\w-]+/ultralytics_kd", text)
    assert set(own) <= {PROJECT["urls"]["Source"]}


def test_links_of_the_readme_on_a_package_index_lead_to_the_site_and_to_the_repository():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for change in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text, count = re.subn(change["pattern"], change["replacement"], text)
        assert count
    targets = [*re.findall(r"\]\(([^)]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    assert targets and all(target.startswith("https://") for target in targets)
    assert any(target.startswith(PROJECT["urls"]["Documentation"]) for target in targets)


def test_every_file_of_the_package_is_in_the_repository_and_in_the_wheel():
    """A build leaves out what git ignores, which `runs/` among others would be."""
    files = [f.relative_to(ROOT).as_posix() for f in (ROOT / "ultralytics_kd").rglob("*.py")]
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT,
        input="\n".join(files),
        capture_output=True,
        text=True,
    )
    if ignored.returncode == 128:
        pytest.skip("this is no checkout")
    assert ignored.stdout.split() == []
    assert all((ROOT / f).parent.joinpath("__init__.py").is_file() for f in files)
