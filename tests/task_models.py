"""Models of every task that tests build without training them."""

from __future__ import annotations

import functools
from copy import deepcopy
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.cfg import get_cfg

from ultralytics_kd.config.arguments import GRID_TASKS, TASKS
from ultralytics_kd.demo.shapes import CLASS_NAMES

SUFFIX = {
    "detect": "",
    "segment": "-seg",
    "pose": "-pose",
    "obb": "-obb",
    "classify": "-cls",
    "semantic": "-sem",
    "depth": "-depth",
}
OTHERS = [task for task in TASKS if task != "detect"]  # detection has tests of its own


@functools.cache
def _built(task: str, family: str, seed: int) -> Any:
    torch.manual_seed(seed)
    name = f"{family}{SUFFIX[task]}.yaml"
    kind = type(YOLO(name).model)
    more = {"data_kpt_shape": [5, 3]} if task == "pose" else {}
    model = kind(name, nc=1 if task == "depth" else len(CLASS_NAMES), verbose=False, **more)
    model.names = {0: "depth"} if task == "depth" else dict(enumerate(CLASS_NAMES))
    model.args, model.task = get_cfg(overrides={"task": task}), task
    if task in GRID_TASKS:
        spread_scores(model)
    # Statistics of some images: with those of a fresh BatchNorm, activations die out in eval mode
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum, norm.usual = 1.0, norm.momentum
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 128, 128))
    for norm in norms:
        norm.momentum = norm.__dict__.pop("usual")
    return model


def task_model(task: str, family: str = "yolo26n", seed: int = 0) -> Any:
    """Return an untrained model of a task with the demo's classes, of its own."""
    return deepcopy(_built(task, family, seed))


def spread_scores(model: Any) -> None:
    """Let a detector's class scores spread over (0, 1) as those of a long training do, in place."""
    head = model.model[-1]
    for tower in (*head.cv3, *(getattr(head, "one2one_cv3", None) or ())):
        tower[-1].weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        tower[-1].bias.data.fill_(-1.0)
