"""Reading a cache for training: the answers to the images of a data set, for the student's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ultralytics.utils import LOGGER

from ..errors import KDError
from ..teachers.class_map import ClassMap
from .copying import open_lookup
from .keys import KeyIndex, path_digest, path_digests
from .scales import encode_rows
from .shards import SCALE
from .store import Store

RECENT = 256  # answers that each process keeps: mosaics show an image of the last batches several times


class StoredAnswers:
    """Stored answers to all images of a data set, which stay on disk: memory grows by 32 bytes per image.

    Attributes:
        lookup (Lookup): The file with the answers.
        classes (ClassMap): Match of the cache's classes to the student's.
        imgsz (int): Image size of the training in pixels.
    """

    def __init__(self, store: Store, files: list[str], classes: ClassMap, imgsz: int, spare: Path | None = None):
        """Find the answers.

        Args:
            store (Store): The cache.
            files (list[str]): Images of the data set.
            classes (ClassMap): Match of the cache's classes to the student's.
            imgsz (int): Image size of the training in pixels.
            spare (Path, optional): Folder for a copy of the answers if the cache folder cannot be written to.

        Raises:
            KDError: If the cache is damaged, or an image has no answer.
        """
        self._recent: dict[str, tuple[np.ndarray, np.ndarray, tuple[int, int]]] = {}
        self.classes, self.imgsz, self._identity = classes, imgsz, classes.identity
        keys = KeyIndex(store.folder).compact(files)
        self.lookup, missing = open_lookup(store, keys, spare)
        if missing:
            raise KDError(
                f"kd_cache={store.folder} has no answer to {len(missing)} of {len(files)} training images (for example "
                f"{Path(files[missing[0]]).name}): "
                "run yolo-kd cache with the data, fraction and kd_unlabeled of this training."
            )
        paths = path_digests(files)
        order = paths.argsort()
        self._paths, self._keys = paths[order], keys[order]
        LOGGER.info(f"Stored answers to {len(files)} images are read from {self.lookup.file}")

    @property
    def sided(self) -> bool:
        """Whether rows end with the sides of instances, as `encode_rows` gives them with several scales."""
        return len(self.lookup.manifest.scales) > 1

    def __getitem__(self, file: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the answer to an image, as arrays that augmentation may change.

        Args:
            file (str): Image file.

        Returns:
            boxes (np.ndarray): Boxes of shape (n, 4): x, y, w, h as fractions of the image, float32.
            rows (np.ndarray): One row per box from `encode_rows`, float32.

        Raises:
            KeyError: If the image is not in the data set.
            KDError: If the answer is damaged.
        """
        boxes, rows, _ = self._found(file)
        return boxes.copy(), rows.copy()

    def check_shape(self, file: str, shape: tuple[int, int]) -> None:
        """Check that an image has the shape that the teacher has seen: its file may have changed with its time kept.

        Args:
            file (str): Image file.
            shape (tuple[int, int]): Height and width of the image in pixels.

        Raises:
            KDError: If it has another shape.
        """
        seen = self._found(file)[2]
        if tuple(shape) != seen:
            raise KDError(
                f"{file} has {shape[1]}x{shape[0]} pixels, and its stored answer is to {seen[1]}x{seen[0]}: the file "
                "has changed and its time has not. Give it a new time (touch), and run yolo-kd cache again."
            )

    def _found(self, file: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Return the answer to an image, and the image's height and width."""
        found = self._recent.get(file)
        if found is None:
            found = self._recent[file] = self._read(file)
            if len(self._recent) > RECENT:
                self._recent.pop(next(iter(self._recent)), None)
        return found

    def _read(self, file: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Return the answer to an image, and its height and width, from the disk."""
        digest = path_digest(file)
        place = int(self._paths.searchsorted(digest))
        if place == len(self._paths) or self._paths[place] != digest:
            raise KeyError(file)
        row = self.lookup[self._keys[place].tobytes().hex()]
        top_prob = row.probs.max(1, initial=0)
        probs, best = row.probs, top_prob  # equal classes are the common case, and this runs for every image
        if not self._identity:
            probs = map_probabilities(row.probs, self.classes)
            best = probs.max(1, initial=0)
        # Drop instances whose taught classes stay below the lowest confidence at every scale
        keep = best / top_prob.clip(1) * row.scale_confidence.max(1, initial=0) > self.lookup.manifest.conf * SCALE
        integers = probs, top_prob, row.scale_confidence
        shares, highest, confidence = (x[keep].astype(np.float32) / SCALE for x in integers)
        sides = (row.sides * np.float32(self.imgsz))[keep]
        return row.boxes[keep], encode_rows(shares, highest, confidence, sides), (row.height, row.width)


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
