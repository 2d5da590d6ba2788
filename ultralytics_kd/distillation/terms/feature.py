"""The feature term: head inputs of every level, through adapters where channels differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config.user_code import own_loss
from ...config.user_code import made, names_object
from ...errors import KDError
from ...losses import cwd, mgd_distance, pkd, pkd_adapted, sl2
from ...outputs import SCORES, FeatureLayout
from .base import FeaturePair


class FeatureTerm:
    """PKD, CWD, MGD, score-weighted L2 or a loss of the user's on what enters the head, summed over levels.

    The features are shared by the head's branches, so the term counts once. Several teachers have adapters of their own
    each, and are averaged by their weights.
    """

    per_branch = False

    def __init__(
        self,
        loss: str,
        tau: float | None,
        student: FeatureLayout,
        teachers: Sequence[FeatureLayout],
        shares: Sequence[float] = (1.0,),
    ):
        """Build the adapters.

        Args:
            loss (str): "pkd", "cwd", "mgd", "sl2", or "module:name" of the user's own code: a function of the adapted
                student's and the teacher's features, each of shape (B, C, H, W), that returns a scalar; or a class
                that is called with both numbers of channels for every level, and makes an nn.Module that does so with
                the student's features as they are. Its parameters train as adapters do.
            tau (float | None): Temperature of "cwd".
            student (FeatureLayout): The student's feature maps.
            teachers (Sequence[FeatureLayout]): Those of every teacher, of strides that the student has too.
            shares (Sequence[float]): Weight of every teacher.
        """
        self.loss, self.tau, self.shares = loss, tau or 1.0, shares
        self.reads = frozenset({SCORES}) if loss == "sl2" else frozenset()
        self.levels = [[student.strides.index(s) for s in maps.strides] for maps in teachers]
        channels = [
            (student.channels[i], c)
            for maps, levels in zip(teachers, self.levels)
            for i, c in zip(levels, maps.channels)
        ]
        # PKD removes the mean of every channel, and with it whatever a bias would add
        self.adapters: nn.Module = nn.ModuleList(adapter(s, t, bias=loss != "pkd") for s, t in channels)
        if loss == "mgd":
            self.adapters = nn.ModuleList(MGD(s, t) for s, t in channels)
        self._own = own_loss(loss) if names_object(loss) else None
        if isinstance(self._own, type):
            self.adapters = nn.ModuleList(self._made(self._own, s, t) for s, t in channels)

    def __call__(self, pair: FeaturePair) -> Tensor:
        """Return the term, a scalar."""
        assert isinstance(self.adapters, nn.ModuleList)
        adapters = iter(self.adapters)
        total = pair.student[0].new_zeros((), dtype=torch.float32)
        for share, levels, maps in zip(self.shares, self.levels, pair.teachers):
            scores = pair.confidence if self.loss == "sl2" and pair.confidence is not None else [None] * len(maps)
            for level, teacher, score in zip(levels, maps, scores, strict=True):
                # Features come in half precision under AMP, the adapters' weights never are
                total = total + share * self._level(next(adapters), pair.student[level].float(), teacher.float(), score)
        return total

    def _level(self, adapt: nn.Module, student: Tensor, teacher: Tensor, scores: Tensor | None) -> Tensor:
        """Return the loss of one level, a scalar."""
        if student.shape[-2:] != teacher.shape[-2:]:  # another family's classifier may end in a finer map
            size = min(student.shape[-2], teacher.shape[-2]), min(student.shape[-1], teacher.shape[-1])
            student, teacher = (F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
        if self._own is not None:
            if isinstance(self._own, type):  # it has adapters of its own, if it wants any
                return self._checked(student, teacher, adapt)
            return self._checked(adapt(student), teacher, self._own)
        if self.loss == "pkd" and isinstance(adapt, nn.Conv2d):
            return pkd_adapted(student, adapt.weight, teacher)
        student = adapt(student)
        if scores is not None:
            return sl2(student, teacher, scores)
        if self.loss == "cwd":
            return cwd(student, teacher, self.tau)
        return mgd_distance(student, teacher) if self.loss == "mgd" else pkd(student, teacher)

    def _made(self, kind: type, student: int, teacher: int) -> nn.Module:
        """Return one level's loss of the user's class.

        Raises:
            KDError: If it makes no nn.Module of two numbers of channels.
        """
        loss = made("kd_feat_loss", self.loss, lambda: kind(student, teacher))
        if not isinstance(loss, nn.Module):
            raise KDError(f"kd_feat_loss={self.loss} makes a {type(loss).__name__}: a class must be an nn.Module.")
        return loss

    def _checked(self, student: Tensor, teacher: Tensor, loss: Callable[[Tensor, Tensor], Any]) -> Tensor:
        """Return what the user's loss returns.

        Raises:
            KDError: If it is no scalar.
        """
        value = loss(student, teacher.detach())
        if not isinstance(value, Tensor) or value.numel() != 1:
            said = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise KDError(f"kd_feat_loss={self.loss} returns {said}: it must return a scalar tensor.")
        return value.float().reshape(())


class MGD(nn.Module):
    """Masked generation of Yang et al. (ECCV 2022, https://arxiv.org/abs/2205.01529) for one level.

    Positions of the student's feature are hidden at random, all channels together, and two convolutions must generate
    the teacher's whole feature from what is left.
    """

    def __init__(self, student: int, teacher: int, hidden: float = 0.65):
        """Build adapter and generation block.

        Args:
            student (int): The student's channels.
            teacher (int): The teacher's channels.
            hidden (float): Share of positions that is hidden; 0.65 is the paper's value for one-stage detectors.
        """
        super().__init__()
        self.adapter = adapter(student, teacher)
        self.hidden = hidden
        self._random: torch.Generator | None = None
        self.generation = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return generated features (B, teacher, H, W) from the student's (B, student, H, W)."""
        x = self.adapter(x)
        b, _, h, w = x.shape
        if self._random is None or self._random.device != x.device:
            # Of its own, so that the student's training draws what it would draw without; different on every rank
            self._random = torch.Generator(x.device).manual_seed(torch.initial_seed() % 2**63)
        visible = torch.rand(b, 1, h, w, device=x.device, generator=self._random) >= self.hidden
        return self.generation(x * visible)


def adapter(student: int, teacher: int, bias: bool = True) -> nn.Module:
    """Return a 1x1 convolution from the student's to the teacher's channels, or nothing where they are equal."""
    return nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1, bias=bias)
