"""Runs of several processes: which take part, what they agree on, and which error the user sees when one fails.

Either Ultralytics launches the processes (`device=0,1`) and decides everything for them, or the user launches them with
`torchrun`, on one machine or several. In the second case Ultralytics counts only the devices of its own machine.
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
from ultralytics.utils import LOCAL_RANK, LOGGER, RANK, WORLD_SIZE

from ..errors import KDError

T = TypeVar("T")

NOTES = "ULTRALYTICS_KD_NOTES"  # environment variable: folder where processes leave messages for their launcher
NOT_STARTED = "not-started"
LAUNCHED = "launched"  # file there: a process of the run is alive, or was
PATIENCE = timedelta(hours=3)  # as long as Ultralytics' processes wait for each other
VISIBLE_AFTER = 10.0  # seconds that a shared folder may take to show a new file on another machine
# Numbers the keys in the store: all processes make the same calls in the same order, so they agree
_numbers = itertools.count()


# Taking part ----------------------------------------------------------------------------------------------------------
def join(args: Any, make_folder: Callable[[], str], named: bool = True) -> None:
    """Decide device, batch and folder of a run whose processes the user launched; other runs stay as they are.

    Args:
        args (Namespace): Arguments of the training; `device`, `rect` and `save_dir` may be changed.
        make_folder (Callable): Creates the run's folder and returns its path; called in rank 0.
        named (bool): Whether the call names `device`; a resumed run has that of its checkpoint otherwise.

    Raises:
        KDError: If this process has no device of its own, or the batch cannot be split.
    """
    if RANK == -1 or launched():
        return
    if WORLD_SIZE == 1:  # Ultralytics makes no process group of one, and its data loader fails without one
        raise KDError("torchrun started a single process: start the training without torchrun, or with more processes.")
    args.device = own_devices(args.device, _processes_here(), named)
    if args.batch < WORLD_SIZE:
        raise KDError(
            f"batch={args.batch} cannot be split among {WORLD_SIZE} processes: give the number of images of all "
            "processes together; batch=-1 works on a single GPU only."
        )
    if args.rect:
        LOGGER.warning("'rect=True' does not work with several processes: setting 'rect=False'")
        args.rect = False
    if not getattr(args, "save_dir", None):  # Ultralytics would choose a new name in rank 0 alone
        args.save_dir = _agree(make_folder)


def own_devices(device: Any, processes: int, named: bool = True) -> str:
    """Return the devices of the processes on this machine, in the order of their ranks.

    Args:
        device (Any): The `device` argument; empty for the first GPUs.
        processes (int): Processes on this machine.
        named (bool): Whether the user named them for these processes; if not, too few are replaced by the first GPUs.

    Raises:
        KDError: If there are fewer devices than processes.
    """
    text = "" if device is None else "".join(c for c in str(device).lower() if c not in "[]()' ").strip(",")
    if text in {"", "none"}:
        return ",".join(str(i) for i in range(processes))
    if text in {"cpu", "mps"}:
        raise KDError(f"device={text}: processes that train together need a GPU each; start one alone, or name GPUs.")
    count = text.count(",") + 1
    if count < processes and not named:
        return own_devices(None, processes)
    if count < processes:
        raise KDError(
            f"device={text} names {count} GPU(s) and {processes} processes run here: name one for each, or drop it for "
            f"the first {processes}."
        )
    return text


def world_size(local: int) -> int:
    """Return how many processes train together.

    Args:
        local (int): Number of devices of this machine, as Ultralytics counts it.
    """
    return local if RANK == -1 else WORLD_SIZE


def launched() -> bool:
    """Return whether Ultralytics launched this process for a run with a teacher."""
    return NOTES in os.environ


def several_machines() -> bool:
    """Return whether some of the processes run on another machine; the same answer in all of them."""
    if RANK == -1:
        return False
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"]) < WORLD_SIZE
    return len(set(_hosts())) > 1


def _processes_here() -> int:
    """Return the number of processes on this machine."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return _hosts().count(socket.gethostname())


# Before the process group: the launcher's store -----------------------------------------------------------------------
@cache
def _rendezvous() -> Any:
    """Return the key-value store in which the processes exchange values before they form a group."""
    store, *_ = next(dist.rendezvous("env://", timeout=PATIENCE))
    return store


@cache
def _hosts() -> list[str]:
    """Return the host name of every rank. torchrun tells how many ranks share a machine; other launchers may not."""
    _rendezvous().set(f"ultralytics_kd/host/{RANK}", socket.gethostname())
    return [_rendezvous().get(f"ultralytics_kd/host/{rank}").decode() for rank in range(WORLD_SIZE)]


def _agree(make: Callable[[], str]) -> str:
    """Return in all processes the text that rank 0 makes, through the store; `from_first` uses the process group."""
    key = f"ultralytics_kd/{next(_numbers)}"
    if RANK == 0:
        _rendezvous().set(key, make())
    return _rendezvous().get(key).decode()


@contextmanager
def machine_by_machine() -> Iterator[None]:
    """Let the first process of each machine run the block, such as a download, before the others do."""
    if RANK == -1 or launched():
        yield
        return
    key = f"ultralytics_kd/{next(_numbers)}/{os.environ.get('GROUP_RANK', socket.gethostname())}"
    if LOCAL_RANK > 0:
        _rendezvous().get(key)
    try:
        yield
    finally:  # the other processes meet the same error themselves
        if LOCAL_RANK == 0:
            _rendezvous().set(key, "done")


# In the process group -------------------------------------------------------------------------------------------------
def from_first(make: Callable[[], T]) -> T:
    """Return in all processes the value that rank 0 makes, through the process group; without one, make it here.

    Before there is a group, `_agree` does this for a text.
    """
    if not dist.is_initialized():
        return make()
    values = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values, src=0)
    return values[0]  # type: ignore[return-value]


def any_rank(flag: bool) -> bool:
    """Return whether a flag is set in any process; without a process group, in this one."""
    if not dist.is_initialized():
        return flag
    flags: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(flags, flag)
    return any(flags)


def check_shared(folder: Path) -> None:
    """Raise in every process if some of them do not see the run's folder: they read the best student there at the end.

    Args:
        folder (Path): The run's folder, which rank 0 has created.

    Raises:
        KDError: If machines do not share it.
    """
    if not dist.is_initialized() or not several_machines():
        return
    file, token = folder / ".shared", from_first(lambda: secrets.token_hex(8))
    if RANK == 0:
        file.write_text(token)
    dist.barrier()
    missing_here = None if _appears(file, token) else socket.gethostname()
    hosts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hosts, missing_here)
    if RANK == 0:
        file.unlink(missing_ok=True)
    missing_on = sorted({host for host in hosts if host})
    if missing_on:
        raise KDError(
            f"{folder}, which the first process writes, is missing on {', '.join(missing_on)}: give project= a folder "
            "that all machines share."
        )


def _appears(file: Path, token: str) -> bool:
    """Return whether a file with this text appears within a few seconds."""
    end = time.monotonic() + VISIBLE_AFTER
    while True:
        if file.exists() and file.read_text() == token:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


# Adapters: DDP synchronizes the student alone -------------------------------------------------------------------------
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give all processes the values of rank 0.

    Args:
        tensors (Iterable[Tensor]): Parameters or buffers, the same ones in the same order everywhere.
    """
    with torch.no_grad():
        for tensor in tensors:  # gloo has no booleans, and NCCL needs contiguous memory
            sent = tensor.to(torch.uint8 if tensor.dtype is torch.bool else tensor.dtype).contiguous()
            dist.broadcast(sent, src=0)
            if sent is not tensor:
                tensor.copy_(sent)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over all processes, in one reduction.

    A missing gradient counts as 0. A parameter without a gradient in any process gets none, so that the optimizer skips
    it as it does in a single process.

    Args:
        parameters (list[nn.Parameter]): The same ones in the same order everywhere.
    """
    with torch.no_grad():
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters]
        here = [float(p.grad is not None) for p in parameters]
        present = torch.tensor(here).to(parts[0].device, non_blocking=True)
        flat = torch.cat([*parts, present])
        dist.all_reduce(flat)
        *grads, present = (flat / dist.get_world_size()).split([*(p.numel() for p in parameters), len(parameters)])
        # Flags of other ranks matter only if a gradient is missing here, and reading them makes the host wait for a GPU
        for p, grad, share in zip(parameters, grads, here if all(here) else present.tolist()):
            p.grad = grad.view_as(p).to(p.dtype) if share else None


# Failing --------------------------------------------------------------------------------------------------------------
@contextmanager
def launching(undo: Callable[[], None]) -> Iterator[None]:
    """Raise the reason in one sentence, as the last message, if a process that Ultralytics launches in the block fails.

    Args:
        undo (Callable): Called if a process failed before the run started, when all of them have ended, or if none
            was launched.

    Raises:
        KDError: With the message of the first process that failed, if that process raised a KDError.
    """
    with tempfile.TemporaryDirectory(prefix="ultralytics_kd_") as folder:
        os.environ[NOTES] = folder
        try:
            yield
        except subprocess.CalledProcessError:  # one of the processes failed
            if (Path(folder) / NOT_STARTED).exists():
                undo()
            messages = sorted(Path(folder).glob("message-*"), key=lambda file: file.stat().st_mtime_ns)
            if messages:  # the traceback of each process stands above
                raise KDError(messages[0].read_text(encoding="utf-8")) from None
            raise
        except Exception:  # Ultralytics could not launch them: a trainer that cannot be pickled, a batch of -1
            if not (Path(folder) / LAUNCHED).exists():
                undo()
            raise
        finally:
            os.environ.pop(NOTES, None)


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Leave the message of a KDError for the process that launched this one."""
    if launched():
        (Path(os.environ[NOTES]) / LAUNCHED).touch()
    try:
        yield
    except KDError as e:
        if launched():
            (Path(os.environ[NOTES]) / f"message-{RANK}").write_text(str(e), encoding="utf-8")
        raise


def failed_before_start(undo: Callable[[], None]) -> None:
    """Remove the files of a run that failed before it started.

    Args:
        undo (Callable): Removes them. One process calls it: the launcher, when all others have ended, or else rank 0.
    """
    if launched():
        (Path(os.environ[NOTES]) / NOT_STARTED).touch()
    elif RANK in {-1, 0}:
        undo()
