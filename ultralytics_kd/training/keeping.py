"""New classes without forgetting (`kd_keep`): the student's classes, and labels renumbered to them.

The student gets the classes of the model that it begins with and the classes of the data. Ultralytics builds it for all
of them and copies the class rows whose names the model has. New rows begin as in any training. Label files stay as they
are: class numbers are changed in memory, after a data set was built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import BaseModel, load_checkpoint
from ultralytics.utils.checks import check_model_file_from_stem

from ..compat import advice, installed_release
from ..config import ARGUMENTS
from ..config.kept_classes import OLD, first_classes
from ..errors import KDError, ModelError, first_line
from ..outputs import class_rows, head_fault
from ..teachers import Teacher
from ..teachers.class_map import ClassMap, class_names, match_key
from ..teachers.plurals import match_plurals
from .first_step import HOOKS

FEATURES = 4.0  # weight of `kd_feat` if the student begins as its teacher and none is given; chosen on held-out images
MARK = "kd_keep_labels"  # attribute of a data set whose labels have the student's class numbers


@dataclass(frozen=True)
class Labels:
    """A data set's labels, and the student's classes.

    Attributes:
        data (dict[str, Any]): Ultralytics' description of the data set, with its own names.
        numbers (list[int]): For each class of the data set, the student's class.
    """

    data: dict[str, Any]
    numbers: list[int]

    @property
    def names(self) -> dict[int, str]:
        """The data set's own class names."""
        return dict(self.data["names"])

    def renumber(self, dataset: Any) -> None:
        """Give the labels of a data set the student's class numbers, in memory.

        Args:
            dataset (YOLODataset): The data set, as Ultralytics built it from `data`.
        """
        numbers = np.array(self.numbers)
        for label in dataset.labels:
            cls = label["cls"]
            label["cls"] = numbers[cls.astype(int)].astype(cls.dtype).reshape(cls.shape)
        setattr(dataset, MARK, True)

    def classes_of(self, known: ClassMap) -> ClassMap:
        """Return how a teacher's classes teach those of the data set.

        Args:
            known (ClassMap): How the teacher's classes teach the student's classes.
        """
        sources = {own: known.sources[i] for own, i in enumerate(self.numbers) if i in known.sources}
        return ClassMap(sources, self.names, known.teacher_names)


class Keeping:
    """The classes of a student that keeps the classes of the model that it begins with.

    Attributes:
        names (dict[int, str]): The student's classes.
        kept (list[int]): Student classes that the data do not label.
        labels (Labels): The training data.
        old (Labels | None): The data of `kd_keep_data`, whose val set is scored at the end.
    """

    def __init__(self, args: Any, data: dict[str, Any]):
        """Unite the classes of the student and of the data, and put them into the data's description.

        Args:
            args (Namespace): Arguments of the training; `kd_keep_data` becomes absolute.
            data (dict): Ultralytics' description of the data set. Its `names` and `nc` become the student's.

        Raises:
            KDError: If the model has no classes to keep, or the names clash.
        """
        if not hasattr(BaseModel, "_remap_cls_by_names"):
            raise KDError(
                f"'kd_keep' needs a release of Ultralytics that copies class rows by name, and {installed_release()} "
                f"does not: {advice(installed_release())}."
            )
        self._model = str(check_model_file_from_stem(args.model))
        model = self._open()
        names = data["names"]
        own, before = dict(enumerate(names) if isinstance(names, list) else names), class_names(model)
        self._rows = class_rows(model)
        self._check_names(before, own, args)
        old_first = first_classes(args.kd_keep) == OLD
        self._first = f"those of {'the old model' if old_first else 'the data'}"
        united = unite(before, own) if old_first else unite(own, before)
        spelling = {match_key(name): name for name in (*own.values(), *before.values())}  # the old model's name wins
        self.names = {i: spelling[match_key(name)] for i, name in united.items()}
        self._before = {i: self._number(name) for i, name in before.items()}
        self.labels = Labels({**data, "names": own}, [self._number(name) for name in own.values()])
        self.kept = sorted(set(self.names) - set(self.labels.numbers))
        if not self.kept:
            raise KDError(
                f"'kd_keep={args.kd_keep}' has no effect: data={args.data} names every class of model={args.model}. "
                "Let it name only the classes that it labels, or drop kd_keep."
            )
        self.old = self._old_labels(args)
        data["names"], data["nc"] = dict(self.names), len(self.names)
        self._current = self.labels

    def _open(self) -> Any:
        """Return the model that the student begins with.

        Raises:
            KDError: If the model is not a checkpoint, or its head is not supported.
        """
        if Path(self._model).suffix.lower() != ".pt":
            raise ModelError(
                self._model, "has no classes to keep (kd_keep): give a trained model, model=old.pt.", "model"
            )
        model = load_checkpoint(self._model)[0]
        if fault := head_fault(model):
            raise ModelError(self._model, f"{fault}.", "model")
        return model

    def _check_names(self, before: Mapping[int, str], own: Mapping[int, str], args: Any) -> None:
        """Raise if it is unclear which old and new names stand for the same class."""
        if not before or all(str(i) == str(name) for i, name in before.items()):
            raise ModelError(
                args.model, "has no class names, by which kd_keep tells old classes from new ones.", "model"
            )
        for names, owner in ((before, f"model={args.model}"), (own, f"data={args.data}")):
            twice = [key for key, count in Counter(match_key(name) for name in names.values()).items() if count > 1]
            if twice:
                raise KDError(f"kd_keep: {owner} has several classes named '{twice[0]}': give each a name of its own.")
        if str(args.kd_classes).lower() != "auto":  # the user says which classes are the same
            return
        keys = [{i: match_key(name) for i, name in names.items()} for names in (own, before)]
        new, old = ({i: n for i, n in a.items() if n not in b.values()} for a, b in (keys, keys[::-1]))
        initials = {n[:1] for n in new.values()}  # singular and plural share the initial; other names need no look-up
        for i, j in match_plurals(new, {i: n for i, n in old.items() if n[:1] in initials}):
            raise KDError(
                f"kd_keep: '{own[j]}' of the data and '{before[i]}' of model={args.model} may be one class: give both "
                "the same name, or names that differ in more than the plural."
            )

    def _number(self, name: str) -> int:
        """Return the index of the student's class with a name."""
        return next(i for i, other in self.names.items() if match_key(other) == match_key(name))

    def _old_labels(self, args: Any) -> Labels | None:
        """Return the data of `kd_keep_data`, None if there are none.

        Raises:
            KDError: If they cannot be read, or have a class that the student lacks.
        """
        if args.kd_keep_data is None:
            return None
        try:
            data = check_det_dataset(args.kd_keep_data, split=args.split)
        except Exception as e:  # Ultralytics raises several kinds
            raise KDError(f"kd_keep_data={args.kd_keep_data} cannot be read: {first_line(e)}") from e
        known = {match_key(name) for name in self.names.values()}
        for name in data["names"].values():
            if match_key(name) not in known:
                raise KDError(
                    f"kd_keep_data={args.kd_keep_data} has the class '{name}', which neither model={args.model} nor "
                    "the data has: give the data of the old classes."
                )
        args.kd_keep_data = str(Path(data.get("yaml_file") or args.kd_keep_data).resolve())
        return Labels(data, [self._number(name) for name in data["names"].values()])

    # Checks -----------------------------------------------------------------------------------------------------------
    def check_teacher(self, teacher: Teacher) -> None:
        """Raise if a teacher does not know a class that the data do not label.

        Args:
            teacher (Teacher): The teacher, its classes matched with the student's.

        Raises:
            KDError: If neither the data nor the teacher can teach a class.
        """
        assert teacher.classes is not None
        lost = [self.names[i] for i in self.kept if i not in teacher.classes.sources]
        if lost:
            shown = ", ".join(lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
            raise ModelError(
                teacher.source,
                f"does not know {shown}, which the data do not label: nobody would teach them. Give the old model as "
                "teacher too.",
            )

    def check_rows(self, student: Any) -> None:
        """Raise if a student does not begin with the class rows of the model whose classes it keeps.

        Args:
            student (nn.Module): The student, before its training.

        Raises:
            KDError: If user code has built the student in another way.
        """
        rows = class_rows(student)
        for name, old in self._rows.items():
            new = rows.get(name)
            kept = new is not None and new.shape[1:] == old.shape[1:] and len(new) == len(self.names)
            if not kept or any(not new[j].equal(old[i].to(new)) for i, j in self._before.items()):  # type: ignore[index]
                raise KDError(
                    f"kd_keep: the student does not begin with the class rows of model={self._model}: get_model must "
                    f"call super().get_model(...), which copies them; {HOOKS}."
                )

    def check_labels(self, dataset: Any) -> None:
        """Raise if the labels of a data set do not have the student's class numbers.

        Args:
            dataset (Dataset): Data set of a loader.

        Raises:
            KDError: If user code has built the data set in another way.
        """
        if not getattr(dataset, MARK, False):
            raise KDError(
                "kd_keep: the labels have the class numbers of data.yaml, not the student's: build_dataset must call "
                f"super().build_dataset(...), which changes them; {HOOKS}."
            )

    # Data sets --------------------------------------------------------------------------------------------------------
    def building(self, trainer: Any, build: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that builds a data set with labels in the student's class numbers.

        Ultralytics builds it from the data's own description. So it checks labels against the data's own classes, and
        the label cache on disk is the same as without `kd_keep`.

        Args:
            trainer (BaseTrainer): The trainer, whose `data` is replaced while a data set is built.
            build (Callable): Ultralytics' `build_dataset`.
        """

        def build_renumbered(*args: Any) -> Any:
            """Build a data set and change its labels."""
            labels, data = self._current, trainer.data
            trainer.data = labels.data
            try:
                dataset = build(*args)
            finally:
                trainer.data = data
            labels.renumber(dataset)
            dataset.data = data
            return dataset

        return build_renumbered

    @contextmanager
    def old_data(self) -> Iterator[Labels]:
        """Build data sets from `kd_keep_data` within a block.

        Yields:
            (Labels): The labels of `kd_keep_data`.
        """
        assert self.old is not None
        self._current = self.old
        try:
            yield self.old
        finally:
            self._current = self.labels

    @property
    def description(self) -> str:
        """Which classes are kept and which are new, for the table at the start."""
        new = len(self.names) - len(self._before)
        news = f"{new} are new; " if new else ""  # none if the data label only old classes, or a run is resumed
        return f"{len(self.kept)} classes that the data do not label; {news}{self._first} come first"


def unite(first: Mapping[int, str], second: Mapping[int, str]) -> dict[int, str]:
    """Return the classes of two lists: all of the first in order, then those of the second that the first lacks.

    Args:
        first (Mapping[int, str]): Names by index.
        second (Mapping[int, str]): Names by index.

    Examples:
        >>> unite({0: "cat", 1: "dog"}, {0: "cow", 1: "Dog"})
        {0: 'cat', 1: 'dog', 2: 'cow'}
    """
    known = {match_key(name) for name in first.values()}
    return dict(enumerate([*first.values(), *(name for name in second.values() if match_key(name) not in known)]))


def kept_feature_weight(student: Any, teacher: Teacher, args: Any) -> float:
    """Return the weight of `kd_feat` for a run with `kd_keep` that names none.

    Class and box terms hold the student where the teacher sees objects. Classes that the new images do not show are
    forgotten all the same, as the features below the head move. Where the student begins as its teacher, the feature
    term holds them in place. Features of another teacher are others, to which the old class rows do not fit.

    Args:
        student (nn.Module): The student, with the weights that it begins with.
        teacher (Teacher): The teacher.
        args (Namespace): Arguments of the training. The weight is for the default `kd_feat_loss`. Frozen features need
            no term.
    """
    body = student.model[:-1]
    frozen = set(range(args.freeze) if isinstance(args.freeze, int) else args.freeze or ())
    if args.kd_feat_loss != ARGUMENTS["kd_feat_loss"].default or frozen.issuperset(range(len(body))):
        return 0.0
    if teacher.layout is None or not isinstance(teacher.original, BaseModel):
        return 0.0
    own, theirs = body.state_dict(), teacher.original.model[:-1].state_dict()
    alike = own.keys() == theirs.keys() and all(
        v.shape == theirs[k].shape and v.equal(theirs[k].to(v)) for k, v in own.items()
    )
    return FEATURES if alike else 0.0
