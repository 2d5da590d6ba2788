"""This release continues from files that an older one wrote: an interrupted run and a cache (see former/make.py)."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from conftest import QUICK
from ultralytics.utils import YAML

from ultralytics_kd import YOLO
from ultralytics_kd.training.run.resuming import ResumedRun

pytest.importorskip("albumentations")  # which draws random numbers, and the older release trained with it

FORMER = Path(__file__).parent / "former"
TRAINED = ["train/box_loss", "train/cls_loss", "train/kd_cls", "train/kd_box", "train/kd_feat"]


@pytest.fixture
def former(tmp_path) -> Path:
    """Return a copy of the older release's files; paths in them lead to the copy."""
    folder = tmp_path / "former"
    shutil.copytree(FORMER, folder)
    YAML.save(
        folder / "shapes" / "data.yaml", {**YAML.load(folder / "shapes" / "data.yaml"), "path": str(folder / "shapes")}
    )
    return folder


def test_a_run_that_an_older_release_began_is_resumed_with_the_same_numbers(former):
    last = former / "run" / "weights" / "last.pt"
    checkpoint = torch.load(last, weights_only=False)
    moved = {"data": former / "shapes" / "data.yaml", "model": former / "small.yaml", "save_dir": former / "run"}
    checkpoint["train_args"] |= {name: str(path) for name, path in moved.items()}
    torch.save(checkpoint, last)

    model = YOLO(str(last))
    model.train(resume=True, teacher=str(former / "teacher.pt"))

    now, then = pl.read_csv(former / "run" / "results.csv"), pl.read_csv(FORMER / "resumed.csv")
    assert now.columns == then.columns and now["epoch"].to_list() == [1, 2, 3, 4]
    for name in TRAINED:
        assert now[name].to_list() == pytest.approx(then[name].to_list(), rel=0.01), name
    assert now["train/kd_feat"][3] < 0.5 * now["train/kd_feat"][1]  # its adapters came back with the optimizer


def test_a_cache_that_an_older_release_made_teaches_the_same(former):
    then = pl.read_csv(FORMER / "cached.csv")
    model = YOLO(str(former / "small.yaml"))
    model.train(
        **{**QUICK, "epochs": 4, "data": str(former / "shapes" / "data.yaml"), "project": str(former / "runs")},
        teacher=str(former / "teacher.pt"),
        kd_cache=str(former / "cache"),
        kd_box=4.0,
        kd_init=False,
    )
    now = pl.read_csv(model.trainer.csv)
    idle = {"train/kd_feat", *(name for name in then.columns if name.startswith("val/kd"))}  # that release wrote zeros
    assert now.columns == [name for name in then.columns if name not in idle]
    for name in TRAINED[:4]:
        assert now[name].to_list() == pytest.approx(then[name].to_list(), rel=0.01), name


def test_columns_that_an_older_release_wrote_for_terms_that_are_off_are_dropped(tmp_path):
    csv = tmp_path / "results.csv"
    csv.write_text("epoch,time,train/kd_cls,train/kd_feat,metrics/mine,val/kd_cls\n1,2.5,3,0,4,0\n2,5.5,6,0,7,0\n")
    trainer = SimpleNamespace(csv=csv, last=tmp_path / "last.pt", args=SimpleNamespace(task="detect"))
    for _ in range(2):
        ResumedRun.drop_columns(trainer, {"train/kd_cls": 1.0})
        assert csv.read_text() == "epoch,time,train/kd_cls,metrics/mine\n1,2.5,3,4\n2,5.5,6,7\n"
