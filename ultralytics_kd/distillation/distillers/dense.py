"""Terms of tasks without anchor points: classification, semantic segmentation and depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ... import outputs
from ...outputs import FeatureLayout
from ...teachers import Reads, Teacher
from ..terms import DensePair, FeaturePair, dense_terms
from .base import Distiller, common_maps


class DenseDistiller(Distiller):
    """Terms of classification, semantic segmentation and depth.

    Their heads do not return the maps that they read, so that the student is listened to while it runs, if maps are
    compared.

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
            KDError: If the two cannot be matched.
        """
        self.task = args.task
        self._maps = outputs.dense_maps(student, self.task, teacher.channels) if args.kd_feat else None
        self._teacher = teacher
        self._heard: list[Tensor] | None = None
        super().__init__(args, self.task)
        del self._teacher

    def _build(self, args: Any) -> dict[str, Any]:
        """Return the terms that are on, by the name of their weight."""
        own = self._maps or FeatureLayout((), ())
        maps = [common_maps(each, own) for each in self._teacher.maps] if args.kd_feat else []
        self.reads = Reads(None, None, tuple(sorted({s for each in maps for s in each.strides})))
        self._shares = self._teacher.shares
        return dict(dense_terms(args, self.task, own, maps, self._shares))

    @property
    def levels(self) -> str:
        """What is compared, in words for the start table."""
        return {"classify": "whole images", "semantic": "every pixel, at stride 8"}.get(self.task, "every pixel")

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Keep the maps that enter the student's head, if they are compared."""
        if self._maps is None:
            yield
            return

        def hear(maps: list[Tensor]) -> None:
            """Keep the maps of the last forward pass."""
            self._heard = maps

        with outputs.tapped(model, hear):
            yield

    def __call__(
        self, preds: Any, answer: Any, head: Any = None, bases: Any = None, batch: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted terms.

        Args:
            preds (Any): The student's raw predictions.
            answer (DenseAnswer): What the teacher says about the same images.
            head (nn.Module): The student's head; not looked at.
            bases (Mapping[str, Any]): Base loss; not looked at.
            batch (Mapping[str, Any], optional): Images, and classes of the labelled ones of a classification.

        Returns:
            (dict[str, Tensor]): A scalar for each term of the task, 0 where it is off.
        """
        student = outputs.dense_output(self.task, preds)
        zero = student.new_zeros((), dtype=torch.float32)
        items = dict.fromkeys(self.names, zero)
        heard, self._heard = self._heard, None
        answers = answer if isinstance(answer, list) else [answer]  # of teachers that are heard one by one
        shares = self._shares if isinstance(answer, list) else [1.0]
        maps = [each for a in answers for each in a.features]
        batch = batch or {}
        labels = batch.get("cls") if self.task == "classify" else None
        with torch.autocast(zero.device.type, enabled=False):
            pairs = [DensePair(student, a.value, a.classes, labels, batch.get("img")) for a in answers]
            for name, term in self.terms.items():
                if term.per_branch:
                    value = sum((share * term(pair) for share, pair in zip(shares, pairs)), zero)
                elif heard is not None:
                    value = term(FeaturePair(heard, maps))
                else:
                    continue
                items[name] = value * self.weights[name] * self.fade
        return items
