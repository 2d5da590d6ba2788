"""Objects of the user's own code that an argument names as `module:name`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import KDError, first_line


def names_object(text: Any) -> bool:
    """Return whether a value is a text `package.module:name`."""
    module, colon, name = text.partition(":") if isinstance(text, str) else ("", "", "")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def import_object(argument: str, text: str, make: Callable[[Any], Any] = lambda found: found) -> Any:
    """Return what an argument names, from the folder where the command was given or an installed package.

    Args:
        argument (str): Name of the argument, for errors.
        text (str): `package.module:name`.
        make (Callable): What is made of the object that was found; the user's code may run in it.

    Raises:
        KDError: If there is no such object, or the user's code raises.
    """
    module, _, name = text.partition(":")
    with _here():
        try:
            found = made(
                argument, text, lambda: getattr(importlib.import_module(module), name), ImportError, AttributeError
            )
        except (ImportError, AttributeError) as e:
            raise KDError(f"{argument}={text} names no object that can be imported: {e}.") from e
        return made(argument, text, lambda: make(found))


def own_loss(text: str) -> Any:
    """Return the feature loss of the user's own code that `kd_feat_loss` names.

    Args:
        text (str): `module:name` of a function, or of a class that makes an nn.Module.

    Raises:
        KDError: If it cannot be imported or called.
    """
    loss = import_object("kd_feat_loss", text)
    if not callable(loss):
        raise KDError(f"kd_feat_loss={text} is neither a function nor a class, but a {type(loss).__name__}.")
    return loss


def made(argument: str, text: str, make: Callable[[], Any], *passed: type[Exception]) -> Any:
    """Return what the user's code makes.

    Args:
        argument (str): Name of the argument that names it, for errors.
        text (str): `package.module:name`.
        make (Callable): Calls it.
        *passed (type[Exception]): Errors that the caller explains.

    Raises:
        KDError: If it raises.
    """
    try:
        return make()
    except passed:
        raise
    except Exception as e:  # it is the user's code, and may raise whatever it likes
        raise KDError(f"{argument}={text} could not be made: {type(e).__name__}: {first_line(e)}") from e


@contextmanager
def _here() -> Iterator[None]:
    """Look for modules in the working folder too, as `python -m` does and installed scripts do not.

    It stays the last place to look, for what the user's code imports when it is called.
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
