"""Teachers with a YOLO head for detection, instance segmentation, pose or rotated boxes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from .. import outputs
from ..errors import ModelError
from ..outputs import ONE2MANY, Branch
from .answers import Answer, Reads, SetAnswer
from .base import Teacher
from .detections import Detections, Thresholds, suppress
from .inference import raw_output_copy
from .sets import SetTeacher, as_set
from .validation import PaddedModel

OTHER_DETECTOR = "give a YOLO model, or wrap this detector in an object with `names` and `teach`"


class GridTeacher(Teacher):
    """A model with a YOLO head, which predicts at every anchor point.

    Attributes:
        head (Detect | None): The frozen head in float32, for terms that run it on features of the student's head.
    """

    head: Any = None
    can_validate = True

    def inspect(self) -> None:
        """Inspect the model's head and names.

        Raises:
            KDError: If the head is not a YOLO head or lost a branch, or a class has no name.
        """
        if fault := outputs.head_fault(self.original):
            foreign = self.task == "detect" and type(outputs.find_head(self.original)) not in outputs.TASK_OF
            raise ModelError(self.source, f"{fault}{f': {OTHER_DETECTOR}' if foreign else ''}.")
        self.layout = outputs.layout(self.original)
        self.maps = [self.layout.maps]
        self.channels = outputs.first_conv(self.original).in_channels
        self._check_names(self.layout.nc)

    def _prepare(self, device: torch.device, reads: Reads, dtype: torch.dtype, compile: bool | str) -> None:
        """Make the model that runs."""
        assert self.layout is not None
        everything = dict.fromkeys(self.layout.branches, (outputs.SCORES, outputs.BOXES))
        parts = everything if reads.parts is None else reads.parts
        self._strides = tuple(reads.strides or self.layout.strides)
        self.model, self.head = raw_output_copy(self.original, parts, device, dtype, compile, self._strides)

    def _run(self, images: Tensor) -> dict[str, Branch]:
        """Return the model's raw outputs at the levels that are read, in its own precision even under autocast."""
        assert self.layout is not None
        shape = images.shape[-2], images.shape[-1]
        images = outputs.pad(images, max(self.layout.strides))  # its head may have a coarser level than the student's
        padded = images.shape[-2], images.shape[-1]
        # Not `inference_mode`: its tensors cannot be saved for the student's backward pass, and it was not faster
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            raw = outputs.branches(self.model(images.to(self.dtype)))
        if padded != shape:
            raw = {name: outputs.crop(b, self._strides, shape, padded) for name, b in raw.items()}
        return raw

    def _tensors(self, raw: dict[str, Branch]) -> list[Tensor]:
        """Return all raw outputs; the branches share their feature maps."""
        values = [x for b in raw.values() for x in (b.scores, b.boxes, *b.extras.values())]
        prototypes = [b.proto for b in raw.values() if b.proto is not None]
        return [*values, *prototypes, *next(iter(raw.values())).feats]

    def _answer(self, raw: dict[str, Branch], images: Tensor) -> Answer:
        """Return raw outputs with the logits of the student's taught classes."""
        assert self.classes is not None
        branches = {name: self._map_classes(branch) for name, branch in raw.items()}
        features = self._read_maps(next(iter(raw.values())).feats, self._strides)
        return Answer(branches, self.classes.taught(images.device), self, [features])

    def _detections(
        self, raw: dict[str, Branch], images: Tensor, thresholds: Thresholds
    ) -> tuple[list[Detections], list[list[Tensor]]]:
        """Return the detections of the one2many branch, and the feature maps that are read."""
        assert self.layout is not None
        branch = raw[ONE2MANY]
        detections = suppress(branch, self.layout.only(self._strides), thresholds)
        return detections, [self._read_maps(branch.feats, self._strides)]

    def answer_for_any_size(self, images: Tensor) -> SetAnswer:
        """Return the detections in the student's classes, as a teacher without anchor points answers."""
        assert self.classes is not None
        thresholds = SetTeacher.thresholds
        return as_set(*self.detect(images, thresholds), self.classes, thresholds.conf, images)

    def finish(self, branch: str, stems: dict[str, list[Tensor]], feats: list[Tensor]) -> Branch:
        """Run the rest of the frozen head on features of the student's head; the gradient reaches these features."""
        return self._map_classes(outputs.finish_towers(self.head, branch, stems, feats, self.levels))

    @property
    def levels(self) -> list[int]:
        """Index in the head of each level that is read."""
        assert self.layout is not None
        return [self.layout.strides.index(s) for s in self._strides]

    def as_detector(self) -> GridTeacher:
        """Turn a segmentation teacher into a detection teacher, in place, and return it."""
        outputs.drop_masks(self.original)
        self.task = "detect"
        return self

    def release(self) -> None:
        """Free the memory of the weights."""
        self.head = None
        super().release()

    def unprepared_copy(self) -> Teacher:
        """Return an unprepared teacher with the same model and classes."""
        twin: Any = super().unprepared_copy()
        twin.head = None
        return twin

    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a copy of the model that predicts the student's classes."""
        assert self.classes is not None and self.layout is not None
        model: Any = deepcopy(self.original)
        if not self.classes.identity:
            outputs.map_head_classes(model, self.classes.all_scores, nc)
            model.names = dict(names)
        # Val images are padded for the student's strides, so their sides are multiples of 32 or more
        return PaddedModel(self, model, nc, names) if max(self.layout.strides) > 32 else model
