"""A check for NaN and Inf in a teacher's outputs, without a device sync."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class FiniteCheck:
    """Checks that a model's outputs are finite, batch by batch.

    The first batch is checked before its outputs are used, and so is every batch on a CPU. On a GPU that would need a
    device sync. There the check is delayed: a call returns the result of the previous batch, which has arrived by then.

    Attributes:
        pending (Tensor | None): Whether the last outputs are finite, on their device; None if the call returned this.
    """

    pending: Tensor | None = None

    def __init__(self, delayed: bool = False):
        """Start before the first batch.

        Args:
            delayed (bool): Whether a call returns the result of the previous batch, from the second batch on.
        """
        self.delayed, self.first = delayed, True
        self._previous: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether outputs are finite; if delayed, whether those of the previous batch were.

        Args:
            tensors (Sequence[Tensor]): All floating-point outputs for a batch.
        """
        filled = [x for x in tensors if x.numel()]
        if not filled:
            return True
        # A sum is NaN or Inf if one of its terms is, and it takes one pass over memory
        finite = torch.stack([x.sum(dtype=torch.float32) for x in filled]).isfinite().all()
        if self.first or not self.delayed:
            self.first, self.pending = False, None
            return bool(finite)
        self.pending = finite
        previous, self._previous = self._previous, self._copy_to_host(finite)
        if previous is None:
            return True
        flag, arrived = previous
        arrived.synchronize()
        return bool(flag)

    @staticmethod
    def _copy_to_host(flag: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Copy a flag to the host without waiting.

        Returns:
            host (Tensor): The flag on the host.
            arrived (Event): The event after which it is valid.
        """
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event
