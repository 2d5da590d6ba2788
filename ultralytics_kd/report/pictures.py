"""Val images with the boxes of every model beside each other, and what the models' levels respond to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from ultralytics.data.augment import LetterBox
from ultralytics.utils.ops import xywhr2xyxyxyxy
from ultralytics.utils.patches import imread
from ultralytics.utils.plotting import Annotator

from .. import outputs
from ..config.arguments import GRID_TASKS
from ..teachers.validation import padded_for
from .compared_model import STUDENT, TEACHER, Contestant
from .dense import VOID, Said
from .matching import pairs
from .validation import Objects

CROWD = 10  # more boxes in an image than these: text only on those that are not shared
WIDTH, HEIGHT, STRIP, MARGIN = 420, 1260, 34, 6  # pixels: a panel at most, the strip with its title, the space between
# Okabe and Ito's colours, which colour-blind readers can tell apart (BGR): the same, not the same, labels
AGREED, ALONE, LABEL = (178, 114, 0), (0, 94, 213), (115, 158, 0)


def side_by_side(
    file: str, labels: Objects, seen: Mapping[str, Objects], names: Mapping[int, str], conf: float
) -> np.ndarray:
    """Return an image once for each model, and once with its labels.

    Boxes that teacher and model share (same class, IoU of at least 0.5) are blue, those that only one of them has are
    orange; the teacher's are compared with the student's. In a crowd only the latter are named.

    Args:
        file (str): Image file.
        labels (Objects): Its labels.
        seen (Mapping[str, Objects]): Detections by role, the teacher's among them.
        names (Mapping[int, str]): Class names.
        conf (float): Least confidence of detections that are drawn.
    """
    image = colour_image(file)
    sure = {role: objects.confident(conf) for role, objects in seen.items()}
    panels = []
    for role, objects in sure.items():
        other = sure[STUDENT if role == TEACHER else TEACHER]
        met = {i for i, j, _ in pairs(objects, other) if objects.cls[i] == other.cls[j]}
        colors = [AGREED if i in met else ALONE for i in range(len(objects.cls))]
        panels.append(_panel(image, objects, colors, names, role, with_conf=True))
    panels.append(_panel(image, labels, [LABEL] * len(labels.cls), names, "labels", with_conf=False))
    return in_a_row(panels)


def colour_image(file: str) -> np.ndarray:
    """Return an image file's content in BGR, whatever number of channels it has."""
    image = imread(file)
    if image is None:
        raise FileNotFoundError(file)
    return image if image.shape[2] == 3 else cv2.cvtColor(image[..., :1], cv2.COLOR_GRAY2BGR)


def _panel(
    image: np.ndarray, objects: Objects, colors: Sequence[Any], names: Mapping[int, str], title: str, with_conf: bool
) -> np.ndarray:
    """Return an image of panel width with boxes and a title."""
    small, scale = _small(image)
    # Ultralytics takes another font for an example that this one cannot write
    annotator = Annotator(small, line_width=2, font_size=10, example=str(list(names.values())))
    corners, count = _corners(objects) * scale, len(objects.cls)
    for i in reversed(range(count)):  # the surest on top
        text = names[int(objects.cls[i])] + (f" {objects.conf[i]:.2f}" if with_conf else "")
        if count > CROWD and tuple(colors[i]) != ALONE:
            text = ""
        annotator.box_label(corners[i].tolist(), text, color=tuple(colors[i]))
    return titled(annotator.result(), f"{title} ({count})")


def _small(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return an image that fits into a panel, and how many times its size that is."""
    scale = min(WIDTH / image.shape[1], HEIGHT / image.shape[0])
    size = [max(round(side * scale), 1) for side in image.shape[1::-1]]
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)), scale


def _corners(objects: Objects) -> np.ndarray:
    """Return boxes as four corners, shape (N, 4, 2)."""
    if objects.boxes.shape[1] == 5:
        return np.asarray(xywhr2xyxyxyxy(torch.from_numpy(objects.boxes)))
    x1, y1, x2, y2 = objects.boxes.T
    return np.stack([np.stack(p, -1) for p in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))], 1)


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """Return an image with a title above it."""
    if image.shape[1] < WIDTH:  # of a tall image
        image = cv2.copyMakeBorder(image, 0, 0, 0, WIDTH - image.shape[1], cv2.BORDER_CONSTANT, value=(255,) * 3)
    strip = np.full((STRIP, image.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (4, STRIP - 11), cv2.FONT_HERSHEY_SIMPLEX, 0.62, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate((strip, image))


def in_a_row(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Return panels of one height side by side."""
    space = np.full((panels[0].shape[0], MARGIN, 3), 255, np.uint8)
    row = [part for panel in panels for part in (panel, space)][:-1]
    return np.concatenate(row, axis=1)


def dense_side_by_side(
    file: str, labels: Said, said: Mapping[str, Said], names: Mapping[int, str], task: str
) -> np.ndarray:
    """Return an image once for each model, and once with its labels, each with what is said of it.

    Args:
        file (str): Image file.
        labels (Said): Its labels.
        said (Mapping[str, Said]): What models say, by role.
        names (Mapping[int, str]): Class names.
        task (str): Their task.
    """
    image = colour_image(file)
    if task != "classify":  # maps are of the image as it was padded, or stretched for depth
        image = LetterBox(labels.shape, auto=False, scaleup=True, scale_fill=task == "depth")(image=image)
    small, _ = _small(image)
    near, far = _range(labels, said) if task == "depth" else (0.0, 1.0)
    panels = []
    for role, found in (*said.items(), ("labels", labels)):
        if task == "classify":
            best = int(found.values.argmax())
            text = names[best] if role == "labels" else f"{names[best]} {found.values[best]:.2f}"
            panels.append(titled(small, f"{role}: {text}"))
        else:
            panels.append(titled(_painted(small, found.values, task, near, far), role))
    return in_a_row(panels)


def _painted(image: np.ndarray, values: np.ndarray, task: str, near: float, far: float) -> np.ndarray:
    """Return an image under a map."""
    values = values.astype(np.float32)
    large = cv2.resize(values, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    if task == "semantic":
        annotator = Annotator(image.copy())
        annotator.semantic_mask(large.astype(np.int64), ignore_index=VOID)
        return np.asarray(annotator.result())
    scaled = np.clip((np.log(np.maximum(large, 1e-6)) - near) / max(far - near, 1e-6), 0, 1)
    heat = cv2.applyColorMap((255 - scaled * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    heat[large <= 0] = 0
    return cv2.addWeighted(heat, 0.8, image, 0.2, 0)


def _range(labels: Said, said: Mapping[str, Said]) -> tuple[float, float]:
    """Return the log of the nearest and of the farthest depth that anybody speaks of, so that colours compare."""
    values = np.concatenate([s.values.astype(np.float64).ravel() for s in (labels, *said.values())])
    known = values[values > 0]
    return (float(np.log(known.min())), float(np.log(known.max()))) if len(known) else (0.0, 1.0)


def level_maps(contestant: Contestant, image: Tensor) -> dict[int, np.ndarray] | None:
    """Return how strongly each level that enters a model's head responds to an image, None if it has no such levels.

    Args:
        contestant (Contestant): The model.
        image (Tensor): An image of shape (1, C, H, W) in [0, 1].

    Returns:
        (dict[int, np.ndarray]): By stride, the root mean square over channels of the feature map, shape (h, w).
    """
    teacher = contestant.opened
    if teacher.task not in GRID_TASKS or teacher.layout is None or not isinstance(teacher.original, nn.Module):
        return None
    model = deepcopy(teacher.original).to(image.device).float().eval()
    padded, strides = padded_for(image, max(teacher.layout.strides)), teacher.layout.strides
    with torch.no_grad():
        branch = next(iter(outputs.branches(model(padded)).values()))
    height, width = image.shape[-2:]
    cut = [f[0, :, : -(-height // s), : -(-width // s)] for f, s in zip(branch.feats, strides)]
    return {s: f.float().square().mean(0).sqrt().cpu().numpy() for f, s in zip(cut, strides)}


def responses(contestants: Sequence[Contestant], file: str, imgsz: int, device: torch.device) -> np.ndarray | None:
    """Return the levels of all models over an image: a row for each model, a column for each stride.

    Every map is stretched between its own first and ninety-ninth percentile: where a level responds can be compared
    between models, how much cannot, as features have no unit.

    Args:
        contestants (Sequence[Contestant]): Models.
        file (str): Image file.
        imgsz (int): Side of the image that the models see.
        device (torch.device): Where they run.

    Returns:
        (np.ndarray | None): Picture in BGR; None if no model has levels, or the models do not read colour images.
    """
    if any(each.opened.channels != 3 for each in contestants):
        return None
    image = np.ascontiguousarray(LetterBox((imgsz, imgsz), auto=False)(image=imread(file)))
    tensor = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].to(device).float() / 255
    found = {each.role: maps for each in contestants if (maps := level_maps(each, tensor)) is not None}
    if not found:
        return None
    strides = sorted(set().union(*found.values()))
    side = (WIDTH, WIDTH)
    small = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
    rows = []
    for role, maps in found.items():
        cells = [titled(_heat(small, maps.get(s)), f"{role}, stride {s}") for s in strides]
        rows.append(in_a_row(cells))
    return np.concatenate(rows)


def _heat(image: np.ndarray, strong: np.ndarray | None) -> np.ndarray:
    """Return an image under a map, or a blank one where a model has not that level."""
    if strong is None:
        return np.full_like(image, 245)
    low, high = np.percentile(strong, (1, 99))
    scaled = np.clip((strong - low) / max(high - low, 1e-9), 0, 1)
    large = cv2.resize((scaled * 255).astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return cv2.addWeighted(cv2.applyColorMap(large, cv2.COLORMAP_VIRIDIS), 0.6, image, 0.4, 0)
