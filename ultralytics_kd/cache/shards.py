"""Shards: Parquet tables with the answers to some images, one row per image.

Columns:
    key: hash of the image file's bytes.
    width, height: size of the image file in pixels.
    boxes: 4 numbers per detection: x and y of its centre, w and h, as fractions of width and height.
    probs: class probabilities times 65535, rounded; one number per detection and class.
    seen: confidence of the teachers times 65535, rounded; one number per detection and scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from .manifest import Manifest
from .parquet import flat_values, parquet_bytes, read_table

SCALE = 65535  # the integer that stands for a probability of 1 in `probs` and `seen`
TOLERANCE = 1e-3  # fraction of an image's side by which rounding may move a box outside it
SCHEMA: dict[str, Any] = {
    "key": pl.String,
    "width": pl.UInt32,
    "height": pl.UInt32,
    "boxes": pl.List(pl.Float32),
    "probs": pl.List(pl.UInt16),
    "seen": pl.List(pl.UInt16),
}


@dataclass
class Row:
    """The answer to one image, before it is written.

    Attributes:
        key (str): Key of the image file.
        width (int): Width of the image in pixels.
        height (int): Height of the image in pixels.
        boxes (np.ndarray): Boxes of shape (n, 4): x, y, w, h as fractions of width and height, float32.
        probs (np.ndarray): Class probabilities of shape (n, nc).
        scale_confidence (np.ndarray): Confidence at each of S scales, shape (n, S).
    """

    key: str
    width: int
    height: int
    boxes: np.ndarray
    probs: np.ndarray
    scale_confidence: np.ndarray


@dataclass
class StoredRow:
    """The answer to one image, as it is read back.

    Attributes:
        key (str): Key of the image file.
        width (int): Width of the image in pixels.
        height (int): Height of the image in pixels.
        boxes (np.ndarray): Boxes of shape (n, 4): x, y, w, h as fractions of width and height, float32.
        probs (np.ndarray): Class probabilities times 65535, shape (n, nc), uint16.
        scale_confidence (np.ndarray): Confidence at each of S scales, times 65535, shape (n, S), uint16.
    """

    key: str
    width: int
    height: int
    boxes: np.ndarray
    probs: np.ndarray
    scale_confidence: np.ndarray

    @property
    def sides(self) -> np.ndarray:
        """Width and height of each box as fractions of the image's longer side, shape (n, 2), float32."""
        longer = max(self.width, self.height)
        return self.boxes[:, 2:] * np.array((self.width, self.height), np.float32) / longer


def shard_bytes(rows: list[Row]) -> bytes:
    """Return rows as the content of a Parquet file.

    Args:
        rows (list[Row]): Answers.
    """
    table = pl.DataFrame(
        {
            "key": [r.key for r in rows],
            "width": [r.width for r in rows],
            "height": [r.height for r in rows],
            "boxes": [r.boxes.astype(np.float32).ravel().tolist() for r in rows],
            "probs": [np.rint(r.probs.ravel() * SCALE).astype(np.uint16).tolist() for r in rows],
            "seen": [np.rint(r.scale_confidence.ravel() * SCALE).astype(np.uint16).tolist() for r in rows],
        },
        schema=SCHEMA,
    )
    return parquet_bytes(table, statistics=False)


def read_shard(path: Path, manifest: Manifest) -> pl.DataFrame | None:
    """Read a shard, and return None if it is damaged or does not fit the manifest.

    Args:
        path (Path): The shard.
        manifest (Manifest): Manifest of the cache.
    """
    table = read_table(path, SCHEMA)
    return table if table is not None and _fits(table, manifest) else None


def stored_rows(table: pl.DataFrame, manifest: Manifest) -> Iterator[StoredRow]:
    """Yield the rows of a shard as arrays.

    Args:
        table (pl.DataFrame): The shard.
        manifest (Manifest): Manifest of the cache.
    """
    nc, scales = len(manifest.names), len(manifest.scales)
    for key, width, height, *lists in zip(*(table[name] for name in SCHEMA)):
        boxes, probs, confidence = (column.to_numpy() for column in lists)
        arrays = boxes.reshape(-1, 4), probs.reshape(-1, nc), confidence.reshape(-1, scales)
        yield StoredRow(key, width, height, *arrays)


def _fits(table: pl.DataFrame, manifest: Manifest) -> bool:
    """Return whether all lists have the length that the manifest asks for, and all boxes lie in their images."""
    boxes, probs, confidence = (table[name].list.len().cast(pl.Int64) for name in ("boxes", "probs", "seen"))
    count, coordinates = boxes // 4, flat_values(table["boxes"])
    return bool(
        (boxes == 4 * count).all()
        and (probs == count * len(manifest.names)).all()
        and (confidence == count * len(manifest.scales)).all()
        and (table["width"] > 0).all()
        and (table["height"] > 0).all()
        and coordinates.is_finite().all()
        and coordinates.is_between(-TOLERANCE, 1 + TOLERANCE).all()
    )
