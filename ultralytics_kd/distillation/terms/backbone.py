"""The feature term for backbones: the student's maps predict a foundation model's features."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ...losses import cosine
from ...outputs import FeatureLayout
from ..pairs import FeaturePair


class BackboneTerm:
    """Compares features by their direction, behind a 1x1 convolution that is not saved in the model.

    A backbone's map is resampled to the student's level of the nearest stride. Each backbone's levels are averaged, and
    the backbones by their weights.
    """

    per_branch = False
    reads: frozenset[str] = frozenset()

    def __init__(self, student: FeatureLayout, backbones: Sequence[FeatureLayout], shares: Sequence[float]):
        """Choose the levels and build the convolutions.

        Args:
            student (FeatureLayout): The student's feature maps.
            backbones (Sequence[FeatureLayout]): Maps of every backbone.
            shares (Sequence[float]): Weight of every backbone.
        """
        self.shares = shares
        self.levels = [nearest_levels(student.strides, maps.strides) for maps in backbones]
        self.adapters: nn.Module | None = nn.ModuleList(
            nn.Conv2d(student.channels[level], maps.channels[i], 1)
            for maps, levels in zip(backbones, self.levels)
            for level, i in levels.items()
        )

    def __call__(self, pair: FeaturePair) -> Tensor:
        """Return the term, a scalar between 0 and 2."""
        assert isinstance(self.adapters, nn.ModuleList)
        adapters = iter(self.adapters)
        total = pair.student[0].new_zeros(()).float()
        for share, levels, maps in zip(self.shares, self.levels, pair.teachers, strict=True):
            for level, i in levels.items():
                features = next(adapters)(pair.student[level].float())
                total = total + share / len(levels) * cosine(features, resampled(maps[i].float(), features))
        # If all layers below are frozen, only adapters would learn. A detached term is reported as an error
        return total if any(maps.requires_grad for maps in pair.student) else total.detach()


def nearest_levels(student: Sequence[int], backbone: Sequence[int]) -> dict[int, int]:
    """Return which map of a backbone teaches each level of the student; a map belongs to the level of nearest stride.

    If several maps belong to one level, the nearest one teaches it, or the last of equally near ones. A classifier has
    one level for the whole image, which learns from the last map.

    Args:
        student (Sequence[int]): Strides of the student's maps; 0 for a classifier's.
        backbone (Sequence[int]): Strides of the backbone's maps, in rising order.

    Returns:
        (dict[int, int]): Index of the student's level -> index of the backbone's map.

    Examples:
        >>> nearest_levels((8, 16, 32), (14,)), nearest_levels((8, 16, 32), (2, 4, 8, 16, 32))
        ({1: 0}, {0: 2, 1: 3, 2: 4})
    """
    if 0 in student:
        return {len(student) - 1: len(backbone) - 1}
    found: dict[int, tuple[float, int]] = {}
    for i, stride in enumerate(backbone):
        away, level = min((abs(math.log2(stride / own)), level) for level, own in enumerate(student))
        if level not in found or away <= found[level][0]:
            found[level] = away, i
    return {level: i for level, (_, i) in sorted(found.items())}


def resampled(maps: Tensor, like: Tensor) -> Tensor:
    """Return maps (B, C, H, W) resized to the height and width of other maps, with antialiasing."""
    size = like.shape[-2:]
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", antialias=True)
