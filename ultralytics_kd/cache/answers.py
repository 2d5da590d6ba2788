"""Reading a cache for training: the answers to a data set's images, in the student's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ultralytics.utils import LOGGER

from ..classes import ClassMap
from ..errors import KDError
from .store import SCALE, Store, values


class StoredAnswers:
    """Boxes and class probabilities of every image of a data set, in a few arrays that processes can share.

    Attributes:
        boxes (np.ndarray): Boxes of shape (N, 4): x, y, w, h as shares of the image, float32.
        probs (np.ndarray): Probabilities times 65535 of shape (N, k) for the student's k taught classes, uint16.
    """

    def __init__(self, store: Store, files: list[str], classes: ClassMap):
        """Read the answers.

        Args:
            store (Store): The cache.
            files (list[str]): The images of the data set.
            classes (ClassMap): Match of the cache's classes to the student's.

        Raises:
            KDError: If the cache is damaged, or an image has no answer.
        """
        conf, nc = store.manifest().conf, len(classes.teacher_names)
        keys = store.image_keys(files)
        wanted = dict.fromkeys(keys.values())  # in the order of the images
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for table in store.read():
            for key, boxes, probs in values(table, nc):
                if key in wanted:
                    taught = map_probabilities(probs, classes)
                    keep = taught.max(1, initial=0) > conf * SCALE  # others are of classes that are not taught
                    found[key] = boxes[keep], taught[keep]
        missing = [f for f in files if keys[f] not in found]
        if missing:
            raise KDError(
                f"kd_cache={store.folder} has no answer to {len(missing)} of {len(files)} training images, as "
                f"{Path(missing[0]).name}: run yolo-kd cache again with this data."
            )
        self.boxes = np.concatenate([boxes for boxes, _ in found.values()]).astype(np.float32)
        self.probs = np.concatenate([probs for _, probs in found.values()]).astype(np.uint16)
        ends = np.cumsum([len(boxes) for boxes, _ in found.values()])
        spans = dict(zip(found, zip((0, *ends[:-1].tolist()), ends.tolist())))
        self._spans = {f: spans[key] for f, key in keys.items()}
        LOGGER.info(f"{len(self.boxes)} stored instances in {len(files)} images, from {store.folder}")

    def __getitem__(self, file: str) -> tuple[np.ndarray, np.ndarray]:
        """Return an image's boxes (n, 4) and probabilities (n, k), both float32 and free to be changed."""
        start, end = self._spans[file]
        return self.boxes[start:end].copy(), self.probs[start:end].astype(np.float32) / SCALE


def map_probabilities(probs: np.ndarray, classes: ClassMap) -> np.ndarray:
    """Return probabilities (n, k) of the student's taught classes from those of the teacher's classes (n, nc)."""
    if classes.identity:
        return probs
    return np.stack([probs[:, list(classes.sources[i])].max(1) for i in classes.student], axis=1)
