"""The student's own moving average as its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import unwrap_model

from ..errors import KDError
from ..outputs import (
    DENSE_TASK_OF,
    Branch,
    RawHead,
    branches,
    calibration,
    dense_maps,
    dense_output,
    find_head,
    first_conv,
    layout,
    map_channels,
    tapped,
    uncalibrated,
    within_limits,
)
from .answers import Answer, DenseAnswer
from .base import Teacher
from .dense import check_exclusive

EMA = "ema"


class MovingAverage(Teacher):
    """Mean teacher of Tarvainen and Valpola (https://arxiv.org/abs/1703.01780), for when no bigger model is at hand.

    Ultralytics keeps the student's exponential moving average anyway; here it also answers every batch. It gets better
    as the student does, and needs nothing but its forward pass.
    """

    follows_student = True
    own_precision = True

    def __init__(self, task: str):
        """Wait for a student of a task."""
        super().__init__(None, EMA, task, {})
        self._current: Callable[[], nn.Module] | None = None
        self._heads: tuple[Any, Any] = (None, None)  # the average's head, and what stands for it while it answers

    def follow(self, student: nn.Module, current: Callable[[], nn.Module]) -> None:
        """Take the student's layout."""
        self.channels = first_conv(student).in_channels
        if self.task in DENSE_TASK_OF.values():
            self.maps = [dense_maps(student, self.task, self.channels)]
        else:
            self.layout = layout(student)
            self.maps = [self.layout.maps]
        self._current = current
        self._parameters = sum(p.numel() for p in student.parameters())

    def match(self, names: Mapping[int, str], spec: Any = "auto", keep: Any = None) -> None:
        """Take the student's classes.

        Raises:
            KDError: If a map of classes was given.
        """
        if not (isinstance(spec, str) and spec.lower() == "auto"):
            raise KDError(f"'kd_classes' has no use with teacher={EMA}: it has the student's classes.")
        self.names = dict(names)
        super().match(names, "auto", keep)
        if self.task in {"classify", "semantic"}:
            check_exclusive(self.classes, EMA)

    def __call__(self, images: Tensor) -> Answer | DenseAnswer:
        """Return the average's raw outputs."""
        assert self._current is not None
        model: Any = unwrap_model(self._current())
        training = model.training
        try:
            # Ultralytics keeps the average in float32 and in eval mode; as long as there is none the student answers
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                return self._answer(model.eval(), images.float())
        finally:
            model.train(training)

    def _answer(self, model: Any, images: Tensor) -> Answer | DenseAnswer:
        """Return what a model in eval mode says."""
        assert self.classes is not None
        taught = self.classes.taught(images.device)
        if self.layout is None:
            heard: list[list[Tensor]] = []
            with tapped(model, heard.append) if self._reads.features else nullcontext():
                value = dense_output(self.task, model(images)).float()
            if self.task == "depth":  # the student in training says it uncalibrated
                value = uncalibrated(value, *(x.to(value) for x in calibration(model)))
                value = within_limits(value, value)
            else:
                value = map_channels(self.classes.map_exclusive, value)
            return DenseAnswer(value, taught, [self._wanted(heard[-1] if heard else [], self.maps[0].strides)])
        out = {name: self._map_classes(branch) for name, branch in self._grid(model, images).items()}
        strides = tuple(self._reads.strides or self.layout.strides)
        return Answer(out, taught, self, [self._wanted(next(iter(out.values())).feats, strides)])

    def _grid(self, model: Any, images: Tensor) -> dict[str, Branch]:
        """Return raw outputs, of what is read alone."""
        assert self.layout is not None
        head = find_head(model)
        if self._heads[0] is not head:  # `resume` makes another average
            parts = self._reads.parts or dict.fromkeys(self.layout.branches, ("scores", "boxes"))
            self._heads = head, RawHead(head, parts, self._reads.strides).eval()
        model.model[-1] = self._heads[1]
        try:
            return branches(model(images))
        finally:
            model.model[-1] = head
