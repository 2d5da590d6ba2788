"""Foundation models of timm as teachers: they predict nothing, and teach by their features."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.utils import LOGGER

from ..errors import ModelError, first_line
from ..outputs import DENSE_TASK_OF, FeatureLayout
from .answers import DenseAnswer, Reads, SetAnswer
from .base import Teacher
from .class_map import ClassMap
from .inference import to_device

LIBRARY = "timm:"
CELLS = (3, 4)  # an image that tests whether a model reads any size: height and width in cells of the coarsest map
LARGER = (1.5, 2.0)  # another one: height and width in those of its own size
NORMALISATION = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # ImageNet's, where timm names no other
MISSING = "needs timm, which is not installed: pip install timm."


class Backbone(nn.Module):
    """A model of timm that returns maps: the patch tokens of a transformer, or the last map of each stride of a CNN.

    Attributes:
        inner (nn.Module): The model.
        indices (list[int]): Indices of the intermediate results that are returned.
        norm (bool): Whether timm applies the model's last norm layer to them; not all of its models can.
    """

    norm = True

    def __init__(self, inner: Any, indices: Sequence[int]):
        """Take a model and the indices of its intermediate results."""
        super().__init__()
        self.inner, self.indices = inner, list(indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps of shape (B, C, H, W) from normalised images (B, 3, H, W)."""
        maps: list[Tensor] = self.inner.forward_intermediates(
            images, indices=self.indices, norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )
        return maps


class BackboneTeacher(Teacher):
    """A model of timm whose features the student learns to predict. It has no classes.

    It sees the augmented images that the student sees: features of a mirrored image are not the mirrored features.

    Attributes:
        reads_grey (bool): Whether it is given grey images, as three equal channels.
        size (tuple[int, int] | None): Height and width of the images that it reads, if it reads only one size.
    """

    reads_grey = False
    size: tuple[int, int] | None = None

    def __init__(self, source: str, task: str):
        """Load a model by its name, with timm's own weights or those of a file.

        Args:
            source (str): `timm:NAME`, or `timm:NAME@FILE` with weights for it.
            task (str): The student's task.

        Raises:
            KDError: If timm is missing or has no such model, or its weights cannot be loaded.
        """
        inner = load_timm(source, num_classes=0)
        super().__init__(Backbone(inner, ()), source.strip(), task, {})
        values = inner.pretrained_cfg
        self._mean, self._std = (torch.tensor(values.get(name, default)) for name, default in NORMALISATION.items())
        height, width = values["input_size"][-2:]
        self._native = int(height), int(width)

    def inspect(self) -> None:
        """Find the model's maps.

        Raises:
            KDError: If the model has no maps.
        """
        if self.maps:
            return
        try:
            try:
                maps = self._probe(self._native)
            except AssertionError:  # Hiera and SAM 2 refuse to normalise intermediate results
                self.original.norm = False
                maps = self._probe(self._native)
        except Exception as e:  # a model of timm may raise any error
            reason = "" if isinstance(e, AttributeError) else f": {first_line(e).rstrip('.')}"
            raise ModelError(self.source, f"is a backbone without maps{reason}. Give one with feature maps.") from e
        strides = [round(self._native[1] / m.shape[-1]) for m in maps]
        last = {stride: i for i, stride in enumerate(strides) if min(maps[i].shape[-2:]) > 1}
        if not last:
            raise ModelError(self.source, "is a backbone without maps: give one whose features have positions.")
        self.original.indices = sorted(last.values())
        kept = [maps[i] for i in self.original.indices]
        self._multiple = max(last)
        self.maps = [FeatureLayout(tuple(strides[i] for i in self.original.indices), tuple(m.shape[1] for m in kept))]
        height, width = (self._nearest(side * factor) for side, factor in zip(self._native, LARGER))
        try:
            for size in ((CELLS[0] * self._multiple, CELLS[1] * self._multiple), (height, width)):
                self._probe(size)
        except Exception:  # it reads only the size that it was trained at, or no larger one
            self.size = self._native

    @torch.no_grad()
    def _probe(self, size: tuple[int, int]) -> list[Tensor]:
        """Return all maps of the model for a grey image; none if one of its results is not a map (B, C, H, W)."""
        images = torch.full((1, 3, *size), 0.5)
        maps = self.original.inner.eval().forward_intermediates(
            images, indices=None, norm=self.original.norm, output_fmt="NCHW", intermediates_only=True
        )
        return [m for m in maps if m.ndim == 4] if all(m.ndim == 4 for m in maps) else []

    def match(
        self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None, single_cls: bool = False
    ) -> None:
        """Match no class: features have none."""
        self.classes = ClassMap({}, dict(names), {})

    def _prepare(self, device: torch.device, reads: Reads, dtype: torch.dtype, compile: bool | str) -> None:
        """Make the model that runs."""
        model = deepcopy(self.original).float().eval().requires_grad_(False)
        self.model = to_device(model, device, dtype, compile)
        self._mean, self._std = (x.view(1, -1, 1, 1).to(device) for x in (self._mean, self._std))

    def _run(self, images: Tensor) -> list[Tensor]:
        """Return the maps, in the model's own precision even under autocast."""
        images = images.float().expand(-1, 3, -1, -1) if self.reads_grey else images.float()
        height, width = self.size or (self._nearest(images.shape[-2]), self._nearest(images.shape[-1]))
        if images.shape[-2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return list(self.model(((images - self._mean) / self._std).to(self.dtype)))

    def _nearest(self, side: float) -> int:
        """Return the multiple of the coarsest stride that is nearest to a side in pixels."""
        return max(round(side / self._multiple), 1) * self._multiple

    def _tensors(self, raw: list[Tensor]) -> list[Tensor]:
        """Return all maps."""
        return raw

    def _answer(self, raw: list[Tensor], images: Tensor) -> SetAnswer | DenseAnswer:
        """Return an answer with the maps and without predictions."""
        empty = images.new_zeros(0)
        if self.task in DENSE_TASK_OF.values():
            return DenseAnswer(empty, None, [raw])
        return SetAnswer(empty.view(0, 4), empty.view(0, 1), empty, None, [raw])


def names_backbone(source: Any, task: str) -> bool:
    """Return whether a `teacher` argument names a model of timm that teaches by its features.

    For a student that classifies, a model of timm with classes teaches as a classifier instead.

    Args:
        source (Any): The argument.
        task (str): The student's task.
    """
    if not isinstance(source, str) or not source.strip().startswith(LIBRARY):
        return False
    if task != "classify":
        return True
    try:
        import timm

        config = timm.get_pretrained_cfg(parts_of(source)[0])
    except Exception:  # loading the model raises the reason
        return False
    return config is not None and not config.num_classes


def parts_of(source: str) -> tuple[str, Path | None]:
    """Return the name in `timm:NAME` or `timm:NAME@FILE`, and the file.

    Examples:
        >>> parts_of("timm:resnet18")
        ('resnet18', None)
    """
    name, at, file = source.strip().removeprefix(LIBRARY).partition("@")
    return name, Path(file) if at else None


def absolute(source: Any) -> Any:
    """Return a source with an absolute path to its weights; a source without a file stays as it is.

    Args:
        source (Any): `timm:NAME@FILE`, or any other source.
    """
    if not isinstance(source, str) or not source.strip().startswith(LIBRARY):
        return source
    name, file = parts_of(source)
    return source if file is None else f"{LIBRARY}{name}@{file.resolve()}"


def load_timm(source: str, **options: Any) -> Any:
    """Return a model of timm with trained weights.

    Args:
        source (str): `timm:NAME`, whose weights timm downloads, or `timm:NAME@FILE`.
        options (Any): Options of `timm.create_model`.

    Raises:
        KDError: If timm is missing or has no such model, or its weights cannot be loaded.
    """
    name, file = parts_of(source)
    try:
        import timm
    except ImportError as e:
        raise ModelError(source, MISSING) from e
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        near = get_close_matches(name.partition(".")[0], timm.list_models(), n=3, cutoff=0.5)
        meant = f" (did you mean {', '.join(near)}?)" if near else ""
        raise ModelError(source, f"could not be loaded from timm, which has no model '{name}'{meant}.")
    if file is not None and not file.is_file():
        raise ModelError(source, f"names weights in {file}, which is no file.")
    try:
        model = _created(timm, name, {**options, "pretrained": file is None})
        if file is not None:
            _load_weights(timm, model, file)
    except Exception as e:  # timm has errors of its own, for names, downloads and files
        raise ModelError(source, f"could not be loaded from timm: {first_line(e)}") from e
    return model


def _created(timm: Any, name: str, options: dict[str, Any]) -> Any:
    """Return a model that reads images of any size, if it can."""
    try:
        return timm.create_model(name, **options, dynamic_img_size=True)
    except TypeError as e:  # most CNNs read any size and lack this option
        if "dynamic_img_size" not in str(e):
            raise
        return timm.create_model(name, **options)


def _load_weights(timm: Any, model: Any, file: Path) -> None:
    """Load a file of weights into a model; no code in the file runs.

    Raises:
        ValueError: If the file lacks some of the model's weights.
    """
    convert = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    loaded = timm.models.load_checkpoint(model, str(file), strict=False, filter_fn=convert, weights_only=True)
    if loaded is not None and loaded.missing_keys:  # None for the .npz files of Flax, whose loader checks them itself
        raise ValueError(f"{file} lacks {len(loaded.missing_keys)} of its weights, such as {loaded.missing_keys[0]}.")
    LOGGER.info(f"{file}: {len(model.state_dict())} tensors loaded.")
