"""What a training says last: the command of a bench with its own arguments."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from ultralytics.cfg import get_cfg

from ultralytics_kd import KDError
from ultralytics_kd.bench.plan import make_plan
from ultralytics_kd.bench.run import run_bench
from ultralytics_kd.cli import _key_values
from ultralytics_kd.training.scores.next_bench import bench_command


def test_the_command_has_the_arguments_of_the_training_and_a_bench_takes_it(tmp_path, data, teacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {
        "epochs": 7,
        "imgsz": 64,
        "kd_cls": 1.0,
        "kd_classes": {"disc": "box"},
        "name": "mine",
        "seed": 3,
        "plots": False,
    }
    asked = {"data": data, "model": "yolo26n.yaml", "teacher": teacher, **own}
    args = get_cfg(overrides={**asked, "optimizer": "AdamW", "workers": 0})  # as Ultralytics chose them
    line = bench_command(args, asked)
    assert "optimizer" not in line and "workers" not in line
    assert line.startswith("yolo-kd bench data=") and not {"mine", "seed", "plots"} & set(
        line.replace("=", " ").split()
    )
    given = _key_values("bench", shlex.split(line)[2:], {})
    plan = make_plan(given)
    [kd] = [arm for arm in plan.arms if arm.name == "kd"]
    assert plan.common["epochs"] == 7 and plan.common["imgsz"] == 64
    assert (kd.args["kd_cls"], kd.args["kd_classes"], Path(kd.args["teacher"])) == (1.0, {"disc": "box"}, Path(teacher))


@pytest.mark.parametrize("batch", [-1, 0.7])
def test_a_bench_takes_the_batch_that_was_found(batch):
    asked = {"data": "d.yaml", "model": "yolo26n.pt", "teacher": "t.pt", "batch": batch}
    line = bench_command(get_cfg(overrides={**asked, "batch": 24}), asked)  # 24 is what AutoBatch set
    assert "batch=24" in line.split()


def test_paths_are_as_short_as_they_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teachers = [str(tmp_path / "a.pt"), "b.pt"]
    asked = {"data": str(tmp_path / "d.yaml"), "model": "yolo26n.pt", "teacher": teachers}
    assert (
        bench_command(get_cfg(overrides=asked), asked)
        == "yolo-kd bench data=d.yaml model=yolo26n.pt 'teacher=[a.pt,b.pt]'"
    )


def test_a_teacher_in_memory_and_a_resumed_run_have_no_command():
    asked = {"data": "d.yaml", "model": "yolo26n.pt"}
    args = get_cfg(overrides=asked)
    args.teacher = object()
    assert bench_command(args, asked) == ""
    args.teacher, args.resume = "a.pt", "last.pt"
    assert bench_command(args, asked) == ""


@pytest.mark.parametrize("left", ["args.yaml", "weights"])
def test_a_bench_leaves_the_folder_of_a_training_alone(tmp_path, data, teacher, left):
    folder = tmp_path / "mine"
    (folder / left).mkdir(parents=True)
    given = {"data": data, "model": "yolo26n.yaml", "teacher": teacher, "project": str(tmp_path), "name": "mine"}
    with pytest.raises(KDError, match="holds a training: give the bench another name="):
        run_bench(given)
    assert [file.name for file in folder.iterdir()] == [left]
