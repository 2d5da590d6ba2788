"""Whether what a teacher says are numbers, found out without making the host wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Watch:
    """Looks at the answers of what runs, one after the other.

    The first is looked at before it is used, and every one where that costs no time, as on the CPU. If it lags it is
    the answer before that is judged, which the device has finished by then: one batch later, but for nothing.

    Attributes:
        unjudged (Tensor | None): Whether the last answer is finite, on its device, if nobody has looked yet.
    """

    unjudged: Tensor | None = None

    def __init__(self, lags: bool = False):
        """Begin.

        Args:
            lags (bool): Whether it is the answer before that is judged, from the second on.
        """
        self.lags, self.first = lags, True
        self._before: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, numbers: Sequence[Tensor]) -> bool:
        """Return whether the numbers are finite, or those before were.

        Args:
            numbers (Sequence[Tensor]): All floating-point tensors of an answer.
        """
        given = [x for x in numbers if x.numel()]
        if not given:
            return True
        # A sum is finite if all it sums is, and one pass over memory
        finite = torch.stack([x.sum(dtype=torch.float32) for x in given]).isfinite().all()
        if self.first or not self.lags:
            self.first, self.unjudged = False, None
            return bool(finite)
        self.unjudged = finite
        before, self._before = self._before, self._sent(finite)
        if before is None:
            return True
        before[1].synchronize()
        return bool(before[0])

    @staticmethod
    def _sent(flag: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Send a flag to the host, and return where it arrives and when."""
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event
