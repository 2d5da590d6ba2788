"""The base of all distillers: weights, schedule and adapters. No code here runs in a training step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...config.arguments import TASK_WEIGHTS, gradient_shares
from ...config.teacher_size import student_size
from ...outputs import FeatureLayout
from ...teachers import Reads, Teacher
from ..balance import Balance
from ..terms import Backbones, Term


class Distiller:
    """The terms of one run with their weights, schedule and adapters.

    It is not an nn.Module, and copies of a model share it, so that the adapters enter neither the EMA nor the saved
    model.

    Attributes:
        names (tuple[str, ...]): Names of all terms of the task.
        weights (dict[str, float]): Weight of every term that is on.
        terms (dict[str, Term]): Terms by the name of their weight.
        adapters (nn.ModuleDict): Layers that train with the student and are not saved in the finished model.
        balance (Balance | None): Scales the terms by measured gradients; None with constant weights.
        schedule (str): How the terms fade: "constant", "linear" or "cosine".
        fade (float): Factor of all terms in the current epoch.
        gains (dict[str, float]): Gain of each head branch in the base loss of the model that trains, in the last step.
        reads (Reads): Parts of the teacher's answer that the terms read; the teacher need not compute others.
    """

    def __init__(self, args: Any, task: str, terms: Mapping[str, Term], reads: Reads):
        """Take the terms of a run.

        Args:
            args (Namespace): Arguments of the training.
            task (str): Its task.
            terms (Mapping[str, Term]): Terms by the name of their weight, as `terms.build` returns them.
            reads (Reads): Parts of the teacher's answer that the terms read.
        """
        self.names = TASK_WEIGHTS[task]
        self.weights = {name: float(getattr(args, name)) for name in self.names if getattr(args, name)}
        self.terms = dict(terms)
        self.adapters = nn.ModuleDict({k: t.adapters for k, t in self.terms.items() if t.adapters is not None})
        shares = gradient_shares(args, self.weights)
        self.balance = None if shares is None else Balance(shares)
        self.schedule: str = args.kd_schedule
        self.gains: dict[str, float] = {}
        self.reads = reads
        self.start_epoch(0.0)

    def start_epoch(self, progress: float) -> None:
        """Set the factor of all terms for an epoch.

        Args:
            progress (float): Share of the run that is over, 0 in the first epoch and 1 in the last.
        """
        if self.schedule == "linear":
            self.fade = 1 - progress
        elif self.schedule == "cosine":
            self.fade = (1 + math.cos(math.pi * progress)) / 2
        else:
            self.fade = 1.0

    def __deepcopy__(self, memo: dict) -> Distiller:
        """Return itself: copies of a model share the distiller of the run."""
        return self

    @property
    def levels(self) -> str:
        """The compared levels or pixels, as text for the table at the start of a training."""
        raise NotImplementedError

    def points(self, preds: Any) -> list[Tensor]:
        """Return the outputs of the student's layers at which gradients of the base loss and of the terms are compared.

        Args:
            preds (Any): The student's raw predictions.
        """
        raise NotImplementedError

    @contextmanager
    def capturing_features(self, model: nn.Module) -> Iterator[None]:
        """Capture the feature maps of a model's forward passes, if terms compare them.

        Args:
            model (nn.Module): The student, or its moving average.
        """
        yield  # heads with anchor points return the maps themselves

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
            answer (Any): The teacher's answer for the same images.
            head (nn.Module): The student's head.
            bases (Mapping[str, Any], optional): Base loss of each head branch.
            batch (Mapping[str, Any], optional): The batch.

        Returns:
            (dict[str, Tensor]): A scalar for each term of the task, 0 where it is off.
        """
        raise NotImplementedError


@contextmanager
def adapters_random_stream(seed: int) -> Iterator[None]:
    """Draw the adapters' first weights from a separate random stream, so that the student's training stays the same.

    Adapters are built on the CPU; `torch.manual_seed` would seed all other devices too.

    Args:
        seed (int): Seed of the training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def backbones_of(teacher: Teacher, imgsz: Any) -> Backbones | None:
    """Return the maps and weights of the backbones among the teachers, None if there are none.

    Args:
        teacher (Teacher): The teacher, or several.
        imgsz (int | list[int]): The student's image size in pixels. A backbone that reads images of one size gets them
            scaled, and the strides of its maps are those in pixels of the student's images.
    """
    if not teacher.backbones:
        return None
    return Backbones([_in_students_pixels(b, student_size(imgsz)) for b in teacher.backbones], teacher.backbone_shares)


def _in_students_pixels(backbone: Any, imgsz: int) -> FeatureLayout:
    """Return the maps of a backbone with their strides in pixels of the student's images."""
    maps = backbone.maps[0]
    if backbone.size is None:
        return maps
    return replace(maps, strides=tuple(max(round(s * imgsz / backbone.size[1]), 1) for s in maps.strides))


def common_maps(maps: FeatureLayout, student: FeatureLayout) -> FeatureLayout:
    """Return a teacher's feature maps at the strides that the student has too.

    Args:
        maps (FeatureLayout): The teacher's feature maps.
        student (FeatureLayout): The student's feature maps.
    """
    kept = [(s, c) for s, c in zip(maps.strides, maps.channels) if s in student.strides]
    return FeatureLayout(tuple(s for s, _ in kept), tuple(c for _, c in kept), maps.vectors)
