"""The command line, and switching it on for the plain `yolo` command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import STUDENT
from ultralytics.utils import LOGGER, YAML, remove_colorstr

import ultralytics_kd
from ultralytics_kd import YOLO, activation, cli, config
from ultralytics_kd.config.recipes import read_line
from ultralytics_kd.screen import command_line

ROOT = Path(ultralytics_kd.__file__).parents[1]


def run(*command: str, cwd: Path, path: Path = ROOT) -> str:
    """Run a command to its end and return what it printed."""
    env = {**os.environ, "PYTHONPATH": str(path)}
    out = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert out.returncode == 0, out.stdout[-1500:] + out.stderr[-3000:]
    return out.stdout + out.stderr


@pytest.mark.core
@pytest.mark.parametrize(
    "command, expected", [("help", "yolo-kd train"), ("cfg", "kd_feat_loss: pkd"), ("-h", "yolo-kd demo")]
)
def test_help_and_cfg_show_kd_arguments_with_ultralytics_own(command, expected, tmp_path):
    text = run(sys.executable, "-m", "ultralytics_kd", command, cwd=tmp_path)
    assert expected in text and "teacher" in text
    assert "lr0" in text


def test_version_and_checks_speak_for_both(tmp_path):
    text = run(sys.executable, "-m", "ultralytics_kd", "version", cwd=tmp_path)
    assert f"ultralytics_kd {ultralytics_kd.__version__}" in text
    text = run(sys.executable, "-m", "ultralytics_kd", "checks", cwd=tmp_path)
    assert "not enabled" in text and "torch" in text.lower()


@pytest.mark.core
def test_copied_cfg_holds_kd_arguments_and_can_be_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["copy-cfg"]) == 0
    copied = YAML.load(tmp_path / "default_copy.yaml")
    assert all(copied[name] == a.default for name, a in config.ARGUMENTS.items())


@pytest.mark.core
def test_training_by_command_line_takes_kd_keys_from_cfg_and_arguments(quick, teacher, tmp_path):
    YAML.save(tmp_path / "my.yaml", {**quick, "model": STUDENT, "teacher": teacher, "kd_cls": 0.5, "epochs": 1})
    assert cli.main(["train", f"cfg={tmp_path / 'my.yaml'}", "kd_box=2"]) == 0
    saved = YAML.load(Path(quick["project"]) / "run" / "args.yaml")
    assert (saved["kd_cls"], saved["kd_box"], saved["teacher"]) == (0.5, 2, teacher)


@pytest.mark.core
def test_other_modes_and_bare_flags_are_yolos_own(quick, teacher, data):
    assert (
        cli.main(["val", f"model={teacher}", f"data={data}", "imgsz=64", f"project={quick['project']}", "save_json"])
        == 0
    )
    image = Path(data).parent / "images" / "val" / "0.png"
    assert (
        cli.main(
            ["detect", "predict", f"model={teacher}", f"source={image}", "imgsz=64", f"project={quick['project']}"]
        )
        == 0
    )
    assert list(Path(quick["project"]).glob("val*")) and list(Path(quick["project"]).glob("predict*/0.jpg"))


@pytest.mark.nightly
def test_several_data_sets_are_distilled_in_one_sweep(quick, teacher, data):
    """Ultralytics starts a process for each: those understand kd arguments too."""
    args = {**quick, "epochs": 1, "data": f"[{data!r},{data!r}]", "name": "sweep"}
    out = run(
        sys.executable, "-m", "ultralytics_kd", "train", f"model={STUDENT}", f"teacher={teacher}",
        *(f"{k}={v}" for k, v in args.items()), cwd=Path(data).parent,
    )  # fmt: skip
    logs = list(Path(quick["project"]).rglob("results.csv"))
    assert len(logs) == 2, out
    assert all("train/kd_cls" in log.read_text() for log in logs)


@pytest.mark.parametrize("command", ["enable", "disable"])
def test_help_of_a_command_without_arguments_does_nothing(command, monkeypatch, caplog):
    for name in ("enable", "disabled"):
        monkeypatch.setattr(activation, name, lambda: pytest.fail("it was run"))
    assert cli.main([command, "help"]) == 0
    assert f"yolo-kd {command}" in caplog.text


@pytest.mark.parametrize("args", [["enable", "now"], ["disable", "it"], ["demo", "fast"], ["demo", "epochs="]])
def test_own_commands_refuse_what_they_do_not_know(args):
    assert cli.main(args) == 1


@pytest.mark.core
@pytest.mark.parametrize("word, meant", [("advice", "advise"), ("Reports", "report"), ("benhc", "bench")])
def test_a_misspelt_command_of_this_package_is_answered_with_the_one_that_is_meant(word, meant, caplog):
    assert cli.main([word, "data=a.yaml"]) == 1
    assert f"'{word}' is not a command: did you mean 'yolo-kd {meant}'?" in caplog.text


@pytest.mark.core
@pytest.mark.parametrize("word, meant", [("trian", "train"), ("detct", "detect")])
def test_a_misspelt_word_of_ultralytics_is_left_to_ultralytics(word, meant, caplog):
    assert cli.main([word, "data=a.yaml"]) == 1
    assert "did you mean" not in caplog.text and f"'{meant}'" in caplog.text


@pytest.mark.parametrize(
    "args", [["data=nowhere.yaml"], ["data=nowhere.yaml", "teacher=nowhere.pt"], ["lr0=abc"], ["cfg=nowhere.yaml"]]
)
def test_ordinary_mistakes_are_one_sentence_too(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", f"model={STUDENT}", f"project={tmp_path}", *args]) == 1


def test_kd_arguments_outside_of_training_are_warned_of(teacher, data, tmp_path, caplog):
    LOGGER.propagate = True
    image = Path(data).parent / "images" / "val" / "0.png"
    args = [f"model={teacher}", f"source={image}", "imgsz=64", f"project={tmp_path}", "kd_cls=3"]
    assert cli.main(["predict", *args]) == 0
    LOGGER.propagate = False
    assert "'kd_cls=3' has no effect on 'predict': only 'train' distils" in caplog.text


def test_kd_arguments_of_a_validation_in_python_are_warned_of(teacher, data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, "propagate", True)
    YOLO(teacher).val(data=data, imgsz=64, project=str(tmp_path), plots=False, workers=0, kd_box=3.0)
    assert "'kd_box=3.0' has no effect on 'val': only 'train' distils" in caplog.text


def test_a_flag_without_a_value_is_read_as_ultralytics_reads_it():
    assert read_line(["train", "kd_trust_teacher", "plots", "x"]).given == {"kd_trust_teacher": "True", "plots": "True"}


@pytest.mark.parametrize("word", ["True", "true", "False"])
def test_the_readme_command_with_stored_answers_reaches_the_training(word, quick, teacher, monkeypatch):
    asked = {}

    def built(trainer, overrides, **_):
        asked.update(overrides)
        raise RuntimeError("enough")

    monkeypatch.setattr("ultralytics_kd.trainer.KDDetectionTrainer.__init__", built)
    with pytest.raises(RuntimeError, match="enough"):
        cli.main(["train", f"model={STUDENT}", f"teacher={teacher}", f"data={quick['data']}", f"kd_cache={word}"])
    assert asked["kd_cache"] is (word != "False")


@pytest.mark.parametrize("name", ["kd_cache", "kd_unlabeled"])
def test_a_folder_that_is_read_as_a_number_is_named_as_it_was_typed(name, caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, "propagate", True)
    assert cli.main(["train", "teacher=a.pt", f"{name}=2024_01_05"]) == 1
    assert f"'{name}=2024_01_05' is read as a number: write {name}=./2024_01_05" in caplog.text


def test_printed_commands_quote_lists_with_commas_in_a_path():
    line = command_line("bench", {"teacher": ["a b,c=d.pt", "s.pt"], "kd_unlabeled": ["x", "y"]})
    assert shlex.split(line) == ["yolo-kd", "bench", "teacher=['a b,c=d.pt','s.pt']", "kd_unlabeled=[x,y]"]


HOOKED = """
import ultralytics_kd._autoload
from ultralytics.utils import DEFAULT_CFG_DICT
DEFAULT_CFG_DICT["teacher"] = None
from ultralytics import YOLO
print("classes:", YOLO("yolo26n.yaml").model.yaml["nc"])
"""


def test_a_release_that_does_not_fit_leaves_plain_ultralytics_alone(tmp_path):
    text = run(sys.executable, "-c", HOOKED, cwd=tmp_path)
    assert "classes: 80" in text
    assert text.count("WARNING: ultralytics_kd adds nothing") == 1 and "an argument 'teacher' of its own" in text


HALF_HOOKED = """
import sys
from types import SimpleNamespace
import ultralytics_kd._autoload
sys.modules["ultralytics_kd.install"] = SimpleNamespace(install=lambda: 1 / 0)
from ultralytics import YOLO
from ultralytics.utils import DEFAULT_CFG_DICT
print("known:", "teacher" in DEFAULT_CFG_DICT)
YOLO("yolo26n.yaml").train(data="nowhere.yaml", teacher="a.pt")
"""


def test_a_release_that_fits_in_part_ignores_no_teacher(tmp_path):
    command = [sys.executable, "-c", HALF_HOOKED]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert out.returncode == 1 and "known: False" in out.stdout
    assert out.stderr.count("WARNING: ultralytics_kd adds nothing") == 1
    assert "'teacher' is not a valid YOLO argument" in remove_colorstr(out.stdout + out.stderr)


PREDICTS = """
import sys
import ultralytics_kd._autoload
import numpy as np
from ultralytics import YOLO
YOLO(sys.argv[1]).predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)
print("trainers:", "ultralytics_kd.trainer" in sys.modules, "polars" in sys.modules)
print(YOLO(sys.argv[1]).task_map["detect"]["trainer"].__name__)
"""


def test_a_plain_prediction_imports_no_trainer(teacher, tmp_path):
    text = run(sys.executable, "-c", PREDICTS, teacher, cwd=tmp_path)
    assert "trainers: False False" in text and "KDDetectionTrainer" in text


def test_help_before_another_command_runs_help_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["help", "copy-cfg"]) == 0
    assert not list(tmp_path.iterdir())


def test_demo_has_a_help_of_its_own(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    LOGGER.propagate = True
    assert cli.main(["demo", "--help"]) == 0
    LOGGER.propagate = False
    assert "teacher_epochs=" in caplog.text and not list(tmp_path.iterdir())


@pytest.fixture
def environment(tmp_path) -> Path:
    """Return the interpreter of an environment of its own that sees this one's packages."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    purelib = Path(
        run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    import sysconfig

    (purelib / "host.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    return python


@pytest.mark.nightly
@pytest.mark.core
def test_enable_reaches_plain_yolo_and_disable_leaves_no_trace(environment, quick, teacher, tmp_path):
    python, site = str(environment), environment.parents[1] / "lib"
    before = sorted(p for p in site.rglob("*") if "__pycache__" not in p.parts)
    yolo = [python, "-m", "ultralytics.cfg.__init__", "train", f"model={STUDENT}", f"teacher={teacher}"]
    yolo += [f"{k}={v}" for k, v in {**quick, "epochs": 1}.items()]

    refused = subprocess.run(yolo, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert refused.returncode != 0 and "'teacher' is not a valid YOLO argument" in remove_colorstr(refused.stderr)

    run(python, "-m", "ultralytics_kd", "enable", cwd=tmp_path)
    assert ": enabled" in run(python, "-m", "ultralytics_kd", "checks", cwd=tmp_path)
    run(*yolo, cwd=tmp_path)
    assert "train/kd_cls" in (Path(quick["project"]) / "run" / "results.csv").read_text()
    script = "import ultralytics_kd.trainer; from ultralytics import YOLO\n"  # ours first: Ultralytics comes with it
    script += "print(YOLO('yolo26n.yaml').task_map['detect']['trainer'].__name__)"
    assert "KDDetectionTrainer" in run(python, "-c", script, cwd=tmp_path)

    run(python, "-m", "ultralytics_kd", "disable", cwd=tmp_path)
    assert "were not enabled" in run(python, "-m", "ultralytics_kd", "disable", cwd=tmp_path)
    assert sorted(p for p in site.rglob("*") if "__pycache__" not in p.parts) == before
    assert subprocess.run(yolo, capture_output=True, cwd=tmp_path, check=False).returncode != 0


def test_enabled_interpreter_loads_two_small_modules_and_nothing_else(environment, tmp_path):
    """Every Python program of the environment pays for what is loaded at its start."""
    python = str(environment)
    code = "import sys; print(*sorted(sys.modules))"
    before = set(run(python, "-c", code, cwd=tmp_path).split())
    run(python, "-m", "ultralytics_kd", "enable", cwd=tmp_path)
    after = set(run(python, "-c", code, cwd=tmp_path).split())
    assert after - before == {"ultralytics_kd", "ultralytics_kd._autoload"}


def test_uninstalled_package_does_not_break_an_enabled_environment(environment, tmp_path):
    run(str(environment), "-m", "ultralytics_kd", "enable", cwd=tmp_path)
    purelib = next((environment.parents[1] / "lib").rglob("host.pth")).parent
    (purelib / "host.pth").unlink()
    assert run(str(environment), "-c", "print('fine')", cwd=tmp_path, path=tmp_path) == "fine\n"


def test_enabling_where_nothing_can_be_written_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(activation, "pth_file", lambda: tmp_path / "nowhere" / "x.pth")
    with pytest.raises(ultralytics_kd.KDError, match="cannot be written"):
        activation.enable()
