"""What a data set's classes are, as a model of the task has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ultralytics.data import utils
from ultralytics.data.utils import check_cls_dataset, check_det_dataset
from ultralytics.nn.autobackend import check_class_names


def class_names_of(data: str, task: str, single_cls: bool = False) -> dict[int, str]:
    """Return the class names that a model trained on a data set has.

    Args:
        data (str): data.yaml, or the folder of a classification.
        task (str): Task of the model.
        single_cls (bool): Ultralytics' argument: all classes are one.

    Returns:
        (dict[int, str]): Names by index. Polygons of several classes, read as a semantic segmentation, have a
            background besides.
    """
    if single_cls:
        return {0: "item"}
    found: dict[str, Any] = check_cls_dataset(data) if task == "classify" else check_det_dataset(data)
    found["names"] = check_class_names(found["names"])
    if task == "semantic":  # not every release has the task
        found = utils.add_polygon_background(found)
    return dict(found["names"])


def distinct(names: Mapping[int, str]) -> dict[int, str]:
    """Return class names of which no two are the same: those that occur twice get their index.

    Args:
        names (Mapping[int, str]): Names by index.
    """
    count = Counter(names.values())
    return {i: name if count[name] == 1 else f"{name} ({i})" for i, name in names.items()}
