"""Pseudo-boxes: a teacher's confident detections in images without labels are labels (`kd_unlabeled_boxes`).

A detection with the given confidence or more is a label like any other. A less confident one, down to `DOUBT`, may be
an object or not: there the base loss ignores its class (`ignored_background`). All else is background. The two
thresholds are those of Xu et al., Efficient Teacher (https://arxiv.org/abs/2302.07577), who give detections between
them a soft target; here the terms give it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.metrics import batch_probiou
from ultralytics.utils.nms import TorchNMS
from ultralytics.utils.plotting import plot_images
from ultralytics.utils.tal import dist2rbox

from .. import outputs
from ..config.sure_boxes import NAME, sure_confidence
from ..errors import KDError
from ..outputs import ONE2MANY, Branch, Layout
from ..teachers import Teacher
from ..teachers.answers import Answer, Instances, SetAnswer, corners
from ..teachers.detections import Thresholds, image_of_each, suppress_boxes
from ..teachers.sets import grid_as_set
from .ignored_background import check_levels, entries_inside, ignored_background

DOUBT = 0.1  # a detection of less confidence is background
STORED = 100  # detections in an image that a cache must have room for
IOU = 0.7  # of two detections with a larger overlap the more confident one is kept, as in Ultralytics' predictions
CHANGED = 1.5  # an epoch is logged if it has this many times more or fewer boxes than the last logged one
DUPLICATE_IOU = 0.5  # a doubtful detection with a larger overlap with a more confident one shows the same object


@dataclass
class Counts:
    """What was found in the images of some batches, and how many labels the labelled ones had.

    Attributes:
        images (int): Images without labels.
        boxes (int): Pseudo-boxes in them.
        doubtful (Tensor | int): Detections in doubt in them; on the device after the first batch.
        labeled (int): Images with labels.
        labels (int): Labels in them.
    """

    images: int = 0
    boxes: int = 0
    doubtful: Tensor | int = 0
    labeled: int = 0
    labels: int = 0

    def add(self, images: int, boxes: int, doubtful: Tensor | int, labeled: int, labels: int) -> None:
        """Count a batch; each argument is added to the attribute of its name."""
        self.images, self.boxes, self.doubtful = self.images + images, self.boxes + boxes, self.doubtful + doubtful
        self.labeled, self.labels = self.labeled + labeled, self.labels + labels


@dataclass
class Found:
    """The pseudo-boxes of a batch, and what is in doubt in it.

    Attributes:
        bboxes (Tensor): Boxes of which the teacher is sure: x, y, w, h as shares of the image, shape (N, 4), or with
            their angle, shape (N, 5).
        labels (Tensor): Class of each, shape (N,).
        image (Tensor): Index of each box's image in the batch, ascending, shape (N,).
        ignored (Tensor): Entries of the class loss that are ignored unless they have an object, bool, shape (B, A, nc).
        doubtful (Tensor): Number of detections in doubt, a scalar on the device: nothing waits for it.
    """

    bboxes: Tensor
    labels: Tensor
    image: Tensor
    ignored: Tensor
    doubtful: Tensor


class PseudoBoxes:
    """Adds a teacher's pseudo-boxes to the base loss.

    Attributes:
        confidence (float): Confidence from which on a detection is a label.
        student (Layout): The student's head.
        teacher (Layout | None): The teacher's head; None if it predicts sets.
        thresholds (Thresholds): Which of the teacher's detections are used.
        counts (Counts): Boxes in the images so far.
    """

    def __init__(self, confidence: float, student: Layout, teacher: Layout | None):
        """Take the confidence and the heads; each argument becomes the attribute of its name."""
        self.confidence, self.student, self.teacher = confidence, student, teacher
        self.thresholds = Thresholds(min(DOUBT, confidence), IOU)
        self.counts = Counts()
        self._last: dict[str, Tensor] = {}  # pseudo-boxes of the last batch, as labels of its images without labels
        self._labeled = 0  # images with labels in it
        self._logged = -1.0  # pseudo-boxes for each image when last logged; -1 before that

    def loss(
        self, base: Any, bases: Mapping[str, Any], preds: Any, batch: Mapping[str, Any], labeled: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the base loss of all images of a batch; those without labels have pseudo-boxes.

        A pseudo-box counts like a label. The loss is scaled to the number of labelled images, so that the terms keep
        their share.

        Args:
            base (Any): Ultralytics' loss of the student.
            bases (Mapping[str, Any]): The base loss of each head branch.
            preds (Any): The student's raw predictions.
            batch (Mapping): Images, labels, and the teacher's answer.
            labeled (int): Number of images with labels, which come first.

        Returns:
            loss (Tensor): Parts of the loss times the number of labelled images; of all images if none has labels.
            items (dict[str, Tensor]): The same by name, without gradient and not times that number.
        """
        first = outputs.branches(preds)[ONE2MANY]
        found = self.find(batch["teacher"], first, next(iter(bases.values())).assigner, batch["img"], labeled)
        self.counts.add(len(batch["img"]) - labeled, len(found.labels), found.doubtful, labeled, len(batch["cls"]))
        added = {"batch_idx": found.image, "cls": found.labels[:, None], "bboxes": found.bboxes}
        self._last, self._labeled = {**added, "batch_idx": found.image - labeled}, labeled
        both = {k: torch.cat((batch[k], v.to(batch[k]).reshape(-1, *batch[k].shape[1:]))) for k, v in added.items()}
        with ignored_background(bases, dict.fromkeys(bases, found.ignored)):
            loss, items = base(preds, {**batch, **both})
        return loss * ((labeled or len(batch["img"])) / len(batch["img"])), items

    @torch.no_grad()
    def find(self, answer: Any, student: Branch, assigner: Any, images: Tensor, labeled: int) -> Found:
        """Return what the teacher is sure of, and what is in doubt, in the images without labels.

        Args:
            answer (Answer | SetAnswer): The teacher's answer to all images.
            student (Branch): Raw outputs of the student's first branch; both branches have the same anchor points.
            assigner (TaskAlignedAssigner): A base loss's assigner.
            images (Tensor): All images, shape (B, C, H, W).
            labeled (int): Number of images with labels, which come first.
        """
        detected = self._detections(answer, images, labeled)
        probs = detected.probs.new_zeros((len(detected.probs), self.student.nc))
        taught = torch.arange(self.student.nc, device=probs.device) if detected.classes is None else detected.classes
        probs[:, taught] = detected.probs
        height, width = images.shape[-2:]
        boxes = detected.bboxes.float()
        if boxes.shape[1] == 5:
            boxes = boxes * boxes.new_tensor((width, height, width, height, 1))
        else:
            boxes = corners(boxes, (height, width))
        image, (confidence, label) = detected.batch_idx.long(), probs.max(1)

        sure = confidence >= self.confidence
        sure &= _kept(boxes, confidence, image, IOU)
        doubtful = ~sure & _kept(boxes, confidence, image, DUPLICATE_IOU)
        # Another class that a pseudo-box might have is in doubt too
        possible = (probs >= DOUBT) & (sure | doubtful)[:, None]
        possible &= ~(sure[:, None] & (label[:, None] == torch.arange(self.student.nc, device=label.device)))
        points, strides = outputs.anchors(student.feats, self.student)
        some = possible.any(1).nonzero().flatten()
        instances = Instances(boxes[some], label[some], image[some], confidence[some])
        ignored = entries_inside(instances, possible[some], assigner, points * strides, len(images))
        unknown = torch.ones(self.student.nc, dtype=torch.bool, device=probs.device)
        unknown[taught] = False
        ignored[labeled:] |= unknown  # objects of classes that the teacher does not know may be anywhere
        rows = sure.nonzero().flatten()
        rows = rows[image[rows].argsort(stable=True)]
        in_doubt = (doubtful & (confidence >= DOUBT)).sum()
        return Found(detected.bboxes[rows], label[rows], image[rows], ignored, in_doubt)

    def plot(self, images: Tensor, names: Mapping[int, str], file: Path) -> None:
        """Draw the pseudo-boxes of the last batch, so that a user sees whether the confidence is right.

        Args:
            images (Tensor): Images of that batch, those without labels last.
            names (Mapping[int, str]): Class names.
            file (Path): The picture.
        """
        unlabeled = images[self._labeled :].clone()  # Ultralytics changes what it draws
        plot_images(labels=dict(self._last), images=unlabeled, fname=file, names=dict(names))

    def news(self) -> tuple[str, bool]:
        """Return a sentence about the boxes since the last call, and whether there are none, which is a warning.

        The sentence is empty if the last one still holds: a teacher that does not change finds as many in every epoch.
        """
        counts, self.counts = self.counts, Counts()
        if not counts.images:
            return "", False
        per_image = counts.boxes / counts.images
        if self._logged >= 0 and self._logged / CHANGED <= per_image <= self._logged * CHANGED:
            return "", False
        self._logged = per_image
        doubtful = f"{int(counts.doubtful) / counts.images:.2f}"
        if not counts.boxes:
            unsure = f"the teacher is not sure of any box in the images without labels ({doubtful} for each in doubt)"
            return f"{unsure}: lower {NAME}, or drop it.", True
        found = f"{per_image:.2f} boxes for each image without labels are labels, {doubtful} more are in doubt"
        beside = f"; images with labels have {counts.labels / counts.labeled:.2f}" if counts.labeled else ""
        return f"{found}{beside}.", False

    def _detections(self, answer: Any, images: Tensor, labeled: int) -> SetAnswer:
        """Return the detections in the images without labels, as `Found` holds boxes.

        Image indices are those of the whole batch.
        """
        if isinstance(answer, SetAnswer):
            rows = (answer.batch_idx >= labeled).nonzero().flatten()
            return SetAnswer(answer.bboxes[rows], answer.probs[rows], answer.batch_idx[rows], answer.classes)
        assert self.teacher is not None
        whole = answer.branches[ONE2MANY]
        feats = [f[labeled:] for f in whole.feats]
        extras = {name: values[labeled:] for name, values in whole.extras.items()}
        part = Branch(whole.scores[labeled:], whole.boxes[labeled:], feats, extras)
        if outputs.ANGLES in extras:
            found = self._rotated(part, images, answer.classes)
        else:
            rest = Answer({ONE2MANY: part}, answer.classes, answer.teacher)
            found = grid_as_set(rest, self.teacher, images[labeled:], self.thresholds)
        return replace(found, batch_idx=found.batch_idx + labeled)

    def _rotated(self, branch: Branch, images: Tensor, classes: Tensor | None) -> SetAnswer:
        """Return the rotated detections in a branch's raw outputs."""
        assert self.teacher is not None
        points, strides = outputs.anchors(branch.feats, self.teacher)
        distances, angle = outputs.distances(branch.boxes.float(), self.teacher), branch.extras[outputs.ANGLES].float()
        boxes = torch.cat((dist2rbox(distances, angle, points) * strides, angle), -1)
        detections = suppress_boxes(boxes, branch.scores.float().sigmoid(), self.thresholds)
        found = torch.cat([d.boxes for d in detections])
        image = image_of_each(detections, found.device)
        height, width = images.shape[-2:]
        bboxes = _as_labels(found) / found.new_tensor((width, height, width, height, 1))
        return SetAnswer(bboxes, torch.cat([d.probs for d in detections]), image, classes)


def _as_labels(boxes: Tensor) -> Tensor:
    """Return rotated boxes in the form of Ultralytics' labels: the longer side first, angles in [-pi/4, 3pi/4).

    A head may give one box in several forms. The base loss assumes that of labels: it measures the sides one by one.

    Args:
        boxes (Tensor): Boxes of shape (n, 5) as x, y, w, h in pixels and angle in radians.
    """
    x, y, w, h, angle = boxes.unbind(-1)
    upright = w < h
    angle = torch.where(upright, angle + math.pi / 2, angle)
    angle = (angle + math.pi / 4) % math.pi - math.pi / 4
    return torch.stack((x, y, torch.where(upright, h, w), torch.where(upright, w, h), angle), -1)


def build_pseudo_boxes(args: Any, distiller: Any, teacher: Teacher) -> PseudoBoxes | None:
    """Return the pseudo-boxes of a run; None without `kd_unlabeled_boxes`.

    Args:
        args (Namespace): Arguments of the training.
        distiller (GridDistiller): The terms, which know both heads.
        teacher (Teacher): The teacher, inspected.

    Raises:
        KDError: If several teachers answer, or the teacher finds objects on levels that the student lacks.
    """
    given = args.kd_unlabeled_boxes
    if given is None:
        return None
    if teacher.answers_separately:
        raise KDError(f"'{NAME}={given}' with task '{args.task}' is for one teacher: name one, or drop it.")
    layouts = [head.layout for head in distiller.teacher_heads]
    check_levels(f"'{NAME}={given}'", distiller, teacher)
    return PseudoBoxes(sure_confidence(given), distiller.student_layout, layouts[0] if layouts else None)


def check_stored_detections(argument: str, lowest: float, cache: Any, conf: float, iou: float, most: int) -> None:
    """Raise if stored answers lack detections, which the base loss would take for background.

    Args:
        argument (str): The argument that needs them, with its value, for the error.
        lowest (float): Confidence from which on it needs them.
        cache (str | Path | bool): The argument `kd_cache`, for the error.
        conf (float): Lowest confidence of a stored detection.
        iou (float): Overlap above which the less confident of two detections is not stored.
        most (int): Most detections of an image and scale.

    Raises:
        KDError: If the cache lacks some of them.
    """
    limits = (
        (conf > lowest, f"kd_cache_conf={lowest:g} or less (it has {conf:g})"),
        (iou < IOU, f"kd_cache_iou={IOU:g} or more (it has {iou:g})"),
        (most < STORED, f"kd_cache_topk={STORED:g} or more (it has {most:g})"),
    )
    lacking = [option for missed, option in limits if missed]
    if lacking:
        raise KDError(
            f"kd_cache={cache} lacks detections that '{argument}' needs, or objects would be background: make one "
            f"in another folder with 'yolo-kd cache' and {' and '.join(lacking)}."
        )


def lowest_confidence(given: Any) -> float:
    """Return the confidence from which on detections matter to pseudo-boxes: those in doubt, too.

    Args:
        given (bool | float): The argument `kd_unlabeled_boxes`.
    """
    return min(DOUBT, sure_confidence(given))


def _kept(boxes: Tensor, confidence: Tensor, image: Tensor, iou: float) -> Tensor:
    """Return which boxes survive NMS within their image, whatever their classes are."""
    from torchvision.ops import batched_nms  # scoped: slow to import

    kept = torch.zeros_like(confidence, dtype=torch.bool)
    if boxes.shape[1] == 4:
        kept[batched_nms(boxes, confidence, image, iou)] = True
        return kept
    for each in image.unique():  # for all images at once, overlaps need memory in the square of their boxes
        rows = (image == each).nonzero().flatten()
        kept[rows[TorchNMS.fast_nms(boxes[rows], confidence[rows], iou, iou_func=batch_probiou)]] = True
    return kept
