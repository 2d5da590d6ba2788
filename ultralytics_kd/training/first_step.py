"""Checks of the first batches: a run with a teacher stops here if it does not distil.

A user's trainer, model or callback can replace any part of a run. What cannot be kept in place is checked in the first
batch of every epoch: the student saw the images that the teacher answered, the returned loss contains the terms, and
the optimizer has the adapters. The first epoch also checks the values of the terms and their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from ..distillation.distillers import Distiller
from ..distillation.loss import FINITE_FACTOR
from ..errors import KDError

DARK = 0.02  # a batch whose highest value is lower was probably divided by 255 twice
HOOKS = 'see "A trainer of your own" in docs/extending.md'


def overriding_class(trainer: Any, method: str) -> type | None:
    """Return the user's class that defines a trainer's method; None if Ultralytics or this package defines it.

    Args:
        trainer (BaseTrainer): The trainer.
        method (str): Name of the method.
    """
    if method in vars(trainer):
        return type(trainer)
    libraries = {"ultralytics", __name__.partition(".")[0]}
    definers = (
        c for c in type(trainer).__mro__ if method in vars(c) and c.__module__.partition(".")[0] not in libraries
    )
    return next(definers, None)


class FirstStep:
    """Looks at the first batch, and raises before the first optimizer step if the run does not distil.

    Attributes:
        distiller (Distiller): The terms and their adapters.
        started (bool): Whether a batch was trained and checked.
        passed (bool): Whether the first batch of the current epoch was checked.
        pending (set[str]): Terms that were 0 so far. A batch may give them nothing to compare.
        averaged (bool): Whether the adapters' gradients were averaged over ranks.
    """

    def __init__(self, distiller: Distiller):
        """Take the terms of a run."""
        self.distiller, self.started, self.passed, self.averaged = distiller, False, False, False
        self.pending = set(distiller.terms)
        self._student: Any = None
        self._seen: Tensor | None = None  # the images that the student was called with last
        self._answered: Tensor | None = None  # the images of the last answer
        self._terms: dict[str, Tensor] = {}
        self._in_loss: set[str] = set()  # terms that a gradient of the returned loss has reached

    def follow(self, event: str, trainer: Any) -> None:
        """Do what is due at an event of the training.

        Args:
            event (str): Name of the event, whose callbacks have run.
            trainer (BaseTrainer): The trainer.

        Raises:
            KDError: As `check` does.
        """
        student = unwrap_model(trainer.model)
        if event == "on_train_epoch_start":
            self._forget()  # after an error, such as one of memory, the last batch would keep its whole graph
            self.passed, student.criterion.inspect = False, self.inspect
        elif event == "on_train_batch_start" and not (self.passed or trainer.args.compile):
            self._watch(student)
        elif event == "on_train_batch_end" and not self.over:
            self.check(trainer.optimizer, trainer.epoch)
        elif event == "on_train_epoch_end":
            self._check_log(trainer.tloss or {})
            self._end_epoch()
        if self.over:
            student.criterion.inspect = None

    def _watch(self, student: Any) -> None:
        """Note the images that the student is called with in the next batch.

        A compiled student is not watched: Ultralytics itself hands it the images of the batch, and a method around it
        would be compiled too.
        """
        if self._student is not None:  # the last batch ended in an error that Ultralytics recovers from
            return
        stock: Any = student.forward

        def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(x, Tensor) and torch.is_grad_enabled():
                self._seen = x
            return stock(x, *args, **kwargs)

        # Not a hook of PyTorch's: Ultralytics' loss() calls forward() directly, which runs no hooks
        student.forward = forward
        self._student = student

    def inspect(self, batch: dict[str, Any], terms: dict[str, Tensor], entering: dict[str, Tensor]) -> None:
        """Note a training batch and its terms.

        Args:
            batch (dict): The batch, with the answer.
            terms (dict[str, Tensor]): Weighted terms by name.
            entering (dict[str, Tensor]): The terms as they enter the loss; `kd_weight` scales them, perhaps to 0.
        """
        self._answered, self._terms = batch["img"], terms
        if batch.get(FINITE_FACTOR) is not None and not batch[FINITE_FACTOR]:  # a non-finite answer teaches nothing
            self._in_loss.update(terms)
            return
        for name in self.distiller.terms:
            if terms[name].requires_grad:
                entering[name].register_hook(lambda gradient, name=name: self._note(name, gradient))

    def _note(self, name: str, gradient: Tensor) -> None:
        """Note that a gradient reaches a term; the gradient of a part that was cut off is 0."""
        if gradient.any():
            self._in_loss.add(name)

    def check(self, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Raise if the run does not distil; called after the first batch, and in later ones as long as terms are 0.

        Args:
            optimizer (Optimizer): The student's optimizer.
            epoch (int): The current epoch, from 0.

        Raises:
            KDError: If the terms are not in the loss, are non-finite or have no gradient, if student and teacher saw
                different images, or if adapters are not trained.
        """
        if not self.passed:
            self.stop_watching()
            self._check_loss()
            self._check_adapters(optimizer)
            if not self.started:
                self._warn_of_values()
        self._check_terms(epoch)
        self.started = self.passed = True
        self._forget()

    def _forget(self) -> None:
        """Drop what was noted of a batch."""
        self._seen = self._answered = None
        self._terms, self._in_loss = {}, set()

    def check_ranks(self) -> None:
        """Raise if the optimizer steps with gradients of the adapters that differ between processes.

        Raises:
            KDError: If the gradients were not averaged.
        """
        if not self.averaged and any(True for _ in self.distiller.adapters.parameters()):
            raise KDError(
                "the feature adapters of kd_feat would differ between processes: optimizer_step must call "
                f"super().optimizer_step(); {HOOKS}."
            )

    def _check_loss(self) -> None:
        """Raise if the distillation loss was not called, or was called for other images."""
        if not self._terms:
            raise KDError(
                "the student trains without its teacher, because its loss was computed without model.criterion: the "
                f"model's loss() must return self.criterion(preds, batch); {HOOKS}."
            )
        seen, answered = self._seen, self._answered
        if seen is not None and answered is not None and not _same(seen, answered):
            raise KDError(
                "the teacher answered other images than the student saw: pass the images that the student sees to the "
                f"loss as batch['img']; {HOOKS}."
            )
        lost = [name for name, term in self._terms.items() if term.requires_grad and name not in self._in_loss]
        if lost:
            raise KDError(
                f"{' and '.join(lost)} did not enter the loss that was trained: the model's loss() must return all "
                f"parts of self.criterion(preds, batch); {HOOKS}."
            )

    def _warn_of_values(self) -> None:
        """Warn if the images are scaled in another way than a teacher was trained with."""
        assert self._answered is not None
        low, high = (float(value) for value in self._answered.detach().float().aminmax())
        if (low < -0.01 or high > 1.01 or high < DARK) and RANK in {-1, 0}:
            LOGGER.warning(
                f"the first batch has values from {low:.3g} to {high:.3g}, and the teacher expects images in [0, 1]: "
                "normalise for the student in its model, not in preprocess_batch."
            )

    def _check_log(self, items: Mapping[str, Any]) -> None:
        """Raise if the logged parts of an epoch's loss lack a term."""
        lost = [name for name in self.distiller.terms if name not in items]
        if lost:
            raise KDError(
                f"{' and '.join(lost)} is not among the parts of the loss in this epoch, which was trained without it: "
                f"the model's loss() must return all parts of self.criterion(preds, batch); {HOOKS}."
            )

    def _check_adapters(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise if an adapter is not in the optimizer."""
        adapters = {id(p) for p in self.distiller.adapters.parameters()}
        if adapters - {id(p) for group in optimizer.param_groups for p in group["params"]}:
            raise KDError(
                "the feature adapters of kd_feat are not in the optimizer, so they would never train: keep all of its "
                f"param_groups; {HOOKS}."
            )

    def _check_terms(self, epoch: int) -> None:
        """Raise if a term is non-finite or has no gradient."""
        for name in sorted(self._watched() & set(self._terms)):
            term = self._terms[name]
            value = float(term.detach())
            if not torch.isfinite(term.detach()):
                raise KDError(
                    f"{name} became NaN or Inf in epoch {epoch + 1}, in its first batch: lower its weight or set it to "
                    "0."
                )
            if not term.requires_grad and value:
                raise KDError(
                    f"{name} has no gradient, so it teaches nothing: set {name}=0, or free the layers that it trains "
                    "(freeze), or keep the gradient in your own loss."
                )
            if term.requires_grad and value:
                self.pending.discard(name)

    def _end_epoch(self) -> None:
        """Warn of terms that were 0 in all batches of an epoch; they are not watched any longer."""
        for name in sorted(self._watched()):
            if RANK in {-1, 0}:
                LOGGER.warning(
                    f"{name} was 0 in every batch of an epoch: the teacher's answers gave it nothing to compare. Check "
                    "that the teacher predicts on these images (yolo predict), or set it to 0."
                )
        self.pending = set()

    @property
    def over(self) -> bool:
        """Whether nothing is left to check."""
        return self.passed and not self._watched()

    def _watched(self) -> set[str]:
        """Return the terms that were 0 so far; none in an epoch in which `kd_schedule` has turned all of them off."""
        return self.pending if self.distiller.fade else set()

    def stop_watching(self) -> None:
        """Give the student its own `forward` back."""
        if self._student is not None:
            vars(self._student).pop("forward", None)
            self._student = None


def _same(images: Tensor, others: Tensor) -> bool:
    """Return whether two tensors are the same memory; autocast and views make new objects for the same images."""
    return images is others or (images.data_ptr() == others.data_ptr() and images.shape == others.shape)
