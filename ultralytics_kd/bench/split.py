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
        KDError: If a part would be empty, or the folder has another split of the data set's images.
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
    lists = {folder / "val.txt": sorted(files[:count]), folder / "train.txt": sorted(files[count:])}
    if any(
        _names(file.read_text(encoding="utf-8").splitlines()) != _names(lists[file]) for file in lists if file.exists()
    ):
        raise KDError(
            f"the training images of data={data} have changed since they were split in {folder}: models that were "
            "trained on the old part would be scored on images that they have seen. Give another name=."
        )
    for file, part in lists.items():
        file.write_text("\n".join(part) + "\n", encoding="utf-8")
    return save_data_yaml(dataset, folder, "train.txt", "val.txt")


def _names(files: list[str]) -> list[tuple[str, ...]]:
    """Return files by their name and the name of their folder, so that a data set may move as a whole."""
    return sorted(Path(file).parts[-2:] for file in files)
