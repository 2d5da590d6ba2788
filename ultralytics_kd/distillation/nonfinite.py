"""Which part of a loss was the first that is no number, found out without making the host wait."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class FirstFault:
    """Remembers which parts of a loss were no numbers in the first batch in which any was.

    From that batch on the student's weights may be none, and then every part is none.
    """

    def __init__(self) -> None:
        """Begin."""
        self._names: tuple[str, ...] = ()
        self._bad: Tensor | None = None

    def look(self, items: Mapping[str, Tensor]) -> None:
        """Look at the parts of a batch's loss.

        Args:
            items (Mapping[str, Tensor]): Scalars by name, on one device.
        """
        bad = ~torch.stack([value.detach().float() for value in items.values()]).isfinite()
        names = tuple(items)
        kept = self._bad if names == self._names else None
        self._names = names
        self._bad = bad if kept is None else torch.where(kept.any(), kept, bad)

    def names(self) -> list[str]:
        """Return the names of the parts that were no numbers first; the host waits for the device here."""
        return [] if self._bad is None else [n for n, bad in zip(self._names, self._bad.tolist()) if bad]

    def forget(self) -> None:
        """Begin again."""
        self._bad = None
