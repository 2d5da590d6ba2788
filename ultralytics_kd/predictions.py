"""One view of raw YOLO head outputs, student's or teacher's; the only file that knows how a head lays them out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect, v10Detect
from ultralytics.utils.tal import dist2bbox, make_anchors
from ultralytics.utils.torch_utils import unwrap_model

from .errors import KDError

ONE2MANY, ONE2ONE = "one2many", "one2one"
SCORES, BOXES = "scores", "boxes"


@dataclass
class Branch:
    """Raw outputs of one head branch for a batch.

    Attributes:
        scores (Tensor): Class logits of shape (B, A, nc), A anchor points over all levels.
        boxes (Tensor): Box outputs of shape (B, A, 4 * reg_max): distances to the four sides in strides, or bins.
            A part of the teacher's that no term reads is empty: (B, A, 0).
        feats (list[Tensor]): Head inputs per level, each of shape (B, C, H, W).
    """

    scores: Tensor
    boxes: Tensor
    feats: list[Tensor]


@dataclass(frozen=True)
class Layout:
    """What a detection head looks like.

    Attributes:
        strides (tuple[int, ...]): Stride of each level in pixels.
        channels (tuple[int, ...]): Channels of each level's head input.
        nc (int): Number of classes.
        reg_max (int): Bins per box side; 1 without DFL.
        branches (tuple[str, ...]): `("one2many",)` or `("one2many", "one2one")`.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    nc: int
    reg_max: int
    branches: tuple[str, ...]

    @property
    def dfl(self) -> bool:
        """Whether boxes are distributions over bins."""
        return self.reg_max > 1


def detect_head(model: nn.Module) -> Detect:
    """Return the detection head of a model.

    Raises:
        KDError: If the model has none, or its head lost a branch by `fuse()`.
    """
    layers = getattr(unwrap_model(model), "model", None)
    head: Any = layers[-1] if isinstance(layers, nn.Sequential) else None
    if type(head) not in {Detect, v10Detect}:  # subclasses predict more, or with prompts
        kind = type(head).__name__ if head is not None else type(model).__name__
        raise KDError(f"a YOLO detection head is needed for distillation, this model ends in '{kind}'.")
    # fuse() sets the branch that it drops to None; one that a head never had is no attribute at all
    if head.cv2 is None or head.cv3 is None or ("one2one_cv2" in vars(head)["_modules"] and head.one2one_cv2 is None):
        raise KDError(
            "the model was fused for inference and lost a head branch: use the checkpoint that train() saved."
        )
    return head


def layout(model: nn.Module) -> Layout:
    """Return the layout of a detection model's head."""
    head = detect_head(model)
    return Layout(
        strides=tuple(int(s) for s in head.stride.tolist()),
        channels=tuple(first_conv(tower).in_channels for tower in head.cv2),
        nc=head.nc,
        reg_max=head.reg_max,
        branches=(ONE2MANY, ONE2ONE) if getattr(head, "one2one_cv2", None) is not None else (ONE2MANY,),
    )


def branches(preds: Any) -> dict[str, Branch]:
    """Return the branches in a model's raw predictions, of training or of validation.

    A head without an end-to-end branch is trained with many positives per object, so its only branch is "one2many".

    Args:
        preds (dict | tuple): What a detection model returns in training mode, or (decoded, raw) in eval mode.

    Returns:
        (dict[str, Branch]): One entry per branch.
    """
    raw = preds[1] if isinstance(preds, tuple) else preds
    raw = raw if ONE2MANY in raw else {ONE2MANY: raw}
    return {
        name: Branch(out["scores"].transpose(1, 2), out["boxes"].transpose(1, 2), out["feats"])
        for name, out in raw.items()
        if out  # a fused head leaves an empty branch
    }


def join(parts: list[dict[str, Branch]]) -> dict[str, Branch]:
    """Return the outputs of a batch from those of its parts; branches of one model share their features."""
    if len(parts) == 1:
        return parts[0]
    feats = [torch.cat(level) for level in zip(*(next(iter(part.values())).feats for part in parts))]
    return {
        name: Branch(torch.cat([p[name].scores for p in parts]), torch.cat([p[name].boxes for p in parts]), feats)
        for name in parts[0]
    }


def decode(boxes: Tensor, feats: list[Tensor], head_layout: Layout) -> Tensor:
    """Return boxes as x1, y1, x2, y2 in units of each anchor point's own stride, never inside out.

    Args:
        boxes (Tensor): Raw box outputs of shape (B, A, 4 * reg_max).
        feats (list[Tensor]): Feature maps that give the grid of each level.
        head_layout (Layout): Layout of the head that made them.

    Returns:
        (Tensor): Boxes of shape (B, A, 4).
    """
    anchor_points, _ = make_anchors(feats, head_layout.strides, 0.5)
    if head_layout.dfl:
        bins = torch.arange(head_layout.reg_max, device=boxes.device, dtype=boxes.dtype)
        boxes = boxes.unflatten(-1, (4, head_layout.reg_max)).softmax(-1) @ bins
    # Without DFL a distance may be negative: rightly so where the anchor point lies outside a small object's box. Where
    # opposite sides cross, though, the box is inside out and its IoU nonsense: it shrinks to its middle, and passes the
    # gradient on, so that it can open.
    left_top, right_bottom = boxes.chunk(2, -1)
    missing = (-(left_top + right_bottom)).clamp(min=0).detach() / 2
    boxes = torch.cat((left_top + missing, right_bottom + missing), -1)
    return dist2bbox(boxes, anchor_points.to(boxes.dtype), xywh=False)


def pixels(branch: Branch, head_layout: Layout) -> Tensor:
    """Return a branch's boxes (B, A, 4) as x1, y1, x2, y2 in pixels of the image that the model saw, float32."""
    _, strides = make_anchors(branch.feats, head_layout.strides, 0.5)
    return decode(branch.boxes.float(), branch.feats, head_layout) * strides.float()


def level_scores(scores: Tensor, feats: list[Tensor]) -> list[Tensor]:
    """Split per-anchor values of shape (B, A) into one (B, 1, H, W) map per level."""
    sizes = [f.shape[-2:] for f in feats]
    parts = scores.split([h * w for h, w in sizes], dim=1)
    return [part.view(-1, 1, h, w) for part, (h, w) in zip(parts, sizes)]


def map_head_classes(model: nn.Module, mapping: Callable[[Tensor], Tensor], nc: int) -> None:
    """Let a model score other classes than it was trained for, in place; NMS and top-k then work on those.

    Args:
        model (nn.Module): Detection model.
        mapping (Callable): Makes logits of shape (..., nc) from the model's own of shape (..., own nc).
        nc (int): Number of classes that the mapping returns.
    """
    head = detect_head(model)
    for branch in layout(model).branches:
        for tower in towers(head, branch)["scores"]:
            tower.append(_MapChannels(mapping))
    head.nc, head.no = nc, nc + 4 * head.reg_max


class _MapChannels(nn.Module):
    """Applies a mapping of the last dimension to the channels of (B, C, H, W)."""

    def __init__(self, mapping: Callable[[Tensor], Tensor]):
        super().__init__()
        self.mapping = mapping

    def forward(self, x: Tensor) -> Tensor:
        """Return the mapped channels."""
        return self.mapping(x.movedim(1, -1)).movedim(-1, 1).contiguous()


class RawHead(nn.Module):
    """Stands for the head in a frozen detector: only the towers that are read, no decoding, no top-k, no NMS.

    Attributes:
        f (list[int]): Layers whose outputs the head reads, as Ultralytics' models want to know.
        i (int): Index of the head in the model.
        towers (nn.ModuleDict): Towers by branch and part, one per level.
    """

    def __init__(self, head: Detect, reads: Mapping[str, Collection[str]]):
        """Take towers over from a head.

        Args:
            head (Detect): Detection head; its towers are shared, not copied.
            reads (Mapping[str, Collection[str]]): The parts to read, of "scores" and "boxes", by branch.
        """
        super().__init__()
        self.f, self.i = head.f, head.i
        self.towers: Any = nn.ModuleDict(
            {b: nn.ModuleDict({part: towers(head, b)[part] for part in sorted(parts)}) for b, parts in reads.items()}
        )

    def forward(self, feats: list[Tensor]) -> dict[str, dict[str, Any]]:
        """Return the parts that are read, each of shape (B, channels, A), and the features, by branch."""
        empty = feats[0].new_empty((feats[0].shape[0], 0, sum(f.shape[-2] * f.shape[-1] for f in feats)))
        out: dict[str, dict[str, Any]] = {}
        for branch, parts in self.towers.items():
            out[branch] = {"scores": empty, "boxes": empty, "feats": feats}
            for part, levels in parts.items():
                out[branch][part] = torch.cat([tower(x).flatten(2) for tower, x in zip(levels, feats)], dim=-1)
        return out


def read_raw(model: Any, reads: Mapping[str, Collection[str]]) -> None:
    """Let a frozen model return raw outputs of the branches and parts that are read, in place of its predictions."""
    model.model[-1] = RawHead(detect_head(model), reads)


@contextmanager
def keep_branches(model: nn.Module) -> Iterator[None]:
    """Let `model.fuse()` fold BatchNorm into convolutions without dropping a head branch."""
    head = detect_head(model)
    head.fuse = lambda: None
    try:
        yield
    finally:
        del head.fuse


# Head towers ----------------------------------------------------------------------------------------------------------
def towers(head: Detect, branch: str) -> dict[str, Any]:
    """Return the towers of a branch, "boxes" and "scores", each a list with one nn.Sequential per level."""
    prefix = "one2one_" if branch == ONE2ONE else ""
    return {"boxes": getattr(head, f"{prefix}cv2"), "scores": getattr(head, f"{prefix}cv3")}


def stem_features(head: Detect, branch: str, feats: list[Tensor]) -> dict[str, list[Tensor]]:
    """Return what the first block of each tower makes of the head's inputs.

    The student's towers run in training mode: `frozen_statistics` keeps this second pass out of BatchNorm's averages.
    It runs in float32, as the weights are, whatever AMP made of the features.

    Args:
        head (Detect): Detection head.
        branch (str): "one2many" or "one2one".
        feats (list[Tensor]): Head inputs per level.

    Returns:
        (dict[str, list[Tensor]]): Features per tower and level, each of shape (B, C, H, W).
    """
    with frozen_statistics(head):
        return {
            name: [tower[0](x.float()) for tower, x in zip(levels, feats)]
            for name, levels in towers(head, branch).items()
        }


def finish_towers(head: Detect, branch: str, stems: dict[str, list[Tensor]], feats: list[Tensor]) -> Branch:
    """Run the rest of each tower on features as `stem_features` gives them.

    Returns:
        (Branch): The branch's raw outputs.
    """
    out = {
        name: torch.cat([tower[1:](x).flatten(2) for tower, x in zip(levels, stems[name])], dim=-1).transpose(1, 2)
        for name, levels in towers(head, branch).items()
    }
    return Branch(out["scores"], out["boxes"], feats)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm in training mode use the batch's statistics without adding them to its running ones."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def first_conv(module: nn.Module) -> nn.Conv2d:
    """Return the first convolution of a module."""
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))


def last_conv(module: nn.Module) -> nn.Conv2d:
    """Return the last convolution of a module."""
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)][-1]
