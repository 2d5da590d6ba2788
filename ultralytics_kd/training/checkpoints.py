"""A training that was interrupted goes on: how its checkpoints are written, and what they carry beside Ultralytics'."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import RandomSampler
from ultralytics.engine import trainer as engine
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.patches import torch_load
from ultralytics.utils.torch_utils import init_seeds, unwrap_model

from ..distillation.distillers import Distiller
from ..distillation.loss import DistillationLoss
from ..errors import KDError, first_line
from ..files import disk_fault, put, write_whole
from ..teachers import Teacher
from .unlabeled import UnlabeledStream

# A mixin stands before any of Ultralytics' trainers; a type checker must know what it can call
_Trainer: Any = BaseTrainer if TYPE_CHECKING else object

ADAPTERS_KEY, RUN_KEY = "kd_adapters", "kd_run"  # in the optimizer's state dict
PARTS = ".part-"  # folders in which checkpoints are written before they are moved to their places
OTHER_ADAPTERS = (
    "the checkpoint's feature adapters do not fit this teacher: resume with the teacher that the run began with, or "
    "start a new run."
)
MAX_NORM = 10.0  # the norm to which Ultralytics clips the student's gradient; the adapters' is clipped apart


class ContinuityMixin(_Trainer):
    """What keeps a run with a teacher whole; without one it changes nothing.

    Attributes:
        teacher (Teacher | None): The frozen teacher.
        distiller (Distiller | None): The terms and their adapters.
    """

    teacher: Teacher | None
    distiller: Distiller | None
    unlabeled: UnlabeledStream | None
    wdir: Path
    last: Path
    best: Path
    tloss: Any
    _teacher_given: bool = False  # whether `resume` was told where the teacher is
    _all_trained: bool = False  # whether the run that is resumed lacks nothing but its end
    _streams: dict[str, Any] | None = None  # random streams that go on when training does
    _fingerprints: list[str | None] | None = None  # of every teacher's weights
    _taught_by: list[str | None] | None = None  # those of the run that is resumed

    # Writing ----------------------------------------------------------------------------------------------------------
    def save_model(self) -> Any:
        """Save checkpoints: each of them whole or not at all.

        Raises:
            KDError: If the disk is full or closed; the checkpoint before is still there.
        """
        if self.teacher is None:
            return super().save_model()
        places = self.wdir, self.last, self.best
        try:
            places[0].mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=PARTS, dir=places[0]) as folder:
                self.wdir = Path(folder)
                self.last, self.best = self.wdir / places[1].name, self.wdir / places[2].name
                try:
                    saved = super().save_model()
                finally:
                    parts, (self.wdir, self.last, self.best) = self.wdir, places
                # last.pt comes last: it says what the best fitness is, and best.pt has to be there when it does
                for part in sorted(parts.iterdir(), key=lambda p: p.name == self.last.name):
                    put(part, self.wdir / part.name)
        except OSError as e:
            said = self._disk_error(e)
            if said is None:
                raise
            raise said from e
        return saved

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Add a row to results.csv.

        Raises:
            KDError: If the disk is full or closed.
        """
        try:
            super().save_metrics(metrics)
        except OSError as e:
            said = None if self.teacher is None else self._disk_error(e)
            if said is None:
                raise
            raise said from e

    def _disk_error(self, error: Exception) -> KDError | None:
        """Return what to say of an error while a file of the run was written; None if it is no fault of the disk."""
        there = f"{self.last} is whole: " if self.last.exists() else ""
        advice = f"{there}make room and go on with resume model={self.last}." if there else "make room and start again."
        return disk_fault(error, self.save_dir, advice)

    @contextmanager
    def _stripping_whole(self) -> Iterator[None]:
        """Let Ultralytics strip checkpoints of their optimizer into files beside, which then take their places.

        That of last.pt does so in the end: until then a run that is interrupted can be resumed to do what is left.
        """
        stock = engine.strip_optimizer

        def strip_optimizer(f: Any = "best.pt", s: str = "", updates: Any = None) -> dict[str, Any]:
            part = Path(folder) / Path(s or f).name
            try:
                with _replaced_in_log(f" saved as {part},", f" saved as {s}," if s else ""):
                    stripped = stock(f, str(part), updates)
                if part.exists() and Path(s or f) != self.last:  # it does not where Ultralytics found no checkpoint
                    put(part, Path(s or f))
            except (OSError, RuntimeError) as e:
                said = self._disk_error(e)
                if said is None:
                    raise
                raise said from e
            return stripped

        self.wdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PARTS, dir=self.wdir) as folder:
            engine.strip_optimizer = strip_optimizer
            try:
                yield
            finally:
                engine.strip_optimizer = stock
            part = Path(folder) / self.last.name
            if part.exists():
                put(part, self.last)

    # Optimizer: adapters are trained, checkpointed, restored and stripped with it -------------------------------------
    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build the student's optimizer and add the adapters to it.

        The adapters' weights ride in the optimizer's state dict, and so does what else a run needs to go on. It is thus
        written in one file with the rest, comes back with `resume` and after a NaN, and goes when Ultralytics strips
        the optimizer from a finished checkpoint.
        """
        optimizer = super().build_optimizer(model, *args, **kwargs)
        if self.distiller is None or self.teacher is None:
            return optimizer
        self._note_teachers()  # with stored answers they go before the first checkpoint
        optimizer.register_state_dict_post_hook(self._carry_run)
        parameters = list(self.distiller.adapters.parameters())
        if parameters:
            # MuSGD has a second group of weights with a boosted rate, for the class head
            groups = [g for g in optimizer.param_groups if g.get("param_group") == "weight"]
            group = min(groups, key=lambda g: g["lr"])
            rest = {k: v for k, v in group.items() if k != "params"}
            optimizer.add_param_group({**rest, "params": parameters})
            optimizer.register_state_dict_post_hook(self._save_adapters)
            optimizer.register_load_state_dict_pre_hook(self._load_adapters)
            optimizer.register_step_pre_hook(self._clip_adapters)
        return optimizer

    def _carry_run(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Add whose weights teach, and where the random streams are, to an optimizer's state dict."""
        loaders = {"train": getattr(self, "train_loader", None), "unlabeled": getattr(self.unlabeled, "loader", None)}
        state[RUN_KEY] = {
            "teachers": self._fingerprints,
            "random": random_state(self.device, loaders),
            "over": bool(getattr(self, "stop", False)),  # which patience= or time= can say before the last epoch
        }

    def _save_adapters(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Add the adapters' weights to an optimizer's state dict."""
        assert self.distiller is not None
        state[ADAPTERS_KEY] = self.distiller.adapters.state_dict()

    def _load_adapters(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Restore the adapters' weights from an optimizer's state dict."""
        assert self.distiller is not None
        try:
            self.distiller.adapters.load_state_dict(state[ADAPTERS_KEY])
        except RuntimeError as e:
            raise KDError(OTHER_ADAPTERS) from e

    def _clip_adapters(self, *_: Any) -> None:
        """Clip the adapters' gradient, apart from the student's."""
        assert self.distiller is not None
        nn.utils.clip_grad_norm_(self.distiller.adapters.parameters(), MAX_NORM)

    # Resuming ---------------------------------------------------------------------------------------------------------
    def _look_ahead(self) -> None:
        """See whether the last epoch of the run that is resumed is behind it."""
        left = torch_load(Path(self.args.model), map_location="cpu")  # Ultralytics has opened it already
        optimizer = left.get("optimizer") or {}
        carried = optimizer.get(RUN_KEY, {})
        over = carried.get("over") or left.get("epoch", -1) + 1 >= self.args.epochs
        self._all_trained, self._taught_by = bool(optimizer) and over, carried.get("teachers")

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Go on from a checkpoint: with the teacher, the adapters and the random streams that the run had there.

        Raises:
            KDError: If the teacher's weights are others and nobody said so, or there is nothing to go on with.
        """
        if self.distiller is None or ckpt is None or not self.resume:
            super().resume_training(ckpt)
            return
        if RANK in {-1, 0}:
            for half in self.wdir.glob(f"{PARTS}*"):  # of a process that was killed while it wrote
                shutil.rmtree(half, ignore_errors=True)
            for half in (*self.wdir.glob(".*.tmp"), *self.save_dir.glob(".*.tmp")):
                half.unlink(missing_ok=True)
        if self._all_trained:
            self._load_checkpoint_state(ckpt)
            self.epoch = ckpt["epoch"]
            self.start_epoch = self.epoch + 1
            return
        try:
            super().resume_training(ckpt)
        except AssertionError as e:  # Ultralytics' sentence that nothing is left to train
            raise KDError(" ".join(str(e).split())) from e
        self._trim_results()
        self._streams = (ckpt.get("optimizer") or {}).get(RUN_KEY, {}).get("random")

    def _note_teachers(self) -> None:
        """Take note of whose weights teach, once."""
        assert self.teacher is not None
        if self._fingerprints is None:
            self._fingerprints = [_fingerprint(member) for member in self.teacher.members]

    def _check_teachers(self) -> None:
        """Raise, or warn if the user named the teacher anew, if the weights are not those that the run began with."""
        assert self.teacher is not None
        self._note_teachers()
        before, now = self._taught_by, self._fingerprints or []
        if before is None or (len(before) == len(now) and all(a == b or None in {a, b} for a, b in zip(before, now))):
            return
        if self._teacher_given:
            LOGGER.warning(f"teacher={self.teacher.source} has other weights than the run began with: it goes on.")
            return
        raise KDError(
            f"teacher={self.teacher.source} has other weights than when this run began: resume with "
            f"teacher=PATH of those it began with, or with teacher={self.teacher.source} to go on with the new ones."
        )

    def _trim_results(self) -> None:
        """Drop rows of results.csv that are half written, or of epochs that are trained again."""
        if RANK not in {-1, 0} or not self.csv.is_file():
            return
        header, *rows = self.csv.read_text(encoding="utf-8").splitlines() or [""]
        kept = [
            row
            for row in rows
            if row.count(",") == header.count(",")
            and row.partition(",")[0].isdigit()
            and int(row.partition(",")[0]) <= self.start_epoch
        ]
        if kept != rows:
            write_whole(self.csv, ("\n".join((header, *kept)) + "\n").encode())

    def _model_train(self) -> None:
        """Begin an epoch; the first after a resume with the random streams where they were."""
        super()._model_train()
        if self._streams is None:
            return
        if RANK in {-1, 0}:
            loaders = {"train": self.train_loader, "unlabeled": getattr(self.unlabeled, "loader", None)}
            set_random_state(self._streams, self.device, loaders)
        else:  # the checkpoint is the first process's; the others must not repeat what they drew either
            init_seeds(self.args.seed + 1 + RANK + self.world_size * self.start_epoch, self.args.deterministic)
        self._streams = None

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Restore optimizer and EMA; the EMA is a new model then, and needs the distillation loss again."""
        saved = ckpt.get("optimizer")
        adapted = self.distiller is not None and any(True for _ in self.distiller.adapters.parameters())
        if saved is not None and (ADAPTERS_KEY in saved) != adapted:
            raise KDError(OTHER_ADAPTERS)
        super()._load_checkpoint_state(ckpt)
        model = unwrap_model(self.model)
        if self.distiller is not None and isinstance(getattr(model, "criterion", None), DistillationLoss):
            self.ema.ema.criterion = None
            self._attach_loss()

    def _do_train(self) -> None:
        """Train; or, where a run was interrupted after its last epoch, do what was left."""
        if self.teacher is None or not self._all_trained:
            super()._do_train()
            return
        LOGGER.info(f"All {self.epochs} epochs of {self.args.model} are trained: the final validation is left.")
        if self.world_size > 1:
            self._setup_ddp()
        self.train_time_start = self.epoch_time_start = time.time()  # trackers read them
        self.epoch_time, self.tloss = 0.0, {}
        self._setup_train()
        self.lr = {f"lr/pg{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        self.final_eval()
        if RANK in {-1, 0}:
            if self.args.plots:
                self.plot_metrics()
            self.run_callbacks("on_train_end")
        for loader in (self.train_loader, self.test_loader):
            if hasattr(loader, "close"):
                loader.close()

    # Numbers that are none --------------------------------------------------------------------------------------------
    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Go back to the last checkpoint when the loss is no number, and say which part of it was the first.

        Raises:
            KDError: If there is none to go back to and the student's weights are lost, or it does not help.
        """
        if self.distiller is None:
            return super()._handle_nan_recovery(epoch)
        first = self.distiller.faults.names()
        self.distiller.faults.forget()
        said = f"{' and '.join(first)} {'was' if len(first) == 1 else 'were'} no number in epoch {epoch + 1}"
        advice = "lower its weight or set it to 0" if set(first) & set(self.distiller.weights) else "lower lr0"
        if first and RANK in {-1, 0}:
            LOGGER.warning(f"{said}.")
        try:
            recovers = super()._handle_nan_recovery(epoch)
        except RuntimeError as e:
            raise KDError(f"{first_line(e)[:-1]}{f': {said}' if first else ''}; {advice}.") from e
        lost = first and not recovers and not all(p.isfinite().all() for p in self.model.parameters())
        if lost:  # Ultralytics would go on, in vain, in the first epoch
            left = f"{self.last} is as it was" if self.last.exists() else "there is no checkpoint yet"
            raise KDError(f"{said}, with it the student's weights are lost, and {left}: {advice}.")
        base: Any = getattr(unwrap_model(self.model).criterion, "base", None)
        if recovers and hasattr(base, "updates"):  # the gains of its branches moved on with the epoch that is repeated
            base.updates = epoch - 1
            base.update()
        return recovers


def random_state(device: torch.device, loaders: dict[str, Any]) -> dict[str, Any]:
    """Return where all random streams of a training are, in types that a restricted loader knows.

    Args:
        device (torch.device): Device of the training.
        loaders (dict[str, DataLoader | None]): Loaders by name.
    """
    name, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *(float(x) for x in rest)),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    drawn = {k: getattr(loader, "generator", None) for k, loader in loaders.items()}
    state["loaders"] = {k: generator.get_state() for k, generator in drawn.items() if generator is not None}
    return state


def set_random_state(state: dict[str, Any], device: torch.device, loaders: dict[str, Any]) -> None:
    """Put all random streams of a training where they were.

    Args:
        state (dict): What `random_state` returned.
        device (torch.device): Device of the training.
        loaders (dict[str, DataLoader | None]): Loaders by name, no batch of which has been read yet.
    """
    for name, loader in loaders.items():
        generator = getattr(loader, "generator", None)
        if generator is None or name not in state["loaders"]:
            continue
        if loader.num_workers == 0 and getattr(loader, "iterator", loader) is None:
            loader.iterator = loader._get_iterator()  # it draws once when it is made, which it has done in that run
        generator.set_state(state["loaders"][name])
        if isinstance(loader.sampler, RandomSampler):  # a pass ends with a draw, which comes when the next begins
            torch.randperm(len(loader.sampler.data_source), generator=generator)
    random.setstate(state["python"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _fingerprint(member: Teacher) -> str | None:
    """Return the hash of a teacher's weights; None if it has none to be known by."""
    if member.follows_student:
        return None
    try:
        return member.fingerprint()
    except KDError:  # an object of the user's that does not say
        return None
    except Exception as e:  # the user's code may raise whatever it likes, and the run can do without
        LOGGER.warning(f"teacher={member.source}: its fingerprint() fails, so that resume cannot compare weights: {e}")
        return None


@contextmanager
def _replaced_in_log(text: str, other: str) -> Iterator[None]:
    """Write something else in Ultralytics' log in place of a text."""

    def spoken(record: logging.LogRecord) -> bool:
        record.msg = str(record.msg).replace(text, other)
        return True

    LOGGER.addFilter(spoken)
    try:
        yield
    finally:
        LOGGER.removeFilter(spoken)
