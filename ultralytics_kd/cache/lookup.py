"""Single answers by the key of their image, from an SQLite file that is made once from the shards of a cache.

A shard is compressed as a whole, so that reading one of its answers takes as long as loading an image. SQLite finds a
row in microseconds, keeps no index in memory, and reports a damaged file instead of ending the process. Its rows are
not compressed, so that data loader workers lose no time. The file is written whole or not at all, and replaced, never
changed: a process that has it open reads on.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ultralytics.utils import LOCAL_RANK, LOGGER, TQDM

from ..errors import KDError
from ..files import disk_fault, replacing
from .manifest import Manifest
from .shards import TOLERANCE, StoredRow, stored_rows
from .store import Store, locked

NAME = "answers.sqlite"
VERSION = 1  # of the tables
TABLES = (
    "CREATE TABLE cache (settings TEXT)",
    "CREATE TABLE shards (name TEXT, size INTEGER, mtime_ns INTEGER)",
    "CREATE TABLE answers (key TEXT, width INTEGER, height INTEGER, boxes BLOB, probs BLOB, seen BLOB, crc INTEGER)",
)
INDEX = "CREATE INDEX answers_by_key ON answers (key)"
# Of several answers to an image the last one counts, as in the order of the shards
ROW = "SELECT width, height, boxes, probs, seen, crc FROM answers WHERE key = ? ORDER BY rowid DESC LIMIT 1"
AT_ONCE = 500  # keys in one query
SORT_KIB = 2**16  # memory for making the index
NOTED = 32  # shards from which on copying shows a progress bar
ADVICE = "make room, or run yolo-kd cache where the folder can be written to."
DAMAGE = (sqlite3.Error, ValueError)  # what reading a damaged file raises; the second for bytes that are no text

Notes = dict[str, tuple[int, int]]  # size and time in nanoseconds of each shard, by its name


class UnwritableError(KDError):
    """A folder cannot take a file of answers."""


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


def open_lookup(store: Store, keys: np.ndarray, spare: Path | None = None) -> tuple[Lookup, list[int]]:
    """Return the file of a cache's answers, and the places of the keys that the cache has no answer to.

    The file is made, or made again with what is new, if it does not have all that the shards have to these keys.

    Args:
        store (Store): The cache.
        keys (np.ndarray): Keys of the images that will be read, shape (n, 16), uint8.
        spare (Path, optional): Folder for the file if that of the cache cannot be written to.

    Raises:
        KDError: If a shard is damaged, or if the file cannot be written.
    """
    folders = [store.folder] if spare is None else [store.folder, spare]
    for folder in folders:
        found = _current(store, folder, keys)
        if found is not None:
            return found
    try:
        return _made(store, store.folder, keys)
    except UnwritableError as e:
        if spare is None:
            raise
        if LOCAL_RANK in {-1, 0}:
            LOGGER.warning(f"{e} For this training the answers are copied to {spare}, and removed at its end.")
    return _made(store, spare, keys)


def write_lookup(store: Store, folder: Path) -> None:
    """Make the file of a cache's answers, or make it again with those of new shards, unless it has all of them.

    Args:
        store (Store): The cache.
        folder (Path): Folder of the file, whose lock is held.

    Raises:
        KDError: If a shard is damaged.
        UnwritableError: If the file cannot be written.
    """
    file, shards = folder / NAME, _notes(store)
    before = _notes_in(store, file)
    if before == shards:
        return
    known: Notes = {} if before is None or before.keys() - shards.keys() else before
    _check_changed(store, known, shards)
    with _explained(folder), replacing(file) as part:
        if known:
            shutil.copyfile(file, part)
        with closing(sqlite3.connect(part, isolation_level=None)) as db:
            # The part is thrown away if anything fails
            db.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{SORT_KIB}; BEGIN")
            if not known:
                for statement in TABLES:
                    db.execute(statement)
                db.execute("INSERT INTO cache VALUES (?)", (_settings(store.manifest()),))
            new = sorted(shards.keys() - known.keys())
            quiet = LOCAL_RANK not in {-1, 0} or len(new) < NOTED
            for name in TQDM(new, desc="Copying answers to a file with random access", disable=quiet):
                rows = _encoded(store.table(store.folder / name), store.manifest())
                db.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            if not known:
                db.execute(INDEX)  # after the rows: sorting them once is quicker
            db.execute("DELETE FROM shards")
            db.executemany("INSERT INTO shards VALUES (?, ?, ?)", ((n, *note) for n, note in shards.items()))
            db.execute("COMMIT")


def complete_lookup(store: Store, keys: Iterable[str]) -> None:
    """Make the file in a cache whose lock is held hold all of its answers, also after damage.

    Args:
        store (Store): The cache.
        keys (Iterable[str]): Keys of images to which the shards have an answer.

    Raises:
        KDError: If a shard is damaged.
        UnwritableError: If the file cannot be written.
    """
    compact = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(-1, 16)
    lookup, missing = _completed(store, store.folder, compact)
    if missing:
        lookup.file.unlink()
        write_lookup(store, store.folder)


def connect(file: Path) -> sqlite3.Connection:
    """Open a file of answers for reading, without locks; it is never changed in place.

    Args:
        file (Path): The file.

    Raises:
        sqlite3.Error: If it cannot be opened.
    """
    db = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    # What SQLite advises for files from strangers
    db.execute("PRAGMA trusted_schema=OFF")
    db.execute("PRAGMA cell_size_check=ON")
    return db


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


def _made(store: Store, folder: Path, keys: np.ndarray) -> tuple[Lookup, list[int]]:
    """Make the file in a folder, unless another process does so first; return it and which keys lack an answer.

    Raises:
        KDError: If a shard is damaged.
        UnwritableError: If the file cannot be written.
    """
    with _explained(folder), locked(folder):
        found = _current(store, folder, keys)
        return _completed(store, folder, keys) if found is None else found


def _completed(store: Store, folder: Path, keys: np.ndarray) -> tuple[Lookup, list[int]]:
    """Complete the file in a folder whose lock is held; return it and which keys lack an answer."""
    write_lookup(store, folder)
    lookup = Lookup(folder / NAME, store.manifest())
    try:
        return lookup, lookup.lacks(keys)
    except DAMAGE:
        lookup.file.unlink()
        write_lookup(store, folder)
        return lookup, lookup.lacks(keys)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn the errors of a folder that cannot be written to into sentences.

    Raises:
        UnwritableError: If the disk is full, read-only or gone, or has no locks.
    """
    try:
        yield
    except NotImplementedError as e:
        raise UnwritableError(f"{folder} has no file locks.") from e
    except (OSError, sqlite3.OperationalError) as e:
        fault = disk_fault(e, folder, ADVICE)
        if fault is None:
            raise
        raise UnwritableError(*fault.args) from e


def _current(store: Store, folder: Path, keys: np.ndarray) -> tuple[Lookup, list[int]] | None:
    """Return the file in a folder and which keys lack an answer; None if it must be made, or made again, first."""
    known, shards = _notes_in(store, folder / NAME), _notes(store)
    if known is None or known.keys() - shards.keys():
        return None
    _check_changed(store, known, shards)
    lookup = Lookup(folder / NAME, store.manifest())
    try:
        missing = lookup.lacks(keys)
    except DAMAGE:
        return None
    return None if missing and shards.keys() - known.keys() else (lookup, missing)


def _notes(store: Store) -> Notes:
    """Return the notes of all shards of a cache."""
    return {path.name: (stat.st_size, stat.st_mtime_ns) for path in store.shards() for stat in [path.stat()]}


def _notes_in(store: Store, file: Path) -> Notes | None:
    """Return the notes of the shards that a file was made from; None if it is missing, foreign or damaged."""
    if not store.has(file):
        return None
    try:
        with closing(connect(file)) as db:
            made = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_master")}
            # Other tables, or views, would be those of another program
            if made != {*TABLES, INDEX} or db.execute("SELECT * FROM cache").fetchall() != [
                (_settings(store.manifest()),)
            ]:
                return None
            return {name: (size, time) for name, size, time in db.execute("SELECT * FROM shards")}
    except DAMAGE:
        return None


def _check_changed(store: Store, known: Notes, shards: Notes) -> None:
    """Read the shards whose size or time is no longer that of the notes.

    Raises:
        KDError: If one is damaged.
    """
    for name, note in known.items():
        if shards[name] != note:
            store.table(store.folder / name)


def _settings(manifest: Manifest) -> str:
    """Return what the rows of a file depend on, as text."""
    return json.dumps({"version": VERSION, **asdict(manifest), "versions": {}}, sort_keys=True)


def _encoded(table: pl.DataFrame, manifest: Manifest) -> Iterator[tuple]:
    """Yield the rows of a shard as SQLite stores them."""
    for row in stored_rows(table, manifest):
        arrays = row.boxes.astype("<f4"), row.probs.astype("<u2"), row.scale_confidence.astype("<u2")
        boxes, probs, seen = (array.tobytes() for array in arrays)
        crc = checksum(row.key, row.width, row.height, boxes, probs, seen)
        yield row.key, row.width, row.height, boxes, probs, seen, crc
