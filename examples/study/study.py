"""The measurements behind the default weights, and the ones that the README shows: `yolo-kd bench`, stage by stage.

    python examples/study/study.py FOLDER [STAGE ...]     all stages, or those named; run again to go on

FOLDER holds `bccd/data.yaml` (364 blood smear images, 3 classes, github.com/Shenggan/BCCD_Dataset), `helmet/data.yaml`
(2,336 site photos, 2 classes) and, for `task-segment-coco`, `coco128-seg/` (100 photos, lightly-ai/coco128_yolo). The
`tune-` stages choose settings: they train on 80% of the training images and score on the other 20%. The `final-` stages
train on all of them and read the val sets, once. Each leaves its table and the record of every run in `results/STAGE`;
`results/summary.md` has all tables in one, and the main README shows them.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import polars as pl
from duplicates import count_bench
from ultralytics.data.converter import coco91_to_coco80_class
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import YAML

from ultralytics_kd.bench import run_bench
from ultralytics_kd.bench.table import gain_text, markdown, score_text
from ultralytics_kd.demo.tasks import draw_task_dataset
from ultralytics_kd.training.unlabeled import image_files

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TABLES = ("bench.json", "bench.csv", "bench.md", "duplicates.json", "records/*.json")
COLUMNS = ("stage", "metric", "head", "arm", "runs", "score", "std", "gain", "ci_low", "ci_high", "gap_closed", "time")
SETS = ("final-bccd", "final-helmet")  # whose mean is told
README = HERE.parents[1] / "README.md"
# Which stages the README shows under which heading; the first that fits
SECTIONS = {"## Tasks": "task-*", "### Images without labels": "few-labels", "## Results": "*"}
HEADS = {"nms": "NMS", "end2end": "end-to-end"}
DRAWN = (600, 200)  # training and val images of a drawn data set


def run_stage(name: str, data: Path, runs: Path) -> dict[str, Any]:
    """Run one stage of stages.yaml, and keep its table.

    Args:
        name (str): Name of the stage.
        data (Path): Folder of the data sets.
        runs (Path): Where weights go.
    """
    stages = YAML.load(HERE / "stages.yaml")
    arguments = {**stages["common"], **stages["stages"][name]}
    arguments["data"] = find_data(arguments["data"], data, runs)
    if "labeled" in arguments:
        share, folder = arguments.pop("labeled"), runs / f"labeled-{arguments['data'].split('/')[-2]}"
        arguments["data"], unlabeled = part_labels(arguments["data"], share, folder)
        for arm in arguments["arms"].values():
            if arm.get("kd_unlabeled") == "rest":
                arm["kd_unlabeled"] = unlabeled
    for given in (arguments, *arguments["arms"].values()):
        for key in ("model", "teacher"):
            if str(given.get(key, "")).endswith(".pt"):  # of an earlier stage
                given[key] = str(runs / given[key])
    count = arguments.pop("duplicates", False)
    report = run_bench({**arguments, "project": str(runs), "name": name})
    if count:
        count_bench(arguments["data"], runs / name)
    keep_tables(runs / name, RESULTS / name, {f"{data}/": "", f"{runs}/": ""})
    return report


def find_data(name: str, data: Path, runs: Path) -> str:
    """Return what `data=` takes; `drawn/TASK` is drawn and `coco128-seg` renumbered if it is not there yet.

    Args:
        name (str): A stage's `data`.
        data (Path): Folder of the data sets.
        runs (Path): Where drawn and renumbered ones go.
    """
    if name == "coco128-seg":
        return renumber(data / name, runs / name)
    kind, _, task = name.partition("/")
    if kind != "drawn":
        return str(data / name / "data.yaml")
    root = runs / "drawn" / task
    made = root if task == "classify" else root / "data.yaml"
    if not (root / "complete").exists():
        draw_task_dataset(root, task, *DRAWN, 96)
        (root / "complete").touch()
    return str(made)


def renumber(source: Path, target: Path) -> str:
    """Copy coco128-seg's training images with labels that count classes as its names do.

    Its label files have the numbers of COCO's annotations, 1 to 90 with gaps, its data.yaml 80 names: read as they
    are, a person is a bicycle, and every image with a class above 79 is left out.

    Args:
        source (Path): Folder of the data set.
        target (Path): Where the copy goes.

    Returns:
        (str): Path of the copy's data.yaml, whose val images are its training images.
    """
    index = coco91_to_coco80_class()
    for file in (source / "labels" / "train").glob("*.txt"):
        rows = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        copy = target / "labels" / "train" / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("".join(f"{index[int(c) - 1]} {polygon}\n" for c, polygon in rows), encoding="utf-8")
    shutil.copytree(source / "images" / "train", target / "images" / "train", dirs_exist_ok=True)
    names = YAML.load(source / "data.yaml")["names"]
    images = "images/train"
    YAML.save(target / "data.yaml", {"path": str(target), "train": images, "val": images, "names": names})
    return str(target / "data.yaml")


def part_labels(data: str, share: float, folder: Path, seed: int = 0) -> tuple[str, str]:
    """Draw the training images that keep their labels.

    Args:
        data (str): Path of a data.yaml.
        share (float): Share of the training images that keep their labels.
        folder (Path): Where the lists of files and the data.yaml go.
        seed (int): Seed of the draw.

    Returns:
        data (str): Path of a data.yaml with those images, and the val set as it was.
        rest (str): Path of the list of the others.
    """
    dataset = check_det_dataset(data)
    files = sorted(image_files(dataset["train"]))
    random.Random(seed).shuffle(files)
    count = round(share * len(files))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("labeled", files[:count]), ("rest", files[count:])):
        (folder / f"{name}.txt").write_text("\n".join(sorted(part)) + "\n", encoding="utf-8")
    content = {"path": str(folder), "train": "labeled.txt", "val": dataset["val"], "names": dataset["names"]}
    YAML.save(folder / "data.yaml", content)
    return str(folder / "data.yaml"), str(folder / "rest.txt")


def keep_tables(source: Path, target: Path, shorten: dict[str, str]) -> None:
    """Copy the tables and records of a bench, with what this machine calls its folders left out.

    Args:
        source (Path): Folder of the bench.
        target (Path): Where to.
        shorten (dict[str, str]): What becomes of these texts.
    """
    for pattern in TABLES:
        for file in source.glob(pattern):
            text = file.read_text(encoding="utf-8")
            for long, short in shorten.items():
                text = text.replace(long, short)
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text, encoding="utf-8")


def summarize(results: Path) -> pl.DataFrame:
    """Return a row for each stage, head and arm, and the means over `SETS`.

    Args:
        results (Path): Folder with a folder per stage.

    Returns:
        (pl.DataFrame): Columns `stage`, `head`, `arm` ("teacher" among them), `runs`, `score` (mAP50-95, mean over
            seeds), `std`, `gain` (over `alone`, paired by seed), `ci_low` and `ci_high` (its 95% interval),
            `gap_closed` (share of what `alone` lacks of the teacher) and `time` (of training, over that of `alone`).
    """
    rows: list[dict[str, Any]] = []
    for file in sorted(results.glob("*/bench.json")):
        report = json.loads(file.read_text(encoding="utf-8"))
        alone = next(row["seconds"] for row in report["table"] if row["arm"] == "alone")
        metric = report.get("metrics", ["mAP50-95"])[0]
        students = [{**row, "time": row["seconds"] / alone} for row in report["table"]]
        shared = {"stage": file.parent.name, "metric": metric, **dict.fromkeys(COLUMNS[4:])}
        rows += [{**shared, **row} for row in (*students, *_teachers(report))]
    table = pl.DataFrame(rows, infer_schema_length=None).select(COLUMNS)
    means = (
        table.filter(pl.col("stage").is_in(SETS))
        .group_by("metric", "head", "arm", maintain_order=True)
        .agg(pl.col("runs").sum(), pl.col("score", "gain", "gap_closed", "time").mean(), stages=pl.len())
        .filter(pl.col("stages") == len(SETS))
        .with_columns(stage=pl.lit(f"mean of {' and '.join(SETS)}"))
    )
    return pl.concat([table, means.drop("stages")], how="diagonal")


def _teachers(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each teacher and head, named after the arm if there are several."""
    several = len({(t["parameters"], t["score"]) for t in report["teachers"] if t["head"] in {"nms", "output"}}) > 1
    rows = {
        (t["head"], t["score"]): {**t, "arm": f"teacher of {t['arm']}" if several else "teacher", "runs": 1}
        for t in reversed(report["teachers"])
    }
    return list(rows.values())[::-1]


def to_markdown(summary: pl.DataFrame) -> str:
    """Return a summary in Markdown, the two heads of an arm side by side; other models' output stands first.

    Args:
        summary (pl.DataFrame): As `summarize` returns.
    """
    shown = ("score", "gain (95% CI)", "gap closed")
    title = ["stage", "metric", "arm", *(f"{head}: {column}" for head in HEADS.values() for column in shown), "time"]
    lines = [title]
    for (stage, arm), rows in summary.group_by("stage", "arm", maintain_order=True):
        heads = {row["head"]: row for row in rows.iter_rows(named=True)}
        first = heads.get("nms", heads.get("output"))
        assert first is not None
        cells = [*_cells(first), *(_cells(heads["end2end"]) if "end2end" in heads else [""] * len(shown))]
        time = "" if first["time"] is None else f"{first['time']:.2f}x"
        lines.append([str(stage), first["metric"], str(arm), *cells, time])
    return markdown(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    """Return score, gain and share of the gap as text."""
    closed = "" if row["gap_closed"] is None else f"{row['gap_closed']:.0%}"
    return [score_text(row, 3), gain_text(row, 3), closed]


def show(readme: str, summary: str) -> str:
    """Return a README whose tables of stages, one under each of `SECTIONS`, are those of a summary.

    Args:
        readme (str): The text as it is.
        summary (str): As `to_markdown` returns.
    """
    title, line, *rows = summary.splitlines()
    parts: dict[str, list[str]] = {pattern: [] for pattern in SECTIONS.values()}
    for row in rows:
        stage = row.split("|")[1].strip()
        parts[next(pattern for pattern in parts if fnmatch(stage, pattern))].append(row)
    shown, section, inside = [], "", False
    for text in readme.splitlines():
        section = text if text.startswith("#") else section
        if text == title:
            shown += [title, line, *parts[SECTIONS[section]]]
        inside = text == title or (inside and text.startswith("|"))
        if not inside:
            shown.append(text)
    return "\n".join(shown) + "\n"


if __name__ == "__main__":
    folder, wanted = Path(sys.argv[1]).resolve(), sys.argv[2:]
    for stage in wanted or YAML.load(HERE / "stages.yaml")["stages"]:
        run_stage(stage, folder, Path("runs/study").resolve())
        overview = summarize(RESULTS)
        overview.write_csv(RESULTS / "summary.csv", float_precision=5)
        overview_text = to_markdown(overview)
        (RESULTS / "summary.md").write_text(overview_text, encoding="utf-8")
        README.write_text(show(README.read_text(encoding="utf-8"), overview_text), encoding="utf-8")
