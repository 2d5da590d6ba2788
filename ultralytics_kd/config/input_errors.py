"""Tell errors in the user's input, which one sentence explains, from faults in the code.

Ultralytics raises built-in errors for unknown arguments, missing files and data sets that it cannot read. A fault in
the code raises the same types, and its traceback must stay. Two things tell them apart: where an error is raised, and
its `filename`. Errors of the operating system and of Python's compiler have one; errors that Ultralytics itself raises
have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from traceback import walk_tb
from typing import Any

import yaml

from ..errors import KDError

ARGUMENTS = "ultralytics.cfg"  # the module that checks arguments
CHECKPOINT = ("ultralytics.nn.tasks", "torch_safe_load")  # reads a checkpoint
CHECKS = {  # functions of Ultralytics that check one argument, by module
    ("ultralytics.utils.torch_utils", "select_device"),  # device
    ("ultralytics.utils.checks", "check_imgsz"),
    ("ultralytics.data.utils", "find_dataset_yaml"),  # data
    ("ultralytics.engine.model", "_check_is_pytorch_model"),  # model
    CHECKPOINT,  # model and pretrained
    ("ultralytics.utils.downloads", "safe_download"),  # whatever is a URL, or a name of Ultralytics'
    ("ultralytics.engine.trainer", "build_optimizer"),  # optimizer
}
# What they raise
CHECKS_RAISE = (TypeError, ValueError, AssertionError, NotImplementedError, ConnectionError)
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
    if isinstance(error, CHECKS_RAISE) and (module, function) in CHECKS:
        return True
    if _reads_checkpoint(error):
        return True
    return isinstance(error, (TypeError, ValueError)) and module == ARGUMENTS


def sentence(error: BaseException, values: Iterable[Any] = ()) -> str:
    """Return an error in the user's input as a message.

    Args:
        error (BaseException): The error, as it was caught.
        values (Iterable): The values of the command's arguments.
    """
    if not _reads_checkpoint(error):
        return str(error)
    files = [str(value) for value in values if isinstance(value, (str, Path)) and str(value).lower().endswith(".pt")]
    return f"{' or '.join(files) or 'a checkpoint'} cannot be read and may be cut off: {error}"


def _reads_checkpoint(error: BaseException) -> bool:
    """Return whether reading a checkpoint failed in the operating system, as it does for one that is cut off."""
    of_system = isinstance(error, OSError) and not isinstance(error, ConnectionError) and not error.filename
    return of_system and CHECKPOINT in _frames(error)


def _is_data_error(cause: BaseException | None) -> bool:
    """Return whether a data set cannot be read; False for a fault of the code that reads it."""
    if isinstance(cause, (OSError, SyntaxError, UnicodeError, yaml.YAMLError, KDError)):
        return True
    return isinstance(cause, (TypeError, ValueError)) and _raised_in(cause)[0] in DATA_SET_CHECKS


def _raised_in(error: BaseException) -> tuple[str, str]:
    """Return the module and the function in which an error was raised; empty texts before it is raised."""
    return (_frames(error) or [("", "")])[-1]


def _frames(error: BaseException) -> list[tuple[str, str]]:
    """Return the modules and functions that an error passed through, outermost first."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return [(str(frame.f_globals.get("__name__", "")), frame.f_code.co_name) for frame in frames]


def _is_named(file: Any, values: Iterable[Any]) -> bool:
    """Return whether one of these values names a file."""
    if not isinstance(file, (str, Path)):
        return False
    return Path(file).absolute() in {Path(v).absolute() for v in values if isinstance(v, (str, Path)) and v}
