"""What every teacher is: a source of answers about batches of images, in the student's classes."""

from __future__ import annotations

import ctypes
import gc
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import get_flops, get_num_params

from ..errors import KDError
from ..outputs import Branch, FeatureLayout, Layout
from .answers import Reads
from .class_map import ClassMap, match_classes
from .detections import Detections, Sieve
from .finite import Watch


class Teacher:
    """A frozen model that answers batches of images.

    It is no nn.Module on purpose: assigned to a trainer or a loss, it enters no state dict, no optimizer, no EMA, no
    checkpoint and no DDP bucket.

    Attributes:
        original (Any): The model as it was given, for validation and for saving beside a run; None if there is none.
        source (str): Where it came from.
        task (str): Its task.
        names (dict[int, str]): Its class names.
        channels (int): Channels of the images that it reads.
        layout (Layout | None): Its head's layout if it answers anchor point by anchor point.
        maps (list[FeatureLayout]): Feature maps that it offers, one entry for every model behind it.
        classes (ClassMap | None): How its classes teach the student's; set before use.
        dtype (torch.dtype): Precision that it runs in.
    """

    original: Any = None
    channels: int = 3
    layout: Layout | None = None
    ready: bool = False  # whether `prepare` was called
    portable: bool = True  # whether it can be saved beside a run, or named there
    follows_student: bool = False  # whether it is made of the student itself
    own_precision: bool = False  # whether it runs as it likes, whatever precision and compilation are asked for
    answers_separately: bool = False  # whether several teachers answer with a list, one answer each
    waits: bool = False  # whether each answer is looked at before it is used, though the host must wait for it

    def __init__(self, original: Any, source: str, task: str, names: Mapping[int, str]):
        """Take note of a model.

        Args:
            original (Any): The model, frozen and in float32; None if there is none to hold.
            source (str): Where it came from.
            task (str): Its task.
            names (Mapping[int, str]): Its class names by index.
        """
        self.original, self.source, self.task, self.names = original, source, task, dict(names)
        self.classes: ClassMap | None = None
        self.maps: list[FeatureLayout] = []
        self.dtype = torch.float32
        self._reads = Reads()
        self._fall_back = False
        self._watch = Watch()
        self._parameters = 0
        self._sound: Tensor | None = None
        self.shares: list[float] = [1.0]  # weight of every member; they sum to 1

    def inspect(self) -> None:
        """Look at the model and its names, before anything is downloaded or written for its sake.

        Raises:
            KDError: If it cannot teach.
        """

    def _check_names(self, nc: int) -> None:
        """Raise unless there is a name for each of so many classes."""
        if len(self.names) != nc:
            raise KDError(
                f"the teacher scores {nc} classes and names {len(self.names)}: give its `names` one for each class, in "
                "the order of its scores."
            )

    def match(self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None) -> None:
        """Match its classes with the student's, as `classes.match_classes` does.

        Raises:
            KDError: If no class is matched, or the map has a name that is unknown.
        """
        self.classes = match_classes(names, self.names, spec, keep)

    def follow(self, student: nn.Module, current: Callable[[], nn.Module]) -> None:
        """Take note of the student, if the teacher is made of it.

        Args:
            student (nn.Module): The student.
            current (Callable): Returns its moving average, or the student itself as long as there is none.
        """

    def prepare(
        self,
        device: torch.device,
        reads: Reads | None = None,
        dtype: torch.dtype = torch.float32,
        fall_back: bool = False,
        compile: bool | str = False,
    ) -> Teacher:
        """Make what runs: frozen, fused where it can be, on its device, and no more of it than is read.

        Args:
            device (torch.device): Where it runs.
            reads (Reads, optional): What the terms read; all if None.
            dtype (torch.dtype): Precision that it runs in.
            fall_back (bool): Whether float32 takes the place of a precision in which its answers are not finite.
            compile (bool | str): Whether to compile it, or `torch.compile`'s mode.

        Raises:
            KDError: As `inspect` does.
        """
        self.inspect()
        self._device, self._reads, self._compile, self._fall_back = device, reads or Reads(), compile, fall_back
        self._build(dtype)
        self.ready = True
        return self

    def _build(self, dtype: torch.dtype) -> None:
        """Make what runs, in a precision, and set `dtype`."""
        self.dtype, self._watch = dtype, Watch(lags=self._device.type == "cuda" and not self.waits)

    def __call__(self, images: Tensor) -> Any:
        """Return the teacher's answer in the student's classes, without gradient.

        Args:
            images (Tensor): Images of shape (B, C, H, W) in [0, 1], the very pixels that the student sees.
        """
        raise NotImplementedError

    def answer(self, images: Tensor, sieve: Sieve) -> tuple[list[Detections], list[list[Tensor]]]:
        """Return detections per image in the teacher's own classes and in pixels, and feature maps that are read.

        Args:
            images (Tensor): Images of shape (B, C, H, W) in [0, 1].
            sieve (Sieve): Which detections are kept.
        """
        raise NotImplementedError

    def _map_classes(self, branch: Branch) -> Branch:
        """Return a branch whose logits are those of the student's taught classes."""
        assert self.classes is not None
        if not branch.scores.shape[-1]:  # nobody reads them
            return branch
        return replace(branch, scores=self.classes.map_scores(branch.scores))

    def _wanted(self, features: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
        """Return the feature maps that are read, of those of all strides."""
        return [f for f, s in zip(features, strides) if s in self._reads.features]

    def _run_checked(self, images: Tensor) -> Any:
        """Return what `_run` does, as far as it is known to be finite.

        Raises:
            KDError: If it is not, in float32 neither if that may take the place of another precision.
        """
        while True:
            answer = self._run(images)
            numbers = self._numbers(answer)
            if self._watch(numbers):
                self._sound = self._mended(numbers)
                return answer
            precision = str(self.dtype).removeprefix("torch.")
            said = f"teacher={self.source} answers in {precision} with numbers that are not finite"
            if self.dtype is torch.float32 or not self._fall_back:
                advice = "its weights are broken" if self.dtype is torch.float32 else "use kd_precision=fp32"
                advice = "it must not" if self.own_precision else advice
                raise KDError(f"{said}: {advice}.")
            LOGGER.warning(f"{said}: it runs in float32.")
            self._build(torch.float32)

    def _mended(self, numbers: list[Tensor]) -> Tensor | None:
        """Put 0 in place of what is no number in an answer that nobody has looked at yet, and return what it counts.

        Else the one batch until it is known would be lost: not only the terms, but by their gradient the labels too.
        """
        finite = self._watch.unjudged
        if finite is None or self.dtype is torch.float32 or not self._fall_back:
            return None  # looked at already, or about to end the run
        for x in numbers:
            torch.nan_to_num_(x, 0.0, 0.0, 0.0)
        return finite.float()

    @property
    def sound(self) -> Tensor | None:
        """What the last answer counts: 0 if any of it was no number, else 1, a scalar; None if that is known."""
        found = [member._sound for member in self.members if member._sound is not None]
        return torch.stack(found).prod() if found else None

    def _run(self, images: Tensor) -> Any:
        """Return the model's own answer."""
        raise NotImplementedError

    @staticmethod
    def _numbers(answer: Any) -> list[Tensor]:
        """Return the tensors in what `_run` returns."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict) -> Teacher:
        """Return itself: copies of what holds a teacher share it."""
        return self

    @property
    def members(self) -> list[Teacher]:
        """The teachers behind the answer; itself alone unless there are several."""
        return [self]

    @property
    def name(self) -> str:
        """Short name: the file's, or what kind of object it was."""
        return Path(self.source).name

    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights, whatever file they came in."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.original.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def release(self) -> None:
        """Give the weights back to memory; what was learnt about them stays."""
        self._parameters = self.parameters()
        self.original, self.ready = None, False
        self._let_go()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        with suppress(OSError, AttributeError, TypeError):  # another C library, or Windows, which names none
            ctypes.CDLL(None).malloc_trim(0)

    def _let_go(self) -> None:
        """Drop what `prepare` made."""

    def parameters(self) -> int:
        """Return the number of parameters, 0 if nobody knows."""
        return get_num_params(self.original) if isinstance(self.original, nn.Module) else self._parameters

    def gflops(self, imgsz: int) -> float:
        """Return the GFLOPs at an image size, 0 if nobody knows."""
        return get_flops(self.original, imgsz) if isinstance(self.original, nn.Module) else 0.0

    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a model that Ultralytics' validator scores on the student's val set, None if there is none.

        Args:
            nc (int): The student's number of classes.
            names (Mapping[int, str]): Their names.
        """
        return None
