"""Draws how cost grows: answering images at more sizes, opening larger caches, and reports on larger val sets.

    python examples/speed/plot.py      writes growth.png into docs/assets

It reads `results/growth.json` of `growth.py` and `results/stored_answers.json` of `stored_answers.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
from ultralytics.utils import plt_settings

RESULTS = Path(__file__).resolve().parent / "results"
PICTURE = RESULTS.parents[2] / "docs" / "assets" / "growth.png"
ACTORS = {0: "in this process", 1: "1 Ray actor", 2: "2 Ray actors"}
WAYS = {"memory": "reading all", "disk, first time": "first time", "disk": "later"}  # of stored_answers.py


def tables(results: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return what is drawn, as the measurements wrote it down.

    Args:
        results (Path): Folder of the results.

    Returns:
        rates (pl.DataFrame): Columns `sizes`, `actors` and `value` in images per second.
        openings (pl.DataFrame): Columns `images`, `way` and `seconds`.
        reports (pl.DataFrame): Columns `images` and `value` in seconds.
    """
    rows = json.loads((results / "growth.json").read_text(encoding="utf-8"))["table"]
    openings = json.loads((results / "stored_answers.json").read_text(encoding="utf-8"))["opening"]
    rates, reports = (pl.DataFrame([row for row in rows if row["part"] == part]) for part in ("cache", "report"))
    return rates, pl.DataFrame(openings), reports


def in_words(seconds: float) -> str:
    """Return a duration as a short text, such as "12 s" or "5.4 min"."""
    return f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.0f} s"


def log_axes(ax: Any, counts: list[int]) -> None:
    """Give a panel logarithmic axes, with a tick for each number of images."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(counts, [f"{count:,}" for count in counts])
    ax.minorticks_off()
    low, high = ax.get_ylim()
    ticks = {0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min"}
    shown = {seconds: text for seconds, text in ticks.items() if low <= seconds <= high}
    ax.set_yticks(list(shown), list(shown.values()))
    ax.set_xlabel("images")


@plt_settings()
def plot(results: Path, file: Path) -> None:
    """Draw the three panels below each other, so that a phone shows them as wide as its screen.

    Args:
        results (Path): Folder of the results.
        file (Path): Image to write.
    """
    import matplotlib.pyplot as plt

    rates, openings, reports = tables(results)
    fig, (top, middle, bottom) = plt.subplots(3, 1, figsize=(5, 9.6), layout="constrained")
    for actors, name in ACTORS.items():
        own = rates.filter(pl.col("actors") == actors).sort("sizes")
        top.plot(own["sizes"], own["value"], "-o", color=f"C{actors}", label=name)
    top.set_title("Answering images: images per second")
    top.set_xlabel("sizes at which each image is answered")
    top.set_xticks(sorted(rates["sizes"].unique()))
    top.set_ylim(bottom=0)
    top.legend()
    for i, (way, name) in enumerate(WAYS.items()):
        own = openings.filter(pl.col("way") == way).sort("images")
        middle.plot(own["images"], own["seconds"], "-o", color=f"C{i}", label=name)
    middle.set_title("Opening stored answers: time")
    log_axes(middle, sorted(openings["images"].unique()))
    middle.legend()
    bottom.plot(reports["images"], reports["value"], "-o", color="C0")
    for images, seconds in reports.select("images", "value").iter_rows():
        bottom.annotate(in_words(seconds), (images, seconds), (-6, 6), textcoords="offset points", ha="right")
    bottom.set_title("Report: time by val images")
    bottom.margins(0.15)
    log_axes(bottom, sorted(reports["images"]))
    for ax in (top, middle, bottom):
        ax.grid(alpha=0.3)
    fig.savefig(file, dpi=150)
    plt.close(fig)


if __name__ == "__main__":
    plot(RESULTS, PICTURE)
