"""The bench that shows whether a training was better than one without a teacher, as a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.utils import DEFAULT_CFG_DICT

from ...config.arguments import as_list, parse_list
from ...screen import command_line, near

FIRST = ("data", "model", "teacher")
# Arguments that a bench does not take, those of the run's folder and of what it saves and prints, and one that
# Ultralytics sets by itself
OTHERS = {
    *("mode", "task", "cfg", "seed", "resume", "name", "project", "exist_ok", "save_dir", "tracker"),
    *("val", "plots", "verbose", "save", "save_period", "warmup_bias_lr"),
}


def bench_command(args: Any) -> str:
    """Return the command line of a bench with the arguments of a training; empty for a teacher without a file.

    Args:
        args (Namespace): Arguments of the training.
    """
    teachers = as_list(parse_list(args.teacher))
    if not all(isinstance(each, (str, Path)) for each in teachers):
        return ""
    given = {k: v for k, v in vars(args).items() if k in DEFAULT_CFG_DICT and k not in (*FIRST, *OTHERS)}
    changed = {k: v for k, v in given.items() if v != DEFAULT_CFG_DICT[k] and v not in (None, "")}
    first = {"data": args.data, "model": args.model, "teacher": teachers if len(teachers) > 1 else teachers[0]}
    return command_line("bench", {k: _near(v) for k, v in {**first, **changed}.items()})


def _near(value: Any) -> Any:
    """Return a value with paths as short as they can be typed here."""
    if isinstance(value, list):
        return [_near(each) for each in value]
    return near(value) if isinstance(value, (str, Path)) else value
