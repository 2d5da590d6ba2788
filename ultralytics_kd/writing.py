"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import KDError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def part_of(target: Path) -> Iterator[Path]:
    """Lend a new file beside a place, and move it there when it is whole and on the disk.

    Whatever happens in between, the power going off included, what was at the place stays as it was.

    Args:
        target (Path): Where the file is to be.

    Yields:
        (Path): Where to write it; it is gone if writing fails.
    """
    # A name of its own each time: in a folder that others write to, nobody can put a link in its place beforehand
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    part = Path(name)
    try:
        os.chmod(part, 0o666 & ~_umask())  # mkstemp keeps others from reading, as no checkpoint of Ultralytics does
        os.close(handle)
        yield part
        put(part, target)
    except BaseException:  # it goes on to the caller; a file that is half written is of no use to anybody
        part.unlink(missing_ok=True)
        raise


def put(part: Path, target: Path) -> None:
    """Move a file to its place once it is on the disk.

    Args:
        part (Path): The whole file, on the same file system.
        target (Path): Where it is to be.
    """
    with open(part, "rb+") as f:
        os.fsync(f.fileno())
    os.replace(part, target)


def write_whole(target: Path, content: bytes) -> None:
    """Write a file: whole or not at all.

    Args:
        target (Path): Where it is to be.
        content (bytes): What it is to hold.

    Raises:
        KDError: If the disk is full or closed.
    """
    try:
        with part_of(target) as part:
            part.write_bytes(content)
    except OSError as e:
        said = disk_fault(e, target.parent, "what is stored stays; make room and run the same command again to finish.")
        if said is None:
            raise
        raise said from e


def disk_fault(error: OSError, folder: Path, advice: str) -> KDError | None:
    """Return what to say of an error of a disk that is full or closed to us; None for any other.

    Args:
        error (OSError): The error.
        folder (Path): Where something was to be written.
        advice (str): How to go on, as the end of a sentence.
    """
    if error.errno in NO_ROOM:
        return KDError(f"no space is left in {folder}: {advice}")
    if error.errno in NO_ACCESS:
        return KDError(f"{folder} cannot be written to ({os.strerror(error.errno)}): {advice}")
    return None


def _umask() -> int:
    """Return the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
