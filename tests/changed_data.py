"""A drawn data set that tests change, and its training three times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from beside_plain import LIVE, PLAIN, STORED, differences, print_row, train
from conftest import NAMES, QUICK, STUDENT, TEACHER, draw_dataset, save_model
from PIL import Image
from ultralytics.utils import YAML


class Shapes:
    """A drawn data set, to be changed.

    Attributes:
        folder (Path): Its folder.
        data (Any): Value for `data=`.
        names (dict[int, str]): The teacher's class names.
        channels (int): Channels that the teacher reads.
        given (dict): Arguments of the training.
    """

    def __init__(self, folder: Path):
        self.folder, self.names, self.channels = folder, dict(NAMES), 3
        self.data: Any = draw_dataset(folder, 4)
        self.given: dict[str, Any] = {}

    def write(self, **changes: Any) -> None:
        """Change keys of data.yaml; None drops one."""
        content = {**YAML.load(self.folder / "data.yaml"), **changes}
        YAML.save(self.folder / "data.yaml", {k: v for k, v in content.items() if v is not None})

    def image(self, i: int = 0, split: str = "train") -> Path:
        """Return an image file."""
        return self.folder / "images" / split / f"{i}.png"

    def label(self, i: int = 0, split: str = "train") -> Path:
        """Return a label file."""
        return self.folder / "labels" / split / f"{i}.txt"

    def save_as(
        self, suffix: str, image: np.ndarray | Image.Image, i: int = 0, split: str = "train", **options: Any
    ) -> Path:
        """Write an image in place of the drawn one, in another format."""
        file = self.image(i, split).with_suffix(suffix)
        if file.suffix != ".png":
            self.image(i, split).unlink()
        if isinstance(image, np.ndarray):
            cv2.imwrite(str(file), image)
        else:
            image.save(file, **options)
        return file

    def pixels(self, i: int = 0, split: str = "train") -> np.ndarray:
        """Return the pixels of an image, BGR."""
        return cv2.imread(str(self.image(i, split)))

    def each(self) -> list[tuple[int, str]]:
        """Return number and split of every image."""
        return [(int(f.stem), f.parent.name) for f in sorted(self.folder.glob("images/*/*.png"))]


class Cases(dict[str, Callable[..., None]]):
    """Changes of a data set by name; each takes the data set and pytest's monkeypatch."""

    def __call__(self, name: str) -> Callable:
        """Register a change."""
        return lambda change: self.setdefault(name, change)


def wrong_with(shapes: Shapes, name: str) -> dict[str, list[str]]:
    """Train on a data set three times; print what became of it, and return what is wrong beside the plain run."""
    room = shapes.folder.parent
    teacher = save_model(room / "teacher.pt", TEACHER, shapes.names, shapes.channels)
    args = {**QUICK, "epochs": 1, "data": shapes.data, "project": str(room / "runs"), **shapes.given}
    plain, live, stored = (train(way, STUDENT, args, str(teacher)) for way in (PLAIN, LIVE, STORED))
    terms = ("kd_cls", "kd_box")
    wrong = {LIVE: differences(plain, live, terms, terms), STORED: differences(plain, stored, terms)}
    wrong = {way: what for way, what in wrong.items() if what}
    print_row(name, plain, wrong)
    return wrong
