"""Automatic weights of the terms (`kd_weight`), from gradients that are measured every few steps.

A constant weight has a different effect on every student. When a student has learnt its labels, their gradient is
small, and the same weight pulls it several times as hard as a student that has just begun. `Balance` therefore measures
the gradient of the base loss and of each term, at the feature maps that enter the head. It scales a term so that its
gradient is a given share of the base loss's gradient. A term fades while the two gradients do not agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

EVERY = 50  # steps between two measurements; the first ones come at steps 0, 1, 2, 4, 8, 16 and 32
MOMENTUM = 0.8  # of the moving averages, per measurement
LARGEST = 4.0  # a term is never scaled up by more: where student and teacher agree, its gradient may be tiny
# Cosines of the two gradients: a term fades below the first and is off below the second. The terms of good teachers
# began with 0.3 to 0.6. A teacher trained for one epoch fell from 0.15 to 0.02, and classes in a wrong order had -0.1.
# Good teachers end with 0.04 to 0.5, because the student has learnt what they know; by then it no longer needs them
FADES, OFF = 0.25, 0.12
TINY = 1e-20


class Balance:
    """Scales terms to a share of the base loss's gradient.

    Attributes:
        shares (dict[str, float]): For each term, the wanted norm of its gradient relative to the base loss's gradient.
        step (int): Number of training steps so far.
    """

    def __init__(self, shares: Mapping[str, float]):
        """Take the shares.

        Args:
            shares (Mapping[str, float]): For each term, the wanted norm of its gradient relative to the base loss's.
        """
        self.shares, self.step = dict(shares), 0
        self._averages: Tensor | None = None  # shape (terms, 3): squared norms of base and term, and their product
        self._weight = 0.0  # total weight of the measurements: the moving averages begin with 0
        self._factors: Tensor | None = None
        self._off: set[str] = set()
        self._unseen: set[str] = set()

    def update(
        self,
        base: Tensor,
        terms: Mapping[str, Tensor],
        points: Sequence[Tensor],
        labeled: int | None = None,
        counts: Tensor | None = None,
    ) -> None:
        """Count a training step, and measure its gradients if it is time; without a device sync.

        Args:
            base (Tensor): The base loss, a scalar.
            terms (Mapping[str, Tensor]): The terms of `shares`, scalars on the scale of `base`.
            points (Sequence[Tensor]): Outputs of student layers at which gradients are compared, batch dimension first.
            labeled (int, optional): Number of images with labels, which come first; None if all have labels. The others
                are not compared: the base loss has no gradient there, or only one from the teacher's own boxes.
            counts (Tensor, optional): Scalar, 0 if the teacher's answer was non-finite: then the step counts nothing.
        """
        if self._due():
            self._measure(base, [terms[name] for name in self.shares], points, labeled, counts)
        self.step += 1

    def _due(self) -> bool:
        """Return whether this step is measured: powers of two at first, then every `EVERY` steps."""
        return self.step % EVERY == 0 or (self.step < EVERY and self.step & (self.step - 1) == 0)

    def _measure(
        self,
        base: Tensor,
        terms: Sequence[Tensor],
        points: Sequence[Tensor],
        labeled: int | None,
        counts: Tensor | None,
    ) -> None:
        """Add the gradients of a step to the moving averages, and compute the factors again."""
        gradients = [_gradient(loss, points, labeled) for loss in (base, *terms)]
        own = gradients[0]
        norm = own.dot(own)
        measured = torch.stack([torch.stack((norm, g.dot(g), own.dot(g))) for g in gradients[1:]])
        if counts is not None:
            measured = measured * counts
        if dist.is_available() and dist.is_initialized():  # every rank must use the same weights
            dist.all_reduce(measured)
        measured = torch.where(measured.isfinite().all(), measured, torch.zeros_like(measured))
        before = torch.zeros_like(measured) if self._averages is None else self._averages.to(measured.device)
        self._averages = MOMENTUM * before + (1 - MOMENTUM) * measured
        self._weight = MOMENTUM * self._weight + 1 - MOMENTUM
        self._factors = self._compute()

    def ratios(self) -> Tensor:
        """Return the norm of each term's gradient divided by the base loss's gradient norm, shape (len(shares),)."""
        base, term, _ = self._columns()
        return (term / base.clamp(min=TINY)).sqrt()

    def cosines(self) -> Tensor:
        """Return the cosine between each term's gradient and that of the base loss, shape (len(shares),)."""
        base, term, product = self._columns()
        return product / (base * term).sqrt().clamp(min=TINY)

    def factors(self) -> Tensor | None:
        """Return the factor of each term, shape (len(shares),); None before the first measurement."""
        return self._factors

    def _compute(self) -> Tensor:
        """Return the factors from the moving averages: 1 if the term or the base loss has no gradient at the points."""
        ratios = self.ratios()
        shares = ratios.new_tensor(list(self.shares.values()))
        agrees = ((self.cosines() - OFF) / (FADES - OFF)).clamp(0, 1)
        factors = (shares / ratios.clamp(min=TINY)).clamp(max=LARGEST) * agrees
        return torch.where(self._seen(), factors, torch.ones_like(factors))

    def _seen(self) -> Tensor:
        """Return whether base loss and term have a gradient at the points, shape (len(shares),)."""
        base, term, _ = self._columns()
        return (base > 0) & (term > 0)

    def news(self) -> list[str]:
        """Return a sentence for each term that was turned off, turned on again or has no gradient, since the last call.

        This waits for the device.
        """
        factors = self.factors()
        if factors is None:
            return []
        off = {name for name, factor in zip(self.shares, factors.tolist()) if not factor}
        cosines = dict(zip(self.shares, self.cosines().tolist()))
        taken = [
            f"{name} is turned off: its gradient does not agree with that of the labels (cosine {cosines[name]:+.2f})."
            for name in self.shares
            if name in off - self._off
        ]
        back = [
            f"{name} teaches again (cosine {cosines[name]:+.2f})." for name in self.shares if name in self._off - off
        ]
        seen = dict(zip(self.shares, self._seen().tolist()))
        unseen = {name for name in self.shares if not seen[name]}
        blind = [
            f"kd_weight leaves {name} at its constant weight: it has no gradient where gradients are compared."
            for name in self.shares
            if name in unseen - self._unseen
        ]
        self._off, self._unseen = off, self._unseen | unseen
        return blind + taken + back

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to continue."""
        return {"step": self.step, "averages": self._averages, "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self.step, self._averages, self._weight = state["step"], state["averages"], state["weight"]
        self._factors = None if self._averages is None else self._compute()

    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the moving averages, each of shape (len(shares),)."""
        assert self._averages is not None
        base, term, product = (self._averages / self._weight).unbind(1)
        return base, term, product


def _gradient(loss: Tensor, points: Sequence[Tensor], labeled: int | None) -> Tensor:
    """Return the gradient of a loss at some points as one float32 vector; 0 where the loss does not depend on them."""
    gradients = torch.autograd.grad(loss, points, retain_graph=True, allow_unused=True) if loss.requires_grad else []
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip_longest(points, gradients)]
    return torch.cat([part[:labeled].float().flatten() for part in parts])
