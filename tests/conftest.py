"""Data sets and teachers that the tests make for themselves."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
from pathlib import Path

# Before Ultralytics is imported: nobody's settings change, and no test asks the network for a newer release
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="ultralytics_kd_tests_")
os.environ["YOLO_OFFLINE"] = "true"
os.environ.setdefault("RAY_worker_niceness", "0")  # or its processes wait for those of the other tests
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as Ultralytics does; torch is imported before it here

import cv2
import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER, YAML

import ultralytics_kd.trainer  # noqa: F401 (registers the kd arguments)
from ultralytics_kd.report import latency
from ultralytics_kd.training import beginning, distillation

latency.ROUNDS = 6  # images that are timed; few are enough to see that they are

# With `ULTRALYTICS_KD_TEST_DEVICE=0` the trainings of the tests run on a GPU, and test_cuda.py is not skipped
DEVICE = os.environ.get("ULTRALYTICS_KD_TEST_DEVICE", "cpu")
MODELS = Path(__file__).parent / "models"
STUDENT, TEACHER = str(MODELS / "yolo0n.yaml"), str(MODELS / "yolo0s.yaml")  # small and quick, of one architecture
NAMES = {0: "disc", 1: "box", 2: "bar"}
# Small, quick and repeatable; every training of the tests uses these
QUICK = {
    "imgsz": 64,
    "epochs": 2,
    "batch": 4,
    "workers": 0,
    "plots": False,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "device": DEVICE,
    "amp": False,
    "verbose": False,
}


# Files whose tests take minutes come first, so that no process is left with one of them in the end
LONG = ("bench", "tasks", "training", "cache", "faults", "cli", "examples", "teachers", "hostile", "leaks", "tune")


def pytest_unconfigure() -> None:
    """Remove the settings of this process."""
    shutil.rmtree(os.environ["YOLO_CONFIG_DIR"], ignore_errors=True)


def pytest_collection_modifyitems(items: list) -> None:
    """Order files by how long they take; the order within a file stays."""
    rank = {f"test_{name}.py": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_runtest_setup() -> None:
    """Hide the objects that there are from the garbage collector: Ultralytics runs it several times in a training.

    Imported modules have a million objects, and to look at them took a third of the tests' time.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Show them again after the last test of a file, whose fixtures may be garbage then."""
    if nextitem is None or nextitem.path != item.path:
        gc.unfreeze()


def draw_dataset(folder: Path, images: int = 8, names: dict[int, str] | None = None, seed: int = 0) -> Path:
    """Draw filled shapes on a grey ground, write them as a YOLO data set, and return its data.yaml."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", images), ("val", images // 2)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(90, 120, (64, 64, 3), dtype=np.uint8)
            lines = []
            for _ in range(int(rng.integers(1, 4))):
                cls, (w, h) = int(rng.integers(3)), rng.integers(12, 28, 2)
                x, y = int(rng.integers(0, 64 - w)), int(rng.integers(0, 64 - h))
                color = [int(c) for c in rng.integers(0, 255, 3)]
                if cls == 0:
                    cv2.ellipse(image, (x + w // 2, y + h // 2), (w // 2, h // 2), 0, 0, 360, color, -1)
                else:
                    cv2.rectangle(image, (x, y), (x + int(w), y + int(h)), color, -1 if cls == 1 else 3)
                lines.append(f"{cls} {(x + w / 2) / 64} {(y + h / 2) / 64} {w / 64} {h / 64}")
            cv2.imwrite(str(folder / "images" / split / f"{i}.png"), image)
            (folder / "labels" / split / f"{i}.txt").write_text("\n".join(lines))
    YAML.save(
        folder / "data.yaml",
        {"path": str(folder), "train": "images/train", "val": "images/val", "names": dict(names or NAMES)},
    )
    return folder / "data.yaml"


def save_model(path: Path, cfg: str = "yolo26n.yaml", names: dict[int, str] | None = None, ch: int = 3) -> Path:
    """Save an untrained detector with believable scores as an Ultralytics checkpoint."""
    names = dict(names or NAMES)
    model = make_model(cfg, len(names), ch)
    model.names = names
    torch.save({"model": model, "train_args": {"task": "detect"}}, path)
    return path


def make_model(cfg: str, nc: int = 3, ch: int = 3) -> DetectionModel:
    """Build a detector whose class scores are spread over (0, 1) as a trained one's are."""
    from ultralytics.cfg import get_cfg

    model = DetectionModel(cfg, ch=ch, nc=nc, verbose=False)
    model.args = get_cfg()
    head = model.model[-1]
    for tower in (*head.cv3, *(getattr(head, "one2one_cv3", None) or ())):
        torch.nn.init.normal_(tower[-1].weight, std=0.5)
        torch.nn.init.constant_(tower[-1].bias, -1.0)
    # Statistics of some images: with those of a fresh BatchNorm, activations die out in eval mode
    with torch.no_grad():
        model.train()(torch.rand(4, ch, 128, 128, generator=torch.Generator().manual_seed(1)))
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum, norm.default_momentum = 1.0, norm.momentum
        model(torch.rand(4, ch, 128, 128, generator=torch.Generator().manual_seed(2)))
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = norm.__dict__.pop("default_momentum")
    return model


def smooth_images(count: int = 8, seed: int = 0) -> torch.Tensor:
    """Return smooth random images, shape (count, 3, 64, 64)."""
    small = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear")


def unwrapped(text: str) -> str:
    """Return a log without the line breaks that fit its sentences to a terminal."""
    return " ".join(text.split())


def begin_quickly(student, teacher, how, *others):
    """Let a student take the teacher's weights without a fit, which takes longer than the rest of a test's training."""
    return beginning.begin(student, teacher, True if how == "auto" and not fits else how, *others)


fits = False  # whether kd_init=auto fits weights, as it does for users
distillation.begin = begin_quickly  # here and not in a fixture: fixtures of other scopes train too


@pytest.fixture(autouse=True)
def fit_if_marked(request) -> None:
    """Let kd_init=auto fit weights in tests that are marked so."""
    global fits
    fits = request.node.get_closest_marker("fits") is not None


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> str:
    """Return the data.yaml of a small drawn data set."""
    return str(draw_dataset(tmp_path_factory.mktemp("data") / "shapes"))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> str:
    """Return the path of a teacher: wider than the student, same classes."""
    torch.manual_seed(0)
    return str(save_model(tmp_path_factory.mktemp("teacher") / "teacher.pt", TEACHER))


@pytest.fixture
def quick(tmp_path, data) -> dict:
    """Return the arguments of a quick training into the test's own folder."""
    return {**QUICK, "data": data, "project": str(tmp_path / "runs"), "name": "run"}


@pytest.fixture
def warnings(monkeypatch):
    """Return the list that the warnings of this package are appended to."""
    sentences: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: sentences.append(record.getMessage())
    LOGGER.addHandler(handler)
    yield sentences
    LOGGER.removeHandler(handler)
