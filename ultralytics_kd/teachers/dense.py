"""Teachers of classification, semantic segmentation and depth: one tensor for the whole image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.nn.tasks import BaseModel

from .. import outputs
from ..errors import KDError, ModelError, first_line
from .answers import DenseAnswer, Reads
from .base import Teacher
from .class_map import ClassMap
from .inference import fused_copy, to_device
from .validation import ValidationModel

LARGER = 2 * outputs.SIDE  # side in pixels of an image that tests whether a model of another library reads any size


class DenseTeacher(Teacher):
    """A classifier of any library, a semantic segmenter or a depth estimator.

    Attributes:
        imgsz (int | None): Side of the images that it reads, if it reads only one size.
        mean (Sequence[float] | None): Mean by which images are normalised.
        std (Sequence[float] | None): Standard deviation by which images are normalised.
    """

    can_validate = True
    imgsz: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    # Before training --------------------------------------------------------------------------------------------------
    def inspect(self) -> None:
        """Inspect the model's output for a grey image, and its names.

        Raises:
            KDError: If its output does not have the shape that its task needs, or a class has no name.
        """
        if self.maps:
            return
        self._read_preprocessing()
        side = self.imgsz or outputs.SIDE
        try:
            preds, self.channels = outputs.probe(self.original, side=side)
            value = outputs.dense_output(self.task, preds)
        except Exception as e:  # a model of another library may raise any error
            raise ModelError(self.source, f"cannot read an image of {side} px: {first_line(e)}") from e
        needed = "(images, classes)" if self.task == "classify" else "(images, channels, height, width)"
        if not isinstance(value, Tensor) or value.ndim != (2 if self.task == "classify" else 4):
            shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(self.source, f"returns {shape}, and task '{self.task}' needs {needed}.")
        if self.imgsz is None and not self._ultralytics:
            try:
                outputs.probe(self.original, self.channels, LARGER)
            except Exception:  # it reads no larger images than those that it was trained on
                self.imgsz = side
        if self.task != "depth":
            self._check_names(value.shape[1])
        for name, given in (("mean", self.mean), ("std", self.std)):
            if given is not None and len(given) not in {1, self.channels}:
                raise ModelError(self.source, f"has a `{name}` of {len(given)} numbers for {self.channels} channels.")
        self.maps = [outputs.dense_maps(self.original, self.task, self.channels, side)]

    def _read_preprocessing(self) -> None:
        """Read how a classifier normalises its images, from its attributes or from timm's configuration."""
        timm = getattr(self.original, "pretrained_cfg", None) or {}
        self.mean, self.std = (self._numbers(name, timm.get(name)) for name in ("mean", "std"))
        if (self.mean is None) != (self.std is None):
            raise ModelError(self.source, "has one of `mean` and `std`: give both, or neither.")
        if timm.get("fixed_input_size"):
            self.imgsz = int(timm["input_size"][-1])
        elif isinstance(getattr(self.original, "image_size", None), int):  # torchvision's vision transformers
            self.imgsz = self.original.image_size

    def _numbers(self, name: str, default: Any) -> list[float] | None:
        """Return a model's attribute as a list of numbers; the default if the model lacks it."""
        value = getattr(self.original, name, None)
        value = default if value is None or callable(value) else value
        try:
            return None if value is None else torch.as_tensor(value, dtype=torch.float32).flatten().tolist()
        except (TypeError, ValueError, RuntimeError) as e:
            raise ModelError(self.source, f"has a `{name}` that is not a list of numbers.") from e

    def match(
        self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None, single_cls: bool = False
    ) -> None:
        """Match its classes with the student's; depth has none.

        Raises:
            KDError: If the matched classes carry no information, or depth is given a map.
        """
        if self.task == "depth":
            if not (isinstance(spec, str) and spec.lower() == "auto"):
                raise KDError("'kd_classes' has no effect on depth, which has no classes: drop it.")
            self.classes = ClassMap({i: (i,) for i in names}, dict(names), dict(names))
        else:
            super().match(names, spec, keep, single_cls)
            check_softmax(self.classes, self.source)

    def _prepare(self, device: torch.device, reads: Reads, dtype: torch.dtype, compile: bool | str) -> None:
        """Make the model that runs, and capture the feature maps that are read."""
        if self._ultralytics:
            model = fused_copy(self.original)
        else:
            model = deepcopy(self.original).float().eval().requires_grad_(False)
        self._captured: list[list[Tensor]] = []
        self._capture = ExitStack()
        if reads.features:
            side = self.imgsz or outputs.SIDE
            self._capture.enter_context(outputs.capture_maps(model, self._captured.append, side))
        if self.task == "depth":
            self._calibration = [x.to(device) for x in outputs.calibration(self.original)]
        self.model = to_device(model, device, dtype, compile)

    @property
    def _ultralytics(self) -> bool:
        """Whether the model is one of Ultralytics'."""
        return isinstance(self.original, BaseModel)

    # Every batch ------------------------------------------------------------------------------------------------------
    def _run(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits or depth in float32, and the feature maps that are read."""
        images = self._normalize(images.float())
        self._captured.clear()
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            # A model of another library may change its input in place
            preds = self.model(images.to(self.dtype, copy=not self._ultralytics))
        maps = self._captured[-1] if self._captured else []
        self._captured.clear()
        return outputs.dense_output(self.task, preds).float(), self._read_maps(maps, self.maps[0].strides)

    def _normalize(self, images: Tensor) -> Tensor:
        """Return images resized and normalised as in the model's training."""
        if self.imgsz and images.shape[-2:] != (self.imgsz, self.imgsz):
            images = F.interpolate(images, (self.imgsz, self.imgsz), mode="bilinear", align_corners=False)
        if self.mean is None or self.std is None:
            return images
        mean, std = (images.new_tensor(list(v)).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def _tensors(self, raw: tuple[Tensor, list[Tensor]]) -> list[Tensor]:
        """Return all raw outputs."""
        return [raw[0], *raw[1]]

    def _answer(self, raw: tuple[Tensor, list[Tensor]], images: Tensor) -> DenseAnswer:
        """Return the answer in the student's classes."""
        assert self.classes is not None
        value, features = raw
        if self.task == "depth":
            uncalibrated = outputs.uncalibrated(value, *(x.to(value) for x in self._calibration))
            return DenseAnswer(outputs.within_limits(value, uncalibrated), None, [features])
        value = outputs.map_channels(self.classes.map_softmax, value)
        return DenseAnswer(value, self.classes.taught(images.device), [features])

    # After training ---------------------------------------------------------------------------------------------------
    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a copy of the model that predicts the student's classes."""
        if self.task == "depth" and self._ultralytics:
            return deepcopy(self.original)
        return DenseModel(self, nc, names)


def check_softmax(classes: ClassMap | None, source: str) -> None:
    """Raise if a softmax over the taught classes carries no information, because it is always 1.

    Args:
        classes (ClassMap | None): The match.
        source (str): Where the teacher came from.

    Raises:
        KDError: If only one class of several is taught, or all the teacher's classes teach the same one.
    """
    if classes is None or len(classes.student) != 1:
        return
    if len(classes.student_names) > 1:
        raise ModelError(
            source,
            f"knows one of the {len(classes.student_names)} classes that the student learns, and a "
            "softmax over one class carries no information: give a teacher, kd_classes or classes that share more.",
        )
    if len(classes.sources[classes.student[0]]) == len(classes.teacher_names) > 1:
        raise KDError(
            f"all classes of teacher={source} teach one class, and a softmax over one class carries no information: "
            "drop single_cls, or give another teacher."
        )


class DenseModel(ValidationModel):
    """A copy of a dense teacher's model, in float32."""

    def __init__(self, teacher: DenseTeacher, nc: int, names: Mapping[int, str]):
        """Copy the model.

        Args:
            teacher (DenseTeacher): The teacher.
            nc (int): The student's number of classes.
            names (Mapping[int, str]): Their names.
        """
        super().__init__(teacher, getattr(teacher.original, "stride", torch.tensor([32.0])), nc, names)
        self.inner: Any = deepcopy(teacher.original).float().eval()
        self._normalize, self._classes = teacher._normalize, teacher.classes

    def fuse(self, verbose: bool = False, **_: Any) -> ValidationModel:
        """Fuse the model inside, if it is Ultralytics'."""
        if isinstance(self.inner, BaseModel):
            self.inner.fuse(verbose=False)
        return self

    def forward(self, images: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return probabilities of the student's classes for a classifier, else logits or depth."""
        preds = outputs.dense_output(self.task, self.inner(self._normalize(images)))
        assert self._classes is not None
        mapped = outputs.map_channels(partial(self._classes.all_scores, softmax=True), preds)
        return mapped.softmax(1) if self.task == "classify" else mapped


def average(answers: list[DenseAnswer], shares: list[float], task: str) -> DenseAnswer:
    """Average the answers of several teachers with the same classes: their probabilities, or their log-depth.

    The resulting logits have the mean logsumexp of the teachers' logits. A softmax over classes does not depend on it,
    but a softmax over pixels does.

    Args:
        answers (list[DenseAnswer]): One answer of each teacher.
        shares (list[float]): Weight of each; they sum to 1.
        task (str): Their task.
    """
    size = answers[0].value.shape[2:]
    values = [
        a.value if a.value.shape[2:] == size else F.interpolate(a.value, size, mode="bilinear", align_corners=False)
        for a in answers
    ]
    features = [maps for a in answers for maps in a.features]
    if task == "depth":
        depths, known = torch.stack(values), torch.stack(values).isfinite()
        weights = known * depths.new_tensor(shares).view(-1, 1, 1, 1, 1)
        log_depth = (weights * depths.where(known, 1.0).clamp(min=1e-3).log()).sum(0) / weights.sum(0)
        return DenseAnswer(log_depth.exp().where(known.any(0), torch.inf), None, features)
    softmax = values[0].shape[1] > 1  # one class is scored by a sigmoid
    mean = torch.stack([share * (v.softmax(1) if softmax else v.sigmoid()) for v, share in zip(values, shares)]).sum(0)
    if not softmax:
        return DenseAnswer(torch.logit(mean, eps=1e-6), answers[0].classes, features)
    logsumexp = torch.stack([share * v.logsumexp(1, keepdim=True) for v, share in zip(values, shares)]).sum(0)
    logits = mean.clamp(min=1e-9).log() + logsumexp
    return DenseAnswer(logits, answers[0].classes, features)
