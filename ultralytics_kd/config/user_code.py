"""Objects that an argument names as `module:name`: the user's own code, or models of a known library."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import KDError, first_line

MODEL_LIBRARIES = ("torchvision", "timm")  # `library:name` is a pretrained model and runs no user code


def names_library_model(text: Any) -> bool:
    """Return whether a value is `torchvision:NAME` or `timm:NAME`.

    Args:
        text (Any): Value of a `teacher` argument.
    """
    library, colon, _ = text.strip().partition(":") if isinstance(text, str) else ("", "", "")
    return bool(colon) and library in MODEL_LIBRARIES


def names_object(text: Any) -> bool:
    """Return whether a value is a text `package.module:name`.

    Args:
        text (Any): Value of an argument.
    """
    module, colon, name = text.partition(":") if isinstance(text, str) else ("", "", "")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def import_object(argument: str, text: str, make: Callable[[Any], Any] = lambda named: named) -> Any:
    """Return the object that an argument names, from the working folder or an installed package.

    Args:
        argument (str): Name of the argument, for errors.
        text (str): `package.module:name`.
        make (Callable): Makes the result from the named object; it may run the user's code.

    Raises:
        KDError: If there is no such object, or the user's code raises.
    """
    module, _, name = text.partition(":")
    with _working_folder_on_path():
        try:
            named = run_user_code(
                argument, text, lambda: getattr(importlib.import_module(module), name), ImportError, AttributeError
            )
        except (ImportError, AttributeError) as e:
            raise KDError(f"{argument}={text} names no object that can be imported: {e}.") from e
        return run_user_code(argument, text, lambda: make(named))


def load_loss(argument: str, text: str) -> Any:
    """Return a loss of the user's own code.

    Args:
        argument (str): The argument that names it: "kd_cls_loss", "kd_box_loss" or "kd_feat_loss".
        text (str): `module:name` of a function; for "kd_feat_loss" also of a class that makes an nn.Module.

    Raises:
        KDError: If it cannot be imported or called, or is a class and the argument takes functions only.
    """
    loss = import_object(argument, text)
    if not callable(loss):
        raise KDError(f"{argument}={text} is neither a function nor a class, but a {type(loss).__name__}.")
    if isinstance(loss, type) and argument != "kd_feat_loss":
        raise KDError(f"{argument}={text} is a class: give a function.")
    return loss


def run_user_code(argument: str, text: str, make: Callable[[], Any], *passed: type[Exception]) -> Any:
    """Run the user's code and return its result.

    Args:
        argument (str): Name of the argument that names the code, for errors.
        text (str): `package.module:name`.
        make (Callable): Runs the code.
        *passed (type[Exception]): Errors that the caller handles.

    Raises:
        KDError: If the code raises another error. For a SyntaxError, the message names file and line.
    """
    try:
        return make()
    except passed:
        raise
    except Exception as e:  # the user's code may raise anything
        raise KDError(f"the code of {argument}={text} raised {type(e).__name__}: {first_line(e)}") from e


@contextmanager
def _working_folder_on_path() -> Iterator[None]:
    """Search the working folder for modules too, as `python -m` does and installed scripts do not.

    Afterwards the folder stays the last place to search, for modules that the user's code imports when it is called.
    """
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added:
            sys.path.remove(folder)
            sys.path.append(folder)
