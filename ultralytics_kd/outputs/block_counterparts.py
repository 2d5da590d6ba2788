"""Which of a teacher's convolutions a student's inner blocks are fitted to, where the two blocks differ.

Split blocks (C2f, C3k2, A2C2f) run a chain of inner blocks, `m.0`, `m.1` and so on. A bigger teacher may have more of
them, or of another layout: YOLO26 and YOLO11 have C3k at the scales m, l and x where n and s have Bottleneck. Each of
the student's inner blocks then stands for a segment of the teacher's chain: for as many blocks as there are more. Its
first convolutions are fitted to those of the segment's first block, its last one to the last one of the segment's last
block. So it puts out what the segment puts out.

A Bottleneck adds its input to what its last convolution gives; a C3k does not. That is no loss: `cv2` behind the chain
reads the input as well as the sum, and is fitted after them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .channel_picks import Picks, evenly
from .weight_fitting import Target

LAST = {"Bottleneck": "cv2.conv", "C3k": "cv3.conv"}  # the convolution that a block ends with
# A Bottleneck's first convolution instead of a C3k: to the first one of the same kernel in it
FIRST = {("Bottleneck", "C3k"): {"cv1.conv": "m.0.cv1.conv"}}


def block_targets(picks: Picks) -> dict[str, Target]:
    """Return what the convolutions in inner blocks are fitted to, of blocks that differ from the teacher's.

    Args:
        picks (Picks): Modules of student and teacher.

    Returns:
        (dict[str, Target]): Targets by the names of the student's convolutions. Blocks of an unknown layout have none.
    """
    targets: dict[str, Target] = {}
    for name, block in picks.student.items():
        if not (isinstance(getattr(block, "m", None), nn.ModuleList) and hasattr(block, "cv2") and picks.alike(name)):
            continue
        ours, theirs = block.m, picks.teacher[name].m
        for index in range(len(ours) if len(ours) <= len(theirs) else 0):
            first = index * len(theirs) // len(ours)
            last = (index + 1) * len(theirs) // len(ours) - 1
            for path, source in _pairs(ours[index], theirs[first], theirs[last], first, last).items():
                full, its = f"{name}.m.{index}.{path}", f"{name}.m.{source}"
                if full == its:
                    continue
                outputs = picks.student[full].out_channels, picks.teacher[its].out_channels
                if outputs[0] <= outputs[1]:
                    targets[full] = Target.of(outputs[0], its, evenly(*outputs))
    return targets


def _pairs(ours: Any, head: Any, tail: Any, first: int, last: int) -> dict[str, str]:
    """Return the teacher's convolution for each of a block's: its number in the chain and its name within the block.

    Args:
        ours (nn.Module): The student's block.
        head (nn.Module): The first block of the teacher's segment.
        tail (nn.Module): The last one.
        first (int): Number of the first one in the teacher's chain.
        last (int): Number of the last one.
    """
    kind, its = type(ours).__name__, type(head).__name__
    if kind not in LAST or its not in LAST or type(tail) is not type(head):
        return {}
    if kind == its:
        names = [n for n, m in ours.named_modules() if isinstance(m, nn.Conv2d)]
        known = {n for n, m in head.named_modules() if isinstance(m, nn.Conv2d)}
        pairs = {n: f"{first}.{n}" for n in names if n in known}
    else:
        pairs = {path: f"{first}.{source}" for path, source in FIRST.get((kind, its), {}).items()}
    return {**pairs, LAST[kind]: f"{last}.{LAST[its]}"}
