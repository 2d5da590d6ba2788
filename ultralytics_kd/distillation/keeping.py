"""New classes without forgetting (`kd_keep`): objects that the data do not label are not background.

The data label some of the student's classes. The others are kept: the teacher alone knows where their objects are.
In the base loss an object without a label is background. Here the target of a kept class counts only where it is
right:

- Where the teacher sees an object of a kept class, the base loss ignores that class, and the teacher's terms teach it.
- Where the base loss assigns a label, the object is known. It is not of a kept class, whatever the teacher sees there:
  a teacher that never saw a sheep takes it for a cow. The teacher's answer is corrected in the same way.

Pseudo-labels of earlier work follow the same rules (Shmelkov et al., ICCV 2017, https://arxiv.org/abs/1708.06977; Mo
et al., ECCV 2024, https://arxiv.org/abs/2407.11499), with boxes in place of anchor points.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import log
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.metrics import box_iou

from ..errors import KDError
from ..outputs import ONE2MANY, Branch, Layout, anchors
from ..teachers.answers import SetAnswer, corners
from ..teachers.class_map import UNKNOWN
from .ignored_background import entries_inside, ignored_background

SEEN = 0.05  # probability above which the teacher sees an object, as for its detections
SEEN_LOGIT = log(SEEN / (1 - SEEN))
SAME_OBJECT = 0.7  # IoU above which a teacher's box and a label's box are one object


class Unlabelled:
    """Chooses the entries of kept classes that the base loss of a branch ignores, once it has assigned the labels.

    At an anchor point that has a label, all classes are known.

    Attributes:
        seen (Tensor): Whether the teacher sees an object of a kept class, bool, shape (B, A, nc).
        count (int): Number of images with labels, which come first. Others may have pseudo-boxes, of kept classes too.
        labelled (Tensor | None): Anchor points that a label is assigned to, shape (B, A), once the loss was computed.
    """

    def __init__(self, seen: Tensor, count: int, earlier: Unlabelled | None = None):
        """Take what the teacher sees.

        Args:
            seen (Tensor): As the attribute.
            count (int): As the attribute.
            earlier (Unlabelled, optional): The object of a branch that is computed before this one. Its labels
                count too: that branch assigns a label to more anchor points, on the same grid.
        """
        self.seen, self.count, self.earlier = seen, count, earlier
        self.labelled: Tensor | None = None

    def __call__(self, target: Tensor) -> Tensor:
        """Return which entries are ignored, bool, shape (B, A, nc).

        Args:
            target (Tensor): Target scores, of the same shape, without images that the base loss leaves out.
        """
        labelled = target[: self.count].amax(-1) > 0
        if self.earlier is not None and self.earlier.labelled is not None:
            labelled = labelled | self.earlier.labelled
        self.labelled = labelled
        ignored = torch.zeros_like(target, dtype=torch.bool)
        ignored[: self.count] = self.seen[: self.count] & ~labelled[..., None]
        return ignored


class ClassKeeper:
    """Knows which classes are kept, and corrects base loss and answer for them.

    Attributes:
        kept (list[int]): Student classes that the data do not label.
        layout (Layout): The student's head.
        strides (tuple[int, ...]): Strides of the levels that a teacher with anchor points answers for.
    """

    def __init__(self, kept: Collection[int], layout: Layout, strides: Sequence[int]):
        """Take the kept classes.

        Args:
            kept (Collection[int]): Student classes that the data do not label.
            layout (Layout): The student's head.
            strides (Sequence[int]): Strides of the levels that a teacher with anchor points answers for.
        """
        self.kept, self.layout, self.strides = sorted(kept), layout, tuple(strides)
        self._flags: dict[torch.device, Tensor] = {}

    def flags(self, device: torch.device) -> Tensor:
        """Return whether each of the student's classes is kept, bool, shape (nc,)."""
        if device not in self._flags:
            self._flags[device] = torch.tensor([i in self.kept for i in range(self.layout.nc)], device=device)
        return self._flags[device]

    def without_labelled(self, answer: Any, batch: Mapping[str, Any]) -> Any:
        """Return an answer without instances of kept classes that lie on a label.

        An answer at anchor points stays as it is: the base loss tells later which of them are labelled.

        Args:
            answer (Answer | list[Answer] | SetAnswer): The teacher's answer.
            batch (Mapping): The batch, with its labels.
        """
        if not isinstance(answer, SetAnswer) or not len(answer.probs):
            return answer
        kept = self.flags(answer.probs.device)
        kept = kept if answer.classes is None else kept[answer.classes]
        height, width = batch["img"].shape[-2:]
        labels = corners(batch["bboxes"].to(answer.probs.device), (height, width))
        same_image = answer.batch_idx[:, None] == batch["batch_idx"].to(answer.batch_idx).reshape(1, -1)
        overlap = box_iou(answer.instances((height, width)).boxes, labels) * same_image
        known = (overlap > SAME_OBJECT).any(1)
        probs = answer.probs.masked_fill(known[:, None] & kept, 0.0)
        left = (probs.amax(1) > 0).nonzero().flatten()
        return SetAnswer(answer.bboxes[left], probs[left], answer.batch_idx[left], answer.classes, answer.features)

    @torch.no_grad()
    def seen(self, answer: Any, student: Mapping[str, Branch], bases: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return where the teacher sees objects of kept classes.

        Args:
            answer (Answer | list[Answer] | SetAnswer): The teacher's answer, or several: one that sees is enough.
            student (Mapping[str, Branch]): The student's raw outputs by branch.
            bases (Mapping[str, Any]): Base loss of each branch.

        Returns:
            (dict[str, Tensor]): For each branch, bool, shape (B, A, nc); False for classes that the data label.
        """
        answers = answer if isinstance(answer, list) else [answer]
        return {
            name: torch.stack([self._seen(a, name, out, bases[name]) for a in answers]).any(0)
            for name, out in student.items()
        }

    def _seen(self, answer: Any, name: str, student: Branch, base: Any) -> Tensor:
        """Return `seen` for one answer and one branch."""
        device, columns = student.scores.device, slice(None) if answer.classes is None else answer.classes
        if isinstance(answer, SetAnswer):
            points, strides = anchors(student.feats, self.layout)
            height, width = (side * self.layout.strides[0] for side in student.feats[0].shape[-2:])
            classes = torch.zeros((len(answer.probs), self.layout.nc), dtype=torch.bool, device=device)
            classes[:, columns] = answer.probs > SEEN
            classes &= self.flags(device)
            instances = answer.instances((height, width))
            return entries_inside(instances, classes, base.assigner, points * strides, len(student.scores))
        # A teacher without this branch does not teach it. What its one2many branch sees is not background here either
        branch = answer.branches.get(name) or answer.branches[ONE2MANY]
        at_points = torch.zeros((*branch.scores.shape[:2], self.layout.nc), dtype=torch.bool, device=device)
        at_points[..., columns] = branch.scores > SEEN_LOGIT
        return self._on_all_levels(at_points, student) & self.flags(device)

    def _on_all_levels(self, seen: Tensor, student: Branch) -> Tensor:
        """Return values of the compared levels on all levels; everything is ignored on levels that are not compared."""
        sizes = [f.shape[-2] * f.shape[-1] for f in student.feats]
        by_stride = dict(zip(self.layout.strides, sizes))
        known = dict(zip(self.strides, seen.split([by_stride[s] for s in self.strides], 1)))
        unknown = {s: seen.new_ones((len(seen), size, seen.shape[-1])) for s, size in by_stride.items()}
        return torch.cat([known.get(s, unknown[s]) for s in self.layout.strides], 1)

    @contextmanager
    def masking(
        self, bases: Mapping[str, Any], seen: Mapping[str, Tensor], count: int
    ) -> Iterator[dict[str, Unlabelled]]:
        """Within a block, let the base losses ignore what the teacher sees.

        Args:
            bases (Mapping[str, Any]): Base loss of each branch, in the order in which they are computed.
            seen (Mapping[str, Tensor]): As `seen` returns it, for all images.
            count (int): Number of images with labels, which come first.

        Yields:
            (dict[str, Unlabelled]): What each base loss ignores, and where its labels are.

        Raises:
            KDError: If a base loss did not call its `bce`, which is masked.
        """
        masked: dict[str, Unlabelled] = {}
        for name in bases:
            masked[name] = Unlabelled(seen[name], count, next(iter(masked.values()), None))
        with ignored_background(bases, masked):
            yield masked
        if any(each.labelled is None for each in masked.values()):
            raise KDError(
                f"kd_keep: {type(next(iter(bases.values()))).__name__} does not compute its class part by 'bce', which "
                "kd_keep masks: derive your loss from v8DetectionLoss, or drop kd_keep."
            )

    def corrected(self, answer: Any, masked: Mapping[str, Unlabelled], student: Mapping[str, Branch]) -> Any:
        """Return an answer that sees no kept class where a label is assigned.

        Args:
            answer (Answer | list[Answer] | SetAnswer): The teacher's answer. A set stays as it is.
            masked (Mapping[str, Unlabelled]): Where labels are assigned, by branch.
            student (Mapping[str, Branch]): The student's raw outputs by branch, for all images.
        """
        if isinstance(answer, list):
            return [self.corrected(each, masked, student) for each in answer]
        if isinstance(answer, SetAnswer):
            return answer
        branches = dict(answer.branches)
        for name in branches.keys() & masked.keys():
            scores, labelled = branches[name].scores, self._on_levels_of(student[name], masked[name].labelled)
            kept = self.flags(scores.device)
            kept = kept if answer.classes is None else kept[answer.classes]
            known = labelled.new_zeros(scores.shape[:2])
            known[: len(labelled)] = labelled  # images without labels come last
            branches[name] = replace(branches[name], scores=scores.masked_fill(known[..., None] & kept, UNKNOWN))
        return replace(answer, branches=branches)

    def _on_levels_of(self, student: Branch, values: Any) -> Tensor:
        """Return the part of values (B, A) that belongs to anchor points of the compared levels."""
        levels = values.split([f.shape[-2] * f.shape[-1] for f in student.feats], 1)
        return torch.cat([levels[self.layout.strides.index(s)] for s in self.strides], 1)
