"""Where a resumed run is now: its folder and the files that it names may have been moved, renamed or copied."""

from __future__ import annotations

import ntpath
import os
import posixpath
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from ...config import as_list
from ...config.named_files import MOVED
from ...errors import KDError
from ...files import exists
from .run_folder import CHECKPOINTS

OF_A_RUN = ("args.yaml", "results.csv")  # files that tell the folder of a run from any other


class RunPlace:
    """The folder of a run when its checkpoint was written, and now.

    Attributes:
        checkpoint (Path): The checkpoint.
        before (str): The folder that the checkpoint names; empty if it names none.
        now (Path): The folder that the checkpoint is in: the parent of `weights`.
    """

    def __init__(self, checkpoint: Path, before: str | None):
        """Take the two places.

        Args:
            checkpoint (Path): The checkpoint.
            before (str, optional): The folder that it names.
        """
        self.checkpoint, self.before = checkpoint.resolve(), str(before or "")
        self.now = self.checkpoint.parent.parent

    @property
    def moved(self) -> bool:
        """Whether the run's folder was moved, or copied with the checkpoint; False for a checkpoint alone."""
        if not self.before or self.checkpoint.parent.name != "weights":
            return False
        if not exists(self.before):
            return True
        return not os.path.samefile(self.before, self.now) and any(exists(self.now / name) for name in OF_A_RUN)

    def find(self, value: Any) -> Any:
        """Return the value of an argument with its paths as they are now; what is not found stays as it is.

        Args:
            value (Any): A path, a list with paths, or anything else.
        """
        if isinstance(value, (list, tuple)):
            return [self.find(each) for each in value]
        return str(self._file(str(value)) or value) if isinstance(value, (str, Path)) else value

    def _file(self, recorded: str) -> Path | None:
        """Return the file or folder that a recorded absolute path means now, None if there is none."""
        flavour: Any = ntpath if ntpath.splitdrive(self.before)[0] else posixpath
        if not flavour.isabs(recorded):
            return None  # a name that Ultralytics downloads, a URL, an object
        beside = self.checkpoint.with_name(flavour.basename(recorded))
        besides = [] if beside == self.checkpoint or CHECKPOINTS.fullmatch(beside.name) else [beside]
        places = [Path(recorded), *besides]
        if self.moved:
            places = [*self._same_relation(recorded, flavour), *besides, Path(recorded)]
        return next((place for place in places if exists(place)), None)

    def _same_relation(self, recorded: str, flavour: Any) -> list[Path]:
        """Return where a recorded path is now if its position relative to the run's folder has not changed."""
        try:
            shared = flavour.commonpath([recorded, self.before])
        except ValueError:  # on another drive
            return []
        if flavour.dirname(shared) == shared:  # nothing but the root
            return []
        parts = flavour.relpath(recorded, self.before).split(flavour.sep)
        return [Path(os.path.normpath(self.now.joinpath(*parts)))]


def bring_up_to_date(args: Any, given: dict[str, Any], place: RunPlace) -> None:
    """Put the places of a moved run into its arguments: the run continues in the folder of its checkpoint.

    Args:
        args (Namespace): Arguments of the run, as the checkpoint has them. They are changed.
        given (dict): Arguments of the call, which stay.
        place (RunPlace): Where the run is.

    Raises:
        KDError: If images or stored answers of the run are gone. A missing teacher raises later, when it is opened.
    """
    for name in MOVED:
        if name not in given and hasattr(args, name):
            setattr(args, name, place.find(getattr(args, name)))
            _check_found(name, getattr(args, name))
    if not all(exists(each) for each in as_list(args.data)):  # the call always names data, mostly from the checkpoint
        args.data = place.find(args.data)
    if place.moved and not given.get("save_dir"):
        LOGGER.info(f"This run was in {place.before}: it continues in {place.now}.")
        args.save_dir = str(place.now)


def _check_found(name: str, value: Any) -> None:
    """Raise if a folder of a resumed run is gone."""
    for each in as_list(value):
        if name != "teacher" and isinstance(each, str) and not exists(each):
            raise KDError(
                f"{name}={each} was not found or cannot be reached: if it is elsewhere now, resume with "
                f"{name}=ITS PATH."
            )
