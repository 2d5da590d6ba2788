"""Counts how often an NMS-free head detects the same object twice, on the val images of a data set.

    python examples/study/duplicates.py FOLDER/data.yaml RUNS/STAGE

`study.py` does this for stages with `duplicates: true`. A detection of the NMS-free head is a duplicate if its
confidence is 0.25 or more and its IoU with a more confident detection of its class is above 0.5. The counts are per
image, for each student of a bench by arm and seed; `duplicates.json` beside the table holds them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torchvision.ops import box_iou
from ultralytics import YOLO
from ultralytics.data.utils import check_det_dataset
from ultralytics.engine.results import Boxes

from ultralytics_kd.image_files import image_files

CONF, IOU = 0.25, 0.5


def count_model(weights: Path, images: list[str], imgsz: int) -> dict[str, float]:
    """Return the detections and duplicates per image of a model's NMS-free head.

    Args:
        weights (Path): Checkpoint of a model with this head.
        images (list[str]): Image files.
        imgsz (int): Image size in pixels.
    """
    results = YOLO(weights).predict(images, imgsz=imgsz, conf=CONF, nms=False, stream=True, verbose=False)
    counts = [(len(result.boxes), count(result.boxes)) for result in results]
    return {name: sum(n) / len(images) for name, n in zip(("detections", "duplicates"), zip(*counts))}


def count(boxes: Boxes) -> int:
    """Return how many detections of an image overlap a more confident one of their class."""
    order = boxes.conf.argsort(descending=True)
    overlap = box_iou(boxes.xyxy[order], boxes.xyxy[order]).triu(diagonal=1)
    same_class = boxes.cls[order][:, None] == boxes.cls[order][None]
    return int(((overlap > IOU) & same_class).any(0).sum())


def count_bench(data: str, bench: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return the counts of a finished bench by arm and seed, and write them beside its table.

    Args:
        data (str): Path of the data.yaml.
        bench (Path): Folder of the bench.
    """
    settings = json.loads((bench / "bench.json").read_text(encoding="utf-8"))["settings"]
    images = image_files(check_det_dataset(data)["val"])
    counts = {
        arm: {
            str(seed): count_model(bench / "runs" / f"{arm}-{seed}" / "weights" / "best.pt", images, settings["imgsz"])
            for seed in settings["seeds"]
        }
        for arm in settings["arms"]
    }
    (bench / "duplicates.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    for arm, by_seed in count_bench(sys.argv[1], Path(sys.argv[2])).items():
        for seed, counts in by_seed.items():
            print(f"{arm:12} seed {seed}", *(f"{name} {value:.3f}" for name, value in counts.items()), sep="   ")
