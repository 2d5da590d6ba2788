"""Trackers that Ultralytics reports to: what their stores hold of a distillation, read back."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from conftest import QUICK
from reporting import run_script, tiny
from ultralytics.utils import YAML

from ultralytics_kd import config

pytestmark = pytest.mark.nightly
TERMS = {f"{split}/{term}" for split in ("train", "val") for term in ("kd_cls", "kd_box", "kd_feat")}
SCORES = {f"teacher/{name}" for name in ("precision(B)", "recall(B)", "mAP50(B)", "mAP50-95(B)")}
KD = {
    "kd_teacher_weights": [2, 1],
    "kd_classes": {"disc": "disc", "box": "box"},
    "kd_feat": 0.5,
    "kd_schedule": "cosine",
}
EPOCHS = QUICK["epochs"]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, data):
    """Return the folder of runs that were tracked, and what the script that trained them found."""
    folder = tmp_path_factory.mktemp("tracked")
    student, teacher = tiny(folder)
    job = {"args": {**QUICK, "data": data}, "student": student, "teacher": teacher, "kd": KD}
    env = {
        "MLFLOW_TRACKING_URI": str(folder / "mlruns"),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        **{f"WANDB_{kind}_DIR": str(folder / "wandb" / kind) for kind in ("DATA", "CACHE", "CONFIG")},
    }
    found = run_script("tracker_runs.py", folder, job, env)
    return folder / "runs" / "detect" / "shapes", found


def results(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's results.csv."""
    header, *rows = (run / "results.csv").read_text().splitlines()
    return [dict(zip(header.split(","), map(float, row.split(",")))) for row in rows]


def close(value: float) -> object:
    """Return what a value is compared with that results.csv rounds."""
    return pytest.approx(value, rel=1e-3, abs=1e-5)


# TensorBoard ----------------------------------------------------------------------------------------------------------
def tensorboard(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values of every series of a run's event files, and its graph under "graph"."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    store = events.EventAccumulator(str(run))
    store.Reload()
    series = {tag: [(e.step, e.value) for e in store.Scalars(tag)] for tag in store.Tags()["scalars"]}
    return {**series, **({"graph": []} if store.Tags()["graph"] else {})}


def test_tensorboard_has_the_terms_of_every_epoch_the_graph_and_at_last_the_teachers_score(tracked):
    runs, _ = tracked
    series = tensorboard(runs / "taught")
    for name in TERMS:
        steps, values = zip(*series[name])
        assert steps[:EPOCHS] == tuple(range(1, EPOCHS + 1))
        assert values[:EPOCHS] == tuple(close(row[name]) for row in results(runs / "taught"))
    for name in SCORES:
        assert [step for step, _ in series[name]] == [EPOCHS + 1]
    assert "graph" in series


def test_tensorboard_of_a_plain_run_has_no_more_than_ultralytics_logs(tracked):
    runs, _ = tracked
    assert {name.split("/")[0] for name in tensorboard(runs / "alone")} == {"train", "val", "metrics", "lr", "graph"}
    assert not [name for name in tensorboard(runs / "alone") if "kd" in name]


# MLflow ---------------------------------------------------------------------------------------------------------------
@pytest.fixture
def mlflow_runs(tracked, monkeypatch):
    """Return MLflow's client and its runs by name."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(str(tracked[0].parents[2] / "mlruns"))
    experiment = client.get_experiment_by_name("shapes")
    return client, {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_mlflow_has_every_kd_argument(tracked, mlflow_runs):
    saved = YAML.load(tracked[0] / "taught" / "args.yaml")
    params = mlflow_runs[1]["taught"].data.params
    assert {name: params[name] for name in config.ARGUMENTS} == {name: str(saved[name]) for name in config.ARGUMENTS}
    assert params["teacher"].count(".pt") == 2 and params["kd_classes"] == str(KD["kd_classes"])


def test_mlflow_has_the_terms_of_every_epoch_and_at_last_the_teachers_score(tracked, mlflow_runs):
    client, runs = mlflow_runs
    run_id = runs["taught"].info.run_id
    for name in TERMS:
        logged = sorted((m.step, m.value) for m in client.get_metric_history(run_id, name))
        assert logged[:EPOCHS] == [(i, close(row[name])) for i, row in enumerate(results(tracked[0] / "taught"))]
    for name in SCORES:
        [score] = client.get_metric_history(run_id, name.replace("(", "").replace(")", ""))
        assert score.step == EPOCHS
    assert runs["taught"].info.status == "FINISHED"


def test_mlflow_of_a_plain_run_has_no_more_than_ultralytics_logs(mlflow_runs):
    data = mlflow_runs[1]["alone"].data
    assert data.metrics and not [name for name in {*data.metrics, *data.params} if "kd_" in name or "teacher" in name]


def test_run_that_ends_on_its_first_batch_is_closed_everywhere_and_says_why(tracked, mlflow_runs):
    runs, found = tracked
    assert found["error"] == "nothing to say"  # and no tracker's complaint about a folder that is gone
    assert mlflow_runs[1]["mute"].info.status == "FAILED"
    assert not (runs / "mute").exists()


# Weights & Biases -----------------------------------------------------------------------------------------------------
def wandb(run: Path) -> tuple[dict, list[dict]]:
    """Return config and history of a run's offline file, a LevelDB log of protocol buffers."""
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    [file] = run.glob("wandb/offline-run-*/*.wandb")
    content, at, whole = file.read_bytes(), 7, b""
    settings, history = {}, []
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:  # no header fits in the rest of a block
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        whole, at = whole + content[at + 7 : at + 7 + size], at + 7 + size
        if kind in {1, 4}:  # the record is complete
            record, whole = records.Record.FromString(whole), b""
            for item in (*record.run.config.update, *record.config.update):
                settings[item.key] = json.loads(item.value_json)
            if record.WhichOneof("record_type") == "history":
                history.append({item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
    return settings, history


def test_wandb_has_every_kd_argument(tracked):
    settings, _ = wandb(tracked[0] / "taught")
    saved = YAML.load(tracked[0] / "taught" / "args.yaml")
    assert {name: settings[name] for name in config.ARGUMENTS} == {name: saved[name] for name in config.ARGUMENTS}


def test_wandb_has_the_terms_of_every_epoch_and_at_last_the_teachers_score(tracked):
    _, history = wandb(tracked[0] / "taught")
    rows = results(tracked[0] / "taught")
    for epoch, row in enumerate(rows, 1):
        [logged] = [h for h in history if h["epoch"] == epoch and "train/kd_cls" in h]
        assert {name: logged[name] for name in TERMS} == {name: close(row[name]) for name in TERMS}
    [final] = [h for h in history if SCORES & set(h)]
    assert set(final) >= SCORES and final["epoch"] == EPOCHS + 1


def test_wandb_of_a_plain_run_has_no_more_than_ultralytics_logs(tracked):
    settings, history = wandb(tracked[0] / "alone")
    names = {*settings, *(name for h in history for name in h)}
    assert "train/box_loss" in names and not [name for name in names if "kd_" in name or "teacher" in name]


# Comet and ClearML ----------------------------------------------------------------------------------------------------
def test_comet_hears_arguments_terms_and_score(tracked):
    runs, found = tracked
    heard = found["heard"]
    [[arguments]] = [args for name, args in heard if name == "log_parameters"]
    assert set(config.ARGUMENTS) <= set(arguments)
    assert arguments["kd_classes"] == KD["kd_classes"] and "YOLO teacher.pt in memory" in arguments["teacher"]
    metrics = [(args[-1], args[0]) for name, args in heard if name == "log_metrics"]  # by epoch
    for epoch, row in enumerate(results(runs / "taught"), 1):
        logged = {k: v for at, values in metrics if at == epoch for k, v in values.items()}
        assert {name: logged[name] for name in TERMS} == {name: close(row[name]) for name in TERMS}
    assert [at for at, values in metrics if set(values) >= SCORES] == [EPOCHS + 1]


def test_clearml_hears_arguments_terms_and_score(tracked):
    runs, found = tracked
    heard = found["heard"]
    [[arguments, *_]] = [args for name, args in heard if name == "connect"]
    assert set(config.ARGUMENTS) <= set(arguments)
    scalars = [args for name, args in heard if name == "report_scalar"]  # title, series, value, iteration
    for epoch, row in enumerate(results(runs / "taught")):
        logged = {series: value for _, series, value, at in scalars if at == epoch}
        assert {name: logged[name] for name in TERMS} == {name: close(row[name]) for name in TERMS}
    assert {(title, series, at) for title, series, _, at in scalars if title == "teacher"} == {
        ("teacher", name, EPOCHS) for name in SCORES
    }
