"""A distilling trainer of one's own: GPU augmentation, another optimizer, another loss, and a callback; runs offline.

Usage:
    $ python examples/custom_trainer.py [folder]

docs/extending.md has a table of all methods, "A trainer of your own".
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.utils.loss import E2ELoss

from ultralytics_kd import KDDetectionTrainer
from ultralytics_kd.demo.shapes import draw_dataset


class MyTrainer(KDDetectionTrainer):
    """Mirrors every second batch where it is prepared, and trains with another optimizer."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Prepare a batch. The teacher answers the images that this method returns."""
        batch = super().preprocess_batch(batch)
        if torch.rand(()) < 0.5:
            batch["img"] = batch["img"].flip(-1)
            batch["bboxes"][:, 0] = 1 - batch["bboxes"][:, 0]
        return batch

    def build_optimizer(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build the student's optimizer. The adapters of kd_feat join it afterwards."""
        return torch.optim.NAdam(model.parameters(), lr=self.args.lr0)


class MyLoss(E2ELoss):
    """Ultralytics' loss of YOLO26 with a part of one's own. The distillation terms are added to it."""

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the parts of the loss times batch size, and their values by name."""
        loss, items = super().__call__(preds, batch)
        penalty = 1e-4 * preds["one2many"]["scores"].square().mean()
        return torch.cat((loss, penalty[None] * len(batch["img"]))), {**items, "penalty": penalty.detach()}


def set_loss(trainer: KDDetectionTrainer) -> None:
    """Set the loss, as with plain Ultralytics."""
    trainer.model.criterion = MyLoss(trainer.model)


def print_kd_losses(trainer: KDDetectionTrainer) -> None:
    """Print the mean kd losses of the epoch."""
    print({name: round(float(value), 3) for name, value in trainer.tloss.items() if name.startswith("kd_")})


def main(folder: Path) -> None:
    """Train a teacher with plain Ultralytics, then a student that learns from its logits, boxes and features."""
    data = draw_dataset(folder / "data", train_images=16, val_images=4, size=64)
    args = {"data": str(data), "imgsz": 64, "epochs": 2, "batch": 8, "plots": False, "project": str(folder)}
    YOLO("yolo26s.yaml").train(**args, name="teacher")

    student = YOLO("yolo26n.yaml")
    student.add_callback("on_train_start", set_loss)
    student.add_callback("on_train_epoch_end", print_kd_losses)
    teacher = str(folder / "teacher" / "weights" / "best.pt")
    # A student that began with this teacher's few steps would agree with it, and show no terms
    kd = {"teacher": teacher, "kd_feat": 1.0, "kd_feat_loss": "cwd", "kd_init": False}
    student.train(trainer=MyTrainer, **kd, **args, name="student")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else mkdtemp(prefix="distill_")))
