"""Which of a teacher's convolutions a student's inner blocks are fitted to if the two blocks differ in layout.

Split blocks (C2f, C3k2, A2C2f) run a chain of inner blocks, `m.0`, `m.1` and so on. YOLO26 and YOLO11 have C3k there at
the scales m, l and x where n and s have Bottleneck. No weights of a C3k can be copied to a Bottleneck, but the
convolutions of a Bottleneck can be fitted: the last one to the output of the teacher's block, the first one to the
block's first convolution with the same kernel size.

A Bottleneck adds its input to what its last convolution gives; a C3k does not. That is no loss: `cv2` behind the chain
reads the input as well as the sum, and is fitted after the inner blocks.

If the teacher's chain has more blocks, the student's blocks are fitted to the first ones. Fitting the student's last
block to the teacher's last one was worse.
"""

from __future__ import annotations

import torch
from torch import nn

from .channel_picks import Picks, evenly
from .weight_fitting import Target

# The teacher's convolution for each of the student's, by the types of the two blocks
COUNTERPARTS = {("Bottleneck", "C3k"): {"cv1.conv": "m.0.cv1.conv", "cv2.conv": "cv3.conv"}}

LAST = "cv2.conv"  # its output runs through the chain


def block_targets(picks: Picks) -> dict[str, Target]:
    """Return the targets of the convolutions in inner blocks whose layout differs from the teacher's.

    Args:
        picks (Picks): Modules of student and teacher.

    Returns:
        (dict[str, Target]): Targets by the names of the student's convolutions. Unknown layouts have none.
    """
    targets: dict[str, Target] = {}
    for name, block in picks.student.items():
        if not (isinstance(getattr(block, "m", None), nn.ModuleList) and picks.alike(name)):
            continue
        for index, (ours, theirs) in enumerate(zip(block.m, picks.teacher[name].m)):
            pairs = COUNTERPARTS.get((type(ours).__name__, type(theirs).__name__), {})
            for path, source in pairs.items():
                width, its = (m.get_submodule(p).out_channels for m, p in ((ours, path), (theirs, source)))
                if width <= its:
                    taken = picks.chains[name] if path == LAST else evenly(width, its)
                    target = Target(torch.arange(width), f"{name}.m.{index}.{source}", taken)
                    targets[f"{name}.m.{index}.{path}"] = target
    return targets
