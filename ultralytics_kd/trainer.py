"""The trainers that distil, a small class per task."""

from __future__ import annotations

from ultralytics.models import yolo
from ultralytics.models.yolo.detect import DetectionTrainer

from .config.registration import register
from .training.mixin import DistillationMixin


class KDDetectionTrainer(DistillationMixin, DetectionTrainer):
    """Ultralytics' detection trainer with a `teacher` argument.

    Examples:
        >>> from ultralytics import YOLO
        >>> from ultralytics_kd import KDDetectionTrainer
        >>> YOLO("yolo26n.pt").train(trainer=KDDetectionTrainer, data="coco8.yaml", teacher="yolo26x.pt")
    """


class KDSegmentationTrainer(DistillationMixin, yolo.segment.SegmentationTrainer):
    """Ultralytics' instance segmentation trainer with a `teacher` argument."""


class KDPoseTrainer(DistillationMixin, yolo.pose.PoseTrainer):
    """Ultralytics' pose trainer with a `teacher` argument."""


class KDOBBTrainer(DistillationMixin, yolo.obb.OBBTrainer):
    """Ultralytics' trainer of rotated boxes with a `teacher` argument."""


class KDClassificationTrainer(DistillationMixin, yolo.classify.ClassificationTrainer):
    """Ultralytics' classification trainer with a `teacher` argument."""


TRAINERS: dict[type, type] = {
    trainer.__bases__[1]: trainer
    for trainer in (
        KDDetectionTrainer,
        KDSegmentationTrainer,
        KDPoseTrainer,
        KDOBBTrainer,
        KDClassificationTrainer,
    )
}

# Tasks that not every release of Ultralytics has
if hasattr(yolo, "semantic"):

    class KDSemanticTrainer(DistillationMixin, yolo.semantic.SemanticSegmentationTrainer):
        """Ultralytics' semantic segmentation trainer with a `teacher` argument."""

    TRAINERS[yolo.semantic.SemanticSegmentationTrainer] = KDSemanticTrainer

if hasattr(yolo, "depth"):

    class KDDepthTrainer(DistillationMixin, yolo.depth.DepthTrainer):
        """Ultralytics' depth trainer with a `teacher` argument."""

    TRAINERS[yolo.depth.DepthTrainer] = KDDepthTrainer

register()
