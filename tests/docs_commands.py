"""Checks of the commands that the documentation shows, without running them: names, values, recipes, files."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs_blocks import ROOT
from packaging.requirements import Requirement
from ultralytics.cfg import MODES, TASKS, get_cfg, parse_key_value_pair
from ultralytics.utils import DEFAULT_CFG_DICT, SETTINGS

from ultralytics_kd.advice import ADVICE_ONLY
from ultralytics_kd.bench.plan import make_plan
from ultralytics_kd.cache.options import CACHE_ONLY
from ultralytics_kd.cache.options import USED as USED_BY_CACHE
from ultralytics_kd.cache.options import check_options as check_cache
from ultralytics_kd.cli import main  # noqa: F401 (registers the kd arguments)
from ultralytics_kd.config import check_combination, recipes
from ultralytics_kd.config.checks import check_names, check_teacher_given
from ultralytics_kd.config.registration import register_arguments
from ultralytics_kd.demo.run import DEMO_ONLY
from ultralytics_kd.report.options import check_options as check_report

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

register_arguments()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
NO_ARGUMENTS = {"enable", "disable", "help", "checks", "version", "cfg", "copy-cfg"}


def check(command: list[str]) -> None:
    """Raise if a command of the documentation is wrong; it is checked in the repository's root.

    Args:
        command (list[str]): Its words, with variables of the environment before the program.
    """
    command = [word for word in command if word != "..."]
    while re.match(r"[A-Z_]+=", command[0]):
        command = command[1:]
    program, *args = command
    if program.startswith(".ci/"):
        assert (ROOT / program).exists(), program
        return
    assert program in PROGRAMS, f"tests/docs_commands.py does not know how to check '{program}'"
    PROGRAMS[program](args)


def _yolo(args: list[str]) -> None:
    """Check arguments of Ultralytics' own command line."""
    assert args, "a command is missing"
    first, rest = args[0], args[1:]
    if first in NO_ARGUMENTS:
        assert not rest, rest
    elif first == "settings":
        assert set(_given(rest)) <= {*SETTINGS, "reset"}, rest
    else:
        _training([word for word in args if word not in TASKS], needs_all="=" in " ".join(rest))


def _training(args: list[str], needs_all: bool) -> None:
    """Check the arguments of a mode, and of its recipes."""
    modes, flags = ([a for a in args if "=" not in a and (a in MODES) is mode] for mode in (True, False))
    assert len(modes) == 1 or not needs_all, f"one mode is needed, got {modes}"
    assert [f for f in flags if not isinstance(DEFAULT_CFG_DICT.get(f), bool)] == []
    given = {**_given([a for a in args if "=" in a]), **dict.fromkeys(flags, True)}
    merged: dict[str, Any] = {}
    for recipe in recipes.check_line(args).recipes.values():
        merged |= recipe
    merged |= {name: value for name, value in given.items() if name != "cfg"}
    check_teacher_given(list(given), merged)
    check_combination({"task": "detect", **_all(merged)})


def _advise(args: list[str]) -> None:
    given = _given(args)
    check_names("yolo-kd advise", given, {**ADVICE_ONLY, **DEFAULT_CFG_DICT})
    training = {name: value for name, value in given.items() if name not in ADVICE_ONLY}
    for teacher in str(given["teacher"]).split(","):
        check_combination({**_all({**training, "teacher": teacher}), "task": "detect"})


def _bench(args: list[str]) -> None:
    given = _given(args)
    if {"data", "model"} <= set(given):
        make_plan({"task": "detect", **given})
    else:  # quoted in part
        make_plan({"task": "detect", "data": "d.yaml", "model": "m.pt", "teacher": "t.pt", **given})


def _cache(args: list[str]) -> None:
    given = _given(args)
    check_names("yolo-kd cache", given, {*CACHE_ONLY, *USED_BY_CACHE})
    check_cache({**CACHE_ONLY, **{name: value for name, value in given.items() if name in CACHE_ONLY}})
    _all({name: value for name, value in given.items() if name not in CACHE_ONLY})


def _demo(args: list[str]) -> None:
    check_names("yolo-kd demo", _given(args), {**DEMO_ONLY, **DEFAULT_CFG_DICT})


def _python(args: list[str]) -> None:
    """Check a module or a script with its arguments."""
    if args[0] == "-m":
        PROGRAMS[{"ultralytics_kd": "yolo-kd"}.get(args[1], args[1])](args[2:])
        return
    source = (ROOT / args[0]).read_text(encoding="utf-8")
    for name in _given([arg for arg in args[1:] if "=" in arg]):
        assert re.search(rf'"{name}"|\b{name}=', source), f"{args[0]} does not read '{name}'"


def _pip(args: list[str]) -> None:
    """Check what is installed: the package with extras that it has, or others."""
    assert args[0] == "install", args
    for word in args[1:]:
        if word.startswith("-") or word in {".", "pre-commit", "ultralytics_kd-*.whl"}:
            continue
        needed = Requirement(word.replace(".[", "ultralytics_kd[", 1))
        if needed.name == "ultralytics_kd":
            assert needed.extras <= set(EXTRAS), word


def _pytest(args: list[str]) -> None:
    """Check that the files are there, and that each has a test with the word that chooses tests."""
    files = [arg for arg in args if arg.startswith("tests/")]
    word = args[args.index("-k") + 1] if "-k" in args else ""
    for file in files:
        names = re.findall(r"^def (test_\w+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert any(word in name for name in names), f"{file} has no test named '{word}'"


def _torchrun(args: list[str]) -> None:
    _python(args[args.index("-m") :])


def _kd(args: list[str]) -> None:
    """Check a command of `yolo-kd`."""
    own = {"advise": _advise, "bench": _bench, "cache": _cache, "demo": _demo}
    if args[0] in own:
        if args[1:] or args[0] == "demo":  # else the text quotes its name
            own[args[0]](args[1:])
    elif args[0] == "report":
        if args[1:]:
            check_report(_given(args[1:]), "detect")
    else:
        _yolo(args)


def _export(args: list[str]) -> None:
    assert [arg for arg in args if not re.fullmatch(r"[A-Z_]+=.*", arg)] == []


PROGRAMS = {
    "yolo-kd": _kd,
    "yolo": _yolo,
    "ul": _yolo,
    "python": _python,
    "pip": _pip,
    "pytest": _pytest,
    "torchrun": _torchrun,
    "export": _export,
}


def _given(args: list[str]) -> dict[str, Any]:
    """Return `key=value` arguments."""
    assert [arg for arg in args if "=" not in arg] == []
    return dict(parse_key_value_pair(arg) for arg in args)


def _all(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of Ultralytics' arguments with the given ones, whose names and types are checked."""
    return vars(get_cfg(overrides=dict(given)))


def runnable(command: list[str]) -> bool:
    """Return whether the tests can run a command; others are marked."""
    return command[0] in {"yolo-kd", "yolo", "export"} or (command[0] == "python" and command[1].endswith(".py"))


def named_files(reason: str) -> list[Path]:
    """Return the tests and scripts that the reason of a mark names."""
    return [ROOT / name for name in re.findall(r"tests/\w+\.py|\.ci/\w+", reason)]
