"""Sources of the answer to a batch: a teacher that runs beside the student, or a cache of stored answers.

Both put the answer under "teacher" into the batch, where the distillation loss finds it.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import LOCAL_RANK

from ..cache import augmentation, scales
from ..cache.answers import StoredAnswers
from ..cache.dataset import AnsweredDataset
from ..cache.manifest import Manifest
from ..cache.store import Store
from ..config.teacher_size import student_size
from ..distillation.loss import FINITE_FACTOR, LABELED
from ..errors import KDError
from ..teachers import SetAnswer, Teacher, sizes
from ..teachers.class_map import ClassMap
from .images.unlabeled_images import AnsweredUnlabeledImages, UnlabeledImages

COPY = "answers"  # subfolder of the run's folder: a copy of stored answers if the cache folder is read-only
SAMPLED = 257  # step between the compared values of a val batch; a prime step reaches all columns of an image
VAL_BYTES = 2**30  # memory for the answers to val batches; an answer that does not fit is computed in every epoch


class AnsweredImages:
    """Tells whether the answer in a batch still belongs to its images, which user code may have changed."""

    def __init__(self) -> None:
        """Start without images."""
        self._images: Callable[[], Tensor | None] = lambda: None
        self._version = 0

    def note(self, images: Tensor) -> None:
        """Keep a weak reference to the images of the last answer, and their version, which in-place changes raise."""
        self._images, self._version = weakref.ref(images), images._version

    def are(self, images: Tensor) -> bool:
        """Return whether these are the images of the last answer, unchanged."""
        return self._images() is images and self._version == images._version


class LiveTeacher:
    """A teacher that runs on the same images as the student.

    Attributes:
        teacher (Teacher): The teacher.
        passed_through (str | None): User code that batches pass through, such as a `preprocess_batch`.
    """

    answers_val = True  # whether `add_val_answer` adds answers, if the teacher is not the student itself

    def __init__(self, teacher: Teacher):
        """Take a teacher; it answers once it is prepared."""
        self.teacher = teacher
        self.passed_through: str | None = None
        self._answered_images = AnsweredImages()
        self._val_answers = ValAnswers()

    def add_answer(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the teacher's answer to a training batch unless it has the answer to these images; return the batch.

        Args:
            batch (dict): Prepared images under "img". The answer goes to "teacher". On a GPU in half precision with
                `kd_precision=auto`, a factor for the terms goes to "kd_finite_factor": 1 if the answer is finite, else
                0. The host reads it one batch later.
        """
        images: Tensor = batch["img"]
        if "teacher" in batch and self._answered_images.are(images):
            return batch
        if self.teacher.ready:  # quantization calibrates the student before the teacher runs
            batch |= self._answer_batch(batch)
            self._answered_images.note(images)
        return batch

    def add_val_answer(self, batch: dict[str, Any], keep_features: bool) -> None:
        """Add the teacher's answer to a val batch. It is computed in the first epoch and kept for the others.

        Args:
            batch (dict): Prepared images under "img", their files under "im_file" if the task's data set gives them.
            keep_features (bool): Whether the terms compare feature maps, so that they must be kept too.
        """
        if self.teacher.ready and not self.teacher.follows_student:  # it would be the model under validation
            batch |= self._val_answers.get(batch, lambda: self._answer(batch["img"]), keep_features)

    def release(self) -> None:
        """Free the answers to val images."""
        self._val_answers = ValAnswers()

    def imgsz(self, student: Any) -> int:
        """Return the side of the images that the teacher sees, in pixels.

        Args:
            student (int | list[int]): The argument `imgsz`, in pixels.
        """
        return student_size(student)

    def size_warnings(self, imgsz: int) -> list[str]:
        """Return a sentence for each teacher that was trained at a very different image size than `imgsz`."""
        return sizes.size_warnings(self.teacher.members, imgsz)

    def _answer_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what the teacher adds to a training batch."""
        return self._answer(batch["img"])

    def _answer(self, images: Tensor) -> dict[str, Any]:
        """Return what the teacher adds to a batch of images."""
        return self._with_factor(self.teacher(images))

    def _with_factor(self, answer: Any) -> dict[str, Any]:
        """Return the entries of a batch with the teacher's last answer."""
        factor = self.teacher.finite_factor
        return {"teacher": answer} if factor is None else {"teacher": answer, FINITE_FACTOR: factor}


class ValAnswers:
    """Answers to val batches, kept in CPU memory. The teacher does not change between epochs, and images seldom do.

    A sample of the pixels is kept too. If user code augments val images, the sample differs, and the answer is computed
    again.

    Attributes:
        limit (int): Bytes that may be kept.
        used (int): Bytes that are kept.
    """

    def __init__(self, limit: int = VAL_BYTES):
        """Start without answers."""
        self.limit, self.used = limit, 0
        self._kept: dict[Any, tuple[Tensor, dict[str, Any]]] = {}

    def get(self, batch: dict[str, Any], compute: Callable[[], dict[str, Any]], keep_features: bool) -> dict[str, Any]:
        """Return the answer to a batch, kept or computed.

        Args:
            batch (dict): The batch. Without "im_file" its answer is computed every time.
            compute (Callable): Returns the answer.
            keep_features (bool): Whether feature maps are kept too; without them the answer has empty ones.
        """
        images = batch["img"]
        if "im_file" not in batch:
            return compute()
        key = (*batch["im_file"], tuple(images.shape), images.dtype)
        pixels = images.reshape(-1)[::SAMPLED].to("cpu", copy=True)
        if key in self._kept:
            known, kept = self._kept[key]
            return map_tensors(kept, lambda x: x.to(images.device)) if torch.equal(known, pixels) else compute()
        answer = compute()
        kept = answer if keep_features else _without_features(answer)
        size = sum(x.numel() * x.element_size() for x in (pixels, *_tensors(kept)))
        if self.used + size <= self.limit:
            self._kept[key] = pixels, map_tensors(kept, lambda x: x.to("cpu", copy=True))
            self.used += size
        return answer


class CachedTeacher:
    """Stored answers in place of a running teacher; the training images carry them.

    Attributes:
        store (Store): The cache.
        manifest (Manifest): The teachers of the cache and the settings of their answers.
        classes (ClassMap): Match of the stored classes to the student's.
        passed_through (str | None): User code that batches pass through, such as a `preprocess_batch`.
    """

    answers_val = False  # a cache holds no answers to val images

    def __init__(self, store: Store, classes: ClassMap, teacher: Teacher, made: bool = False):
        """Take a cache whose classes are matched, and its teacher; `made` is whether this process made the cache."""
        self.store, self.classes = store, classes
        self.passed_through: str | None = None
        self._answered_images = AnsweredImages()
        self.manifest: Manifest = store.manifest()
        self._teacher, self._made = teacher, made
        self._copy: Path | None = None

    def imgsz(self, student: Any) -> int:
        """Return the side of the images that the teacher answered, in pixels."""
        return self.manifest.imgsz

    def adopt(self, dataset: Any, imgsz: int, folder: Path) -> None:
        """Make a training data set carry the stored answers through all its augmentation.

        Args:
            dataset (YOLODataset): The data set; it is changed.
            imgsz (int): Image size of the training in pixels.
            folder (Path): Folder of the run. A copy of the answers goes there if the cache folder cannot be written to.

        Raises:
            KDError: If the class of the data set or one of its augmentations is not supported.
        """
        kind = AnsweredUnlabeledImages if type(dataset) is UnlabeledImages else AnsweredDataset
        kind.check(dataset)
        self._copy = folder / COPY
        kind.adopt(dataset, StoredAnswers(self.store, dataset.im_files, self.classes, imgsz, self._copy))

    def adopt_from(self, loader: Any, imgsz: int, folder: Path) -> None:
        """Adopt the data set of a loader if a user's trainer built it without answers, and check the loader.

        Args:
            loader (DataLoader): The loader; its workers start again, because they have copies of the data set.
            imgsz (int): Image size of the training in pixels.
            folder (Path): Folder of the run.

        Raises:
            KDError: As `adopt` and `check_loader` do.
        """
        dataset: Any = getattr(loader, "dataset", None)
        if not isinstance(dataset, AnsweredDataset):
            self.adopt(dataset, imgsz, folder)
            if getattr(loader, "collate_fn", None) is YOLODataset.collate_fn:
                loader.collate_fn = dataset.collate_fn
            if hasattr(loader, "reset"):
                loader.reset()
        self.check_loader(loader)

    def check_loader(self, loader: Any) -> None:
        """Raise if user code changed a loader so that it may not carry the stored answers.

        Args:
            loader (DataLoader): The training loader.

        Raises:
            KDError: If the loader has its own collate function, or if its data set has transforms or methods that are
                not Ultralytics'.
        """
        dataset: Any = getattr(loader, "dataset", None)
        if not isinstance(dataset, AnsweredDataset):
            return  # the batches will lack answers, which is an error that says so
        dataset.check_intact()
        if getattr(loader, "collate_fn", None) is not AnsweredDataset.collate_fn:
            raise KDError(
                "kd_cache needs a training loader that collates samples with the data set's own collate_fn: build it "
                "with Ultralytics' build_dataloader, or train without kd_cache."
            )
        if type(loader).__module__.partition(".")[0] not in {"ultralytics", "torch"}:
            self.passed_through = self.passed_through or type(loader).__name__

    def add_answer(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the stored answers to a training batch and return it; confidences fit the object sizes in the batch.

        Args:
            batch (dict): Prepared images, with the entries of `AnsweredDataset`. The answer goes to "teacher".

        Raises:
            KDError: If user code has dropped the stored answers or moved the labels, or may have moved images without
                labels.
        """
        if "teacher" in batch and self._answered_images.are(batch["img"]):
            return batch
        self._check_batch(batch)
        boxes, rows, images = (batch[name] for name in (augmentation.BOXES, augmentation.ROWS, augmentation.IMAGES))
        shape = tuple(batch["img"].shape[2:])
        probs, visible = scales.decode_rows(boxes, rows, self.manifest.scales, shape, self.manifest.conf)
        taught = self.classes.taught(boxes.device)
        batch["teacher"] = SetAnswer(boxes[visible], probs[visible], images[visible], taught)
        self._answered_images.note(batch["img"])
        return batch

    def _check_batch(self, batch: dict[str, Any]) -> None:
        """Raise if user code has dropped the stored answers of a batch, or if the answers may no longer fit."""
        needed = (augmentation.BOXES, augmentation.ROWS, augmentation.IMAGES, augmentation.LABELS)
        if any(name not in batch for name in needed):
            raise KDError(
                f"kd_cache: {self.passed_through or 'code around the data loader'} drops the stored answers, so the "
                "student would learn from labels alone: keep all entries of the batch, or train without kd_cache."
            )
        if self.passed_through and batch.get(LABELED) == 0:
            raise KDError(
                f"kd_cache: {self.passed_through} may move images, and without labels nothing tells whether the stored "
                "boxes still fit: augment with augmentations= (Albumentations), or train without kd_cache."
            )
        # Only after user code: Ultralytics moves no labels here, and comparing makes the host wait for a GPU
        if self.passed_through and not torch.equal(batch["bboxes"].cpu(), batch[augmentation.LABELS].cpu()):
            raise KDError(
                f"kd_cache: {self.passed_through} changes the labels' boxes, and the stored boxes would stay where "
                "they are: augment with augmentations= (Albumentations), or train without kd_cache."
            )

    def size_warnings(self, imgsz: int) -> list[str]:
        """Return a sentence for each teacher trained at a very different size than its answers, if none was logged."""
        if self._made:  # the making of the cache logged them
            return []
        return sizes.size_warnings(self._teacher.members, self.manifest.imgsz, str(self.store.folder))

    def add_val_answer(self, batch: dict[str, Any], keep_features: bool) -> None:
        """Add nothing: a cache holds no answers to val images."""

    def release(self) -> None:
        """Remove the copy of the answers in the run's folder, if there is one."""
        if self._copy is not None and LOCAL_RANK in {-1, 0}:
            shutil.rmtree(self._copy, ignore_errors=True)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor], done: dict[int, Any] | None = None) -> Any:
    """Return a copy of an answer with a function applied once to each distinct tensor.

    Args:
        value (Any): Tensors in dicts, lists, tuples and dataclasses of any depth; other objects stay as they are.
        function (Callable): Returns the new tensor.
        done (dict, optional): Results by the id of the tensor, so that shared tensors stay shared.
    """
    done = {} if done is None else done
    if isinstance(value, Tensor):
        if id(value) not in done:
            done[id(value)] = function(value)
        return done[id(value)]
    if isinstance(value, dict):
        return {key: map_tensors(each, function, done) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(each, function, done) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        # Fields with a leading underscore hold derived values, which are computed again on demand
        values = {f.name: getattr(value, f.name) for f in fields(value) if f.init and not f.name.startswith("_")}
        return type(value)(**{name: map_tensors(each, function, done) for name, each in values.items()})
    return value


def _tensors(value: Any) -> list[Tensor]:
    """Return the distinct tensors in an answer."""
    tensors: dict[int, Tensor] = {}
    map_tensors(value, lambda x: tensors.setdefault(id(x), x))
    return list(tensors.values())


def _without_features(value: Any) -> Any:
    """Return an answer without its feature maps, which take most of the memory."""
    if isinstance(value, dict) and "teacher" in value:
        return {**value, "teacher": _without_features(value["teacher"])}
    if isinstance(value, list):
        return [_without_features(each) for each in value]
    changes: dict[str, Any] = {"features": [[] for _ in value.features]}
    if hasattr(value, "branches"):
        changes["branches"] = {name: replace(branch, feats=[]) for name, branch in value.branches.items()}
    return replace(value, **changes)
