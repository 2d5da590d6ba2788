"""New classes without forgetting, by the field's protocols on VOC 2007: 19+1 and 15+5 classes.

    python examples/study/keep.py FOLDER [STAGE ...] [NAME=VALUE ...]     run again to continue

FOLDER holds `voc07/` and `weights/yolo26n-coco-int8dq.pt`. A stage is `15+5` or `19+1`, or with `-holdout` behind it:
then a fifth of the training images takes the place of the val set, for choosing settings. NAME=VALUE replaces a value
of SETTINGS, e.g. `epochs=1 fraction=0.02 seeds=1` for a rehearsal, whose results go to a folder of its own.

The old model learns the first classes, from all training images that show one, with labels of those alone. The arms
then learn the others, from all training images that show one of these, with labels of those alone:

    finetune  the old model, with a head for all classes
    freeze    the same; only the head learns
    terms     the same model is its teacher (kd_keep=True), without the feature term
    keep      the same with the feature term, as by default
    unlabeled the same (19+1 only); the other training images join without labels, four for each with labels
    before    the old model, which knows no new class
    joint     as the old model, but with all images and labels of both: the limit; one training serves both protocols

All are scored on the val images with labels of all classes: the mean over the old, the new and all classes. A training
that was interrupted is resumed. `keep-STAGE.json` and `keep.md` in results/keep keep the scores.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
from ultralytics.utils import YAML

from ultralytics_kd import YOLO
from ultralytics_kd.bench.table import gain_text, interval, markdown
from ultralytics_kd.image_files import image_files
from ultralytics_kd.report import score_names

RESULTS = Path(__file__).resolve().parent / "results" / "keep"
NEW = {"15+5": 5, "19+1": 1}  # the last classes are new
HOLDOUT = 0.2
SETTINGS: dict[str, Any] = {"epochs": 8, "new_epochs": 8, "imgsz": 128, "fraction": 1.0, "seeds": 3}
COMMON: dict[str, Any] = {
    "batch": 16,
    "nbs": 16,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "workers": 0,
    "device": "cpu",
    "cache": "ram",
    "val": False,
    "plots": False,
    "verbose": False,
    "exist_ok": True,
}
BODY = 23  # layers before YOLO26's head
ARMS: dict[str, dict[str, Any]] = {
    "before": {},
    "finetune": {},
    "freeze": {"freeze": BODY},
    "terms": {"kd_keep": True, "kd_feat": 0.0},
    "keep": {"kd_keep": True},
    "unlabeled": {"kd_keep": True, "kd_unlabeled_ratio": 4.0},
    "joint": {},
}
FEW = "19+1"  # the protocol with few images to go on with, where `unlabeled` is run
HEADS: dict[str, Any] = {"nms": None, "end2end": False}  # value of `nms` for validation
SETS = ("old", "new", "all")


def prepare(voc: Path, folder: Path, new: int, holdout: bool) -> dict[str, str]:
    """Write data sets with labels of a part of the classes; images are linked.

    Args:
        voc (Path): Folder of the data set with all labels.
        folder (Path): Folder for the data sets.
        new (int): Number of classes at the end that are new.
        holdout (bool): Whether a part of the training images takes the place of the val images.

    Returns:
        (dict[str, str]): data.yaml by name. `old` and `new` have labels of their classes alone, and images that show
            one; `new` names its classes alone. `union` are the images and labels of `new`, with all names.
            `joint` has all labels, and the images of `old` and `new`. The val images are the same in all. `rest` is a
            list of the other training images.
    """
    names = YAML.load(voc / "data.yaml")["names"]
    first = len(names) - new
    files = sorted(map(Path, image_files(str(voc / "images" / "train"))))
    val = sorted(map(Path, image_files(str(voc / "images" / "val"))))
    if holdout:
        random.Random(0).shuffle(files)
        count = round(HOLDOUT * len(files))
        val, files = files[:count], sorted(files[count:])
    rest = folder / "rest.txt"
    if not rest.exists():
        folder.mkdir(parents=True, exist_ok=True)
        old = [file for file in files if all(c < first for c, _ in labels_of(file))]
        rest.write_text("".join(f"{file}\n" for file in old))
    parts = {"old": range(first), "new": range(first, len(names)), "union": range(first, len(names))}
    sets = {
        name: write_part(folder / name, files, val, names, classes, renumber=name == "new")
        for name, classes in (*parts.items(), ("joint", range(len(names))))
    }
    return {**sets, "rest": str(rest)}


def labels_of(file: Path) -> list[tuple[int, str]]:
    """Return the labels of an image: class and box, the box as it is written."""
    text = (file.parents[2] / "labels" / file.parent.name / f"{file.stem}.txt").read_text()
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(int(c), box) for c, box in lines]


def write_part(
    folder: Path, train: list[Path], val: list[Path], names: dict[int, str], classes: range, renumber: bool
) -> str:
    """Write a data set with labels of some classes, unless it is there, and return its data.yaml.

    Args:
        folder (Path): Its folder.
        train (list[Path]): Training images, of which those that show one of the classes are taken.
        val (list[Path]): Val images; all are taken.
        names (dict[int, str]): All classes.
        classes (range): Classes that have labels.
        renumber (bool): Whether the data set names these classes alone.
    """
    done = folder / "data.yaml"
    if done.exists():
        return str(done)
    for split, files in (("train", train), ("val", val)):
        for place in ("images", "labels"):
            (folder / place / split).mkdir(parents=True, exist_ok=True)
        for file in files:
            kept = [(c - classes.start * renumber, box) for c, box in labels_of(file) if c in classes]
            if split == "train" and not kept:
                continue
            (folder / "labels" / split / f"{file.stem}.txt").write_text("".join(f"{c} {box}\n" for c, box in kept))
            link = folder / "images" / split / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(file)
    named = {i: names[c] for i, c in enumerate(classes)} if renumber else names
    if not renumber and classes.start == 0:  # the old model has no rows for classes that it never saw
        named = {i: names[i] for i in classes}
    YAML.save(done, {"path": str(folder), "train": "images/train", "val": "images/val", "names": named})
    return str(done)


def train(weights: str, data: str, runs: Path, name: str, epochs: int, seed: int, settings: dict, args: dict) -> str:
    """Train a model, or go on with a training that was interrupted, and return its weights.

    Args:
        weights (str): Model that it begins with.
        data (str): Path of a data.yaml.
        runs (Path): Folder for runs.
        name (str): Name of the run.
        epochs (int): Epochs.
        seed (int): Seed.
        settings (dict): Settings of the study.
        args (dict): Arguments of the arm.
    """
    folder = runs / name
    finished, last, best = folder / "finished", folder / "weights" / "last.pt", folder / "weights" / "best.pt"
    if not finished.exists():
        if last.exists():
            YOLO(str(last)).train(resume=True)
        else:
            shared = {k: settings[k] for k in ("imgsz", "fraction")}
            where = {"data": data, "project": str(runs), "name": name}
            YOLO(weights).train(**COMMON, **shared, **where, epochs=epochs, seed=seed, **args)
        finished.touch()
    return str(best if best.exists() else last)


def score(weights: str, data: str, imgsz: int, first: int, count: int) -> dict[str, dict[str, float]]:
    """Return mAP50-95 and mAP50 of the old, the new and all classes, for both heads. Unknown classes count 0.

    Args:
        weights (str): Path of a model that has the classes of the data, in their order.
        data (str): Path of a data.yaml whose val labels are those of all classes, or of the old ones.
        imgsz (int): Image size in pixels.
        first (int): Number of old classes.
        count (int): Number of all classes.
    """
    scores = {}
    for head, nms in HEADS.items():
        with tempfile.TemporaryDirectory() as place:
            quiet = {"plots": False, "verbose": False, "project": place, "workers": 0, "device": COMMON["device"]}
            metrics = YOLO(weights).val(data=data, imgsz=imgsz, batch=32, nms=nms, **quiet)
        rows = list(zip(metrics.box.ap_class_index.tolist(), metrics.box.ap.tolist(), metrics.box.ap50.tolist()))
        scores[head] = {}
        for which, chosen in (("old", range(first)), ("new", range(first, count)), ("all", range(count))):
            of = [(ap, ap50) for c, ap, ap50 in rows if c in chosen]
            scores[head][which] = sum(ap for ap, _ in of) / len(chosen)
            scores[head][f"{which}50"] = sum(ap50 for _, ap50 in of) / len(chosen)
    return scores


def run_stage(stage: str, folder: Path, settings: dict[str, Any], runs: Path, results: Path) -> None:
    """Train and score all arms of a stage, each seed after the other, and keep what is finished.

    Args:
        stage (str): "15+5", "19+1", or one of these with "-holdout" behind it.
        folder (Path): Folder of data and weights.
        settings (dict): Settings of the study.
        runs (Path): Folder for runs and data sets.
        results (Path): Folder for the scores.
    """
    protocol, dash, holdout = stage.partition("-")
    data = prepare(folder / "voc07", runs / "data" / stage, NEW[protocol], bool(holdout))
    first = len(YAML.load(data["old"])["names"])
    file = results / f"keep-{stage}.json"
    kept = json.loads(file.read_text()) if file.exists() else {"settings": settings, "runs": {}}
    if kept["settings"] != settings:
        raise SystemExit(f"{file} has the settings {kept['settings']}, not {settings}: give these, or move it away.")
    coco = str(folder / "weights" / "yolo26n-coco-int8dq.pt")
    place, shared = runs / stage, runs / f"joint{dash}{holdout}"
    arms = {arm: args for arm, args in ARMS.items() if arm != "unlabeled" or protocol == FEW}
    for seed in range(settings["seeds"]):
        if all(f"{arm}-{seed}" in kept["runs"] for arm in arms):
            continue
        old = train(coco, data["old"], place, f"old-{seed}", settings["epochs"], seed, settings, {})
        for arm, args in arms.items():
            name, scored = f"{arm}-{seed}", data["joint"]
            if name in kept["runs"]:
                continue
            if arm == "before":
                weights, scored = old, data["old"]
            elif arm == "joint":
                weights = train(coco, data["joint"], shared, name, settings["epochs"], seed, settings, args)
            elif "kd_keep" in args:
                args = {**args, "teacher": old, "kd_keep_data": data["old"]}
                if "kd_unlabeled_ratio" in args:
                    args["kd_unlabeled"] = data["rest"]
                weights = train(old, data["new"], place, name, settings["new_epochs"], seed, settings, args)
            else:
                weights = train(old, data["union"], place, name, settings["new_epochs"], seed, settings, args)
            kept["runs"][name] = score(weights, scored, settings["imgsz"], first, first + NEW[protocol])
            results.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
            (results / "keep.md").write_text(to_markdown(results), encoding="utf-8")


def to_markdown(results: Path) -> str:
    """Return the table of all finished stages: the mean over seeds, and the gain of all classes over fine-tuning.

    Args:
        results (Path): Folder with the scores.
    """
    lines = [["classes", "head", "arm", "seeds", *(f"{s} classes" for s in SETS), "all, mAP50", "gain (95% CI)"]]
    for file in sorted(results.glob("keep-*.json")):
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
        rows = pl.DataFrame(
            [
                {"arm": name.rpartition("-")[0], "seed": int(name.rpartition("-")[2]), "head": head, **scores}
                for name, heads in runs.items()
                for head, scores in heads.items()
            ]
        )
        for head, arm in product(HEADS, ARMS):
            part = rows.filter(pl.col("head") == head, pl.col("arm") == arm).sort("seed")
            if not part.is_empty():
                plain = rows.filter(pl.col("head") == head, pl.col("arm") == "finetune")
                gain = gain_over(part, plain) if arm == "freeze" or "kd_keep" in ARMS[arm] else ""
                means = [f"{part[column].mean():.3f}" for column in (*SETS, "all50")]
                lines.append(
                    [file.stem.removeprefix("keep-"), score_names.HEADS[head], arm, str(part.height), *means, gain]
                )
    return markdown(lines)


def gain_over(part: pl.DataFrame, plain: pl.DataFrame) -> str:
    """Return the mean gain of all classes over fine-tuning, paired by seed, with its interval if there is one.

    Args:
        part (pl.DataFrame): Scores of an arm, a row for each seed.
        plain (pl.DataFrame): Those of fine-tuning.
    """
    pairs = part.join(plain, on="seed", suffix="_plain")
    gains = (pairs["all"] - pairs["all_plain"]).to_list()
    low, high = interval(gains)
    return gain_text({"gain": sum(gains) / len(gains) if gains else None, "ci_low": low, "ci_high": high}, 3)


def main(arguments: list[str]) -> None:
    """Run the stages of a command line."""
    folder = Path(arguments[0]).resolve()
    given = dict(argument.split("=", 1) for argument in arguments[1:] if "=" in argument)
    if unknown := given.keys() - SETTINGS.keys():
        raise SystemExit(f"unknown settings: {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}.")
    settings = {**SETTINGS, **{name: type(SETTINGS[name])(value) for name, value in given.items()}}
    runs = Path("runs/keep").resolve()
    rehearsal = settings != SETTINGS
    if rehearsal:
        runs = runs / "-".join(f"{name}{value}" for name, value in sorted(given.items()))
    for stage in [argument for argument in arguments[1:] if "=" not in argument] or list(NEW):
        run_stage(stage, folder, settings, runs, runs / "results" if rehearsal else RESULTS)


if __name__ == "__main__":
    main(sys.argv[1:])
