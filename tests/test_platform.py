"""Ultralytics Platform: what a distillation reports there, how it bears its faults, and teachers that live there."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

import pytest

pytest.importorskip("ultralytics_platform")
from conftest import QUICK
from fake_platform import DROP, HANG, KEY, NONSENSE, FakePlatform, fake_platform
from reporting import ROOT, run_python, run_script, tiny
from ultralytics import YOLO
from ultralytics.utils import SETTINGS, YAML, checks
from ultralytics_platform import cli

from ultralytics_kd import KDError, activation
from ultralytics_kd.teachers import open_teacher

SHORT = {**QUICK, "epochs": 1}
TERMS = ("kd_cls", "kd_box")
FAULTS = {  # by the name of a run; "from the start" it is not tracked, otherwise Platform falls ill later
    "broken-from-the-start": lambda step, _: 500,
    "silent-from-the-start": lambda step, _: HANG,
    "nonsense-from-the-start": lambda step, _: NONSENSE,
    "broken": lambda step, _: None if step == "training_started" else 500,
    "silent": lambda step, _: {"training_started": None, "upload": DROP, "console_output": 500}.get(step, HANG),
    "key-withdrawn": lambda step, _: None if step == "training_started" else 401,
    "no-storage": lambda step, _: 503 if step == "storage" else None,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    """Return the paths of a small student and of its teacher."""
    return tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def small_teacher(models) -> str:
    """Return the path of the teacher."""
    return models[1]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, data, models):
    """Return what trainings came to, and the Platform that failed them."""
    folder = tmp_path_factory.mktemp("faulty")
    with fake_platform() as platform:
        platform.faults |= FAULTS
        platform.cancels |= {"cancelled": "epoch_end", "cancelled-early": "training_started"}
        job = {"args": {**SHORT, "data": data}, "student": models[0], "teacher": models[1], "faults": list(FAULTS)}
        env = {"ULTRALYTICS_PLATFORM_URL": platform.url, "ULTRALYTICS_API_KEY": KEY}
        yield run_script("platform_runs.py", folder, job, env), platform


def sent(platform: FakePlatform, run: str) -> set[str]:
    """Return the kinds of events that reached Platform from a run."""
    return {e["event"] for e in platform.events if e["run"] == run}


@pytest.mark.nightly
@pytest.mark.parametrize("fault", ["refused", *FAULTS])
def test_training_is_the_same_bit_for_bit_whatever_platform_does(faulty, fault):
    found, _ = faulty
    assert found[fault]["weights"] == found["no key"]["weights"]
    assert found[fault]["rows"] == found["no key"]["rows"]
    assert found[fault]["released"]  # nothing listens to the console any more


@pytest.mark.nightly
def test_faults_reached_the_training(faulty):
    """Otherwise the test above would show nothing."""
    _, platform = faulty
    assert not sent(platform, "no-key") and not sent(platform, "refused")
    for name in FAULTS:
        assert platform.counts[name, "training_started"] == (
            4 if name in {"broken-from-the-start", "silent-from-the-start"} else 1
        )
    assert sent(platform, "broken") == {"training_started"}
    assert platform.counts["broken", "training_complete"] == 4 and platform.counts["silent", "training_complete"] == 4
    assert platform.counts["silent", "upload"] == 3
    assert platform.counts["no-storage", "storage"] == 4 and "no-storage" not in platform.stored
    assert {"epoch_end", "training_complete"} <= sent(platform, "no-storage")


@pytest.mark.nightly
def test_cancelled_run_ends_early_and_is_uploaded(faulty):
    found, platform = faulty
    assert 1 <= len(found["cancelled"]["rows"]) < 500
    [end] = platform.of("cancelled", "training_complete")
    assert platform.stored["cancelled"] and "teacher/mAP50-95(B)" in end["results"]["metrics"]


@pytest.mark.nightly
def test_run_that_is_cancelled_before_it_starts_ends_after_a_step(faulty):
    found, platform = faulty
    assert len(found["cancelled-early"]["rows"]) == 1
    assert len(platform.of("cancelled-early", "training_complete")) == 1


@pytest.mark.nightly
def test_resumed_run_goes_on_where_platform_knows_it(faulty, small_teacher):
    _, platform = faulty
    starts = [e for e in platform.events if (e["run"], e["event"]) == ("resumed", "training_started")]
    assert [e["to"] for e in starts] == ["someone/my-project", None]  # the second names the model that the first made
    assert [e["data"]["trainArgs"]["teacher"] for e in starts] == [small_teacher] * 2
    epochs = sorted(platform.of("resumed", "epoch_end"), key=lambda e: e["epoch"])
    assert [e["epoch"] for e in epochs] == [0, 1, 2] and all(e["metrics"]["train/kd_cls"] > 0 for e in epochs)
    [end] = platform.of("resumed", "training_complete")
    assert "teacher/mAP50-95(B)" in end["results"]["metrics"]


@pytest.mark.nightly
def test_run_that_cannot_begin_lets_go_of_the_console(faulty):
    found, platform = faulty
    assert "unheard of" in found["other classes"]["error"]
    assert sent(platform, "other-classes") >= {"training_started"}
    assert found["other classes"]["released"]


@pytest.mark.nightly
def test_every_kind_of_teacher_is_named_in_the_arguments(faulty, small_teacher):
    _, platform = faulty
    [several] = platform.of("several", "training_started")
    assert several["trainArgs"]["teacher"] == f"{small_teacher}, YOLO teacher.pt in memory"
    assert several["trainArgs"]["kd_teacher_weights"] == "[2, 1]"
    assert several["trainArgs"]["kd_classes"] == "{'disc': 'box'}"
    [average] = platform.of("average", "training_started")
    assert average["trainArgs"]["teacher"] == "ema"
    [end] = platform.of("average", "training_complete")
    assert not any(k.startswith("teacher/") for k in end["results"]["metrics"])  # it has no score of its own


@pytest.mark.nightly
def test_plain_run_reports_nothing_of_distillation(faulty):
    _, platform = faulty
    [start] = platform.of("alone", "training_started")
    metrics = [e["metrics"] for e in platform.of("alone", "epoch_end")]
    metrics += [e["results"]["metrics"] for e in platform.of("alone", "training_complete")]
    assert len(metrics) == 3
    names = {*start["trainArgs"], *(name for each in metrics for name in each)}
    assert not [name for name in names if "kd_" in name or "teacher" in name]


@pytest.fixture(scope="module")
def streamed(tmp_path_factory, data, models):
    """Return the folder of a run by `ul train ... teacher=ul://...` after `yolo-kd enable`, and what Platform got."""
    folder = tmp_path_factory.mktemp("streamed")
    python = enabled_environment(folder)
    with fake_platform() as platform:
        platform.models["someone/teachers/big"] = Path(models[1])
        env = {"ULTRALYTICS_PLATFORM_URL": platform.url, "ULTRALYTICS_API_KEY": KEY}
        args = {**QUICK, "data": data, "teacher": "ul://someone/teachers/big", "kd_cls": 1.5, "kd_schedule": "linear"}
        args |= {"model": models[0], "project": "someone/shapes", "name": "small"}
        ul = ["-c", "import sys; from ultralytics_platform.cli import main; sys.exit(main())"]  # as its script does
        run_python([*ul, "train", *(f"{k}={v}" for k, v in args.items())], folder, env, python)
        yield folder / "runs" / "detect" / "someone" / "shapes" / "small", platform


def enabled_environment(folder: Path) -> str:
    """Return the interpreter of an environment that sees this one's packages, as `yolo-kd enable` leaves it."""
    import sysconfig

    venv.create(folder / "env", with_pip=False)
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    (purelib / "host.pth").write_text("\n".join([*(p for p in sys.path if "site-packages" in p), str(ROOT)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activation, "pth_file", lambda: purelib / "ultralytics_kd-autoload.pth")
        activation.enable()
    return str(folder / "env" / "bin" / "python")


def test_ul_train_distils_and_its_arguments_are_reported(streamed):
    run, platform = streamed
    [start] = platform.of("small", "training_started")
    args = start["trainArgs"]
    assert args["teacher"] == "ul://someone/teachers/big" == YAML.load(run / "args.yaml")["teacher"]
    assert (args["kd_cls"], args["kd_schedule"], args["kd_box_loss"]) == ("1.5", "linear", "iou")
    assert [e["to"] for e in platform.events if e["event"] == "training_started"] == ["someone/shapes"]


def test_losses_of_the_terms_stream_every_epoch(streamed):
    run, platform = streamed
    epochs = sorted(platform.of("small", "epoch_end"), key=lambda e: e["epoch"])
    assert [e["epoch"] for e in epochs] == [0, 1, 2]  # the last is the best student's
    rows = (run / "results.csv").read_text().splitlines()
    columns = [c.strip() for c in rows[0].split(",")]
    for epoch, row in zip(epochs, rows[1:]):
        logged = dict(zip(columns, map(float, row.split(","))))
        for name in (f"{split}/{term}" for split in ("train", "val") for term in TERMS):
            assert epoch["metrics"][name] == pytest.approx(logged[name], rel=1e-3, abs=1e-5)
    assert epochs[0]["metrics"]["train/kd_cls"] > 0


def test_teachers_score_comes_with_the_final_figures_and_not_before(streamed):
    run, platform = streamed
    *during, final = sorted(platform.of("small", "epoch_end"), key=lambda e: e["epoch"])
    [end] = platform.of("small", "training_complete")
    for metrics in (final["metrics"], end["results"]["metrics"]):
        assert {k for k in metrics if k.startswith("teacher/")} == {
            f"teacher/{name}" for name in ("precision(B)", "recall(B)", "mAP50(B)", "mAP50-95(B)")
        }
    assert not any(k.startswith("teacher/") for e in during for k in e["metrics"])
    assert "teacher/" not in (run / "results.csv").read_text()


def test_students_best_weights_are_what_is_uploaded(streamed):
    run, platform = streamed
    assert platform.stored["small"] == (run / "weights" / "best.pt").read_bytes()
    assert [e["modelPath"] for e in platform.of("small", "checkpoint_saved")] == ["gs://small/best.pt"]


def test_console_of_the_run_has_the_tables_of_the_distillation(streamed):
    _, platform = streamed
    text = "\n".join(e["content"] for e in platform.of("small", "console_output"))
    assert "Distillation:" in text and "ul://someone/teachers/big" in text


@pytest.fixture
def platform(monkeypatch, tmp_path):
    """Return a Platform that this process talks to, with a key, and a folder of its own for downloads."""
    with fake_platform() as server:
        monkeypatch.setattr(checks, "PLATFORM_URL", server.url)
        monkeypatch.setenv("ULTRALYTICS_API_KEY", KEY)
        monkeypatch.setitem(SETTINGS, "weights_dir", str(tmp_path / "weights"))
        yield server


def test_teacher_on_platform_is_downloaded_once_where_models_are(platform, small_teacher, tmp_path):
    platform.models["me/teachers/big"] = Path(small_teacher)
    for source in ("ul://me/teachers/big", f"{platform.url}/me/teachers/big"):  # its page's address means the same
        teacher = open_teacher(source)
        assert teacher.fingerprint() == open_teacher(small_teacher).fingerprint()
    assert (tmp_path / "weights" / "me" / "teachers" / "big" / "best.pt").is_file()
    assert platform.counts["me/teachers/big", "download"] == 1


@pytest.mark.parametrize(
    "case, uri, said",
    [
        ("no key", "ul://me/teachers/big", "ULTRALYTICS_API_KEY required"),
        ("wrong key", "ul://me/teachers/big", "Invalid ULTRALYTICS_API_KEY"),
        ("no access", "ul://me/teachers/secret", "Access denied"),
        ("no such model", "ul://me/teachers/none", "was not found"),
        ("broken", "ul://me/teachers/broken", "HTTP 500"),
        ("no model", "ul://me/teachers", "Invalid Platform URI"),
    ],
)
def test_teacher_that_platform_does_not_give_is_one_sentence_as_for_a_model(platform, monkeypatch, case, uri, said):
    platform.faults |= {"me/teachers/secret": lambda *_: 403, "me/teachers/broken": lambda *_: 500}
    if case == "no key":
        monkeypatch.delenv("ULTRALYTICS_API_KEY")
    elif case == "wrong key":
        monkeypatch.setenv("ULTRALYTICS_API_KEY", "wrong")
    with pytest.raises(Exception) as stock:
        YOLO(uri)
    with pytest.raises(KDError) as ours:
        open_teacher(uri)
    assert str(ours.value).startswith(f"teacher={uri} ") and said in str(ours.value)
    assert str(stock.value).strip().rstrip(".") in str(ours.value)
    assert "checkpoint" not in str(ours.value)  # there was none to be read
    assert len(str(ours.value).splitlines()) == 1


@pytest.mark.parametrize("argument", ["teacher=big.pt", "kd_cls=3"])
def test_cloud_training_is_refused_before_it_costs_anything(platform, monkeypatch, capsys, argument):
    """Platform's own machines have no plugin: the run would be paid for, and not distilled."""
    monkeypatch.setattr(sys, "argv", ["/env/bin/ul", "cloud", "train", "model=yolo26n.pt", "data=coco8.yaml", argument])
    monkeypatch.setenv("ULTRALYTICS_PLATFORM_URL", platform.url)
    assert cli.main() == 2
    assert f"'{argument}" in (said := capsys.readouterr().err) and "has no effect in the cloud" in said
    assert not platform.requests
