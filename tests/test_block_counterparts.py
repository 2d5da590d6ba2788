"""`kd_init=fit` where the teacher has more inner blocks than the student, or blocks of another layout."""

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


@pytest.fixture(scope="module")
def teacher():
    return build("m", 1.0, 1.0)  # two C3k in each of its C3k2


@pytest.fixture(scope="module")
def student():
    return fresh(build("n", 0.5, 0.5, seed=1))  # a Bottleneck in the first, a C3k in the second


def test_the_last_convolution_stands_for_the_last_block_of_the_teacher(student, teacher):
    targets = block_targets(Picks(student, teacher))
    sources = {name: target.source for name, target in targets.items()}
    assert sources == {
        "model.2.m.0.cv1.conv": "model.2.m.0.m.0.cv1.conv",
        "model.2.m.0.cv2.conv": "model.2.m.1.cv3.conv",
        "model.4.m.0.cv3.conv": "model.4.m.1.cv3.conv",
    }
    last = targets["model.2.m.0.cv2.conv"]
    assert torch.equal(last.channels, torch.arange(8)) and torch.equal(last.taken, evenly(8, 16))


def test_each_of_several_blocks_stands_for_its_share_of_the_chain(teacher):
    twice, four = build("n", 1.0, 0.5), build("n", 2.0, 1.0)
    sources = {name: target.source for name, target in block_targets(Picks(twice, four)).items()}
    assert sources["model.2.m.0.cv2.conv"] == "model.2.m.1.cv2.conv"
    assert sources["model.2.m.1.cv1.conv"] == "model.2.m.2.cv1.conv"
    assert sources["model.2.m.1.cv2.conv"] == "model.2.m.3.cv2.conv"
    assert "model.2.m.0.cv1.conv" not in sources  # the teacher's first one, as selected


def test_blocks_of_equal_layout_and_number_have_no_other_targets(teacher):
    assert block_targets(Picks(build("m", 1.0, 0.5), teacher)) == {}


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
    """A random teacher of the student's width: its other layers are recovered, its two C3k can be only in part."""
    teacher, student = build("m", 1.0, 0.5), fresh(build("n", 0.5, 0.5, seed=1))
    its = outputs(teacher, "model.2.m.1.cv3")
    spread = (its - its.mean((0, 2, 3), keepdim=True)).square().mean()
    total, selected = sum(p.numel() for p in student.parameters()), select_weights(student, teacher)
    random = (outputs(student, "model.2.m.0.cv2") - its).square().mean() / spread
    assert selected < total
    assert select_weights(student, teacher, images=images()) == total
    fitted = (outputs(student, "model.2.m.0.cv2") - its).square().mean() / spread
    assert fitted < 0.85 < 1 < random
