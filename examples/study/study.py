"""Measures what the default weights were chosen by and what the documentation shows: `yolo-kd bench`, stage by stage.

    python examples/study/study.py FOLDER [STAGE ...]     all stages, or the named ones; run again to continue
    python examples/study/study.py --kept FOLDER STAGE    only what has no record in results/STAGE, and the teacher
    python examples/study/study.py --ray FOLDER STAGE     on a Ray cluster; --ray=4 with at most 4 trainings at a time

FOLDER holds `bccd/data.yaml` (364 blood smear images, 3 classes, github.com/Shenggan/BCCD_Dataset), `helmet/data.yaml`
(2,336 site photos, 2 classes) and, for `task-segment-coco`, `coco128-seg/` (100 photos, lightly-ai/coco128_yolo). For
the `coco-` and `boxes-` stages it also holds `cards/`, `fruit/`, `deeppcb/`, `voc07/` and
`weights/yolo26n-coco-int8dq.pt`. The `tune-` stages are for choosing settings: they train on 80% of the training images
and score on the other 20%. The `final-` stages train on all training images and score on the val sets, once. Each stage
saves its table and the record of every run in `results/STAGE`. `results/summary.md` has all tables in one;
`results/tables` has the parts that the pages of the documentation show.
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
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import YAML

from ultralytics_kd.bench import run_bench
from ultralytics_kd.bench.table import gain_text, markdown, score_text
from ultralytics_kd.demo.tasks import draw_task_dataset
from ultralytics_kd.image_files import image_files
from ultralytics_kd.report import score_names

STUDY = Path(__file__).resolve().parent
RESULTS = STUDY / "results"
TABLES = ("bench.json", "bench.csv", "bench.md", "duplicates.json", "records/*.json")
COLUMNS = ("stage", "metric", "head", "arm", "runs", "score", "std", "gain", "ci_low", "ci_high", "gap_closed", "time")
SETS = ("final-bccd", "final-helmet")  # stages for which the summary has a mean
# Tables in `results/tables`, with the pattern of their stages; a stage belongs to the first one that matches
TABLES_OF_PAGES = {
    "tasks": "task-*",
    "few-labels": "few-labels",
    "pseudo-boxes": "boxes-*",
    "variants": "variants-*",
    "beginnings": "begin-*",
    "coco-weights": "coco-*",
    "random-weights": "*",
}
HEADS = {head: score_names.HEADS[head] for head in (score_names.NMS, score_names.END2END)}  # names for readers
DRAWN = (600, 200)  # training and val images of a drawn data set


def run_stage(name: str, data: Path, runs: Path, kept: bool = False, ray: bool | int = False) -> dict[str, Any]:
    """Run one stage of stages.yaml, and save its table.

    Args:
        name (str): Name of the stage.
        data (Path): Folder of the data sets.
        runs (Path): Folder for the runs.
        kept (bool): Whether records that another machine has left in `results` count. The teacher is trained again. Its
            weights must be the same, so this works where trainings are repeatable, and else ends with an error.
        ray (bool | int): Whether a Ray cluster trains, as in `yolo-kd bench`. A stage may set it too.
    """
    arguments = stage_arguments(name, data, runs)
    if ray or arguments.get("ray"):
        arguments["ray"] = ray or arguments["ray"]
        arguments.pop("jobs", None)  # trainings at a time on one machine
    if kept:
        restore_records(RESULTS / name / "records", runs / name / "records", arguments)
    counts_duplicates = arguments.pop("duplicates", False)
    report = run_bench({**arguments, "project": str(runs), "name": name})
    if counts_duplicates:
        count_bench(arguments["data"], runs / name)
    keep_tables(runs / name, RESULTS / name, {f"{data}/": "", f"{runs}/": ""})
    return report


def stage_arguments(name: str, data: Path, runs: Path) -> dict[str, Any]:
    """Return the arguments of a stage's bench, with the paths of this machine.

    Args:
        name (str): Name of the stage.
        data (Path): Folder of the data sets.
        runs (Path): Folder for the runs.
    """
    stages = YAML.load(STUDY / "stages.yaml")
    arguments: dict[str, Any] = {**stages["common"], **stages["stages"][name]}
    arguments["data"] = find_data(arguments["data"], data, runs)
    unlabeled = None
    if "labeled" in arguments:
        share, held_out = arguments.pop("labeled"), arguments.pop("held_out", 0.0)
        folder = runs / labeled_folder(arguments["data"].split("/")[-2], share, held_out)
        arguments["data"], unlabeled = part_labels(arguments["data"], share, folder, held_out)
    if "width" in arguments:
        arguments["model"] = narrower(arguments["model"], arguments.pop("width"), runs)
    arms = arguments["arms"]
    groups = (arguments, *(arms.values() if isinstance(arms, dict) else ()))
    for args in groups:
        if args.get("kd_unlabeled") == "rest":
            args["kd_unlabeled"] = unlabeled
        for key in ("model", "teacher", "teacher_model"):
            file = str(args.get(key, ""))
            if file.endswith(".pt"):  # published weights, or those of an earlier stage
                args[key] = str((data if file.startswith("weights/") else runs) / file)
    return arguments


def narrower(model: str, width: float, folder: Path) -> str:
    """Write the architecture of a model with a part of its channels, and return the file.

    Args:
        model (str): Name of one of Ultralytics' architectures, with its scale, such as "yolo26n.yaml".
        width (float): Part of the channels of each layer.
        folder (Path): Folder for the file.
    """
    layout = yaml_model_load(model)
    scale = layout["scale"]
    depth, channels, most = layout["scales"][scale]
    kept = {key: layout[key] for key in ("nc", "end2end", "reg_max", "kpt_shape", "backbone", "head") if key in layout}
    file = folder / f"{Path(model).stem}-{width:g}.yaml"
    YAML.save(file, {**kept, "scales": {scale: [depth, channels * width, most]}})
    return str(file)


def find_data(name: str, data: Path, runs: Path) -> str:
    """Return the value for `data=`, after `drawn/TASK` is drawn or `coco128-seg` is renumbered if needed.

    Args:
        name (str): The `data` of a stage.
        data (Path): Folder of the data sets.
        runs (Path): Folder for drawn and renumbered data sets.
    """
    if name == "coco128-seg":
        return renumber(data / name, runs / name)
    kind, _, task = name.partition("/")
    if kind != "drawn":
        return str(data / name / "data.yaml")
    root = runs / "drawn" / task
    drawn = root if task == "classify" else root / "data.yaml"
    if not (root / "complete").exists():
        draw_task_dataset(root, task, *DRAWN, 96)
        (root / "complete").touch()
    return str(drawn)


def renumber(source: Path, target: Path) -> str:
    """Copy coco128-seg's training images with class ids that match the names in its data.yaml.

    Its label files have the category ids of COCO's annotations, 1 to 90 with gaps. Its data.yaml has 80 names. Without
    this, a person would be a bicycle, and images with an id above 79 would be left out.

    Args:
        source (Path): Folder of the data set.
        target (Path): Folder for the copy.

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


def labeled_folder(dataset: str, share: float, held_out: float) -> str:
    """Return the name of the folder for a data set of which a share keeps its labels.

    Args:
        dataset (str): Name of the data set.
        share (float): Share of the training images that keep their labels; the kept records of a tenth have a name
            without it.
        held_out (float): Share of the training images to score on.
    """
    return f"labeled-{dataset}{'' if share == 0.1 else f'-{share:g}'}{f'-held-out-{held_out:g}' if held_out else ''}"


def part_labels(data: str, share: float, folder: Path, held_out: float = 0.0, seed: int = 0) -> tuple[str, str]:
    """Choose the training images that keep their labels, at random.

    Args:
        data (str): Path of a data.yaml.
        share (float): Share of the training images that keep their labels.
        folder (Path): Folder for the lists of files and the data.yaml.
        held_out (float): Share of the training images that are scored in place of the val set, and not trained on.
        seed (int): Seed of the random choice.

    Returns:
        data (str): Path of a data.yaml with these images.
        rest (str): Path of the list of the other images.
    """
    dataset = check_det_dataset(data)
    files = sorted(image_files(dataset["train"]))
    random.Random(seed).shuffle(files)
    scored = files[len(files) - round(held_out * len(files)) :]
    files = files[: len(files) - len(scored)]
    count = round(share * len(files))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("labeled", files[:count]), ("rest", files[count:]), ("held-out", scored)):
        (folder / f"{name}.txt").write_text("\n".join(sorted(part)) + "\n", encoding="utf-8")
    val = "held-out.txt" if held_out else dataset["val"]
    content = {"path": str(folder), "train": "labeled.txt", "val": val, "names": dataset["names"]}
    YAML.save(folder / "data.yaml", content)
    return str(folder / "data.yaml"), str(folder / "rest.txt")


def keep_tables(source: Path, target: Path, shorten: dict[str, str]) -> None:
    """Copy the tables and records of a bench without the folder names of this machine.

    Args:
        source (Path): Folder of the bench.
        target (Path): Folder for the copies.
        shorten (dict[str, str]): Replacements for texts in the files.
    """
    for pattern in TABLES:
        for file in source.glob(pattern):
            text = file.read_text(encoding="utf-8")
            for long, short in shorten.items():
                text = text.replace(long, short)
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text, encoding="utf-8")


def restore_records(kept: Path, target: Path, arguments: dict[str, Any]) -> None:
    """Copy the kept records of students and scores to where a bench looks for them, with the paths of this machine.

    Args:
        kept (Path): Folder of the kept records.
        target (Path): Folder of the bench's records.
        arguments (dict): Arguments of the bench.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in kept.glob("*.json"):
        if file.name == "teacher.json" or (target / file.name).exists():
            continue
        record = json.loads(file.read_text(encoding="utf-8"))
        paths = {key: str(arguments[key]) for key in ("data", "model") if key in record["job"]}
        (target / file.name).write_text(json.dumps({**record, "job": {**record["job"], **paths}}), encoding="utf-8")


def summarize(results: Path) -> pl.DataFrame:
    """Return a row for each stage, head and arm, and the means over `SETS`.

    Args:
        results (Path): Folder with a folder per stage.

    Returns:
        (pl.DataFrame): Columns `stage`, `head`, `arm` ("teacher" among them), `runs`, `score` (mean over seeds),
            `std`, `gain` (over `alone`, paired by seed), `ci_low` and `ci_high` (its 95% interval), `gap_closed` (gain
            divided by the teacher's lead over `alone`) and `time` (of training, divided by that of `alone`).
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
    """Return a row for each teacher and head, with the arm in its name if there are several teachers."""
    several = len({(t["parameters"], t["score"]) for t in report["teachers"] if t["head"] in {"nms", "output"}}) > 1
    rows = {
        (t["head"], t["score"]): {**t, "arm": f"teacher of {t['arm']}" if several else "teacher", "runs": 1}
        for t in reversed(report["teachers"])
    }
    return list(rows.values())[::-1]


def to_markdown(summary: pl.DataFrame) -> str:
    """Return a summary in Markdown, the two heads of an arm side by side; models with one head fill the first columns.

    Args:
        summary (pl.DataFrame): Summary, as `summarize` returns it.
    """
    shown = ("score", "gain (95% CI)", "gap closed")
    header = ["stage", "metric", "arm", *(f"{head}: {column}" for head in HEADS.values() for column in shown), "time"]
    lines = [header]
    for (stage, arm), rows in summary.group_by("stage", "arm", maintain_order=True):
        heads = {row["head"]: row for row in rows.iter_rows(named=True)}
        first = heads.get("nms", heads.get("output"))
        assert first is not None
        cells = [*_cells(first), *(_cells(heads["end2end"]) if "end2end" in heads else [""] * len(shown))]
        time = "" if first["time"] is None else f"{first['time']:.2f}x"
        lines.append([str(stage), first["metric"], str(arm), *cells, time])
    return markdown(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    """Return score, gain and closed share of the gap as text."""
    closed = "" if row["gap_closed"] is None else f"{row['gap_closed']:.0%}"
    return [score_text(row, 3), gain_text(row, 3), closed]


def tables_of_pages(summary: str) -> dict[str, str]:
    """Return the tables that the pages of the documentation show, by name; those without a stage are left out.

    Args:
        summary (str): Summary, as `to_markdown` returns it.
    """
    header, line, *rows = summary.splitlines()
    tables: dict[str, list[str]] = {name: [] for name in TABLES_OF_PAGES}
    for row in rows:
        stage = row.split("|")[1].strip()
        tables[next(name for name, pattern in TABLES_OF_PAGES.items() if fnmatch(stage, pattern))].append(row)
    return {name: "\n".join([header, line, *rows]) + "\n" for name, rows in tables.items() if rows}


def write_summary(results: Path) -> None:
    """Write `summary.csv`, `summary.md` and `tables/`, from the tables of all stages.

    Args:
        results (Path): Folder with a folder per stage.
    """
    overview = summarize(results)
    overview.write_csv(results / "summary.csv", float_precision=5)
    text = to_markdown(overview)
    (results / "summary.md").write_text(text, encoding="utf-8")
    (results / "tables").mkdir(exist_ok=True)
    for name, table in tables_of_pages(text).items():
        (results / "tables" / f"{name}.md").write_text(table, encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Run the stages of a command line.

    Args:
        arguments (list[str]): The options `--kept`, `--ray` and `--ray=N`, the folder of the data sets, and stages.
    """
    options = dict(each.partition("=")[::2] for each in arguments if each.startswith("--"))
    given = [each for each in arguments if not each.startswith("--")]
    if unknown := options.keys() - {"--kept", "--ray"}:
        raise SystemExit(f"unknown option {min(unknown)}: there are --kept, --ray and --ray=N.")
    if (count := options.get("--ray", "")) and not count.isdecimal():
        raise SystemExit(f"--ray={count} is invalid: give --ray, or --ray=N for at most N trainings at a time.")
    ray = int(count) if count else "--ray" in options
    folder, wanted = Path(given[0]).resolve(), given[1:]
    for stage in wanted or YAML.load(STUDY / "stages.yaml")["stages"]:
        runs = Path("runs/study").resolve()
        run_stage(stage, folder, runs, "--kept" in options, ray)
        write_summary(RESULTS)


if __name__ == "__main__":
    main(sys.argv[1:])
