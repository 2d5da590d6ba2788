"""Hashes of the models and data sets that a bench's arguments name: a file may change and keep its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ultralytics.data.utils import check_cls_dataset, check_det_dataset, img2label_paths

from ..image_files import image_files
from ..model import YOLO
from ..teachers.base import hash_weights

# Entries of a job's identity, and what each describes
HASHES = {"model_sha256": "the file of the model", "data_sha256": "the images or labels of the data set"}
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


def hash_data(data: str, task: str) -> str:
    """Return the hash of a data set's class names, image names and labels; not that of the pixels, which takes long.

    A data set that moves as a whole keeps its hash.

    Args:
        data (str): The data set, as `data=` takes it.
        task (str): Task of the models.
    """
    described: Any = check_cls_dataset(data) if task == "classify" else check_det_dataset(data)
    digest = hashlib.sha256(json.dumps(described["names"], sort_keys=True, default=str).encode())
    for split in ("train", "val"):
        source = described.get(split)
        if not source:
            continue
        for name, label in _images(source, task):
            digest.update(f"{split} {name}\n".encode())
            digest.update(label)
    return digest.hexdigest()[:LENGTH]


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the entries in which the identities of two jobs differ; older ones have no hashes of model and data.

    Args:
        old (Mapping): Identity of the job that left a record.
        new (Mapping): Identity of the job that would be run.
    """
    names = {*old, *new} - {name for name in HASHES if name not in old or name not in new}
    return sorted(name for name in names if old.get(name) != new.get(name))


def _images(source: Any, task: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and label of each image: its file and folder, and the content of its label file if it has one."""
    if task == "classify":  # the folder is the label
        files = sorted(str(file) for file in Path(source).rglob("*") if file.is_file())
    else:
        files = sorted(image_files(source))
    labels = img2label_paths(files) if task != "classify" else files
    for file, label in zip(files, labels):
        text = Path(label).read_bytes() if label != file and Path(label).is_file() else b""
        yield "/".join(Path(file).parts[-2:]), text
