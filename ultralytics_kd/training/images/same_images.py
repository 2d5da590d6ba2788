"""Which images a sample is made of, at two sizes: the larger data set loads what the student's has loaded.

A mosaic, a mixup and pasted objects take other images of the data set. Ultralytics draws some of them from the images
that a data set has loaded lately. Such buffers part as soon as the two data sets differ in a single sample. So the
images of the student's sample are noted, and loaded again at the larger size.
"""

from __future__ import annotations

import random
from typing import Any

from .same_mosaics import align_mosaics

METHOD = "get_image_and_label"  # by which Ultralytics' data sets and transforms load an image


class Noted:
    """Loads images of the student's data set and notes them.

    Attributes:
        loads (list[tuple[int, tuple]]): Index of each image of the sample, and the state of Python's random numbers.
    """

    def __init__(self, dataset: Any):
        """Take the student's data set."""
        self.dataset = dataset
        self.loads: list[tuple[int, tuple]] = []

    def start(self) -> None:
        """Begin a sample."""
        self.loads.clear()

    def __call__(self, index: int) -> dict[str, Any]:
        """Return an image with its labels."""
        self.loads.append((index, random.getstate()))
        return getattr(type(self.dataset), METHOD)(self.dataset, index)


class Repeated:
    """Loads images of the larger data set, those that were noted."""

    def __init__(self, dataset: Any, noted: Noted):
        """Take the larger data set and the notes of the student's."""
        self.dataset, self.noted = dataset, noted
        self.start()

    def start(self) -> None:
        """Begin the same sample."""
        self._count, self._equal = 0, True

    @property
    def same(self) -> bool:
        """Whether the sample has the images of the student's, each loaded after the same random numbers."""
        return self._equal and self._count == len(self.noted.loads)

    def __call__(self, index: int) -> dict[str, Any]:
        """Return an image with its labels: the noted one, whatever the index."""
        if self._count < len(self.noted.loads):
            index, state = self.noted.loads[self._count]
            self._equal = self._equal and random.getstate() == state
        self._count += 1
        return getattr(type(self.dataset), METHOD)(self.dataset, index)


def repeat_images(small: Any, large: Any) -> tuple[Noted, Repeated] | None:
    """Let the larger data set load the images of the student's samples; None if these are single images.

    Args:
        small (Dataset): The student's data set.
        large (Dataset): The same images at the teacher's size.
    """
    if not hasattr(type(small), METHOD) or METHOD in vars(small):  # classification, or user code replaced it
        return None
    align_mosaics(small, large)
    noted = Noted(small)
    repeated = Repeated(large, noted)
    setattr(small, METHOD, noted)
    setattr(large, METHOD, repeated)
    return noted, repeated
