"""Answering images with frozen teachers: detections, their class probabilities and their confidence at each scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from ultralytics.utils.ops import scale_boxes, xyxy2xywhn
from ultralytics.utils.torch_utils import scale_img

from ..outputs import BOXES, ONE2MANY, SCORES
from ..teachers import Reads, Teacher, match_channels
from ..teachers.class_map import match_key
from ..teachers.detections import Detections, Thresholds
from ..teachers.fusion import fuse
from .manifest import Manifest
from .shards import Row

SCALE_IOU = 0.45  # lower than for NMS, because boxes of one object differ more between scales
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Answerer:
    """One or several teachers that answer batches of images.

    Attributes:
        manifest (Manifest): Settings of the answers.
        teachers (list[Teacher]): Prepared teachers.
        class_indices (list[Tensor]): For each teacher, the index of each of its classes among `manifest.names`.
    """

    def __init__(self, teachers: list[Teacher], manifest: Manifest, device: torch.device):
        """Prepare the teachers.

        Args:
            teachers (list[Teacher]): Opened teachers.
            manifest (Manifest): Settings of the answers, and the classes of all teachers together.
            device (torch.device): Device on which the teachers run.
        """
        self.manifest, self.device, self.teachers = manifest, device, teachers
        key = spelling([t.names for t in teachers])
        index = {one: i for i, one in enumerate(numbered(manifest.names, key))}
        places = ([index[one] for one in numbered(t.names, key)] for t in teachers)
        self.class_indices = [torch.tensor(each, device=device) for each in places]
        self.flips = (False, True) if manifest.flip else (False,)
        self.known = torch.zeros(len(manifest.names))  # number of views at one scale whose teacher has the class
        for indices in self.class_indices:
            self.known[indices.cpu()] += len(self.flips)
        # Boxes and classes are stored from the scale nearest to 1
        self.base = min(range(len(manifest.scales)), key=lambda i: abs(math.log(manifest.scales[i])))
        self.thresholds = Thresholds(manifest.conf, manifest.iou, manifest.topk)
        for teacher in teachers:
            match_channels(teacher, manifest.channels)
            teacher.checks_at_once = True  # every answer must be checked before it is stored
            teacher.prepare(device, Reads({ONE2MANY: (SCORES, BOXES)}), DTYPES[manifest.precision])

    def __call__(self, images: Tensor, shapes: list[tuple[int, int]], keys: list[str]) -> list[Row]:
        """Return one row per image.

        Args:
            images (Tensor): Letterboxed images of shape (B, C, imgsz, imgsz), uint8.
            shapes (list[tuple[int, int]]): Height and width of each image file in pixels.
            keys (list[str]): Key of each image.
        """
        images = images.to(self.device).float() / 255
        by_scale = [self._detect(images, scale) for scale in self.manifest.scales]
        rows = []
        for i, (key, (height, width)) in enumerate(zip(keys, shapes)):
            detections, confidence = match_across_scales([batch[i] for batch in by_scale], self.base)
            order = confidence.amax(1).argsort(descending=True, stable=True)
            boxes = scale_boxes(images.shape[2:], detections.boxes[order], (height, width))
            arrays = xyxy2xywhn(boxes, w=width, h=height), detections.probs[order], confidence[order]
            rows.append(Row(key, width, height, *(x.float().numpy() for x in arrays)))
        return rows

    def _detect(self, images: Tensor, scale: float) -> list[Detections]:
        """Return the detections in every image at one scale, fused over teachers and mirrored views."""
        members = zip(self.teachers, self.class_indices)
        views = [self._view(t, indices, images, scale, flip) for t, indices in members for flip in self.flips]
        if len(views) == 1:
            return views[0]
        fused = fuse(views, self.known, self.manifest.conf)
        return [Detections(f.boxes[: self.manifest.topk], f.probs[: self.manifest.topk]) for f in fused]

    def _view(self, teacher: Teacher, indices: Tensor, images: Tensor, scale: float, flip: bool) -> list[Detections]:
        """Return one teacher's detections in a scaled, perhaps mirrored, view of every image.

        Args:
            teacher (Teacher): The teacher.
            indices (Tensor): Index of each of its classes among `manifest.names`.
            images (Tensor): Images of shape (B, C, H, W), from 0 to 1.
            scale (float): Factor of the image size.
            flip (bool): Whether to mirror the images.

        Returns:
            (list[Detections]): Per image, on the CPU, with boxes in pixels of the unscaled, unmirrored image.
        """
        height, width = images.shape[2:]
        view = scale_img(images.flip(3) if flip else images, scale, gs=coarsest_stride([teacher]))
        detections = []
        for detected in teacher.detect(view, self.thresholds)[0]:
            boxes, scores = detected.boxes, detected.probs
            if scale != 1:
                boxes = boxes * boxes.new_tensor((width / int(width * scale), height / int(height * scale)) * 2)
            if flip:
                boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
            probs = scores.new_zeros((len(scores), len(self.manifest.names)))
            probs[:, indices] = scores
            detections.append(Detections(boxes.cpu(), probs.cpu()))
        return detections


def spelling(names: Iterable[Mapping[int, str]]) -> Callable[[object], str]:
    """Return how the class names of several teachers are compared: as names of teacher and student are, if that can be.

    Args:
        names (Iterable[Mapping[int, str]]): Class names of each teacher.

    Returns:
        (Callable): `match_key`; `str` if one of them has classes whose names differ in spelling alone.
    """
    for own in names:
        different = set(own.values())
        if len({match_key(name) for name in different}) < len(different):
            return str
    return match_key


def numbered(names: Mapping[int, str], key: Callable[[object], str] = str) -> list[tuple[str, int]]:
    """Return class names, each with the number of classes of the same name before it.

    Args:
        names (Mapping[int, str]): Class names.
        key (Callable): Returns a name in the spelling in which it is compared.

    Examples:
        >>> numbered({0: "bolt", 1: "nut", 2: "bolt"})
        [('bolt', 0), ('nut', 0), ('bolt', 1)]
    """
    listed = [key(name) for name in names.values()]
    return [(name, listed[:i].count(name)) for i, name in enumerate(listed)]


def coarsest_stride(teachers: list[Teacher]) -> int:
    """Return the stride in pixels that image sides must be a multiple of.

    Args:
        teachers (list[Teacher]): Inspected teachers.
    """
    return max((s for t in teachers for s in (t.layout.strides if t.layout else (32,))), default=32)


def match_across_scales(scales: list[Detections], base: int) -> tuple[Detections, Tensor]:
    """Match detections of one image across scales; an object found at the base scale keeps that box and its classes.

    A detection that overlaps several objects belongs to the one with the largest IoU times confidence. So a weak
    duplicate of an object does not take detections from it.

    Args:
        scales (list[Detections]): Detections at each of S scales.
        base (int): Index of the base scale.

    Returns:
        objects (Detections): One detection per object, n of them.
        confidence (Tensor): Confidence at each scale, 0 where the object was not detected, shape (n, S).
    """
    from torchvision.ops import box_iou  # scoped: slow to import

    order = [base, *(i for i in range(len(scales)) if i != base)]
    objects, confidence = Detections(scales[base].boxes[:0], scales[base].probs[:0]), torch.zeros(0, len(scales))
    for i in order:
        boxes, probs = scales[i].boxes, scales[i].probs
        scores = probs.amax(1) if len(probs) else torch.zeros(0)
        overlap = box_iou(objects.boxes, boxes)
        weight = torch.where(overlap > SCALE_IOU, overlap * confidence.amax(1, keepdim=True), 0.0)
        threshold = torch.full((1, len(scores)), 1e-9)  # the first row wins where no object overlaps enough
        owner = torch.cat((threshold, weight)).argmax(0) - 1  # -1 for a new object
        known, new = owner >= 0, owner < 0
        confidence[:, i].scatter_reduce_(0, owner[known], scores[known], "amax")
        added = torch.zeros(int(new.sum()), len(scales))
        added[:, i] = scores[new]
        confidence = torch.cat((confidence, added))
        objects = Detections(torch.cat((objects.boxes, boxes[new])), torch.cat((objects.probs, probs[new])))
    return objects, confidence
