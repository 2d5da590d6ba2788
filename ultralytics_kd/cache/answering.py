"""Asking teachers once: detections with whole class-probability vectors, over scales and mirror images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes, xyxy2xywhn
from ultralytics.utils.torch_utils import scale_img

from .. import predictions
from ..predictions import BOXES, ONE2MANY, SCORES
from ..teacher import Teacher
from .store import Manifest, Row

FUSE_IOU = 0.55  # overlap above which detections of different views are of one object, as in the paper


@dataclass
class Detections:
    """What one view or all views of an image show.

    Attributes:
        boxes (Tensor): Boxes of shape (n, 4) as x1, y1, x2, y2 in pixels of the letterboxed image.
        probs (Tensor): Class probabilities of shape (n, nc).
    """

    boxes: Tensor
    probs: Tensor


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
        for teacher in teachers:
            teacher.prepare(device, {ONE2MANY: (SCORES, BOXES)}, dtype)

    def __call__(self, images: Tensor, shapes: list[tuple[int, int]], keys: list[str]) -> list[Row]:
        """Return a row per image.

        Args:
            images (Tensor): Letterboxed images of shape (B, C, imgsz, imgsz), uint8.
            shapes (list[tuple[int, int]]): Height and width of each image as read.
            keys (list[str]): Key of each image.
        """
        images = images.to(self.device).float() / 255
        views = [
            self._view(teacher, place, images, scale, flip)
            for teacher, place in zip(self.teachers, self.places)
            for scale, flip in product(self.manifest.scales, (False, True) if self.manifest.flip else (False,))
        ]
        known = torch.zeros(len(self.manifest.names), device=self.device)
        for place in self.places:
            known[place] += len(views) / len(self.teachers)
        rows = []
        for i, (key, (height, width)) in enumerate(zip(keys, shapes)):
            found = views[0][i] if len(views) == 1 else fuse([view[i] for view in views], known, self.manifest.conf)
            boxes = scale_boxes(images.shape[2:], found.boxes[: self.manifest.topk].clone(), (height, width))
            shares = xyxy2xywhn(boxes, w=width, h=height).float().cpu().numpy()
            rows.append(Row(key, width, height, shares, found.probs[: self.manifest.topk].float().cpu().numpy()))
        return rows

    def _view(self, teacher: Teacher, place: Tensor, images: Tensor, scale: float, flip: bool) -> list[Detections]:
        """Return one teacher's detections in one view of every image, in pixels of the images themselves."""
        height, width = images.shape[2:]
        view = scale_img(images.flip(3) if flip else images, scale, gs=max(teacher.layout.strides))
        branch = teacher.raw(view)[ONE2MANY]
        found = []
        for boxes, scores in zip(*detections(branch, teacher, self.manifest)):
            if scale != 1:
                boxes = boxes * boxes.new_tensor((width / int(width * scale), height / int(height * scale)) * 2)
            if flip:
                boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
            probs = scores.new_zeros((len(scores), len(self.manifest.names)))
            probs[:, place] = scores
            found.append(Detections(boxes, probs))
        return found


def detections(branch: predictions.Branch, teacher: Teacher, manifest: Manifest) -> tuple[list[Tensor], list[Tensor]]:
    """Return boxes (n, 4) in pixels and class probabilities (n, nc) of every image, most confident first.

    Suppression is blind to classes: one object is one detection, and its vector says what it may be.
    """
    boxes = predictions.pixels(branch, teacher.layout)
    probs = branch.scores.float().sigmoid()
    centred = torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2], probs), -1)
    _, kept = non_max_suppression(
        centred.transpose(1, 2),
        conf_thres=manifest.conf,
        iou_thres=manifest.iou,
        agnostic=True,
        max_det=manifest.topk,
        nc=probs.shape[-1],
        max_time_img=1e9,  # a slow machine must not answer less
        return_idxs=True,
    )
    index = [k.flatten().long() for k in kept]
    return [b[i] for b, i in zip(boxes, index)], [p[i] for p, i in zip(probs, index)]


def fuse(views: list[Detections], known: Tensor, conf: float) -> Detections:
    """Merge the views of an image: weighted boxes fusion of Solovyev et al. (https://arxiv.org/abs/1910.13302).

    Detections gather around the most confident one. A box is the mean of its group, weighted by confidence; a
    probability is the mean over all views whose teacher knows the class, so that what one view alone sees counts less.

    Args:
        views (list[Detections]): Detections of every view.
        known (Tensor): Number of views whose teacher knows each class, shape (nc,).
        conf (float): Least confidence of a detection that is kept.
    """
    boxes, probs = torch.cat([v.boxes for v in views]), torch.cat([v.probs for v in views])
    view = torch.cat([torch.full((len(v.boxes),), i, device=boxes.device) for i, v in enumerate(views)])
    order = probs.amax(1).argsort(descending=True, stable=True) if len(probs) else view.long()
    boxes, probs, view = boxes[order], probs[order], view[order]
    near, free = box_iou(boxes, boxes) > FUSE_IOU, torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    merged, vectors = [], []
    for i in range(len(boxes)):
        if not free[i]:
            continue
        group = (near[i] & free).nonzero().flatten()
        free[group] = False
        best = np.unique(view[group].cpu().numpy(), return_index=True)[1]  # of every view its most confident one
        group = group[torch.as_tensor(np.sort(best), device=group.device)]
        weight = probs[group].amax(1, keepdim=True)
        merged.append((boxes[group] * weight).sum(0) / weight.sum())
        vectors.append(probs[group].sum(0) / known.clamp(min=1))
    if not merged:
        return Detections(boxes[:0], probs[:0])
    boxes, probs = torch.stack(merged), torch.stack(vectors)
    order = probs.amax(1).argsort(descending=True, stable=True)
    order = order[probs[order].amax(1) > conf]
    return Detections(boxes[order], probs[order])
