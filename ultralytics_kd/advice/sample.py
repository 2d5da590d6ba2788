"""A part of a data set that is too large to be measured as a whole.

The images of a part lie in a folder of their own, as links. So the label cache that Ultralytics keeps beside the labels
of the whole set stays valid.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.utils import check_cls_dataset, check_det_dataset, img2label_paths

from ..config.arguments import GRID_TASKS
from ..files import as_utf8
from ..image_files import image_files
from ..report.datasets import save_data_yaml


@dataclass(frozen=True)
class Part:
    """Images of one split of a data set.

    Attributes:
        data (str): Data set that has the images, as `data=` takes it.
        split (str): Split of that data set that has the images.
        used (int): Number of the images.
        total (int): Number of images of the whole split.
        sources (dict[str, str]): The image that each file of the part is a link to, or a copy of, by the file's name;
            empty if the part has the images themselves.
    """

    data: str
    split: str
    used: int
    total: int
    sources: dict[str, str] = field(default_factory=dict, repr=False)

    def original(self, file: str) -> str:
        """Return the image of the data set that a file of the part stands for."""
        return self.sources.get(Path(file).name, file)

    def described(self, data: str, split: str) -> dict[str, Any]:
        """Return the part as a dict for a report, which names the whole data set and the split that it is a part of.

        Args:
            data (str): The data set.
            split (str): Its split.
        """
        return {"data": data, "split": split, "used": self.used, "total": self.total}


def part_of(data: str, task: str, split: str, most: int, folder: Path, copies: bool = False) -> Part:
    """Return a part of a split: all of it, or evenly spaced images in the order of their files.

    For semantic and depth the part is a list of files, which Ultralytics reads as UTF-8. It leaves out images whose
    names are not UTF-8.

    Args:
        data (str): Data set as `data=` takes it.
        task (str): Task of the models.
        split (str): "train", "val" or "test".
        most (int): Largest number of images.
        folder (Path): An empty folder for the part.
        copies (bool): Whether to make a separate data set even if the split is small enough.
    """
    described: dict[str, Any] = check_cls_dataset(data) if task == "classify" else check_det_dataset(data)
    files = sorted(image_files(described[split]))
    if task == "classify":  # Ultralytics reads no image outside the folder of a class
        root = Path(described[split]).absolute()
        files = [file for file in files if Path(file).parent != root]
    if len(files) <= most and not copies:
        return Part(data, split, len(files), len(files))
    named = files if task in (*GRID_TASKS, "classify") else [file for file in files if as_utf8(file) == file]
    if not named:
        return Part(data, split, len(files), len(files))
    chosen = [named[i] for i in np.unique(np.linspace(0, len(named) - 1, min(most, len(named))).round().astype(int))]
    if task == "classify":
        _link_classified(chosen, root, described, folder)
        return Part(str(folder), "val", len(chosen), len(files), _numbered(chosen))
    sources = {}
    if task in GRID_TASKS:
        place, sources = "images", _numbered(chosen)
        _link_labelled(chosen, folder)
    else:  # labels of semantic and depth are images, which Ultralytics finds by other rules
        place = "images.txt"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return Part(str(save_data_yaml(described, folder, place, place)), "val", len(chosen), len(files), sources)


def _numbered(files: list[str]) -> dict[str, str]:
    """Return images by the names that they have in a part: numbers, as files of several folders may share a name."""
    return {f"{i:06}{Path(file).suffix}": file for i, file in enumerate(files)}


def link_numbered(files: list[str], folder: Path) -> Path:
    """Link images into a folder under numbers, and return the folder.

    Args:
        files (list[str]): The images.
        folder (Path): The folder.
    """
    for name, file in _numbered(files).items():
        _link(Path(file), folder / name)
    return folder


def _link_labelled(files: list[str], folder: Path) -> None:
    """Link images and their label files into a folder."""
    for (name, image), label in zip(_numbered(files).items(), img2label_paths(files)):
        _link(Path(image), folder / "images" / name)
        if Path(label).exists():
            _link(Path(label), folder / "labels" / f"{Path(name).stem}.txt")


def _link_classified(files: list[str], root: Path, described: dict[str, Any], folder: Path) -> None:
    """Link the images of a split into folders of their classes; every class keeps its folder, so its number stays.

    As in Ultralytics the class is the first folder below the split's. There may be others in it.
    """
    for split in ("train", "val"):
        for cls in described["names"].values():
            (folder / split / str(cls)).mkdir(parents=True, exist_ok=True)
        for name, file in _numbered(files).items():
            _link(Path(file), folder / split / Path(file).relative_to(root).parts[0] / name)


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it where links are not allowed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.symlink(source.resolve(), target)
    except OSError:  # Windows without the right to make links
        shutil.copy2(source, target)
