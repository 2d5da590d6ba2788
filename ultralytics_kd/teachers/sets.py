"""Teachers whose answer is a set of detections, and RT-DETR, the one among them that is Ultralytics' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywhn

from .. import outputs
from .answers import SetAnswer
from .base import Teacher
from .detections import Detections, Sieve, surest
from .inference import fused_copy, placed
from .validation import CONF, TOPK, ScoredDetector

QUERIES = Sieve(iou=1.0, topk=300)  # a set needs no suppression


class SetTeacher(Teacher):
    """A detector that answers with detections, whatever made them."""

    sieve: Sieve = Sieve()

    def __call__(self, images: Tensor) -> SetAnswer:
        """Return the detections in the student's classes."""
        assert self.classes is not None
        found, features = self.answer(images, self.sieve)
        return as_set(found, features, self.classes, self.sieve.conf, images)

    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a model that answers with the detections, and from now on with those that it is hardly sure of too."""
        self.sieve = replace(self.sieve, conf=CONF, topk=TOPK)
        return ScoredDetector(self, nc, names)


def as_set(
    found: list[Detections], features: list[list[Tensor]], classes: Any, conf: float, images: Tensor
) -> SetAnswer:
    """Return detections as an answer in the student's classes; those of other classes are left out.

    Args:
        found (list[Detections]): Detections per image, in pixels.
        features (list[list[Tensor]]): Feature maps of every model behind them.
        classes (ClassMap): Match of the detections' classes to the student's.
        conf (float): Least confidence of a taught class.
        images (Tensor): The images, shape (B, C, H, W).
    """
    height, width = images.shape[-2:]
    boxes = torch.cat([d.boxes for d in found]).float()
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor((width, height, width, height)))  # as labels end at the border
    probs = classes.map_scores(torch.cat([d.probs for d in found]).float())
    counts = torch.tensor([len(d.boxes) for d in found], device=boxes.device)
    index = torch.arange(len(found), device=boxes.device, dtype=torch.float32).repeat_interleave(counts)
    there = (boxes[:, 2:] - boxes[:, :2]).amin(1) > 0 if len(boxes) else index.bool()
    kept = ((probs.amax(1) > conf) & there).nonzero().flatten() if len(probs) else index.long()
    shares = xyxy2xywhn(boxes[kept], w=width, h=height)
    return SetAnswer(shares, probs[kept], index[kept], classes.taught(images.device), features)


class QueryTeacher(SetTeacher):
    """RT-DETR: its queries are a set of soft targets.

    Attributes:
        model (nn.Module | None): What runs.
    """

    sieve = QUERIES
    model: Any = None

    def inspect(self) -> None:
        """Look at the decoder and its inputs.

        Raises:
            KDError: If there is not a name for each class.
        """
        if self.maps:
            return
        self.channels = outputs.first_conv(self.original).in_channels
        self._check_names(outputs.find_head(self.original).nc)
        self.maps = [outputs.query_features(self.original, self.channels)]

    def _build(self, dtype: torch.dtype) -> None:
        """Make the model that runs, in a precision."""
        self.model = fused_copy(self.original)
        outputs.read_queries(self.model)
        self.model = placed(self.model, self._device, dtype, self._compile)
        super()._build(dtype)

    def _run(self, images: Tensor) -> dict[str, Any]:
        """Return queries and maps, in the model's own precision whatever autocast says."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.model(images.to(self.dtype))

    @staticmethod
    def _numbers(answer: dict[str, Any]) -> list[Tensor]:
        """Return all tensors of an answer."""
        return [answer["boxes"], answer["scores"], *answer["feats"]]

    def answer(self, images: Tensor, sieve: Sieve) -> tuple[list[Detections], list[list[Tensor]]]:
        """Return the queries that are confident of something, in pixels."""
        out = self._run_checked(images)
        height, width = images.shape[-2:]
        scale = images.new_tensor((width, height, width, height), dtype=torch.float32)
        boxes, probs = xywh2xyxy(out["boxes"].float()) * scale, out["scores"].float().sigmoid()
        found = [surest(b, p, sieve) for b, p in zip(boxes, probs)]
        return found, [self._wanted(out["feats"], self.maps[0].strides)]

    def _let_go(self) -> None:
        """Drop what `prepare` made."""
        self.model = None
