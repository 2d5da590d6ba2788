"""Reading files that anybody may have written, within limits; writing files whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
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
MOST_PARTS = 100_000  # of it with every alias written out
# What PyYAML raises: errors of its own, and whatever int(), float() and datetime() say of a text that is none
YAML_ERRORS = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
# Ultralytics reads a YAML that PyYAML refuses once more without these
UNPRINTABLE = re.compile(r"[^\x09\x0A\x0D\x20-\x7E\x85\xA0-\uD7FF\uE000-\uFFFD\U00010000-\U0010ffff]+")
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}


def why(error: Exception) -> str:
    """Return what an error says, without the name of the file that the sentence around it has already.

    Args:
        error (Exception): The error.
    """
    return f"{error.strerror}." if isinstance(error, OSError) and error.strerror else first_line(error)


def load_yaml(file: Any) -> dict:
    """Return the mapping in a YAML, as Ultralytics reads it; an empty one if the file is empty.

    Args:
        file (str | Path): A YAML as Ultralytics finds it: a path, the name of one of its own, a URL.

    Raises:
        KDError: If it holds no mapping, or more than a file of arguments or class names can hold.
        FileNotFoundError: If there is none.
    """
    if not isinstance(file, (str, Path)):
        raise KDError(f"'{file}' is no YAML file.")
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
    # A folder, no permission, another suffix, a name that is no pattern, and what PyYAML says
    except (OSError, AssertionError, re.error, *YAML_ERRORS) as e:
        raise KDError(f"'{file}' could not be read as YAML: {why(e)}") from e


def check_yaml_text(text: str) -> None:
    """Raise if a text is no YAML or grows too large.

    Aliases repeat what an anchor holds: a few lines can stand for more than a memory holds, once they are printed.

    Args:
        text (str): The text.

    Raises:
        KDError: If it grows too large.
        YAMLError: If it is no YAML; some texts make PyYAML raise other errors, all of them in `YAML_ERRORS`.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    node = yaml.compose(UNPRINTABLE.sub("", text), Loader=loader)
    if node is not None and _parts(node, {}) > MOST_PARTS:
        raise KDError(f"it stands for more than {MOST_PARTS:,} values, most of them by aliases.")


def _parts(node: Any, known: dict[int, float]) -> float:
    """Return the number of values that a YAML node stands for; infinite if it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # as long as it is open
        inner = node.value if isinstance(node.value, list) else ()
        parts = (part for pair in inner for part in (pair if isinstance(pair, tuple) else (pair,)))
        known[id(node)] = 1 + sum(_parts(part, known) for part in parts)
    return known[id(node)]


def own_file(path: Path) -> bool:
    """Return whether a path is a file of its folder: there, a file, and no link that leads out of the folder.

    Args:
        path (Path): The path.
    """
    try:
        return path.is_file() and path.resolve().is_relative_to(path.parent.resolve())
    except (OSError, RuntimeError, ValueError):  # a name that is too long, links in a circle
        return False


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, if it is not there.

    Args:
        folder (Path): The folder.

    Raises:
        KDError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as e:  # no permission, a file in its place, a name of null bytes
        raise KDError(f"the folder {folder} cannot be made: {why(e)}") from e


def output_folder(args: Any) -> Path:
    """Return the folder that Ultralytics' arguments name for what is written.

    Args:
        args (Namespace): Ultralytics' arguments: project, name, exist_ok, save_dir.

    Raises:
        KDError: If they name none.
    """
    try:
        return get_save_dir(args)
    except (OSError, TypeError, ValueError) as e:  # no texts, a name that is too long or has null bytes
        raise KDError(f"project={args.project} and name={args.name} make no folder: {why(e)}") from e


def lock_file(folder: Path) -> Path:
    """Return the file by which processes take turns in a folder.

    Args:
        folder (Path): The folder.

    Raises:
        KDError: If a link is in its place: locking empties what it leads to.
    """
    file = folder / ".lock"
    if file.is_symlink():
        raise KDError(f"{file} is a link: remove it.")
    return file


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


STORED = "what is stored stays; make room and run the same command again to finish."


def write_whole(target: Path, content: bytes, advice: str = STORED) -> None:
    """Write a file: whole or not at all.

    Args:
        target (Path): Where it is to be.
        content (bytes): What it is to hold.
        advice (str): How to continue when the disk is full, as the end of a sentence.

    Raises:
        KDError: If the disk is full or closed.
    """
    try:
        with part_of(target) as part:
            part.write_bytes(content)
    except OSError as e:
        said = disk_fault(e, target.parent, advice)
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
