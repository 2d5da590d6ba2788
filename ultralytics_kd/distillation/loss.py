"""The distillation loss: Ultralytics' own loss plus the weighted terms, and which part became NaN or Inf first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.loss import v8ClassificationLoss

from .. import outputs
from ..errors import KDError
from ..outputs import ONE2MANY
from .balance import Balance
from .distillers import Distiller
from .ignored_background import check_ignores_background
from .keeping import ClassKeeper
from .pseudo_boxes import PseudoBoxes

LABELED = "kd_labeled"  # in a batch: number of images with labels, which come first; absent if all have labels
# Attributes that are not the base loss's
OWN = {"ask", "base", "distiller", "first_nonfinite", "head", "inspect", "keeper", "pseudo", "scaled", "trains"}
FINITE_FACTOR = "kd_finite_factor"  # in a batch: 0 if the answer contained NaN or Inf, else 1; absent if it was checked


class DistillationLoss:
    """A YOLO loss that adds the terms for the teacher's answer in the batch.

    It asks for the answer itself if the batch has none, so that no trainer can bypass the teacher. Without an
    answer it is the base loss, bit for bit. Images without labels come last in a batch. They enter the terms and not
    the base loss, unless the teacher's boxes are their labels. A copy or a pickle of it is the base loss alone, so that
    no copy of a model holds a teacher.

    Attributes:
        base (Any): Ultralytics' loss of the student.
        distiller (Distiller): The terms.
        head (nn.Module): Head of the model that this loss belongs to.
        trains (bool): Whether that model trains. Its moving average does not.
        ask (Callable | None): Adds the teacher's answer to a batch that lacks it.
        pseudo (PseudoBoxes | None): The teacher's boxes as labels of images without labels.
        inspect (Callable | None): Called with a training batch, its terms, and the terms as they enter the loss, until
            the epoch's first batch is checked.
        first_nonfinite (FirstNonFinite): Which part of the loss became NaN or Inf first.
        keeper (ClassKeeper | None): Classes that the student keeps although the data do not label them.
    """

    def __init__(
        self,
        base: Any,
        distiller: Distiller,
        head: Any,
        trains: bool = True,
        ask: Callable[[dict], Any] | None = None,
        pseudo: PseudoBoxes | None = None,
        keeper: ClassKeeper | None = None,
    ):
        """Wrap a base loss.

        Args:
            base (Any): Ultralytics' loss of the student.
            distiller (Distiller): The terms.
            head (nn.Module): Head of the model that this loss belongs to.
            trains (bool): Whether that model trains. Ultralytics does not update the base loss of its moving average,
                so the terms use the last gains of training there; this makes train and val losses comparable.
            ask (Callable, optional): Adds the teacher's answer to a batch that lacks it, and does nothing to others. A
                model that trains asks only where there is a gradient.
            pseudo (PseudoBoxes, optional): The teacher's boxes as labels of images without labels.
            keeper (ClassKeeper, optional): Classes that the student keeps although the data do not label them.

        Raises:
            KDError: If there are pseudo-boxes or kept classes, and the base loss is not Ultralytics' own.
        """
        self.base, self.distiller, self.head, self.trains = base, distiller, head, trains
        self.ask, self.pseudo, self.keeper = ask, pseudo, keeper
        for part, argument in ((keeper, "kd_keep"), (pseudo, "kd_unlabeled_boxes")):
            if part is not None:
                check_ignores_background(self.bases, argument)
        self.inspect: Callable[[dict[str, Any], dict[str, Tensor], dict[str, Tensor]], None] | None = None
        self.first_nonfinite = FirstNonFinite()
        # A classifier's loss is a mean over images, that of a user too; all others are times batch size
        self.scaled = not (isinstance(base, v8ClassificationLoss) or type(head).__name__ == "Classify")

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parts of the loss times batch size, and their detached values.

        Args:
            preds (dict | tuple): The student's raw predictions.
            batch (dict): Images and labels, and under "teacher" the teacher's answer.

        Returns:
            loss (Tensor): Base parts and the task's terms, shape (n,), each times batch size as the base loss is.
            items (dict[str, Tensor]): The same by name, without gradient and not times batch size.

        Raises:
            KDError: If a user's base loss does not return its parts by name.
        """
        if self.keeper is not None:  # what the teacher sees decides what the base loss ignores
            self._ask(batch)
        answer = batch.get("teacher")
        if self.keeper is None or answer is None:
            loss, items = self._base_loss(preds, batch)
        else:
            loss, items, answer = self._keeping(self.keeper, preds, batch, answer)
        if not isinstance(items, dict):
            raise KDError(
                f"{type(self.base).__name__} returned its parts as a {type(items).__name__}: a loss returns the parts "
                "times batch size and a dict of their values by name, as Ultralytics' losses do."
            )
        if self.keeper is None:
            self._ask(batch)
            answer = batch.get("teacher")
        if answer is None:
            return loss, items
        if self.trains or not self.distiller.gains:
            self.distiller.gains = self.gains
        terms = self.distiller(preds, answer, self.head, self.bases, batch)
        measured = terms
        if self.distiller.balance is not None:
            terms = self._balanced(self.distiller.balance, loss, terms, preds, batch)
        if self.inspect is not None and torch.is_grad_enabled():
            self.inspect(batch, measured, terms)
        kd = torch.stack(list(terms.values()))
        if batch.get(FINITE_FACTOR) is not None:
            kd = kd * batch[FINITE_FACTOR]
        items = {**items, **dict(zip(terms, kd.detach()))}
        if self.trains:
            self.first_nonfinite.update(items)
        if self.scaled:  # by the number of labelled images, so that unlabelled ones do not change the balance
            kd = kd * (batch.get(LABELED) or batch["img"].shape[0])
        return torch.cat([loss.reshape(-1), kd]), items

    def _ask(self, batch: dict[str, Any]) -> None:
        """Ask for the teacher's answer to a batch that lacks it."""
        if self.ask is not None and (torch.is_grad_enabled() or not self.trains):
            self.ask(batch)

    def _base_loss(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return Ultralytics' loss of the images with labels, or of all images if the others have pseudo-boxes."""
        if self.pseudo is not None and LABELED in batch:
            self._ask(batch)
            # A factor of 0 marks an answer that was not finite: it has no boxes, and says nothing about the background
            if "teacher" in batch and bool(batch.get(FINITE_FACTOR, True)):
                return self.pseudo.loss(self.base, self.bases, preds, batch, batch[LABELED])
        return self.base(*self._labeled(preds, batch))

    def _keeping(
        self, keeper: ClassKeeper, preds: Any, batch: dict[str, Any], answer: Any
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Return the base loss that ignores unlabelled objects of kept classes, and the corrected answer."""
        student, answer = outputs.branches(preds), keeper.without_labelled(answer, batch)
        seen = keeper.seen(answer, student, self.bases)
        with keeper.masking(self.bases, seen, batch.get(LABELED, len(batch["img"]))) as masked:
            loss, items = self._base_loss(preds, batch)
        return loss, items, keeper.corrected(answer, masked, student)

    def _balanced(
        self, balance: Balance, loss: Tensor, terms: dict[str, Tensor], preds: Any, batch: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Return the terms, scaled to their shares of the base loss's gradient."""
        if self.trains and torch.is_grad_enabled() and self.distiller.fade:
            count = batch.get(LABELED, batch["img"].shape[0]) if self.scaled else 1
            unfaded = {name: terms[name] / self.distiller.fade for name in balance.shares}
            points, counts = self.distiller.points(preds), batch.get(FINITE_FACTOR)
            balance.update(loss.sum() / count, unfaded, points, batch.get(LABELED), counts)
        factors = balance.factors()
        return terms if factors is None else {**terms, **{n: f * terms[n] for n, f in zip(balance.shares, factors)}}

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the base loss, which user callbacks may read."""
        if name == "base":
            raise AttributeError(name)
        return getattr(self.base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the base loss if it has one of that name."""
        own = name in OWN or not hasattr(self.base, name)
        object.__setattr__(self if own else self.base, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as the base loss."""
        return _itself, (self.base,)

    @staticmethod
    def _labeled(preds: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return predictions and batch without the images that have no labels."""
        count, images = batch.get(LABELED), batch["img"]
        if count is None or count == len(images):
            return preds, batch
        return outputs.take_images(preds, count, len(images)), {**batch, "img": images[:count]}

    @property
    def bases(self) -> dict[str, Any]:
        """The base loss of each head branch."""
        if hasattr(self.base, "o2m"):
            return {ONE2MANY: self.base.one2many, outputs.ONE2ONE: self.base.one2one}
        return {ONE2MANY: self.base}

    @property
    def gains(self) -> dict[str, float]:
        """The base loss's gain of each head branch, which changes during an end-to-end training."""
        if hasattr(self.base, "o2m"):
            return {ONE2MANY: self.base.o2m, outputs.ONE2ONE: self.base.o2o}
        return {ONE2MANY: 1.0}

    def update(self) -> None:
        """Update the base loss's gains after an epoch; Ultralytics calls this."""
        if hasattr(self.base, "update"):
            self.base.update()


def _itself(base: Any) -> Any:
    """Return a base loss: what is left of a distillation loss that is copied or pickled."""
    return base


class FirstNonFinite:
    """Records which parts of a loss were NaN or Inf in the first batch with such a part, without a device sync.

    Later batches tell nothing: the student's weights may be NaN by then, and then every part is NaN.
    """

    def __init__(self) -> None:
        """Start with all parts finite."""
        self._names: tuple[str, ...] = ()
        self._nonfinite: Tensor | None = None

    def update(self, items: Mapping[str, Tensor]) -> None:
        """Check the parts of a batch's loss.

        Args:
            items (Mapping[str, Tensor]): Scalars by name, on one device.
        """
        nonfinite = ~torch.stack([value.detach().float() for value in items.values()]).isfinite()
        names = tuple(items)
        before = self._nonfinite if names == self._names else None
        self._names = names
        self._nonfinite = nonfinite if before is None else torch.where(before.any(), before, nonfinite)

    def names(self) -> list[str]:
        """Return the names of the parts that were NaN or Inf first; this waits for the device."""
        if self._nonfinite is None:
            return []
        return [name for name, nonfinite in zip(self._names, self._nonfinite.tolist()) if nonfinite]

    def reset(self) -> None:
        """Start again with all parts finite."""
        self._nonfinite = None
