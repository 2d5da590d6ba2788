"""Lets torch use the CPU cores that other processes leave idle."""

from __future__ import annotations

import os
import time
from typing import Any

import psutil
import torch

INTERVAL = 1.0  # seconds between two measurements of the load
MAX_THREADS = 8


class IdleCores:
    """Callback for `on_train_batch_start` that sets torch's threads to the number of idle cores.

    Ultralytics trains with one thread and leaves the other cores to data loaders, which the demo does not have. On an
    idle machine, all cores nearly halve the time of a step. With other processes on them, a step took 5 to 25 times as
    long as with one thread, because torch's threads wait for each other at every layer.
    """

    def __init__(self) -> None:
        self._since, self._own_seconds = time.perf_counter(), time.process_time()
        psutil.cpu_percent()  # the next call returns the load since this one

    def __call__(self, trainer: Any) -> None:
        """Set the number of threads from the load since the last time; a GPU needs no threads."""
        now = time.perf_counter()
        if trainer.device.type != "cpu" or now - self._since < INTERVAL:
            return
        cores, own_seconds = os.cpu_count() or 1, time.process_time()
        used_here = (own_seconds - self._own_seconds) / (now - self._since)
        used_elsewhere = psutil.cpu_percent() / 100 * cores - used_here
        self._since, self._own_seconds = now, own_seconds
        torch.set_num_threads(min(MAX_THREADS, max(1, cores - round(used_elsewhere))))
