"""The `teacher` argument of a run: opened, named by absolute paths, and kept beside the run if it is an object."""

from __future__ import annotations

import pickle
import re
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

from ultralytics.engine.model import Model
from ultralytics.utils import LOGGER, RANK, YAML
from ultralytics.utils.patches import torch_save

from ...config import as_list
from ...config.named_files import EMA
from ...errors import KDError, ModelError, first_line
from ...files import exists, replacing
from ...teachers import Teacher, open_teacher
from ...teachers.backbone import absolute
from ...teachers.base import FINGERPRINT
from ...teachers.opening import IN_MEMORY
from ...teachers.prompted import PromptedTeacher
from .run_folder import CHECKPOINTS

KEPT = re.compile(r"teacher(-\d+)?\.pt")  # names of teachers that a run keeps beside its checkpoints


class TeacherSource:
    """Where the teacher of a run comes from.

    Attributes:
        value (Any): The `teacher` argument: a path, an object, or a list of such.
        in_memory (bool): Whether it contains an object, which only this process has.
    """

    def __init__(self, value: Any, resumed_in: Path | None = None, teacher_given: bool = False):
        """Take the argument; a `YOLO` that holds an exported file stands for that file.

        Args:
            value (Any): The `teacher` argument.
            resumed_in (Path, optional): Folder of the checkpoint that is resumed.
            teacher_given (bool): Whether the call that resumes the run names the teacher again.
        """
        self.value = [_exported_file(each) for each in value] if isinstance(value, list) else _exported_file(value)
        self.in_memory = not all(isinstance(each, (str, Path)) for each in as_list(self.value))
        self._resumed_in, self._teacher_given = resumed_in, teacher_given

    def open(self, args: Any) -> Teacher:
        """Open the teacher.

        Args:
            args (Namespace): Arguments of the training.

        Raises:
            KDError: If there is none, or it cannot teach.
        """
        folder = self._resumed_in
        # A teacher that was kept beside the checkpoint is as trusted as the checkpoint, which Ultralytics has unpickled
        kept = folder is not None and all(
            isinstance(each, (str, Path))
            and KEPT.fullmatch(Path(each).name)
            and Path(each).resolve().parent == folder.resolve()
            for each in as_list(self.value)
        )
        try:
            return open_teacher(self.value, args.task, args.kd_teacher_weights, args.kd_trust_teacher or kept)
        except KDError as e:
            if folder is None or self._teacher_given or str(self.value).endswith(IN_MEMORY):  # the message has advice
                raise
            raise KDError(f"{first_line(e)[:-1]}; if it is elsewhere now, resume with teacher=ITS PATH.") from e

    def argument(self, teacher: Teacher) -> Any:
        """Return the argument as args.yaml holds it: absolute paths, so that `resume` works from any folder."""
        if self.in_memory:
            return teacher.source
        places = [_place(each) for each in as_list(self.value)]
        return places if isinstance(self.value, list) else places[0]

    def check_place(self, folder: Path, save_period: int = -1) -> None:
        """Raise if a run would overwrite its teacher's file with its student's.

        Args:
            folder (Path): Folder of the run.
            save_period (int): Epochs between checkpoints that stay, such as epoch10.pt; -1 if none stay.

        Raises:
            KDError: If the run would overwrite its teacher's file.
        """
        for each in as_list(self.value):
            if isinstance(each, (str, Path)) and exists(each) and self._is_overwritten(Path(each), folder, save_period):
                raise ModelError(
                    each,
                    f"is in {folder}, where this run saves its student and would overwrite it: give another name= or "
                    "project=, or from Python teacher=YOLO(FILE), of which the run keeps a copy (teacher.pt).",
                )

    def _is_overwritten(self, file: Path, folder: Path, save_period: int) -> bool:
        """Return whether a run writes to a file."""
        file = file.resolve()  # a link in the folder is replaced, and what it leads to stays
        if not (exists(folder / "weights") and file.parent.samefile(folder / "weights")):
            return False
        if file.name.startswith("epoch") and save_period <= 0:
            return False
        return bool(CHECKPOINTS.fullmatch(file.name)) or (self.in_memory and bool(KEPT.fullmatch(file.name)))

    def save_beside(self, run: Any, teacher: Teacher) -> None:
        """Save objects beside the run, so that `resume` finds them, and note their files in its arguments.

        Args:
            run (BaseTrainer): The trainer, whose folder exists.
            teacher (Teacher): The opened teacher.
        """
        if run.ddp:
            run.args.teacher = self.value  # the workers receive it and save it
            return
        sources = as_list(self.value)
        kept = [
            _place(source)
            if isinstance(source, (str, Path))
            else _save(member, run.wdir, i if len(sources) > 1 else None)
            for i, (source, member) in enumerate(zip(sources, teacher.members))
        ]
        run.args.teacher = kept if isinstance(self.value, (list, tuple)) else kept[0]
        if RANK in {-1, 0}:
            YAML.save(run.save_dir / "args.yaml", vars(copy(run.args)))


def _exported_file(source: Any) -> Any:
    """Return the file of a `YOLO` that holds an exported model; anything else as it is."""
    return source.model if isinstance(source, Model) and isinstance(source.model, (str, Path)) else source


def _place(source: str | Path) -> str:
    """Return a teacher's file by its absolute path, any other name as it is."""
    return str(Path(source).resolve() if exists(source) and source != EMA else absolute(source))


def _save(teacher: Teacher, folder: Path, number: int | None) -> str:
    """Save one teacher in the run's weights folder and return its path; for one without a model, return its name."""
    if not teacher.portable:
        return teacher.source
    path = folder / ("teacher.pt" if number is None else f"teacher-{number}.pt")
    if RANK in {-1, 0}:
        try:
            model: Any = deepcopy(teacher.original)
            model.criterion = None
            with replacing(path) as part:
                words = {FINGERPRINT: teacher.fingerprint()} if isinstance(teacher, PromptedTeacher) else {}
                torch_save({"model": model, "train_args": {"task": teacher.task}, **words}, part)
        except (pickle.PicklingError, AttributeError, TypeError) as e:
            LOGGER.warning(f"teacher={teacher.source} cannot be saved; give it again to resume the run: {e}")
            return teacher.source
    return str(path)
