"""Predictions of YOLO's detection-like heads at every anchor point: scores, boxes and a task's other outputs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils.tal import dist2bbox, make_anchors

ONE2MANY, ONE2ONE = "one2many", "one2one"
SCORES, BOXES = "scores", "boxes"
COEFFICIENTS, KEYPOINTS, SIGMAS, ANGLES, PROTO = "mask_coefficient", "kpts", "kpts_sigma", "angle", "proto"
EXTRAS = (COEFFICIENTS, KEYPOINTS, SIGMAS, ANGLES)  # outputs of a task's head beside scores and boxes
PADDING = 114 / 255  # the grey that Ultralytics pads images with


@dataclass
class Branch:
    """Raw outputs of one head branch for a batch.

    Attributes:
        scores (Tensor): Class logits of shape (B, A, nc), A anchor points over all levels.
        boxes (Tensor): Box outputs of shape (B, A, 4 * reg_max): distances to the four sides in strides, or bins.
            A part of a teacher's branch that no term reads is empty: (B, A, 0).
        feats (list[Tensor]): Head inputs per level, each of shape (B, C, H, W).
        extras (dict[str, Tensor]): Other outputs of the task's head at every anchor point, of shape (B, A, c):
            "mask_coefficient", "kpts" and "kpts_sigma", or "angle" in radians.
        proto (Tensor | None): Mask prototypes of shape (B, nm, H, W).
    """

    scores: Tensor
    boxes: Tensor
    feats: list[Tensor]
    extras: dict[str, Tensor] = field(default_factory=dict)
    proto: Tensor | None = None


@dataclass(frozen=True)
class FeatureLayout:
    """Feature maps that a model offers.

    Attributes:
        strides (tuple[int, ...]): Stride of each level in pixels.
        channels (tuple[int, ...]): Channels of each level.
        vectors (bool): Whether each map is a single vector for the whole image.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    vectors: bool = False


@dataclass(frozen=True)
class Layout:
    """Layout of a detection-like head.

    Attributes:
        strides (tuple[int, ...]): Stride of each level in pixels.
        channels (tuple[int, ...]): Channels of each level's head input.
        nc (int): Number of classes.
        reg_max (int): Bins per box side; 1 without DFL.
        branches (tuple[str, ...]): `("one2many",)` or `("one2many", "one2one")`.
        task (str): Task of the head.
        kpt_shape (tuple[int, int] | None): Number of keypoints and of values for each, for a pose head.
        kpt_scale (float): Strides per unit of a keypoint's raw output: 2 in YOLOv8's pose head, 1 in YOLO26's. YOLOv8's
            head also measures from the corner of the cell.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    nc: int
    reg_max: int
    branches: tuple[str, ...]
    task: str = "detect"
    kpt_shape: tuple[int, int] | None = None
    kpt_scale: float = 1.0

    @property
    def maps(self) -> FeatureLayout:
        """The head's inputs."""
        return FeatureLayout(self.strides, self.channels)

    @property
    def dfl(self) -> bool:
        """Whether boxes are distributions over bins."""
        return self.reg_max > 1

    def only(self, strides: Sequence[int]) -> Layout:
        """Return the layout with only these levels."""
        index = [self.strides.index(s) for s in strides]
        return replace(self, strides=tuple(strides), channels=tuple(self.channels[i] for i in index))


def common_strides(layouts: Iterable[Layout]) -> tuple[int, ...]:
    """Return the strides that all heads have, in rising order; the tuple may be empty."""
    return tuple(sorted(set.intersection(*(set(each.strides) for each in layouts))))


def branches(preds: Any) -> dict[str, Branch]:
    """Return the branches in a model's raw predictions, in training or in validation.

    A head without an end-to-end branch is trained with many positives per object: its only branch is "one2many".

    Args:
        preds (dict | tuple): Raw predictions, as in training mode, or (decoded, raw), as in eval mode.

    Returns:
        (dict[str, Branch]): One entry per branch.
    """
    return {name: _branch(out) for name, out in raw_branches(preds).items()}


def raw_branches(preds: Any) -> dict[str, dict[str, Any]]:
    """Return the branches in a model's raw predictions as the head returns them, channels first.

    Args:
        preds (dict | tuple): Raw predictions, as `branches` takes them.
    """
    raw = preds[1] if isinstance(preds, tuple) else preds
    raw = raw if ONE2MANY in raw else {ONE2MANY: raw}
    return {name: out for name, out in raw.items() if out}  # a fused head leaves an empty branch


def _branch(out: dict[str, Any]) -> Branch:
    """Return one branch's outputs, channels last."""
    proto = out.get(PROTO)
    return Branch(
        out[SCORES].transpose(1, 2),
        out[BOXES].transpose(1, 2),
        out["feats"],
        {name: out[name].transpose(1, 2) for name in EXTRAS if out.get(name) is not None},
        proto[0] if isinstance(proto, tuple) else proto,  # YOLO26 in training: prototypes and semantic logits
    )


def on_levels(branch: Branch, layout: Layout, strides: Sequence[int]) -> Branch:
    """Return a branch with the anchor points of some levels only.

    Args:
        branch (Branch): Raw outputs of all levels of the layout.
        layout (Layout): The head.
        strides (Sequence[int]): Strides of the levels to keep.
    """
    if tuple(strides) == layout.strides:
        return branch
    sizes = [f.shape[-2] * f.shape[-1] for f in branch.feats]
    kept = [layout.strides.index(s) for s in strides]

    def pick(values: Tensor) -> Tensor:
        """Return the anchor points of the kept levels."""
        levels = values.split(sizes, dim=1)
        return torch.cat([levels[i] for i in kept], dim=1)

    extras = {name: pick(values) for name, values in branch.extras.items()}
    feats = [branch.feats[i] for i in kept]
    return Branch(pick(branch.scores), pick(branch.boxes), feats, extras, branch.proto)


def pad(images: Tensor, stride: int) -> Tensor:
    """Return images padded with grey at their right and lower side, so that their sides are multiples of a stride.

    Args:
        images (Tensor): Images of shape (B, C, H, W) in [0, 1].
        stride (int): Coarsest stride of a model.
    """
    down, right = (-side % stride for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down), value=PADDING) if down or right else images


def crop(branch: Branch, strides: Sequence[int], shape: tuple[int, int], padded: tuple[int, int]) -> Branch:
    """Return a branch's outputs for the upper left part of the images.

    Args:
        branch (Branch): Raw outputs for images that were padded at their right and lower side.
        strides (Sequence[int]): Strides of its levels.
        shape (tuple[int, int]): Height and width of the part, multiples of all strides.
        padded (tuple[int, int]): Height and width of the padded images.
    """
    height, width = shape
    grids = [f.shape[-2:] for f in branch.feats]

    def cut(values: Tensor) -> Tensor:
        """Return per-anchor values of the part."""
        parts = values.split([h * w for h, w in grids], dim=1)
        maps = [part.unflatten(1, tuple(grid)) for part, grid in zip(parts, grids)]
        return torch.cat([m[:, : height // s, : width // s].flatten(1, 2) for m, s in zip(maps, strides)], dim=1)

    feats = [f[..., : height // s, : width // s] for f, s in zip(branch.feats, strides)]
    proto = branch.proto
    if proto is not None:
        scale = proto.shape[-2] / padded[0]
        proto = proto[..., : round(height * scale), : round(width * scale)]
    extras = {name: cut(values) for name, values in branch.extras.items()}
    return Branch(cut(branch.scores), cut(branch.boxes), feats, extras, proto)


def decode(boxes: Tensor, feats: list[Tensor], head_layout: Layout) -> Tensor:
    """Return boxes as x1, y1, x2, y2 in units of each anchor point's stride; x1 <= x2 and y1 <= y2.

    Args:
        boxes (Tensor): Raw box outputs of shape (B, A, 4 * reg_max).
        feats (list[Tensor]): Feature maps that give the grid of each level.
        head_layout (Layout): Layout of the head that made them.

    Returns:
        (Tensor): Boxes of shape (B, A, 4).
    """
    anchor_points, _ = anchors(feats, head_layout)
    return dist2bbox(distances(boxes, head_layout), anchor_points.to(boxes.dtype), xywh=False)


def anchors(feats: list[Tensor], head_layout: Layout) -> tuple[Tensor, Tensor]:
    """Return anchor points (A, 2) in strides and the stride of each (A, 1), in float32.

    Args:
        feats (list[Tensor]): Feature maps that give the grid of each level, in any precision. The grid is
            computed in float32, because bfloat16 cannot hold every column index.
        head_layout (Layout): Layout of the head that made them.

    Returns:
        points (Tensor): The anchor points. Both tensors are shared by all calls with the same grid: do not change them.
        strides (Tensor): The strides.
    """
    sizes = tuple((f.shape[-2], f.shape[-1]) for f in feats)
    return _anchors(sizes, tuple(head_layout.strides), feats[0].device)


@functools.lru_cache(maxsize=32)  # else a GPU waits for the host twice per level; multi_scale needs several grids
def _anchors(
    sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return anchor points and strides for the heights and widths of a head's levels."""
    with torch.inference_mode(False):  # a validation may come first, and a training needs ordinary tensors
        maps = [torch.empty((1, 1, *size), device=device) for size in sizes]
        return make_anchors(maps, strides, 0.5)


def distances(boxes: Tensor, head_layout: Layout) -> Tensor:
    """Return distances of shape (B, A, 4) to left, top, right and bottom side in strides; opposite sides never cross.

    Args:
        boxes (Tensor): Raw box outputs of shape (B, A, 4 * reg_max).
        head_layout (Layout): Layout of the head that made them.
    """
    if head_layout.dfl:
        bins = torch.arange(head_layout.reg_max, device=boxes.device, dtype=boxes.dtype)
        with torch.autocast(boxes.device.type, enabled=False):  # it would cast the product to bfloat16
            boxes = boxes.unflatten(-1, (4, head_layout.reg_max)).softmax(-1) @ bins
    # Without DFL a distance may be negative. It must be negative where the anchor point lies outside a small object's
    # box. If opposite sides cross, the IoU is meaningless: both move to the middle, and a gradient can part them again.
    left_top, right_bottom = boxes.chunk(2, -1)
    crossing = (-(left_top + right_bottom)).clamp(min=0).detach() / 2
    return torch.cat((left_top + crossing, right_bottom + crossing), -1)


def pixels(branch: Branch, head_layout: Layout) -> Tensor:
    """Return a branch's boxes (B, A, 4) as x1, y1, x2, y2 in pixels of the image that the model saw, float32."""
    return decode(branch.boxes.float(), branch.feats, head_layout) * anchors(branch.feats, head_layout)[1]


def level_scores(scores: Tensor, feats: list[Tensor]) -> list[Tensor]:
    """Split per-anchor values of shape (B, A) into one (B, 1, H, W) map per level."""
    sizes = [f.shape[-2:] for f in feats]
    parts = scores.split([h * w for h, w in sizes], dim=1)
    return [part.view(-1, 1, h, w) for part, (h, w) in zip(parts, sizes)]


def take_images(preds: Any, count: int, batch: int) -> Any:
    """Return a model's raw predictions for the first images of a batch.

    Args:
        preds (Any): Predictions: tensors with the batch first, in tuples, lists and dicts of any depth.
        count (int): Number of images to keep.
        batch (int): Number of images in the batch; tensors of another length are kept as they are.
    """
    if isinstance(preds, Tensor):
        return preds[:count] if preds.ndim and preds.shape[0] == batch else preds
    if isinstance(preds, dict):
        return {name: take_images(value, count, batch) for name, value in preds.items()}
    if isinstance(preds, (list, tuple)):
        return type(preds)(take_images(value, count, batch) for value in preds)
    return preds
