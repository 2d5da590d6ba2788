"""Checkpoints by others: each teaches as the model in it, or is refused by a sentence that says how to convert it."""

from __future__ import annotations

import re
import sys
import types
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import MODELS, NAMES, STUDENT, TEACHER, make_model
from torch import nn
from ultralytics import YOLO as StockYOLO
from ultralytics.cfg import get_cfg
from ultralytics.utils import YAML

from ultralytics_kd import KDError
from ultralytics_kd.teachers import open_teacher
from ultralytics_kd.teachers.checkpoint_files import KEY, _check_openable

ARGS = {"train_args": {"task": "detect"}}


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    """Return a detector as Ultralytics trains it."""
    torch.manual_seed(0)
    model = make_model(TEACHER)
    model.names = dict(NAMES)
    return model.eval()


def saved(folder: Path, content: object, **given) -> str:
    """Save the content of a file, and return its path."""
    torch.save(content, folder / "file.pt", **given)
    return str(folder / "file.pt")


def scores(teacher) -> torch.Tensor:
    """Return what a teacher answers."""
    teacher.match(NAMES)
    teacher.prepare(torch.device("cpu"))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.cat([branch.scores for branch in teacher(images).branches.values()])


def distilling(student: nn.Module) -> nn.Module:
    """Return what Ultralytics' own distillation saves until it ends."""
    module = pytest.importorskip("ultralytics.nn.distill_model", reason="this release distils nothing itself")
    student.args = get_cfg(overrides={"imgsz": 64})
    wrapper = module.DistillationModel(make_model(TEACHER), student)
    wrapper.names = student.__dict__.pop("names")  # a trainer names the model that it trains
    return wrapper


def as_saved_by_ultralytics_8_0(model: nn.Module) -> nn.Module:
    """Remove what the head, the model and torch did not have then."""
    model = deepcopy(model)  # all models share one activation
    model.__dict__.pop("task", None)
    head = model.model[-1]
    for name in ("inplace", "_end2end", "xyxy", "max_det", "agnostic_nms"):
        head.__dict__.pop(name, None)
    for module in model.modules():
        for name in ("_backward_pre_hooks", "_forward_hooks_with_kwargs", "_state_dict_pre_hooks"):
            module.__dict__.pop(name, None)
    return model


# Those that teach -----------------------------------------------------------------------------------------------------
TEACH = {
    "half precision": lambda model: {"model": model.half(), **ARGS},
    "average alone": lambda model: {"model": None, "ema": model.half(), **ARGS},
    "no arguments": lambda model: {"model": model},
    "Ultralytics 8.0": lambda model: {"model": as_saved_by_ultralytics_8_0(model), "version": "8.0.0"},
    "distill_model": lambda model: {"model": None, "ema": distilling(model).half(), **ARGS},
    "DataParallel, trusted": lambda model: {"model": nn.DataParallel(model), **ARGS},
    "compiled, trusted": lambda model: {"model": torch.compile(model), **ARGS},
}


@pytest.mark.parametrize("kind", TEACH)
def test_checkpoint_teaches_as_the_model_in_it(tmp_path, detector, kind):
    plain = scores(open_teacher(saved(tmp_path, {"model": deepcopy(detector).half(), **ARGS})))
    teacher = open_teacher(saved(tmp_path, TEACH[kind](deepcopy(detector))), trust="trusted" in kind)
    assert type(teacher.original).__name__ == "DetectionModel" and teacher.names == NAMES
    assert not [hook for m in teacher.original.modules() for hook in m._forward_hooks]
    assert scores(teacher) == pytest.approx(plain, abs=0.02)  # of weights in half precision
    assert teacher.original.pt_path == str(tmp_path / "file.pt")


@pytest.mark.parametrize("kind", ["compiled", "DataParallel", "distill_model"])
def test_wrapped_model_in_memory_teaches_and_does_not_change(detector, kind):
    wrap = {"compiled": torch.compile, "DataParallel": nn.DataParallel, "distill_model": distilling}[kind]
    wrapped = wrap(deepcopy(detector))
    hooks = [len(m._forward_hooks) for m in wrapped.modules()]
    attributes = set(vars(getattr(wrapped, "student_model", wrapped)))
    teacher = open_teacher(wrapped)
    assert teacher.names == NAMES and scores(teacher) == pytest.approx(scores(open_teacher(detector)), abs=1e-5)
    assert [len(m._forward_hooks) for m in wrapped.modules()] == hooks
    assert set(vars(getattr(wrapped, "student_model", wrapped))) == attributes


# Those that are refused -----------------------------------------------------------------------------------------------
class Faked:
    """Modules of a repository that is not installed, as long as a file of it is written."""

    def __init__(self, *names: str):
        self.names = names

    def __enter__(self):
        for name in self.names:
            sys.modules[name] = types.ModuleType(name)

    def __exit__(self, *_):
        for name in self.names:
            del sys.modules[name]


def of_other_code(folder: Path, module: str, name: str, **given) -> str:
    """Save a model whose class is in a module that is not installed."""
    kind = type(name, (nn.Module,), {"__module__": module, "__qualname__": name})
    package = module.partition(".")[0]
    with Faked(*{package, module}):
        setattr(sys.modules[module], name, kind)
        return saved(folder, {"epoch": -1, "model": kind().half(), "ema": None}, **given)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["Model", "DetectionModel", "SegmentationModel"])
def test_yolov5_is_refused_at_once_whether_it_is_trusted_or_not(tmp_path, name, zipped, trust):
    file = of_other_code(tmp_path, "models.yolo", name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(KDError, match=r"YOLOv5 or YOLOv7 repository, which Ultralytics cannot open.*`teach`") as error:
        open_teacher(file, trust=trust)
    assert "kd_trust_teacher" not in str(error.value)


@pytest.mark.parametrize("trust", [False, True])
def test_code_that_is_not_installed_is_named_and_nothing_is_installed(tmp_path, monkeypatch, trust):
    monkeypatch.setattr("ultralytics.nn.tasks.check_requirements", lambda *_: pytest.fail("pip was asked"))
    file = of_other_code(tmp_path, "yolov6_of_mine.models", "Net")
    with pytest.raises(KDError, match=r"code that is not installed here \(yolov6_of_mine\.models\.Net\): install"):
        open_teacher(file, trust=trust)


@pytest.mark.parametrize("trust", [False, True])
def test_layer_of_a_changed_ultralytics_is_named_with_the_way_to_bring_the_model_here(
    tmp_path, monkeypatch, detector, trust
):
    layer = type("MyAttention", (nn.Identity,), {"__module__": "ultralytics.nn.modules.block"})
    changed = deepcopy(detector)
    changed.model[0].act = layer()
    with monkeypatch.context() as fork:
        fork.setattr("ultralytics.nn.modules.block.MyAttention", layer, raising=False)
        file = saved(tmp_path, {"model": changed, **ARGS})
    with pytest.raises(KDError, match=r"has no ultralytics\.nn\.modules\.block\.MyAttention\. Export .* to ONNX"):
        open_teacher(file, trust=trust)


@pytest.mark.parametrize("name", ["ultralytics.nn.modules.block.Silence", "ultralytics.nn.tasks.YOLOv10DetectionModel"])
def test_names_of_older_releases_that_ultralytics_knows_are_left_to_it(name):
    _check_openable("old.pt", [name])


@pytest.mark.parametrize("wrap, attribute", [(torch.compile, "_orig_mod"), (nn.DataParallel, "module")])
def test_wrapped_model_that_is_not_trusted_is_refused_with_the_way_to_unwrap_it(tmp_path, detector, wrap, attribute):
    file = saved(tmp_path, {"model": wrap(deepcopy(detector)), **ARGS})
    said = rf"torch\.save\(\{{'model': model\.{attribute}\}}, FILE\), or if you trust its origin, set kd_trust_teacher"
    with pytest.raises(KDError, match=said):
        open_teacher(file)


@pytest.mark.parametrize("trust", [False, True])
def test_model_of_several_processes_is_refused_as_nothing_opens_it(tmp_path, detector, trust):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        file = saved(tmp_path, {"model": nn.parallel.DistributedDataParallel(deepcopy(detector)), **ARGS})
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(KDError, match=r"inside DistributedDataParallel: save the model alone") as error:
        open_teacher(file, trust=trust)
    assert "kd_trust_teacher" not in str(error.value)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("place", [None, "model", "ema", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "no model."])
def test_code_in_the_sentence_about_a_state_dict_makes_a_teacher_of_it(
    tmp_path, monkeypatch, detector, prefix, place, trust
):
    state = {f"{prefix}{key}": value for key, value in detector.state_dict().items()}
    if prefix == "no model.":
        state = dict(detector.model.state_dict())  # of the layers
    file = saved(tmp_path, state if place is None else {"epoch": 3, place: state})
    with pytest.raises(KDError, match=r"holds weights .* and no model") as error:
        open_teacher(file, trust=trust)
    if trust or (place and prefix):
        return  # the sentence is the same; it is tried once
    code = re.search(r"Make a checkpoint of it: (.*)\.$", str(error.value)).group(1)
    YAML.save(tmp_path / "yolo0s.yaml", {**YAML.load(MODELS / "yolo0.yaml"), "nc": 3})
    monkeypatch.chdir(tmp_path)
    code = code.replace("'ITS.yaml'", "'yolo0s.yaml'").replace("{0: 'NAME'}", repr(NAMES))
    exec(code, {"YOLO": StockYOLO, "torch": torch})
    assert torch.equal(scores(open_teacher("teacher.pt")), scores(open_teacher(detector)))


def test_weights_of_another_library_are_no_yolos():
    for key in ("backbone.conv1.weight", "roi_heads.box.0.weight", "features.0.weight"):
        assert KEY.match(key) is None
    assert KEY.match("module.model.0.conv.weight").groups() == ("module.", "model.")


@pytest.mark.parametrize(
    "content, said",
    [
        ({"backbone.conv1.weight": torch.ones(1)}, "of a model that is not Ultralytics'.*`teach`"),
        ({"epoch": 3, "optimizer": {}}, "holds no model under 'ema' or 'model'"),
        ([torch.ones(1)], "could not be read as a YOLO checkpoint"),
    ],
)
def test_other_content_is_one_sentence(tmp_path, content, said):
    with pytest.raises(KDError, match=said) as error:
        open_teacher(saved(tmp_path, content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("trust", [False, True])
def test_bare_model_is_refused_with_the_way_to_save_it(tmp_path, trust):
    with pytest.raises(KDError, match=r"is a bare model: save it in a dict, torch\.save\(\{'model': model\}, FILE\)"):
        open_teacher(saved(tmp_path, make_model(STUDENT)), trust=trust)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(107, "Endpoint is not connected")])
@pytest.mark.parametrize("name", ["file.pt", "file.onnx"])
def test_file_that_cannot_be_reached_is_said_to_be_so(tmp_path, monkeypatch, detector, error, name):
    (tmp_path / name).write_bytes(b"")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("pathlib.Path.exists", fail)
    monkeypatch.setattr("ultralytics.nn.tasks.torch_load", fail)
    with pytest.raises(KDError, match=rf"{name} cannot be read: {error.strerror}\.$"):
        open_teacher(str(tmp_path / name))
