"""The plugin works with a range of Ultralytics releases, and names the part that another release lacks."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from ultralytics.data import augment
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.utils import LOGGER

import ultralytics_kd
from ultralytics_kd import KDError, compat
from ultralytics_kd.cache import augmentation, dataset
from ultralytics_kd.compat import INTERNALS, NEWEST, OLDEST, check_parts, check_ultralytics
from ultralytics_kd.config.registration import parts_of
from ultralytics_kd.install import CHANGES
from ultralytics_kd.report.validation import recording_validator
from ultralytics_kd.trainer import DistillationMixin
from ultralytics_kd.training.images import unlabeled_images

pytestmark = pytest.mark.core  # of .ci/releases

PACKAGE = Path(ultralytics_kd.__file__).parent
FREE = {f"ultralytics_kd.{name}" for name in ("_autoload", "activation", "compat", "errors", "screen")}
ARGUMENTS = {
    *(f"ultralytics_kd.{name}" for name in ("cli", "config", "files", "install")),
    *(
        f"ultralytics_kd.config.{name}"
        for name in (
            *("arguments", "changes", "checks", "idle", "input_errors", "label_free", "recipes", "registration"),
            *("command_help", "help", "kept_classes", "named_files", "sure_boxes", "teacher_size", "user_code"),
        )
    ),
}
NOT_CHECKED = {  # not every release has the first three, which are asked for where they are used
    *("ultralytics.models.yolo.depth", "ultralytics.models.yolo.semantic"),
    "ultralytics.data.utils.add_polygon_background",
    "ultralytics.YOLO",  # is what it is all about, and imported on first use
}


@pytest.fixture
def logged(monkeypatch, caplog):
    """Return what is logged, by a process that has not warned yet."""
    monkeypatch.setattr(compat, "_warned", False)
    monkeypatch.setattr(LOGGER, "propagate", True)
    return caplog


@pytest.mark.parametrize("version", ["8.3.0", "8.4.152", "8.4.191", "8.10.0", "9.0.0rc1"])
def test_release_outside_the_tested_range_is_one_warning(logged, version):
    for _ in range(2):
        check_ultralytics(version)
    assert logged.text.count(f"is tested with ultralytics>={OLDEST},<={NEWEST}, found {version}") == 1


@pytest.mark.parametrize("version", [OLDEST, "8.4.163", NEWEST])
def test_tested_release_is_no_warning(logged, version):
    check_ultralytics(version)
    assert not logged.text


def test_installed_package_asks_for_the_oldest_tested_release():
    assert f'"ultralytics>={OLDEST}"' in (PACKAGE.parent / "pyproject.toml").read_text()
    page = (PACKAGE.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert f"Tested with ultralytics {OLDEST} to {NEWEST}" in " ".join(page.split())


@pytest.mark.parametrize("module", [*INTERNALS])
def test_every_part_that_is_not_there_is_named(monkeypatch, module):
    for part in INTERNALS[module]:
        path = part.partition("(")[0]
        *owners, last = path.split(".")
        owner = importlib.import_module(module)
        for name in owners:
            owner = getattr(owner, name)
        with monkeypatch.context() as patch:
            for holder in getattr(owner, "__mro__", [owner]):  # a base class may have it too
                if last in vars(holder):
                    patch.delattr(holder, last)
            patch.setattr(compat, "_has", lambda *_: False)  # methods no longer set it either
            with pytest.raises(KDError, match=f"has no '{module}[^']*'") as e:
                check_parts({module: (part,)})
        assert f"'{module}.{path}'" in str(e.value)


def test_attributes_that_code_gives_to_objects_are_told_from_others(monkeypatch):
    class Head:
        def __init__(self):
            self.cv2 = 1

    class Small(Head):
        pass

    monkeypatch.setitem(sys.modules, "ultralytics.made", types.SimpleNamespace(Head=Head, Small=Small))
    check_parts({"ultralytics.made": ("Head.cv2", "Small.cv2")})
    with pytest.raises(KDError, match=r"has no 'ultralytics.made.Small.cv3' \(and 1 more\), which"):
        check_parts({"ultralytics.made": ("Small.cv3", "Head.cv2", "Head.cv4")})


def test_part_with_other_parameters_is_named(monkeypatch):
    monkeypatch.setattr(DetectionTrainer, "preprocess_batch", lambda self, images: images)
    with pytest.raises(KDError, match="preprocess_batch' with parameter 'batch'"):
        check_ultralytics()


def test_loss_without_named_parts_is_named(monkeypatch):
    from ultralytics.utils.loss import v8DetectionLoss

    def nameless(self, preds, batch) -> tuple[float, float]:
        return 0.0, 0.0

    monkeypatch.setattr(v8DetectionLoss, "__call__", nameless)
    with pytest.raises(KDError, match="v8DetectionLoss' that returns its parts by name"):
        check_ultralytics()


@pytest.mark.parametrize(
    "version, enabled, advice",
    [
        ("8.4.120", False, f"install ultralytics>={OLDEST},<={NEWEST}."),
        ("8.6.0", False, f"install ultralytics>={OLDEST},<={NEWEST}, or a newer ultralytics_kd."),
        ("8.4.120", True, f"install ultralytics>={OLDEST},<={NEWEST}, or go on without it after 'yolo-kd disable'."),
    ],
)
def test_error_says_what_is_installed_and_what_to_install(monkeypatch, version, enabled, advice):
    monkeypatch.setitem(sys.modules, "ultralytics.made", types.SimpleNamespace())
    if enabled:
        monkeypatch.setitem(sys.modules, "ultralytics_kd._autoload", types.SimpleNamespace())
    with pytest.raises(KDError) as e:
        check_parts({"ultralytics.made": ("part",)}, version)
    start = f"ultralytics {version} has no 'ultralytics.made.part', which ultralytics_kd {ultralytics_kd.__version__} "
    assert str(e.value) == f"{start}needs: {advice}"


def test_package_that_ultralytics_needs_and_that_is_missing_is_no_moved_part(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delitem(sys.modules, "ultralytics.utils.patches")
    with pytest.raises(ModuleNotFoundError, match="cv2"):
        check_parts({"ultralytics.utils.patches": ("imread",)})


def test_every_name_that_the_package_takes_from_ultralytics_is_checked():
    listed = [f"{module}.{part.partition('(')[0]}." for module in INTERNALS for part in INTERNALS[module]]
    found = {name for file in PACKAGE.rglob("*.py") for name in taken(ast.parse(file.read_text()))}
    assert "ultralytics.cfg.merge_equals_args" in found and "ultralytics.utils.ops.scale_boxes" in found
    unchecked = {name for name in found if not any(entry.startswith(f"{name}.") for entry in listed)}
    assert unchecked == NOT_CHECKED


def taken(tree: ast.Module) -> set[str]:
    """Return the names of Ultralytics that a module of this package imports, or reads from Ultralytics' modules."""
    modules, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ultralytics":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if inspect.ismodule(getattr(importlib.import_module(node.module), alias.name)):
                    modules[alias.asname or alias.name] = name
                else:
                    found.add(name)
        elif isinstance(node, ast.Import):
            modules.update({a.asname or a.name: a.name for a in node.names if a.name.startswith("ultralytics")})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.add(f"{modules[node.value.id]}.{node.attr}")
    return found


@pytest.mark.parametrize(
    "derived, stock",
    [
        (DistillationMixin, DetectionTrainer),
        (recording_validator(DetectionValidator), DetectionValidator),
        (unlabeled_images.UnlabeledImages, unlabeled_images.YOLODataset),
        (dataset.AnsweredDataset, dataset.YOLODataset),
        (augmentation.CarriesAnswers, augment.BaseTransform),
    ],
)
def test_every_method_that_the_package_overrides_is_checked(derived, stock):
    names = {n for n, f in vars(derived).items() if callable(f) and n in dir(stock) and not n.startswith("__")}
    listed = {part.partition("(")[0].rpartition(".")[2] for module in INTERNALS for part in INTERNALS[module]}
    assert names and names <= listed, "add them to compat.INTERNALS"


def test_what_is_patched_is_checked_with_the_rest():
    listed = {f"{module}.{part}" for module in INTERNALS for part in INTERNALS[module]}
    assert {f"{module}.{part}" for module, parts in parts_of(CHANGES).items() for part in parts} <= listed


BROKEN = """
import importlib, sys
import ultralytics_kd._autoload
from ultralytics import YOLO
from ultralytics.utils import ops
del ops.crop_mask
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        print(name, "is fine")
    except ultralytics_kd.KDError as e:
        print(name, "says", e)
model = YOLO("yolo26n.yaml")
print("stock:", model.task_map["detect"]["trainer"].__name__)
try:
    model.train(data="none.yaml", teacher="none.pt")
except ultralytics_kd.KDError as e:
    print("train says", e)
"""


def test_missing_part_is_said_by_whatever_is_imported_first_and_stock_models_go_on(tmp_path):
    files = [f.relative_to(PACKAGE.parent).with_suffix("") for f in PACKAGE.rglob("*.py")]
    names = sorted({".".join(f.parts).removesuffix(".__init__") for f in files} - {"ultralytics_kd"})
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run(
        [sys.executable, "-c", BROKEN, *names], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    lines, sentence = run.stdout.splitlines(), "says ultralytics"
    free = {line.split()[0] for line in lines if line.endswith("is fine")}
    assert free == {*FREE, *ARGUMENTS, "ultralytics_kd.__main__"}
    assert len([line for line in lines if f"{sentence} " in line]) == len(names) - len(free) + 1
    assert all("has no 'ultralytics.utils.ops.crop_mask'" in line for line in lines if sentence in line)
    assert "stock: DetectionTrainer" in lines and lines[-1].startswith(f"train {sentence}")
    assert run.stdout.count("distillation is unavailable in this environment") == 1


PARTIAL = """
import sys, types

def find_spec(name, path=None, target=None):
    if name == "ultralytics_kd.training.run":
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, types.SimpleNamespace(find_spec=find_spec))
from ultralytics_kd.cli import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", [["checks"], ["train", "model=yolo26n.yaml", "data=none.yaml", "teacher=none.pt"]])
def test_an_installation_that_lacks_a_module_is_named_in_one_sentence(command, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", PARTIAL, *command],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1
    lines = [line for line in f"{run.stdout}\n{run.stderr}".splitlines() if line.startswith("ERROR")]
    reason = "No module named 'ultralytics_kd.training.run'"
    assert len(lines) == 1
    assert lines[0].endswith(f"a part of ultralytics_kd cannot be imported ({reason}): install it again.")


def test_command_says_what_is_missing_and_can_still_be_disabled(monkeypatch, capsys, tmp_path):
    from ultralytics_kd import __main__, activation

    def gone():
        raise KDError("ultralytics 8.0.0 has no 'x'.")

    monkeypatch.delitem(sys.modules, "ultralytics_kd.cli", raising=False)
    monkeypatch.delattr(ultralytics_kd, "cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [types.SimpleNamespace(find_spec=lambda *_: gone()), *sys.meta_path])
    monkeypatch.setattr(activation, "pth_file", lambda: tmp_path / "x.pth")
    monkeypatch.setattr(sys, "argv", ["yolo-kd", "train"])
    with pytest.raises(SystemExit, match=r"^ERROR ultralytics 8.0.0 has no 'x'\.$"):
        __main__.entrypoint()
    (tmp_path / "x.pth").write_text("")
    monkeypatch.setattr(sys, "argv", ["yolo-kd", "disable"])
    __main__.entrypoint()
    assert "Disabled" in capsys.readouterr().out and not (tmp_path / "x.pth").exists()
