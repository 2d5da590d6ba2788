"""A folder with the files that the documentation names, at toy size, and a runner of its commands and Python blocks."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics.cfg as ul_cfg
from conftest import DEVICE, MODELS, STUDENT, TEACHER, draw_dataset, save_model
from docs_blocks import ROOT, Block
from prompted_models import prompted_model, put_encoder, save_prompted
from test_extending import detector
from ultralytics import YOLO as StockYOLO
from ultralytics.utils import SETTINGS, YAML

from ultralytics_kd import KDDetectionTrainer, activation, cli
from ultralytics_kd.install import install, uninstall
from ultralytics_kd.model import YOLO

NAMES = {0: "person", 1: "box", 2: "helmet", 3: "vehicle"}
TEACHER_NAMES = {0: "person", 1: "box", 2: "helmet", 3: "car", 4: "truck"}
NEW_NAMES = {0: "cat", 1: "dog", 2: "sheep"}
STUDENTS = ("yolo26n.pt", "alone.pt", "student.pt", "old.pt")
TEACHERS = ("yolo26s.pt", "yolo26m.pt", "yolo26x.pt", "best.pt", "best_s.pt", "teacher.pt", "a.pt", "b.pt")
SMALL = {"imgsz": 64, "batch": 4, "workers": 0, "device": DEVICE}
TRAIN = {**SMALL, "epochs": 1, "plots": False}
READ_FROM = {f"yolo26{scale}.yaml": "yolo26.yaml" for scale in "nsmlx"}
# Appended to a command, where the last value of an argument counts
TOY: dict[str, dict[str, Any]] = {
    "train": TRAIN,
    "bench": {**TRAIN, "seeds": 1},
    "advise": {**TRAIN, "probe": 2, "sample": 4, "images": 1},
    "demo": {**TRAIN, "train_images": 8, "val_images": 4, "teacher_epochs": 1},
    "cache": SMALL,
    "report": {**SMALL, "images": 1},
    "val": SMALL,
    "predict": {"imgsz": 64, "device": DEVICE},
    "export": {"imgsz": 64, "device": DEVICE},
    "examples/export.py": {"imgsz": 64, "formats": "torchscript"},
    "examples/reliability/resumed.py": {"imgsz": 64, "epochs": 2, "seeds": 1, "workers": 0, "batch": 4},
}
SHORTER = {"teacher_epochs": 1, "teacher_imgsz": 128, "kd_teacher_imgsz": 128}  # if a command has them
FACTOR = 8  # a teacher's size up to this one is a factor, and no number of pixels
# Names that a Python block leaves to its reader, and what the page says to do with what it defines
LEFT_OPEN = {"load_my_detector": lambda: own_detector}
USES = {"MyTeacher": 'YOLO("yolo26n.pt").train(data="your.yaml", teacher=MyTeacher(), kd_feat=1.0)'}


def make_folder(folder: Path) -> Path:
    """Make the files that the documentation names, and return their folder."""
    for name in ("cfg", "examples"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(MODELS / "yolo0.yaml", folder / "yolo26.yaml")
    torch.manual_seed(0)
    for files, cfg, names in ((STUDENTS, STUDENT, NAMES), (TEACHERS, TEACHER, TEACHER_NAMES)):
        first = save_model(folder / files[0], cfg, names)
        for other in files[1:]:
            shutil.copy(first, folder / other)
    data = draw_dataset(folder / "shapes", names=NAMES)
    for name in ("your.yaml", "old.yaml", "coco8.yaml", "coco.yaml"):
        shutil.copy(data, folder / name)
    YAML.save(folder / "names.yaml", {key: value for key, value in YAML.load(data).items() if key != "train"})
    shutil.copy(draw_dataset(folder / "others", names=NEW_NAMES, seed=1), folder / "new.yaml")
    for name in ("photos", "more/images", "old/images/train"):
        shutil.copytree(folder / "others" / "images" / "train", folder / name)
    for name, kind in (("yoloe-26l-seg.pt", "yoloe26-seg"), ("yolov8x-worldv2.pt", "worldv2")):
        save_prompted(folder / name, model=prompted_model(kind))
    torch.save(detector().state_dict(), folder / "detector.pt")
    import timm  # here, as it takes a second to import

    (folder / "weights").mkdir()
    torch.save(timm.create_model("convnext_tiny", num_classes=0).state_dict(), folder / "weights" / "convnext_tiny.pth")
    return folder


class Runner:
    """Runs the blocks of a page in a toy folder, one after the other.

    Attributes:
        folder (Path): The folder, which is the working directory.
        patch (pytest.MonkeyPatch): Undoes at the end what the runner changes in this process.
        names (dict[str, Any]): What the Python blocks of the page have defined so far.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.folder, self.patch, self.names = folder, patch, {"__name__": "docs", **LEFT_OPEN}
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr(ul_cfg, "TESTS_RUNNING", False)  # else relative folders of runs are in Ultralytics' own
        patch.delenv("PYTEST_CURRENT_TEST")  # likewise in the processes of a bench
        patch.setattr(activation, "pth_file", lambda: folder / "enabled.pth")
        put_encoder(patch)

    def run(self, block: Block) -> None:
        """Run a block, but for the commands that are marked."""
        if block.language == "python":
            self._python(block)
            return
        for command in block.commands:
            if block.reason(command) is None:
                self._prepare(command)
                RUN[command[0]](self, command[1:])

    def _python(self, block: Block) -> None:
        """Run Python code, or write it to the file that its first line names."""
        file = re.match(r"# (\S+\.py)\n", block.code)
        if file:
            (self.folder / file[1]).write_text(block.code)
            return
        with pytest.MonkeyPatch.context() as patch:
            searching = {**TRAIN, "iterations": 1}
            for owner, method in ((StockYOLO, "train"), (StockYOLO, "tune"), (YOLO, "tune")):
                more = TRAIN if method == "train" else searching
                patch.setattr(owner, method, _with(getattr(owner, method), more))
            exec(compile(block.code, block.place, "exec"), self.names)
            for name, use in USES.items():
                if name in block.code:
                    exec(use, {"YOLO": YOLO, **self.names})

    def _prepare(self, command: list[str]) -> None:
        """Make the files of an earlier run, if a command names one that this page has not made."""
        for name in re.findall(r"=(runs/detect/\w+/weights/\w+\.pt)", " ".join(command)):
            if "resume" in command:
                interrupt(self.folder / name)
            elif not (self.folder / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.folder / "best.pt", self.folder / name)
        named = re.findall(r"(?<=[=,\[])[\w/.-]+\.(?:pt|yaml)", " ".join(command))
        missing = [name for name in named if not (self.folder / READ_FROM.get(name, name)).exists()]
        assert missing == [], f"add {missing} to the folder that tests/docs_runs.py makes"  # or it would be downloaded

    def cli(self, args: list[str]) -> None:
        """Run a command of `yolo-kd` at toy size."""
        status = cli.main([*args, *smaller(args)])
        assert status == 0, f"failed: {' '.join(args)}"

    def yolo(self, args: list[str]) -> None:
        """Run a command of plain `yolo` at toy size, which knows kd arguments only between `enable` and `disable`."""
        if not activation.enabled():
            uninstall()
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ul_cfg, "ARGV", ["yolo", *args, *smaller(args)])
                ul_cfg.entrypoint()
        finally:
            install()

    def python(self, args: list[str]) -> None:
        """Run a script in a process."""
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *args, *smaller(args)]
        out = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=env, check=False)
        assert out.returncode == 0, out.stdout[-1500:] + out.stderr[-3000:]

    def export(self, args: list[str]) -> None:
        """Set variables of the environment."""
        for name, _, value in (arg.partition("=") for arg in args):
            self.patch.setenv(name, value)


RUN = {"yolo-kd": Runner.cli, "yolo": Runner.yolo, "python": Runner.python, "export": Runner.export}


def _with(method: Any, more: dict[str, Any]) -> Any:
    """Return a method that is called with more arguments."""

    @functools.wraps(method)  # the package looks at the parameters
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **{**kwargs, **({} if kwargs.get("resume") else more)})

    return called


def smaller(args: list[str]) -> list[str]:
    """Return the arguments that make a command a matter of seconds."""
    if "resume" in args:
        return []
    named = next((name for name in TOY if name in args), None)
    given = dict(arg.split("=", 1) for arg in args if "=" in arg)
    more = {k: v for k, v in SHORTER.items() if given.get(k, "").isdigit() and int(given[k]) > FACTOR}
    return [f"{name}={value}" for name, value in {**TOY.get(named or "", {}), **more}.items()]


def interrupt(checkpoint: Path) -> None:
    """Leave the folder of a distillation that was interrupted after its first epoch."""

    def stop(trainer: Any) -> None:
        raise KeyboardInterrupt

    run = checkpoint.parents[1]
    shutil.rmtree(run, ignore_errors=True)
    overrides = {**TRAIN, "epochs": 2, "model": "yolo26n.pt", "teacher": "yolo26x.pt", "data": "coco8.yaml"}
    trainer = KDDetectionTrainer(overrides={**overrides, "project": str(run.parent), "name": run.name})
    trainer.add_callback("on_model_save", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert checkpoint.exists()


def own_detector(images: torch.Tensor) -> tuple[list[Any], list[torch.Tensor]]:
    """Detect one box in each image, and return feature maps, as the class of docs/teachers.md expects."""
    from types import SimpleNamespace

    height, width = images.shape[2:]
    boxes, probs = torch.tensor([[8.0, 8.0, width / 2, height / 2]]), torch.tensor([[0.8, 0.1]])
    maps = [torch.rand(len(images), c, height // s, width // s) for s, c in ((8, 128), (16, 256), (32, 512))]
    return [SimpleNamespace(boxes=boxes, probs=probs) for _ in images], maps


@contextmanager
def traces_removed(folder: Path) -> Iterator[None]:
    """Let runs go to a folder, and undo at the end what its commands change in settings and import from it."""
    before = dict(SETTINGS)
    SETTINGS.update(runs_dir=str(folder / "runs"))
    try:
        yield
    finally:
        SETTINGS.update(before)
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
