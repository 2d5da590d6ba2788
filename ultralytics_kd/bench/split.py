"""Holds out a part of the training images to choose settings on, so that the val set stays unseen until the end."""

from __future__ import annotations

import random
from pathlib import Path

from ultralytics.data.utils import check_det_dataset

from ..errors import KDError
from ..image_files import image_files
from ..report.datasets import save_data_yaml


def hold_out(data: str, share: float, folder: Path, seed: int = 0) -> Path:
    """Split the training images of a data set, and return a data.yaml whose val set is the held-out part.

    The val images of the data set are in neither part.

    Args:
        data (str): Data set as `data=` takes it.
        share (float): Share of the training images to hold out, greater than 0 and less than 1.
        folder (Path): Folder for the lists of files and the data.yaml.
        seed (int): Seed of the random split.

    Raises:
        KDError: If a part would be empty.
    """
    dataset = check_det_dataset(data)
    if not dataset.get("train"):
        raise KDError(f"holdout={share:g} takes a part of the training images, and data={data} has none: drop it.")
    files = image_files(dataset["train"])
    count = round(share * len(files))
    if not 0 < count < len(files):
        raise KDError(f"holdout={share:g} of {len(files)} training images leaves one part empty: give another share.")
    random.Random(seed).shuffle(files)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("val", files[:count]), ("train", files[count:])):
        (folder / f"{name}.txt").write_text("\n".join(sorted(part)) + "\n", encoding="utf-8")
    return save_data_yaml(dataset, folder, "train.txt", "val.txt")
