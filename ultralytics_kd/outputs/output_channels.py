"""What the output channels of a head mean, and which channels of teacher and student mean the same (`kd_init`).

Hidden channels are features, and evenly spaced ones of a bigger model are features too. An output channel means one
thing, and takes the teacher's channel of the same meaning or none:

    Class scores: those of the matching class.
    Keypoints: x, y, visibility and deviations of the keypoint of the same name. Without names, of the same number, if
        both models have as many keypoints.
    Mask coefficients: each belongs to one prototype, so both take evenly spaced channels at the same positions.
    All others (box sides, bins of DFL, angles, text embeddings, depth, a head of the user's own): only if both models
        have the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ultralytics.nn.modules.head import Pose, Segment, WorldDetect, YOLOEDetect, YOLOESegment

from .channel_picks import Pick, evenly

# Parts of heads by name; the prefix `one2one_` marks the same part of the other branch
CLASS_SCORES = {"cv3", "semseg", "classifier", "aux_head", "linear", "enc_score_head", "dec_score_head"}
FED_BY = {"linear": "conv", "cv4_kpts": "cv4", "cv4_sigma": "cv4"}  # parts that read the features of another part


class OutputChannels:
    """The pairs of equal meaning among the output channels of two heads."""

    def __init__(
        self,
        student: Any,
        teacher: Any,
        classes: Mapping[int, int] | None = None,
        keypoints: Sequence[Sequence[str] | None] = (None, None),
    ):
        """Match classes and keypoints.

        Args:
            student (nn.Module): The student's head.
            teacher (nn.Module): The teacher's head, of the same type.
            classes (Mapping[int, int], optional): Student class -> teacher class; None if both have the same classes.
            keypoints (Sequence): Names of the student's and the teacher's keypoints, None where they are unknown.
        """
        self.student, self.teacher, self.classes = student, teacher, classes
        self.keypoints = self._match_keypoints(*keypoints) if self._poses() else {}

    def _poses(self) -> bool:
        """Return whether the heads put out keypoints."""
        return isinstance(self.student, Pose) and isinstance(self.teacher, Pose)

    def _match_keypoints(self, ours: Sequence[str] | None, theirs: Sequence[str] | None) -> dict[int, int]:
        """Return student keypoint -> teacher keypoint."""
        count, source_count = self.student.kpt_shape[0], self.teacher.kpt_shape[0]
        if ours and theirs and (len(ours), len(theirs)) == (count, source_count):
            return {i: theirs.index(name) for i, name in enumerate(ours) if name in theirs}
        return {i: i for i in range(count)} if count == source_count else {}

    def rows(self, path: str, ours: int, theirs: int) -> tuple[Pick, Pick] | None:
        """Return the student's output channels that are set, and the teacher's channels that they take; None for none.

        Args:
            path (str): Name of the output layer within the head.
            ours (int): Number of the student's output channels.
            theirs (int): Number of the teacher's output channels.
        """
        parts = {part.removeprefix("one2one_") for part in path.split(".")}
        pairs: Mapping[int, int] | None = None
        if "dfl" in parts and self.student.reg_max != self.teacher.reg_max:
            return None  # its weights are the bin numbers
        if parts & CLASS_SCORES and self._scores(ours, theirs):
            pairs = self.classes
        elif self._poses() and parts & {"cv4", "cv4_kpts", "cv4_sigma"}:
            widths = [2 if "cv4_sigma" in parts else head.kpt_shape[1] for head in (self.student, self.teacher)]
            pairs = {
                keypoint * widths[0] + value: source * widths[1] + value
                for keypoint, source in self.keypoints.items()
                for value in range(min(widths))  # without visibility there are only x and y
            }
        elif parts & self.mask_parts and ours <= theirs:
            return torch.arange(ours), evenly(ours, theirs)
        if pairs is None:
            return (torch.arange(ours), torch.arange(ours)) if ours == theirs else None
        return _indices(pairs.keys()), _indices(pairs.values())

    def _scores(self, ours: int, theirs: int) -> bool:
        """Return whether layers with these numbers of outputs score classes, and not the similarity to texts."""
        heads = (self.student, self.teacher)
        if any(isinstance(h, (WorldDetect, YOLOEDetect)) and not getattr(h, "is_fused", False) for h in heads):
            return False
        return [getattr(head, "nc", count) for head, count in zip(heads, (ours, theirs))] == [ours, theirs]

    @property
    def mask_parts(self) -> set[str]:
        """The parts that put out mask coefficients, and the one that puts out prototypes."""
        if isinstance(self.student, Segment):
            return {"cv4", "proto"}
        return {"cv5", "proto"} if isinstance(self.student, YOLOESegment) else set()

    def group(self, path: str) -> str:
        """Return the part that a layer belongs to; a part takes output channels only if all its other layers take some.

        Masks need coefficients and prototypes, so these are one part.

        Args:
            path (str): Name of a layer within the head.
        """
        prefix = "one2one_" if path.startswith("one2one_") else ""
        part = path.removeprefix(prefix).split(".")[0]
        if part in self.mask_parts and "semseg" not in path:
            return "masks"
        return prefix + FED_BY.get(part, part)


def keypoint_names(names: Any) -> list[str] | None:
    """Return the names of keypoints, None if they are unknown or differ between classes.

    Args:
        names (Any): Names by class, as in `kpt_names` of a data.yaml and of a model; Ultralytics numbers keypoints that
            have no names.
    """
    lists = list(names.values()) if isinstance(names, Mapping) else []
    if not lists or any(each != lists[0] for each in lists):
        return None
    given = [str(name) for name in lists[0]]
    return None if given == [str(i) for i in range(len(given))] or len(set(given)) < len(given) else given


def _indices(values: Any) -> Pick:
    """Return integers as indices; PyTorch would make floats of an empty list."""
    return torch.tensor(list(values), dtype=torch.long)
