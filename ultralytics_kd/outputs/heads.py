"""Kind, layout and towers of YOLO heads, and frozen heads that return raw outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import head as head_module
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.torch_utils import unwrap_model

from ..errors import KDError
from .grid import ANGLES, BOXES, COEFFICIENTS, KEYPOINTS, ONE2MANY, ONE2ONE, PROTO, SCORES, SIGMAS, Branch, Layout

# Heads that can be distilled; a release may lack some. Subclasses of Detect that need prompts are in `prompts`
GRID_HEADS = {
    "Detect": "detect",
    "v10Detect": "detect",
    "Segment": "segment",
    "Segment26": "segment",
    "Pose": "pose",
    "Pose26": "pose",
    "OBB": "obb",
    "OBB26": "obb",
}
TASK_OF = {getattr(head_module, name): task for name, task in GRID_HEADS.items() if hasattr(head_module, name)}


def find_head(model: nn.Module) -> Any:
    """Return the last layer of a model that is a sequence of layers, as Ultralytics' are; None for other models."""
    layers = getattr(unwrap_model(model), "model", None)
    return layers[-1] if isinstance(layers, nn.Sequential) and len(layers) else None


def head_fault(model: nn.Module) -> str | None:
    """Return why a model's head cannot be distilled, as the rest of a sentence about the model; None if it can.

    A head can be distilled if it is one of `GRID_HEADS`, and `fuse()` has removed no branch of it.
    """
    head = find_head(model)
    if type(head) not in TASK_OF:
        kind = type(head).__name__ if head is not None else type(model).__name__
        return f"ends in '{kind}', not in a YOLO head for boxes, masks, keypoints or rotated boxes"
    return branch_fault(head)


def branch_fault(head: Any) -> str | None:
    """Return that `fuse()` has removed a branch of a head, as the rest of a sentence about its model; else None."""
    # fuse() sets the branch that it removes to None; a branch that the head never had is not an attribute
    if head.cv2 is None or head.cv3 is None or ("one2one_cv2" in vars(head)["_modules"] and head.one2one_cv2 is None):
        return "was fused for inference and lost a branch of its head: give the checkpoint that train() saved"
    return None


def detect_head(model: nn.Module) -> Any:
    """Return a model's head for detection, instance segmentation, pose or rotated boxes.

    Raises:
        KDError: If the model has none, or `fuse()` removed a branch of its head.
    """
    if fault := head_fault(model):
        raise KDError(f"the model {fault}.")
    return find_head(model)


def layout(model: nn.Module) -> Layout:
    """Return the layout of a model's detection-like head."""
    head = detect_head(model)
    return layout_of(head, TASK_OF[type(head)])


def layout_of(head: Any, task: str) -> Layout:
    """Return the layout of a head that has the towers of a detection-like head.

    Args:
        head (Detect): The head.
        task (str): Its task.
    """
    return Layout(
        strides=tuple(int(s) for s in head.stride.tolist()),
        channels=tuple(first_conv(tower).in_channels for tower in head.cv2),
        nc=head.nc,
        reg_max=head.reg_max,
        branches=(ONE2MANY, ONE2ONE) if getattr(head, "one2one_cv2", None) is not None else (ONE2MANY,),
        task=task,
        kpt_shape=tuple(head.kpt_shape) if task == "pose" else None,
        kpt_scale=1.0 if hasattr(head, "cv4_kpts") else 2.0,
    )


# Towers ---------------------------------------------------------------------------------------------------------------
def towers(head: Any, branch: str) -> dict[str, Any]:
    """Return a branch's towers by the part that they predict: for each part, one nn.Sequential per level."""
    prefix = "one2one_" if branch == ONE2ONE else ""

    def part(name: str) -> Any:
        """Return one of the branch's lists of towers."""
        return getattr(head, prefix + name)

    parts = {BOXES: part("cv2"), SCORES: part("cv3")}
    task = TASK_OF[type(head)]
    if task == "segment":
        parts[COEFFICIENTS] = part("cv4")
    elif task == "obb":
        radians = type(head).__name__ == "OBB26"
        parts[ANGLES] = part("cv4") if radians else nn.ModuleList(nn.Sequential(*t, _Angle()) for t in part("cv4"))
    elif task == "pose" and hasattr(head, "cv4_kpts"):
        for name, last in ((KEYPOINTS, "cv4_kpts"), (SIGMAS, "cv4_sigma")):
            if part(last) is not None:
                parts[name] = nn.ModuleList(nn.Sequential(*t, end) for t, end in zip(part("cv4"), part(last)))
    elif task == "pose":
        parts[KEYPOINTS] = part("cv4")
    return parts


def class_rows(model: nn.Module) -> dict[str, Tensor]:
    """Return weights and biases of the layers that score classes, a row per class, by name ("one2many.0.weight").

    Args:
        model (nn.Module): Model with a detection-like head.
    """
    head = detect_head(model)
    lasts = {
        f"{branch}.{level}": tower[-1]
        for branch in layout(model).branches
        for level, tower in enumerate(towers(head, branch)[SCORES])
    }
    return {
        f"{name}.{part}": getattr(conv, part).detach() for name, conv in lasts.items() for part in ("weight", "bias")
    }


class _Angle(nn.Module):
    """Converts the raw output of YOLOv8's and 11's heads for rotated boxes to an angle in radians."""

    def forward(self, x: Tensor) -> Tensor:
        """Return angles between -pi / 4 and 3 pi / 4."""
        return (x.sigmoid() - 0.25) * math.pi


def stem_features(head: Any, branch: str, feats: list[Tensor], levels: Sequence[int]) -> dict[str, list[Tensor]]:
    """Run the first block of the score and box towers on the head's inputs.

    The student's towers are in training mode, so `frozen_statistics` keeps this second pass out of BatchNorm's running
    averages. The pass is in float32, because the weights are in float32 even under AMP.

    Args:
        head (Detect): Detection head.
        branch (str): "one2many" or "one2one".
        feats (list[Tensor]): Head inputs of the levels.
        levels (Sequence[int]): Index of each level in the head.

    Returns:
        (dict[str, list[Tensor]]): Features per tower and level, each of shape (B, C, H, W).
    """
    parts = towers(head, branch)
    with frozen_statistics(head):
        return {name: [parts[name][level][0](x.float()) for level, x in zip(levels, feats)] for name in (SCORES, BOXES)}


def finish_towers(
    head: Any, branch: str, stems: dict[str, list[Tensor]], feats: list[Tensor], levels: Sequence[int]
) -> Branch:
    """Run the rest of each tower on features that `stem_features` returned.

    Returns:
        (Branch): The branch's scores and boxes.
    """
    parts = towers(head, branch)
    out = {
        name: torch.cat([parts[name][i][1:](x).flatten(2) for i, x in zip(levels, stems[name])], dim=-1)
        for name in (SCORES, BOXES)
    }
    return Branch(out[SCORES].transpose(1, 2), out[BOXES].transpose(1, 2), feats)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm in training mode use the batch's statistics without adding them to its running averages."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


# Frozen heads ---------------------------------------------------------------------------------------------------------
class RawHead(nn.Module):
    """Replaces the head of a frozen model: runs only the towers that are read, without decoding, top-k or NMS.

    Attributes:
        f (list[int]): Layers whose outputs the head reads; Ultralytics' models need it.
        i (int): Index of the head in the model.
        towers (nn.ModuleDict): Towers by branch and part, one per level.
        proto (nn.Module | None): The module of the mask prototypes, if they are read.
        levels (list[int]): Index of each level that is read.
        export (bool): Always False; YOLO-World's model asks for it.
    """

    export = False

    def __init__(self, head: Detect, reads: Mapping[str, Collection[str]], strides: Sequence[int] | None = None):
        """Share towers with a head.

        Args:
            head (Detect): Detection-like head; its towers are not copied.
            reads (Mapping[str, Collection[str]]): Parts to return by branch, as `towers` names them, and "proto".
            strides (Sequence[int], optional): Strides of the levels to read; all if None.
        """
        super().__init__()
        self.f, self.i = head.f, head.i
        all_strides = [int(s) for s in head.stride.tolist()]
        self.levels = [all_strides.index(s) for s in strides or all_strides]
        self.towers: Any = nn.ModuleDict()
        for branch, parts in reads.items():
            lists = towers(head, branch)
            self.towers[branch] = nn.ModuleDict(
                {part: nn.ModuleList(lists[part][i] for i in self.levels) for part in sorted(parts) if part in lists}
            )
        self.proto: Any = head.proto if any(PROTO in parts for parts in reads.values()) else None
        self.fuses_levels = hasattr(self.proto, "feat_refine")  # YOLO26's prototypes read all levels

    def forward(self, feats: list[Tensor]) -> dict[str, dict[str, Any]]:
        """Return by branch the features and the parts that are read, each part of shape (B, channels, A)."""
        proto = None if self.proto is None else self.proto(feats if self.fuses_levels else feats[0])
        feats = [feats[i] for i in self.levels]
        empty = feats[0].new_empty((feats[0].shape[0], 0, sum(f.shape[-2] * f.shape[-1] for f in feats)))
        out: dict[str, dict[str, Any]] = {}
        for branch, parts in self.towers.items():
            out[branch] = {SCORES: empty, BOXES: empty, "feats": feats, PROTO: proto}
            for part, levels in parts.items():
                out[branch][part] = torch.cat([tower(x).flatten(2) for tower, x in zip(levels, feats)], dim=-1)
        return out


def use_raw_head(model: Any, reads: Mapping[str, Collection[str]], strides: Sequence[int] | None = None) -> None:
    """Make a frozen model return raw outputs of the branches, parts and levels that are read."""
    model.model[-1] = RawHead(detect_head(model), reads, strides)


@contextmanager
def keep_branches(model: nn.Module) -> Iterator[None]:
    """Let `model.fuse()` fold BatchNorm into convolutions without dropping a head branch."""
    head = find_head(model)
    if not isinstance(head, Detect):  # other heads have no branches
        yield
        return
    head.fuse = lambda: None
    try:
        yield
    finally:
        del head.fuse


def map_head_classes(model: nn.Module, mapping: Callable[[Tensor], Tensor], nc: int) -> None:
    """Make a model score other classes than those of its training, in place. NMS and top-k use the new ones.

    Args:
        model (nn.Module): Model with a detection-like head.
        mapping (Callable): Maps the model's logits of shape (..., model nc) to logits of shape (..., nc).
        nc (int): Number of classes that the mapping returns.
    """
    head = detect_head(model)
    for branch in layout(model).branches:
        for tower in towers(head, branch)[SCORES]:
            tower.append(MapChannels(mapping))
    head.nc, head.no = nc, nc + 4 * head.reg_max


def map_channels(mapping: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a mapping of the last dimension to the channels of (B, C) or (B, C, H, W)."""
    return mapping(x.movedim(1, -1)).movedim(-1, 1)


class MapChannels(nn.Module):
    """Applies a mapping of the last dimension to the channels of (B, C) or (B, C, H, W)."""

    def __init__(self, mapping: Callable[[Tensor], Tensor]):
        """Take the mapping."""
        super().__init__()
        self.mapping = mapping

    def forward(self, x: Tensor) -> Tensor:
        """Return the mapped channels."""
        return map_channels(self.mapping, x).contiguous()


def first_conv(module: nn.Module) -> nn.Conv2d:
    """Return the first convolution of a module."""
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))


def read_grey(model: Any) -> None:
    """Let a model of colour images read grey ones, in place, as three equal channels.

    A convolution is linear: with the sum of its weights over the three channels it computes the same from one channel.

    Args:
        model (BaseModel): The model. Convolutions of three channels read the images; YOLOv9e has two.
    """
    channels = first_conv(model).in_channels
    for conv in [
        m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == channels and m.groups == 1
    ]:
        conv.weight = nn.Parameter(conv.weight.detach().sum(1, keepdim=True), conv.weight.requires_grad)
        conv.in_channels = 1
    model.yaml["channels"] = 1


def last_conv(module: nn.Module) -> nn.Conv2d:
    """Return the last convolution of a module."""
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)][-1]
