"""The feature term: head inputs of every level, through adapters where the numbers of channels differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config.user_code import load_loss, names_object, run_user_code
from ...errors import KDError
from ...losses import pkd_adapted
from ...losses.feature import FEATURE_LOSSES
from ...outputs import SCORES, FeatureLayout
from ..pairs import FeaturePair
from .named_losses import at_temperature, checked


class FeatureTerm:
    """Compares the inputs of the heads, summed over levels.

    The branches of a head share these features, so the term counts once. Each of several teachers has its own adapters,
    and their values are averaged by the teachers' weights.
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
        """Choose the loss and build the adapters.

        Args:
            loss (str): A name in `FEATURE_LOSSES`, or "module:name" of the user's own function or class. A function
                gets the adapted student's and the teacher's features, each of shape (B, C, H, W), and returns a scalar.
                A class is called for each level with the student's and the teacher's number of channels, and makes an
                nn.Module. The module is called like a function, but with the student's features before any adapter.
                Its parameters train like those of adapters.
            tau (float | None): Temperature; None for the loss's default.
            student (FeatureLayout): The student's feature maps.
            teachers (Sequence[FeatureLayout]): Feature maps of every teacher, at strides that the student has too.
            shares (Sequence[float]): Weight of every teacher; those whose maps are compared count in full.

        Raises:
            KDError: If the user's code cannot be imported, or does not make an nn.Module.
        """
        self.name = loss
        self.reads = frozenset({SCORES}) if loss == "sl2" else frozenset()
        self.levels = [[student.strides.index(s) for s in maps.strides] for maps in teachers]
        compared = sum(share for share, levels in zip(shares, self.levels) if levels)
        self.shares = [share / (compared or 1.0) for share in shares]
        channels = [
            (student.channels[i], c)
            for maps, levels in zip(teachers, self.levels)
            for i, c in zip(levels, maps.channels)
        ]
        # PKD removes the mean of every channel, so a bias would have no effect. MGD and the user's modules replace
        # these adapters. They are still built, as this draws random numbers: a run must not change between releases
        self.adapters: nn.Module | None = nn.ModuleList(adapter(s, t, bias=loss != "pkd") for s, t in channels)
        if loss == "mgd":
            self.adapters = nn.ModuleList(MGD(s, t) for s, t in channels)
        user_loss = load_loss("kd_feat_loss", loss) if names_object(loss) else None
        self.modules_compare = isinstance(user_loss, type)  # the user's modules both adapt and compare
        if self.modules_compare:
            self.adapters = nn.ModuleList(self._user_module(user_loss, s, t) for s, t in channels)
        elif user_loss is not None:
            self.loss = checked("kd_feat_loss", loss, user_loss)
        else:
            self.loss = at_temperature(FEATURE_LOSSES[loss], tau)

    def __call__(self, pair: FeaturePair) -> Tensor:
        """Return the term, a scalar."""
        assert isinstance(self.adapters, nn.ModuleList)
        adapters = iter(self.adapters)
        total = pair.student[0].new_zeros((), dtype=torch.float32)
        for share, levels, maps in zip(self.shares, self.levels, pair.teachers):
            scores = pair.confidence if self.name == "sl2" and pair.confidence is not None else [None] * len(maps)
            for level, teacher, score in zip(levels, maps, scores, strict=True):
                # Features are in half precision under AMP; the adapters' weights never are
                total = total + share * self._level(next(adapters), pair.student[level].float(), teacher.float(), score)
        # If all layers below are frozen, only adapters would learn. A detached term is reported as an error
        return total if any(maps.requires_grad for maps in pair.student) else total.detach()

    def _level(self, adapt: nn.Module, student: Tensor, teacher: Tensor, score: Tensor | None) -> Tensor:
        """Return the loss of one level, a scalar."""
        if student.shape[-2:] != teacher.shape[-2:]:  # a classifier of another family may have a finer last map
            size = min(student.shape[-2], teacher.shape[-2]), min(student.shape[-1], teacher.shape[-1])
            student, teacher = (F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
        teacher = teacher.detach()
        if self.modules_compare:
            return checked("kd_feat_loss", self.name, adapt)(student, teacher)
        if self.name == "pkd" and isinstance(adapt, nn.Conv2d):
            return pkd_adapted(student, adapt.weight, teacher)
        student = adapt(student)
        return self.loss(student, teacher) if score is None else self.loss(student, teacher, score)

    def _user_module(self, kind: Any, student: int, teacher: int) -> nn.Module:
        """Return the module that the user's class makes for one level.

        Raises:
            KDError: If the class does not make an nn.Module from two numbers of channels.
        """
        module = run_user_code("kd_feat_loss", self.name, lambda: kind(student, teacher))
        if not isinstance(module, nn.Module):
            raise KDError(f"kd_feat_loss={self.name} makes a {type(module).__name__}: a class must be an nn.Module.")
        return module


class MGD(nn.Module):
    """Masked generation of Yang et al. (ECCV 2022, https://arxiv.org/abs/2205.01529) for one level.

    Random positions of the student's features are masked in all channels, and two convolutions generate the teacher's
    whole features from the rest.

    Attributes:
        mask_state (Tensor | None): State in which the stream of masks begins; None for that of the training's seed.
    """

    def __init__(self, student: int, teacher: int, masked: float = 0.65):
        """Build adapter and generation block.

        Args:
            student (int): The student's channels.
            teacher (int): The teacher's channels.
            masked (float): Share of masked positions; 0.65 is the paper's value for one-stage detectors.
        """
        super().__init__()
        self.adapter = adapter(student, teacher)
        self.masked = masked
        self.mask_state: Tensor | None = None
        self._random: torch.Generator | None = None
        self.generation = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return generated features (B, teacher, H, W) from the student's (B, student, H, W)."""
        x = self.adapter(x)
        b, _, h, w = x.shape
        if self._random is None or self._random.device != x.device:
            # A separate stream: the student's training draws the same numbers with and without MGD. It differs by rank
            self._random = torch.Generator(x.device).manual_seed(torch.initial_seed() % 2**63)
            if self.mask_state is not None:
                self._random.set_state(self.mask_state)
                self.mask_state = None
        visible = torch.rand(b, 1, h, w, device=x.device, generator=self._random) >= self.masked
        return self.generation(x * visible)


def mask_states(adapters: nn.Module) -> list[Tensor]:
    """Return the states of the random streams that draw the masks of MGD, for a checkpoint.

    Args:
        adapters (nn.Module): The adapters of a training.
    """
    streams = [module._random for module in adapters.modules() if isinstance(module, MGD)]
    return [stream.get_state() for stream in streams if stream is not None]


def set_mask_states(adapters: nn.Module, states: Sequence[Tensor]) -> None:
    """Continue the random streams that draw the masks of MGD.

    Args:
        adapters (nn.Module): The adapters of a training, before their first step.
        states (Sequence[Tensor]): As `mask_states` returned them; empty for checkpoints of older releases.
    """
    for module, state in zip((each for each in adapters.modules() if isinstance(each, MGD)), states):
        module.mask_state = state


def adapter(student: int, teacher: int, bias: bool = True) -> nn.Module:
    """Return a 1x1 convolution from the student's to the teacher's channels, or the identity where they are equal."""
    return nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1, bias=bias)
