"""Teachers that are no model of Ultralytics, as models that its validator scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywh

from .. import predictions
from ..assignment import SetAnswer
from ..detections import Sieve
from ..predictions import ONE2MANY
from .base import Reads, Teacher

CONF, TOPK = 0.001, 300  # what counts for a mean average precision in Ultralytics' validation


class ScoredDetector(nn.Module):
    """A teacher of a detector, whatever it is made of: sets of detections, or an average over grids.

    It is prepared anew at its first answer, in float32 and with all that it knows: what the terms read may be less.
    """

    task = "detect"

    def __init__(self, teacher: Teacher, nc: int, names: Mapping[int, str]):
        """Take note of the teacher.

        Args:
            teacher (Teacher): A detector, matched with the student's classes. It must not be used for training after.
            nc (int): The student's number of classes.
            names (Mapping[int, str]): Their names.
        """
        super().__init__()
        self.names, self.nc = dict(names), nc
        self.yaml = {"nc": nc, "channels": teacher.channels}
        self.stride = torch.tensor([float(max(teacher.layout.strides if teacher.layout else (32,)))])
        self._teacher, self._prepared = teacher, False

    def _prepare(self, device: torch.device) -> None:
        """Make all of the teacher run, and let it say what it is hardly sure of too."""
        layout = self._teacher.layout
        teacher: Any = self._teacher
        if isinstance(getattr(teacher, "sieve", None), Sieve):
            teacher.sieve = replace(teacher.sieve, conf=CONF, topk=TOPK)
        self._teacher.prepare(device, Reads(dict.fromkeys(layout.branches, ("scores", "boxes")) if layout else None))
        self._prepared = True

    def fuse(self, verbose: bool = False, **_: Any) -> ScoredDetector:
        """Return itself: what answers is fused already."""
        return self

    def forward(self, images: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return detections as a validator takes them, in pixels.

        Args:
            images (Tensor): Images of shape (B, C, H, W) in [0, 1].

        Returns:
            (Tensor): Of a grid, boxes as x, y, w, h and a probability for each class, shape (B, 4 + nc, anchor
                points), which still need suppression; of a set, the detections of each image as x1, y1, x2, y2,
                confidence and class, shape (B, most detections, 6), which need none.
        """
        if not self._prepared:
            self._prepare(images.device)
        answer: Any = self._teacher(images.float())
        taught = self._taught(answer.classes, images.device)
        return self._set(answer, taught, images) if isinstance(answer, SetAnswer) else self._grid(answer, taught)

    def _taught(self, classes: Tensor | None, device: torch.device) -> Tensor:
        """Return which class of the student each column of an answer stands for."""
        return torch.arange(self.nc, device=device) if classes is None else classes

    def _grid(self, answer: Any, taught: Tensor) -> Tensor:
        """Return what every anchor point says."""
        assert self._teacher.layout is not None
        branch = answer.branches[ONE2MANY]
        boxes = xyxy2xywh(predictions.pixels(branch, self._teacher.layout))
        probs = boxes.new_zeros((*boxes.shape[:2], self.nc))
        probs[..., taught] = branch.scores.float().sigmoid()
        return torch.cat((boxes, probs), -1).transpose(1, 2)

    @staticmethod
    def _set(answer: SetAnswer, taught: Tensor, images: Tensor) -> Tensor:
        """Return each image's instances once for every class that they may be, most confident first."""
        height, width = images.shape[-2:]
        instance, column = (answer.probs > CONF).nonzero(as_tuple=True)
        boxes = xywh2xyxy(answer.bboxes) * answer.bboxes.new_tensor((width, height, width, height))
        conf = answer.probs[instance, column]
        rows = torch.cat((boxes[instance], conf[:, None], taught[column][:, None].to(boxes)), 1)
        order = conf.argsort(descending=True)
        rows, index = rows[order], answer.batch_idx[instance][order]
        return pad_sequence([rows[index == i] for i in range(len(images))], batch_first=True)
