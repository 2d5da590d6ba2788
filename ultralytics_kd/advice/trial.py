"""Trainers that take a few steps, and a short training of the student alone, both without experiment trackers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter, time
from typing import Any

import torch
from ultralytics.utils import callbacks
from ultralytics.utils.torch_utils import autocast, unwrap_model

from ..logs import quietly
from ..model import YOLO

# `cache` would read a whole data set for a few steps
QUIET = {"plots": False, "val": False, "verbose": False, "exist_ok": True, "cache": False}


class Trial:
    """A trainer that is ready to take steps, with the first batches of its loader.

    Attributes:
        trainer (BaseTrainer): The trainer, set up.
        batches (list[dict]): Batches as the loader gives them.
    """

    def __init__(self, training: dict[str, Any], folder: Path, batches: int):
        """Set up a trainer.

        Args:
            training (dict): Arguments of the training; with a teacher it distils.
            folder (Path): Folder for what Ultralytics writes.
            batches (int): Number of batches to keep, at most.
        """
        self.trainer = make_trainer(training, folder)
        with quietly():
            self.trainer._setup_train()
            self.trainer.epoch = 0
            self.trainer._model_train()
            self.trainer.optimizer.zero_grad()
            self.batches = list(islice(iter(self.trainer.train_loader), batches))
        self._turn = 0

    def prepared(self, index: int) -> dict[str, Any]:
        """Return one of the batches as the loss takes it, with the teacher's answer."""
        return self.trainer.preprocess_batch(dict(self.batches[index % len(self.batches)]))

    def step(self) -> float:
        """Take a step as Ultralytics' loop does, and return its time in seconds; loading images is not part of it."""
        trainer = self.trainer
        synchronize(trainer.device)
        start = perf_counter()
        with autocast(torch.bfloat16 if trainer.args.amp == "bf16" else trainer.amp, device=trainer.device.type):
            batch = self.prepared(self._turn)
            if trainer.args.compile:  # only the model is compiled, and not the loss
                preds = trainer.model(batch["img"])
                loss, trainer.loss_items = unwrap_model(trainer.model).loss(batch, preds)
            else:
                loss, trainer.loss_items = trainer.model(batch)
            trainer.loss = loss.sum()
        trainer.scaler.scale(trainer.loss).backward()
        trainer.optimizer_step()
        synchronize(trainer.device)
        self._turn += 1
        return perf_counter() - start

    def load(self) -> float:
        """Load and augment as many images as one batch has, in this process, and return the time in seconds."""
        dataset = self.trainer.train_loader.dataset
        start = perf_counter()
        for i in range(min(self.trainer.batch_size, len(dataset))):
            dataset[i]
        return perf_counter() - start

    def close(self) -> None:
        """Free what the trainer holds."""
        distillation = getattr(self.trainer, "distillation", None)
        if distillation is not None:
            distillation.stop()
            distillation.release()
        if hasattr(self.trainer.train_loader, "close"):
            self.trainer.train_loader.close()
        self.batches = []


def make_trainer(training: dict[str, Any], folder: Path) -> Any:
    """Return a trainer without the callbacks of experiment trackers.

    Args:
        training (dict): Arguments of the training.
        folder (Path): Folder for what Ultralytics writes.
    """
    model = YOLO(training["model"])
    base: Any = model.task_map[model.task]["trainer"]

    class Unheard(base):
        """The task's trainer with only Ultralytics' default callbacks.

        Attributes:
            most_epochs (int | None): Epochs that it trains at most, even if it has time for more.
            whole_epochs (int): Epochs that had all of their batches.
            trained_seconds (float): Seconds up to the end of the last epoch, without the validation after it.
        """

        most_epochs: int | None = None
        whole_epochs, trained_seconds = 0, 0.0
        epochs: int
        epoch: int
        train_time_start: float
        train_loader: Any
        _batches_begun = 0

        def _get_warmup_iterations(self, num_batches: int) -> int:
            """Fit the warm-up to the epochs there is time for; older releases have no such method."""
            self._limit_epochs()
            return super()._get_warmup_iterations(num_batches)

        def _setup_scheduler(self) -> None:
            """Fit the schedule to the epochs there is time for."""
            self._limit_epochs()
            super()._setup_scheduler()

        def _limit_epochs(self) -> None:
            """Limit the epochs that Ultralytics has just estimated from the time."""
            if self.most_epochs is not None:
                self.epochs = self.args.epochs = min(self.epochs, self.most_epochs)

        def run_callbacks(self, event: str) -> None:
            """Run an event's callbacks."""
            self._note(event)
            self.callbacks = callbacks.get_default_callbacks()
            super().run_callbacks(event)

        def _note(self, event: str) -> None:
            """Note how far the training is; when its time is over, Ultralytics leaves an epoch after any batch."""
            if event == "on_train_epoch_start":
                self._batches_begun = 0
            elif event == "on_train_batch_start":
                self._batches_begun += 1
            elif event == "on_train_epoch_end":
                whole = self._batches_begun >= len(self.train_loader)
                self.whole_epochs = self.epoch + int(whole)
                self.trained_seconds = time() - self.train_time_start

    place = {"project": str(folder), "name": "trial", "task": model.task, "mode": "train"}
    with quietly():
        return Unheard(overrides={**training, **QUIET, **place})


@dataclass(frozen=True)
class Probe:
    """How long the student was trained alone for.

    Attributes:
        epochs (int): Whole epochs that it was trained for.
        asked (int): Epochs of the training that is asked about.
        seconds (float): Seconds that the training took, without the validation at its end.
    """

    epochs: int
    asked: int
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether it was the whole training."""
        return self.epochs >= self.asked

    @property
    def words(self) -> str:
        """The length in words."""
        if not self.complete:
            return f"{self.seconds:.0f} seconds of training"
        return f"all {self.asked} epochs" if self.asked > 1 else "its only epoch"


def train_alone(training: dict[str, Any], folder: Path, seconds: float) -> tuple[str | None, Probe]:
    """Train the student without a teacher for a short time, and return the path of its weights and how long it trained.

    It trains at most the epochs of the training that is asked about. If there is time for all of them, it is that
    training without its validations, which draw random numbers. Otherwise its schedule is fitted to the epochs that
    there is time for. The path is None if no checkpoint was saved.

    Args:
        training (dict): Arguments of the training, without those of a distillation.
        folder (Path): Folder for what Ultralytics writes.
        seconds (float): Longest time in seconds.
    """
    trainer = make_trainer({**training, "time": seconds / 3600}, folder)
    asked = trainer.most_epochs = trainer.args.epochs
    with quietly():
        trainer.train()
    weights = next((str(file) for file in (trainer.best, trainer.last) if file.exists()), None)
    return weights, Probe(trainer.whole_epochs, asked, trainer.trained_seconds)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
