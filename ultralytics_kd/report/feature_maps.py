"""Pictures of each model's feature maps: how strongly each level responds to an image."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from ultralytics.data.augment import LetterBox
from ultralytics.utils.patches import imread

from .. import outputs
from ..config.arguments import GRID_TASKS
from .compared_model import ComparedModel
from .pictures import WIDTH, in_a_row, titled


def draw_feature_maps(
    models: Sequence[ComparedModel], file: str, imgsz: int, device: torch.device
) -> np.ndarray | None:
    """Return the feature maps of all models over an image: a row for each model, a column for each stride.

    The colours of each map run from its own 1st to its own 99th percentile. Compare where a level responds, not how
    strongly: features have no unit.

    Args:
        models (Sequence[ComparedModel]): Models.
        file (str): Image file.
        imgsz (int): Side in pixels of the input of models that have no size of their own.
        device (torch.device): Where the models run.

    Returns:
        (np.ndarray | None): Picture in BGR; None if no model has levels, or the models do not read colour images.
    """
    if any(model.loaded.channels != 3 for model in models):
        return None
    by_role = {}
    for model in models:
        tensor = _tensor(_letterboxed(file, model.imgsz or imgsz), device)
        if (maps := feature_strength(model, tensor)) is not None:
            by_role[model.role] = maps
    if not by_role:
        return None
    strides = sorted(set().union(*by_role.values()))
    small = cv2.resize(_letterboxed(file, imgsz), (WIDTH, WIDTH), interpolation=cv2.INTER_AREA)
    rows = []
    for role, maps in by_role.items():
        panels = [titled(_heat_map(small, maps.get(s)), f"{role}, stride {s}") for s in strides]
        rows.append(in_a_row(panels))
    return np.concatenate(rows)


def _letterboxed(file: str, side: int) -> np.ndarray:
    """Return an image file in BGR, padded to a square with sides of `side` pixels."""
    return np.ascontiguousarray(LetterBox((side, side), auto=False)(image=imread(file)))


def _tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """Return an image in BGR as a batch of one, shape (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].to(device).float() / 255


def feature_strength(model: ComparedModel, image: Tensor) -> dict[int, np.ndarray] | None:
    """Return how strongly each feature map at a model's head responds to an image, None if there are no such maps.

    Args:
        model (ComparedModel): The model.
        image (Tensor): An image of shape (1, C, H, W) in [0, 1].

    Returns:
        (dict[int, np.ndarray]): By stride, the root mean square over channels of the feature map, shape (h, w).
    """
    loaded = model.loaded
    if loaded.task not in GRID_TASKS or loaded.layout is None or not isinstance(loaded.original, nn.Module):
        return None
    network = deepcopy(loaded.original).to(image.device).float().eval()
    strides = loaded.layout.strides
    with torch.no_grad():
        branches = outputs.branches(network(outputs.pad(image, max(strides))))
    features = next(iter(branches.values())).feats
    height, width = image.shape[-2:]
    cropped = [f[0, :, : -(-height // s), : -(-width // s)] for f, s in zip(features, strides)]
    return {s: f.float().square().mean(0).sqrt().cpu().numpy() for f, s in zip(cropped, strides)}


def _heat_map(image: np.ndarray, strength: np.ndarray | None) -> np.ndarray:
    """Return a map over an image; a blank picture for None, if the model lacks the level."""
    if strength is None:
        return np.full_like(image, 245)
    low, high = np.percentile(strength, (1, 99))
    scaled = np.clip((strength - low) / max(high - low, 1e-9), 0, 1)
    large = cv2.resize((scaled * 255).astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return cv2.addWeighted(cv2.applyColorMap(large, cv2.COLORMAP_VIRIDIS), 0.6, image, 0.4, 0)
