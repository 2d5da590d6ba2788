"""The table of a bench: computed from records, and as files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from scipy import stats
from ultralytics.utils import DEFAULT_CFG

from ..config.teacher_size import scored_size
from ..errors import printable
from ..report.gap import gap_closed
from ..report.score_names import HEADS, ONE
from .arms import ALONE
from .plot import plot_table
from .records import TRAINING

CONFIDENCE = 0.95
MARKUP = "\\|<[`$"  # characters that have a meaning in Markdown


@dataclass(frozen=True)
class Run:
    """One finished student.

    Attributes:
        arm (str): Name of the arm.
        seed (int): Seed of the training.
        record (dict[str, Any]): Record of the training.
    """

    arm: str
    seed: int
    record: dict[str, Any]


def summarize(arms: list[str], runs: list[Run], teachers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the table with one row per arm and head, and the rows of runs and teachers.

    Args:
        arms (list[str]): Names of arms, in the order of the table.
        runs (list[Run]): Finished students, in any order.
        teachers (dict[str, dict]): Record of the teacher by arm.

    Returns:
        (dict): "runs" and "teachers" as flat rows, and "table". In a row of the table, `gain` is the mean difference to
            `alone` over the seeds that both have. `ci_low` and `ci_high` are its 95% interval by Student's t, None with
            fewer than two seeds. `gap_closed` is the gain divided by the teacher's lead over the same runs of `alone`.
    """
    order = {name: i for i, name in enumerate(arms)}
    runs = sorted(runs, key=lambda r: (order[r.arm], r.seed))
    run_rows = [
        {"arm": r.arm, "seed": r.seed, "head": head, **scores, **{k: r.record[k] for k in TRAINING}}
        for r in runs
        for head, scores in r.record["scores"].items()
    ]
    teacher_rows = [
        {"arm": arm, "head": head, **scores, "parameters": record["parameters"], "unmatched": record["unmatched"]}
        for arm, record in teachers.items()
        for head, scores in record["scores"].items()
    ]
    # A teacher scores zero on classes that it lacks. Its mean score would make the gap meaningless
    targets = {(t["arm"], t["head"]): t["score"] for t in teacher_rows if not t["unmatched"]}
    frame, finished = pl.DataFrame(run_rows), {(r["head"], r["arm"]) for r in run_rows}
    table = [
        _row(frame, arm, head, targets.get((arm, head), targets.get((arm, ONE))))
        for head in dict.fromkeys(r["head"] for r in run_rows)
        for arm in arms
        if (head, arm) in finished
    ]
    return {"table": table, "teachers": teacher_rows, "runs": run_rows}


def _row(runs: pl.DataFrame, arm: str, head: str, teacher: float | None) -> dict[str, Any]:
    """Return the row of one arm and head."""
    runs = runs.filter(pl.col("head") == head)
    of_arm, alone = (runs.filter(pl.col("arm") == name) for name in (arm, ALONE))
    pairs = of_arm.join(alone, on="seed", suffix="_alone")
    gains = (pairs["score"] - pairs["score_alone"]).to_list() if arm != ALONE else []
    gain = float(pl.Series(gains).mean()) if gains else None  # type: ignore[arg-type]
    lead = teacher - float(pairs["score_alone"].mean()) if gains and teacher is not None else None  # type: ignore[arg-type]
    low, high = interval(gains)
    kept = {"kept": of_arm["kept"].mean()} if "kept" in of_arm.columns else {}
    return {
        "head": head,
        "arm": arm,
        "runs": of_arm.height,
        "score": of_arm["score"].mean(),
        "std": of_arm["score"].std() if of_arm.height > 1 else None,
        "second": of_arm["second"].mean(),
        **kept,
        "gain": gain,
        "ci_low": low,
        "ci_high": high,
        "teacher": teacher,
        "gap_closed": None if gain is None or lead is None else gap_closed(lead, 0.0, gain),
        "seconds": of_arm["seconds"].mean(),
        "seeds": dict(zip(of_arm["seed"].to_list(), of_arm["score"].to_list())),
    }


def interval(gains: list[float], confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
    """Return the confidence interval of the mean of paired differences by Student's t; None, None for fewer than two.

    Args:
        gains (list[float]): Differences, one per seed.
        confidence (float): Probability of the interval.
    """
    if len(gains) < 2:
        return None, None
    series = pl.Series(gains)
    half_width = float(stats.t.ppf((1 + confidence) / 2, len(gains) - 1) * series.std() / len(gains) ** 0.5)
    mean = float(series.mean())  # type: ignore[arg-type]
    return mean - half_width, mean + half_width


def save_tables(report: dict[str, Any], folder: Path) -> None:
    """Write bench.json, bench.csv, bench.md and bench.png.

    Args:
        report (dict): Report, as `run_bench` returns it.
        folder (Path): Folder for the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
    if not report["table"]:
        return
    rows = [{**{k: v for k, v in r.items() if k != "seeds"}, **_seed_columns(r)} for r in report["table"]]
    pl.DataFrame(rows, infer_schema_length=None).write_csv(folder / "bench.csv", float_precision=5)
    (folder / "bench.md").write_text(to_markdown(report), encoding="utf-8")
    plot_table(report["table"], metric_names(report)[0], folder / "bench.png")


def metric_names(report: dict[str, Any]) -> tuple[str, str]:
    """Return the names of the two scores in a report; early reports, all of detectors, do not have them."""
    main, second = report.get("metrics") or ("mAP50-95", "mAP50")
    return main, second


def _seed_columns(row: dict[str, Any]) -> dict[str, float]:
    """Return the scores of a row, one column per seed."""
    return {f"seed_{seed}": value for seed, value in row["seeds"].items()}


def cells(report: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the table as text, the header first."""
    main, second = metric_names(report)
    header = ["head", "arm", "runs", main, "per seed", "gain over alone (95% CI)", "gap closed", second, "time"]
    keeps = any("kept" in row for row in report["table"])
    if keeps:  # main score on the old classes
        header.append(f"old classes: {main}")
    lines = [header]
    for head in dict.fromkeys(row["head"] for row in report["table"]):
        rows = [row for row in report["table"] if row["head"] == head]
        alone = next((r["seconds"] for r in rows if r["arm"] == ALONE), None)
        lines += [_cells(row, alone) for row in rows]
        scores = {(t["score"], t["second"], t["parameters"]): t for t in report["teachers"] if t["head"] in {head, ONE}}
        several = len(scores) > 1
        for t in scores.values():
            name = teacher_name(report, t["arm"], several)
            kept = [f"{t['kept']:.4f}"] if keeps else []
            lines.append([HEADS[head], name, "1", f"{t['score']:.4f}", "", "", "", f"{t['second']:.4f}", "", *kept])
    return lines


def teacher_name(report: dict[str, Any], arm: str, several: bool) -> str:
    """Return what a teacher is called in a table, with its image size if it is not the student's.

    Args:
        report (dict): Report, as `run_bench` returns it.
        arm (str): An arm that it teaches.
        several (bool): Whether there are others.
    """
    settings = report.get("settings", {})
    own = settings.get("arms", {}).get(arm, {}).get("kd_teacher_imgsz")
    size = "" if own is None else f", {scored_size(own, settings.get('imgsz', DEFAULT_CFG.imgsz))} px"
    return f"teacher of {arm}{size}" if several else f"teacher{size}"


def _cells(row: dict[str, Any], alone: float | None) -> list[str]:
    """Return the cells of one row as text."""
    ratio = f" ({row['seconds'] / alone:.2f}x)" if alone and row["arm"] != ALONE else ""
    return [
        HEADS[row["head"]],
        row["arm"],
        str(row["runs"]),
        score_text(row),
        " ".join(f"{v:.4f}" for v in row["seeds"].values()),
        gain_text(row),
        "" if row["gap_closed"] is None else f"{row['gap_closed']:.0%}",
        f"{row['second']:.4f}",
        f"{row['seconds']:.0f} s{ratio}",
        *([f"{row['kept']:.4f}"] if "kept" in row else []),
    ]


def score_text(row: dict[str, Any], digits: int = 4) -> str:
    """Return the mean score of a row as text, with its standard deviation if it has one."""
    return f"{row['score']:.{digits}f}" + (f" ± {row['std']:.{digits}f}" if row["std"] is not None else "")


def gain_text(row: dict[str, Any], digits: int = 4) -> str:
    """Return the gain of a row as text, with its interval if it has one."""
    gain = "" if row["gain"] is None else f"{row['gain']:+.{digits}f}"
    return gain if row["ci_low"] is None else f"{gain} ({row['ci_low']:+.{digits}f} to {row['ci_high']:+.{digits}f})"


def to_markdown(report: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    return markdown(cells(report))


def markdown(lines: list[list[str]]) -> str:
    """Return lines of cells, the header first, as a Markdown table."""
    header, *rows = [[_cell(text) for text in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)) + "\n"


def _cell(text: str) -> str:
    """Return a text with Markdown escaped, in one line."""
    return "".join(f"\\{c}" if c in MARKUP else c for c in printable(text))
