"""Draws the README's pictures: a val image as teacher and students see it, and accuracy against latency.

    python examples/study/front.py RUNS STAGE DATA     writes docs/assets/boards.png and latency.png

They are two, which stand side by side on a page and one above the other on a phone.

RUNS is the folder of the stage's runs (`runs/study/STAGE` of study.py), whose weights it needs; DATA is the set's
data.yaml. The distilled student is the one that learns from stored answers. Scores are those of
`results/STAGE/bench.json`. The image is the val image on which distillation changed most for the better, by right minus
wrong detections. So it shows what a gain looks like, and not how large it is: the plot shows that. Boxes are detections
of a confidence of 0.25 or more, of the head with NMS. They are right if a label of their class overlaps them by an IoU
of 0.5.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from time import thread_time
from typing import Any

import numpy as np
import torch
from ultralytics import YOLO
from ultralytics.data.utils import check_det_dataset, img2label_paths
from ultralytics.utils import plt_settings
from ultralytics.utils.metrics import box_iou
from ultralytics.utils.ops import xywhn2xyxy
from ultralytics.utils.patches import imread

STUDY = Path(__file__).resolve().parent
ASSETS = STUDY.parents[1] / "docs" / "assets"
DPI = 160  # more than what a page shows, so that screens of high resolution stay sharp
MARGIN = 12  # pixels around the boxes
CONF, IOU, ROUNDS = 0.25, 0.5, 60
DISTILLED = "stored"
ARMS = {"teacher": "teacher", "alone": "student alone", DISTILLED: "student distilled"}
# Okabe and Ito's colours, which colour-blind readers can tell apart
RIGHT, WRONG, MISSED = "#0072B2", "#D55E00", "#E69F00"
POINTS = {"teacher": "#000000", "alone": "#777777", "builtin": "#CC79A7", DISTILLED: "#0072B2"}
NAMES = {**ARMS, "builtin": "student, distill_model"}


def labels_of(image: Path) -> np.ndarray:
    """Return the labels of an image: class and x1, y1, x2, y2 in pixels, shape (n, 5)."""
    file = Path(img2label_paths([str(image)])[0])
    rows = np.loadtxt(file, ndmin=2) if file.is_file() and file.stat().st_size else np.zeros((0, 5))
    h, w = imread(str(image)).shape[:2]
    return np.concatenate((rows[:, :1], xywhn2xyxy(rows[:, 1:5], w, h)), 1)


def matches(detections: np.ndarray, labels: np.ndarray) -> tuple[set[int], set[int]]:
    """Return the detections that are right, and the labels that they find, each label once.

    Args:
        detections (np.ndarray): Class and x1, y1, x2, y2, most confident first, shape (m, 5).
        labels (np.ndarray): Class and x1, y1, x2, y2, shape (n, 5).
    """
    right: set[int] = set()
    found: set[int] = set()
    if not len(detections) or not len(labels):
        return right, found
    iou = box_iou(torch.from_numpy(detections[:, 1:]).float(), torch.from_numpy(labels[:, 1:]).float()).numpy()
    for i, row in enumerate(iou * (detections[:, None, 0] == labels[None, :, 0])):
        j = int(np.argmax([0 if k in found else value for k, value in enumerate(row)]))
        if row[j] >= IOU and j not in found:
            right.add(i)
            found.add(j)
    return right, found


def detect(model: Any, images: list[Path], imgsz: int) -> list[np.ndarray]:
    """Return the detections of a model in each image: class and x1, y1, x2, y2 in pixels, shape (m, 5)."""
    boxes = (
        model.predict(str(image), imgsz=imgsz, conf=CONF, verbose=False, save=False)[0].boxes.cpu() for image in images
    )
    return [np.concatenate((b.cls[:, None].numpy(), b.xyxy.numpy()), 1) for b in boxes]


def latencies(models: dict[str, Any], sizes: dict[str, int]) -> dict[str, float]:
    """Return the least milliseconds of a forward pass with one image, the models in turns, on one CPU thread.

    It is the thread's own time, and the least of many: what else the machine does has little influence.
    """
    torch.set_num_threads(1)
    fused = {name: model.model.float().eval() for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, model in fused.items():
                image = torch.rand(1, 3, sizes[name], sizes[name])
                start = thread_time()
                model(image)
                times[name].append((thread_time() - start) * 1e3)
    return {name: min(values) for name, values in times.items()}


def scores(report: dict[str, Any]) -> dict[str, list[float]]:
    """Return the scores of each arm, and of the teacher, one for each seed, the mean of both heads."""
    by_seed: dict[tuple[str, int], list[float]] = {}
    for run in report["runs"]:
        by_seed.setdefault((run["arm"], run["seed"]), []).append(run["score"])
    arms: dict[str, list[float]] = {}
    for (arm, _), values in by_seed.items():
        arms.setdefault(arm, []).append(mean(values))
    return {**arms, "teacher": [mean(t["score"] for t in report["teachers"] if t["arm"] == DISTILLED)]}


@plt_settings()
def draw_boards(image: np.ndarray, labels: np.ndarray, detections: dict[str, np.ndarray], file: Path) -> None:
    """Draw the part of an image that has labels or detections, once for each model.

    Args:
        image (np.ndarray): The image in RGB.
        labels (np.ndarray): Its labels.
        detections (dict[str, np.ndarray]): Detections by model.
        file (Path): Picture to write.
    """
    import matplotlib.pyplot as plt

    left, top, side = square(np.concatenate((labels, *detections.values()))[:, 1:], image.shape[:2])
    fig, axes = plt.subplots(1, len(detections), figsize=(5.2, 2.4), layout="compressed")
    for ax, (name, found_boxes) in zip(axes, detections.items()):
        right, found = matches(found_boxes, labels)
        ax.imshow(image)
        boxes = [(box, RIGHT if i in right else WRONG, "-") for i, box in enumerate(found_boxes)]
        boxes += [(box, MISSED, ":") for i, box in enumerate(labels) if i not in found]
        for (_, x1, y1, x2, y2), colour, style in boxes:
            ax.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, lw=1.8, ec=colour, ls=style))
        wrong = len(found_boxes) - len(right)
        ax.set_title(f"{ARMS[name]}\nfinds {len(found)} of {len(labels)}, {wrong} wrong", size=9)
        ax.set(xlim=(left, left + side), ylim=(top + side, top), xticks=[], yticks=[])
    lines = {"right": (RIGHT, "-"), "wrong": (WRONG, "-"), "missed": (MISSED, ":")}
    handles = [
        plt.Line2D([], [], color=colour, lw=1.8, ls=style, label=name) for name, (colour, style) in lines.items()
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    fig.savefig(file, dpi=DPI, pil_kwargs={"optimize": True})
    plt.close(fig)


def square(boxes: np.ndarray, shape: tuple[int, int]) -> tuple[float, float, float]:
    """Return the left, the top and the side of the smallest square of an image that holds boxes and a margin.

    Args:
        boxes (np.ndarray): Boxes x1, y1, x2, y2 in pixels, shape (n, 4).
        shape (tuple[int, int]): Height and width of the image in pixels.
    """
    low, high = boxes[:, :2].min(0) - MARGIN, boxes[:, 2:].max(0) + MARGIN
    side = float(min((high - low).max(), *shape))
    left, top = (float(np.clip((a + b - side) / 2, 0, most - side)) for a, b, most in zip(low, high, shape[::-1]))
    return left, top, side


@plt_settings()
def draw_latency(points: dict[str, tuple[float, list[float]]], file: Path) -> None:
    """Plot accuracy against latency.

    Args:
        points (dict[str, tuple[float, list[float]]]): Milliseconds and scores by arm.
        file (Path): Picture to write.
    """
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(3.2, 2.4), layout="constrained")
    for name, (ms, values) in points.items():
        spread = stdev(values) if len(values) > 1 else 0
        ring = {"ms": 9, "mfc": "none", "mew": 1.5} if name == "alone" else {"ms": 5}  # another dot may lie on it
        ax.errorbar(ms, mean(values), yerr=spread, fmt="o", color=POINTS[name], capsize=3, **ring)
        side = -1 if name == "teacher" else 1
        offset = {"builtin": (7, -11)}.get(name, (7 * side, 3))
        ax.annotate(
            NAMES[name], (ms, mean(values)), xytext=offset, textcoords="offset points", size=8.5,
            ha="right" if side < 0 else "left", color=POINTS[name],
        )  # fmt: skip
    ax.set_xlabel("ms per image, one CPU core", size=9)
    ax.set_ylabel("mAP50-95", size=9)
    ax.tick_params(labelsize=8)
    ax.margins(0.22)
    ax.grid(alpha=0.3)
    ax.set_title("accuracy against latency", size=9)
    fig.savefig(file, dpi=DPI, pil_kwargs={"optimize": True})
    plt.close(fig)


def main(runs: Path, stage: str, data: str) -> None:
    """Draw the pictures of a stage."""
    report = json.loads((STUDY / "results" / stage / "bench.json").read_text(encoding="utf-8"))
    settings = report["settings"]
    size, larger = settings["imgsz"], settings["arms"][DISTILLED]["kd_teacher_imgsz"]
    job = json.loads((runs / "jobs" / f"{DISTILLED}-0.json").read_text(encoding="utf-8"))
    weights = {
        "teacher": job["args"]["teacher"],
        **{arm: str(runs / "runs" / f"{arm}-0" / "weights" / "best.pt") for arm in ("alone", DISTILLED)},
    }
    models = {name: YOLO(file) for name, file in weights.items()}
    sizes = {"teacher": larger, "alone": size, DISTILLED: size}
    images = sorted(Path(check_det_dataset(data)["val"]).glob("*"))
    detections = {name: detect(model, images, sizes[name]) for name, model in models.items()}
    labels = [labels_of(image) for image in images]
    right = {name: [len(matches(d, t)[0]) for d, t in zip(detections[name], labels)] for name in models}
    balance = {name: [2 * r - len(d) for r, d in zip(right[name], detections[name])] for name in models}
    gains = [distilled - alone for distilled, alone in zip(balance[DISTILLED], balance["alone"])]
    best = int(np.argmax(gains))
    print(f"{images[best].name}: right minus wrong {gains[best]:+}; mean of all val images {mean(gains):+.2f}")
    ms = latencies({name: models[name] for name in ("teacher", "alone")}, sizes)
    student = ms["alone"]  # all students are one architecture at one size
    points = {n: (ms.get(n, student), values) for n, values in scores(report).items() if n in POINTS}
    image = imread(str(images[best]))[..., ::-1]
    draw_boards(image, labels[best], {name: d[best] for name, d in detections.items()}, ASSETS / "boards.png")
    draw_latency(points, ASSETS / "latency.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
