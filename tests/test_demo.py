"""The demo: its drawn images, its threads, and a small complete run."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import STUDENT, save_model
from ultralytics.utils import YAML

from ultralytics_kd import KDError
from ultralytics_kd.demo import comparison, run_demo, threads
from ultralytics_kd.demo.comparison import draw_comparison
from ultralytics_kd.demo.shapes import CLASS_NAMES, draw_dataset, draw_scene, outline_box, shape_outline
from ultralytics_kd.demo.tasks import draw_task_dataset


def test_the_same_seed_draws_the_same_images():
    a, b = (draw_scene(np.random.default_rng(3), 96) for _ in range(2))
    other = draw_scene(np.random.default_rng(4), 96)
    assert np.array_equal(a.image, b.image) and np.array_equal(a.boxes, b.boxes)
    assert not np.array_equal(a.image, other.image)


def test_labels_are_valid_and_every_class_is_drawn(tmp_path):
    data = YAML.load(draw_dataset(tmp_path, train_images=40, val_images=10, size=64))
    assert data["names"] == dict(enumerate(CLASS_NAMES))
    rows = [
        [float(x) for x in line.split()]
        for file in (tmp_path / "labels").rglob("*.txt")
        for line in file.read_text().splitlines()
    ]
    labels = np.array(rows)
    assert set(labels[:, 0]) == set(range(len(CLASS_NAMES)))
    low, high = labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 1:3] + labels[:, 3:] / 2
    assert low.min() > -1e-3 and high.max() < 1 + 1e-3
    assert labels[:, 3:].max(1).max() / labels[:, 3:].max(1).min() > 3.5
    assert len(list((tmp_path / "images" / "train").glob("*.png"))) == 40


def test_only_the_given_classes_are_drawn_and_labelled_by_their_place(tmp_path):
    data = YAML.load(draw_dataset(tmp_path, train_images=12, val_images=1, size=64, classes=("frame", "disc")))
    assert data["names"] == {0: "frame", 1: "disc"}
    files = (tmp_path / "labels" / "train").glob("*.txt")
    assert {line.split()[0] for file in files for line in file.read_text().splitlines()} == {"0", "1"}
    shapes = {name: set() for name in ("frame", "disc")}
    for i in range(12):
        scene = draw_scene(np.random.default_rng(i), 64, classes=("frame", "disc"))
        for cls, outline in zip(scene.cls, scene.outlines):
            shapes[("frame", "disc")[cls]].add(tuple(len(contour) for contour in outline))
    assert shapes == {"frame": {(4, 4)}, "disc": {(64,)}}


def test_boxes_are_named_by_the_classes_of_the_models(tmp_path, monkeypatch):
    names = {0: "frame", 1: "disc"}
    draw_dataset(tmp_path, train_images=0, val_images=4, size=64, classes=tuple(names.values()))
    drawn = []
    monkeypatch.setattr(comparison.Annotator, "box_label", lambda self, box, label, **_: drawn.append(label))
    weights = {"model": save_model(tmp_path / "model.pt", STUDENT, names)}
    draw_comparison(weights, tmp_path / "images" / "val", tmp_path / "drawn.png", imgsz=64, rows=4, tile=100)
    assert set(drawn) == {"frame", "disc"}
    assert cv2.imread(str(tmp_path / "drawn.png")).shape == (36 + 4 * 100, 2 * 100, 3)


def test_the_place_of_a_pixel_does_not_predict_its_depth(tmp_path):
    draw_task_dataset(tmp_path, "depth", train_images=120, val_images=40, size=64)
    train, val = (
        np.stack([cv2.imread(str(f), cv2.IMREAD_UNCHANGED) / 1000 for f in (tmp_path / "depth" / split).glob("*.png")])
        for split in ("train", "val")
    )
    assert val.min() >= 0.5 and val.max() <= 12
    mean = np.exp(np.log(train).mean(0))  # predicts the same depth for every image
    guess = mean * np.median(val, axis=(1, 2), keepdims=True) / np.median(mean)
    assert (np.maximum(guess / val, val / guess) < 1.25).mean() < 0.6


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_box_is_tight_around_the_drawn_shape(name):
    outline = shape_outline(name, np.array([50.0, 40.0]), side=30, angle=0.7, aspect=0.8)
    mask = np.zeros((100, 100), np.uint8)
    cv2.fillPoly(mask, [np.round(outline[0]).astype(np.int32)], 255)
    ys, xs = np.nonzero(mask)
    box = outline_box(outline)
    assert np.abs(box - [xs.min(), ys.min(), xs.max(), ys.max()]).max() <= 1
    assert max(box[2] - box[0], box[3] - box[1]) == pytest.approx(30)


@pytest.mark.slow
def test_demo_saves_weights_picture_and_the_figures_that_it_prints(tmp_path, caplog):
    from ultralytics.utils import LOGGER

    LOGGER.propagate = True
    result = run_demo(
        {
            "project": str(tmp_path), "teacher_model": "yolo26n.yaml", "train_images": 16, "val_images": 6,
            "epochs": 1, "teacher_epochs": 1, "imgsz": 64, "batch": 8, "kd_cls": 0.5,
        }
    )  # fmt: skip
    LOGGER.propagate = False
    folder = Path(result["save_dir"])
    assert json.loads((folder / "results.json").read_text()) == result
    for name, arm in result["arms"].items():
        assert Path(arm["weights"]).is_file() and arm["seconds"] > 0 and arm["parameters"] > 2e6
        assert f"{arm['map50_95']:.4f}" in caplog.text.rpartition("Demo:")[2]
        args = YAML.load(folder / name / "args.yaml")
        assert args["epochs"] == 1 and args.get("kd_cls") == (0.5 if name == "distilled" else None)
    assert YAML.load(folder / "distilled" / "args.yaml")["teacher"] == result["arms"]["teacher"]["weights"]
    assert cv2.imread(result["picture"]).shape == (36 + 5 * 320, 4 * 320, 3)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"epoch": 1}, "epochs"),
        ({"train_images": 0}, "train_images=0"),
        ({"val_images": 1.5}, "val_images=1.5"),
        ({"teacher_epochs": "x"}, "teacher_epochs=x"),
        ({"epochs": 0}, "epochs=0"),
        ({"teacher": "x.pt"}, "the demo takes no 'teacher'"),
        ({"data": "x.yaml"}, "the demo takes no 'data'"),
        ({"model": "yolo26n-seg.yaml"}, "is not the architecture"),
        ({"teacher_model": "yolo26s.pt"}, "is not the architecture"),
        ({"kd_cls": 0, "kd_box": 0}, "all distillation weights are 0"),
        ({"lr0": "fast"}, "lr0=fast"),
    ],
)
def test_bad_argument_is_an_error_before_anything_is_drawn(tmp_path, given, message):
    with pytest.raises((KDError, SyntaxError), match=message):
        run_demo({"project": str(tmp_path / "new"), **given})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "others, expected",
    [(0.0, 4), (0.4, 4), (1.1, 3), (2.6, 1), (4.0, 1)],  # cores that other processes use, and threads for the demo
)
def test_demo_trains_on_the_cores_that_other_processes_leave_idle(monkeypatch, others, expected):
    clock = Clock(monkeypatch, cores=4)
    callback = threads.IdleCores()
    for _ in range(4):
        clock.run(seconds=0.4, own=1.0, others=others)
        callback(clock)
    assert clock.threads == [expected]  # measured once a second


def test_demo_takes_all_cores_again_when_other_processes_end(monkeypatch):
    clock = Clock(monkeypatch, cores=2)
    callback = threads.IdleCores()
    for others in (0.0, 1.2, 0.0):
        clock.run(seconds=1.0, own=2.0 - others, others=others)
        callback(clock)
    assert clock.threads == [2, 1, 2]


def test_demo_leaves_the_threads_alone_on_a_gpu(monkeypatch):
    clock = Clock(monkeypatch, cores=4)
    callback = threads.IdleCores()
    clock.device = torch.device("cuda")
    clock.run(seconds=9.0, own=1.0, others=0.0)
    callback(clock)
    assert clock.threads == []


class Clock:
    """A trainer on the CPU, with a clock and a load that the test sets."""

    device = torch.device("cpu")

    def __init__(self, monkeypatch, cores: int):
        self.cores, self.now, self.own, self.busy, self.threads = cores, 100.0, 50.0, 0.0, []
        self.asked = (self.now, self.busy)
        monkeypatch.setattr(threads.os, "cpu_count", lambda: cores)
        monkeypatch.setattr(threads.torch, "set_num_threads", self.threads.append)
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(threads.time, "process_time", lambda: self.own)
        monkeypatch.setattr(threads.psutil, "cpu_percent", self.percent)

    def run(self, seconds: float, own: float, others: float) -> None:
        """Let time pass, in which this and other processes use so many cores."""
        self.now, self.own = self.now + seconds, self.own + own * seconds
        self.busy += min(self.cores, own + others) * seconds

    def percent(self) -> float:
        """Return the load of all cores since the last call, as psutil does."""
        (then, busy), self.asked = self.asked, (self.now, self.busy)
        return 100 * (self.busy - busy) / (self.now - then) / self.cores if self.now > then else 0.0


def test_a_smaller_set_in_the_folder_of_a_larger_one_has_its_own_images_alone(tmp_path):
    draw_dataset(tmp_path, 6, 4, 64)
    (tmp_path / "images/train/mine.png").touch()
    draw_dataset(tmp_path, 3, 4, 64)
    for place, suffix in (("images", "png"), ("labels", "txt")):
        names = {file.name for file in (tmp_path / place / "train").glob(f"0*.{suffix}")}
        assert names == {f"0000{i}.{suffix}" for i in range(3)}
    assert (tmp_path / "images/train/mine.png").exists()
