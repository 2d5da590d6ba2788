"""Training images for a fit before the training, drawn without touching its random streams."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.utils import LOCAL_RANK
from ultralytics.utils.patches import override_configs

from .random_streams import random_state, set_random_state

PIXELS = 128 * 128 * 128  # of all images together: 128 images at 128 px
FEWEST, MOST = 16, 128


def calibration_images(trainer: Any) -> Tensor:
    """Return augmented training images as the student will see them, shape (N, C, H, W), on the training's device.

    Args:
        trainer (BaseTrainer): The trainer, its data set and model known.
    """
    count = min(max(PIXELS // int(trainer.args.imgsz) ** 2, FEWEST), MOST)
    state = random_state(trainer.device, {})
    try:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(trainer.args.seed)
        with override_configs(trainer.args, {"cache": False, "workers": 0}):
            loader = trainer.get_dataloader(trainer.data["train"], batch_size=FEWEST, rank=LOCAL_RANK, mode="train")
            images: list[Tensor] = []
            for batch in loader:
                images.append(batch["img"])
                if len(images) * FEWEST >= count:
                    break
    finally:
        set_random_state(state, trainer.device, {})
    joined = torch.cat(images)[:count].to(trainer.device)
    return joined.float() / 255 if joined.dtype == torch.uint8 else joined.float()
