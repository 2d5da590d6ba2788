"""Make a student from two checkpoints: the mean of their weights, as of published weights and a fine-tuned teacher.

    python examples/study/average.py yolo26n.pt teacher.pt mean.pt

What both have in the same shape is averaged (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022,
https://arxiv.org/abs/2109.01903). The rest, such as the class scores of a head for other classes, is the second one's.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

import torch
from ultralytics import YOLO


def average(first: Any, second: Any) -> Any:
    """Return the second model with the mean of both models' weights where they have the same shape.

    Args:
        first (nn.Module): One model; neither is changed.
        second (nn.Module): The other model, whose classes the result has.
    """
    mean, others = deepcopy(second).float(), {name: value.float() for name, value in first.state_dict().items()}
    weights = mean.state_dict()
    shared = [n for n, w in weights.items() if w.is_floating_point() and n in others and others[n].shape == w.shape]
    mean.load_state_dict({**weights, **{name: (weights[name] + others[name]) / 2 for name in shared}})
    return mean


if __name__ == "__main__":
    one, other, target = sys.argv[1:4]
    model: Any = YOLO(other).model
    torch.save({"model": average(YOLO(one).model, model), "train_args": dict(model.args)}, target)
