"""What was tried and not kept, in one table.

    python examples/study/lost.py     writes results/lost.md

`results/lost.csv` has the readings that chose the defaults, with what was kept beside each. The arms of the `variants-`
stages, which change one thing at a time, join them. Differences are of the means of both heads.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from ultralytics_kd.bench.table import markdown
from ultralytics_kd.report.score_names import END2END, NMS

RESULTS = Path(__file__).resolve().parent / "results"
SCORES = ("nms", "nms_free", "kept_nms", "kept_nms_free")


def readings(results: Path) -> pl.DataFrame:
    """Return all configurations with the scores of both heads, those of what was kept, and their difference.

    Args:
        results (Path): Folder with `lost.csv` and a folder per stage.
    """
    tables = [pl.read_csv(results / "lost.csv")]
    tables += [variants(file) for file in sorted(results.glob("variants-*/bench.json"))]
    mean, kept = (pl.mean_horizontal(names) for names in (SCORES[:2], SCORES[2:]))
    return pl.concat(tables).with_columns((mean - kept).round(4).alias("difference"))


def variants(file: Path) -> pl.DataFrame:
    """Return the arms of a stage beside its arm `kd`.

    Args:
        file (Path): Its `bench.json`.
    """
    report = json.loads(file.read_text(encoding="utf-8"))
    scores: dict[str, dict[str, float]] = {}
    for row in report["table"]:
        scores.setdefault(row["arm"], {})[row["head"]] = row["score"]
    settings, arms = report["settings"], report["settings"]["arms"]
    setting = f"{file.parent.name.removeprefix('variants-')}, stored answers, {settings['epochs']} epochs"
    return pl.DataFrame(
        [
            {
                "configuration": _changes(arms.get(arm, {}), arms["kd"]) or arm,
                "setting": setting,
                "nms": own[NMS],
                "nms_free": own[END2END],
                "kept": "the defaults",
                "kept_nms": scores["kd"][NMS],
                "kept_nms_free": scores["kd"][END2END],
            }
            for arm, own in scores.items()
            if arm != "kd"
        ]
    )


def _changes(arguments: dict[str, object], defaults: dict[str, object]) -> str:
    """Return the arguments in which an arm differs from another, as users give them."""
    return " ".join(f"{name}={value}" for name, value in arguments.items() if value != defaults.get(name))


def to_markdown(table: pl.DataFrame) -> str:
    """Return the table, settings as they come, and within each what lost most first.

    Args:
        table (pl.DataFrame): Readings, as `readings` returns them.
    """
    lines = [["setting", "kept", "not kept", "NMS / NMS-free", "kept", "difference"]]
    for setting in table["setting"].unique(maintain_order=True):
        for row in table.filter(pl.col("setting") == setting).sort("difference", maintain_order=True).to_dicts():
            nms, nms_free, kept_nms, kept_nms_free = (f"{row[name]:.3f}" for name in SCORES)
            lines.append(
                [
                    setting,
                    row["kept"],
                    row["configuration"],
                    f"{nms} / {nms_free}",
                    f"{kept_nms} / {kept_nms_free}",
                    f"{row['difference']:+.3f}",
                ]
            )
    return markdown(lines)


def write(results: Path) -> None:
    """Write the table.

    Args:
        results (Path): Folder with the readings, and for the table.
    """
    (results / "lost.md").write_text(to_markdown(readings(results)), encoding="utf-8")


if __name__ == "__main__":
    write(RESULTS)
