"""Hashes of the models and data sets that a bench's arguments name: a file may change and keep its name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultralytics.data.utils import check_cls_dataset, check_det_dataset

from ..image_files import image_files
from ..model import YOLO
from ..teachers.base import hash_weights

# Entries of a job's identity, and what each describes
HASHES = {
    "data_sha256": "the images or labels of the data set",
    "kept_sha256": "the images or labels of kd_keep_data",
    "model_sha256": "the file of the model",
    "unlabeled_sha256": "the images of kd_unlabeled",
}
LENGTH = 16  # digits that are kept: enough to notice a change


def hash_model(model: YOLO) -> str:
    """Return the hash of a model's weights, or of its layers if its weights are random.

    Args:
        model (YOLO): The opened model.
    """
    if model.ckpt:
        return hash_weights(model.model)[:LENGTH]
    layers = {name: value for name, value in model.model.yaml.items() if name != "yaml_file"}
    return hashlib.sha256(json.dumps(layers, sort_keys=True, default=str).encode()).hexdigest()[:LENGTH]


def hash_data(data: str, task: str, split: str = "val") -> str:
    """Return the hash of a data set's class names, image names and labels; not that of the pixels, which takes long.

    A data set that moves as a whole keeps its hash.

    Args:
        data (str): The data set, as `data=` takes it.
        task (str): Task of the models.
        split (str): Images that models are scored on, beside those that they train on.
    """
    described: Any = check_cls_dataset(data) if task == "classify" else check_det_dataset(data)
    digest = hashlib.sha256(json.dumps(described["names"], sort_keys=True, default=str).encode())
    for part in dict.fromkeys(("train", "val", split)):
        for name, label in _images(described, part, task) if described.get(part) else ():
            digest.update(f"{part} {name}\n".encode(errors="surrogateescape"))
            digest.update(label)
    return digest.hexdigest()[:LENGTH]


def hash_names(files: Sequence[str]) -> str:
    """Return the hash of the names of images without labels.

    Args:
        files (Sequence[str]): The images.
    """
    names = "\n".join(sorted(map(_name, files)))
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:LENGTH]


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the entries in which the identities of two jobs differ; older ones have no hashes of model and data.

    Args:
        old (Mapping): Identity of the job that left a record.
        new (Mapping): Identity of the job that would be run.
    """
    names = {*old, *new} - {name for name in HASHES if name not in old or name not in new}
    return sorted(name for name in names if old.get(name) != new.get(name))


def _images(described: Mapping[str, Any], part: str, task: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and label of each image: its file and folder, and the content of its label file if it has one."""
    if task == "classify":  # the folder is the label
        for file in sorted(str(each) for each in Path(described[part]).rglob("*") if each.is_file()):
            yield _name(file), b""
        return
    for file in sorted(image_files(described[part])):
        labels = (label for label in _label_files(file, described, task) if label.is_file())
        yield _name(file), b"".join(label.read_bytes() for label in labels)


def _name(file: str) -> str:
    """Return the name of an image and of its folder."""
    return "/".join(Path(file).parts[-2:])


def _label_files(file: str, described: Mapping[str, Any], task: str) -> list[Path]:
    """Return where Ultralytics looks for the labels of an image: polygons and boxes, masks, or maps of depth."""
    folders: dict[str, tuple[str, ...]] = {"labels": (".txt",)}
    if task == "semantic":
        folders[described.get("masks_dir") or "masks"] = (".png",)
    elif task == "depth":
        folders["depth"] = (".png", ".npy")
    before, images, after = file.rpartition(f"{os.sep}images{os.sep}")
    places = {name: f"{before}{os.sep}{name}{os.sep}{after}" if images else file for name in folders}
    return [Path(places[name]).with_suffix(suffix) for name, suffixes in folders.items() for suffix in suffixes]
