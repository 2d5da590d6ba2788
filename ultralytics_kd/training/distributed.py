"""What belongs to several processes: who takes part, what they agree on, and what they say when one of them fails.

Ultralytics starts its own processes (`device=0,1`), which find everything settled; or the user does (`torchrun`), on
one machine or several, and Ultralytics then counts the devices of its own machine alone.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from ultralytics.cfg import get_save_dir
from ultralytics.utils import LOCAL_RANK, LOGGER, RANK, WORLD_SIZE

from ..errors import KDError

T = TypeVar("T")

NOTES = "ULTRALYTICS_KD_NOTES"  # environment variable: the folder where processes leave word for who launched them
UNBEGUN = "unbegun"
PATIENCE = timedelta(hours=3)  # as long as Ultralytics' processes wait for each other
SIGHT = 10.0  # seconds that a shared folder may take to show a new file on another machine
_numbers = itertools.count()  # of what is agreed on before there is a group: the same in every process


# Taking part ----------------------------------------------------------------------------------------------------------
def join(args: Any) -> None:
    """Settle device, batch and folder of a run whose processes the user started; nothing without others.

    Args:
        args (Namespace): Arguments of the training; `device`, `rect` and `save_dir` may be changed.

    Raises:
        KDError: If this process has no device of its own, or the batch cannot be shared out.
    """
    if RANK == -1 or launched():
        return
    args.device = own_devices(args.device, _processes_here())
    if args.batch < WORLD_SIZE:
        raise KDError(
            f"batch={args.batch} is to be shared by {WORLD_SIZE} processes: give the images of all of them together; "
            "batch=-1 finds a number for one GPU alone."
        )
    if args.rect:
        LOGGER.warning("'rect=True' does not go with several processes: setting 'rect=False'")
        args.rect = False
    if not getattr(args, "save_dir", None):  # Ultralytics would count on in the first process alone
        args.save_dir = _agree(lambda: str(get_save_dir(args)))


def own_devices(device: Any, processes: int) -> str:
    """Return the devices of the processes on this machine, the first of them for the first process and so on.

    Args:
        device (Any): What the user gave, or nothing for the first ones.
        processes (int): Processes on this machine.

    Raises:
        KDError: If there is none for each of them.
    """
    text = "" if device is None else "".join(c for c in str(device).lower() if c not in "[]()' ").strip(",")
    if text in {"", "none"}:
        return ",".join(str(i) for i in range(processes))
    if text in {"cpu", "mps"}:
        raise KDError(f"device={text}: processes that train together need a GPU each; start one alone, or name GPUs.")
    count = text.count(",") + 1
    if count < processes:
        raise KDError(
            f"device={text} names {count} GPU(s) and {processes} processes run here: name one for each, or drop it for "
            f"the first {processes}."
        )
    return text


def world_size(local: int) -> int:
    """Return how many processes train together.

    Args:
        local (int): What Ultralytics counted: devices of this machine.
    """
    return local if RANK == -1 else WORLD_SIZE


def launched() -> bool:
    """Return whether Ultralytics started this process for a run with a teacher."""
    return NOTES in os.environ


def several_machines() -> bool:
    """Return whether some of the processes run on another machine."""
    return RANK != -1 and _processes_here() < WORLD_SIZE


def _processes_here() -> int:
    """Return the number of processes on this machine; a starter other than torchrun may not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", LOCAL_RANK + 1))


# Agreeing -------------------------------------------------------------------------------------------------------------
@cache
def _store() -> Any:
    """Return what the processes can leave values in before they are a group."""
    store, *_ = next(dist.rendezvous("env://", timeout=PATIENCE))
    return store


def _agree(make: Callable[[], str]) -> str:
    """Return a text that the first process makes, in all of them; they need be no group yet."""
    key = f"ultralytics_kd/{next(_numbers)}"
    if RANK == 0:
        _store().set(key, make())
    return _store().get(key).decode()


@contextmanager
def machine_by_machine() -> Iterator[None]:
    """Let the first process of each machine do something, such as a download, before the others do it again."""
    if RANK == -1 or launched():
        yield
        return
    key = f"ultralytics_kd/{next(_numbers)}/{os.environ.get('GROUP_RANK', socket.gethostname())}"
    if LOCAL_RANK > 0:
        _store().get(key)
    try:
        yield
    finally:  # an error is the others' as well, and they find it themselves
        if LOCAL_RANK == 0:
            _store().set(key, "done")


def from_first(make: Callable[[], T]) -> T:
    """Return what the first process makes, in all of them; without a group it is made here."""
    if not dist.is_initialized():
        return make()
    box = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def check_shared(folder: Path) -> None:
    """Raise in every process if some of them do not see the run's folder: they read the best student there at the end.

    Args:
        folder (Path): The run's folder, which the first process has made.

    Raises:
        KDError: If machines do not share it.
    """
    if not several_machines() or not dist.is_initialized():
        return
    file, word = folder / ".shared", from_first(lambda: secrets.token_hex(8))
    if RANK == 0:
        file.write_text(word)
    dist.barrier()
    here = [None if _reads(file, word) else socket.gethostname()]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, here)
    if RANK == 0:
        file.unlink(missing_ok=True)
    blind = sorted({host for [host] in found if host})
    if blind:
        raise KDError(
            f"{folder}, which the first process writes, is not there on {', '.join(blind)}: machines that train "
            "together need a folder that all of them share: give project=."
        )


def _reads(file: Path, word: str) -> bool:
    """Return whether a file is there and holds a word, soon."""
    end = time.monotonic() + SIGHT
    while True:
        if file.exists() and file.read_text() == word:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


# Adapters: DDP looks after the student alone --------------------------------------------------------------------------
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give all processes the first one's values.

    Args:
        tensors (Iterable[Tensor]): Parameters or buffers, the same ones in the same order everywhere.
    """
    with torch.no_grad():
        for tensor in tensors:  # gloo knows no booleans, and NCCL wants memory without gaps
            sent = tensor.to(torch.uint8 if tensor.dtype is torch.bool else tensor.dtype).contiguous()
            dist.broadcast(sent, src=0)
            if sent is not tensor:
                tensor.copy_(sent)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over all processes, in one reduction.

    A process whose batch gave a parameter no gradient counts with 0; one that had none anywhere still has none, so that
    the optimizer passes over it as it does without other processes.

    Args:
        parameters (list[nn.Parameter]): The same ones in the same order everywhere.
    """
    with torch.no_grad():
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters]
        had = torch.tensor([float(p.grad is not None) for p in parameters], device=parts[0].device)
        flat = torch.cat([*parts, had])
        dist.all_reduce(flat)
        *grads, had = (flat / dist.get_world_size()).split([*(p.numel() for p in parameters), len(parameters)])
        for p, grad, share in zip(parameters, grads, had.tolist()):
            p.grad = grad.view_as(p).to(p.dtype) if share else None


# Failing --------------------------------------------------------------------------------------------------------------
@contextmanager
def launching(leave_nothing: Callable[[], None]) -> Iterator[None]:
    """Say last, in one sentence, why a process failed that Ultralytics launched in the block.

    Args:
        leave_nothing (Callable): Called if one failed before the run began, when all of them are gone.

    Raises:
        KDError: What the first one that failed raised, if it was one.
    """
    with tempfile.TemporaryDirectory(prefix="ultralytics_kd_") as folder:
        os.environ[NOTES] = folder
        try:
            yield
        except subprocess.CalledProcessError:
            if (Path(folder) / UNBEGUN).exists():
                leave_nothing()
            said = sorted(Path(folder).glob("said-*"), key=lambda file: file.stat().st_mtime_ns)
            if said:  # the traceback of each process stands above
                raise KDError(said[0].read_text(encoding="utf-8")) from None
            raise
        finally:
            os.environ.pop(NOTES, None)


@contextmanager
def heard() -> Iterator[None]:
    """Leave the sentence of an error for the process that launched this one."""
    try:
        yield
    except KDError as e:
        if launched():
            (Path(os.environ[NOTES]) / f"said-{RANK}").write_text(str(e), encoding="utf-8")
        raise


def failed_unbegun(leave_nothing: Callable[[], None]) -> None:
    """See to it that a run which failed before it began leaves nothing behind.

    Args:
        leave_nothing (Callable): Removes what it wrote. Of several processes one calls it: who launched them, when they
            are gone, or else the first.
    """
    if launched():
        (Path(os.environ[NOTES]) / UNBEGUN).touch()
    elif RANK in {-1, 0}:
        leave_nothing()
