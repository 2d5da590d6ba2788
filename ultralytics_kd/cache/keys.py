"""Keys of images: a hash of each image file, and an index that avoids reading unchanged files again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import polars as pl
from ultralytics.utils import LOCAL_RANK, NUM_THREADS, TQDM

from ..files import own_file, write_whole
from .parquet import content_hash, parquet_bytes, read_table

INDEX_SCHEMA: dict[str, Any] = {"file": pl.String, "size": pl.Int64, "mtime_ns": pl.Int64, "key": pl.String}


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
        entries = self.read()
        stats = {f: (s.st_size, s.st_mtime_ns) for f in files for s in [os.stat(f)]}
        keys = {f: entries[f][2] for f in files if f in entries and entries[f][:2] == stats[f]}
        unread = [f for f in files if f not in keys]
        if unread:
            hashed = (hash_all or hash_images)(unread)
            keys.update(TQDM(hashed, desc="Hashing images", total=len(unread)) if LOCAL_RANK in {-1, 0} else hashed)
            if write:
                entries |= {f: (*stats[f], keys[f]) for f in unread}
                self.write({os.path.abspath(f): entry for f, entry in entries.items()})
        return keys

    def read(self) -> dict[str, tuple[int, int, str]]:
        """Return size, time in nanoseconds and key by file; damaged index files are ignored."""
        entries: dict[str, tuple[int, int, str]] = {}
        for path in self.folder.glob("files-*.parquet"):
            table = read_table(path, INDEX_SCHEMA) if own_file(path) else None
            if table is not None:
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
