"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
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
    # A new file each time: in a folder that others write to, a link in its place is never followed
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    open(part, "xb").close()
    try:
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


def disk_fault(error: Exception, folder: Path, advice: str) -> KDError | None:
    """Return what to say of an error of a disk that is full or closed to us; None for any other.

    Args:
        error (Exception): The error.
        folder (Path): Where something was to be written.
        advice (str): How to go on, as the end of a sentence.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in NO_ROOM:
        return KDError(f"no space is left in {folder}: {advice}")
    if number in NO_ACCESS:
        return KDError(f"{folder} cannot be written to ({os.strerror(number)}): {advice}")
    if isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error):  # torch.save does not say why
        return KDError(f"{folder} could not be written to, as it may be full: {advice}")
    return None
