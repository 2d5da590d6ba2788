"""The teacher: resolve, load, freeze, prepare and run it."""

from __future__ import annotations

import ctypes
import gc
import hashlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.engine.model import Model
from ultralytics.nn.autobackend import check_class_names
from ultralytics.nn.tasks import guess_model_task, load_checkpoint
from ultralytics.utils import LOGGER
from ultralytics.utils.checks import check_model_file_from_stem
from ultralytics.utils.torch_utils import get_flops, get_num_params, unwrap_model

from . import predictions
from .classes import ClassMap
from .errors import KDError
from .lean import lean_copy, portions
from .predictions import Branch, Layout


@dataclass
class Answer:
    """What the teacher says about a batch; it travels to the loss as `batch["teacher"]`.

    Attributes:
        branches (dict[str, Branch]): Raw outputs per head branch, class logits already those of `classes`.
        classes (Tensor | None): Student classes that the logits stand for; None if they are all, in order.
        teacher (Teacher): The teacher, for terms that let it go on from the student's features.
    """

    branches: dict[str, Branch]
    classes: Tensor | None
    teacher: Teacher


class Teacher:
    """A frozen detection model that answers batches of images.

    It is no nn.Module on purpose: assigned to a trainer or a loss, it enters no state dict, no optimizer, no EMA, no
    checkpoint and no DDP bucket.

    Attributes:
        original (nn.Module): The model as it was given, for validation and for saving beside a run.
        source (str): Where it came from.
        task (str): Its task.
        names (dict[int, str]): Its class names.
        layout (Layout): Its head's layout.
        channels (int): Channels of the images that it reads.
        classes (ClassMap | None): How its classes teach the student's; set before use.
        model (nn.Module | None): What runs: frozen, fused, in its precision, without what nobody reads; None until
            `prepare`.
        head (Detect | None): The frozen head in float32, for terms that go on from inside it.
        dtype (torch.dtype): Precision that it runs in.
    """

    def __init__(self, source: str | Path | nn.Module):
        """Load and freeze a teacher.

        Args:
            source (str | Path | nn.Module): A name that Ultralytics downloads, a local path, a URL or `ul://` URI of
                trained weights, or a `YOLO` or model in memory (which stays untouched).

        Raises:
            KDError: If nothing that can teach is found there.
        """
        self.original = _load(source)
        self.source = str(source) if isinstance(source, (str, Path)) else f"{type(source).__name__} in memory"
        self.task = getattr(self.original, "task", None) or guess_model_task(self.original)
        self.names = _class_names(self.original)
        self.classes: ClassMap | None = None
        self.model: Any = None
        self.head: Any = None
        self.dtype = torch.float32
        self._checked = False  # whether an answer of the model that runs was found to be finite

    def inspect(self) -> None:
        """Look at the model's head and names, before anything is downloaded or written for its sake.

        Raises:
            KDError: If the model has no detection head, lost a branch of it, or has not a name for each class.
        """
        self.layout: Layout = predictions.layout(self.original)
        self.channels = predictions.first_conv(self.original).in_channels
        if len(self.names) != self.layout.nc:
            raise KDError(
                f"the teacher scores {self.layout.nc} classes and names {len(self.names)}: give its `names` one for "
                "each class, in the order of its scores."
            )

    def prepare(
        self,
        device: torch.device,
        reads: Mapping[str, Collection[str]] | None = None,
        dtype: torch.dtype = torch.float32,
        fall_back: bool = False,
        compile: bool | str = False,
    ) -> Teacher:
        """Make the model that runs: frozen, fused, on its device, and no more of it than is read.

        Args:
            device (torch.device): Where it runs.
            reads (Mapping[str, Collection[str]], optional): Parts that the terms read, of "scores" and "boxes", by head
                branch; all if None.
            dtype (torch.dtype): Precision that it runs in.
            fall_back (bool): Whether float32 takes the place of a precision in which its answers are not finite.
            compile (bool | str): Whether to compile it, or `torch.compile`'s mode.

        Raises:
            KDError: As `inspect` does.
        """
        self.inspect()
        every = dict.fromkeys(self.layout.branches, (predictions.SCORES, predictions.BOXES))
        self._device, self._reads, self._compile = device, every if reads is None else reads, compile
        self._fall_back = fall_back
        self._build(dtype)
        return self

    def _build(self, dtype: torch.dtype) -> None:
        """Make the model that runs, in a precision."""
        self.model, self.head = lean_copy(self.original, self._reads, self._device, dtype, self._compile)
        self.dtype, self._checked = dtype, False

    def __deepcopy__(self, memo: dict) -> Teacher:
        """Return itself: copies of what holds a teacher share it."""
        return self

    def __call__(self, images: Tensor) -> Answer:
        """Return the teacher's raw outputs in the student's classes.

        Args:
            images (Tensor): Images of shape (B, C, H, W) in [0, 1], the very pixels that the student sees.

        Returns:
            (Answer): Outputs without gradient.

        Raises:
            KDError: If the first answer is not finite.
        """
        assert self.classes is not None
        branches = {name: self._map_classes(branch) for name, branch in self.raw(images).items()}
        return Answer(branches, self.classes.taught(images.device), self)

    def raw(self, images: Tensor) -> dict[str, Branch]:
        """Return the teacher's raw outputs in its own classes, without gradient.

        Raises:
            KDError: If the first answer is not finite.
        """
        if not self._checked:  # once, as looking makes the host wait for the device
            self._check(images)
        return self._run(images)

    def _run(self, images: Tensor) -> dict[str, Branch]:
        """Return the model's outputs, in its own precision whatever autocast says."""
        first = predictions.first_conv(self.original)
        # Not `inference_mode`: its tensors cannot be saved for the student's backward pass, and it measured no faster
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            parts = [self.model(part.to(self.dtype)) for part in portions(images, first, self.dtype.itemsize)]
        return predictions.join([predictions.branches(part) for part in parts])

    def _check(self, images: Tensor) -> None:
        """See to it that the answers are finite numbers, in float32 if it must be.

        Raises:
            KDError: If they are not.
        """
        while not all(x.isfinite().all() for b in self._run(images).values() for x in (b.scores, b.boxes, *b.feats)):
            precision = str(self.dtype).removeprefix("torch.")
            said = f"teacher={self.source} answers in {precision} with numbers that are not finite"
            if self.dtype is torch.float32 or not self._fall_back:
                advice = "its weights are broken" if self.dtype is torch.float32 else "use kd_precision=fp32"
                raise KDError(f"{said}: {advice}.")
            LOGGER.warning(f"{said}: it runs in float32.")
            self._build(torch.float32)
        self._checked = True

    def finish(self, branch: str, stems: dict[str, list[Tensor]], feats: list[Tensor]) -> Branch:
        """Return what the frozen head makes of features from inside the student's head, with gradient to them."""
        return self._map_classes(predictions.finish_towers(self.head, branch, stems, feats))

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
        self.original = self.model = self.head = None  # type: ignore[assignment]
        _return_memory()

    def recall(self, source: str | Path) -> None:
        """Load the weights again after `release`.

        Raises:
            KDError: If they are not there any more.
        """
        self.original = _load(source)

    def parameters(self) -> int:
        """Return the number of parameters."""
        return self._parameters if self.original is None else get_num_params(self.original)

    def gflops(self, imgsz: int) -> float:
        """Return the GFLOPs at an image size."""
        return get_flops(self.original, imgsz)

    def _map_classes(self, branch: Branch) -> Branch:
        """Return a branch whose logits are those of the student's taught classes."""
        assert self.classes is not None
        if not branch.scores.shape[-1]:  # nobody reads them
            return branch
        return Branch(self.classes.map_scores(branch.scores), branch.boxes, branch.feats)


def _return_memory() -> None:
    """Give freed memory back to the system or the GPU; glibc and PyTorch would keep it for later."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError, TypeError):  # another C library, or Windows, which names none
        ctypes.CDLL(None).malloc_trim(0)


def _load(source: Any) -> nn.Module:
    """Return the model behind a teacher argument, in float32."""
    if isinstance(source, Model):
        source = source.model  # a YOLO; a string if it holds an exported file
    if isinstance(source, nn.Module):
        return deepcopy(unwrap_model(source)).float().eval()
    if not isinstance(source, (str, Path)):
        raise KDError(f"teacher={source!r} is of type {type(source).__name__}: give a path, a YOLO or a model.")
    path = str(source).strip()
    if "://" not in path:  # a URI would lose a slash
        path = str(check_model_file_from_stem(path))
    if path.lower().endswith((".yaml", ".yml")):
        raise KDError(f"teacher={source} is an untrained architecture: give trained weights (.pt).")
    if "://" not in path and Path(path).suffix.lower() != ".pt":
        raise KDError(f"teacher={source} is not a PyTorch checkpoint: give trained weights (.pt).")
    try:
        return load_checkpoint(path)[0]
    except FileNotFoundError as e:
        raise KDError(f"teacher={source} was not found: {_first_line(e)}") from e
    except Exception as e:  # whatever a damaged file makes the unpickler raise, the sentence is the same
        raise KDError(f"teacher={source} could not be read as a YOLO checkpoint: {_first_line(e)}") from e


def _class_names(model: Any) -> dict[int, str]:
    """Return a model's class names by index, from whatever form they have."""
    try:
        return check_class_names(getattr(model, "names", None) or {})
    except (KeyError, ValueError, TypeError):  # no names, or indices with gaps: prepare() counts them
        return {}


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, without Ultralytics' error mark."""
    lines = str(error).replace("ERROR ❌️ ", "").strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
