"""The files of an answer cache: what one folder holds, and how it is written, read and checked.

    manifest.json                         whose answers these are, to which question, from which versions
    answers-<images>-<content>.parquet    rows of one shard; both parts of the name are hashes
    files.parquet                         paths seen with size, time and key, so that a start need not read all images

Rows: `key` (hash of the image file's bytes), `width`, `height` (pixels of the image as read), `boxes` (4 numbers per
detection: x, y of its centre, w, h, as shares of width and height), `probs` (one number per detection and class:
probability times 65535, rounded) and `seen` (one number per detection and scale: how sure the teacher was there, times
65535).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ultralytics.utils import LOCAL_RANK, NUM_THREADS, TQDM

from ..errors import KDError

FORMAT = 2
SCALE = 65535  # a probability of 1 in `probs` and `seen`
MANIFEST, FILES = "manifest.json", "files.parquet"
SCHEMA: dict[str, Any] = {
    "key": pl.String,
    "width": pl.UInt32,
    "height": pl.UInt32,
    "boxes": pl.List(pl.Float32),
    "probs": pl.List(pl.UInt16),
    "seen": pl.List(pl.UInt16),
}


@dataclass(frozen=True)
class Manifest:
    """Whose answers a cache holds, and to which question.

    Attributes:
        teachers (list[dict[str, str]]): Name and SHA-256 of each teacher's weights.
        names (dict[int, str]): Classes of the stored probabilities.
        imgsz (int): Image size in pixels that the teachers saw.
        conf (float): Least confidence of a detection that is kept.
        iou (float): Overlap above which two detections are one.
        topk (int): Most detections per image and scale.
        scales (list[float]): Scales of `imgsz` at which they were asked, rising.
        flip (bool): Whether mirrored images were looked at too.
        precision (str): Precision that the teachers ran in.
        channels (int): Channels of the images.
        versions (dict[str, str]): Releases that made it; for the record.
        format (int): Layout of the files.
    """

    teachers: list[dict[str, str]]
    names: dict[int, str]
    imgsz: int
    conf: float
    iou: float
    topk: int
    scales: list[float]
    flip: bool
    precision: str
    channels: int = 3
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def differences(self, other: Manifest) -> list[str]:
        """Return what sets two manifests apart, versions aside, in words."""
        said = []
        for f in fields(self):
            ours, theirs = getattr(self, f.name), getattr(other, f.name)
            if f.name != "versions" and ours != theirs:
                if f.name == "teachers":
                    ours, theirs = ([f"{t['name']} ({t['sha256'][:8]})" for t in side] for side in (ours, theirs))
                said.append(f"{f.name}={ours} there, {theirs} here")
        return said


@dataclass
class Row:
    """What a teacher says about one image.

    Attributes:
        key (str): Hash of the image file.
        width (int): Width of the image in pixels.
        height (int): Height of the image in pixels.
        boxes (np.ndarray): Boxes of shape (n, 4): x, y, w, h as shares of width and height, float32.
        probs (np.ndarray): Class probabilities of shape (n, nc).
        seen (np.ndarray): How sure the teacher was at each of S scales, shape (n, S).
    """

    key: str
    width: int
    height: int
    boxes: np.ndarray
    probs: np.ndarray
    seen: np.ndarray


class Store:
    """A cache folder."""

    def __init__(self, folder: str | Path):
        """Point to a folder; nothing is read or written yet."""
        self.folder = Path(folder)

    # Manifest ---------------------------------------------------------------------------------------------------------
    def manifest(self) -> Manifest:
        """Return the manifest.

        Raises:
            KDError: If there is none, or it is none of ours.
        """
        file = self.folder / MANIFEST
        if not file.is_file():
            raise KDError(
                f"kd_cache={self.folder} holds no answers ({MANIFEST} is missing): make it with yolo-kd cache."
            )
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise KDError(
                    f"kd_cache={self.folder} has format {content['format']}, this release reads {FORMAT}: delete the "
                    "folder, or give another, and run yolo-kd cache."
                )
            content["names"] = {int(i): str(name) for i, name in content["names"].items()}
            return Manifest(**content)
        except KDError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise KDError(f"kd_cache={self.folder}: {MANIFEST} is damaged or another program's ({e}).") from e

    def begin(self, manifest: Manifest) -> None:
        """Make the folder, or see that it holds answers to the same question, and clear away half-written files.

        Raises:
            KDError: If it holds something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / MANIFEST).is_file():
            differences = self.manifest().differences(manifest)
            if differences:
                raise KDError(
                    f"kd_cache={self.folder} holds other answers ({'; '.join(differences)}): give another folder, or "
                    "delete this one."
                )
        elif any(p.suffix != ".tmp" and p.name != ".lock" for p in self.folder.iterdir()):
            raise KDError(f"kd_cache={self.folder} is a folder of something else: give one that is empty or new.")
        for half in self.folder.glob("*.tmp"):
            half.unlink(missing_ok=True)
        if not (self.folder / MANIFEST).is_file():
            _write(self.folder / MANIFEST, json.dumps(asdict(manifest), indent=2).encode())

    # Shards -----------------------------------------------------------------------------------------------------------
    def write(self, rows: list[Row]) -> Path:
        """Write a shard: whole or not at all.

        Args:
            rows (list[Row]): Answers, at least one.
        """
        table = pl.DataFrame(
            {
                "key": [r.key for r in rows],
                "width": [r.width for r in rows],
                "height": [r.height for r in rows],
                "boxes": [r.boxes.astype(np.float32).ravel().tolist() for r in rows],
                "probs": [np.rint(r.probs.ravel() * SCALE).astype(np.uint16).tolist() for r in rows],
                "seen": [np.rint(r.seen.ravel() * SCALE).astype(np.uint16).tolist() for r in rows],
            },
            schema=SCHEMA,
        )
        buffer = io.BytesIO()
        table.write_parquet(buffer, compression="zstd", statistics=False)
        content = buffer.getvalue()
        images = _hash("".join(r.key for r in rows).encode())
        path = self.folder / f"answers-{images[:8]}-{_hash(content)[:8]}.parquet"
        _write(path, content)
        return path

    def shards(self) -> list[Path]:
        """Return the shards' files."""
        return sorted(self.folder.glob("answers-*.parquet"))

    def damaged(self) -> list[Path]:
        """Return the shards whose content is not what their name says."""
        return [p for p in self.shards() if not _whole(p, p.read_bytes())]

    def read(self) -> Iterator[pl.DataFrame]:
        """Yield the rows of every shard.

        Raises:
            KDError: If a shard is damaged.
        """
        for path in self.shards():
            content = path.read_bytes()
            if not _whole(path, content):
                raise KDError(f"{path} is damaged: run yolo-kd cache again, it makes what is missing.")
            yield pl.read_parquet(io.BytesIO(content))

    def keys(self) -> set[str]:
        """Return the keys of all images that have an answer."""
        return {key for table in self.read() for key in table["key"]}

    # Images -----------------------------------------------------------------------------------------------------------
    def image_keys(
        self, files: list[str], write: bool = False, hash_all: Callable[[list[str]], Iterable] | None = None
    ) -> dict[str, str]:
        """Return the key of every image file.

        Files whose size and time are those that the cache has noted are not read again.

        Args:
            files (list[str]): Paths of images.
            write (bool): Whether to note them for the next time.
            hash_all (Callable, optional): Reads images and yields file and key of each, as `hash_images` does.
        """
        noted = self._noted()
        stats = {f: (s.st_size, s.st_mtime_ns) for f in files for s in [os.stat(f)]}
        keys = {f: noted[f][2] for f in files if f in noted and noted[f][:2] == stats[f]}
        unread = [f for f in files if f not in keys]
        if unread:
            found = (hash_all or hash_images)(unread)
            keys.update(TQDM(found, desc="Hashing images", total=len(unread)) if LOCAL_RANK in {-1, 0} else found)
            if write:
                seen = {**noted, **{f: (*stats[f], keys[f]) for f in unread}}
                rows = [(os.path.abspath(f), *values) for f, values in seen.items()]
                schema = {"file": pl.String, "size": pl.Int64, "mtime_ns": pl.Int64, "key": pl.String}
                buffer = io.BytesIO()
                pl.DataFrame(rows, schema=schema, orient="row").write_parquet(buffer, compression="zstd")
                _write(self.folder / FILES, buffer.getvalue())
        return keys

    def _noted(self) -> dict[str, tuple[int, int, str]]:
        """Return size, time and key of the files that the cache has noted."""
        file = self.folder / FILES
        if not file.is_file():
            return {}
        try:
            return {row[0]: row[1:] for row in pl.read_parquet(file).iter_rows()}
        except (pl.exceptions.PolarsError, OSError, ValueError):  # only a shortcut: images are hashed anew
            return {}


def image_key(file: str | Path) -> str:
    """Return the key of an image: 128 bits of BLAKE2b of its file."""
    return _hash(Path(file).read_bytes())


def hash_images(files: list[str]) -> Iterator[tuple[str, str]]:
    """Yield path and key of each image, read by several threads."""
    with ThreadPool(NUM_THREADS) as pool:
        yield from zip(files, pool.imap(image_key, files, chunksize=8))


def _hash(content: bytes) -> str:
    """Return 128 bits of BLAKE2b as hex."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _whole(path: Path, content: bytes) -> bool:
    """Return whether a shard's content is what its name says."""
    return path.stem.rpartition("-")[2] == _hash(content)[:8]


def _write(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there when it is whole and on the disk."""
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(part, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)


@dataclass
class Stored:
    """What is read back about one image.

    Attributes:
        key (str): Hash of the image file.
        boxes (np.ndarray): Boxes of shape (n, 4): x, y, w, h as shares of width and height, float32.
        probs (np.ndarray): Class probabilities times 65535, shape (n, nc), uint16.
        seen (np.ndarray): How sure the teacher was at each of S scales, times 65535, shape (n, S), uint16.
        sides (np.ndarray): Width and height of each box as shares of the image's longer side, shape (n, 2), float32.
    """

    key: str
    boxes: np.ndarray
    probs: np.ndarray
    seen: np.ndarray
    sides: np.ndarray


def values(table: pl.DataFrame, manifest: Manifest) -> Iterator[Stored]:
    """Yield what each row of a shard says.

    Args:
        table (pl.DataFrame): The shard.
        manifest (Manifest): The cache's manifest.
    """
    nc, sizes = len(manifest.names), len(manifest.scales)
    for key, width, height, *lists in zip(*(table[name] for name in SCHEMA)):
        boxes, probs, seen = (numbers.to_numpy() for numbers in lists)
        boxes = boxes.reshape(-1, 4)
        sides = boxes[:, 2:] * np.array((width, height), np.float32) / max(width, height)
        yield Stored(key, boxes, probs.reshape(-1, nc), seen.reshape(-1, sizes), sides)
