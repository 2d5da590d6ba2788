"""Tell errors in the user's input, which one sentence explains, from faults in the code.

Ultralytics raises built-in errors for unknown arguments, missing files and data sets that it cannot read. A fault in
the code raises the same types, and its traceback must stay. Two things tell them apart: where an error is raised, and
its `filename`. Errors of the operating system and of Python's compiler have one; errors that Ultralytics itself raises
have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from ..errors import KDError

ARGUMENTS = "ultralytics.cfg"  # the module that checks arguments
CHECKS = {  # functions of Ultralytics that check one argument, by module: `device`, `imgsz` and `data`
    ("ultralytics.utils.torch_utils", "select_device"),
    ("ultralytics.utils.checks", "check_imgsz"),
    ("ultralytics.data.utils", "find_dataset_yaml"),
}
DATA_SET = ("ultralytics.engine.trainer", "get_dataset")  # raises a RuntimeError for whatever is wrong with a data set
DATA_SET_CHECKS = ("ultralytics.data.utils", "ultralytics.utils", "ultralytics.utils.checks")  # modules of its checks


def is_input_error(error: BaseException, values: Callable[[], Iterable[Any]] = tuple) -> bool:
    """Return whether an error is about the arguments of a command, or about the files and data sets that they name.

    Args:
        error (BaseException): The error, as it was caught.
        values (Callable): Returns the values of the command's arguments.
    """
    if isinstance(error, KDError):
        return True
    module, function = _raised_in(error)
    if isinstance(error, (FileNotFoundError, SyntaxError)):
        if error.filename is None:
            return module.partition(".")[0] == "ultralytics"
        return isinstance(error, FileNotFoundError) and _is_named(error.filename, values())
    if isinstance(error, RuntimeError) and (module, function) == DATA_SET:
        return _is_data_error(error.__cause__)
    if isinstance(error, (TypeError, ValueError, AssertionError)) and (module, function) in CHECKS:
        return True
    return isinstance(error, (TypeError, ValueError)) and module == ARGUMENTS


def _is_data_error(cause: BaseException | None) -> bool:
    """Return whether a data set cannot be read; False for a fault of the code that reads it."""
    if isinstance(cause, (OSError, SyntaxError, UnicodeError, yaml.YAMLError, KDError)):
        return True
    return isinstance(cause, (TypeError, ValueError)) and _raised_in(cause)[0] in DATA_SET_CHECKS


def _raised_in(error: BaseException) -> tuple[str, str]:
    """Return the module and the function in which an error was raised; empty texts before it is raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "", ""
    return str(trace.tb_frame.f_globals.get("__name__", "")), trace.tb_frame.f_code.co_name


def _is_named(file: Any, values: Iterable[Any]) -> bool:
    """Return whether one of these values names a file."""
    if not isinstance(file, (str, Path)):
        return False
    return Path(file).absolute() in {Path(v).absolute() for v in values if isinstance(v, (str, Path)) and v}
