"""Reading a cache for training: the answers to the images of a data set, for the student's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ultralytics.utils import LOGGER

from ..errors import KDError
from ..teachers.class_map import ClassMap
from .scales import encode_rows
from .shards import SCALE, stored_rows
from .store import Store


class StoredAnswers:
    """Stored answers to all images of a data set, in a few arrays that data loader workers can share.

    N is the number of stored instances, k the number of the student's taught classes, S the number of scales.

    Attributes:
        boxes (np.ndarray): Boxes of shape (N, 4): x, y, w, h as fractions of the image, float32.
        probs (np.ndarray): Probabilities of the taught classes times 65535, shape (N, k), uint16.
        top_prob (np.ndarray): Largest probability of any teacher class times 65535, shape (N,), uint16.
        scale_confidence (np.ndarray): Confidence at each scale times 65535, shape (N, S), uint16.
        sides (np.ndarray): Width and height in pixels of the training image at scale 1, shape (N, 2), float32.
    """

    def __init__(self, store: Store, files: list[str], classes: ClassMap, imgsz: int):
        """Read the answers.

        Args:
            store (Store): The cache.
            files (list[str]): Images of the data set.
            classes (ClassMap): Match of the cache's classes to the student's.
            imgsz (int): Image size of the training in pixels.

        Raises:
            KDError: If the cache is damaged, or an image has no answer.
        """
        manifest, keys = store.manifest(), store.image_keys(files)
        arrays: dict[str, tuple[np.ndarray, ...]] = {}  # by key
        wanted = set(keys.values())
        for table in store.read():
            for row in stored_rows(table, manifest):
                if row.key in wanted:
                    probs = map_probabilities(row.probs, classes)
                    top_prob = row.probs.max(1, initial=0)
                    # Drop instances whose taught classes stay below the lowest confidence at every scale
                    best = probs.max(1, initial=0) / top_prob.clip(1) * row.scale_confidence.max(1, initial=0)
                    keep = best > manifest.conf * SCALE
                    parts = row.boxes, probs, top_prob, row.scale_confidence, row.sides * np.float32(imgsz)
                    arrays[row.key] = tuple(part[keep] for part in parts)
        missing = [f for f in files if keys[f] not in arrays]
        if missing:
            raise KDError(
                f"kd_cache={store.folder} has no answer to {len(missing)} of {len(files)} training images (for example "
                f"{Path(missing[0]).name}): run yolo-kd cache again with this data."
            )
        columns = map(np.concatenate, zip(*arrays.values()))
        self.boxes, self.probs, self.top_prob, self.scale_confidence, self.sides = columns
        ends = np.cumsum([len(parts[0]) for parts in arrays.values()])
        spans = dict(zip(arrays, zip((0, *ends[:-1].tolist()), ends.tolist())))
        self._spans = {f: spans[key] for f, key in keys.items()}
        LOGGER.info(f"{len(self.boxes)} stored instances in {len(files)} images, from {store.folder}")

    def __getitem__(self, file: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the answer to an image, as copies that augmentation may change.

        Args:
            file (str): Image file.

        Returns:
            boxes (np.ndarray): Boxes of shape (n, 4): x, y, w, h as fractions of the image, float32.
            rows (np.ndarray): One row per box from `encode_rows`, float32.
        """
        span = slice(*self._spans[file])
        integers = self.probs, self.top_prob, self.scale_confidence
        probs, top_prob, scale_confidence = (x[span].astype(np.float32) / SCALE for x in integers)
        return self.boxes[span].copy(), encode_rows(probs, top_prob, scale_confidence, self.sides[span])


def map_probabilities(probs: np.ndarray, classes: ClassMap) -> np.ndarray:
    """Return the probabilities of the student's taught classes.

    Args:
        probs (np.ndarray): Probabilities of the teacher's classes, shape (n, nc).
        classes (ClassMap): Match of the teacher's classes to the student's.

    Returns:
        (np.ndarray): Shape (n, k). If several teacher classes teach one class, it gets their largest probability.
    """
    if classes.identity:
        return probs
    return np.stack([probs[:, list(classes.sources[i])].max(1) for i in classes.student], axis=1)
