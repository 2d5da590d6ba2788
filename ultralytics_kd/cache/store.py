"""The files of an answer cache: what one folder holds, and how it is written, read and checked.

    manifest.json                         whose answers these are, to which question, from which versions
    answers-<images>-<content>.parquet    rows of one shard; both parts of the name are hashes
    files-<content>.parquet               paths seen with size, time and key, so that a start need not read all images

The hashes are looked at before Polars looks at a file: a damaged Parquet may end the process.

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
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ultralytics.utils import LOCAL_RANK, NUM_THREADS, TQDM

from ..errors import KDError
from ..files import make_folder, own_file, write_whole

FORMAT = 2
MAX_SIDE = 2**16  # pixels
PRECISIONS = ("fp32", "fp16", "bf16")
SCALE = 65535  # a probability of 1 in `probs` and `seen`
OUTSIDE = 1e-3  # of an image: how far rounding may move the side of a box
MANIFEST = "manifest.json"
NOTED: dict[str, Any] = {"file": pl.String, "size": pl.Int64, "mtime_ns": pl.Int64, "key": pl.String}
# What Polars raises where it gives up on a file; the name is that of newer and of older releases
PANIC: type[BaseException] = getattr(pl.exceptions, "PanicException", None) or vars(pl.exceptions)["PolarsPanicError"]
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


def check_manifest(manifest: Manifest) -> Manifest:
    """Return a manifest that was read, if every field of it is what it must be.

    Raises:
        ValueError: If one is not.
    """

    def whole(value: Any, most: int) -> bool:
        """Return whether a value is a whole number from 1 to another."""
        return type(value) is int and 1 <= value <= most

    def number(value: Any, low: float, high: float) -> bool:
        """Return whether a value is a number in between."""
        return type(value) in {int, float} and low <= value <= high

    m = manifest
    right = {
        "teachers": isinstance(m.teachers, list)
        and m.teachers != []
        and all(isinstance(t[k], str) and t[k] for t in m.teachers for k in ("name", "sha256")),
        "names": list(m.names) == list(range(len(m.names)))
        and 0 < len({*m.names.values()}) == len(m.names)
        and all(isinstance(name, str) for name in m.names.values()),
        "imgsz": whole(m.imgsz, MAX_SIDE),
        "conf": number(m.conf, 0, 1),
        "iou": number(m.iou, 0, 1),
        "topk": whole(m.topk, sys.maxsize),
        "scales": isinstance(m.scales, list)
        and m.scales != []
        and all(number(s, 0.1, 10) for s in m.scales)
        and m.scales == sorted({*m.scales}),
        "flip": isinstance(m.flip, bool),
        "precision": m.precision in PRECISIONS,
        "channels": whole(m.channels, MAX_SIDE),
        "versions": isinstance(m.versions, dict) and all(isinstance(v, str) for v in m.versions.values()),
    }
    for name, good in right.items():
        if not good:
            raise ValueError(f"'{name}' is not what it must be")
    return manifest


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
        if not self._there(self.folder / MANIFEST):
            raise KDError(
                f"kd_cache={self.folder} holds no answers ({MANIFEST} is missing): make it with yolo-kd cache."
            )
        try:
            content = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            found = content["format"]
            if found == FORMAT:
                content["names"] = {int(i): name for i, name in content["names"].items()}
                return check_manifest(Manifest(**content))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise KDError(f"kd_cache={self.folder}: {MANIFEST} is damaged or another program's ({e}).") from e
        raise KDError(
            f"kd_cache={self.folder} has format {found}, this release reads {FORMAT}: delete the folder, or give "
            "another, and run yolo-kd cache."
        )

    def _there(self, file: Path) -> bool:
        """Return whether a file is there.

        Raises:
            KDError: If its place is taken by a folder, or by a link that leads out of the cache.
        """
        if own_file(file):
            return True
        if os.path.lexists(file):
            raise KDError(f"{file} is no file of this cache, or a link that leads out of its folder: remove it.")
        return False

    def begin(self, manifest: Manifest) -> None:
        """See that the folder is new or holds answers to the same question, and clear away half-written files.

        Args:
            manifest (Manifest): The question.

        Raises:
            KDError: If it holds something else.
        """
        make_folder(self.folder)
        there = self._there(self.folder / MANIFEST)
        if there:
            differences = self.manifest().differences(manifest)
            if differences:
                raise KDError(
                    f"kd_cache={self.folder} holds other answers ({'; '.join(differences)}): give another folder, or "
                    "delete this one."
                )
        elif any(p.suffix != ".tmp" and p.name != ".lock" for p in self.folder.iterdir()):
            raise KDError(f"kd_cache={self.folder} is a folder of something else: give one that is empty or new.")
        for half in self.folder.glob("*.tmp"):
            if half.is_symlink() or half.is_file():
                half.unlink(missing_ok=True)
        if not there:
            write_whole(self.folder / MANIFEST, json.dumps(asdict(manifest), indent=2).encode())

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
        write_whole(path, content)
        return path

    def shards(self) -> list[Path]:
        """Return the shards' files.

        Raises:
            KDError: If one is no file, or a link that leads out of the folder.
        """
        return [path for path in sorted(self.folder.glob("answers-*.parquet")) if self._there(path)]

    def damaged(self) -> list[Path]:
        """Return the shards whose content is not what their name says, or no answers to this question."""
        shards = self.shards()
        manifest = self.manifest() if shards else None  # a cache that was cut early has neither
        return [path for path in shards if manifest is None or read_shard(path, manifest) is None]

    def read(self) -> Iterator[pl.DataFrame]:
        """Yield the rows of every shard.

        Raises:
            KDError: If a shard is damaged.
        """
        shards = self.shards()
        manifest = self.manifest() if shards else None
        for path in shards:
            table = read_shard(path, manifest) if manifest else None
            if table is None:
                raise KDError(f"{path} is damaged: run yolo-kd cache again, it makes what is missing.")
            yield table

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
                self._note({os.path.abspath(f): values for f, values in seen.items()})
        return keys

    def _note(self, seen: dict[str, tuple[int, int, str]]) -> None:
        """Note size, time and key of files in place of what was noted before."""
        # On Linux a file's name may hold any bytes, and Parquet holds texts: other names are not noted
        rows = [(f, *values) for f, values in seen.items() if f.encode(errors="ignore").decode() == f]
        buffer = io.BytesIO()
        pl.DataFrame(rows, schema=NOTED, orient="row").write_parquet(buffer, compression="zstd")
        content = buffer.getvalue()
        path = self.folder / f"files-{_hash(content)[:8]}.parquet"
        write_whole(path, content)
        for old in self.folder.glob("files*.parquet"):
            if old != path and (old.is_file() or old.is_symlink()):
                old.unlink(missing_ok=True)

    def _noted(self) -> dict[str, tuple[int, int, str]]:
        """Return size, time and key of the files that the cache has noted; of what cannot be read nothing is noted."""
        noted: dict[str, tuple[int, int, str]] = {}
        for path in self.folder.glob("files-*.parquet"):
            table = read_table(path, NOTED) if own_file(path) else None
            if table is not None:
                noted |= {file: (size, time, key) for file, size, time, key in table.iter_rows()}
        return noted


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


def read_shard(path: Path, manifest: Manifest) -> pl.DataFrame | None:
    """Return the rows of a shard, None if they are not whole or cannot be answers to the question.

    Args:
        path (Path): The shard.
        manifest (Manifest): The question.
    """
    table = read_table(path, SCHEMA)
    return table if table is not None and _possible(table, manifest) else None


def read_table(path: Path, schema: dict[str, Any]) -> pl.DataFrame | None:
    """Return a Parquet file as a table, None if it is not what its name says, not of this schema, or lacks values.

    Args:
        path (Path): The file; its name ends in the hash of its content.
        schema (dict): Types by column.
    """
    try:
        content = path.read_bytes()
        if path.stem.rpartition("-")[2] != _hash(content)[:8]:
            return None
        table = pl.read_parquet(io.BytesIO(content))
    except (pl.exceptions.PolarsError, OSError, ValueError, PANIC):
        return None
    if dict(table.schema) != schema:
        return None
    lists = [table[name] for name, kind in schema.items() if isinstance(kind, pl.List)]
    missing = sum(table.null_count().row(0)) or any(numbers(column).null_count() for column in lists)
    return None if missing else table


def numbers(column: pl.Series) -> pl.Series:
    """Return all values in a column of lists."""
    return column.filter(column.list.len() > 0).explode()  # an empty list would become a null


def _possible(table: pl.DataFrame, manifest: Manifest) -> bool:
    """Return whether rows can be answers to a question: as many numbers as there must be, boxes in their images."""
    boxes, probs, seen = (table[name].list.len().cast(pl.Int64) for name in ("boxes", "probs", "seen"))
    count, values = boxes // 4, numbers(table["boxes"])
    return bool(
        (boxes == 4 * count).all()
        and (probs == count * len(manifest.names)).all()
        and (seen == count * len(manifest.scales)).all()
        and (table["width"] > 0).all()
        and (table["height"] > 0).all()
        and values.is_finite().all()
        and values.is_between(-OUTSIDE, 1 + OUTSIDE).all()
    )


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
