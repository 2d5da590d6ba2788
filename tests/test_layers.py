"""The rooms of the package stand on each other in one order; imports at the top of a module point down it."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

import ultralytics_kd

PACKAGE = Path(ultralytics_kd.__file__).parent
# From the ground up. Rooms of one line do not import each other, but for the faces, which do from left to right
LAYERS = (
    ("errors",),
    ("compat",),
    ("cluster", "files"),
    ("image_files", "logs", "screen"),
    ("losses",),
    ("config",),
    ("outputs",),
    ("teachers",),
    ("distillation",),
    ("cache",),
    ("report",),
    ("training",),
    ("trainer",),
    ("model",),
    ("install",),
    ("advice", "bench", "demo"),
    ("activation",),
    ("cli",),
    ("__main__", "_autoload"),
)
FLOOR = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}


def modules(package: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of every module by its name below the package; a package's is its `__init__`."""
    trees = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(file.read_text())
    return trees


def imports(name: str, tree: ast.Module, known: dict[str, ast.Module], package: Path) -> set[str]:
    """Return the modules of the package that a module imports when it is imported itself."""
    here = name.split(".") if name else []
    if not (package.joinpath(*here) / "__init__.py").is_file():
        here = here[:-1]
    found = set()
    for node in at_import(tree.body):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*here[: len(here) - node.level + 1], *(node.module.split(".") if node.module else [])]
        for alias in node.names:
            whole = ".".join([*base, alias.name])
            found.add(whole if whole in known else ".".join(base))
    return found - {name}


def at_import(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements that run when a module is imported; what only type checkers see does not."""
    found = []
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            found += at_import([*node.body, *node.orelse])
        elif not isinstance(node, (ast.If, ast.FunctionDef, ast.ClassDef)):
            found.append(node)
    return found


def upward(package: Path) -> list[str]:
    """Return the imports that do not point down the layers."""
    known = modules(package)
    rooms = {name.partition(".")[0] for name in known} - {""}
    assert rooms == set(FLOOR), "every room has its place in LAYERS"
    wrong = []
    for name, tree in known.items():
        for target in imports(name, tree, known, package):
            room, other = name.partition(".")[0], target.partition(".")[0]
            if room and other and room != other and FLOOR[other] >= FLOOR[room]:
                wrong.append(f"{name} imports {target}")
    return wrong


def circles(package: Path) -> list[list[str]]:
    """Return modules that import each other, directly or by others, a list for every circle that is found."""
    known = modules(package)
    arrows = {name: imports(name, tree, known, package) for name, tree in known.items()}
    done: set[str] = set()
    found = []

    def follow(name: str, way: list[str]) -> None:
        if name in way:
            found.append(way[way.index(name) :])
        elif name not in done:
            for target in sorted(arrows[name]):
                follow(target, [*way, name])
            done.add(name)

    for name in arrows:
        follow(name, [])
    return found


def test_imports_point_down_the_layers():
    assert upward(PACKAGE) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circles(PACKAGE) == []


@pytest.mark.parametrize(
    "module, line, error",
    [
        ("losses/box.py", "from ..training.scores import tables", "losses.box imports training.scores.tables"),
        (
            "teachers/grid.py",
            "from ..distillation.loss import DistillationLoss",
            "teachers.grid imports distillation.loss",
        ),
        ("cache/store.py", "from .. import model", "cache.store imports model"),
    ],
)
def test_a_planted_upward_import_is_seen(tmp_path, module, line, error):
    copy = tmp_path / "ultralytics_kd"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / module
    file.write_text(f"{file.read_text()}\n{line}\n")
    assert upward(copy) == [error]


def test_a_planted_circle_is_seen(tmp_path):
    copy = tmp_path / "ultralytics_kd"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "teachers" / "answers.py"
    file.write_text(f"{file.read_text()}\nfrom .base import Teacher\n")
    assert ["teachers.answers", "teachers.base"] in [sorted(circle) for circle in circles(copy)]
