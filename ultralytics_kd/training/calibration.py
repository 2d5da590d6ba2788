"""Training batches for `kd_init`, drawn before the training without touching its random streams."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ultralytics.utils import LOCAL_RANK
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.patches import override_configs
from ultralytics.utils.torch_utils import unwrap_model

from ..config.teacher_size import SIDES
from ..logs import quietly
from .run.random_streams import streams_kept

PIXELS = 128 * 128 * 128  # of all images together: 128 images at 128 px
AT_A_TIME = 2**18  # pixels of a batch, on which a big teacher runs in float32
FEWEST, MOST = 16, 128


def calibration_batches(trainer: Any, prepare: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return batches of augmented training images as the student will see them, on the training's device.

    Args:
        trainer (BaseTrainer): The trainer, its data set and model known.
        prepare (Callable): Prepares a batch of its loader: `preprocess_batch` of Ultralytics' trainer.

    Returns:
        (list[dict]): Batches; their images have one size, shape (n, C, H, W), values in [0, 1].
    """
    stride = max(int(unwrap_model(trainer.model).stride.max()), SIDES)
    with quietly():  # Ultralytics rounds the size later, and says so
        side = check_imgsz(trainer.args.imgsz, stride=stride, floor=stride, max_dim=1)
    count = min(max(PIXELS // side**2, FEWEST), MOST)
    batch_size = min(max(AT_A_TIME // side**2, 1), FEWEST)
    batches: list[dict[str, Any]] = []
    with streams_kept(trainer.device):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(trainer.args.seed)
        plain = {"cache": False, "workers": 0, "multi_scale": 0.0, "rect": False, "imgsz": side}
        with override_configs(trainer.args, plain):
            with quietly():  # the training opens the same images again, and says so
                loader = trainer.get_dataloader(trainer.data["train"], batch_size, rank=LOCAL_RANK, mode="train")
            for batch in loader:
                batches.append(prepare(batch))
                if len(batches) * batch_size >= count:
                    break
    return batches
