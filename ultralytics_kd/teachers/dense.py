"""Teachers of classification, semantic segmentation and depth: one tensor for the whole image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import outputs
from ..errors import KDError, first_line
from .answers import DenseAnswer
from .base import Teacher
from .class_map import ClassMap
from .inference import fused_copy, placed
from .validation import Scored


class DenseTeacher(Teacher):
    """A classifier, from wherever it comes, a semantic segmenter or a depth estimator.

    Attributes:
        model (nn.Module | None): What runs.
    """

    model: Any = None
    imgsz: int | None = None  # side of the images that it can read, if it is only one
    mean: Sequence[float] | None = None  # of the images that it was trained with, by which they are normalised
    std: Sequence[float] | None = None

    def inspect(self) -> None:
        """Look at the model's head and names.

        Raises:
            KDError: If it does not answer as a model of its task does, or there is not a name for each class.
        """
        if self.maps:
            return
        self._take_preprocessing()
        side = self.imgsz or outputs.SIDE
        try:
            said, self.channels = outputs.look(self.original, side=side)
            value = outputs.dense_output(self.task, said)
        except Exception as e:  # a model from elsewhere may raise whatever it likes
            raise KDError(f"teacher={self.source} cannot read an image of {side} px: {first_line(e)}") from e
        needed = "(images, classes)" if self.task == "classify" else "(images, channels, height, width)"
        if not isinstance(value, Tensor) or value.ndim != (2 if self.task == "classify" else 4):
            shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise KDError(f"teacher={self.source} returns {shape}, and of task '{self.task}' {needed} is needed.")
        if self.task != "depth":
            self._check_names(value.shape[1])
        for name, given in (("mean", self.mean), ("std", self.std)):
            if given is not None and len(given) not in {1, self.channels}:
                raise KDError(
                    f"teacher={self.source} has a `{name}` of {len(given)} numbers for {self.channels} channels."
                )
        self.maps = [outputs.dense_maps(self.original, self.task, self.channels, side)]

    def _take_preprocessing(self) -> None:
        """Take note of how a classifier from elsewhere wants its images: of timm's description, or its attributes."""
        described = getattr(self.original, "pretrained_cfg", None) or {}
        self.mean, self.std = (self._numbers_of(name, described.get(name)) for name in ("mean", "std"))
        if (self.mean is None) != (self.std is None):
            raise KDError(f"teacher={self.source} has one of `mean` and `std`: give both, or none.")
        if described.get("fixed_input_size"):
            self.imgsz = int(described["input_size"][-1])
        elif isinstance(getattr(self.original, "image_size", None), int):  # torchvision's vision transformers
            self.imgsz = self.original.image_size

    def _numbers_of(self, name: str, otherwise: Any) -> list[float] | None:
        """Return an attribute of the model that is a number or several, or what there is otherwise."""
        given = getattr(self.original, name, None)
        given = otherwise if given is None or callable(given) else given
        try:
            return None if given is None else torch.as_tensor(given, dtype=torch.float32).flatten().tolist()
        except (TypeError, ValueError, RuntimeError) as e:
            raise KDError(f"teacher={self.source} has a `{name}` that is no list of numbers.") from e

    def match(self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None) -> None:
        """Match its classes with the student's; depth has none.

        Raises:
            KDError: If there is nothing to learn from the match, or depth is given one.
        """
        if self.task == "depth":
            if not (isinstance(spec, str) and spec.lower() == "auto"):
                raise KDError("'kd_classes' has no use for depth, which has no classes: drop it.")
            self.classes = ClassMap({i: (i,) for i in names}, dict(names), dict(names))
        else:
            super().match(names, spec, keep)
            check_exclusive(self.classes, self.source)

    def _build(self, dtype: torch.dtype) -> None:
        """Make the model that runs, in a precision."""
        model: Any = self.original
        own = callable(getattr(model, "fuse", None))  # Ultralytics'
        model = fused_copy(model) if own else deepcopy(model).float().eval().requires_grad_(False)
        self._seen: list[list[Tensor]] = []
        if self._reads.features:
            self._ears = outputs.tapped(model, self._seen.append, self.imgsz or outputs.SIDE)
            self._ears.__enter__()
        if self.task == "depth":
            self._calibration = [x.to(self._device) for x in outputs.calibration(self.original)]
        self.model = placed(model, self._device, dtype, self._compile)
        super()._build(dtype)

    def __call__(self, images: Tensor) -> DenseAnswer:
        """Return the answer in the student's classes."""
        assert self.classes is not None
        value, features = self._run_checked(images)
        if self.task == "depth":
            calibration = (x.to(value) for x in self._calibration)
            said = outputs.uncalibrated(value, *calibration)
            return DenseAnswer(outputs.within_limits(value, said), None, [features])
        value = outputs.map_channels(self.classes.map_exclusive, value)
        return DenseAnswer(value, self.classes.taught(images.device), [features])

    def _run(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits or depth in float32, and the feature maps that are read."""
        images = self._normalised(images.float())
        self._seen.clear()
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            own = callable(getattr(self.original, "fuse", None))
            out = self.model(images.to(self.dtype, copy=not own))  # one from elsewhere may change what it is given
        maps = self._seen[-1] if self._seen else []
        self._seen.clear()
        return outputs.dense_output(self.task, out).float(), self._wanted(maps, self.maps[0].strides)

    def _normalised(self, images: Tensor) -> Tensor:
        """Return images as the model was trained with."""
        if self.imgsz and images.shape[-2:] != (self.imgsz, self.imgsz):
            images = F.interpolate(images, (self.imgsz, self.imgsz), mode="bilinear", align_corners=False)
        if self.mean is None or self.std is None:
            return images
        mean, std = (images.new_tensor(list(v)).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    @staticmethod
    def _numbers(answer: tuple[Tensor, list[Tensor]]) -> list[Tensor]:
        """Return all tensors of an answer."""
        return [answer[0], *answer[1]]

    def _let_go(self) -> None:
        """Drop what `prepare` made."""
        self.model = None

    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a copy that answers in the student's classes."""
        assert self.classes is not None
        if self.task == "depth" and callable(getattr(self.original, "fuse", None)):
            return deepcopy(self.original)
        return ScoredDense(self, nc, names)


def check_exclusive(classes: ClassMap | None, source: str) -> None:
    """Check that there is something to learn from a softmax over the classes that both know.

    Args:
        classes (ClassMap | None): The match.
        source (str): Where the teacher came from.

    Raises:
        KDError: If it is one class of several, which is always certain among itself.
    """
    if classes is not None and len(classes.student) == 1 < len(classes.student_names):
        raise KDError(
            f"teacher={source} knows one of the {len(classes.student_names)} classes that are learnt here, and what it "
            "says of one class alone is nothing: give a teacher, kd_classes or classes with more of them."
        )


class ScoredDense(Scored):
    """A copy of a teacher's model, in float32."""

    def __init__(self, teacher: DenseTeacher, nc: int, names: Mapping[int, str]):
        """Copy the model.

        Args:
            teacher (DenseTeacher): The teacher.
            nc (int): The student's number of classes.
            names (Mapping[int, str]): Their names.
        """
        super().__init__(teacher, getattr(teacher.original, "stride", torch.tensor([32.0])), nc, names)
        self.inner: Any = deepcopy(teacher.original).float().eval()
        self._normalise, self._classes = teacher._normalised, teacher.classes

    def forward(self, images: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return what the teacher says in the student's classes."""
        out = outputs.dense_output(self.task, self.inner(self._normalise(images)))
        assert self._classes is not None
        mapped = outputs.map_channels(partial(self._classes.all_scores, exclusive=True), out)
        return mapped.softmax(1) if self.task == "classify" else mapped


def average(answers: list[DenseAnswer], shares: list[float], task: str) -> DenseAnswer:
    """Return the mean of the answers of several teachers of the same classes: of probabilities, or of log-depth.

    Logits keep their mean height, which no softmax over classes sees, but one over places does.

    Args:
        answers (list[DenseAnswer]): An answer of each.
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
        logs = (weights * depths.where(known, 1.0).clamp(min=1e-3).log()).sum(0) / weights.sum(0)
        return DenseAnswer(logs.exp().where(known.any(0), torch.inf), None, features)
    several = values[0].shape[1] > 1  # one class is scored by a sigmoid
    mean = torch.stack([share * (v.softmax(1) if several else v.sigmoid()) for v, share in zip(values, shares)]).sum(0)
    if not several:
        return DenseAnswer(torch.logit(mean, eps=1e-6), answers[0].classes, features)
    height = torch.stack([share * v.logsumexp(1, keepdim=True) for v, share in zip(values, shares)]).sum(0)
    logits = mean.clamp(min=1e-9).log() + height
    return DenseAnswer(logits, answers[0].classes, features)
