"""Feature losses in a file of your own; docs/extending.md explains them.

python examples/own_loss.py OUT                                        distil with it on a drawn data set
yolo-kd train ... teacher=big.pt kd_feat=1 kd_feat_loss=own_loss:cosine    from the folder with this file
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ultralytics_kd import YOLO
from ultralytics_kd.demo.shapes import draw_dataset


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - the cosine similarity of the features at each position, averaged.

    Args:
        student (Tensor): The student's features behind the adapter, shape (B, C, H, W), float32.
        teacher (Tensor): The teacher's features, of the same shape, without gradient.

    Returns:
        (Tensor): Scalar from 0 to 2.
    """
    return 1 - F.cosine_similarity(student, teacher, dim=1).mean()


class Relations(nn.Module):
    """A loss with parameters, which compares the similarities between positions.

    There is one module for each level. Its parameters train with the student and are not saved in the finished model.
    After Park et al., Relational Knowledge Distillation (CVPR 2019, https://arxiv.org/abs/1904.05068), which compares
    images instead of positions.
    """

    def __init__(self, student: int, teacher: int, side: int = 8):
        """Build the projection.

        Args:
            student (int): The student's channels.
            teacher (int): The teacher's channels.
            side (int): Number of positions along a side; larger maps are averaged down to it.
        """
        super().__init__()
        self.side = side
        self.project = nn.Conv2d(student, teacher, 1, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean absolute difference of all similarities, a scalar.

        Args:
            student (Tensor): The student's features without an adapter, shape (B, C_s, H, W).
            teacher (Tensor): The teacher's features, shape (B, C_t, H, W).
        """
        return F.l1_loss(self.similarities(self.project(student)), self.similarities(teacher))

    def similarities(self, features: Tensor) -> Tensor:
        """Return the cosine similarity of every pair of positions, shape (B, N, N)."""
        rows = F.normalize(F.adaptive_avg_pool2d(features, self.side).flatten(2), dim=1)
        return rows.transpose(1, 2) @ rows


def main(out: Path) -> None:
    """Train a teacher briefly, then a student with the loss above."""
    quick = {"data": str(draw_dataset(out / "shapes", train_images=16, val_images=8, size=96)), "imgsz": 96,
             "batch": 8, "workers": 0, "plots": False, "project": str(out.resolve()), "exist_ok": True}  # fmt: skip
    teacher = YOLO("yolo26s.yaml")
    teacher.train(**quick, epochs=2, name="teacher")
    student = YOLO("yolo26n.yaml")
    student.train(
        kd_init=False,  # a student that began with this teacher's few steps would agree with it, and show no terms
        **quick,
        epochs=2,
        name="student",
        teacher=str(teacher.trainer.best),
        kd_feat=1.0,
        kd_feat_loss="own_loss:cosine",  # module:name, so that other processes and a resumed run can import it
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_loss"))
