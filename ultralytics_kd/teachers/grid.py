"""A teacher with a YOLO head of detection, instance segmentation, pose or rotated boxes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from .. import outputs
from ..outputs import ONE2MANY, Branch
from .answers import Answer
from .base import Teacher
from .detections import Detections, Sieve, suppress
from .inference import lean_copy, portions
from .validation import ScoredGrid, padded_for


class GridTeacher(Teacher):
    """A model with a YOLO head, which answers anchor point by anchor point.

    Attributes:
        model (nn.Module | None): What runs: frozen, fused, in its precision, without what nobody reads.
        head (Detect | None): The frozen head in float32, for terms that go on from inside it.
    """

    model: Any = None
    head: Any = None

    def inspect(self) -> None:
        """Look at the model's head and names.

        Raises:
            KDError: If the head lost a branch, or there is not a name for each class.
        """
        self.layout = outputs.layout(self.original)
        self.maps = [self.layout.maps]
        self.channels = outputs.first_conv(self.original).in_channels
        self._check_names(self.layout.nc)

    def _build(self, dtype: torch.dtype) -> None:
        """Make the model that runs, in a precision."""
        assert self.layout is not None
        every = dict.fromkeys(self.layout.branches, (outputs.SCORES, outputs.BOXES))
        parts = every if self._reads.parts is None else self._reads.parts
        self._strides = tuple(self._reads.strides or self.layout.strides)
        self.model, self.head = lean_copy(
            self.original, parts, self._device, dtype, self._compile, strides=self._strides
        )
        super()._build(dtype)

    def __call__(self, images: Tensor) -> Answer:
        """Return the teacher's raw outputs in the student's classes, of the levels that are read."""
        assert self.classes is not None
        raw = self.raw(images)
        branches = {name: self._map_classes(branch) for name, branch in raw.items()}
        features = self._wanted(next(iter(raw.values())).feats, self._strides)
        return Answer(branches, self.classes.taught(images.device), self, [features])

    def raw(self, images: Tensor) -> dict[str, Branch]:
        """Return the teacher's raw outputs in its own classes, without gradient.

        Raises:
            KDError: If the first answer is not finite.
        """
        return self._run_checked(images)

    def answer(self, images: Tensor, sieve: Sieve) -> tuple[list[Detections], list[list[Tensor]]]:
        """Return the detections of the one2many branch in every image, and the maps that are read."""
        assert self.layout is not None
        branch = self.raw(images)[ONE2MANY]
        return suppress(branch, self.layout.only(self._strides), sieve), [self._wanted(branch.feats, self._strides)]

    def _run(self, images: Tensor) -> dict[str, Branch]:
        """Return the model's outputs, in its own precision whatever autocast says."""
        assert self.layout is not None
        shape = images.shape[-2], images.shape[-1]
        images = padded_for(images, max(self.layout.strides))  # a head with a coarser level than the student's
        padded = images.shape[-2], images.shape[-1]
        first = outputs.first_conv(self.original)
        # Not `inference_mode`: its tensors cannot be saved for the student's backward pass, and it measured no faster
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            parts = [self.model(part.to(self.dtype)) for part in portions(images, first, self.dtype.itemsize)]
        out = outputs.join([outputs.branches(part) for part in parts])
        if padded != shape:
            out = {name: outputs.crop(b, self._strides, shape, padded) for name, b in out.items()}
        return out

    @staticmethod
    def _numbers(answer: dict[str, Branch]) -> list[Tensor]:
        """Return all tensors of an answer."""
        said = [x for b in answer.values() for x in (b.scores, b.boxes, *b.extras.values())]
        return [*said, *next(iter(answer.values())).feats]  # which all branches share

    def finish(self, branch: str, stems: dict[str, list[Tensor]], feats: list[Tensor]) -> Branch:
        """Return what the frozen head makes of features from inside the student's head, with gradient to them."""
        return self._map_classes(outputs.finish_towers(self.head, branch, stems, feats, self.levels))

    @property
    def levels(self) -> list[int]:
        """Index in the head of each level that is read."""
        assert self.layout is not None
        return [self.layout.strides.index(s) for s in self._strides]

    def _let_go(self) -> None:
        """Drop what `prepare` made."""
        self.model = self.head = None

    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a copy of the model that answers in the student's classes."""
        assert self.classes is not None and self.layout is not None
        model: Any = deepcopy(self.original)
        if not self.classes.identity:
            outputs.map_head_classes(model, self.classes.all_scores, nc)
            model.names = dict(names)
        # The student's val images are padded for its own strides, a multiple of 32 at least
        return ScoredGrid(self, model, nc, names) if max(self.layout.strides) > 32 else model
