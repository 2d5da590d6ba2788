"""Backbones beside other teachers: the others predict, and the backbones add features to their answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import KDError
from .answers import Reads
from .backbone import BackboneTeacher
from .base import Teacher
from .class_map import ClassMap
from .detections import Detections, Thresholds
from .ensemble import Ensemble, ensemble


class BesideBackbones(Ensemble):
    """Teachers that predict, with backbones whose features join their answer."""

    def __init__(self, members: Sequence[Teacher], weights: Sequence[float] | None = None):
        """Take inspected teachers in the order of the argument, at least one of them a backbone.

        Args:
            members (Sequence[Teacher]): The teachers.
            weights (Sequence[float], optional): Weight of each. The weights of the teachers that predict and those of
                the backbones are normalised separately.

        Raises:
            KDError: If their tasks differ, or there is not one weight for each.
        """
        super().__init__(members, weights)
        given = list(zip(self._members, self.shares))
        self.backbones = [m for m in self._members if isinstance(m, BackboneTeacher)]
        others = [(m, share) for m, share in given if not isinstance(m, BackboneTeacher)]
        shares = [share for m, share in given if isinstance(m, BackboneTeacher)]
        self.backbone_shares = [share / sum(shares) for share in shares]
        if len(others) > 1:
            self._predictor: Teacher = ensemble([m for m, _ in others], [share for _, share in others])
        else:
            self._predictor = others[0][0] if others else self.backbones[0]

    @property
    def predictor(self) -> Teacher:
        """The teacher that predicts, or several as one; the first backbone if none predicts."""
        return self._predictor

    @property
    def predicts(self) -> bool:
        """Whether a teacher predicts, so that the answer holds more than features."""
        return not isinstance(self.predictor, BackboneTeacher)

    def inspect(self) -> None:
        """Inspect all teachers, and take over the predictor's channels, layout and names.

        Raises:
            KDError: If one cannot teach.
        """
        for member in self._members:
            member.inspect()
        main = self.predictor
        main.inspect()
        self.channels, self.layout, self.names = main.channels, main.layout, main.names
        self.answers_separately, self.can_validate = main.answers_separately, main.can_validate

    def match(
        self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None, single_cls: bool = False
    ) -> None:
        """Match the classes of the teachers that predict; features have none.

        Raises:
            KDError: As the predictor's `match` does.
        """
        self.predictor.match(names, spec, keep, single_cls)
        self.classes, self.names = self.predictor.classes, self.predictor.names
        for backbone in self.backbones:
            backbone.classes = ClassMap({}, dict(names), {})

    def _prepare(self, device: torch.device, reads: Reads, dtype: torch.dtype, compile: bool | str) -> None:
        """Prepare all teachers."""
        if self.predicts:
            self.predictor.prepare(device, reads, dtype, self._fall_back, compile)
        for backbone in self.backbones:
            backbone.prepare(device, reads, dtype, self._fall_back, compile)

    def _run(self, images: Tensor) -> Any:
        """Return the predictor's answer, with the backbones' maps."""
        return self._with_maps(self.predictor(images), images)

    def _answer(self, raw: Any, images: Tensor) -> Any:
        """Return the answer as it is."""
        return raw

    def answer_for_any_size(self, images: Tensor) -> Any:
        """Return the predictor's answer that fits any size, with the backbones' maps."""
        return self._with_maps(self.predictor.answer_for_any_size(images), images)

    def _with_maps(self, answer: Any, images: Tensor) -> Any:
        """Put the backbones' maps into an answer, in place of the predictor's own."""
        first, *others = answer if isinstance(answer, list) else [answer]
        known = first.features if not self.predicts else []
        first.features = [*known, *(b.run(images) for b in self.backbones[len(known) :])]
        for other in others:
            other.features = []
        return answer

    def _detections(
        self, raw: Any, images: Tensor, thresholds: Thresholds
    ) -> tuple[list[Detections], list[list[Tensor]]]:
        """Raise: features belong to augmented images, so they cannot be stored."""
        raise KDError(f"teacher={self.source}: features of images cannot be stored.")

    def unprepared_copy(self) -> Teacher:
        """Return an unprepared copy of the predictor, without the backbones."""
        return self.predictor.unprepared_copy()

    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a model of the teachers that predict."""
        return self.predictor.validator_model(nc, names)


def together(members: Sequence[Teacher], weights: Sequence[float] | None = None) -> Teacher:
    """Return several inspected teachers as one, backbones among them or not.

    Args:
        members (Sequence[Teacher]): The teachers.
        weights (Sequence[float], optional): Weight of each; equal if None.
    """
    if any(isinstance(m, BackboneTeacher) for m in members):
        return BesideBackbones(members, weights)
    return ensemble(members, weights)
