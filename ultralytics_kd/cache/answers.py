"""Reading a cache for training: the answers to a data set's images, in the student's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ultralytics.utils import LOGGER

from ..errors import KDError
from ..teachers.class_map import ClassMap
from .scales import pack
from .store import SCALE, Store, values


class StoredAnswers:
    """What teachers said about every image of a data set, in a few arrays that processes can share.

    Attributes:
        boxes (np.ndarray): Boxes of shape (N, 4): x, y, w, h as shares of the image, float32.
        probs (np.ndarray): Probabilities times 65535 of shape (N, k) for the student's k taught classes, uint16.
        confidence (np.ndarray): The largest probability of any class, times 65535, shape (N,), uint16.
        seen (np.ndarray): How sure the teachers were at each of S scales, times 65535, shape (N, S), uint16.
        sides (np.ndarray): Width and height in pixels as the student sees them unscaled, shape (N, 2), float32.
    """

    def __init__(self, store: Store, files: list[str], classes: ClassMap, imgsz: int):
        """Read the answers.

        Args:
            store (Store): The cache.
            files (list[str]): The images of the data set.
            classes (ClassMap): Match of the cache's classes to the student's.
            imgsz (int): Image size of the training in pixels.

        Raises:
            KDError: If the cache is damaged, or an image has no answer.
        """
        manifest, keys = store.manifest(), store.image_keys(files)
        wanted = dict.fromkeys(keys.values())  # in the order of the images
        found: dict[str, tuple[np.ndarray, ...]] = {}
        for table in store.read():
            for row in values(table, manifest):
                if row.key in wanted:
                    taught = map_probabilities(row.probs, classes)
                    confidence = row.probs.max(1, initial=0)
                    surest = taught.max(1, initial=0) / confidence.clip(1) * row.seen.max(1, initial=0)
                    keep = surest > manifest.conf * SCALE  # others are of classes that are not taught
                    parts = row.boxes, taught, confidence, row.seen, row.sides * np.float32(imgsz)
                    found[row.key] = tuple(part[keep] for part in parts)
        missing = [f for f in files if keys[f] not in found]
        if missing:
            raise KDError(
                f"kd_cache={store.folder} has no answer to {len(missing)} of {len(files)} training images, as "
                f"{Path(missing[0]).name}: run yolo-kd cache again with this data."
            )
        self.boxes, self.probs, self.confidence, self.seen, self.sides = map(np.concatenate, zip(*found.values()))
        ends = np.cumsum([len(parts[0]) for parts in found.values()])
        spans = dict(zip(found, zip((0, *ends[:-1].tolist()), ends.tolist())))
        self._spans = {f: spans[key] for f, key in keys.items()}
        LOGGER.info(f"{len(self.boxes)} stored instances in {len(files)} images, from {store.folder}")

    def __getitem__(self, file: str) -> tuple[np.ndarray, np.ndarray]:
        """Return an image's boxes (n, 4) and rows, as `sizes.pack` makes them, both float32 and free to be changed."""
        mine = slice(*self._spans[file])
        probs, confidence, seen = (x[mine].astype(np.float32) / SCALE for x in (self.probs, self.confidence, self.seen))
        return self.boxes[mine].copy(), pack(probs, confidence, seen, self.sides[mine])


def map_probabilities(probs: np.ndarray, classes: ClassMap) -> np.ndarray:
    """Return probabilities (n, k) of the student's taught classes from those of the teacher's classes (n, nc)."""
    if classes.identity:
        return probs
    return np.stack([probs[:, list(classes.sources[i])].max(1) for i in classes.student], axis=1)
