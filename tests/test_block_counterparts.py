"""`kd_init=fit` where the teacher's inner blocks are of another layout than the student's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from ultralytics_kd.outputs.block_counterparts import block_targets
from ultralytics_kd.outputs.channel_picks import Picks, evenly
from ultralytics_kd.outputs.norm_statistics import measure_statistics
from ultralytics_kd.outputs.weight_selection import select_weights


def images(count: int = 16) -> torch.Tensor:
    """Return smooth random images."""
    small = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(small, size=(64, 64), mode="bilinear")


def build(scale: str, depth: float, width: float, seed: int = 0) -> DetectionModel:
    """Build a small detector; at scale m all its C3k2 have C3k, at n only the second."""
    cfg = {
        "nc": 3,
        "reg_max": 1,
        "scale": scale,
        "scales": {scale: [depth, width, 1024]},
        "backbone": [
            [-1, 1, "Conv", [32, 3, 2]],
            [-1, 1, "Conv", [64, 3, 2]],
            [-1, 2, "C3k2", [64, False, 0.25]],
            [-1, 1, "Conv", [128, 3, 2]],
            [-1, 2, "C3k2", [128, True]],
            [-1, 1, "Conv", [128, 3, 2]],
        ],
        "head": [[[2, 4, 5], 1, "Detect", ["nc"]]],
    }
    torch.manual_seed(seed)
    model = DetectionModel(cfg, verbose=False)
    measure_statistics(model, images())
    return model.eval()


def fresh(model: DetectionModel) -> DetectionModel:
    """Return a model with BatchNorms as new ones."""
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
    return model


def test_a_bottleneck_stands_for_a_c3k():
    student, teacher = build("n", 0.5, 0.5), build("m", 1.0, 1.0)  # the second C3k2 has C3k in both
    targets = block_targets(Picks(student, teacher))
    assert {name: target.source for name, target in targets.items()} == {
        "model.2.m.0.cv1.conv": "model.2.m.0.m.0.cv1.conv",
        "model.2.m.0.cv2.conv": "model.2.m.0.cv3.conv",
    }
    last = targets["model.2.m.0.cv2.conv"]
    assert torch.equal(last.channels, torch.arange(8)) and torch.equal(last.taken, evenly(8, 16))


def test_blocks_of_equal_layout_have_no_other_targets():
    assert block_targets(Picks(build("m", 0.5, 0.5), build("m", 1.0, 1.0))) == {}


def outputs(model: nn.Module, name: str) -> torch.Tensor:
    """Return what a module puts out on the images."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        model.eval()(images())
    hook.remove()
    return seen[0]


@pytest.mark.core
def test_a_block_without_a_counterpart_is_fitted_to_what_the_teachers_block_puts_out():
    """A random teacher of the student's width: its other layers are recovered, its C3k can be only in part."""
    teacher, student = build("m", 1.0, 0.5), fresh(build("n", 0.5, 0.5, seed=1))
    its = outputs(teacher, "model.2.m.0.cv3")
    spread = (its - its.mean((0, 2, 3), keepdim=True)).square().mean()
    total, selected = sum(p.numel() for p in student.parameters()), select_weights(student, teacher)
    random = (outputs(student, "model.2.m.0.cv2") - its).square().mean() / spread
    assert selected < total
    assert select_weights(student, teacher, images=images()) == total
    fitted = (outputs(student, "model.2.m.0.cv2") - its).square().mean() / spread
    assert fitted < 0.85 < 1 < random
