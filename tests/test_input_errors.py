"""Errors of the user's input are one sentence on the command line; a fault of the code keeps its traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import STUDENT
from ultralytics.cfg import merge_equals_args
from ultralytics.engine import trainer as engine
from ultralytics.utils import YAML

from ultralytics_kd import KDError, cli
from ultralytics_kd.config.input_errors import is_input_error
from ultralytics_kd.config.user_code import load_loss

DATA = "path: .\ntrain: images\nval: images\nnames: {0: a}\n"


def refuses_open_brackets() -> bool:
    """Return whether this release of Ultralytics does; older ones drop the argument without a word."""
    try:
        merge_equals_args(["imgsz=[64"])
    except SyntaxError:
        return True
    return False


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return the empty folder in which a command runs."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


@pytest.mark.core
@pytest.mark.parametrize(
    "line, message",
    [
        (["train", "epoch=3"], "'epoch' is not a valid YOLO argument"),
        (["train", "data"], "is missing an '=' sign"),
        pytest.param(
            ["train", "imgsz=[64"],
            "unmatched '['",
            marks=pytest.mark.skipif(not refuses_open_brackets(), reason="this release takes an open bracket"),
        ),
        (["val", "model=nowhere.pt", "data=coco8.yaml"], "nowhere.pt"),
        (["predict", "model=TEACHER", "source=nowhere.png"], "nowhere.png does not exist"),
        (["val", "model=TEACHER", "data=nowhere.yaml", "task=detect"], "nowhere.yaml"),
        (["val", "cfg=recipe.yaml"], "gone.pt"),
        (["train", "teacher="], "'teacher=' has no value"),
        (["train", "teacher=TEACHER", "kd_cache_conf=0.1"], "'kd_cache_conf' is an argument of 'yolo-kd cache'"),
        (["train", "cfg=cache.yaml"], "'kd_cache_conf' is an argument of 'yolo-kd cache'"),
        (["cache", "teacher=TEACHER", "data=images"], "No YAML file found"),
        (["cache", "teacher=TEACHER", "data=d.yaml", "imgsz=big"], "'imgsz=big' is not a valid image size"),
        (["cache", "teacher=TEACHER", "data=d.yaml", "device=99"], "Invalid CUDA 'device=99' requested"),
    ],
)
def test_missing_files_and_unknown_arguments_are_sentences(folder, teacher, line, message, caplog):
    YAML.save(folder / "recipe.yaml", {"model": "gone.pt", "data": "coco8.yaml"})
    YAML.save(folder / "cache.yaml", {"kd_cache_conf": 0.1})
    (folder / "images").mkdir()
    (folder / "d.yaml" if "data=d.yaml" in line else folder / "d.txt").write_text(DATA)
    assert cli.main([word.replace("TEACHER", teacher) for word in line]) == 1
    assert message in caplog.text


@pytest.mark.parametrize(
    "given, message",
    [
        (["model=text.pt"], "text.pt is not a loadable checkpoint"),
        (["model=images"], "should be a *.pt PyTorch model"),
        (["model=STUDENT", "optimizer=foo"], "Optimizer 'foo' not found"),
        (["model=gone.test/best.pt"], "gone.test/best.pt"),
    ],
)
def test_students_and_optimizers_that_cannot_train_are_sentences(folder, given, message, caplog, data):
    (folder / "text.pt").write_text("no checkpoint")
    (folder / "images").mkdir()
    line = ["train", f"data={data}", "imgsz=64", "workers=0", "device=cpu", "plots=False", f"project={folder / 'runs'}"]
    assert cli.main([*line, *(word.replace("STUDENT", STUDENT) for word in given)]) == 1
    assert message in caplog.text


def test_a_download_that_fails_is_a_sentence(monkeypatch, caplog):
    scope = {"__name__": "ultralytics.utils.downloads"}
    exec("def safe_download():\n    raise ConnectionError('Download failure for x.pt')", scope)
    monkeypatch.setattr(cli.ul_cfg, "entrypoint", scope["safe_download"])
    assert cli.main(["train", "model=yolo26n.pt", "data=coco8.yaml"]) == 1
    assert "Download failure for x.pt" in caplog.text and "cut off" not in caplog.text


def test_a_checkpoint_that_is_cut_off_is_named(folder, monkeypatch, caplog):
    def torch_load(*_, **__):
        raise OSError(22, "Invalid argument")

    (folder / "half.pt").write_bytes(b"PK")
    monkeypatch.setattr("ultralytics.nn.tasks.torch_load", torch_load)
    assert cli.main(["train", "model=half.pt", "data=coco8.yaml"]) == 1
    assert "half.pt cannot be read and may be cut off: [Errno 22] Invalid argument" in caplog.text


@pytest.mark.core
@pytest.mark.parametrize(
    "content, message",
    [
        (None, "does not exist"),
        ("train: images\nval: images\n", "key missing"),
        ("names: {0: a}\nval: images\n", "'train:' key missing"),
        ("train: [\n", "error"),
        ("train: nowhere\nval: nowhere\nnames: {0: a}\n", "error"),
    ],
)
def test_data_sets_that_cannot_be_read_are_sentences(folder, teacher, content, message, caplog):
    if content is not None:
        (folder / "d.yaml").write_text(content)
    for more in ([], [f"teacher={teacher}"]):
        caplog.clear()
        assert cli.main(["train", f"model={STUDENT}", "data=d.yaml", f"project={folder / 'runs'}", *more]) == 1
        assert message in caplog.text and "Dataset 'd.yaml'" in caplog.text


def missing_file() -> None:
    with open("/nowhere/internal.json"):
        pass


def broken_module() -> None:
    compile("def f(:", "internal.py", "exec")


def missing_key() -> None:
    {}["x"]


def wrong_type() -> None:
    raise TypeError("Invalid 'x': unhashable type")  # Ultralytics' words, raised elsewhere


@pytest.mark.core
@pytest.mark.parametrize("fault", [missing_file, broken_module, missing_key, wrong_type])
def test_a_fault_of_the_code_keeps_its_traceback(fault, monkeypatch):
    monkeypatch.setattr(cli.ul_cfg, "entrypoint", fault)
    with pytest.raises((OSError, SyntaxError, LookupError, TypeError)) as error:
        cli.main(["train", "data=x.yaml"])
    assert error.traceback[-1].name == fault.__name__


@pytest.mark.core
@pytest.mark.parametrize("fault", [missing_key, wrong_type])
def test_a_fault_while_a_data_set_is_read_keeps_its_traceback(fault, folder, monkeypatch, quick):
    monkeypatch.setattr(engine, "check_det_dataset", lambda *_, **__: fault())
    with pytest.raises(RuntimeError, match=r"Dataset '.*' error"):
        cli.main(["train", f"model={STUDENT}", *(f"{k}={v}" for k, v in quick.items())])


def test_a_missing_file_is_input_if_the_command_names_it(folder):
    with pytest.raises(FileNotFoundError) as error, open("a/b.pt"):
        pass
    assert is_input_error(error.value, lambda: ["x.pt", 5, None, str(folder / "a" / "b.pt")])
    assert not is_input_error(error.value, lambda: ["b.pt", 5, None, ""])
    assert not is_input_error(FileNotFoundError("never raised"))


def test_a_broken_module_of_the_users_own_is_named_with_its_line(folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "broken_losses", raising=False)
    (folder / "broken_losses.py").write_text("import torch\n\ndef loss(:\n    pass\n")
    with pytest.raises(KDError, match=r"kd_feat_loss=broken_losses:loss .*SyntaxError.*broken_losses\.py, line 3"):
        load_loss("kd_feat_loss", "broken_losses:loss")
