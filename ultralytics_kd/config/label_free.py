"""Data sets with class names and a val set, but without training images: a teacher labels other images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

from ..errors import KDError
from ..files import YAML_ERRORS, load_yaml, replacing

COMPLETED = "data.yaml"  # in the run's folder


def lacks_training_images(data: Any, task: str) -> bool:
    """Return whether a data.yaml names no training images; False for any other data set, and for files with errors.

    Args:
        data (str | Path): The `data` argument.
        task (str): The student's task.
    """
    if task == "classify" or Path(str(data)).suffix.lower() not in {".yaml", ".yml"}:
        return False
    try:
        described = load_yaml(data)
    except (KDError, OSError, *YAML_ERRORS):  # Ultralytics says what is wrong
        return False
    return not described.get("train") and bool(described.get("names") or described.get("nc"))


def with_train_entry(data: Any, folder: Path) -> str:
    """Return the path of a data.yaml that Ultralytics can read: it needs a `train` entry, which may be empty.

    Args:
        data (str | Path): A data.yaml without training images.
        folder (Path): Folder for a copy with absolute paths, if the file lacks the entry.
    """
    described = load_yaml(data)
    if "train" in described:
        return str(data)
    root = Path(described.get("path") or Path(check_yaml(str(data))).parent)
    with replacing(folder / COMPLETED) as part:
        YAML.save(part, {**described, "path": str(root.resolve() if root.exists() else root), "train": None})
    return str(folder / COMPLETED)
