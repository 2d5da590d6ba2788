"""Benches on a Ray cluster: where trainings run, what travels, and what happens when a machine is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import QUICK, STUDENT, TEACHER, draw_dataset

from ultralytics_kd.bench import node, run_bench
from ultralytics_kd.bench.jobs import Job, JobFolder
from ultralytics_kd.bench.placement import gpus_of, need_of
from ultralytics_kd.bench.ray_jobs import TRIES, RayRunner, for_machines
from ultralytics_kd.bench.records import write
from ultralytics_kd.cluster import connected
from ultralytics_kd.errors import KDError


# Placement ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "device, gpus",
    [(None, None), ("", None), ("cpu", 0), ("cuda", 1), (0, 1), ("cuda:3", 1), ("2,3", 2), ([0, 1], 2), ("[-1,-1]", 2)],
)
def test_a_device_says_how_many_gpus_a_training_takes(device, gpus):
    assert gpus_of(device) == gpus


@pytest.mark.parametrize(
    "device, machines, gpus, cpus, there",
    [
        (None, [{"CPU": 8, "GPU": 2}, {"CPU": 64}], 1, 1, "0"),
        (None, [{"CPU": 2}, {"CPU": 4}], 0, 3, "cpu"),  # as many as Ultralytics has threads on the larger one
        (None, [{"CPU": 1}], 0, 1, "cpu"),
        ("cpu", [{"CPU": 64, "GPU": 8}], 0, 8, "cpu"),
        ("4,5", [{"CPU": 8, "GPU": 2}], 2, 1, "0,1"),  # the names of a training's own GPUs
    ],
)
def test_trainings_take_gpus_where_there_are_some_and_else_cpus(device, machines, gpus, cpus, there):
    need = need_of(device, machines)
    assert (need.gpus, need.cpus, need.device, need.fits) == (gpus, cpus, there, True)


def test_devices_that_no_machine_has_are_refused_and_trainings_wait_for_cpus():
    with pytest.raises(KDError, match=r"'device=0,1' asks for 2 GPUs, and a machine of the Ray cluster has 1 at most"):
        need_of("0,1", [{"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}])
    assert not need_of(None, [{"CPU": 0}]).fits


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_does_not_answer_is_named_at_once(address, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(KDError, match=f"no Ray cluster answers at RAY_ADDRESS={address}"), connected("ray"):
        pass


def test_ray_that_is_missing_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr("ultralytics_kd.cluster.check_requirements", lambda _: False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(KDError, match=r"'ray' needs Ray: run pip install 'ray>=2\.40', or drop"),
        connected("ray>=2.40"),
    ):
        pass


# Another machine's part -----------------------------------------------------------------------------------------------
WORKER = """
import json, os, pathlib, sys
job = json.loads(open(sys.argv[1]).read())
print("training on", job["args"]["device"], os.environ["MARK"])
if job["args"].get("fault"):
    print("ultralytics_kd.errors.KDError: the teacher is too small.")
    sys.exit(1)
if job["args"].get("killed"):
    os.kill(os.getpid(), 9)
print(open(job["args"]["teacher"]).read())
weights = pathlib.Path(job["args"]["project"]) / job["args"]["name"] / "weights" / "best.pt"
weights.parent.mkdir(parents=True)
weights.write_bytes(bytes(range(256)))
for kind in ("trained", "record"):
    file = pathlib.Path(job[kind])
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"weights": str(weights)}))
"""


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Return the folder of a bench whose trainings are a short script."""
    monkeypatch.setattr(node, "command", lambda file: [sys.executable, "-c", WORKER, str(file)])
    monkeypatch.setattr(node, "_contents", lambda sent: sent)  # without Ray
    (tmp_path / "bench/jobs").mkdir(parents=True)
    return tmp_path / "bench"


def content(root: Path, **args) -> dict:
    teacher = root / "runs/teacher/best.txt"
    teacher.parent.mkdir(parents=True, exist_ok=True)
    teacher.write_text("the teacher")
    return {
        "args": {"data": "d.yaml", "teacher": str(teacher), "project": str(root / "runs"), "name": "kd-0", **args},
        "record": str(root / "records/kd-0.json"),
        "trained": str(root / "trained/kd-0.json"),
    }


def run_there(root: Path, shared: bool, **args) -> dict:
    made, needs, inside = for_machines(root, content(root, **args), "cpu")
    text = json.dumps(made)
    if shared:
        (root / "jobs/kd-0.json").write_text(text)
    sent = {str(f.relative_to(root)): f.read_bytes() for f in inside}
    return node.run_there(str(root), "kd-0", text, needs, sent, {"MARK": "here"})


def test_a_machine_that_shares_the_folder_trains_in_it(root):
    outcome = run_there(root, shared=True)
    weights = root / "runs/kd-0/weights/best.pt"
    assert weights.exists() and json.loads(outcome["record"]) == {"weights": str(weights)}
    assert (root / "logs/kd-0.log").read_text() == "training on cpu here\nthe teacher\n" and outcome["files"] == {}


def test_what_another_machine_leaves_comes_back_with_the_paths_of_this_one(root, monkeypatch):
    made = []
    monkeypatch.setattr(
        node.tempfile, "mkdtemp", lambda prefix: made.append(root.with_name("there")) or made[0].mkdir() or str(made[0])
    )
    outcome = run_there(root, shared=False)
    assert not (root / "runs/kd-0").exists() and not made[0].exists()
    RayRunner._save(root, "kd-0", outcome)
    weights = root / "runs/kd-0/weights/best.pt"
    assert weights.read_bytes() == bytes(range(256))
    for kind in ("records", "trained"):
        assert json.loads((root / kind / "kd-0.json").read_text()) == {"weights": str(weights)}
    assert (root / "logs/kd-0.log").read_text() == "training on cpu here\nthe teacher\n"


@pytest.mark.parametrize("shared", [True, False])
def test_a_failure_comes_back_as_its_message_and_a_killed_process_is_told_from_it(root, shared):
    outcome = run_there(root, shared, fault=True)
    assert (outcome["error"], outcome["killed"], outcome["record"]) == ("the teacher is too small.", False, None)
    assert run_there(root, shared, killed=True)["killed"]


def test_files_that_another_machine_lacks_are_named(root, tmp_path):
    (tmp_path / "set.yaml").touch()
    made, needs, _ = for_machines(root, content(root, data=str(tmp_path / "set.yaml")), "cpu")
    assert needs == [("data", str(tmp_path / "set.yaml"))]
    (tmp_path / "set.yaml").unlink()
    error = node.run_there(str(root), "kd-0", json.dumps(made), needs, {}, {})["error"]
    assert error.startswith(f"data={tmp_path / 'set.yaml'} does not exist on ") and "all machines share" in error


def test_files_get_paths_that_are_valid_in_any_folder_and_other_values_stay(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("s.yaml", "auto", "ram"):
        (tmp_path / name).touch()
    given = {
        "data": "s.yaml",
        "model": "yolo26n.yaml",
        "kd_classes": "auto",
        "cache": "ram",
        "kd_unlabeled": ["s.yaml"],
    }
    made, needs, inside = for_machines(root, content(root, **given), "0,1")
    here = str(tmp_path / "s.yaml")
    assert made["args"] == {**content(root, **given)["args"], "data": here, "kd_unlabeled": [here], "device": "0,1"}
    assert needs == [("data", here), ("kd_unlabeled", here)] and inside == [root / "runs/teacher/best.txt"]


def test_a_training_whose_scores_failed_is_sent_along(root):
    weights = root / "runs/kd-0/weights/best.pt"
    weights.parent.mkdir(parents=True)
    weights.touch()
    write(root / "trained/kd-0.json", {"job": {}, "weights": str(weights), "seconds": 1, "epochs": 1, "batch": 4})
    assert {weights, root / "trained/kd-0.json"} <= {*for_machines(root, content(root), "cpu")[2]}


def test_only_the_folder_itself_is_moved_in_a_text():
    text = "path: /a/b/split\n\"/a/b/runs\" '/a/b/x' /a/bc/d /z/a/b/d\n/a/b/e.png"
    assert node.moved(text, "/a/b", "/tmp/t") == (
        "path: /tmp/t/split\n\"/tmp/t/runs\" '/tmp/t/x' /a/bc/d /z/a/b/d\n/tmp/t/e.png"
    )


# The driver's part ----------------------------------------------------------------------------------------------------
class FakeRay:
    """Ray with results that are given: an outcome, or an error to raise."""

    def __init__(self, *results):
        self.results, self.asked, self.cancelled = list(results), [], []

    def remote(self, **_):
        def submit(*given):
            self.asked.append(given)
            return len(self.asked)

        return lambda function: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=submit))

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2}}, {"Alive": False, "Resources": {"GPU": 8}}]

    def put(self, value):
        return value

    def get(self, reference):
        result = self.results[reference - 1]
        if isinstance(result, Exception):
            raise result
        return result

    def cancel(self, reference, force):
        self.cancelled.append(reference)


def outcome(error: str = "", killed: bool = False, record: str | None = None) -> dict:
    return {"host": "m7", "error": error, "killed": killed, "record": record, "files": {}}


JOB = Job("kd-0", {"epochs": 1}, {"args": {"data": "d.yaml"}}, "kd", 0)


def run_job(tmp_path: Path, *results) -> FakeRay:
    ray = FakeRay(*results)
    JobFolder(tmp_path, RayRunner(ray, True, None)).run(JOB)
    return ray


def test_a_lost_machine_or_killed_process_is_tried_again(tmp_path, caplog):
    exceptions = pytest.importorskip("ray.exceptions")
    done = outcome(record='{"scores": {}}')
    lost = exceptions.WorkerCrashedError()
    assert len(run_job(tmp_path, lost, outcome("", True), done).asked) == 3
    assert (tmp_path / "records/kd-0.json").read_text() == '{"scores": {}}'
    assert "kd-0: its machine or process was lost (WorkerCrashedError). It starts again, at most 2 more" in caplog.text
    assert "kd-0: its process was killed on m7. It starts again, at most 1 more time." in caplog.text


def test_a_training_that_is_lost_again_and_again_has_failed(tmp_path):
    pytest.importorskip("ray.exceptions")
    with pytest.raises(KDError, match=rf"kd-0: its process was killed on m7, {TRIES} times in all\."):
        run_job(tmp_path, *[outcome("", True)] * TRIES)


def test_a_training_that_fails_is_not_tried_again(tmp_path):
    pytest.importorskip("ray.exceptions")
    with pytest.raises(KDError, match="kd-0: the teacher is too small"):
        run_job(tmp_path, outcome("the teacher is too small."), outcome(record="{}"))
    assert not (tmp_path / "records/kd-0.json").exists()


def test_a_stopped_bench_cancels_its_trainings_and_starts_no_others(tmp_path):
    exceptions = pytest.importorskip("ray.exceptions")
    ray = FakeRay(exceptions.TaskCancelledError())
    runner = RayRunner(ray, 2, None)
    ray.get, get = lambda reference: runner.stop() or get(reference), ray.get  # Ctrl-C while it trains
    with pytest.raises(KDError, match="kd-0: the bench was stopped"):
        JobFolder(tmp_path, runner).run(JOB)
    assert ray.cancelled == [1] and len(ray.asked) == 1
    with pytest.raises(KDError, match="kd-0: the bench was stopped"):
        JobFolder(tmp_path, runner).run(JOB)
    assert len(ray.asked) == 1


# On clusters ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def bench(tmp_path, teacher) -> dict:
    """Return the arguments of a quick bench with a data set of its own."""
    rest = {k: v for k, v in QUICK.items() if k not in {"plots", "verbose"}}
    shared = {"model": STUDENT, "teacher": teacher, "arms": "alone,kd", "seeds": 1, "epochs": 1}
    data = str(draw_dataset(tmp_path / "shapes", 8))
    return {**rest, **shared, "data": data, "project": str(tmp_path / "out"), "name": "bench"}


@pytest.fixture
def cluster():
    """Yield a cluster of two machines with a CPU each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.other = made.add_node(num_cpus=1)
    try:
        yield made
    finally:
        made.shutdown()


def scores_of(report: dict) -> list:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report["table"]]


def assert_same_weights(folder: Path, other: Path, *names: str) -> None:
    for name in names:
        first, second = (
            torch.load(each / "runs" / name / "weights/last.pt", weights_only=False)["model"].state_dict()
            for each in (folder, other)
        )
        assert all(torch.equal(first[k], second[k]) for k in second), name


def wait_for(*files: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not all(file.exists() for file in files):
        assert time.monotonic() < end, files
        time.sleep(0.05)


def trainings(folder: Path) -> list[psutil.Process]:
    """Return the processes that train in a folder."""
    return [p for p in psutil.process_iter(["cmdline"]) if any(str(folder) in a for a in p.info["cmdline"] or ())]


@pytest.mark.nightly
def test_a_bench_whose_machine_is_killed_ends_like_one_on_one_machine(bench, cluster, tmp_path, caplog):
    ray = pytest.importorskip("ray")
    folder = tmp_path / "out/bench"

    def kill() -> None:
        wait_for(*(folder / f"runs/{name}/args.yaml" for name in ("alone-0", "kd-0")))  # one on each machine
        cluster.remove_node(cluster.other, allow_graceful=False)

    ray.init(address=cluster.address, log_to_driver=False)
    try:
        killer = threading.Thread(target=kill)
        killer.start()
        report = run_bench({**bench, "ray": True, "epochs": 30})
        killer.join()
    finally:
        ray.shutdown()
    assert caplog.text.count("It starts again") == 1
    whole = run_bench({**bench, "name": "whole", "epochs": 30})
    assert scores_of(report) == scores_of(whole)
    assert_same_weights(folder, tmp_path / "out/whole", "alone-0", "kd-0")


@pytest.mark.nightly
@pytest.mark.parametrize("end, after", [(signal.SIGKILL, "ray=2"), (signal.SIGINT, "jobs=1")])
def test_a_bench_whose_driver_ends_goes_on_with_and_without_ray(bench, cluster, tmp_path, end, after):
    """Its trainings end with it: at a Ctrl-C, and when it is killed."""
    whole = run_bench({**bench, "name": "whole"})
    line = [sys.executable, "-m", "ultralytics_kd", "bench", *(f"{k}={v}" for k, v in bench.items())]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    driver = subprocess.Popen([*line, "ray=1"], env=environment, **quiet)
    folder = tmp_path / "out/bench"
    wait_for(folder / "runs/kd-0/args.yaml")  # the second training has begun
    driver.send_signal(end)
    assert driver.wait(60) != 0
    first = folder / "records/alone-0.json"
    before = first.stat().st_mtime_ns
    deadline = time.monotonic() + 30
    while trainings(folder):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not (folder / "records/kd-0.json").exists()
    subprocess.run([*line, after], env=environment, **quiet, check=True)
    assert first.stat().st_mtime_ns == before
    resumed = json.loads((folder / "bench.json").read_text())
    assert scores_of(resumed) == json.loads(json.dumps(scores_of(whole)))
    assert_same_weights(folder, tmp_path / "out/whole", "alone-0", "kd-0")


@pytest.mark.nightly
def test_machines_without_shared_storage_send_back_what_they_leave(bench, cluster, tmp_path, monkeypatch):
    """The teacher that the bench trains and the list of held-out images travel to them."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(node, "shares_folder", lambda *_: False)
    bench |= {"teacher": None, "teacher_model": TEACHER, "teacher_epochs": 1, "holdout": 0.25}
    bench["arms"] = {"kd": {}, "bins": {"kd_box_loss": "ld"}}  # the student has none
    failure = r"1 of the trainings failed: bins-0: .*reg_max=1.*bins-0\.log"
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        with pytest.raises(KDError, match=failure):
            run_bench({**bench, "ray": True})
    finally:
        ray.shutdown()
    with pytest.raises(KDError, match=failure):
        run_bench({**bench, "name": "whole"})
    folder = tmp_path / "out/bench"
    report, whole = (json.loads((each / "bench.json").read_text()) for each in (folder, tmp_path / "out/whole"))
    assert scores_of(report) == scores_of(whole)
    assert_same_weights(folder, tmp_path / "out/whole", "teacher", "alone-0", "kd-0")
    records = [json.loads((folder / f"records/{name}.json").read_text()) for name in ("teacher", "alone-0", "kd-0")]
    assert all(Path(record["weights"]).is_relative_to(folder) for record in records)
    assert "reg_max=1" in (folder / "logs/bins-0.log").read_text()
    assert "1 epochs completed" in (folder / "logs/kd-0.log").read_text()
    assert "/ultralytics_kd_bench_" not in (folder / "runs/kd-0/args.yaml").read_text()
