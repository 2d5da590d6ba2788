"""How often a NMS-free head says the same object twice: counted on the val images of a data set.

    python examples/study/duplicates.py FOLDER/data.yaml RUNS/STAGE

Every detection of the end-to-end head that is at least 0.25 sure and overlaps a surer one of its class by more than
half counts as a duplicate. The students of a bench are counted arm by arm and seed by seed; `duplicates.json` beside
its table has the mean per image.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torchvision.ops import box_iou
from ultralytics import YOLO
from ultralytics.data.utils import check_det_dataset

from ultralytics_kd.unlabeled import image_files

CONF, IOU = 0.25, 0.5


def duplicates(weights: Path, images: list[str], imgsz: int) -> float:
    """Return the duplicates per image that a model's end-to-end head leaves.

    Args:
        weights (Path): Checkpoint with such a head.
        images (list[str]): Image files.
        imgsz (int): Image size in pixels.
    """
    found = YOLO(weights).predict(images, imgsz=imgsz, conf=CONF, nms=False, stream=True, verbose=False)
    return sum(_count(result.boxes) for result in found) / len(images)


def _count(boxes: object) -> int:
    """Return how many detections of an image overlap a surer one of their class."""
    order = boxes.conf.argsort(descending=True)
    overlap = box_iou(boxes.xyxy[order], boxes.xyxy[order]).triu(diagonal=1)
    same = boxes.cls[order][:, None] == boxes.cls[order][None]
    return int(((overlap > IOU) & same).any(0).sum())


def count_bench(data: str, bench: Path) -> dict[str, dict[str, float]]:
    """Return duplicates per image by arm and seed of a finished bench, and write them beside its table.

    Args:
        data (str): Path of the data.yaml.
        bench (Path): Folder of the bench.
    """
    settings = json.loads((bench / "bench.json").read_text(encoding="utf-8"))["settings"]
    images = image_files(check_det_dataset(data)["val"])
    counts: dict[str, dict[str, float]] = {}
    for arm in settings["arms"]:
        counts[arm] = {
            str(seed): duplicates(bench / "runs" / f"{arm}-{seed}" / "weights" / "best.pt", images, settings["imgsz"])
            for seed in settings["seeds"]
        }
    (bench / "duplicates.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, by_seed in count_bench(sys.argv[1], Path(sys.argv[2])).items():
        print(f"{name:12}", *(f"{value:.3f}" for value in by_seed.values()))
