"""Small untrained models of YOLO-World and YOLOE, and a text encoder that needs no weights."""

from __future__ import annotations

import sys
import types
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MODELS
from ultralytics.nn import tasks
from ultralytics.utils import YAML

# By kind: model, layers after the five convolutions, and values over those of the tiny detector
KINDS: dict[str, tuple[type, list, dict[str, Any]]] = {
    "yoloe": (tasks.YOLOEModel, [[[2, 3, 4], 1, "YOLOEDetect", ["nc", 512, True]]], {"end2end": False, "reg_max": 16}),
    "yoloe26": (tasks.YOLOEModel, [[[2, 3, 4], 1, "YOLOEDetect", ["nc", 512, True]]], {}),
    "yoloe-seg": (
        tasks.YOLOESegModel,
        [[[2, 3, 4], 1, "YOLOESegment", ["nc", 32, 256, 512, True]]],
        {"end2end": False, "reg_max": 16},
    ),
    "yoloe26-seg": (tasks.YOLOESegModel, [[[2, 3, 4], 1, "YOLOESegment26", ["nc", 32, 256, 512, True]]], {}),
    "world": (
        tasks.WorldModel,
        [
            [2, 1, "C2fAttn", [256, 32, 1]],
            [[5, 3, 4], 1, "ImagePoolingAttn", [256]],
            [3, 1, "C2fAttn", [256, 32, 1]],
            [[5, 7, 4], 1, "WorldDetect", ["nc", 512, False]],
        ],
        {"end2end": False, "reg_max": 16},
    ),
    "worldv2": (
        tasks.WorldModel,
        [[2, 1, "C2fAttn", [256, 32, 1]], [[5, 3, 4], 1, "WorldDetect", ["nc", 512, True]]],
        {"end2end": False, "reg_max": 16},
    ),
}


def prompted_model(kind: str, nc: int = 3) -> Any:
    """Build a model whose scores are spread over (0, 1) for random texts."""
    model_class, layers, more = KINDS[kind]
    body = {**YAML.load(MODELS / "yolo0.yaml"), **more, "head": layers, "scale": "s"}
    torch.manual_seed(0)
    model = model_class(body, nc=nc, verbose=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(0.05)
        if type(module).__name__ in {"ContrastiveHead", "BNContrastiveHead"}:
            module.bias.data.fill_(-1.0)
            module.logit_scale.data.fill_(1.0)
    model.args = {"task": "segment" if "seg" in kind else "detect", "imgsz": 64}
    model.names = {i: f"class {i}" for i in range(nc)}
    return model


def save_prompted(path: Path, kind: str = "yoloe26-seg", model: Any = None) -> str:
    """Save such a model as a checkpoint, and return its path."""
    model = prompted_model(kind) if model is None else model
    torch.save({"model": model, "train_args": dict(model.args)}, path)
    return str(path)


class TextEncoder(torch.nn.Module):
    """Returns a fixed vector of length 1 for each text."""

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[sum(i * ord(c) for i, c in enumerate(text, 1))] for text in texts])

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        seeded = [torch.Generator().manual_seed(int(token)) for token in tokens]
        return torch.nn.functional.normalize(torch.stack([torch.randn(512, generator=g) for g in seeded]), dim=-1)


def put_encoder(patch: pytest.MonkeyPatch) -> Any:
    """Put the encoder in the place of those that Ultralytics loads; return which were asked for, and those alive."""
    patch.setitem(sys.modules, "clip", types.ModuleType("clip"))  # Ultralytics' module of encoders imports it
    import ultralytics.nn.text_model as text_model

    loaded = types.SimpleNamespace(names=[], alive=weakref.WeakSet())

    def build(name: str, device: Any = None) -> TextEncoder:
        encoder = TextEncoder()
        loaded.names.append(name)
        loaded.alive.add(encoder)
        return encoder

    patch.setattr(text_model, "build_text_model", build)
    return loaded
