"""Teachers that predict a set of detections, such as Ultralytics' RT-DETR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywhn

from .. import outputs
from ..outputs import ONE2MANY, Layout
from .answers import Answer, Reads, SetAnswer
from .base import Teacher
from .class_map import ClassMap
from .detections import Detections, Thresholds, image_of_each, most_confident, suppress
from .inference import fused_copy, to_device
from .validation import CONF, TOPK, DetectorModel


class SetTeacher(Teacher):
    """A detector that predicts a set of detections.

    Attributes:
        thresholds (Thresholds): Which detections are in its answer.
    """

    thresholds: Thresholds = Thresholds()
    can_validate = True

    def _answer(self, raw: Any, images: Tensor) -> SetAnswer:
        """Return the detections in the student's classes."""
        assert self.classes is not None
        detections, features = self._detections(raw, images, self.thresholds)
        return as_set(detections, features, self.classes, self.thresholds.conf, images)

    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a model that also predicts detections of low confidence, because average precision counts them."""
        twin: Any = self.unprepared_copy()
        twin.thresholds = replace(self.thresholds, conf=CONF, topk=TOPK)
        return DetectorModel(twin, nc, names)


def as_set(
    detections: list[Detections], features: list[list[Tensor]], classes: ClassMap, conf: float, images: Tensor
) -> SetAnswer:
    """Return detections as an answer in the student's classes, without those of classes that the student lacks.

    Args:
        detections (list[Detections]): Detections per image, in pixels.
        features (list[list[Tensor]]): Feature maps of each model behind them.
        classes (ClassMap): Match of the detections' classes to the student's.
        conf (float): Lowest confidence of a taught class.
        images (Tensor): The images, shape (B, C, H, W).
    """
    height, width = images.shape[-2:]
    corners = torch.cat([d.boxes for d in detections]).float().view(-1, 2, 2)
    x, y = corners[..., 0].clamp(0, width), corners[..., 1].clamp(0, height)  # labels end at the border too
    boxes = torch.stack((x, y), -1).view(-1, 4)
    probs = classes.map_scores(torch.cat([d.probs for d in detections]).float())
    image = image_of_each(detections, boxes.device)
    has_area = (boxes[:, 2:] - boxes[:, :2]).amin(1) > 0 if len(boxes) else image.bool()
    kept = ((probs.amax(1) > conf) & has_area).nonzero().flatten() if len(probs) else image.long()
    normalized = xyxy2xywhn(boxes[kept], w=width, h=height)
    return SetAnswer(normalized, probs[kept], image[kept], classes.taught(images.device), features)


def grid_as_set(
    answer: Answer, layout: Layout, images: Tensor, thresholds: Thresholds = SetTeacher.thresholds
) -> SetAnswer:
    """Return an answer at anchor points as a set: the detections of its one2many branch after suppression.

    Args:
        answer (Answer): The answer, with scores and boxes of that branch.
        layout (Layout): Layout of the branch.
        images (Tensor): The images, shape (B, C, H, W).
        thresholds (Thresholds): Which detections are kept.
    """
    branch = answer.branches[ONE2MANY]
    nc = branch.scores.shape[-1]
    names = dict.fromkeys(range(nc), "")
    same = ClassMap({i: (i,) for i in range(nc)}, names, names)  # the scores are those of the student's classes
    found = as_set(suppress(branch, layout, thresholds), answer.features, same, thresholds.conf, images)
    found.classes = answer.classes
    return found


class QueryTeacher(SetTeacher):
    """RT-DETR: its queries are a set of soft targets."""

    thresholds = Thresholds(iou=1.0)  # a set needs no suppression

    def inspect(self) -> None:
        """Inspect the decoder and its inputs.

        Raises:
            KDError: If a class has no name.
        """
        if self.maps:
            return
        self.channels = outputs.first_conv(self.original).in_channels
        self._check_names(outputs.find_head(self.original).nc)
        self.maps = [outputs.query_features(self.original, self.channels)]

    def _prepare(self, device: torch.device, reads: Reads, dtype: torch.dtype, compile: bool | str) -> None:
        """Make the model that runs."""
        model = fused_copy(self.original)
        outputs.use_raw_decoder(model)
        self.model = to_device(model, device, dtype, compile)

    def _run(self, images: Tensor) -> dict[str, Any]:
        """Return queries and feature maps, in the model's own precision even under autocast."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.model(images.to(self.dtype))

    def _tensors(self, raw: dict[str, Any]) -> list[Tensor]:
        """Return all raw outputs."""
        return [raw["boxes"], raw["scores"], *raw["feats"]]

    def _detections(
        self, raw: dict[str, Any], images: Tensor, thresholds: Thresholds
    ) -> tuple[list[Detections], list[list[Tensor]]]:
        """Return the most confident queries in pixels, and the feature maps that are read."""
        height, width = images.shape[-2:]
        x, y = xywh2xyxy(raw["boxes"].float()).unflatten(-1, (2, 2)).unbind(-1)
        boxes = torch.stack((x * width, y * height), -1).flatten(-2)  # a tensor of sides would be copied from the host
        detections = most_confident(boxes, raw["scores"].float().sigmoid(), thresholds)
        return detections, [self._read_maps(raw["feats"], self.maps[0].strides)]
