"""The mosaics of a sample at two sizes: the same images meet at the same place.

Ultralytics draws the place where four images meet as a share of the mosaic, and rounds it down to whole pixels. One
pixel of the student's mosaic is several of the teacher's, so the scenes would lie up to one pixel of the student apart:
on small objects the labels of both would overlap by 0.88 (mean IoU on deeppcb, 128 and 256 px).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ultralytics.data import augment


class SameCentre:
    """`get_params` of the larger data set's mosaic, whose images meet where those of the student's mosaic meet."""

    def __init__(self, mosaic: Any, ratio: float):
        """Take the larger mosaic, and its size divided by that of the student's."""
        self.mosaic, self.ratio = mosaic, ratio

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Return what Ultralytics' method returns, and draw the same random numbers."""
        stock: Any = augment.random
        augment.random = _Rounding(stock, self.ratio)
        try:
            return type(self.mosaic).get_params(self.mosaic, labels)
        finally:
            augment.random = stock


class _Rounding:
    """Python's random numbers, but for places, which are whole pixels of the smaller mosaic."""

    def __init__(self, stock: Any, ratio: float):
        """Take the generator, and the size of the larger mosaic divided by that of the smaller one."""
        self._stock, self._ratio = stock, ratio

    def uniform(self, low: float, high: float) -> int:
        """Return a place in pixels of the larger mosaic."""
        return round(int(self._stock.uniform(low, high) / self._ratio) * self._ratio)

    def __getattr__(self, name: str) -> Any:
        """Return another function of the generator."""
        return getattr(self._stock, name)


def align_mosaics(small: Any, large: Any) -> None:
    """Let the mosaics of two data sets draw the same random numbers, and put their images at the same place.

    Args:
        small (Dataset): The student's data set.
        large (Dataset): The same images at the teacher's size.
    """
    for ours, theirs in zip(_mosaics(small.transforms), _mosaics(large.transforms)):
        # The random numbers of both must be of one kind: `cache=ram` may have room for one size alone
        theirs.buffer_enabled = ours.buffer_enabled
        if ours.buffer_enabled and not large.buffer and large.cache == "ram":
            large.buffer = [0]  # drawn from in vain, as the images are those that were noted
        theirs.get_params = SameCentre(theirs, theirs.imgsz / ours.imgsz)


def _mosaics(transform: Any) -> Iterator[Any]:
    """Yield the mosaics of a transform and of its parts."""
    if hasattr(transform, "buffer_enabled"):
        yield transform
    for part in (*getattr(transform, "transforms", ()), getattr(transform, "pre_transform", None)):
        if part is not None:
            yield from _mosaics(part)
