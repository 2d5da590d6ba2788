"""The base of all teachers: from a batch of images to an answer in the student's classes."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import get_flops, get_num_params

from ..errors import ModelError
from ..outputs import Branch, FeatureLayout, Layout
from .answers import Reads
from .class_map import ClassMap, match_classes
from .detections import Detections, Thresholds
from .finite import FiniteCheck

FINGERPRINT = "kd_fingerprint"  # key in the file that a run saves of a prompted teacher: its fingerprint


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers, which does not depend on their file.

    Args:
        model (nn.Module): The model.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Teacher:
    """A frozen model that answers batches of images.

    A call runs the model (`_run`), checks that its outputs (`_tensors`) are finite, and converts them to the student's
    classes (`_answer`). Each kind of teacher implements these three, and `_prepare`, which makes the model that runs.

    A teacher is not an nn.Module. So a trainer or a loss can hold it, and its weights stay out of state dicts,
    optimizers, the EMA, checkpoints and DDP buckets.

    Attributes:
        original (Any): The model as it was given, for validation and for saving beside a run; None if there is none.
        source (str): Where it came from.
        task (str): Its task.
        names (dict[int, str]): Its class names.
        channels (int): Channels of the images that it reads.
        layout (Layout | None): Layout of its head, if it predicts at anchor points.
        maps (list[FeatureLayout]): Feature maps that it offers, one entry for each model behind it.
        classes (ClassMap | None): How its classes teach the student's; set by `match`.
        shares (list[float]): Weight of each member; they sum to 1.
        backbones (list[Teacher]): Members that teach by features alone.
        backbone_shares (list[float]): Weight of each backbone; they sum to 1.
        model (Any): The model that runs; set by `prepare`.
        dtype (torch.dtype): Precision that it runs in.
    """

    original: Any = None
    channels: int = 3
    trained_imgsz: int | None = None  # image size that it was trained at, if its checkpoint tells
    fixed_imgsz: int | None = None  # side of the only images that it reads, in pixels; others are scaled to it
    scratch_data: str | None = None  # data set that it was trained on from random weights, if its checkpoint tells
    layout: Layout | None = None
    model: Any = None
    ready: bool = False  # whether `prepare` was called
    portable: bool = True  # whether a run can save it, or refer to it by name
    follows_student: bool = False  # whether it is made from the student
    own_precision: bool = False  # whether it ignores the requested precision
    answers_separately: bool = False  # whether its answer is a list with one answer for each member
    can_validate: bool = False  # whether `validator_model` returns a model
    checks_at_once: bool = False  # whether each answer is checked before it is used, even at the cost of a device sync
    float32_advice: str = "its weights are broken, give others"  # in the error about NaN or Inf in float32

    def __init__(self, original: Any, source: str, task: str, names: Mapping[int, str]):
        """Store a float32 model; each argument becomes the attribute of the same name."""
        self.original, self.source, self.task, self.names = original, source, task, dict(names)
        self.classes: ClassMap | None = None
        self.maps: list[FeatureLayout] = []
        self.shares: list[float] = [1.0]
        self.backbones: list[Any] = []
        self.backbone_shares: list[float] = []
        self.dtype = torch.float32
        self._reads = Reads()
        self._fall_back = False
        self._check = FiniteCheck()
        self._factor: Tensor | None = None
        self._parameters, self._hash = 0, ""

    # Before training --------------------------------------------------------------------------------------------------
    def inspect(self) -> None:
        """Inspect the model and its names, before anything is downloaded or written.

        Raises:
            KDError: If it cannot teach.
        """

    def _check_names(self, nc: int) -> None:
        """Raise unless each of `nc` classes has a name."""
        if len(self.names) != nc:
            reason = f"scores {nc} classes and has {len(self.names)} `names`: give it one for each, in the same order."
            raise ModelError(self.source, reason)

    def match(
        self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None, single_cls: bool = False
    ) -> None:
        """Match its classes with the student's, as `match_classes` does.

        Raises:
            KDError: If no class matches, or the map has an unknown name.
        """
        self.classes = match_classes(names, self.names, spec, keep, single_cls, f"teacher={self.source}")

    def follow(self, student: nn.Module, current: Callable[[], nn.Module]) -> None:
        """Take the student's layout, if the teacher is made from the student.

        Args:
            student (nn.Module): The student.
            current (Callable): Returns the student's moving average, or the student until there is one.
        """

    def prepare(
        self,
        device: torch.device,
        reads: Reads | None = None,
        dtype: torch.dtype = torch.float32,
        fall_back: bool = False,
        compile: bool | str = False,
    ) -> Teacher:
        """Make the model that runs: frozen, fused, on its device, and without outputs that no term reads.

        Args:
            device (torch.device): Where it runs.
            reads (Reads, optional): What the terms read; everything if None.
            dtype (torch.dtype): Precision that it runs in.
            fall_back (bool): Whether it continues in float32 after NaN or Inf in `dtype`.
            compile (bool | str): Whether to compile it, or `torch.compile`'s mode.

        Raises:
            KDError: As `inspect` does.
        """
        self.inspect()
        self._device, self._reads, self._compile, self._fall_back = device, reads or Reads(), compile, fall_back
        self._prepare_in(dtype)
        self.ready = True
        return self

    def _prepare_in(self, dtype: torch.dtype) -> None:
        """Make the model that runs, in a precision."""
        self.dtype = torch.float32 if self.own_precision else dtype
        self._check = FiniteCheck(delayed=self._device.type == "cuda" and not self.checks_at_once)
        self._prepare(self._device, self._reads, self.dtype, self._compile)

    def _prepare(self, device: torch.device, reads: Reads, dtype: torch.dtype, compile: bool | str) -> None:
        """Make the model that runs; the arguments are those of `prepare`."""
        raise NotImplementedError

    # Every batch ------------------------------------------------------------------------------------------------------
    def __call__(self, images: Tensor) -> Any:
        """Return the teacher's answer in the student's classes, without gradient.

        Args:
            images (Tensor): Images of shape (B, C, H, W) in [0, 1], the same pixels that the student sees.

        Raises:
            KDError: If its outputs are not finite.
        """
        return self._answer(self.run(images), images)

    def answer_for_any_size(self, images: Tensor) -> Any:
        """Return an answer that also fits the same images at another size.

        This is the usual answer of a classifier, whose logits are those of the whole image, and of a teacher that
        predicts a set, whose boxes are shares of the image. A teacher with anchor points overrides it.

        Args:
            images (Tensor): Images of shape (B, C, H, W) in [0, 1].

        Raises:
            KDError: If its outputs are not finite.
        """
        return self(images)

    def detect(self, images: Tensor, thresholds: Thresholds) -> tuple[list[Detections], list[list[Tensor]]]:
        """Return detections in the teacher's own classes, and the feature maps that are read.

        Args:
            images (Tensor): Images of shape (B, C, H, W) in [0, 1].
            thresholds (Thresholds): Which detections are kept.

        Returns:
            detections (list[Detections]): Detections of each image, in pixels.
            features (list[list[Tensor]]): Feature maps of each model behind the teacher.
        """
        return self._detections(self.run(images), images, thresholds)

    def run(self, images: Tensor) -> Any:
        """Return the model's raw outputs, checked for NaN and Inf.

        If there are any, the teacher goes on in float32: from this batch on, or from the next one where the check is
        delayed (`FiniteCheck`).

        Raises:
            KDError: If there are any, and float32 is not allowed or does not help.
        """
        while True:
            raw = self._run(images)
            tensors = self._tensors(raw)
            if self._check(tensors):
                break
            self._use_float32()
        self._factor = self._zero_nonfinite(tensors)
        return raw

    def _run(self, images: Tensor) -> Any:
        """Return the model's raw outputs."""
        raise NotImplementedError

    def _tensors(self, raw: Any) -> list[Tensor]:
        """Return the floating-point tensors in raw outputs."""
        raise NotImplementedError

    def _answer(self, raw: Any, images: Tensor) -> Any:
        """Return the answer in the student's classes."""
        raise NotImplementedError

    def _detections(
        self, raw: Any, images: Tensor, thresholds: Thresholds
    ) -> tuple[list[Detections], list[list[Tensor]]]:
        """Return the result of `detect` from raw outputs."""
        raise NotImplementedError

    def _use_float32(self) -> None:
        """Prepare the model again in float32, after NaN or Inf in another precision.

        Raises:
            KDError: If it already runs in float32, or the user set the precision.
        """
        fault = f"returned NaN or Inf in {str(self.dtype).removeprefix('torch.')}"
        if self.dtype is torch.float32:
            raise ModelError(self.source, f"{fault}: {self.float32_advice}.")
        if not self._fall_back:
            raise ModelError(self.source, f"{fault}: use kd_precision=fp32.")
        LOGGER.warning(f"teacher={self.source} {fault}: it continues in float32.")
        self._prepare_in(torch.float32)

    def _zero_nonfinite(self, tensors: list[Tensor]) -> Tensor | None:
        """Zero non-finite outputs whose check is delayed; return a 0/1 factor for the loss, None if none is needed.

        A delayed check finds them one batch late. Without the zeros they would make the student's whole gradient NaN,
        and the step would be lost for the labels too.
        """
        finite = self._check.pending
        if finite is None or self.dtype is torch.float32 or not self._fall_back:
            return None  # checked already, or the next check ends the run
        for x in tensors:
            torch.nan_to_num_(x, 0.0, 0.0, 0.0)
        return finite.float()

    @property
    def finite_factor(self) -> Tensor | None:
        """Factor for the terms of the last answer: 0 if an output was not finite, else 1; None if all were checked."""
        factors = [member._factor for member in self.members if member._factor is not None]
        return torch.stack(factors).prod() if factors else None

    def _map_classes(self, branch: Branch) -> Branch:
        """Return a branch with the logits of the student's taught classes, if a term reads them."""
        assert self.classes is not None
        read = branch.scores.shape[-1]
        return replace(branch, scores=self.classes.map_scores(branch.scores)) if read else branch

    def _read_maps(self, features: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
        """Return the feature maps that a term reads, from those of all strides."""
        return [f for f, s in zip(features, strides) if s in self._reads.features]

    # Around training --------------------------------------------------------------------------------------------------
    def __deepcopy__(self, memo: dict) -> Teacher:
        """Return itself: copies of an object that holds a teacher share it."""
        return self

    def unprepared_copy(self) -> Teacher:
        """Return an unprepared teacher with the same model and classes; this one does not change."""
        twin = copy(self)
        twin.model, twin.ready = None, False
        return twin

    @property
    def members(self) -> list[Teacher]:
        """The teachers behind the answer; itself alone unless there are several."""
        return [self]

    @property
    def predictor(self) -> Teacher:
        """The teacher whose predictions are compared; itself unless it stands beside backbones."""
        return self

    @property
    def name(self) -> str:
        """Short name: the name of its file, or the type of the object."""
        return Path(self.source).name

    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights as they were given, which does not depend on their file."""
        if not self._hash:
            self._hash = hash_weights(self.original)
        return self._hash

    def release(self) -> None:
        """Free the memory of the weights; names, classes and sizes stay."""
        self._parameters = self.parameters()
        self.original = self.model = None
        self.ready = False
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def parameters(self) -> int:
        """Return the number of parameters, 0 if it is unknown."""
        return get_num_params(self.original) if isinstance(self.original, nn.Module) else self._parameters

    def gflops(self, imgsz: int) -> float:
        """Return the GFLOPs at an image size, 0 if they are unknown."""
        return get_flops(self.original, imgsz) if isinstance(self.original, nn.Module) else 0.0

    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a model that Ultralytics' validator scores on the student's `nc` classes; the teacher stays as it is.

        Raises:
            NotImplementedError: If `can_validate` is False.
        """
        raise NotImplementedError(f"teacher={self.source} cannot be validated")
