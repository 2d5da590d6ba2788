"""Make and undo changes in Ultralytics' own modules."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

_ABSENT = object()


@dataclass(frozen=True)
class Change:
    """One thing of Ultralytics that is replaced in this process.

    Attributes:
        module (str): The module that holds it.
        part (str): Its place there, as in `compat.INTERNALS`: attributes, and in brackets a parameter that it takes.
        why (str): What the change is for.
        replace (Callable, optional): Returns the replacement of the original. None for a change that code elsewhere
            makes and undoes itself, in a `with` block.
        in_place (bool): Whether the content of a dict, list or namespace is changed, and the attribute is kept, because
            other modules hold the same object.
        during (str): For a change in a `with` block: when it is in force, and the module that makes it.
    """

    module: str
    part: str
    why: str
    replace: Callable[[Any], Any] | None = None
    in_place: bool = False
    during: str = ""

    @property
    def place(self) -> str:
        """Its full name."""
        return f"{self.module}.{self.part.partition('(')[0]}"

    def owner(self) -> tuple[Any, str]:
        """Return the object that holds it, and the name of the attribute."""
        owner: Any = importlib.import_module(self.module)
        *outer, name = self.part.partition("(")[0].split(".")
        for each in outer:
            owner = getattr(owner, each)
        return owner, name


_undo: dict[Change, Callable[[], None]] = {}  # changes that are in force, in the order in which they were made


def make(changes: Iterable[Change]) -> None:
    """Make changes that are not in force yet, except those that a `with` block makes.

    Args:
        changes (Iterable[Change]): The changes.
    """
    for change in changes:
        if change.replace is None or change in _undo:
            continue
        owner, name = change.owner()
        original = getattr(owner, name)
        if change.in_place:
            before = _copy(original)
            _fill(original, change.replace(before))
            _undo[change] = partial(_fill, original, before)
        else:
            own_attribute = vars(owner).get(name, _ABSENT)  # absent if a class inherits it
            setattr(owner, name, change.replace(original))
            _undo[change] = partial(_restore, owner, name, own_attribute)


def undo() -> None:
    """Undo all changes that are in force, the last one first: every object is the original again."""
    while _undo:
        change = next(reversed(_undo))
        _undo.pop(change)()


def in_force(change: Change) -> bool:
    """Return whether a change is in force.

    Args:
        change (Change): The change.
    """
    return change in _undo


def _restore(owner: Any, name: str, original: Any) -> None:
    """Put an attribute back, or remove it from a class that inherits it."""
    if original is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, original)


def _copy(holder: Any) -> Any:
    """Return a copy of the content of a dict, list or namespace."""
    return dict(vars(holder)) if isinstance(holder, (Namespace, SimpleNamespace)) else holder.copy()


def _fill(holder: Any, content: Any) -> None:
    """Replace the content of a dict, list or namespace."""
    if isinstance(holder, list):
        holder[:] = content
        return
    target = vars(holder) if isinstance(holder, (Namespace, SimpleNamespace)) else holder
    target.clear()
    target.update(content)
