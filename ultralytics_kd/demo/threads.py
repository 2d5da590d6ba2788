"""Lets torch use all cores for as long as that pays."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import torch

TRIAL = 4  # steps on one core that the others are measured by
PATIENCE = 2  # slow steps in a row before the other cores are given up
PAUSE = 100  # steps until they are tried again, twice as many after every trial that failed


class AllCores:
    """Callbacks that train on all cores of a CPU, and on one again when that turns out slower.

    Ultralytics trains on one core and leaves the others to data loaders, of which the demo has none. All cores are
    nearly twice as quick on a machine that has nothing else to do, and many times slower when something else needs one
    of them: torch's threads wait for each other at every layer.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.slow = 0
        self.pause, self.waited = PAUSE, 0
        self.last = 0.0

    def attach(self, model: Any) -> None:
        """Add the callbacks to a model that is about to train."""
        model.add_callback("on_train_start", self.on_train_start)
        model.add_callback("on_train_batch_start", self.on_train_batch_start)
        model.add_callback("on_train_batch_end", self.on_train_batch_end)

    def on_train_start(self, trainer: Any) -> None:
        """Begin with the trial on one core; a GPU needs none of this."""
        if trainer.device.type == "cpu":
            torch.set_num_threads(1)

    def on_train_batch_start(self, trainer: Any) -> None:
        """Start the clock."""
        self.last = time.perf_counter()

    def on_train_batch_end(self, trainer: Any) -> None:
        """Take all cores after the trial on one, and give them up for a while when steps are slower than in it."""
        if trainer.device.type != "cpu":
            return
        seconds = time.perf_counter() - self.last
        if len(self.times) < TRIAL:
            self.times.append(seconds)
            if len(self.times) == TRIAL:
                self._take_all()
        elif self.slow >= PATIENCE:
            self.waited += 1
            if self.waited == self.pause:
                self.pause *= 2
                self._take_all()
        else:
            self.slow = self.slow + 1 if seconds > statistics.median(self.times) else 0
            if self.slow >= PATIENCE:
                torch.set_num_threads(1)

    def _take_all(self) -> None:
        """Compute on all cores from now on."""
        self.slow = self.waited = 0
        torch.set_num_threads(min(os.cpu_count() or 1, 8))
