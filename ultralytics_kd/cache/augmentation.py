"""Carry stored boxes through Ultralytics' augmentation with the same random parameters as the labels.

Ultralytics' transforms draw their parameters once and apply them to image, boxes and masks in turn. Each class here
extends a transform to apply its parameters a second time, to the stored answer in `labels[ANSWERS]`. The stored answer
has the shape of labels, so that Ultralytics' own code moves it: "instances" are boxes, "cls" holds one row of numbers
per box (`scales.encode_rows`) instead of a class. Images and labels stay bit for bit as they would be without stored
answers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from ultralytics.data import augment
from ultralytics.utils.instance import Instances
from ultralytics.utils.metrics import bbox_ioa
from ultralytics.utils.ops import resample_segments

from ..errors import KDError

STEP = 0.125  # between landmarks, as a share of the image
ANSWERS = "kd_answers"  # key in a sample during augmentation
BOXES, ROWS, IMAGES = "kd_bboxes", "kd_rows", "kd_batch_idx"  # keys in a batch
LEAST_SHOWN = "kd_least_shown"  # key of CutMix's parameters: share of an instance that the pasted area must show
LABELS = "kd_label_bboxes"  # key in a batch: the labels' boxes as the data set returned them


def answers_as_labels(labels: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of labels for a transform, with stored instances instead of labelled ones.

    Args:
        labels (dict): Labels with `ANSWERS`, and `mix_labels` of other images.
    """
    replaced = {**labels, "cls": labels[ANSWERS]["cls"], "instances": labels[ANSWERS]["instances"]}
    if "mix_labels" in labels:
        replaced["mix_labels"] = [answers_as_labels(mixed) for mixed in labels["mix_labels"]]
    return replaced


class CarriesAnswers:
    """Base class of transforms that carry stored answers; it is the first base, before Ultralytics' class."""

    def apply_instances(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Apply the transform to the labels, then, with the same parameters, to the stored instances.

        Args:
            labels (dict): Labels with `ANSWERS`.
            params (dict): Parameters that the transform has drawn.
        """
        answers = answers_as_labels(labels)
        labels = super().apply_instances(labels, params)  # type: ignore[misc]
        answers = super().apply_instances(answers, self.answer_params(answers, params))  # type: ignore[misc]
        labels[ANSWERS] = {"cls": answers["cls"], "instances": answers["instances"]}
        return labels

    def answer_params(self, answers: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters with stored instances in place of labels.

        Args:
            answers (dict): Result of `answers_as_labels`.
            params (dict): Parameters that the transform has drawn.
        """
        return params


class Mosaic(CarriesAnswers, augment.Mosaic):
    """Mosaic with the stored instances of all its images."""

    def answer_params(self, answers: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Return the layout with the stored instances of each image."""
        images = [answers, *answers["mix_labels"]]
        return {**params, "layout": [{**item, "labels_patch": part} for item, part in zip(params["layout"], images)]}


class MixUp(CarriesAnswers, augment.MixUp):
    """MixUp with the stored instances of both images."""


class CutMix(CarriesAnswers, augment.CutMix):
    """CutMix with the stored instances that lie inside the pasted area, chosen by the rule for labels."""

    def apply_instances(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Apply the transform, and drop stored instances that the pasted area covers.

        Ultralytics chooses areas that cover no labels, so it has no rule to drop any.
        """
        if params.get("skip"):
            return labels
        instances = labels[ANSWERS]["instances"]
        instances.convert_bbox("xyxy")
        instances.denormalize(params["w"], params["h"])
        visible = bbox_ioa(params["area"][None], instances.bboxes).reshape(-1) < 0.9
        labels[ANSWERS] = {"cls": labels[ANSWERS]["cls"][visible], "instances": instances[visible]}
        # Ultralytics' own rule for labels, which asks less of polygons
        least = 0.01 if len(labels["instances"].segments) else 0.1
        return super().apply_instances(labels, {**params, LEAST_SHOWN: least})

    def answer_params(self, answers: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters with the indices of stored instances that the pasted area shows."""
        pasted = answers["mix_labels"][0]["instances"]
        pasted.convert_bbox("xyxy")
        pasted.denormalize(params["w"], params["h"])
        overlap = bbox_ioa(params["area"][None], pasted.bboxes).reshape(-1)
        return {**params, "indexes2": np.nonzero(overlap >= params[LEAST_SHOWN])[0]}


class RandomPerspective(CarriesAnswers, augment.RandomPerspective):
    """Affine or perspective warp.

    If labels have polygons, stored boxes become polygons for the warp. So if the image border cuts a rotated box,
    Ultralytics measures its visible part, and drops it by the same rule as labels.

    Attributes:
        sided (bool): Whether rows end with the sides of instances (`encode_rows` with several scales).
    """

    sided = False

    def apply_instances(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Apply the transform to the labels, then to the stored instances.

        A rotated or sheared object has another box, and is not larger for that. So the sides at scale 1 become those of
        its box after the warp, without the zoom.
        """
        if self.sided and (self.degrees or self.shear):
            height, width = params["orig_shape"]
            centre = params["M"] @ (width / 2, height / 2, 1)  # the perspective is drawn around it
            linear = params["M"][:2, :2] - np.outer(centre[:2] / centre[2], params["M"][2, :2])
            _turn_sides(labels[ANSWERS]["cls"], linear / params["scale"])
        points = labels["instances"].segments.shape[1] if len(labels["instances"].segments) else 0
        if points:
            labels[ANSWERS]["instances"] = _with_polygons(labels[ANSWERS]["instances"], points)
        labels = super().apply_instances(labels, params)
        if points:
            labels[ANSWERS]["instances"] = _without_polygons(labels[ANSWERS]["instances"])
        return labels


class RandomFlip(CarriesAnswers, augment.RandomFlip):
    """Mirrored image."""


class LetterBox(CarriesAnswers, augment.LetterBox):
    """Resizing and padding."""


class CopyPaste(CarriesAnswers, augment.CopyPaste):
    """Copy-paste of objects with polygons: a pasted object brings its matching stored instance."""

    def answer_params(self, answers: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters with the stored instances of the pasted objects (IoU of at least 0.5)."""
        objects = params["instances2"].bboxes
        source = answers["mix_labels"][0] if self.mode == "mixup" else answers
        height, width = answers["img"].shape[:2]
        target, candidates = (_in_pixels(part["instances"], width, height) for part in (answers, source))
        if self.mode != "mixup":
            candidates.fliplr(width)
        pasted = np.zeros(len(objects), dtype=bool)
        pasted[params["selected"]] = True
        selected = np.array([], dtype=int)
        if len(objects) and len(candidates):
            overlap = bbox_ioa(candidates.bboxes, objects, iou=True)
            selected = np.nonzero(pasted[overlap.argmax(1)] & (overlap.max(1) >= 0.5))[0]
        return {
            **params,
            "instances": target,
            "instances2": candidates,
            "selected": selected,
            "labels2_cls": source["cls"] if self.mode == "mixup" else None,
        }


class Albumentations(augment.Albumentations):
    """Albumentations: a spatial transform is applied to labels and stored instances in one call.

    Attributes:
        sided (bool): As in `RandomPerspective`.
    """

    sided = False

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Apply the transforms.

        Args:
            labels (dict): Labels with `ANSWERS`.
        """
        if self.transform is None or not self.contains_spatial:
            return super().__call__(labels)
        image, cls, instances = labels["img"], labels["cls"], labels["instances"]
        answers, n = labels[ANSWERS], len(labels["cls"])
        height, width = image.shape[:2]
        parts = [instances, answers["instances"]]
        if len(instances.segments):
            parts[1] = _with_polygons(parts[1], instances.segments.shape[1])
        for part in parts:
            part.convert_bbox("xywh")
            part.normalize(width, height)
        # Indices replace classes, to identify the remaining instances afterwards
        labels["cls"] = np.arange(n + len(answers["cls"]), dtype=np.float32).reshape(-1, 1)
        labels["instances"] = Instances.concatenate(parts)
        if self.sided:
            labels["instances"].keypoints = _landmarks(len(labels["cls"]))
        labels = super().__call__(labels)
        landmarks, labels["instances"].keypoints = labels["instances"].keypoints, None
        remaining = labels["cls"].reshape(-1).astype(int)
        if n and not (remaining < n).any():  # Ultralytics leaves an image unchanged if it would lose all labels
            remaining, labels["img"], landmarks = np.arange(n + len(answers["cls"])), image, None
            labels["instances"] = Instances.concatenate(parts)
        is_label = remaining < n
        rows = answers["cls"][remaining[~is_label] - n]
        linear = _linear_part(landmarks, (height, width), labels["img"].shape[:2]) if self.sided else None
        if linear is not None:
            _turn_sides(rows, linear / np.sqrt(max(abs(np.linalg.det(linear)), 1e-12)))
        labels[ANSWERS] = {
            "cls": rows,
            "instances": _without_polygons(labels["instances"][~is_label]),
        }
        labels["cls"], labels["instances"] = cls[remaining[is_label]], labels["instances"][is_label]
        return labels


class Format(augment.Format):
    """Conversion to the tensors of a batch."""

    def apply_instances(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Format the labels, then the stored instances as `BOXES` of shape (n, 4) and `ROWS` of shape (n, ...)."""
        answers = labels.pop(ANSWERS)
        labels = super().apply_instances(labels, params)
        instances = answers["instances"]
        instances.convert_bbox(self.bbox_format)
        instances.denormalize(params["w"], params["h"])
        boxes = torch.from_numpy(np.ascontiguousarray(instances.bboxes, dtype=np.float32)).reshape(-1, 4)
        if self.normalize:
            boxes[:, [0, 2]] /= params["w"]
            boxes[:, [1, 3]] /= params["h"]
        labels[BOXES] = boxes
        labels[ROWS] = torch.from_numpy(np.ascontiguousarray(answers["cls"], dtype=np.float32))
        return labels


WITH_ANSWERS: dict[type, type] = {
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
COLOUR_ONLY = (augment.RandomHSV,)  # leaves all boxes where they are


def carry_answers(transform: Any, sided: bool = False) -> None:
    """Let a transform and all of its parts carry stored answers, in place.

    Args:
        transform (Any): One of Ultralytics' transforms, or a `Compose` of several.
        sided (bool): Whether rows end with the sides of instances (`encode_rows` with several scales).

    Raises:
        KDError: If its class is unknown, because it might move boxes.
    """
    kind = type(transform)
    if kind is augment.Compose:
        for part in transform.transforms:
            carry_answers(part, sided)
    elif kind in WITH_ANSWERS:
        transform.__class__ = WITH_ANSWERS[kind]
        if kind in {augment.RandomPerspective, augment.Albumentations}:
            transform.sided = sided
        if getattr(transform, "pre_transform", None) is not None:
            carry_answers(transform.pre_transform, sided)
    elif kind not in COLOUR_ONLY and kind not in WITH_ANSWERS.values():
        raise KDError(
            f"kd_cache does not support the augmentation '{kind.__name__}': remove it, or train without kd_cache."
        )


def _turn_sides(rows: np.ndarray, turn: np.ndarray) -> None:
    """Give rows the sides that their objects' boxes have after a rotation or shear, in place.

    Args:
        rows (np.ndarray): Rows that end with sides (`encode_rows` with several scales).
        turn (np.ndarray): The transform's linear part without its zoom, shape (2, 2).
    """
    rows[:, -2:] = rows[:, -2:] @ np.abs(turn).T


def _landmarks(count: int) -> np.ndarray:
    """Return three visible keypoints near the image's centre for each instance, as shares of the image."""
    places = np.array([[0.5, 0.5, 1], [0.5 + STEP, 0.5, 1], [0.5, 0.5 + STEP, 1]], dtype=np.float32)
    return np.repeat(places[None], count, 0)


def _linear_part(landmarks: np.ndarray | None, before: tuple[int, int], after: tuple[int, int]) -> np.ndarray | None:
    """Return the linear part of the transform that moved `_landmarks`; None if the image has lost one of them.

    Args:
        landmarks (np.ndarray | None): Moved landmarks of all instances, shape (n, 3, 3).
        before (tuple[int, int]): Height and width of the image before the transform, in pixels.
        after (tuple[int, int]): Height and width of the image after it.
    """
    if landmarks is None or not len(landmarks) or not landmarks[0, :, 2].all():
        return None
    centre, right, below = landmarks[0, :, :2] * (after[1], after[0])
    return np.stack(((right - centre) / (STEP * before[1]), (below - centre) / (STEP * before[0])), 1)


def _corners(instances: Instances) -> Instances:
    """Return a copy of instances with boxes as x1, y1, x2, y2."""
    copy = instances[np.arange(len(instances))]
    copy.convert_bbox("xyxy")
    return copy


def _in_pixels(instances: Instances, width: int, height: int) -> Instances:
    """Return a copy of instances with boxes as x1, y1, x2, y2 in pixels."""
    copy = _corners(instances)
    copy.denormalize(width, height)
    return copy


def _with_polygons(instances: Instances, points: int) -> Instances:
    """Return instances with the outlines of their boxes as polygons, segments of shape (n, points, 2)."""
    bboxes = _corners(instances).bboxes[:, None]
    low, high = bboxes[..., :2], bboxes[..., 2:]
    outline = _unit_square(points)
    segments = (low * (1 - outline) + high * outline).astype(np.float32)
    return Instances(instances.bboxes, segments, None, instances._bboxes.format, instances.normalized)


def _without_polygons(instances: Instances) -> Instances:
    """Return instances without their polygons."""
    return Instances(instances.bboxes, None, None, instances._bboxes.format, instances.normalized)


@cache
def _unit_square(points: int) -> np.ndarray:
    """Return the outline of the unit square as Ultralytics samples polygons, shape (points, 2)."""
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)
    return resample_segments([square], n=points)[0]
