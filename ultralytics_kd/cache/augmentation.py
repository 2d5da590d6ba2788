"""Stored answers on the way through augmentation: the very transforms of the labels, with the very same random numbers.

Ultralytics' transforms draw their parameters once and apply them to image, instances and masks in turn. Each class here
lets one of them apply its parameters to a second set of instances, the teacher's: `labels["soft"]`, with boxes as
`instances` and, in the place of classes as `cls`, a row of numbers each: class probabilities and what `sizes` adds.
Labels and images come out as they would without it, bit for bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.data import augment
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils.instance import Instances
from ultralytics.utils.metrics import bbox_ioa
from ultralytics.utils.ops import resample_segments

from ..errors import KDError

SOFT = "soft"
BOXES, ROWS, IMAGES = "kd_bboxes", "kd_rows", "kd_batch_idx"  # what arrives in the batch


def shadow(labels: dict[str, Any]) -> dict[str, Any]:
    """Return labels with the soft instances in the place of the labelled ones, for a transform to work on."""
    soft = {**labels, "cls": labels[SOFT]["cls"], "instances": labels[SOFT]["instances"]}
    if "mix_labels" in labels:
        soft["mix_labels"] = [shadow(mixed) for mixed in labels["mix_labels"]]
    return soft


class SoftTrack:
    """Lets a transform carry soft instances beside the labels; stands before its class."""

    def apply_instances(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Apply the transform to the labels, then, with the same parameters, to the soft instances."""
        soft = shadow(labels)
        labels = super().apply_instances(labels, params)  # type: ignore[misc]
        soft = super().apply_instances(soft, self.soft_params(soft, params))  # type: ignore[misc]
        labels[SOFT] = {"cls": soft["cls"], "instances": soft["instances"]}
        return labels

    def soft_params(self, soft: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as the soft instances need them."""
        return params


class Mosaic(SoftTrack, augment.Mosaic):
    """Mosaic: the soft instances of all its images."""

    def soft_params(self, soft: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Return the layout with the soft instances of each image."""
        parts = [soft, *soft["mix_labels"]]
        return {**params, "layout": [{**item, "labels_patch": part} for item, part in zip(params["layout"], parts)]}


class MixUp(SoftTrack, augment.MixUp):
    """MixUp: the soft instances of both images."""


class CutMix(SoftTrack, augment.CutMix):
    """CutMix: those of the other image that the area shows, as it does labels."""

    def apply_instances(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Apply the transform, then drop soft instances that the area covers; labels that it covers it never cuts."""
        if params.get("skip"):
            return labels
        first = labels[SOFT]["instances"]
        first.convert_bbox("xyxy")
        first.denormalize(params["w"], params["h"])
        visible = bbox_ioa(params["area"][None], first.bboxes).reshape(-1) < 0.9
        labels[SOFT] = {"cls": labels[SOFT]["cls"][visible], "instances": first[visible]}
        return super().apply_instances(labels, params)

    def soft_params(self, soft: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters with the soft instances that the area shows, by the rule for labels."""
        other = soft["mix_labels"][0]["instances"]
        other.convert_bbox("xyxy")
        other.denormalize(params["w"], params["h"])
        overlap = bbox_ioa(params["area"][None], other.bboxes).reshape(-1)
        return {**params, "indexes2": np.nonzero(overlap >= 0.1)[0]}


class RandomPerspective(SoftTrack, augment.RandomPerspective):
    """Affine or perspective warp.

    Beside labels with polygons soft instances are polygons too, of four corners: a turned box that the image's border
    cuts is then measured by what is left of it, and dropped by the rule for polygons.
    """

    def apply_instances(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Apply the transform to the labels, then to the soft instances."""
        points = labels["instances"].segments.shape[1] if len(labels["instances"].segments) else 0
        if points:
            labels[SOFT]["instances"] = _outlined(labels[SOFT]["instances"], points)
        labels = super().apply_instances(labels, params)
        if points:
            labels[SOFT]["instances"] = _bare(labels[SOFT]["instances"])
        return labels


class RandomFlip(SoftTrack, augment.RandomFlip):
    """Mirror image."""


class LetterBox(SoftTrack, augment.LetterBox):
    """Resizing and padding."""


class CopyPaste(SoftTrack, augment.CopyPaste):
    """Copy-paste of objects with polygons: a soft instance goes with the object that it is the answer to."""

    def soft_params(self, soft: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters with the soft instances of the selected objects."""
        objects = params["instances2"].bboxes
        source = soft["mix_labels"][0] if self.mode == "mixup" else soft
        height, width = soft["img"].shape[:2]
        own, other = (_pixels(part["instances"], width, height) for part in (soft, source))
        if self.mode != "mixup":
            other.fliplr(width)
        selected = np.zeros(len(objects), dtype=bool)
        selected[params["selected"]] = True
        chosen = np.array([], dtype=int)
        if len(objects) and len(other):
            overlap = bbox_ioa(other.bboxes, objects, iou=True)
            best = overlap.argmax(1)
            chosen = np.nonzero(selected[best] & (overlap.max(1) >= 0.5))[0]
        return {
            **params,
            "instances": own,
            "instances2": other,
            "selected": chosen,
            "labels2_cls": source["cls"] if self.mode == "mixup" else None,
        }


class Albumentations(augment.Albumentations):
    """Albumentations: where it moves boxes, labels and soft instances go through it together."""

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Apply the transforms."""
        if self.transform is None or not self.contains_spatial:
            return super().__call__(labels)
        image, cls, instances = labels["img"], labels["cls"], labels["instances"]
        soft, n = labels[SOFT], len(labels["cls"])
        height, width = image.shape[:2]
        parts = [instances, soft["instances"]]
        if len(instances.segments):
            parts[1] = _outlined(parts[1], instances.segments.shape[1])
        for part in parts:
            part.convert_bbox("xywh")
            part.normalize(width, height)
        # Numbers in the place of classes say afterwards which instances are left
        labels["cls"] = np.arange(n + len(soft["cls"]), dtype=np.float32).reshape(-1, 1)
        labels["instances"] = Instances.concatenate(parts)
        labels = super().__call__(labels)
        left = labels["cls"].reshape(-1).astype(int)
        if n and not (left < n).any():  # Ultralytics leaves an image alone that would lose all of its labels
            left, labels["img"], labels["instances"] = (
                np.arange(n + len(soft["cls"])),
                image,
                Instances.concatenate(parts),
            )
        mine = left < n
        labels[SOFT] = {"cls": soft["cls"][left[~mine] - n], "instances": _bare(labels["instances"][~mine])}
        labels["cls"], labels["instances"] = cls[left[mine]], labels["instances"][mine]
        return labels


class Format(augment.Format):
    """Tensors for the batch."""

    def apply_instances(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Format the labels, then the soft instances."""
        soft = labels.pop(SOFT)
        labels = super().apply_instances(labels, params)
        instances = soft["instances"]
        instances.convert_bbox(self.bbox_format)
        instances.denormalize(params["w"], params["h"])
        boxes = torch.from_numpy(np.ascontiguousarray(instances.bboxes, dtype=np.float32)).reshape(-1, 4)
        if self.normalize:
            boxes[:, [0, 2]] /= params["w"]
            boxes[:, [1, 3]] /= params["h"]
        labels[BOXES] = boxes
        labels[ROWS] = torch.from_numpy(np.ascontiguousarray(soft["cls"], dtype=np.float32))
        return labels


TRACKS: dict[type, type] = {
    augment.Mosaic: Mosaic,
    augment.MixUp: MixUp,
    augment.CutMix: CutMix,
    augment.RandomPerspective: RandomPerspective,
    augment.RandomFlip: RandomFlip,
    augment.LetterBox: LetterBox,
    augment.CopyPaste: CopyPaste,
    augment.Albumentations: Albumentations,
    augment.Format: Format,
}
IMAGE_ONLY = (augment.RandomHSV,)  # these move nothing


def follow(transform: Any) -> None:
    """Let a transform, and all that it consists of, carry soft instances too, in place.

    Raises:
        KDError: If it is one that nobody here knows: it might move boxes.
    """
    kind = type(transform)
    if kind is augment.Compose:
        for part in transform.transforms:
            follow(part)
    elif kind in TRACKS:
        transform.__class__ = TRACKS[kind]
        if getattr(transform, "pre_transform", None) is not None:
            follow(transform.pre_transform)
    elif kind not in IMAGE_ONLY and kind not in TRACKS.values():
        raise KDError(
            f"stored answers cannot follow the augmentation '{kind.__name__}': drop it, or train without kd_cache."
        )


class AnsweredDataset(YOLODataset):
    """A YOLO data set whose images bring a teacher's stored answers along.

    Attributes:
        answers (StoredAnswers): Boxes and rows of every image.
    """

    answers: Any

    @classmethod
    def adopt(cls, dataset: YOLODataset, answers: Any) -> None:
        """Turn a data set into one with answers, in place, as its transforms hold on to it.

        Args:
            dataset (YOLODataset): Data set of a detection training.
            answers (StoredAnswers): Answers to its images.

        Raises:
            KDError: If it is of another kind, or has an augmentation that answers cannot follow.
        """
        if type(dataset) is not YOLODataset:
            raise KDError(
                f"stored answers cannot follow images of a '{type(dataset).__name__}': train without kd_cache."
            )
        dataset.__class__ = cls
        dataset.answers = answers
        follow(dataset.transforms)

    def build_transforms(self, hyp: Any) -> Any:
        """Build the transforms, with tracks for the soft instances."""
        transforms = super().build_transforms(hyp)
        follow(transforms)
        return transforms

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Return image and labels, and what the teacher says about the image."""
        labels = super().get_image_and_label(index)
        boxes, rows = self.answers[labels["im_file"]]
        labels[SOFT] = {"cls": rows, "instances": Instances(boxes, bbox_format="xywh", normalized=True)}
        return labels

    @staticmethod
    def collate_fn(batch: list[dict]) -> dict:
        """Collate samples; soft instances of all images become one list, with the index of their image."""
        soft: list[tuple[Tensor, Tensor]] = [(sample.pop(BOXES), sample.pop(ROWS)) for sample in batch]
        collated = YOLODataset.collate_fn(batch)
        counts = torch.tensor([len(boxes) for boxes, _ in soft])
        collated[BOXES] = torch.cat([boxes for boxes, _ in soft])
        collated[ROWS] = torch.cat([rows for _, rows in soft])
        collated[IMAGES] = torch.arange(len(soft), dtype=torch.float32).repeat_interleave(counts)
        return collated


def _corners(instances: Instances) -> Instances:
    """Return a copy of instances with boxes as corners."""
    copy = instances[np.arange(len(instances))]
    copy.convert_bbox("xyxy")
    return copy


def _pixels(instances: Instances, width: int, height: int) -> Instances:
    """Return a copy of instances as corners in pixels."""
    copy = _corners(instances)
    copy.denormalize(width, height)
    return copy


def _outlined(instances: Instances, points: int) -> Instances:
    """Return instances with their boxes' outlines as polygons of so many points."""
    bboxes = _corners(instances).bboxes[:, None]
    low, high = bboxes[..., :2], bboxes[..., 2:]
    outline = _unit_square(points)
    segments = (low * (1 - outline) + high * outline).astype(np.float32)
    return Instances(instances.bboxes, segments, None, instances._bboxes.format, instances.normalized)


def _bare(instances: Instances) -> Instances:
    """Return instances without their polygons."""
    return Instances(instances.bboxes, None, None, instances._bboxes.format, instances.normalized)


@cache
def _unit_square(points: int) -> np.ndarray:
    """Return the outline of the unit square as Ultralytics samples polygons, shape (points, 2)."""
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)
    return resample_segments([square], n=points)[0]
