"""Whether a teacher has learnt from one data set only: it has if it began with random weights there."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from .sizes import train_args

RANDOM = (".yaml", ".yml")  # a model that is built from an architecture, and not loaded


def scratch_data(ckpt: Any) -> str | None:
    """Return the data set that a checkpoint's model learnt from random weights; None if it began with trained weights.

    A model that was trained with a teacher does not count: it may have begun with weights of the teacher. Where the
    checkpoint does not tell, as after a resumed training, the model counts as one that began with trained weights.

    Args:
        ckpt (Any): The checkpoint, None if there is none.
    """
    args = train_args(ckpt)
    if args.get("teacher"):
        return None
    model, pretrained, data = (args.get(name) for name in ("model", "pretrained", "data"))
    built = isinstance(model, (str, PurePath)) and str(model).lower().endswith(RANDOM)
    emptied = pretrained is False and not args.get("resume")  # Ultralytics then keeps the architecture alone
    loaded = isinstance(pretrained, (str, PurePath))  # True loads nothing into a new architecture
    return str(data) if (built or emptied) and not loaded and isinstance(data, (str, PurePath)) else None


def same_data(first: Any, second: Any) -> bool:
    """Return whether two `data=` arguments name the same data set, which may lie elsewhere on another machine.

    The names of the file or folder are compared, and those of the folders that they are in, if both have one.

    Args:
        first (str | Path): One argument, a file or a folder.
        second (str | Path): The other one.
    """
    paths = PurePath(str(first)), PurePath(str(second))
    folders = {path.parent.name for path in paths} - {""}
    return paths[0].name == paths[1].name and len(folders) < 2
