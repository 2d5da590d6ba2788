"""What is changed in Ultralytics' own modules is what the table in `install` lists, and all of it can be undone."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ultralytics.utils import DEFAULT_CFG_DICT

import ultralytics_kd
from ultralytics_kd import KDError, config
from ultralytics_kd.config import registration
from ultralytics_kd.install import ARGUMENT_CHANGES, CHANGES, MODEL_CHANGES, TRAINER_CHANGES, install, uninstall

pytestmark = pytest.mark.core  # of .ci/releases

PACKAGE = Path(ultralytics_kd.__file__).parent

# Prints which attributes of Ultralytics' modules and classes differ from those of Ultralytics alone, at four moments
DIFFERENCES = """
import copy, inspect, json, sys, types
import ultralytics, ultralytics.models.yolo, ultralytics.engine.tuner, ultralytics.utils.tuner
from ultralytics import YOLO, RTDETR

CONTAINERS = (dict, list, set, types.SimpleNamespace)

def content(value):
    value = vars(value) if isinstance(value, types.SimpleNamespace) else value
    return copy.copy(value)

def attributes():
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] != "ultralytics" or not hasattr(module, "__file__"):
            continue
        for attribute, value in vars(module).items():
            if attribute.startswith("__") or inspect.ismodule(value):
                continue
            yield f"{name}.{attribute}", value
            if inspect.isclass(value) and value.__module__ == name:
                for inner, part in vars(value).items():
                    yield f"{name}.{attribute}.{inner}", part

def snapshot():
    return {name: (value, content(value) if isinstance(value, CONTAINERS) else None) for name, value in attributes()}

def differences():
    now, groups = dict(attributes()), {}
    for name, (value, inner) in before.items():
        same = name in now and (now[name] is value or (type(value) is str and now[name] == value))
        if not same:
            groups[name] = [name]
        elif isinstance(value, CONTAINERS) and content(value) != inner:  # in place: under all names of this object
            groups.setdefault(id(value), []).append(name)
    added = [[name] for name in now if name not in before and name.rpartition(".")[0] in classes]
    return [*groups.values(), *added]

before = snapshot()
classes = {name.rpartition(".")[0] for name in before} - set(sys.modules)
moments = {}
import ultralytics_kd
moments["imported"] = differences()
import ultralytics_kd.trainer
moments["trainer"] = differences()
from ultralytics_kd.install import install, uninstall
install()
install()
moments["installed"] = differences()
uninstall()
moments["uninstalled"] = differences()
print("MOMENTS", json.dumps(moments))
"""


@pytest.fixture(scope="module")
def moments(tmp_path_factory) -> dict[str, list[list[str]]]:
    """Return what differs in Ultralytics' modules after each step: the names of each object."""
    code = [sys.executable, "-c", DIFFERENCES]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run(
        code, cwd=tmp_path_factory.mktemp("empty"), env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(next(line for line in run.stdout.splitlines() if line.startswith("MOMENTS")).partition(" ")[2])


@pytest.mark.parametrize(
    "moment, changes",
    [
        ("imported", ()),
        ("trainer", (*ARGUMENT_CHANGES, *TRAINER_CHANGES)),
        ("installed", (*ARGUMENT_CHANGES, *TRAINER_CHANGES, *MODEL_CHANGES)),
        ("uninstalled", ()),
    ],
)
def test_ultralytics_differs_in_what_the_table_lists_and_in_nothing_else(moments, moment, changes):
    places = {change.place for change in changes}
    assert {next((name for name in names if name in places), names[0]) for names in moments[moment]} == places


def test_every_change_says_what_it_is_for_and_temporary_ones_who_makes_them():
    assert len({change.place for change in CHANGES}) == len(CHANGES)
    for change in CHANGES:
        assert change.why.endswith(".") and (change.replace is None) == bool(change.during)


# Methods that change a list, dict, set or logger in place
IN_PLACE = {
    *("append", "extend", "insert", "remove", "reverse", "sort", "pop", "clear"),
    *("update", "setdefault", "popitem", "add", "discard", "addFilter", "addHandler"),
}


def changed_in_source() -> set[str]:
    """Return the objects in modules of Ultralytics that the source of this package assigns to or changes in place."""
    places = set()
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = imported_from_ultralytics(tree)
        changed = {place_of(part, imported) for node in ast.walk(tree) for part in changed_by(node)}
        places |= changed - {""}
    return places


def imported_from_ultralytics(tree: ast.Module) -> dict[str, str]:
    """Return the full name of everything that a module imports from Ultralytics, by the name that it has there."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ultralytics":
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in (a for a in node.names if a.name.partition(".")[0] == "ultralytics"):
                names |= {alias.asname: alias.name} if alias.asname else {"ultralytics": "ultralytics"}
    return names


def place_of(node: ast.expr, imported: dict[str, str]) -> str:
    """Return the full name of an object of Ultralytics, `a.b.c` with an imported `a`; "" for any other expression."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, "")
    if isinstance(node, ast.Attribute):
        owner = place_of(node.value, imported)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def changed_by(node: ast.AST) -> list[ast.expr]:
    """Return the expressions whose object a node assigns to, deletes or changes in place."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return [node]
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return [node.value]
    if isinstance(node, ast.AugAssign):
        return [node.target]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in IN_PLACE:
        return [node.func.value]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in {"setattr", "delattr"}:
        owner, name = node.args[:2]
        return [ast.Attribute(owner, name.value)] if isinstance(name, ast.Constant) else [owner]
    return []


def test_what_is_changed_in_a_with_block_is_in_the_table_too():
    assert changed_in_source() == {change.place for change in CHANGES if change.during}


@pytest.mark.parametrize(
    "change, place",
    [
        ("ops.xyxy2xywh = None", "utils.ops.xyxy2xywh"),
        ("del ops.xyxy2xywh", "utils.ops.xyxy2xywh"),
        ("setattr(ops, 'xyxy2xywh', None)", "utils.ops.xyxy2xywh"),
        ("ops.Profile.time = None", "utils.ops.Profile.time"),
        ("ul_cfg.ARGV[:] = []", "cfg.ARGV"),
        ("DEFAULT_CFG_DICT['box'] = 1", "utils.DEFAULT_CFG_DICT"),
        ("del DEFAULT_CFG_DICT['box']", "utils.DEFAULT_CFG_DICT"),
        ("DEFAULT_CFG_DICT |= {}", "utils.DEFAULT_CFG_DICT"),
        ("DEFAULT_CFG_DICT.update(box=1)", "utils.DEFAULT_CFG_DICT"),
        ("ultralytics.cfg.ARGV.append('x')", "cfg.ARGV"),
    ],
)
def test_a_change_that_the_table_does_not_list_is_seen(tmp_path, monkeypatch, change, place):
    imports = (
        "import ultralytics\nimport ultralytics.cfg as ul_cfg\nfrom ultralytics.utils import DEFAULT_CFG_DICT, ops\n"
    )
    (tmp_path / "room.py").write_text(f"{imports}own = dict(DEFAULT_CFG_DICT)\nown['box'] = ops.xyxy2xywh\n{change}\n")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert changed_in_source() == {f"ultralytics.{place}"}


@pytest.fixture
def stock():
    """Leave Ultralytics alone for the time of a test."""
    uninstall()
    yield
    uninstall()
    config.register()  # as conftest.py has left it


def test_uninstalling_is_repeatable_and_installing_again_works(stock):
    assert not set(config.ARGUMENTS) & set(DEFAULT_CFG_DICT)
    uninstall()
    install()
    assert set(config.ARGUMENTS) <= set(DEFAULT_CFG_DICT)


@pytest.mark.parametrize("name", ["teacher", "kd_cls"])
def test_argument_of_ultralytics_own_with_one_of_our_names_is_refused_in_a_sentence(stock, monkeypatch, name):
    monkeypatch.setattr(registration, "installed_release", lambda: "9.0.0")
    monkeypatch.setitem(DEFAULT_CFG_DICT, name, None)
    for _ in range(2):
        with pytest.raises(KDError, match=rf"^ultralytics 9\.0\.0 has an argument '{name}' of its own.*: install "):
            config.register_arguments()
    assert set(config.ARGUMENTS) & set(DEFAULT_CFG_DICT) == {name}
    monkeypatch.undo()
    config.register_arguments()
    assert set(config.ARGUMENTS) <= set(DEFAULT_CFG_DICT)
