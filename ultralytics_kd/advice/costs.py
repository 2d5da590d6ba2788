"""Time and memory of a training step, without a teacher, with it, and with its stored answers."""

from __future__ import annotations

import ctypes
import gc
import platform
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import psutil
import torch

from .trial import Trial

ROUNDS, WARM_UP = 7, 1  # timed steps of every arm, and untimed ones before them
FEWEST, MOST_SECONDS = 2, 60.0  # at least this many timed steps; after this many seconds no more


def build_measured(
    build: Callable[[], Trial], look: Callable[[Trial], Any], device: torch.device
) -> tuple[Trial, Any, float | None]:
    """Build a training, look at it before its first step, and let it take two steps.

    Args:
        build (Callable): Builds it.
        look (Callable): Looks at it.
        device (torch.device): Where it trains.

    Returns:
        trial (Trial): The training.
        seen (Any): What `look` returned.
        memory (float | None): Peak of weights, optimizer, activations and teacher in GiB: on a GPU what PyTorch
            allocates, else what the process grew by; None where that cannot be measured.
    """
    meter = memory_meter(device)
    before = meter.start()
    trial = build()
    with ExitStack() as open_trial:  # if it fails here, nobody else can close it
        open_trial.callback(trial.close)
        seen = look(trial)
        meter.reset_peak()
        for _ in range(2):
            trial.step()
        peak = meter.peak()
        open_trial.pop_all()
    return trial, seen, None if peak is None or before is None else max(peak - before, 0) / 2**30


def time_steps(trials: dict[str, Trial]) -> dict[str, float]:
    """Return the median seconds of a step of each training; they take turns in random order.

    Args:
        trials (dict[str, Trial]): Trainings by name.
    """
    times: dict[str, list[float]] = {name: [] for name in trials}
    start = perf_counter()
    for turn in range(WARM_UP + ROUNDS):
        for name in random.Random(turn).sample(list(trials), len(trials)):
            seconds = trials[name].step()
            if turn >= WARM_UP:
                times[name].append(seconds)
        if turn + 1 >= WARM_UP + FEWEST and perf_counter() - start > MOST_SECONDS:
            break
    return {name: median(seconds) for name, seconds in times.items()}


def loading_seconds(trial: Trial) -> float:
    """Return the median seconds to load and augment the images of one batch in one process."""
    return median(trial.load() for _ in range(3))


def hours(step: float, loading: float, workers: int, steps: int) -> float:
    """Return the hours of a number of steps, validation not included.

    Args:
        step (float): Seconds of a step without loading.
        loading (float): Seconds to load a batch in one process.
        workers (int): Processes that load while the student trains; with 0, loading and training take turns.
        steps (int): Number of steps.
    """
    return steps * (max(step, loading / workers) if workers else step + loading) / 3600


def memory_meter(device: torch.device) -> _GPUMemory | _ProcessMemory:
    """Return what measures the peak memory of steps on a device, in bytes."""
    return _GPUMemory(device) if device.type == "cuda" else _ProcessMemory()


class _GPUMemory:
    """What PyTorch allocates on a GPU, in bytes."""

    def __init__(self, device: torch.device):
        self._device = device

    def start(self) -> int:
        """Return what is allocated now."""
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(self._device)

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """Return the largest allocation since `reset_peak`."""
        return torch.cuda.max_memory_allocated(self._device)


class _ProcessMemory:
    """Resident memory of this process in bytes, on Linux; None elsewhere."""

    status, peaks = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def start(self) -> int | None:
        """Return what is resident now, after freed memory was given back."""
        if not self.status.exists():
            return None
        gc.collect()
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return int(psutil.Process().memory_info().rss)

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        if self.status.exists():
            try:
                self.peaks.write_text("5")
            except OSError:  # a container without the permission; then the peak of the whole process counts
                return

    def peak(self) -> int | None:
        """Return the largest resident memory since `reset_peak`."""
        if not self.status.exists():
            return None
        line = next(row for row in self.status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


def rows(
    seconds: dict[str, float], memory: dict[str, float | None], loading: dict[str, float], workers: int, steps: int
) -> dict[str, dict[str, Any]]:
    """Return milliseconds, memory and hours of each training.

    Args:
        seconds (dict[str, float]): Seconds of a step.
        memory (dict[str, float | None]): Peak memory in GiB.
        loading (dict[str, float]): Seconds to load a batch in one process.
        workers (int): Processes that load.
        steps (int): Steps of the whole training.
    """
    return {
        name: {
            "ms": seconds[name] * 1e3,
            "loading_ms": loading[name] * 1e3,
            "memory": memory[name],
            "hours": hours(seconds[name], loading[name], workers, steps),
        }
        for name in seconds
    }
