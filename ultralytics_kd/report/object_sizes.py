"""Box mAP of small, medium and large objects: COCO's AP by area, which faster-coco-eval computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from .matching import overlaps
from .validation import Objects

# COCO's ranges in square pixels of the image file, both limits inclusive: https://cocodataset.org/#detection-eval
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
MAX_DETECTIONS = 100  # of an image and class, as in COCO


def ap_by_size(
    detections: Mapping[str, Objects], labels: Mapping[str, Objects], sizes: Mapping[str, tuple[float, float]] = SIZES
) -> dict[str, dict[str, Any]]:
    """Return COCO's box AP of objects of each size.

    The area is that of the box. Three groups do not count: labels of other sizes, detections that match one of these,
    and unmatched detections of other sizes.

    Args:
        detections (Mapping[str, Objects]): Detections by image.
        labels (Mapping[str, Objects]): Labels by image.
        sizes (Mapping[str, tuple[float, float]]): Smallest and largest area of each size in square pixels, inclusive.

    Returns:
        (dict): "score" (mAP50-95, None without labels of that size) and number of "labels", by name of the size.
    """
    areas = np.concatenate([np.zeros(0), *(objects.areas for objects in labels.values())])
    counts = {name: int(((areas >= low) & (areas <= high)).sum()) for name, (low, high) in sizes.items()}
    if not len(areas):
        return {name: {"score": None, "labels": 0} for name in sizes}
    classes = np.unique(np.concatenate([objects.cls for objects in labels.values()])).tolist()
    # Class by class, as the library needs some 400 bytes for each detection, and there are 300 in an image
    parts = [_precision([detections[f] for f in labels], list(labels.values()), cls, sizes) for cls in classes]
    precision = np.concatenate(parts, axis=2)  # (IoU thresholds, recalls, classes, sizes); -1 without labels
    result = {}
    for i, name in enumerate(sizes):
        values = precision[..., i]
        result[name] = {"score": float(values[values >= 0].mean()) if counts[name] else None, "labels": counts[name]}
    return result


def _precision(
    detections: Sequence[Objects], labels: Sequence[Objects], cls: int, sizes: Mapping[str, tuple[float, float]]
) -> np.ndarray:
    """Return the precision for one class, shape (IoU thresholds, recalls, 1, sizes); -1 without labels."""
    evaluation = _Evaluation(detections, labels, cls)
    evaluation.params.areaRng = [list(limits) for limits in sizes.values()]
    evaluation.params.areaRngLbl = list(sizes)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: np.ndarray = evaluation.eval["precision"][..., 0]
    return precision


class _Evaluation(COCOeval_faster):
    """COCO's evaluation of one class, with ProbIoU for rotated boxes."""

    def __init__(self, detections: Sequence[Objects], labels: Sequence[Objects], cls: int):
        """Index the objects.

        Args:
            detections (Sequence[Objects]): Detections of each image.
            labels (Sequence[Objects]): Labels of each image, in the same order.
            cls (int): The class.
        """
        self.detections, self.labels = detections, labels
        super().__init__(_dataset(labels, [cls]), _dataset(detections, [cls]), "bbox")

    def computeIoU(self, imgId: int, catId: int) -> Any:
        """Return the IoU of detections and labels of one image and class, shape (N, M); called by the library."""
        detections, labels = (objects[imgId].of(catId) for objects in (self.detections, self.labels))
        if detections.boxes.shape[1] != 5:
            return super().computeIoU(imgId, catId)
        return overlaps(detections, labels)[:MAX_DETECTIONS].astype(np.float64)


def _dataset(images: Sequence[Objects], classes: Sequence[int]) -> COCO:
    """Return objects of some classes in COCO's format; ids of images are their indices."""
    annotations: list[dict[str, Any]] = []
    for image, objects in enumerate(images):
        kept = objects.of(classes)
        size = kept.boxes[:, 2:4] if kept.boxes.shape[1] == 5 else np.maximum(kept.boxes[:, 2:] - kept.boxes[:, :2], 0)
        boxes = np.concatenate((kept.boxes[:, :2], size), 1)  # the position of rotated boxes is not read
        for box, area, cls, conf in zip(boxes.tolist(), kept.areas.tolist(), kept.cls.tolist(), kept.conf.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 means "unmatched" to the evaluation
                    "image_id": image,
                    "category_id": cls,
                    "bbox": box,
                    "area": area,
                    "score": conf,
                    "iscrowd": 0,
                }
            )
    dataset = {"images": [{"id": i} for i in range(len(images))], "categories": [{"id": c} for c in classes]}
    return COCO({**dataset, "annotations": annotations})
