"""The student's own moving average as its teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import unwrap_model

from .. import outputs
from ..config.named_files import EMA
from ..errors import KDError
from ..outputs import Branch
from .answers import Answer, DenseAnswer, Reads
from .base import Teacher
from .class_map import SINGLE_CLASS
from .dense import check_softmax
from .sets import grid_as_set


class MovingAverage(Teacher):
    """Mean teacher (Tarvainen and Valpola, https://arxiv.org/abs/1703.01780), for use without a bigger model.

    Ultralytics keeps the student's exponential moving average anyway. Here it also answers every batch. It improves
    with the student, and costs only its forward pass.
    """

    follows_student = True
    own_precision = True

    def __init__(self, task: str):
        """Create a teacher for a task; `follow` sets the student."""
        super().__init__(None, EMA, task, {})
        self._current: Callable[[], nn.Module] | None = None
        self._heads: tuple[Any, Any] = (None, None)  # the average's head, and the raw head that replaces it in a run

    def follow(self, student: nn.Module, current: Callable[[], nn.Module]) -> None:
        """Take the student's layout."""
        self.channels = outputs.first_conv(student).in_channels
        if self.task in outputs.DENSE_TASK_OF.values():
            self.maps = [outputs.dense_maps(student, self.task, self.channels)]
        else:
            self.layout = outputs.layout(student)
            self.maps = [self.layout.maps]
        self._current = current
        self._parameters = sum(p.numel() for p in student.parameters())

    def match(
        self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None, single_cls: bool = False
    ) -> None:
        """Take the student's classes.

        Raises:
            KDError: If a map of classes was given.
        """
        if not (isinstance(spec, str) and spec.lower() == "auto"):
            raise KDError(f"'kd_classes' has no effect with teacher={EMA}: it has the student's classes. Drop it.")
        self.names = {0: SINGLE_CLASS} if single_cls else dict(names)
        super().match(self.names, "auto", None if single_cls else keep)
        if self.task in {"classify", "semantic"}:
            check_softmax(self.classes, EMA)

    def _prepare(self, device: torch.device, reads: Reads, dtype: torch.dtype, compile: bool | str) -> None:
        """Do nothing: Ultralytics maintains the average."""

    def _run(self, images: Tensor) -> Any:
        """Return the average's raw outputs in float32; for dense tasks also the feature maps that are read."""
        assert self._current is not None
        model: Any = unwrap_model(self._current())
        training = model.training
        try:
            # Ultralytics keeps the average in float32 and in eval mode. Until there is an average, the student answers
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                run = self._run_dense if self.layout is None else self._run_grid
                return run(model.eval(), images.float())
        finally:
            model.train(training)

    def answer_for_any_size(self, images: Tensor) -> Any:
        """Return the average's detections, or its logits for whole images."""
        answer = self(images)
        if self.layout is None:
            return answer
        return grid_as_set(answer, self.layout.only(self._reads.strides or self.layout.strides), images)

    def _run_dense(self, model: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits or depth, and the feature maps that are read."""
        captured: list[list[Tensor]] = []
        with outputs.capture_maps(model, captured.append) if self._reads.features else nullcontext():
            value = outputs.dense_output(self.task, model(images)).float()
        if self.task == "depth":  # the student predicts uncalibrated depth in training
            value = outputs.uncalibrated(value, *(x.to(value) for x in outputs.calibration(model)))
        return value, self._read_maps(captured[-1] if captured else [], self.maps[0].strides)

    def _run_grid(self, model: Any, images: Tensor) -> dict[str, Branch]:
        """Return raw outputs of the branches, parts and levels that are read."""
        assert self.layout is not None
        head = outputs.find_head(model)
        if self._heads[0] is not head:  # `resume` makes another average
            parts = self._reads.parts or dict.fromkeys(self.layout.branches, (outputs.SCORES, outputs.BOXES))
            self._heads = head, outputs.RawHead(head, parts, self._reads.strides).eval()
        model.model[-1] = self._heads[1]
        try:
            return outputs.branches(model(images))
        finally:
            model.model[-1] = head

    def _tensors(self, raw: Any) -> list[Tensor]:
        """Return nothing to check: Ultralytics restores a student with non-finite weights."""
        return []

    def _answer(self, raw: Any, images: Tensor) -> Answer | DenseAnswer:
        """Return the answer in the student's classes."""
        assert self.classes is not None
        taught = self.classes.taught(images.device)
        if self.layout is None:
            value, features = raw
            depth = self.task == "depth"
            value = (
                outputs.within_limits(value, value) if depth else outputs.map_channels(self.classes.map_softmax, value)
            )
            return DenseAnswer(value, taught, [features])
        branches = {name: self._map_classes(branch) for name, branch in raw.items()}
        strides = tuple(self._reads.strides or self.layout.strides)
        return Answer(branches, taught, self, [self._read_maps(next(iter(branches.values())).feats, strides)])
