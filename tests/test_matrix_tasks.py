"""Arguments that matter for the tasks beside detection, each beside plain Ultralytics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from beside_plain import LIVE, PLAIN, differences, print_row, train
from conftest import MODELS, QUICK
from task_models import OTHERS, SUFFIX, task_model
from ultralytics.utils import YAML

from ultralytics_kd.config.arguments import ARGUMENTS, TASK_WEIGHTS
from ultralytics_kd.demo.tasks import draw_task_dataset

pytestmark = pytest.mark.nightly
HEADS = {
    "segment": [[2, 3, 4], 1, "Segment26", ["nc", 32, 256]],
    "pose": [[2, 3, 4], 1, "Pose26", ["nc", "kpt_shape"]],
    "obb": [[2, 3, 4], 1, "OBB26", ["nc", 1]],
    "classify": [-1, 1, "Classify", ["nc"]],
    "semantic": [[2, 3], 1, "SemanticSegment", ["nc"]],
    "depth": [[2, 3, 4], 1, "Depth", [256]],
}
COMMON: tuple[dict[str, Any], ...] = (
    {},
    {"amp": True},
    {"batch": 3},
    {"cache": "ram"},
    {"degrees": 90.0},
    {"fliplr": 1.0, "flipud": 1.0},
    {"fraction": 3},
    {"freeze": 3},
    {"imgsz": 70},
    {"imgsz": [64, 96]},
    {"multi_scale": 0.5},
    {"plots": True},
    {"rect": True},
    {"single_cls": True},
    {"val": False},
    {"classes": [0, 2]},
    {"mosaic": 0.0},
    {"mixup": 1.0},
)
OWN: dict[str, tuple[dict[str, Any], ...]] = {
    "segment": (
        {"overlap_mask": False},
        {"mask_ratio": 1},
        {"copy_paste": 1.0},
        {"copy_paste": 1.0, "copy_paste_mode": "mixup"},
        {"retina_masks": True},
        {"cutmix": 1.0},
        {"box": 0.0, "cls": 0.0, "dfl": 0.0},
        {"conf": 0.3, "max_det": 3},
        {"save_json": True, "save_txt": True},
    ),
    "pose": ({"pose": 0.0}, {"kobj": 0.0}, {"rle": 0.0}, {"save_json": True}, {"box": 0.0, "cls": 0.0}),
    "obb": (
        {"angle": 0.0},
        {"degrees": 180.0},
        {"copy_paste": 1.0},
        {"cutmix": 1.0},
        {"save_json": True},
        {"conf": 0.3},
    ),
    "classify": (
        {"dropout": 0.5},
        {"auto_augment": "augmix"},
        {"auto_augment": "autoaugment"},
        {"auto_augment": None},
        {"erasing": 1.0},
    ),
    "semantic": ({"copy_paste": 1.0}, {"save_json": True}, {"cls_pw": 1.0}, {"shear": 30.0, "perspective": 0.001}),
    "depth": ({"dlog": 0.5}, {"dgrad": 0.0}, {"dlam": 0.0}, {"save_json": True}),
}


@pytest.fixture(scope="module", params=OTHERS)
def room(request, tmp_path_factory):
    """Return data, student and teacher of a task, all small."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    body = YAML.load(MODELS / "yolo0.yaml")
    extra = {"kpt_shape": [5, 3]} if task == "pose" else {}
    YAML.save(folder / f"yolo0{SUFFIX[task]}.yaml", {**body, **extra, "head": [HEADS[task]]})
    torch.save({"model": task_model(task, str(folder / "yolo0s")), "train_args": {"task": task}}, folder / "teacher.pt")
    return SimpleNamespace(
        task=task,
        data=str(draw_task_dataset(folder / "set", task, 6, 3, 64)),
        student=str(folder / f"yolo0n{SUFFIX[task]}.yaml"),
        teacher=str(folder / "teacher.pt"),
    )


# Ultralytics' own loss of a classifier with one class is 0, and so is the term; a warning says so
WITHOUT_TERMS = ("classify", {"single_cls": True})
CASES = [(task, given) for task in OTHERS for given in (*COMMON, *OWN[task])]


@pytest.mark.parametrize("room, given", CASES, indirect=["room"], ids=[f"{t}-{g}" for t, g in CASES])
def test_task_takes_what_plain_ultralytics_takes(room, given, tmp_path):
    args = {**QUICK, "epochs": 1, "data": room.data, "project": str(tmp_path), **given}
    terms = [name for name in TASK_WEIGHTS[room.task] if ARGUMENTS[name].default]
    terms = [] if (room.task, given) == WITHOUT_TERMS else terms
    plain, live = (train(way, room.student, args, room.teacher) for way in (PLAIN, LIVE))
    wrong = differences(plain, live, terms, () if given.get("val") is False else terms)
    print_row(f"{room.task} {given}", plain, wrong)
    assert not wrong
