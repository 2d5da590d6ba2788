"""A cache folder: which files it holds, and how they are written and read.

manifest.json                                 teachers and settings, see `manifest.py`
answers-<keys' hash>-<content hash>.parquet   rows of one shard, see `shards.py`
files-<content hash>.parquet                  index of image files, see `keys.py`
answers.sqlite                                the rows of all shards again, for random access, see `lookup.py`
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import polars as pl
from filelock import FileLock, Timeout
from ultralytics.utils import LOGGER, colorstr

from ..errors import KDError
from ..files import lock_file, make_folder, own_file, reason_of, write_whole
from .keys import KeyIndex
from .manifest import FORMAT, Manifest, check_manifest
from .parquet import content_hash
from .shards import Row, read_shard, shard_bytes

MANIFEST = "manifest.json"


class Store:
    """A cache folder.

    Attributes:
        folder (Path): The folder.
    """

    def __init__(self, folder: str | Path):
        """Set the folder without reading or writing it.

        Args:
            folder (str | Path): Cache folder.
        """
        self.folder = Path(folder)

    def manifest(self) -> Manifest:
        """Return the manifest.

        Raises:
            KDError: If it is missing, damaged, or of another format.
        """
        if not self.has(self.folder / MANIFEST):
            raise KDError(
                f"kd_cache={self.folder} holds no answers ({MANIFEST} is missing): make them with yolo-kd cache."
            )
        try:
            content = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            version = content["format"]
            if version == FORMAT:
                content["names"] = {int(i): name for i, name in content["names"].items()}
                return check_manifest(Manifest(**content))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise KDError(
                f"kd_cache={self.folder}: {MANIFEST} is damaged or belongs to another program ({e}): give another "
                "folder, or delete this one if it is a cache."
            ) from e
        raise KDError(
            f"kd_cache={self.folder} has format {version}, this release reads format {FORMAT}: delete the folder or "
            "give another, then run yolo-kd cache."
        )

    def begin(self, manifest: Manifest) -> None:
        """Prepare the folder for answers: create it or check its manifest, and remove temporary files.

        Args:
            manifest (Manifest): Teachers and settings of the answers to come.

        Raises:
            KDError: If the folder holds other answers or other files.
        """
        make_folder(self.folder)
        has_manifest = self.has(self.folder / MANIFEST)
        if has_manifest:
            differences = self.manifest().differences(manifest)
            if differences:
                raise KDError(
                    f"kd_cache={self.folder} holds other answers ({'; '.join(differences)}): give another folder, or "
                    "delete this one."
                )
        elif any(p.suffix != ".tmp" and p.name != ".lock" for p in self.folder.iterdir()):
            raise KDError(f"kd_cache={self.folder} holds files, but is not a cache: give an empty or a new folder.")
        for temporary in self.folder.glob("*.tmp"):
            if temporary.is_symlink() or temporary.is_file():
                temporary.unlink(missing_ok=True)
        if not has_manifest:
            write_whole(self.folder / MANIFEST, json.dumps(asdict(manifest), indent=2).encode())

    def write(self, rows: list[Row]) -> Path:
        """Write a shard, completely or not at all, and return its file.

        Args:
            rows (list[Row]): Answers, at least one.
        """
        content = shard_bytes(rows)
        images = content_hash("".join(r.key for r in rows).encode())
        path = self.folder / f"answers-{images[:8]}-{content_hash(content)[:8]}.parquet"
        write_whole(path, content)
        return path

    def shards(self) -> list[Path]:
        """Return the files of all shards.

        Raises:
            KDError: If one is a folder, or a link that leads out of the cache.
        """
        return [path for path in sorted(self.folder.glob("answers-*.parquet")) if self.has(path)]

    def damaged(self) -> list[Path]:
        """Return the shards whose content differs from the hash in their name or does not fit the manifest."""
        return [path for path, table in self._tables() if table is None]

    def read(self) -> Iterator[pl.DataFrame]:
        """Yield the rows of every shard.

        Raises:
            KDError: If a shard is damaged.
        """
        for path, table in self._tables():
            yield _intact(path, table)

    def table(self, path: Path) -> pl.DataFrame:
        """Return the rows of one shard.

        Args:
            path (Path): The shard.

        Raises:
            KDError: If it is damaged.
        """
        return _intact(path, read_shard(path, self.manifest()))

    def keys(self) -> set[str]:
        """Return the keys of all images that have an answer."""
        return {key for table in self.read() for key in table["key"]}

    def count(self) -> int:
        """Return the number of images that have an answer, without reading or checking the answers."""
        shards = self.shards()
        return (
            int(pl.scan_parquet(shards, glob=False).select(pl.col("key").n_unique()).collect().item()) if shards else 0
        )

    def image_keys(
        self, files: list[str], write: bool = False, hash_all: Callable[[list[str]], Iterable] | None = None
    ) -> dict[str, str]:
        """Return the key of every image file, as `KeyIndex.keys` does.

        Args:
            files (list[str]): Image files.
            write (bool): Whether to store new keys in the index.
            hash_all (Callable, optional): Takes image files and yields path and key of each.
        """
        return KeyIndex(self.folder).keys(files, write, hash_all)

    def _tables(self) -> Iterator[tuple[Path, pl.DataFrame | None]]:
        """Yield every shard's file and rows; None if the rows cannot be used."""
        shards = self.shards()
        if shards:  # a cache that was interrupted early has neither shards nor a manifest
            manifest = self.manifest()
            for path in shards:
                yield path, read_shard(path, manifest)

    def has(self, file: Path) -> bool:
        """Return whether a file exists.

        Raises:
            KDError: If the name is that of a folder, or of a link that leads out of the cache.
        """
        if own_file(file):
            return True
        if os.path.lexists(file):
            raise KDError(f"{file} is not a file, or is a link that leads out of the cache folder: remove it.")
        return False


def _intact(path: Path, table: pl.DataFrame | None) -> pl.DataFrame:
    """Return the rows of a shard.

    Raises:
        KDError: If there are none, because the shard is damaged.
    """
    if table is None:
        raise KDError(f"{path} is damaged: run yolo-kd cache again, which replaces it.")
    return table


class UnwritableError(KDError):
    """A cache folder cannot be written to."""


@contextmanager
def locked(folder: Path, advice: str) -> Iterator[None]:
    """Hold the lock of a cache folder; wait while another process fills it.

    Args:
        folder (Path): The folder; it is made if it does not exist.
        advice (str): What to do if it cannot be locked, as the end of a sentence.

    Raises:
        KDError: If it cannot be made.
        UnwritableError: If its lock file cannot be made, or its drive has no locks.
    """
    make_folder(folder)
    lock = FileLock(lock_file(folder))
    try:
        lock.acquire(timeout=0)
    except Timeout:  # an OSError too
        LOGGER.info(f"{colorstr('Cache:')} another process fills {folder}, waiting until it ends")
        lock.acquire()
    except NotImplementedError as e:
        raise UnwritableError(f"{folder} has no file locks: {advice}") from e
    except OSError as e:  # read-only, full, or gone
        raise UnwritableError(f"{folder} cannot be written to ({reason_of(e).rstrip('.')}): {advice}") from e
    try:
        yield
    finally:
        lock.release()
