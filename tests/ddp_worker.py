"""One process of several that train together, with the CPU in the place of its GPU: runs a script and writes down what
its training did.

python -m torch.distributed.run ... tests/ddp_worker.py SCRIPT [ARGUMENT ...]

Ultralytics' own set-up of several processes runs as it is, with Gloo; only what would touch a GPU is turned away. It
counts processes as it does with GPUs, from `device`. `DDP_RECORDS` is the folder for the records.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

RANK = int(os.environ.get("RANK", -1))
record: dict[str, Any] = {
    "steps": [],
    "collectives": [],
    "buffers": [],
    "taught": [],
    "trackers": [],
    "opened": 0,
    "scanned": 0,
    "answered": 0,
}


class Uneven(nn.Module):
    """A feature loss that is hard on several processes: it begins with other numbers in each, uses a parameter in the
    first one alone and another nowhere, and keeps statistics."""

    def __init__(self, student: int, teacher: int):
        super().__init__()
        self.project, self.norm = nn.Conv2d(student, teacher, 1), nn.BatchNorm2d(teacher)
        self.first, self.never = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        with torch.no_grad():
            self.project.weight += RANK

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.project(student))
        return ((out * self.first if RANK == 0 else out) - teacher).square().mean()


def stop_after_an_epoch(trainer: Any) -> None:
    """Fail as a machine does, when a checkpoint has been written."""
    if trainer.epoch == 0:
        raise SystemError("cut")


def wrap(owner: Any, name: str, around: Any) -> None:
    """Put a function around one of an object's: it is given the original first."""
    stock = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: around(stock, *args, **kwargs))


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([torch.zeros(0), *(t.detach().flatten().float().cpu() for t in tensors)])


def without_gpu() -> None:
    """Let the CPU stand for GPUs; trackers, which take seconds to import, are only asked for."""
    from ultralytics.engine import trainer, validator
    from ultralytics.utils import callbacks

    callbacks.add_integration_callbacks = lambda instance: record["trackers"].append(type(instance).__name__)

    backend = SimpleNamespace(set_device=lambda index: None, current_device=lambda: 0)
    trainer.select_device = lambda *args, **kwargs: torch.device("cuda", 0)
    trainer.get_torch_device_backend = validator.get_torch_device_backend = lambda device: backend
    torch.distributed.is_nccl_available = lambda: False
    wrap(validator, "AutoBackend", lambda stock, *a, **k: stock(*a, **{**k, "device": torch.device("cpu")}))

    def setup(stock: Any, self: Any) -> None:
        stock(self)
        record["device"] = str(self.device)
        self.device, self.accelerator = torch.device("cpu"), None

    stock_setup = trainer.BaseTrainer._setup_ddp
    trainer.BaseTrainer._setup_ddp = lambda self: setup(stock_setup, self)
    parallel_init = nn.parallel.DistributedDataParallel.__init__

    def init(self: Any, module: nn.Module, device_ids: Any = None, **kwargs: Any) -> None:
        parallel_init(self, module, **kwargs)
        record["ddp"] = len(list(self.parameters())), len(list(module.parameters()))

    nn.parallel.DistributedDataParallel.__init__ = init


def listen() -> None:
    """Write down what a distillation does from here on."""
    from ultralytics.data import dataset
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.utils import DEFAULT_CFG_DICT

    from ultralytics_kd import cache, trainer
    from ultralytics_kd.config.changes import in_force
    from ultralytics_kd.config.registration import ARGUMENT_CHANGES, TRAINER_CHANGES
    from ultralytics_kd.training import distributed
    from ultralytics_kd.training.run import teacher_source

    record["known"] = "teacher" in DEFAULT_CFG_DICT and all(map(in_force, (*ARGUMENT_CHANGES, *TRAINER_CHANGES)))
    cache.build.select_device = lambda *args, **kwargs: torch.device("cpu")
    mixin, current = trainer.DistillationMixin, {}

    def scanned(stock: Any, *args: Any) -> None:
        record["scanned"] += 1
        stock(*args)

    wrap(dataset, "save_dataset_cache_file", scanned)

    def answered(stock: Any, self: Any, work: Any, portions: list, done: Any) -> None:
        record["answered"] += sum(len(portion.files) for portion in portions)
        stock(self, work, portions, done)

    stock_answer = cache.work.LocalExecutor.answer
    cache.work.LocalExecutor.answer = lambda *args: answered(stock_answer, *args)
    if os.environ.get("DDP_BLIND") == str(RANK):  # as on a machine that does not share the run's folder
        distributed._appears = lambda file, word: False

    def opened(stock: Any, *args: Any) -> Any:
        record["opened"] += 1
        record["taught"].append(type(args[0]).__name__)
        return stock(*args)

    wrap(teacher_source, "open_teacher", opened)
    for name in ("all_reduce", "broadcast", "reduce"):
        wrap(torch.distributed, name, lambda stock, tensor, *a, _n=name, **k: sent(_n, stock, tensor, *a, **k))

    def sent(name: str, stock: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        teacher = getattr(current.get("trainer"), "teacher", None)
        modules = [
            m for t in (teacher.members if teacher else ()) for m in vars(t).values() if isinstance(m, nn.Module)
        ]
        theirs = {t.untyped_storage().data_ptr() for m in modules for t in (*m.parameters(), *m.buffers())}
        record["collectives"].append((name, tensor.numel(), tensor.untyped_storage().data_ptr() in theirs))
        record["teacher_tensors"] = max(len(theirs), record.get("teacher_tensors", 0))
        return stock(tensor, *args, **kwargs)

    stock_setup, stock_step, stock_validate = mixin._setup_train, mixin.optimizer_step, BaseTrainer.validate
    base_step, stock_report = BaseTrainer.optimizer_step, mixin._score_teacher

    def setup(self: Any) -> None:
        current["trainer"] = self
        record["arrived"] = {k: v for k, v in vars(self.args).items() if isinstance(v, (str, int, float, list, dict))}
        record["world_size"], record["save_dir"] = self.world_size, str(self.save_dir)
        stock_setup(self)
        record["images"] = list(self.train_loader.sampler)
        record["unlabeled"] = list(self.unlabeled.loader.sampler) if self.unlabeled else None

    def gradients(self: Any) -> dict[str, torch.Tensor | None]:
        adapters = self.distiller.adapters.named_parameters()
        return {name: None if p.grad is None else p.grad.clone() for name, p in adapters}

    def step(self: Any) -> None:
        state = {"adapters": flat(self.distiller.adapters.parameters()), "student": flat(self.model.parameters())}
        record["steps"].append({**state, "local": gradients(self), "items": dict(self.loss_items)})
        counts = self.distillation.pseudo.counts if self.distillation.pseudo else None
        record["steps"][-1]["pseudo"] = counts and (counts.images, counts.boxes)
        stock_step(self)

    def inner_step(self: Any) -> None:
        record["steps"][-1]["reduced"] = gradients(self)
        base_step(self)
        record["adapters"] = flat(self.distiller.adapters.parameters())
        record["student"] = flat(self.model.parameters())

    def validate(self: Any) -> Any:
        record["average"] = len(list(self.ema.ema.buffers()))
        record["buffers"].append([b.clone() for b in self.distiller.adapters.buffers()])
        return stock_validate(self)

    def score(self: Any) -> None:
        stock_report(self)
        record["teacher_metrics"], record["metrics"] = self.teacher_metrics, self.metrics

    mixin._setup_train, mixin.optimizer_step, mixin._score_teacher = setup, step, score
    BaseTrainer.optimizer_step, BaseTrainer.validate = inner_step, validate


def main(script: str) -> None:
    """Run the script as the process that torch started would."""
    from ultralytics.utils import patches

    def loaded(stock: Any, *args: Any, **kwargs: Any) -> Any:
        """The launcher's script loads a trainer's class: nobody has imported this package before."""
        record["imported_before"] = "ultralytics_kd" in sys.modules
        patches.torch_load = stock
        state = stock(*args, **kwargs)
        listen()
        return state

    without_gpu()
    if Path(script).name.startswith("_temp_"):
        wrap(patches, "torch_load", loaded)
    else:
        listen()
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        torch.save(record, Path(os.environ["DDP_RECORDS"]) / f"{RANK}.pt")


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    main(sys.argv[0])
