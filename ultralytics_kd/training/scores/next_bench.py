"""The bench that shows whether a training was better than one without a teacher, as a command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ultralytics.utils import DEFAULT_CFG_DICT

from ...config.arguments import as_list, parse_list
from ...screen import command_line, near_value

FIRST = ("data", "model", "teacher")
# Arguments that a bench does not take, and those of the run's folder and of what it saves and prints
OTHERS = {
    *("mode", "task", "cfg", "seed", "resume", "name", "project", "exist_ok", "save_dir", "tracker"),
    *("val", "plots", "verbose", "save", "save_period"),
}


def bench_command(args: Any, asked: Mapping[str, Any]) -> str:
    """Return the command line of a bench with the arguments of a training.

    Args:
        args (Namespace): Arguments of the training. Ultralytics and this package have set some of them.
        asked (Mapping): Arguments that the user gave.

    Returns:
        (str): The command line; empty for a teacher without a file, and for a resumed run: its model is the checkpoint.
    """
    if args.resume:
        return ""
    teachers = as_list(parse_list(args.teacher))
    if not all(isinstance(each, (str, Path)) for each in teachers):
        return ""
    given = {k: v for k, v in asked.items() if k in DEFAULT_CFG_DICT and k not in (*FIRST, *OTHERS)}
    if "batch" in given:  # a bench takes the number that AutoBatch found
        given["batch"] = args.batch
    changed = {k: v for k, v in given.items() if v != DEFAULT_CFG_DICT[k] and v not in (None, "")}
    first = {"data": args.data, "model": args.model, "teacher": teachers if len(teachers) > 1 else teachers[0]}
    return command_line("bench", {k: near_value(v) for k, v in {**first, **changed}.items()})
