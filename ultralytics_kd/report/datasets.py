"""Class names and image channels of data sets, and data.yaml files for images of other data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ultralytics.data import utils
from ultralytics.data.utils import check_cls_dataset, check_det_dataset
from ultralytics.nn.autobackend import check_class_names
from ultralytics.utils import YAML

PLACES = ("path", "train", "val", "test", "minival", "yaml_file", "download")  # keys of a data.yaml that hold locations


def class_names_of(data: str, task: str, single_cls: bool = False) -> dict[int, str]:
    """Return the class names that a model trained on a data set has.

    Args:
        data (str): data.yaml, or the folder of a classification.
        task (str): Task of the model.
        single_cls (bool): Ultralytics' argument, which merges all classes.

    Returns:
        (dict[int, str]): Names by index. A semantic segmentation that reads polygons of several classes has a
            background class too.
    """
    if single_cls:
        return {0: "item"}
    dataset: dict[str, Any] = check_cls_dataset(data) if task == "classify" else check_det_dataset(data)
    dataset["names"] = check_class_names(dataset["names"])
    if task == "semantic":  # not every release has the task
        dataset = utils.add_polygon_background(dataset)
    return dict(dataset["names"])


def channels_of(data: str, task: str) -> int:
    """Return the number of channels of a data set's images.

    Args:
        data (str): data.yaml, or the folder of a classification.
        task (str): Task of the model.
    """
    return 3 if task == "classify" else int(check_det_dataset(data)["channels"])


def save_data_yaml(described: Mapping[str, Any], folder: Path, train: str, val: str) -> Path:
    """Write a data.yaml for images of a data set that lie elsewhere, and return its path.

    Args:
        described (Mapping[str, Any]): The data set, as Ultralytics describes it.
        folder (Path): Folder that the data.yaml is written into.
        train (str): Training images: a folder, or a file that lists them, in that folder.
        val (str): Val images, in the same form.
    """
    rest = {name: value for name, value in described.items() if name not in PLACES}
    YAML.save(folder / "data.yaml", {"path": str(folder.absolute()), "train": train, "val": val, **rest})
    return folder / "data.yaml"


def distinct(names: Mapping[int, str]) -> dict[int, str]:
    """Return class names without duplicates: a name that occurs twice gets its index.

    Args:
        names (Mapping[int, str]): Names by index.
    """
    count = Counter(names.values())
    return {i: name if count[name] == 1 else f"{name} ({i})" for i, name in names.items()}
