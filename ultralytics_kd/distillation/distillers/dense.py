"""The terms of tasks without anchor points: classification, semantic segmentation and depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ... import outputs
from ...outputs import FeatureLayout
from ...teachers import Reads, Teacher
from ..pairs import DensePair, FeaturePair
from ..terms import dense_terms
from .base import Distiller, adapters_random_stream, backbones_of, common_maps

LEVELS = {"classify": "whole images", "semantic": "every pixel, at stride 8", "depth": "every pixel"}


class DenseDistiller(Distiller):
    """The terms of classification, semantic segmentation or depth.

    Their heads do not return the maps that they read. If maps are compared, a hook captures them in each forward pass.

    Attributes:
        task (str): The task.
    """

    def __init__(self, args: Any, student: nn.Module, teacher: Teacher):
        """Build the terms for a student and a teacher.

        Args:
            args (Namespace): Arguments of the training.
            student (nn.Module): The student.
            teacher (Teacher): The teacher, inspected.

        Raises:
            KDError: If student and teacher cannot be matched.
        """
        self.task = args.task
        backbones, channels, teacher = backbones_of(teacher, args.imgsz), teacher.channels, teacher.predictor
        self._shares = teacher.shares
        self._compares_maps = bool(args.kd_feat)
        self._captured: list[Tensor] | None = None
        student_maps, teacher_maps = FeatureLayout((), ()), []
        if self._compares_maps:
            student_maps = outputs.dense_maps(student, self.task, channels)
            teacher_maps = [] if backbones is not None else [common_maps(maps, student_maps) for maps in teacher.maps]
        with adapters_random_stream(args.seed):
            terms = dense_terms(args, self.task, student_maps, teacher_maps, self._shares, backbones)
        strides = {stride for maps in teacher_maps for stride in maps.strides}
        super().__init__(args, self.task, terms, Reads(None, None, tuple(sorted(strides))))

    def start_epoch(self, progress: float) -> None:
        """Set the factor of all terms for an epoch, and drop maps that a batch has left which ended in an error."""
        super().start_epoch(progress)
        self._captured = None

    def points(self, preds: Any) -> list[Tensor]:
        """Return the head's output; heads without anchor points do not return the maps that enter them."""
        return [outputs.dense_output(self.task, preds)]

    @property
    def levels(self) -> str:
        """The compared images or pixels, as text for the table at the start of a training."""
        return LEVELS[self.task]

    @contextmanager
    def capturing_features(self, model: nn.Module) -> Iterator[None]:
        """Capture the maps that enter the model's head in each forward pass, if they are compared."""
        if not self._compares_maps:
            yield
            return

        def capture(maps: list[Tensor]) -> None:
            """Keep the maps of the last forward pass."""
            self._captured = maps

        with outputs.capture_maps(model, capture):
            yield

    def __call__(
        self, preds: Any, answer: Any, head: Any = None, bases: Any = None, batch: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted terms.

        Args:
            preds (Any): The student's raw predictions.
            answer (DenseAnswer | list[DenseAnswer]): The teacher's answer for the same images, or one of each teacher.
            head (nn.Module): Not used.
            bases (Mapping[str, Any]): Not used.
            batch (Mapping[str, Any], optional): Images, and in classification the labels of the labelled ones.

        Returns:
            (dict[str, Tensor]): A scalar for each term.
        """
        student = outputs.dense_output(self.task, preds)
        zero = student.new_zeros((), dtype=torch.float32)
        items = dict.fromkeys(self.terms, zero)
        student_maps, self._captured = self._captured, None
        answers = answer if isinstance(answer, list) else [answer]
        shares = self._shares if isinstance(answer, list) else [1.0]
        teacher_maps = [maps for a in answers for maps in a.features]
        batch = batch or {}
        labels = batch.get("cls") if self.task == "classify" else None
        with torch.autocast(zero.device.type, enabled=False):
            pairs = [DensePair(student, a.value, a.classes, labels, batch.get("img")) for a in answers]
            for name, term in self.terms.items():
                if term.per_branch:
                    value = sum((share * term(pair) for share, pair in zip(shares, pairs)), zero)
                elif student_maps is not None:
                    value = term(FeaturePair(student_maps, teacher_maps))
                else:
                    continue
                items[name] = value * self.weights[name] * self.fade
        return items
