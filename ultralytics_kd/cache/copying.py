"""Making the file of single answers: a copy of the shards that is written whole or not at all.

The file is replaced, never changed, so that a process that has it open can go on reading.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
from ultralytics.utils import LOCAL_RANK, LOGGER, TQDM

from ..errors import KDError
from ..files import disk_fault, replacing
from .lookup import DAMAGE, Lookup, checksum, connect
from .manifest import Manifest
from .shards import stored_rows
from .store import Store, UnwritableError, locked

NAME = "answers.sqlite"
VERSION = 1  # of the tables
TABLES = (
    "CREATE TABLE cache (settings TEXT)",
    "CREATE TABLE shards (name TEXT, size INTEGER, mtime_ns INTEGER)",
    "CREATE TABLE answers (key TEXT, width INTEGER, height INTEGER, boxes BLOB, probs BLOB, seen BLOB, crc INTEGER)",
)
INDEX = "CREATE INDEX answers_by_key ON answers (key)"
SORT_KIB = 2**16  # memory for making the index
NOTED = 32  # smallest number of new shards for a progress bar
ADVICE = "make room, or run yolo-kd cache where the folder can be written to."

Notes = dict[str, tuple[int, int]]  # size and time in nanoseconds of each shard, by its name


def open_lookup(store: Store, keys: np.ndarray, spare: Path | None = None) -> tuple[Lookup, list[int]]:
    """Return the file of a cache's answers, and the places of the keys that the cache has no answer to.

    The file is made if it is missing or damaged, and made again if the shards have more answers to these keys.

    Args:
        store (Store): The cache.
        keys (np.ndarray): Keys of the images that will be read, shape (n, 16), uint8.
        spare (Path, optional): Folder for the file if the cache folder cannot be written to.

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
    """Make the file of a cache's answers, or make it again with new shards, unless it has all shards.

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
    # Explained inside as well: where the disk is full, the partial file fills it until it is removed
    with _explained(folder), replacing(file) as part, _explained(folder):
        if known:
            shutil.copyfile(file, part)
        with closing(sqlite3.connect(part, isolation_level=None)) as db:
            # The partial file is thrown away if anything fails
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
    """Complete the file of answers in a cache whose lock is held, or repair it after damage.

    Args:
        store (Store): The cache.
        keys (Iterable[str]): Keys of images to which the shards have an answer.

    Raises:
        KDError: If a shard is damaged, or an image has no answer.
        UnwritableError: If the file cannot be written.
    """
    compact = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(-1, 16)
    lookup, missing = _completed(store, store.folder, compact)
    if missing:
        lookup.file.unlink()
        write_lookup(store, store.folder)
        _, missing = _completed(store, store.folder, compact)
    if missing:
        raise KDError(
            f"{store.folder} has no answer to {len(missing)} of {len(compact)} images. With ray=True all machines must "
            "share this folder: run the same command again once they do."
        )


def _made(store: Store, folder: Path, keys: np.ndarray) -> tuple[Lookup, list[int]]:
    """Make the file in a folder, unless another process does so first; return it and which keys lack an answer.

    Raises:
        KDError: If a shard is damaged.
        UnwritableError: If the file cannot be written.
    """
    with locked(folder, ADVICE):
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
        UnwritableError: If the disk is full, read-only or gone.
    """
    try:
        yield
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
    """Read, and so check, the shards whose size or time differs from the notes.

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
