"""Keys of images: a hash of each image file, and an index that avoids reading unchanged files again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ultralytics.utils import LOCAL_RANK, LOGGER, NUM_THREADS, TQDM

from ..files import own_file, write_whole
from .parquet import content_hash, parquet_bytes, read_table

INDEX_SCHEMA: dict[str, Any] = {"file": pl.String, "size": pl.Int64, "mtime_ns": pl.Int64, "key": pl.String}
STAT = np.dtype([("size", np.int64), ("time", np.int64)])  # of a file: bytes, and nanoseconds of its last change
ENTRY = np.dtype([("path", "S16"), ("stat", STAT), ("key", np.uint8, 16)])
ROWS_AT_ONCE = 2**14


def image_key(file: str | Path) -> str:
    """Return the key of an image: 128 bits of BLAKE2b of the file's bytes, as hex.

    Args:
        file (str | Path): Image file.
    """
    return content_hash(Path(file).read_bytes())


def hash_images(files: list[str]) -> Iterator[tuple[str, str]]:
    """Yield path and key of each image; several threads read the files.

    Args:
        files (list[str]): Image files.
    """
    with ThreadPool(NUM_THREADS) as pool:
        yield from zip(files, pool.imap(image_key, files, chunksize=8))


def path_digests(files: Collection[str]) -> np.ndarray:
    """Return a digest of 16 bytes for each path, shape (n,), S16.

    Args:
        files (Collection[str]): Paths.
    """
    return np.fromiter(map(path_digest, files), "S16", count=len(files))


def path_digest(file: str) -> bytes:
    """Return a digest of a path: 16 bytes without zeros.

    Args:
        file (str): The path.
    """
    # NumPy cannot tell trailing zeros from the end of a text
    return hashlib.blake2b(os.fsencode(file), digest_size=16).digest().replace(b"\0", b"\1")


class KeyIndex:
    """Size, modification time and key of image files, stored in a cache folder as `files-<content hash>.parquet`."""

    def __init__(self, folder: Path):
        """Set the folder without reading it.

        Args:
            folder (Path): Cache folder.
        """
        self.folder = folder

    def keys(
        self, files: list[str], write: bool = False, hash_all: Callable[[list[str]], Iterable] | None = None
    ) -> dict[str, str]:
        """Return the key of every image file; files with unchanged size and time are not read.

        Args:
            files (list[str]): Image files.
            write (bool): Whether to store new keys in the index.
            hash_all (Callable, optional): Takes image files and yields path and key of each; `hash_images` if None.
        """
        found, stats, unread = self._find(files, hash_all)
        keys = {f: key.tobytes().hex() for f, key in zip(files, found)}
        if write and len(unread):
            entries = self.read() | {files[i]: (*stats[i].tolist(), keys[files[i]]) for i in unread}
            self.write({os.path.abspath(f): entry for f, entry in entries.items()})
        return keys

    def compact(self, files: list[str]) -> np.ndarray:
        """Return the keys of image files in 16 bytes for each: an array of shape (n, 16), uint8.

        Args:
            files (list[str]): Image files.
        """
        keys, _, unread = self._find(files, None)
        if len(unread) and LOCAL_RANK in {-1, 0}:
            LOGGER.info(
                f"{len(unread)} of {len(files)} images were read to find their answers in {self.folder}: after "
                "'yolo-kd cache' with the same data they are not read again."
            )
        return keys

    def read(self) -> dict[str, tuple[int, int, str]]:
        """Return size, time in nanoseconds and key by file; damaged index files are ignored."""
        entries: dict[str, tuple[int, int, str]] = {}
        for table in self._tables():
            entries |= {file: (size, time, key) for file, size, time, key in table.iter_rows()}
        return entries

    def write(self, entries: dict[str, tuple[int, int, str]]) -> None:
        """Replace the index.

        Args:
            entries (dict[str, tuple[int, int, str]]): Size, time in nanoseconds and key by file.
        """
        # On Linux a file name may hold any bytes. Parquet stores only valid text, so other names are left out
        rows = [(f, *entry) for f, entry in entries.items() if f.encode(errors="ignore").decode() == f]
        content = parquet_bytes(pl.DataFrame(rows, schema=INDEX_SCHEMA, orient="row"))
        path = self.folder / f"files-{content_hash(content)[:8]}.parquet"
        write_whole(path, content)
        for old in self.folder.glob("files*.parquet"):
            if old != path and (old.is_file() or old.is_symlink()):
                old.unlink(missing_ok=True)

    def _find(
        self, files: list[str], hash_all: Callable[[list[str]], Iterable] | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return key, size and time of every file, and the places of those that had to be read.

        Args:
            files (list[str]): Image files.
            hash_all (Callable, optional): Takes image files and yields path and key of each; `hash_images` if None.
        """
        known = self._sorted()
        known_paths = known["path"].copy()  # contiguous, because they are searched
        keys, stats, same = np.zeros((len(files), 16), np.uint8), np.zeros(len(files), STAT), np.zeros(len(files), bool)
        for first in range(0, len(files), ROWS_AT_ONCE):
            part, place = files[first : first + ROWS_AT_ONCE], slice(first, first + ROWS_AT_ONCE)
            sizes = ((s.st_size, s.st_mtime_ns) for s in map(os.stat, part))
            stats[place] = np.fromiter(sizes, STAT, count=len(part))
            if len(known):
                paths = path_digests(part)
                noted = known[known_paths.searchsorted(paths, "right") - 1]  # of several entries the last one
                same[place] = (noted["path"] == paths) & (noted["stat"] == stats[place])
                keys[place] = noted["key"]
        unread = np.flatnonzero(~same)
        if len(unread):
            wanted = [files[i] for i in unread]
            hashed = (hash_all or hash_images)(wanted)
            shown = TQDM(hashed, desc="Hashing images", total=len(wanted)) if LOCAL_RANK in {-1, 0} else hashed
            by_file = dict(shown)
            for i, file in zip(unread, wanted):
                keys[i] = np.frombuffer(bytes.fromhex(by_file[file]), np.uint8)
        return keys, stats, unread

    def _sorted(self) -> np.ndarray:
        """Return the entries of all intact index files, sorted by the digest of the path, later ones last."""
        entries = np.concatenate([np.zeros(0, ENTRY), *map(_entries, self._tables())])
        return entries[entries["path"].argsort(kind="stable")]

    def _tables(self) -> Iterator[pl.DataFrame]:
        """Yield the rows of all intact index files."""
        for path in self.folder.glob("files-*.parquet"):
            table = read_table(path, INDEX_SCHEMA) if own_file(path) else None
            if table is not None:
                yield table


def _entries(table: pl.DataFrame) -> np.ndarray:
    """Return the rows of an index file in the type `ENTRY`; rows without a valid image key are left out.

    Args:
        table (pl.DataFrame): The rows.
    """
    entries, count = np.zeros(len(table), ENTRY), 0
    for whole in table.iter_slices(ROWS_AT_ONCE):  # all texts at once would take more memory
        rows = whole.filter(pl.col("key").str.contains("^[0-9a-f]{32}$"))
        part = entries[count : count + len(rows)]
        part["path"] = path_digests(rows["file"])
        part["stat"]["size"], part["stat"]["time"] = rows["size"], rows["mtime_ns"]
        part["key"] = np.frombuffer(bytes.fromhex("".join(rows["key"])), np.uint8).reshape(-1, 16)
        count += len(rows)
    return entries[:count]
