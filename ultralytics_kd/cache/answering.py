"""Asking teachers once: detections with whole class-probability vectors, and how sure teachers are at several sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import box_iou
from ultralytics.utils.ops import scale_boxes, xyxy2xywhn
from ultralytics.utils.torch_utils import scale_img

from ..outputs import BOXES, ONE2MANY, SCORES
from ..teachers import Reads, Teacher
from ..teachers.detections import Detections, Sieve, fuse
from .store import Manifest, Row

SIZE_IOU = 0.45  # the same of different sizes, whose boxes differ more


class Answerer:
    """One or several teachers that answer batches of images, each image once and for all."""

    def __init__(self, teachers: list[Teacher], manifest: Manifest, device: torch.device):
        """Prepare the teachers.

        Args:
            teachers (list[Teacher]): Teachers, loaded.
            manifest (Manifest): The question, and the classes that all teachers' classes are found in.
            device (torch.device): Where they run.
        """
        self.manifest, self.device, self.teachers = manifest, device, teachers
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[manifest.precision]
        place = {name: i for i, name in manifest.names.items()}
        self.places = [torch.tensor([place[name] for name in t.names.values()], device=device) for t in teachers]
        self.mirror = (False, True) if manifest.flip else (False,)
        self.known = torch.zeros(len(manifest.names))  # views at one scale whose teacher knows the class
        for mine in self.places:
            self.known[mine.cpu()] += len(self.mirror)
        self.plain = min(range(len(manifest.scales)), key=lambda i: abs(math.log(manifest.scales[i])))
        self.sieve = Sieve(manifest.conf, manifest.iou, manifest.topk)
        for teacher in teachers:
            teacher.waits = True  # for every answer, which is stored as it is
            teacher.prepare(device, Reads({ONE2MANY: (SCORES, BOXES)}), dtype)

    def __call__(self, images: Tensor, shapes: list[tuple[int, int]], keys: list[str]) -> list[Row]:
        """Return a row per image.

        Args:
            images (Tensor): Letterboxed images of shape (B, C, imgsz, imgsz), uint8.
            shapes (list[tuple[int, int]]): Height and width of each image as read.
            keys (list[str]): Key of each image.
        """
        images = images.to(self.device).float() / 255
        sizes = [self._at(images, scale) for scale in self.manifest.scales]
        rows = []
        for i, (key, (height, width)) in enumerate(zip(keys, shapes)):
            found, seen = across_sizes([size[i] for size in sizes], self.plain)
            order = seen.amax(1).argsort(descending=True, stable=True)
            boxes = scale_boxes(images.shape[2:], found.boxes[order], (height, width))
            shares = xyxy2xywhn(boxes, w=width, h=height)
            numbers = (shares, found.probs[order], seen[order])
            rows.append(Row(key, width, height, *(x.float().numpy() for x in numbers)))
        return rows

    def _at(self, images: Tensor, scale: float) -> list[Detections]:
        """Return what all teachers see in every image at one scale, mirrored too if that was asked for."""
        asked = zip(self.teachers, self.places)
        views = [self._view(t, place, images, scale, flip) for t, place in asked for flip in self.mirror]
        if len(views) == 1:
            return views[0]
        fused = [fuse([view[i] for view in views], self.known, self.manifest.conf) for i in range(len(images))]
        return [Detections(f.boxes[: self.manifest.topk], f.probs[: self.manifest.topk]) for f in fused]

    def _view(self, teacher: Teacher, place: Tensor, images: Tensor, scale: float, flip: bool) -> list[Detections]:
        """Return one teacher's detections in one view of every image, in pixels of the images themselves."""
        height, width = images.shape[2:]
        view = scale_img(images.flip(3) if flip else images, scale, gs=coarsest_stride([teacher]))
        found = []
        for seen in teacher.answer(view, self.sieve)[0]:
            boxes, scores = seen.boxes, seen.probs
            if scale != 1:
                boxes = boxes * boxes.new_tensor((width / int(width * scale), height / int(height * scale)) * 2)
            if flip:
                boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
            probs = scores.new_zeros((len(scores), len(self.manifest.names)))
            probs[:, place] = scores
            found.append(Detections(boxes.cpu(), probs.cpu()))
        return found


def coarsest_stride(teachers: list[Teacher]) -> int:
    """Return the stride of which the sides of images must be multiples.

    Args:
        teachers (list[Teacher]): Teachers, inspected.
    """
    return max((s for t in teachers for s in (t.layout.strides if t.layout else (32,))), default=32)


def across_sizes(sizes: list[Detections], plain: int) -> tuple[Detections, Tensor]:
    """Match what was seen at several sizes: boxes and classes are those of the plain size, if it shows the object.

    Of several that a detection overlaps it belongs to the one of the largest overlap times confidence: a weak second
    answer to the object must not take it from the first.

    Args:
        sizes (list[Detections]): Detections at every size, S of them.
        plain (int): Index of the plain size.

    Returns:
        found (Detections): One detection per object.
        seen (Tensor): How sure the teachers were at each size, 0 where they did not see the object, shape (n, S).
    """
    order = [plain, *(i for i in range(len(sizes)) if i != plain)]
    found, seen = Detections(sizes[plain].boxes[:0], sizes[plain].probs[:0]), torch.zeros(0, len(sizes))
    for i in order:
        confidence = sizes[i].probs.amax(1) if len(sizes[i].probs) else torch.zeros(0)
        overlap = box_iou(found.boxes, sizes[i].boxes)
        right = torch.where(overlap > SIZE_IOU, overlap * seen.amax(1, keepdim=True), 0.0)
        owner = torch.cat((torch.full((1, len(confidence)), 1e-9), right)).argmax(0) - 1  # -1 if it is of none of them
        old, new = owner >= 0, owner < 0
        seen[:, i].scatter_reduce_(0, owner[old], confidence[old], "amax")
        first = torch.zeros(int(new.sum()), len(sizes))
        first[:, i] = confidence[new]
        seen = torch.cat((seen, first))
        found = Detections(torch.cat((found.boxes, sizes[i].boxes[new])), torch.cat((found.probs, sizes[i].probs[new])))
    return found, seen
