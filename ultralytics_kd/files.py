"""Read files from strangers within limits; write files whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from ultralytics.cfg import get_save_dir
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

from .errors import KDError, first_line

MOST_BYTES = 2**20  # of a YAML that holds arguments or class names
MOST_PARTS = 100_000  # values in it, with every alias written out
# What PyYAML raises: its own errors, and those of int(), float() and datetime() for a text that they cannot read
YAML_ERRORS = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
# Ultralytics removes these from a YAML that PyYAML refuses, and reads it again
UNPRINTABLE = re.compile(r"[^\x09\x0A\x0D\x20-\x7E\x85\xA0-\uD7FF\uE000-\uFFFD\U00010000-\U0010ffff]+")
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
# A drive that is gone, mostly a network drive
UNREACHABLE = {errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ENXIO, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ESTALE}
STORED = "what is stored stays; make room and run the same command again to finish."
PROBE_BYTES = 2**20  # size of the file that tests whether a disk is full


def reason_of(error: Exception) -> str:
    """Return the message of an error without the file name, which the sentence around it already has.

    Args:
        error (Exception): The error.
    """
    return f"{error.strerror}." if isinstance(error, OSError) and error.strerror else first_line(error)


def as_utf8(text: str) -> str:
    """Return a text for people to read, with escapes for what UTF-8 cannot encode.

    On Linux a file name may hold bytes that are not UTF-8. Python keeps them as characters that UTF-8 cannot encode.

    Args:
        text (str): The text.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def load_yaml(file: Any) -> dict:
    """Return the mapping in a YAML, as Ultralytics reads it; an empty one if the file is empty.

    Args:
        file (str | Path): A YAML as Ultralytics finds it: a path, a URL, or the name of a file of Ultralytics.

    Raises:
        KDError: If it cannot be read, holds no mapping, or is too large for a file of arguments or class names.
        FileNotFoundError: If it does not exist.
    """
    if not isinstance(file, (str, Path)):
        raise KDError(f"'{file}' is not a YAML file.")
    try:
        path = check_yaml(file)
        with open(path, "rb") as f:
            content = f.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise KDError(f"it has more than {MOST_BYTES // 2**20} MiB.")
        check_yaml_text(content.decode("utf-8", errors="ignore"))
        return dict(YAML.load(path))
    except FileNotFoundError:
        raise
    # A folder, no permission, another suffix, a name that is not a valid pattern, and errors of PyYAML
    except (OSError, AssertionError, re.error, *YAML_ERRORS) as e:
        raise KDError(f"'{file}' could not be read as YAML: {reason_of(e)}") from e


def check_yaml_text(text: str) -> None:
    """Raise if a text is not YAML, or too large with every alias written out.

    Aliases repeat the content of an anchor, so that a few lines can stand for more text than fits in memory.

    Args:
        text (str): The text.

    Raises:
        KDError: If it stands for too many values.
        YAMLError: If it is not YAML. Some texts make PyYAML raise other errors; all of them are in `YAML_ERRORS`.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    node = yaml.compose(UNPRINTABLE.sub("", text), Loader=loader)
    if node is not None and _parts(node, {}) > MOST_PARTS:
        raise KDError(f"it stands for more than {MOST_PARTS:,} values, most of them by aliases.")


def _parts(node: Any, known: dict[int, float]) -> float:
    """Return the number of values that a YAML node stands for; infinite if it contains itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # until its parts are counted
        inner = node.value if isinstance(node.value, list) else ()
        parts = (part for pair in inner for part in (pair if isinstance(pair, tuple) else (pair,)))
        known[id(node)] = 1 + sum(_parts(part, known) for part in parts)
    return known[id(node)]


def exists(path: Any) -> bool:
    """Return whether a file or folder exists and can be reached; False for a path that cannot be one.

    Args:
        path (str | Path): The path.
    """
    try:
        return Path(path).exists()
    except (OSError, TypeError, ValueError):  # no permission, a network drive that is gone, null bytes
        return False


def own_file(path: Path) -> bool:
    """Return whether a path is an existing file in its folder, and not a link that leads out of the folder.

    Args:
        path (Path): The path.
    """
    try:
        return path.is_file() and path.resolve().is_relative_to(path.parent.resolve())
    except (OSError, RuntimeError, ValueError):  # a name that is too long, or links in a circle
        return False


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, if they do not exist.

    Args:
        folder (Path): The folder.

    Raises:
        KDError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as e:  # no permission, a file in its place, null bytes in the name
        raise KDError(f"the folder {folder} cannot be made: {reason_of(e)}") from e


def output_folder(args: Any) -> Path:
    """Return the output folder that Ultralytics' arguments name.

    Args:
        args (Namespace): Ultralytics' arguments: project, name, exist_ok, save_dir.

    Raises:
        KDError: If they do not name a folder.
    """
    try:
        return get_save_dir(args)
    except (OSError, TypeError, ValueError) as e:  # not texts, or a name that is too long or has null bytes
        raise KDError(f"project={args.project} and name={args.name} make no folder: {reason_of(e)}") from e


def lock_file(folder: Path) -> Path:
    """Return the file that processes lock to take turns in a folder.

    Args:
        folder (Path): The folder.

    Raises:
        KDError: If it is a link: locking would empty the file that the link leads to.
    """
    file = folder / ".lock"
    if file.is_symlink():
        raise KDError(f"{file} is a link: remove it.")
    return file


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a new file that replaces the target once it is whole and on the disk.

    Until then the target stays as it is, even after a power failure.

    Args:
        target (Path): The file to replace; it need not exist.

    Yields:
        (Path): Where to write the new content. It is removed if writing fails.

    Examples:
        >>> with replacing(Path("notes.json")) as part:
        ...     part.write_text("{}")
    """
    # A random name: others may write to the folder, and a link under a known name would be followed
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    open(part, "xb").close()
    try:
        yield part
        move_into_place(part, target)
    except BaseException:  # it is raised again; a half-written file is of no use
        part.unlink(missing_ok=True)
        raise


def move_into_place(part: Path, target: Path) -> None:
    """Flush a whole file to the disk, then let it replace another.

    Args:
        part (Path): The whole file, on the same file system.
        target (Path): The file to replace; it need not exist.
    """
    with open(part, "rb+") as f:
        os.fsync(f.fileno())
    os.replace(part, target)


def write_whole(target: Path, content: bytes, advice: str = STORED) -> None:
    """Write a file: whole or not at all.

    Args:
        target (Path): The file.
        content (bytes): Its content.
        advice (str): How to continue when the disk is full, as the end of a sentence.

    Raises:
        KDError: If the disk is full or not writable.
    """
    try:
        with replacing(target) as part:
            part.write_bytes(content)
    except OSError as e:
        fault = disk_fault(e, target.parent, advice)
        if fault is None:
            raise
        raise fault from e


def disk_fault(error: Exception, folder: Path, advice: str) -> KDError | None:
    """Return the error to raise after a failed write; None if the disk is neither full nor read-only nor gone.

    Args:
        error (Exception): The error of the write.
        folder (Path): The folder that was written to.
        advice (str): How to go on, as the end of a sentence.
    """
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, (RuntimeError, sqlite3.Error)):  # torch.save and SQLite raise them without a number
        number = _probe(folder)
    if number in NO_ROOM:
        return KDError(f"no space is left in {folder}: {advice}")
    if number in NO_ACCESS | UNREACHABLE:
        return KDError(f"{folder} cannot be written to ({os.strerror(number)}): {advice}")
    return None


def _probe(folder: Path) -> int | None:
    """Return the number of the error that writing a small file to a folder raises; None if it succeeds."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        return e.errno
    return None
