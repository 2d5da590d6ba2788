"""Every bad input is answered with one sentence and an exit status, and leaves nothing behind."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import NAMES, STUDENT, TEACHER, make_model, save_model
from ultralytics.engine.model import Model
from ultralytics.nn.tasks import PoseModel
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, SETTINGS, YAML, remove_colorstr

from ultralytics_kd import YOLO, KDError, cli
from ultralytics_kd.config import register
from ultralytics_kd.errors import first_line
from ultralytics_kd.install import uninstall
from ultralytics_kd.teachers import checkpoint_files, opening


def bad_teachers(folder: Path) -> dict[str, tuple[str, str]]:
    """Return teacher arguments that cannot work, with the message of each."""
    (folder / "junk.pt").write_bytes(b"no checkpoint at all")
    (folder / "half.pt").write_bytes(save_model(folder / "whole.pt").read_bytes()[:4096])
    model = PoseModel("yolo26n-pose.yaml", nc=3, verbose=False)
    torch.save({"model": model, "train_args": {"task": "pose"}}, folder / "pose.pt")
    fused = torch.load(folder / "whole.pt", weights_only=False)
    fused["model"].end2end = True
    fused["model"].fuse(verbose=False)  # drops the one-to-many branch
    torch.save(fused, folder / "fused.pt")
    fused = torch.load(folder / "whole.pt", weights_only=False)
    fused["model"].fuse(verbose=False)  # without end2end it drops the one-to-one branch
    assert fused["model"].model[-1].cv2 is not None and fused["model"].model[-1].one2one_cv2 is None
    torch.save(fused, folder / "fused_nms.pt")
    nameless = torch.load(folder / "whole.pt", weights_only=False)
    nameless["model"].names = {0: "disc", 1: "box"}
    torch.save(nameless, folder / "nameless.pt")
    save_model(folder / "grey.pt", ch=1)
    save_model(folder / "whole.pt")
    torch.save({"model": torch.nn.Linear(2, 2), "train_args": {}}, folder / "linear.pt")
    (folder / "model.onnx").write_bytes(b"no graph at all")
    (folder / "empty").mkdir()
    save_model(folder / "other.pt", names={0: "cat", 1: "dog"})
    return {
        "missing": (str(folder / "nowhere.pt"), "was not found: give a path, or a name that Ultralytics downloads"),
        "unreadable": (str(folder / "junk.pt"), "could not be read .*: it is a text, which begins with 'no checkp"),
        "truncated": (str(folder / "half.pt"), "could not be read"),
        "architecture": (TEACHER, "untrained architecture"),
        "no model": (str(folder / "model.bin"), "neither a PyTorch checkpoint nor an exported model"),
        "no exported model": (str(folder / "gone.onnx"), "gone.onnx was not found"),
        "broken exported model": (str(folder / "model.onnx"), "cannot be run here"),
        "no object": ("nowhere.at_all:thing", "names no object that can be imported"),
        "task": (str(folder / "pose.pt"), "same task, so give a teacher of 'detect' or a student of 'pose'"),
        "tasks": (f"[{folder / 'whole.pt'},{folder / 'pose.pt'}]", "both must have the same task"),
        "empty list": ("[]", "empty list"),
        "fused": (str(folder / "fused.pt"), "was fused for inference"),
        "fused for NMS": (str(folder / "fused_nms.pt"), "was fused for inference"),
        "names": (str(folder / "nameless.pt"), "scores 3 classes and has 2 `names`"),
        "channels": (str(folder / "grey.pt"), "reads images of 1 channel.*: give a teacher of 3, or set channels: 1"),
        "several channels": (f"[{folder / 'whole.pt'},{folder / 'grey.pt'}]", "grey.pt reads images of 1 channel"),
        "folder": (str(folder / "empty"), "is a folder: give trained weights .*weights/best.pt"),
        "several without brackets": (f"{folder / 'whole.pt'},{folder / 'grey.pt'}", r"teacher=\[a.pt,b.pt\]"),
        "foreign model": (str(folder / "linear.pt"), "ends in 'Linear'.*give a YOLO model, or wrap .*`teach`"),
        "classes": (str(folder / "other.pt"), "no class in common"),
    }


KINDS = [
    "missing", "unreadable", "truncated", "architecture", "no model", "no exported model", "broken exported model",
    "no object", "task", "tasks", "empty list", "fused", "fused for NMS", "names", "channels", "classes",
    "several channels", "folder", "several without brackets", "foreign model",
]  # fmt: skip


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    return bad_teachers(tmp_path_factory.mktemp("bad"))


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_teacher_that_cannot_teach_is_one_sentence_and_leaves_nothing(teachers, kind, quick, capfd):
    source, message = teachers[kind]
    args = [f"{k}={v}" for k, v in quick.items()]
    assert cli.main(["train", f"model={STUDENT}", f"teacher={source}", *args]) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if "ERROR" in line] or [""]
    assert not Path(quick["project"]).exists()
    with pytest.raises(KDError, match=message) as error:
        YOLO(STUDENT).train(**quick, teacher=source)
    assert str(error.value).startswith("teacher=") and "\n" not in str(error.value) and len(errors) == 1
    assert not Path(quick["project"]).exists()


def test_every_kind_of_bad_teacher_is_tested(teachers):
    assert sorted(teachers) == sorted(KINDS)


@pytest.mark.core
@pytest.mark.parametrize(
    "given, message",
    [
        ({"kd_cls_loss": "bkcd"}, "did you mean bckd"),
        ({"kd_cls": -1.0}, "0 or more"),
        ({"kd_box": float("nan")}, "finite"),
        ({"kd_cls": 0, "kd_box": 0}, "all distillation weights are 0"),
        ({"distill_model": "x.pt"}, "exclude each other"),
        ({"kd_box_loss": "ld"}, "reg_max=1"),
        ({"kd_classes": {"discs": "disc"}}, "'discs', which is not a class of the teacher"),
        ({"teacher": 7}, "give a path, a YOLO, a model, or an object with `names` and `teach`"),
        ({"teacher": None, "kd_cls": 3.0}, "no effect without a teacher"),
        ({"kd_cache_imgsz": 64}, "'kd_cache_imgsz' is an argument of 'yolo-kd cache'"),
        ({"teacher": torch.nn.Linear(2, 2)}, "teacher=Linear in memory ends in 'Linear'"),
        ({"data": ["a.yaml", "b.yaml"], "teacher": torch.nn.Linear(2, 2)}, "cannot get a teacher in memory"),
    ],
)
def test_arguments_that_cannot_work_are_one_sentence_and_leave_nothing(quick, teacher, given, message):
    with pytest.raises(KDError, match=message) as error:
        YOLO(STUDENT).train(**{**quick, "teacher": teacher, **given})
    assert "\n" not in str(error.value)
    assert not Path(quick["project"]).exists()


GIVEN = "'kd_cls=2.0' has no effect without a teacher: add teacher=PATH or drop it"


@pytest.mark.core
@pytest.mark.parametrize("method", ["train", "tune"])
def test_kd_argument_without_a_teacher_is_refused_even_with_its_default(quick, method):
    with pytest.raises(KDError, match=GIVEN):
        getattr(YOLO(STUDENT), method)(**quick, kd_cls=2.0)
    assert not Path(quick["project"]).exists()


@pytest.mark.core
def test_kd_argument_without_a_teacher_is_refused_on_the_command_line_too(quick, tmp_path, caplog):
    YAML.save(tmp_path / "copy.yaml", {**DEFAULT_CFG_DICT, **quick, "model": STUDENT})  # as yolo-kd copy-cfg
    LOGGER.propagate = True
    for line in ([f"{k}={v}" for k, v in quick.items()], [f"cfg={tmp_path / 'copy.yaml'}"]):
        caplog.clear()
        assert cli.main(["train", f"model={STUDENT}", "kd_cls=2.0", *line]) == 1 and GIVEN in caplog.text
    LOGGER.propagate = False
    assert not Path(quick["project"]).exists()


@pytest.mark.core
@pytest.mark.parametrize("way", ["line", "call", "tuner", "resumed"])
def test_kd_arguments_that_nobody_gives_and_those_with_a_teacher_are_accepted(quick, tmp_path, monkeypatch, way):
    """Defaults come from a recipe, or from Ultralytics' tuner, which passes every argument of a plain run on."""
    trained = []
    monkeypatch.setattr(Model, "train", lambda self, trainer=None, **kwargs: trained.append(kwargs))
    recipe = {**DEFAULT_CFG_DICT, **quick, "model": STUDENT}
    YAML.save(tmp_path / "copy.yaml", recipe)
    YAML.save(tmp_path / "kd.yaml", {"kd_cls": 2.0, "teacher": "t.pt"})
    if way == "line":
        uninstall()  # and install again, over the `train` of this test
        assert cli.main(["train", f"cfg={tmp_path / 'copy.yaml'}"]) == 0
        assert cli.main(["train", f"model={STUDENT}", f"cfg={tmp_path / 'kd.yaml'}", "kd_box=8.0"]) == 0
        uninstall()
        register()
    elif way == "call":
        YOLO(STUDENT).train(cfg=str(tmp_path / "copy.yaml"))
        YOLO(STUDENT).train(cfg=str(tmp_path / "kd.yaml"), kd_box=8.0)
    elif way == "tuner":
        YOLO(STUDENT).train(**recipe)
        YOLO(STUDENT).train(teacher=False, kd_cls=2.0)
    else:
        YOLO(STUDENT).train(resume=True, kd_trust_teacher=True)
        YOLO(STUDENT).train(resume="last.pt", kd_trust_teacher=True)
    assert len(trained) == 2


@pytest.mark.core
def test_error_of_ultralytics_own_leaves_nothing_either(quick, teacher):
    with pytest.raises(NotImplementedError, match="not found in list of available optimizers"):
        YOLO(STUDENT).train(**quick | {"optimizer": "nosuch"}, teacher=teacher)
    assert not Path(quick["project"]).exists()


def test_teacher_of_another_task_than_the_student_is_refused(quick, teacher):
    with pytest.raises(KDError, match="is a 'detect' model and the student's task is 'segment'"):
        YOLO("yolo26n-seg.yaml").train(**quick, teacher=teacher)
    assert not Path(quick["project"]).exists()


def test_trainer_that_does_not_distil_never_ignores_a_teacher(quick, teacher):
    from ultralytics.models.yolo.detect import DetectionTrainer

    with pytest.raises(KDError, match="DetectionTrainer does not distil"):
        YOLO(STUDENT).train(trainer=DetectionTrainer, **quick, teacher=teacher)
    assert not Path(quick["project"]).exists()


def test_a_folder_that_was_there_before_is_kept(quick, teacher, tmp_path):
    (Path(quick["project"]) / "run").mkdir(parents=True)
    (Path(quick["project"]) / "run" / "mine.txt").write_text("mine")
    save_model(tmp_path / "other.pt", names={0: "cat"})
    with pytest.raises(KDError, match="no class in common"):
        YOLO(STUDENT).train(**quick, exist_ok=True, teacher=str(tmp_path / "other.pt"))
    assert (Path(quick["project"]) / "run" / "mine.txt").read_text() == "mine"


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Return a folder that a server on this machine serves, and its URL; the download code is Ultralytics' own."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setitem(SETTINGS, "weights_dir", str(tmp_path / "weights"))
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_teacher_of_the_right_classes_is_downloaded_from_a_url(quick, teacher, served, tmp_path):
    folder, url = served
    shutil.copy(teacher, folder / "best.pt")
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1}, teacher=f"{url}/best.pt")
    assert [file.read_bytes() for file in tmp_path.glob("weights/*/best.pt")] == [Path(teacher).read_bytes()]
    assert model.trainer.teacher.names == NAMES


@pytest.mark.core
def test_files_of_the_same_name_from_two_urls_are_two_teachers(served):
    folder, url = served
    for name in ("a", "b"):
        (folder / name).mkdir()
        save_model(folder / name / "best.pt", names={0: name})
    assert [opening.open_teacher(f"{url}/{name}/best.pt").names for name in "ab"] == [{0: "a"}, {0: "b"}]


def test_an_exported_file_is_downloaded_from_a_url_too(served, monkeypatch):
    folder, url = served
    (folder / "m.onnx").write_bytes(b"no graph at all")
    with pytest.raises(KDError, match="cannot be run here"):
        opening.open_teacher(f"{url}/m.onnx")
    with pytest.raises(KDError, match=r"could not be downloaded|was not found"):
        opening.open_teacher(f"{url}/gone.onnx")
    with pytest.raises(KDError, match="can hold code"):
        opening.open_teacher(f"{url}/m.torchscript")


@pytest.mark.core
@pytest.mark.parametrize(
    "source, asked",
    [
        ("ul://glenn/coco/yolo26x", "ul://glenn/coco/yolo26x"),
        ("https://example.com/yolo26x", "https://example.com/yolo26x"),
        ("yolo26x", "yolo26x.pt"),
        (" yolo26x.pt ", "yolo26x.pt"),
    ],
)
def test_names_and_uris_reach_ultralytics_loader_as_it_knows_them(monkeypatch, source, asked):
    fetched, loaded = [], []
    monkeypatch.setattr(opening, "check_file", lambda uri, download_dir: fetched.append(uri) or "downloaded.pt")
    opened = (make_model(STUDENT), {})
    monkeypatch.setattr(checkpoint_files, "load_checkpoint", lambda path: loaded.append(path) or opened)
    opening.open_teacher(source)
    uri = "://" in source
    assert fetched == ([asked] if uri else []) and loaded == ["downloaded.pt" if uri else asked]


def test_command_line_exits_with_1_and_the_sentence_last():
    out = subprocess.run(
        [sys.executable, "-m", "ultralytics_kd", "train", "teachr=x.pt"], capture_output=True, text=True, check=False
    )
    text = remove_colorstr((out.stdout + out.stderr).strip())
    assert out.returncode == 1
    assert "'teachr' is not a valid YOLO argument" in text.splitlines()[-1] and "teacher" in text.splitlines()[-1]
    assert "Traceback" not in text


def test_an_error_that_only_announces_its_reason_is_told_with_it():
    """PyTorch's errors of weights that do not fit have the reason on the second line."""
    error = RuntimeError("Error(s) in loading state_dict for ResNet:\n\tsize mismatch for fc.weight\n\tand more")
    assert first_line(error) == "Error(s) in loading state_dict for ResNet: size mismatch for fc.weight."
    assert first_line(ValueError("it is so.\nmore")) == "it is so." and first_line(ValueError()) == "ValueError."
