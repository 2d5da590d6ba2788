"""Distillation in several processes: those that Ultralytics launches, and those that a user starts with torchrun.

Two real processes over Gloo, with the CPU in the place of GPUs (see ddp_worker.py).
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import ddp_worker
import pytest
import torch
from conftest import NAMES, QUICK, draw_dataset, save_model
from task_models import OTHERS, SUFFIX, task_model
from test_training import results
from ultralytics.engine import trainer as engine
from ultralytics.utils import YAML
from ultralytics.utils.dist import find_free_network_port
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDDetectionTrainer, KDError
from ultralytics_kd.demo.tasks import draw_task_dataset
from ultralytics_kd.training import distributed

pytest.importorskip("cloudpickle")  # Ultralytics' launcher packs a trainer with it
WORKER = str(Path(__file__).parent / "ddp_worker.py")
TERM = {"depth": "kd_depth", "segment": "kd_mask", "pose": "kd_kpt"}  # a term that only this task has
ARGS = {**QUICK, "nbs": 4, "kd_feat": 1.0, "device": "0,1", "warmup_epochs": 0}


def read(records: Path) -> list[dict[str, Any]]:
    """Return what both processes wrote down."""
    return [torch.load(records / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture
def launcher(tmp_path):
    """Let Ultralytics' launcher start its own script inside our harness; yield the folder of the records."""
    with launching(tmp_path) as records:
        yield records


def launching(folder: Path) -> Any:
    """Return a context in which Ultralytics launches two processes that write their records to a folder."""
    stock = engine.generate_ddp_command

    def command(trainer: Any) -> tuple[list[str], str]:
        cmd, file = stock(trainer)
        return [*cmd[:-1], WORKER, cmd[-1]], file

    patch = pytest.MonkeyPatch()
    patch.setattr(engine, "select_device", lambda *args, **kwargs: torch.device("cuda", 0))
    patch.setattr(engine, "generate_ddp_command", command)
    patch.setenv("DDP_RECORDS", str(folder))

    class Context:
        def __enter__(self) -> Path:
            return folder

        def __exit__(self, *_: Any) -> None:
            patch.undo()

    return Context()


def torchrun(folder: Path, arguments: dict[str, Any], groups: int = 1, each: int = 1) -> list[str]:
    """Train in groups of processes that a user starts, as on several machines; return what each group printed.

    Raises:
        AssertionError: If one of them failed.
    """
    script = folder / "train.py"
    (folder / "arguments.json").write_text(json.dumps(arguments))
    script.write_text(
        "import json, sys\nfrom ultralytics_kd import YOLO\n"
        f"YOLO('yolo26n.yaml').train(**json.load(open({str(folder / 'arguments.json')!r})))\n"
    )
    port = str(find_free_network_port())
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(groups), "--nproc_per_node", str(each)]
    command += ["--master_addr", "127.0.0.1", "--master_port", port]
    started = [
        subprocess.Popen(
            [*command, "--node_rank", str(i), WORKER, str(script)],
            env={**os.environ, "DDP_RECORDS": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(groups)
    ]
    said = [process.communicate(timeout=500)[0] for process in started]
    assert all(process.returncode == 0 for process in started), said[0][-3000:] + said[-1][-3000:]
    return said


# Processes that Ultralytics launches ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory, data, teacher):
    """Distil in two processes from a teacher in memory, with a loss of the user's own and images without labels."""
    folder = tmp_path_factory.mktemp("ddp")
    draw_dataset(folder / "extra", images=6, seed=7)
    with launching(folder):
        YOLO("yolo26n.yaml").train(
            **ARGS,
            data=data,
            teacher=torch_load(teacher)["model"],
            kd_feat_loss="ddp_worker:Uneven",
            kd_cls=0.7,
            kd_classes={"disc": "disc", "box": "box", "bar": "bar"},
            kd_unlabeled=str(folder / "extra" / "images" / "train"),
            kd_unlabeled_boxes=0.3,
            project=str(folder / "runs"),
            name="run",
        )
    return folder / "runs" / "run", read(folder)


def test_arguments_and_the_teacher_in_memory_reach_every_process(run):
    for record in run[1]:
        assert not record["imported_before"] and record["known"]  # Ultralytics' script knows nothing of this package
        assert record["arrived"]["kd_cls"] == 0.7 and record["arrived"]["kd_feat"] == 1.0
        assert record["arrived"]["kd_classes"] == {"disc": "disc", "box": "box", "bar": "bar"}
        assert record["arrived"]["kd_feat_loss"] == "ddp_worker:Uneven"
        assert record["opened"] == 1 and record["taught"] == ["DetectionModel"]
    assert [r["trackers"].count("KDDetectionTrainer") for r in run[1]] == [1, 0]  # one of them is followed
    assert [r["device"] for r in run[1]] == ["cuda:0", "cuda:1"] and [r["world_size"] for r in run[1]] == [2, 2]


def test_every_process_learns_from_the_teacher_on_images_of_its_own(run):
    first, second = run[1]
    for record in run[1]:
        assert len(record["steps"]) == 4
        assert all(step["items"][term] > 0 for step in record["steps"] for term in ("kd_cls", "kd_box", "kd_feat"))
    assert first["steps"][0]["items"] != second["steps"][0]["items"]
    assert sorted(first["images"] + second["images"]) == list(range(8))
    assert sorted(first["unlabeled"] + second["unlabeled"]) == list(range(6))
    for record in run[1]:
        assert [step["pseudo"][0] for step in record["steps"]] == [2, 4, 2, 4]  # two images in each batch of an epoch
        assert all(step["pseudo"][1] for step in record["steps"])  # and boxes in them


def test_adapters_begin_and_stay_equal_though_each_process_made_others(run):
    first, second = run[1]
    for a, b in zip(first["steps"], second["steps"]):
        assert torch.equal(a["adapters"], b["adapters"]) and torch.equal(a["student"], b["student"])
    assert torch.equal(first["adapters"], second["adapters"]) and torch.equal(first["student"], second["student"])
    assert not torch.equal(first["adapters"], first["steps"][0]["adapters"])
    for buffers in zip(first["buffers"], second["buffers"]):  # when both validate
        assert all(torch.equal(a, b) for a, b in zip(*buffers))


def test_gradients_of_adapters_are_the_mean_of_all_processes(run):
    first, second = run[1]
    for a, b in zip(first["steps"], second["steps"]):
        for name, reduced in a["reduced"].items():
            local = [step["local"][name] for step in (a, b)]
            assert (local[1] is None) == name.endswith(("first", "never"))  # used by the first alone, or by nobody
            if name.endswith("never"):
                assert reduced is b["reduced"][name] is None  # the optimizer has nothing to do with it
                continue
            assert torch.equal(reduced, b["reduced"][name])
            mean = sum(g for g in local if g is not None) / 2
            torch.testing.assert_close(reduced, mean)
            assert local[1] is None or not torch.equal(local[0], local[1])


def test_the_teacher_takes_part_in_no_reduction(run):
    for record in run[1]:
        assert {"all_reduce", "broadcast", "reduce"} == {name for name, _, _ in record["collectives"]}
        assert record["teacher_tensors"] > 100 and not any(theirs for *_, theirs in record["collectives"])
        student = YOLO("yolo26n.yaml").model
        assert record["ddp"] == (len(list(student.parameters())),) * 2
        count = Counter(name for name, *_ in record["collectives"])
        adapters, norms = 3 * 6, 3 * 3  # parameters and buffers of three levels
        average = record["average"]  # the student's buffers
        assert count["all_reduce"] == len(record["steps"]) and count["reduce"] == 2 * len(record["steps"][0]["items"])
        assert count["broadcast"] == 1 + adapters + norms + 2 * (norms + average)  # AMP, start, two validations


def test_a_run_of_several_processes_leaves_what_one_process_leaves(run):
    folder, (first, second) = run
    rows = results(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(row[f"{side}/{term}"] > 0 for row in rows for side in ("train", "val") for term in ("kd_cls", "kd_feat"))
    args = YAML.load(folder / "args.yaml")
    assert args["teacher"] == str(folder / "weights" / "teacher.pt") == first["arrived"]["teacher"]
    assert sorted(f.name for f in (folder / "weights").iterdir()) == ["best.pt", "last.pt", "teacher.pt"]
    saved = torch_load(folder / "weights" / "best.pt")
    assert saved["train_args"]["kd_cls"] == 0.7 and YOLO(folder / "weights" / "best.pt").names == NAMES
    assert first["metrics"]["teacher/mAP50-95(B)"] == first["teacher_metrics"]["metrics/mAP50-95(B)"]
    assert second["teacher_metrics"] == {}
    alone = YOLO(folder / "weights" / "teacher.pt").val(
        data=args["data"], imgsz=64, batch=4, workers=0, plots=False, device="cpu", project=str(folder.parent)
    )
    theirs = {k: v for k, v in first["teacher_metrics"].items() if k != "fitness"}
    assert theirs == pytest.approx({k: alone.results_dict[k] for k in theirs}) and any(theirs.values())


def test_sentence_of_a_process_that_failed_is_said_last_and_nothing_is_left(launcher, tmp_path, data, monkeypatch):
    mortal = save_model(tmp_path / "mortal.pt")

    def start(cmd: list[str], check: bool) -> None:
        """Run the launcher's script here, after its teacher has gone."""
        mortal.unlink()
        assert (tmp_path / "runs" / "deep" / "run").is_dir()  # no other run can take it meanwhile
        with pytest.raises(KDError):
            runpy.run_path(cmd[-1], run_name="__main__")
        raise subprocess.CalledProcessError(1, cmd)

    monkeypatch.setattr(engine.subprocess, "run", start)
    project = str(tmp_path / "runs" / "deep")
    with pytest.raises(KDError, match=rf"^teacher={re.escape(str(mortal))} was not found") as error:
        YOLO("yolo26n.yaml").train(**ARGS, data=data, teacher=str(mortal), project=project, name="run")
    assert error.value.__suppress_context__ and not (tmp_path / "runs").exists()
    assert distributed.NOTES not in os.environ


def test_error_of_a_process_that_is_no_sentence_stays_ultralytics_own(launcher, tmp_path, data, teacher, monkeypatch):
    def start(cmd: list[str], check: bool) -> None:
        assert (tmp_path / "runs" / "run").is_dir()
        raise subprocess.CalledProcessError(1, cmd)

    monkeypatch.setattr(engine.subprocess, "run", start)
    with pytest.raises(subprocess.CalledProcessError):
        YOLO("yolo26n.yaml").train(**ARGS, data=data, teacher=teacher, project=str(tmp_path / "runs"), name="run")
    assert (tmp_path / "runs" / "run").exists()  # it had begun


# Processes that a user starts -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def machines(tmp_path_factory, teacher):
    """Distil in two groups of processes, as on two machines, where there is a run of the same name already."""
    folder = tmp_path_factory.mktemp("machines")
    earlier = folder / "runs" / "run"
    earlier.mkdir(parents=True)
    (earlier / "results.csv").write_text("of an earlier run")
    data = str(draw_dataset(folder / "shapes"))  # whose labels both read for the first time
    arguments = {**ARGS, "epochs": 1, "data": data, "teacher": teacher, "project": str(folder / "runs"), "name": "run"}
    said = torchrun(folder, {**arguments, "device": None}, groups=2)
    return folder / "runs", read(folder), said


@pytest.mark.nightly
def test_groups_of_processes_train_together_whatever_ultralytics_counts(machines):
    _, (first, second), said = machines
    for record in (first, second):
        assert record["world_size"] == 2 and record["arrived"]["device"] == "0" and record["device"] == "cuda:0"
        assert all(step["items"][term] > 0 for step in record["steps"] for term in ("kd_cls", "kd_box", "kd_feat"))
        assert len(record["steps"]) == 2
    assert sorted(first["images"] + second["images"]) == list(range(8))
    assert torch.equal(first["student"], second["student"]) and torch.equal(first["adapters"], second["adapters"])
    assert first["steps"][0]["items"] != second["steps"][0]["items"]
    assert "Distillation:" in said[0] and "Distillation:" not in said[1]
    assert [first["scanned"], second["scanned"]] == [2, 0]  # the label files, which both read


@pytest.mark.nightly
def test_groups_of_processes_have_one_folder_and_touch_no_other(machines):
    runs, (first, second), _ = machines
    assert first["save_dir"] == second["save_dir"] == str(runs / "run-2")
    assert (runs / "run" / "results.csv").read_text() == "of an earlier run"
    assert sorted(p.name for p in runs.iterdir()) == ["run", "run-2"]
    assert len(results(runs / "run-2")) == 1
    assert sorted(p.name for p in (runs / "run-2").iterdir()) == ["args.yaml", "results.csv", "weights"]
    assert first["metrics"]["teacher/mAP50-95(B)"] >= 0
    assert YOLO(runs / "run-2" / "weights" / "best.pt").names == NAMES


@pytest.mark.parametrize(
    ("device", "processes", "expected"),
    [(None, 2, "0,1"), ("", 1, "0"), ("[2, 3]", 2, "2,3"), ([0, 1], 2, "0,1"), ("npu:1,2", 2, "npu:1,2"), (3, 1, "3")],
)
def test_devices_of_processes_are_the_given_or_the_first(device, processes, expected):
    assert distributed.own_devices(device, processes) == expected


def test_a_resumed_run_with_more_processes_takes_the_first_devices_unless_they_are_named():
    assert distributed.own_devices("2,3", 3, named=False) == "0,1,2"
    assert distributed.own_devices("2,3", 2, named=False) == "2,3"
    with pytest.raises(KDError, match="names 2 GPU"):
        distributed.own_devices("2,3", 3)


@pytest.mark.parametrize("kind", ["batch", "callback"])
def test_a_run_whose_processes_are_never_launched_leaves_nothing(kind, launcher, tmp_path, data, teacher):
    model, lock = YOLO("yolo26n.yaml"), threading.Lock()
    if kind == "callback":
        model.add_callback("on_train_start", lambda trainer: lock)
    given = {**ARGS, "batch": -1} if kind == "batch" else ARGS
    with pytest.raises((ValueError, TypeError), match=r"AutoBatch|pickle"):
        model.train(**given, data=data, teacher=teacher, project=str(tmp_path / "runs"), name="run")
    assert not (tmp_path / "runs").exists()


def test_all_processes_take_the_schedule_of_the_first_one(quick, teacher, monkeypatch):
    """With `time` each process estimates the number of epochs by itself, and terms of different fades hang."""
    fades = []
    monkeypatch.setattr(distributed, "from_first", lambda make: 0.75)
    model = YOLO("yolo26n.yaml")
    model.add_callback("on_train_batch_end", lambda trainer: fades.append(trainer.distiller.fade))
    model.train(**{**quick, "epochs": 1}, teacher=teacher, kd_schedule="linear")
    assert fades and fades == pytest.approx([0.25] * len(fades))


def test_a_single_process_of_torchrun_is_told_to_start_without_it(quick, teacher, monkeypatch):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setattr(distributed, name, value)
    with pytest.raises(KDError, match="start the training without torchrun"):
        KDDetectionTrainer(overrides={**quick, "device": "0", "model": "yolo26n.yaml", "teacher": teacher})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"device": "0"}, "device=0 names 1 GPU(s) and 2 processes run here: name one for each"),
        ({"device": "cpu"}, "device=cpu: processes that train together need a GPU each"),
        ({"batch": -1}, "batch=-1 cannot be split among 2 processes"),
    ],
)
def test_what_processes_cannot_share_is_one_sentence(given, sentence, quick, teacher, monkeypatch):
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setattr(distributed, name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(KDError, match=re.escape(sentence)):
        KDDetectionTrainer(overrides={**quick, "device": "0,1", **given, "model": "yolo26n.yaml", "teacher": teacher})


def test_processes_without_a_teacher_are_ultralytics_own(quick, monkeypatch):
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setattr(distributed, name, value)
    monkeypatch.setattr(engine.callbacks, "add_integration_callbacks", lambda trainer: None)  # slow to import
    trainer = KDDetectionTrainer(overrides={**quick, "model": "yolo26n.yaml"})
    assert trainer.world_size == 0 and trainer.args.device == quick["device"]


PLAIN = """
import socket, sys
from ultralytics_kd.training import distributed
socket.gethostname = lambda: sys.argv[1]
print(distributed.several_machines(), distributed._processes_here())
"""


@pytest.mark.parametrize(("hosts", "expected"), [(("a", "a"), "False 2"), (("a", "b"), "True 1")])
def test_all_ranks_of_a_launcher_that_names_no_local_size_agree_on_the_machines(hosts, expected):
    assert ranks(PLAIN, hosts) == [expected, expected]


ONE_FAILS = """
import sys
from types import SimpleNamespace
import torch.distributed as dist
from ultralytics_kd.training.scores import evaluation

dist.init_process_group("gloo")
rank = dist.get_rank()


class Validator:
    args, callbacks = SimpleNamespace(), {}

    def __call__(self, model):
        if sys.argv[1] == "while":
            if rank == 1:
                raise ValueError("broken")
            dist.barrier()  # as Ultralytics gathers its statistics
        return {"metrics/mAP50-95(B)": 0.5}


def make():
    if rank == 1 and sys.argv[1] == "before":
        raise ValueError("broken")
    return Validator()


teacher = SimpleNamespace(source="t.pt", can_validate=True, layout=None, validator_model=lambda nc, names: object())
own = {"teacher_metrics": {}, "open_again": lambda data: None, "teacher_imgsz": 64, "keeping": None}
distillation = SimpleNamespace(teacher=teacher, **own)
validator = SimpleNamespace(args=SimpleNamespace())
args = SimpleNamespace(imgsz=64)
trainer = SimpleNamespace(data={"names": {0: "a"}}, metrics={}, world_size=2, validator=validator, args=args)
evaluation.score_teacher(distillation, trainer, make)
print(sorted(trainer.metrics))
dist.barrier()  # rank 0 holds the store that the other one may still read
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("fails", "codes", "last"),
    [pytest.param("before", [0, 0], "[]", marks=pytest.mark.nightly), ("while", [1, 1], "broken")],
)
def test_no_rank_waits_for_one_that_cannot_validate_the_teacher(fails, codes, last):
    processes = start_ranks(ONE_FAILS, (fails, fails))
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [int(process.returncode != 0) for process in processes] == codes, outputs
    assert not any(out.strip().endswith("['teacher/mAP50-95(B)']") for out in outputs)
    assert any(last in out for out in outputs), outputs


def start_ranks(script: str, arguments: tuple[str, ...]) -> list[subprocess.Popen]:
    """Start a process for each argument, as a launcher does that sets the common variables alone."""
    port = str(find_free_network_port())
    shared = {"WORLD_SIZE": str(len(arguments)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    inherited = {k: v for k, v in os.environ.items() if k != "LOCAL_WORLD_SIZE"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, argument],
            env={**inherited, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, argument in enumerate(arguments)
    ]


def ranks(script: str, arguments: tuple[str, ...]) -> list[str]:
    """Return the last line of every process."""
    return [process.communicate(timeout=120)[0].strip().splitlines()[-1] for process in start_ranks(script, arguments)]


# What takes longer ----------------------------------------------------------------------------------------------------
@pytest.mark.nightly
def test_run_of_several_processes_that_was_cut_is_resumed(launcher, tmp_path, data, teacher):
    model = YOLO("yolo26n.yaml")
    model.add_callback("on_fit_epoch_end", ddp_worker.stop_after_an_epoch)
    given = {"data": data, "kd_feat_loss": "ddp_worker:Uneven", "project": str(tmp_path / "runs"), "name": "run"}
    with pytest.raises(subprocess.CalledProcessError):
        model.train(**{**ARGS, "epochs": 3}, **given, teacher=torch_load(teacher)["model"])
    cut = read(tmp_path)
    last = tmp_path / "runs" / "run" / "weights" / "last.pt"
    assert last.exists()  # it had begun
    YOLO(last).train(resume=True)
    first, second = read(tmp_path)
    assert [row["epoch"] for row in results(last.parents[1])] == [1, 2, 3]
    assert first["arrived"]["teacher"] == str(last.with_name("teacher.pt")) and first["opened"] == 1
    for record in (first, second):
        assert len(record["steps"]) == 4 and all(step["items"]["kd_feat"] > 0 for step in record["steps"])
        begin = record["steps"][0]["adapters"]
        torch.testing.assert_close(begin, cut[0]["adapters"], rtol=1e-3, atol=1e-3)  # saved in half precision
    assert torch.equal(first["adapters"], second["adapters"]) and torch.equal(first["student"], second["student"])


@pytest.mark.nightly
def test_resume_that_fails_leaves_the_run_as_it_was(launcher, tmp_path, data, teacher):
    model = YOLO("yolo26n.yaml")
    model.add_callback("on_fit_epoch_end", ddp_worker.stop_after_an_epoch)
    with pytest.raises(subprocess.CalledProcessError):
        model.train(**{**ARGS, "epochs": 3}, data=data, teacher=teacher, project=str(tmp_path / "runs"), name="run")
    folder = tmp_path / "runs" / "run"
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    other = save_model(tmp_path / "other.pt", "yolo11m.yaml")  # the adapters of the run do not fit its features
    with pytest.raises(KDError, match="feature adapters do not fit"):
        YOLO(folder / "weights" / "last.pt").train(resume=True, teacher=str(other))
    assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before


@pytest.mark.nightly
def test_process_that_fails_alone_ends_all_with_its_sentence(launcher, tmp_path, data, teacher, capfd):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "broken.png").write_bytes(b"no image")
    project = str(tmp_path / "runs" / "deep")
    with pytest.raises(KDError, match=r"^kd_unlabeled: none of its 1 images can be read"):
        YOLO("yolo26n.yaml").train(
            **ARGS, data=data, teacher=teacher, kd_unlabeled=str(tmp_path / "extra"), project=project
        )
    assert "none of its 1 images" in capfd.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["ema", "several"])
def test_other_teachers_teach_several_processes(kind, launcher, tmp_path, data, teacher):
    two = [teacher, str(save_model(tmp_path / "other.pt", "yolo11s.yaml"))]
    given = {"ema": {"teacher": "ema"}, "several": {"teacher": two, "kd_teacher_weights": [2, 1]}}[kind]
    YOLO("yolo26n.yaml").train(**ARGS, **given, data=data, project=str(tmp_path / "runs"), name="run")
    first, second = read(tmp_path)
    for record in (first, second):
        assert all(step["items"]["kd_cls"] > 0 for step in record["steps"])
        assert record["arrived"]["teacher"] == given["teacher"] and not any(t for *_, t in record["collectives"])
    assert torch.equal(first["student"], second["student"])
    assert [row["epoch"] for row in results(tmp_path / "runs" / "run")] == [1, 2]


@pytest.mark.nightly
@pytest.mark.parametrize("task", OTHERS)
def test_every_task_is_distilled_by_several_processes(task, launcher, tmp_path):
    data = str(draw_task_dataset(tmp_path / "set", task, 16, 6, 64))
    taught = task_model(task, "yolo26s")
    YOLO(f"yolo26n{SUFFIX[task]}.yaml").train(
        **ARGS, data=data, teacher=taught, project=str(tmp_path / "runs"), name="run"
    )
    first, second = read(tmp_path)
    for record in (first, second):
        assert all(
            step["items"][term] > 0 for step in record["steps"] for term in ("kd_feat", TERM.get(task, "kd_cls"))
        )
    assert torch.equal(first["adapters"], second["adapters"]) and torch.equal(first["student"], second["student"])
    assert any(name.startswith("teacher/") for name in first["metrics"])
    assert [row["epoch"] for row in results(tmp_path / "runs" / "run")] == [1, 2]


@pytest.mark.nightly
@pytest.mark.parametrize("extra", [0, 6], ids=["labelled", "unlabelled"])
def test_answers_are_stored_once_for_all_processes(tmp_path, data, teacher, extra):
    given = {"data": data, "teacher": teacher, "kd_cache": True, "kd_feat": 0.0, "project": str(tmp_path / "runs")}
    if extra:
        draw_dataset(tmp_path / "extra", images=extra, seed=7)
        given["kd_unlabeled"] = str(tmp_path / "extra" / "images" / "train")
    torchrun(tmp_path, {**ARGS, **given, "epochs": 1}, each=2)
    first, second = read(tmp_path)
    assert sorted([first["answered"], second["answered"]]) == [0, 8 + extra]
    assert first["arrived"]["kd_cache"] == second["arrived"]["kd_cache"]
    assert all(step["items"]["kd_cls"] > 0 for record in (first, second) for step in record["steps"])
    assert torch.equal(first["student"], second["student"])


@pytest.mark.nightly
def test_machines_that_share_no_folder_are_told_so(tmp_path, data, teacher, monkeypatch):
    monkeypatch.setenv("DDP_BLIND", "1")
    given = {"data": data, "teacher": teacher, "project": str(tmp_path / "runs"), "name": "run"}
    with pytest.raises(AssertionError) as error:
        torchrun(tmp_path, {**ARGS, **given, "device": None}, groups=2)
    said = str(error.value)
    assert f"{tmp_path / 'runs' / 'run'}, which the first process writes, is missing on" in said
    assert not (tmp_path / "runs").exists()
