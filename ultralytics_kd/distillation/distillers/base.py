"""The terms of one run: what all tasks share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...config.arguments import TASK_WEIGHTS
from ...outputs import FeatureLayout
from ...teachers import Reads
from ..nonfinite import FirstFault


class Distiller:
    """The terms of one run with their weights, schedule and adapters.

    It is no nn.Module, and copies of a model share it: what it trains must enter no EMA and no checkpointed model.

    Attributes:
        names (tuple[str, ...]): Names of all terms that the task has.
        weights (dict[str, float]): Weight of every term that is on.
        terms (dict[str, Term]): Terms by the name of their weight.
        adapters (nn.ModuleDict): What trains with the student and does not ship.
        progress (float): How much of the run is over, 0 to 1; the trainer moves it every epoch.
        gains (dict[str, float]): Gain of each head branch in the loss of the model that trains, as last used.
        reads (Reads): What the terms read of the teacher's answer: it need not compute more.
        faults (FirstFault): Which parts of the loss were no numbers first.
    """

    def __init__(self, args: Any, task: str):
        """Take note of the run's arguments.

        Args:
            args (Namespace): Arguments of the training.
            task (str): Its task.
        """
        self.names = TASK_WEIGHTS[task]
        self.weights = {name: float(getattr(args, name)) for name in self.names if getattr(args, name)}
        self.schedule: str = args.kd_schedule
        self.progress = 0.0
        self.gains: dict[str, float] = {}
        self.reads = Reads()
        self.faults = FirstFault()
        # A random stream of its own: the student's training must not depend on what the adapters draw. They are built
        # on the CPU; `torch.manual_seed` would seed every other device too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(args.seed)
            self.terms: dict[str, Any] = self._build(args)
        self.adapters = nn.ModuleDict({k: t.adapters for k, t in self.terms.items() if t.adapters is not None})

    def _build(self, args: Any) -> dict[str, Any]:
        """Return the terms that are on, by the name of their weight."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict) -> Distiller:
        """Return itself: copies of a model share the distiller of the run."""
        return self

    @property
    def fade(self) -> float:
        """Factor of all terms at this point of the run."""
        if self.schedule == "linear":
            return 1 - self.progress
        return (1 + math.cos(math.pi * self.progress)) / 2 if self.schedule == "cosine" else 1.0

    @property
    def levels(self) -> str:
        """What is compared, in words for the start table."""
        raise NotImplementedError

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Keep what the terms need of a student's forward passes, beside what it returns.

        Args:
            model (nn.Module): The student, or its moving average.
        """
        yield  # detection-like heads return their inputs themselves

    def __call__(
        self,
        preds: Any,
        answer: Any,
        head: Any = None,
        bases: Mapping[str, Any] | None = None,
        batch: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted terms.

        Args:
            preds (Any): The student's raw predictions.
            answer (Any): What the teacher says, or said, about the same images.
            head (nn.Module): The student's head.
            bases (Mapping[str, Any], optional): Base loss of each head branch.
            batch (Mapping[str, Any], optional): The batch.

        Returns:
            (dict[str, Tensor]): A scalar for each term of the task, 0 where it is off.
        """
        raise NotImplementedError


def common_maps(maps: FeatureLayout, student: FeatureLayout) -> FeatureLayout:
    """Return those of a teacher's feature maps whose strides the student has."""
    kept = [(s, c) for s, c in zip(maps.strides, maps.channels) if s in student.strides]
    return FeatureLayout(tuple(s for s, _ in kept), tuple(c for _, c in kept), maps.vectors)
