"""Arguments that may name files, and their absolute paths for processes with another working folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import exists
from .arguments import as_list, parse_list

MOVED = ("teacher", "kd_unlabeled", "kd_cache", "kd_keep_data")  # a resumed run may find them in another place
FILES = (*MOVED, "kd_classes")
EMA = "ema"  # as a teacher: the student's own moving average
KEYWORDS = (EMA, "auto")  # values that are no files, even if there is a file of that name


def absolute(value: Any) -> Any:
    """Return a value in which the names of files that exist are absolute paths, as texts.

    Args:
        value (Any): The value of an argument, or a list of them.
    """

    def resolved(each: Any) -> Any:
        names_file = isinstance(each, Path) or (isinstance(each, str) and each and exists(each))
        return str(Path(each).resolve()) if names_file and each not in KEYWORDS else each

    value = parse_list(value)
    values = [resolved(each) for each in as_list(value)]
    return values if isinstance(value, (list, tuple)) else values[0] if values else value


def is_average(teacher: Any) -> bool:
    """Return whether a `teacher` argument names the student's own moving average, alone.

    Args:
        teacher (Any): Value of the argument.
    """
    values = as_list(parse_list(teacher))
    return len(values) == 1 and isinstance(values[0], str) and values[0].strip().lower() == EMA
