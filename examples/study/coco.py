"""The `coco-` stages at a glance: a table of mean scores of both heads, the curve of epochs, and the parts of the gain.

    python examples/study/coco.py     writes results/coco.md, and coco-parts.png into docs/assets

After stages of more epochs it also writes coco-epochs.png, with the sets that have some. `study.py` runs the stages.
Here the score of a run is the mean of both heads, and gains are paired by seed. Times are those of `costs.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
from ultralytics.utils import plt_settings

from ultralytics_kd.bench.table import gain_text, interval, markdown

STUDY = Path(__file__).resolve().parent
RESULTS, PICTURES = STUDY / "results", STUDY.parents[1] / "docs" / "assets"
ARMS = {  # names for readers
    "alone": "alone",
    "builtin": "distill_model",
    "init": "kd, weights only",
    "terms": "kd, terms only",
    "kd": "kd",
    "stored": "kd, stored answers",
    "plain": "kd, teacher at the student's size",
}
SETS = {  # stages that are not named after a set
    "bccd-long": "bccd, longer teacher",
    "bccd-s": "bccd, bigger teacher",
    "bccd-yolo11n": "bccd, YOLO11n",
    "helmet-tenth": "helmet, 10% of the labels",
    "random-bccd": "bccd, random weights",
}
# Names of arms in `costs.json`; in "init" a teacher answers at every step for nothing
COSTS = {"kd": "with teacher", "terms": "with teacher", "stored": "stored answers"}
SMALL = "teacher at the student's size"  # that of `builtin`, which sees the student's images
COLUMNS = 3  # panels side by side in a plot


def runs(results: Path) -> pl.DataFrame:
    """Return the runs of all `coco-` stages and of `random-bccd`, with the `score` of both heads and the `hours`.

    The hours are those of `costs.py`, without the making of stored answers, and None for arms that it does not measure.

    Args:
        results (Path): Folder with a folder per stage.
    """
    rows: list[dict[str, Any]] = []
    for file in sorted([*results.glob("coco-*/bench.json"), *results.glob("random-bccd/bench.json")]):
        stage = file.parent.name.removeprefix("coco-")
        if stage.endswith("-teacher"):  # trains the teacher of another stage
            continue
        report = json.loads(file.read_text(encoding="utf-8"))
        name = re.sub("-([24]x|plain)$", "", stage)
        shared = {"set": SETS.get(name, name), "epochs": report["settings"]["epochs"]}
        hours = _hours(file.parent / "costs.json")
        for run in report["runs"]:
            own = {key: run[key] for key in ("arm", "seed", "score")}
            rows.append({**shared, **own, "hours": hours.get(COSTS.get(run["arm"], run["arm"]))})
        for teacher, arms in (("teacher", {"kd", "stored"}), (SMALL, {"builtin"})):
            scores = {(t["head"], t["score"]) for t in report["teachers"] if t["arm"] in arms}
            rows += [{**shared, "arm": teacher, "seed": -1, "score": score, "hours": None} for _, score in scores]
    return (
        pl.DataFrame(rows, infer_schema_length=None)
        .with_columns(pl.col("hours").cast(pl.Float64))
        .group_by("set", "epochs", "arm", "seed", maintain_order=True)
        .agg(pl.col("score", "hours").mean())
    )


def _hours(costs: Path) -> dict[str, float]:
    """Return the hours of a stage's trainings, as far as they were measured."""
    if not costs.is_file():
        return {}
    arms = json.loads(costs.read_text(encoding="utf-8"))["arms"]
    return {name: arm["hours"] for name, arm in arms.items()}


def gains(table: pl.DataFrame) -> pl.DataFrame:
    """Return a row for each set, number of epochs and arm, with the gain over `alone` of the same epochs and seed.

    Args:
        table (pl.DataFrame): Runs, as `runs` returns them.

    Returns:
        (pl.DataFrame): Columns `set`, `epochs`, `arm`, `runs`, `score`, `gain`, `ci_low` and `ci_high` (95%), `closed`
            (gain divided by the teacher's lead over `alone`), `time` (divided by that of `alone`, None if unknown) and
            the scores of the `teacher` at its own image size and at the student's, `small` (None if not measured).
    """
    rows = []
    for (name, epochs), part in table.group_by("set", "epochs", maintain_order=True):
        alone = part.filter(pl.col("arm") == "alone")
        teacher, small = (part.filter(pl.col("arm") == name)["score"] for name in ("teacher", SMALL))
        for arm in [a for a in ARMS if a in part["arm"]]:
            own = part.filter(pl.col("arm") == arm)
            pairs = own.join(alone, on="seed", suffix="_alone")
            differences = (pairs["score"] - pairs["score_alone"]).to_list() if arm != "alone" else []
            low, high = interval(differences)
            gain = sum(differences) / len(differences) if differences else None
            lead = teacher[0] - alone["score"].mean() if len(teacher) else None
            rows.append(
                {
                    "set": name,
                    "epochs": epochs,
                    "arm": arm,
                    "runs": own.height,
                    "score": own["score"].mean(),
                    "gain": gain,
                    "ci_low": low,
                    "ci_high": high,
                    "teacher": teacher[0] if len(teacher) else None,
                    "small": small[0] if len(small) else None,
                    "closed": gain / lead if gain is not None and lead else None,
                    "time": _ratio(own["hours"][0], alone["hours"][0]),
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None).sort("set", "epochs", maintain_order=True)


def _ratio(own: float | None, alone: float | None) -> float | None:
    """Return how many times as long an arm takes; None if one of the two is unknown."""
    return own / alone if own and alone else None


def to_markdown(table: pl.DataFrame) -> str:
    """Return gains as a Markdown table.

    Args:
        table (pl.DataFrame): Gains, as `gains` returns them.
    """
    lines = [["set", "epochs", "arm", "seeds", "mAP50-95", "gain (95% CI)", "gap closed", "time", "teacher", SMALL]]
    for row in table.iter_rows(named=True):
        lines.append(
            [
                row["set"],
                str(row["epochs"]),
                ARMS[row["arm"]],
                str(row["runs"]),
                f"{row['score']:.3f}",
                gain_text(row, 3),
                "" if row["closed"] is None else f"{row['closed']:.0%}",
                "" if row["time"] is None else f"{row['time']:.2f}x",
                "" if row["teacher"] is None else f"{row['teacher']:.3f}",
                "" if row["small"] is None else f"{row['small']:.3f}",
            ]
        )
    return markdown(lines)


def panels(count: int, height: float, **options: Any) -> tuple[Any, list[Any]]:
    """Return a figure and its panels, in rows of at most `COLUMNS`.

    Args:
        count (int): Number of panels.
        height (float): Height of a panel in inches.
        **options (Any): Options of `plt.subplots`.
    """
    import matplotlib.pyplot as plt

    rows = -(-count // COLUMNS)
    columns = -(-count // rows)  # rows as even as they can be
    size = (3.6 * columns, height * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    for ax in axes.flat[count:]:
        ax.remove()
    return fig, list(axes.flat[:count])


@plt_settings()
def plot_epochs(table: pl.DataFrame, file: Path) -> None:
    """Draw the score of `alone` and `kd` over the number of epochs, a panel per set.

    Args:
        table (pl.DataFrame): Runs, as `runs` returns them.
        file (Path): Image to write.
    """
    import matplotlib.pyplot as plt

    names = table["set"].unique(maintain_order=True).to_list()
    fig, axes = panels(len(names), height=3.4)
    for ax, name in zip(axes, names):
        part = table.filter(pl.col("set") == name)
        for color, arm in (("C7", "alone"), ("C0", "kd"), ("C2", "stored")):
            own = part.filter(pl.col("arm") == arm)
            mean = own.group_by("epochs").agg(pl.col("score").mean()).sort("epochs")
            if own.is_empty():
                continue
            ax.plot(own["epochs"], own["score"], "o", color=color, alpha=0.35, markersize=4)
            ax.plot(mean["epochs"], mean["score"], "-o", color=color, label=ARMS[arm])
        teacher = part.filter(pl.col("arm") == "teacher")["score"]
        if len(teacher):
            ax.axhline(teacher[0], linestyle="--", color="black", linewidth=1, label="teacher")
        ax.set_xscale("log", base=2)
        epochs = sorted(part["epochs"].unique())
        ax.set_xticks(epochs, [str(e) for e in epochs])
        ax.set_title(name)
        ax.set_xlabel("epochs")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.0, 0.93))
    axes[0].set_ylabel("mAP50-95, mean of both heads")
    fig.savefig(file, dpi=150)
    plt.close(fig)


@plt_settings()
def plot_parts(table: pl.DataFrame, file: Path) -> None:
    """Draw the gain of each arm over `alone` with its interval, a panel per set. All panels list the same arms.

    Args:
        table (pl.DataFrame): Gains, as `gains` returns them.
        file (Path): Image to write.
    """
    import matplotlib.pyplot as plt

    shortest = table.group_by("set", maintain_order=True).agg(pl.col("epochs").min())
    table = table.join(shortest, on=["set", "epochs"]).filter(pl.col("gain").is_not_null())
    names = table["set"].unique(maintain_order=True).to_list()
    arms = [arm for arm in ARMS if arm in set(table["arm"])]
    fig, axes = panels(len(names), height=2.6, sharex=True, sharey=True)
    for ax, name in zip(axes, names):
        rows = table.filter(pl.col("set") == name).to_dicts()
        for row in rows:
            y = arms.index(row["arm"])
            ax.barh(y, row["gain"], color=f"C{list(ARMS).index(row['arm'])}", alpha=0.8)
            if row["ci_low"] is not None:
                ax.plot([row["ci_low"], row["ci_high"]], [y, y], color="black", linewidth=1.5)
        for y in set(range(len(arms))) - {arms.index(row["arm"]) for row in rows}:
            ax.text(0.002, y, "not run", va="center", fontsize=8, color="grey")
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_title(f"{name}, {rows[0]['epochs']} epochs", fontsize=10)
        ax.set_xlabel("gain over alone, mAP50-95")
        ax.tick_params(labelbottom=True)  # a shared axis would have its numbers in the last row alone
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(arms)), [ARMS[arm] for arm in arms])
    axes[0].invert_yaxis()
    fig.savefig(file, dpi=150)
    plt.close(fig)


def write(results: Path, pictures: Path) -> None:
    """Write the table and the plots.

    Args:
        results (Path): Folder with a folder per stage, and for the table.
        pictures (Path): Folder for the plots.
    """
    all_runs = runs(results)
    table = gains(all_runs)
    (results / "coco.md").write_text(to_markdown(table), encoding="utf-8")
    curves = all_runs.filter(pl.col("epochs").n_unique().over("set") > 1)
    if len(curves):
        plot_epochs(curves, pictures / "coco-epochs.png")
    plot_parts(table, pictures / "coco-parts.png")


if __name__ == "__main__":
    write(RESULTS, PICTURES)
