"""There is one way through the code: few files between a batch and the sum of its loss, none of them twice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import ultralytics_kd
from ultralytics_kd.cache import make_cache
from ultralytics_kd.trainer import KDDetectionTrainer

PACKAGE = Path(ultralytics_kd.__file__).parent
MOST = 15  # on a GPU 14: there no convolution of the teacher is replaced


def files_of(function) -> list[str]:
    """Return the files of the package whose code runs in a call, in the order of their first line."""
    files: dict[str, None] = {}

    def trace(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            files[path.relative_to(PACKAGE).as_posix()] = None

    sys.setprofile(trace)
    try:
        function()
    finally:
        sys.setprofile(None)
    return list(files)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_few_files_stand_between_a_batch_and_the_sum_of_its_loss(quick, teacher, tmp_path, cached):
    if cached:
        make_cache({"teacher": teacher, "kd_cache": str(tmp_path / "cache"), **pick(quick, "data", "imgsz", "device")})
    given = {"kd_cache": str(tmp_path / "cache")} if cached else {}
    trainer = KDDetectionTrainer(overrides={**quick, **given, "model": "yolo26n.yaml", "teacher": teacher})
    trainer._setup_train()
    trainer.epoch = 0
    trainer._model_train()
    batches = iter(trainer.train_loader)
    trainer.model(trainer.preprocess_batch(next(batches)))[0].sum().backward()  # the first batch also checks and caches
    trainer.run_callbacks("on_train_batch_end")

    batch, losses = next(batches), []

    def step() -> None:
        losses.append(trainer.model(trainer.preprocess_batch(batch))[0])

    files = files_of(step)
    assert torch.isfinite(losses[0]).all() and len(losses[0]) > 3
    assert "distillation/loss.py" in files and files[0] == "training/mixin.py"
    assert len(files) <= MOST, "\n".join(files)


def pick(given: dict, *names: str) -> dict:
    """Return some of the arguments."""
    return {name: given[name] for name in names}
