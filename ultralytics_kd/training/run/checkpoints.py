"""Checkpoints of a run with a teacher: written whole or not at all, with all that `resume` needs.

State that Ultralytics does not save is put into the optimizer's state dict. So it is written to the same file as the
rest, is restored by `resume` and after a NaN, and is removed when Ultralytics strips the optimizer from a finished
checkpoint.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.engine import trainer as engine
from ultralytics.utils import LOGGER

from ...distillation.balance import Balance
from ...distillation.distillers import Distiller
from ...distillation.terms.feature import mask_states
from ...errors import KDError
from ...files import disk_fault, exists, move_into_place
from ...teachers import Teacher
from ...teachers.prompted import words_of
from .random_streams import random_state

ADAPTERS_KEY, RUN_KEY = "kd_adapters", "kd_run"  # in the optimizer's state dict
PARTS = ".part-"  # folders in which checkpoints are written before they are moved to their places
OTHER_ADAPTERS = (
    "the checkpoint's feature adapters do not fit this teacher: resume with the teacher that the run began with, or "
    "start a new run."
)
MAX_NORM = 10.0  # Ultralytics clips the student's gradient to this norm; the adapters' gradient is clipped separately


# Files ----------------------------------------------------------------------------------------------------------------
def save_whole(trainer: Any, save: Callable[[], Any]) -> Any:
    """Save checkpoints, each of them whole or not at all.

    Args:
        trainer (BaseTrainer): The trainer.
        save (Callable): Ultralytics' `save_model`, which writes to the trainer's `wdir`, `last` and `best`.

    Raises:
        KDError: If the disk is full or read-only; the previous checkpoint is still there.
    """
    places = trainer.wdir, trainer.last, trainer.best
    with disk_errors(trainer):
        places[0].mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PARTS, dir=places[0]) as folder:
            trainer.wdir = Path(folder)
            trainer.last, trainer.best = trainer.wdir / places[1].name, trainer.wdir / places[2].name
            try:
                saved = save()
            finally:
                parts, (trainer.wdir, trainer.last, trainer.best) = trainer.wdir, places
            # last.pt is moved last: it holds the best fitness, so best.pt must be there before it
            for part in sorted(parts.iterdir(), key=lambda p: p.name == trainer.last.name):
                move_into_place(part, trainer.wdir / part.name)
    return saved


@contextmanager
def disk_errors(trainer: Any) -> Iterator[None]:
    """Replace errors of a full or read-only disk by a sentence that tells how to continue.

    Args:
        trainer (BaseTrainer): The trainer; the block writes a file of its run.

    Raises:
        KDError: If the disk is full or read-only.
    """
    try:
        yield
    except (OSError, RuntimeError) as e:
        error = disk_fault(e, trainer.save_dir, how_to_continue(trainer))
        if error is None:
            raise
        raise error from e


def how_to_continue(trainer: Any) -> str:
    """Return the end of a sentence about a full disk: how the run continues when there is room.

    Args:
        trainer (BaseTrainer): The trainer.
    """
    if exists(trainer.last):  # False if the drive is gone
        return f"{trainer.last} is whole: make room and go on with resume model={trainer.last}."
    return "make room and start again."


@contextmanager
def stripped_whole(trainer: Any) -> Iterator[None]:
    """Let Ultralytics strip the optimizer from checkpoints into new files, which then replace the checkpoints.

    last.pt is replaced when the block ends: until then a run that is interrupted can be resumed to finish the rest.

    Args:
        trainer (BaseTrainer): The trainer; its final evaluation strips the checkpoints.
    """
    stock = engine.strip_optimizer

    def strip_optimizer(f: Any = "best.pt", s: str = "", updates: Any = None) -> dict[str, Any]:
        part = Path(folder) / Path(s or f).name
        with disk_errors(trainer):
            with _replaced_in_log(f" saved as {part},", f" saved as {s}," if s else ""):
                stripped = stock(f, str(part), updates)
            if part.exists() and Path(s or f) != trainer.last:  # Ultralytics writes none if there was no checkpoint
                move_into_place(part, Path(s or f))
        return stripped

    trainer.wdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTS, dir=trainer.wdir) as folder:
        engine.strip_optimizer = strip_optimizer
        try:
            yield
        finally:
            engine.strip_optimizer = stock
        part = Path(folder) / trainer.last.name
        if part.exists():
            move_into_place(part, trainer.last)


@contextmanager
def _replaced_in_log(text: str, replacement: str) -> Iterator[None]:
    """Replace a text in Ultralytics' log."""

    def replaced(record: logging.LogRecord) -> bool:
        record.msg = str(record.msg).replace(text, replacement)
        return True

    LOGGER.addFilter(replaced)
    try:
        yield
    finally:
        LOGGER.removeFilter(replaced)


# Optimizer ------------------------------------------------------------------------------------------------------------
def add_to_optimizer(optimizer: Any, distiller: Distiller, run_state: Callable[[], dict[str, Any]]) -> None:
    """Let an optimizer train the adapters, and carry them and the run's state in its state dict.

    Args:
        optimizer (Optimizer): The student's optimizer. It may have the adapters already.
        distiller (Distiller): The terms, whose adapters train with the student.
        run_state (Callable): Returns the state that the run needs to continue, as the function `run_state` does.

    Raises:
        KDError: If it is not a `torch.optim.Optimizer`.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise KDError(
            f"build_optimizer returned a {type(optimizer).__name__}: it must return a torch.optim.Optimizer, in whose "
            "state dict the run keeps what resume needs."
        )
    optimizer.register_state_dict_post_hook(lambda _, state: state.__setitem__(RUN_KEY, run_state()))
    if distiller.balance is not None:
        balance = distiller.balance
        optimizer.register_load_state_dict_pre_hook(lambda _, state: _load_balance(balance, state))
    adapters = distiller.adapters
    parameters = list(adapters.parameters())
    if not parameters:
        return
    present = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [p for p in parameters if id(p) not in present]
    if missing:
        # MuSGD has a second group of weights with a higher rate, for the class head
        weights = [g for g in optimizer.param_groups if g.get("param_group") == "weight"]
        if weights:
            group = min(weights, key=lambda g: g["lr"])
            optimizer.add_param_group({**{k: v for k, v in group.items() if k != "params"}, "params": missing})
        else:  # a user's optimizer, whose scheduler may count its groups; new layers take the highest rate
            max(optimizer.param_groups, key=lambda g: (g["lr"], _size(g)))["params"].extend(missing)
    optimizer.register_state_dict_post_hook(lambda _, state: state.__setitem__(ADAPTERS_KEY, adapters.state_dict()))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: _load_adapters(adapters, state))
    optimizer.register_step_pre_hook(lambda *_: _clip(adapters))
    # User code may clear only the gradients of the model
    optimizer.register_step_post_hook(lambda *_: adapters.zero_grad())


def _size(group: dict[str, Any]) -> int:
    """Return the number of parameters of a group."""
    return sum(p.numel() for p in group["params"])


def _clip(adapters: nn.Module) -> None:
    """Clip the adapters' gradient, separately from the student's."""
    nn.utils.clip_grad_norm_(adapters.parameters(), MAX_NORM)


def _load_adapters(adapters: nn.Module, state: dict[str, Any]) -> None:
    """Restore the adapters' weights from an optimizer's state dict."""
    try:
        adapters.load_state_dict(state[ADAPTERS_KEY])
    except RuntimeError as e:
        raise KDError(OTHER_ADAPTERS) from e


def _load_balance(balance: Balance, state: dict[str, Any]) -> None:
    """Restore the measured gradients from an optimizer's state dict, which may be that of an older release."""
    if state.get(RUN_KEY, {}).get("balance") is not None:
        balance.load_state_dict(state[RUN_KEY]["balance"])


def check_adapters(saved: dict[str, Any] | None, distiller: Distiller) -> None:
    """Raise if a checkpoint has adapters and the run has none, or the other way round.

    Args:
        saved (dict | None): The optimizer's state dict in the checkpoint.
        distiller (Distiller): The terms of the run.

    Raises:
        KDError: If only one of them has adapters.
    """
    has_adapters = any(True for _ in distiller.adapters.parameters())
    if saved is not None and (ADAPTERS_KEY in saved) != has_adapters:
        raise KDError(OTHER_ADAPTERS)


def run_state(trainer: Any, fingerprints: list[str | None]) -> dict[str, Any]:
    """Return the state that a run needs to continue, in addition to Ultralytics' own.

    Args:
        trainer (BaseTrainer): The trainer.
        fingerprints (list[str | None]): Hash of every teacher's weights.
    """
    balance, words = trainer.distiller.balance, words_of(trainer.teacher.members)
    return {
        "teachers": fingerprints,
        "words": None if words is None else words.vectors,
        "balance": None if balance is None else balance.state_dict(),
        "random": random_state(trainer.device, loaders(trainer)),
        "masks": mask_states(trainer.distiller.adapters),
        "unlabeled_passes": trainer.unlabeled.passes if trainer.unlabeled is not None else 0,
        "over": bool(getattr(trainer, "stop", False)),  # patience= or time= can end a run before the last epoch
    }


def loaders(trainer: Any) -> dict[str, Any]:
    """Return the data loaders whose random streams a run continues, by name."""
    return {"train": getattr(trainer, "train_loader", None), "unlabeled": getattr(trainer.unlabeled, "loader", None)}


def fingerprint(teacher: Teacher) -> str | None:
    """Return the hash of a teacher's weights, None if it has none.

    Args:
        teacher (Teacher): The teacher.
    """
    if teacher.follows_student:
        return None
    try:
        return teacher.fingerprint()
    except KDError:  # a user's object without a fingerprint
        return None
    except Exception as e:  # user code may raise anything, and the run needs no fingerprint
        LOGGER.warning(f"teacher={teacher.source}: its fingerprint() fails, so resume cannot compare weights: {e}")
        return None
