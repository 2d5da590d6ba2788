"""Single answers by the key of their image, from an SQLite file that is made once from the shards of a cache.

A shard is compressed as a whole, so that reading one of its answers takes as long as loading an image. SQLite finds a
row in microseconds, keeps no index in memory, and reports a damaged file instead of ending the process. Its rows are
not compressed, so that data loader workers lose no time. `copying.py` makes the file.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from contextlib import closing
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..errors import KDError
from .manifest import Manifest
from .shards import TOLERANCE, StoredRow

# Of several answers to an image the last one counts, as in the order of the shards
ROW = "SELECT width, height, boxes, probs, seen, crc FROM answers WHERE key = ? ORDER BY rowid DESC LIMIT 1"
AT_ONCE = 500  # keys in one query
DAMAGE = (sqlite3.Error, ValueError)  # what reading a damaged file raises; ValueError for bytes that are not text


class Lookup:
    """A file of answers, which any number of processes and threads may read.

    Attributes:
        file (Path): The file.
        manifest (Manifest): Manifest of the cache.
    """

    def __init__(self, file: Path, manifest: Manifest):
        """Set the file without opening it.

        Args:
            file (Path): The file.
            manifest (Manifest): Manifest of the cache.
        """
        self.file, self.manifest = file, manifest
        # A connection of SQLite must not be used after a fork, or in another thread
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes without connections, which spawned workers open themselves."""
        return {**vars(self), "_connections": {}}

    def __getitem__(self, key: str) -> StoredRow:
        """Return an answer. Its arrays are read-only.

        Args:
            key (str): Key of the image.

        Raises:
            KDError: If the file is damaged.
        """
        reader = os.getpid(), threading.get_ident()
        try:
            if reader not in self._connections:
                self._connections[reader] = connect(self.file)
            row = self._connections[reader].execute(ROW, (key,)).fetchone()
            return self._checked(key, *row)
        except (*DAMAGE, TypeError) as e:
            raise KDError(f"{self.file} is damaged ({e}): delete it; the next training makes it again.") from e

    def lacks(self, keys: np.ndarray) -> list[int]:
        """Return the places of the keys that have no answer.

        Args:
            keys (np.ndarray): Keys of images, shape (n, 16), uint8.

        Raises:
            sqlite3.Error, ValueError: If the file is damaged.
        """
        missing = []
        order = keys[:, :8].copy().view(">u8")[:, 0].argsort(kind="stable")  # neighbours lie on one page of the index
        with closing(connect(self.file)) as db:
            for first in range(0, len(keys), AT_ONCE):
                places = order[first : first + AT_ONCE]
                part = [key.tobytes().hex() for key in keys[places]]
                query = f"SELECT key FROM answers WHERE key IN ({','.join('?' * len(part))})"
                found = {key for (key,) in db.execute(query, part)}
                missing += [int(place) for place, key in zip(places, part) if key not in found]
        return sorted(missing)

    def _checked(
        self, key: str, width: int, height: int, boxes: bytes, probs: bytes, seen: bytes, crc: int
    ) -> StoredRow:
        """Return a row of the file as arrays. It is checked as shards are, because the file may come from strangers.

        Raises:
            TypeError: If a value has the wrong type.
            ValueError: If a value is wrong.
        """
        if crc != checksum(key, width, height, boxes, probs, seen):
            raise ValueError("a checksum differs")
        count = len(boxes) // 16
        classes, scales = len(self.manifest.names), len(self.manifest.scales)
        if (len(boxes), len(probs), len(seen)) != (16 * count, 2 * classes * count, 2 * scales * count):
            raise ValueError("a row is too long or too short")
        coordinates = np.ndarray((count, 4), "<f4", boxes)
        inside = coordinates.min(initial=0) >= -TOLERANCE and coordinates.max(initial=1) <= 1 + TOLERANCE
        if not inside or min(width, height) < 1:
            raise ValueError("a box lies outside its image")
        counts = np.ndarray((count, classes), "<u2", probs), np.ndarray((count, scales), "<u2", seen)
        return StoredRow(key, width, height, coordinates, *counts)


def connect(file: Path) -> sqlite3.Connection:
    """Open a file of answers for reading, without locks; it is never changed in place.

    Args:
        file (Path): The file.

    Raises:
        sqlite3.Error: If it cannot be opened.
    """
    db = sqlite3.connect(f"{uri_of(file.resolve())}?mode=ro&immutable=1", uri=True, isolation_level=None)
    # What SQLite advises for files from strangers
    db.execute("PRAGMA trusted_schema=OFF")
    db.execute("PRAGMA cell_size_check=ON")
    return db


def uri_of(file: PurePath) -> str:
    """Return the URI by which SQLite opens a file; that of a network drive must name no host.

    Args:
        file (PurePath): An absolute path.
    """
    uri = file.as_uri()
    return uri if uri.startswith("file:///") else f"file://{uri.removeprefix('file:')}"


def checksum(key: str, width: int, height: int, *arrays: bytes) -> int:
    """Return the CRC-32 of a row.

    Args:
        key (str): Key of the image.
        width (int): Width of the image in pixels.
        height (int): Height of the image in pixels.
        *arrays (bytes): The other columns.
    """
    value = zlib.crc32(f"{key} {width} {height}".encode())
    for array in arrays:
        value = zlib.crc32(array, value)
    return value
