"""The folder of a run: claimed for one run, and removed again if that run never starts."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from ...errors import KDError
from ...files import disk_fault, output_folder

CHECKPOINTS = re.compile(r"(best|last|epoch\d+)\.pt")  # names of the files that hold a run's student
RESTORED = ("args.yaml", "results.csv")  # files that Ultralytics replaces or removes before a run starts
_ADVICE = "give another project=FOLDER, or make room."
_RESUMED = "resume with save_dir=FOLDER, or make room."


class RunFolder:
    """What a run creates on disk before it starts, so that a failed start can be undone.

    Attributes:
        path (Path): Folder of the run.
        created (list[Path]): Folders that this process created, innermost first; empty if the folder existed.
    """

    def __init__(self, path: Path, created: list[Path], shared: bool = False):
        """Describe a folder.

        Args:
            path (Path): Folder of the run.
            created (list[Path]): Folders that this process created for it, innermost first.
            shared (bool): Whether other runs may write to the folder too, as `exist_ok=True` allows.
        """
        self.path, self.created, self._shared = path, created, shared
        self._files: dict[Path, int] = {}  # files of this run in a shared folder, with their modification time
        # Files of an earlier run, or of the run that is resumed, as they were
        self._before = {file: file.read_bytes() for name in RESTORED if os.access(file := path / name, os.R_OK)}

    @classmethod
    def claim(cls, args: Any) -> RunFolder:
        """Create the folder that Ultralytics' arguments name, and pin it in `args.save_dir`.

        Creating a folder is atomic. Of two runs of one name that start together, one creates the folder, and the other
        takes the next free name.

        Args:
            args (Namespace): Ultralytics' arguments: project, name, exist_ok, save_dir.

        Raises:
            KDError: If no folder can be created there.
        """
        parents: list[Path] = []
        while True:
            path = output_folder(args)
            try:
                parents = [*_create_parents(path.parent), *parents]
                path.mkdir()
            except FileExistsError:
                if args.exist_ok or getattr(args, "save_dir", None):
                    return cls(path, [])
                continue  # another process created it first
            except OSError as e:
                raise _no_folder(e, path) from e
            args.save_dir = str(path)
            return cls(path, [path, *parents], shared=bool(args.exist_ok))

    @classmethod
    def of_resumed_run(cls, path: Path) -> RunFolder:
        """Describe the folder of a run that is resumed, and create it if it is gone.

        Args:
            path (Path): The folder.

        Raises:
            KDError: If it cannot be created, e.g. if the checkpoint comes from another machine.
        """
        try:
            return cls(path, _create_parents(path))
        except OSError as e:
            raise _no_folder(e, path, _RESUMED) from e

    def note_files(self) -> None:
        """Note the files that this run has written so far, in case another run shares the folder."""
        if self._shared:
            self._files = {file: file.stat().st_mtime_ns for file in self.path.rglob("*") if file.is_file()}

    def contains(self, file: Any) -> bool:
        """Return whether a file belongs to this run's folder, or is one of the folders that lead to it."""
        return any(Path(file).is_relative_to(folder) for folder in (self.path, *self.created))

    def disk_error(self, error: BaseException) -> KDError | None:
        """Return the message for a full or read-only disk if an error concerns this folder, else None."""
        if not isinstance(error, OSError) or not error.filename or not self.contains(error.filename):
            return None
        return disk_fault(error, Path(error.filename), _ADVICE)

    def undo(self) -> None:
        """Remove what this run created, and nothing that another process made; restore what it replaced."""
        for file, content in self._before.items():
            if file.name != "results.csv" or not file.exists():  # another run in this folder may write its own
                file.write_bytes(content)
        if not self.created:
            return
        if self._shared:
            self._remove_noted_files()
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        for folder in self.created:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # another run has files there
                return

    def _remove_noted_files(self) -> None:
        """Remove files of this run that no other run has overwritten, and the subfolders that are empty then."""
        for file, time in self._files.items():
            if file.is_file() and file.stat().st_mtime_ns == time:
                file.unlink()
        for folder in sorted((f for f in self.path.rglob("*") if f.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()


def _create_parents(folder: Path) -> list[Path]:
    """Create a folder and its parents, and return those that this process created, innermost first."""
    created: list[Path] = []
    for parent in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        try:
            parent.mkdir()
        except FileExistsError:  # another process created it first
            continue
        created.insert(0, parent)
    return created


def _no_folder(error: OSError, path: Path, advice: str = _ADVICE) -> KDError:
    """Return the message for a folder that cannot be created."""
    place = Path(error.filename or path)
    return disk_fault(error, place, advice) or KDError(f"{path} cannot be created ({error.strerror}): {advice}")
