"""Teachers as models that Ultralytics' validators score on the student's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from ultralytics.utils.ops import xyxy2xywh

from .. import outputs
from ..outputs import ONE2MANY
from .answers import SetAnswer
from .base import Teacher

PADDING = 114 / 255  # the grey that Ultralytics pads images with
CONF, TOPK = 0.001, 300  # what counts for a mean average precision in Ultralytics' validation


class Scored(nn.Module):
    """What a validator asks of a model."""

    def __init__(self, teacher: Teacher, stride: Tensor, nc: int, names: Mapping[int, str]):
        """Take note of a teacher.

        Args:
            teacher (Teacher): The teacher, matched with the student's classes.
            stride (Tensor): Its strides, the coarsest of which the sides of images are multiples of.
            nc (int): The student's number of classes.
            names (Mapping[int, str]): Their names.
        """
        super().__init__()
        self.names, self.task, self.stride = dict(names), teacher.task, stride
        self.yaml = {"nc": nc, "channels": teacher.channels}

    def fuse(self, verbose: bool = False, **_: Any) -> Scored:
        """Return itself, the model inside fused if there is one that can be; other answers are given fused already."""
        inner: Any = getattr(self, "inner", None)
        if callable(getattr(inner, "fuse", None)):
            inner.fuse(verbose=False)
        return self


class ScoredGrid(Scored):
    """A model with a YOLO head that has coarser levels than the student's val images are padded for."""

    def __init__(self, teacher: Teacher, model: nn.Module, nc: int, names: Mapping[int, str]):
        """Take a copy of a teacher's model that answers in the student's classes.

        Args:
            teacher (Teacher): The teacher.
            model (nn.Module): The copy.
            nc (int): The student's number of classes.
            names (Mapping[int, str]): Their names.
        """
        super().__init__(teacher, torch.tensor([32.0]), nc, names)
        assert teacher.layout is not None
        self.inner: Any = model
        self.coarsest = max(teacher.layout.strides)

    @property
    def end2end(self) -> bool:
        """Whether the head without suppression answers; the validator chooses."""
        return getattr(self.inner, "end2end", False)

    @end2end.setter
    def end2end(self, value: bool) -> None:
        """Choose the head that answers."""
        self.inner.end2end = value

    def forward(self, images: Tensor, *_: Any, **__: Any) -> Any:
        """Return what the model says of padded images; its prototypes without what they say of the padding."""
        padded = padded_for(images, self.coarsest)
        return self._cut(self.inner(padded), images.shape, padded.shape)

    def _cut(self, said: Any, shape: Sequence[int], padded: Sequence[int]) -> Any:
        """Return maps of padded images without the part of the padding."""
        if isinstance(said, (list, tuple)):
            return type(said)(self._cut(each, shape, padded) for each in said)
        if not isinstance(said, Tensor) or said.ndim != 4:
            return said
        height, width = (said.shape[d] * shape[d] // padded[d] for d in (-2, -1))
        return said[..., :height, :width].contiguous()


def padded_for(images: Tensor, stride: int) -> Tensor:
    """Return images whose sides are multiples of a stride, with grey at their right and lower side.

    Args:
        images (Tensor): Images of shape (B, C, H, W) in [0, 1].
        stride (int): Coarsest stride of a model.
    """
    down, right = (-side % stride for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down), value=PADDING) if down or right else images


class ScoredDetector(Scored):
    """A teacher of a detector, whatever it is made of: sets of detections, or an average over grids.

    It is prepared anew at its first answer, in float32 and with all that it knows: what the terms read may be less. It
    must not be used for training after.
    """

    def __init__(self, teacher: Teacher, nc: int, names: Mapping[int, str]):
        """Take note of the teacher.

        Args:
            teacher (Teacher): A detector, matched with the student's classes.
            nc (int): The student's number of classes.
            names (Mapping[int, str]): Their names.
        """
        strides = teacher.layout.strides if teacher.layout else (32,)
        super().__init__(teacher, torch.tensor(strides, dtype=torch.float32), nc, names)
        self._teacher, self._prepared = teacher, False

    def forward(self, images: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return detections as a validator takes them, in pixels.

        Args:
            images (Tensor): Images of shape (B, C, H, W) in [0, 1].

        Returns:
            (Tensor): Of a grid, boxes as x, y, w, h and a probability for each class, shape (B, 4 + nc, anchor
                points), which still need suppression; of a set, the detections of each image as x1, y1, x2, y2,
                confidence and class, shape (B, most detections, 6), which need none.
        """
        assert self._teacher.classes is not None
        if not self._prepared:
            self._teacher.prepare(images.device)
            self._prepared = True
        answer: Any = self._teacher(images.float())
        taught = torch.tensor(self._teacher.classes.student, device=images.device)
        return self._set(answer, taught, images) if isinstance(answer, SetAnswer) else self._grid(answer, taught)

    def _grid(self, answer: Any, taught: Tensor) -> Tensor:
        """Return what every anchor point says."""
        assert self._teacher.layout is not None
        branch = answer.branches[ONE2MANY]
        boxes = xyxy2xywh(outputs.pixels(branch, self._teacher.layout))
        probs = boxes.new_zeros((*boxes.shape[:2], self.yaml["nc"]))
        probs[..., taught] = branch.scores.float().sigmoid()
        return torch.cat((boxes, probs), -1).transpose(1, 2)

    @staticmethod
    def _set(answer: SetAnswer, taught: Tensor, images: Tensor) -> Tensor:
        """Return each image's instances once for every class that they may be, most confident first."""
        found = answer.instances((images.shape[-2], images.shape[-1]))
        instance, column = (answer.probs > CONF).nonzero(as_tuple=True)
        conf = answer.probs[instance, column]
        rows = torch.cat((found.boxes[instance], conf[:, None], taught[column][:, None].to(conf)), 1)
        order = conf.argsort(descending=True)
        rows, index = rows[order], found.image[instance][order]
        return pad_sequence([rows[index == i] for i in range(len(images))], batch_first=True)
