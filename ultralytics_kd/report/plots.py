"""The charts of a report: latency, classes, calibration and training curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from ultralytics.utils import plt_settings

from ..errors import KDError
from ..files import load_yaml
from .compared_model import BASELINE, STUDENT, TEACHER
from .score_names import END2END, NMS

# Okabe and Ito's palette, which colour-blind readers can tell apart; the markers differ too
COLORS = {TEACHER: "#000000", BASELINE: "#E69F00", STUDENT: "#0072B2"}
MARKERS = {TEACHER: "s", BASELINE: "^", STUDENT: "o"}
DPI = 110


@plt_settings()
def plot_latency(report: dict[str, Any], file: Path) -> bool:
    """Draw the score against the latency, if more than one model was timed.

    Args:
        report (dict): Metrics, as `collect_metrics` returns them.
        file (Path): Picture to write.

    Returns:
        (bool): Whether it was drawn.
    """
    import matplotlib.pyplot as plt

    timed = {role: m for role, m in report["models"].items() if m["latency"]}
    if len(timed) < 2:
        return False
    fig, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for role, model in timed.items():
        time, score = model["latency"], model["heads"][model["head"]]["score"]
        spread = [[time["ms"] - time["low"]], [time["high"] - time["ms"]]]
        ax.errorbar(time["ms"], score, xerr=spread, fmt=MARKERS[role], color=COLORS[role], markersize=9, capsize=3)
        ax.annotate(f" {role}", (time["ms"], score), xytext=(6, 6), textcoords="offset points")
    ax.set_xlim(0, max(m["latency"]["high"] for m in timed.values()) * 1.25)
    ax.margins(y=0.25)
    ax.set_xlabel("milliseconds per image (median, bar: quartiles)")
    ax.set_ylabel(report["metrics"][0])
    ax.grid(alpha=0.3)
    fig.savefig(file, dpi=DPI)
    plt.close(fig)
    return True


@plt_settings()
def plot_classes(report: dict[str, Any], file: Path, most: int = 30) -> bool:
    """Draw the score of every class, a bar for each model.

    Args:
        report (dict): Metrics, as `collect_metrics` returns them.
        file (Path): Picture to write.
        most (int): Largest number of classes to draw; those with the most labels come first.

    Returns:
        (bool): Whether it was drawn.
    """
    import matplotlib.pyplot as plt

    models = report["models"]
    classes = models[STUDENT]["classes"]
    if len(classes) < 2:
        return False
    names = sorted(classes, key=lambda name: -classes[name]["labels"])[:most]
    fig, ax = plt.subplots(figsize=(6, 1.2 + 0.16 * len(names) * (len(models) + 1)), layout="constrained")
    height = 0.8 / len(models)
    for i, (role, model) in enumerate(models.items()):
        values = [model["classes"].get(name, {}).get("score", 0.0) for name in names]
        places = [y + (i - (len(models) - 1) / 2) * height for y in range(len(names))]
        ax.barh(places, values, height * 0.9, color=COLORS[role], label=role)
    ax.set_yticks(range(len(names)), names, parse_math=False)  # a name may hold a $
    ax.invert_yaxis()
    ax.set_xlabel(report["metrics"][0])
    ax.locator_params(axis="x", nbins=6)  # otherwise the numbers of small scores overlap
    ax.grid(axis="x", alpha=0.3)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08 - 0.9 / (len(names) + 4)), ncols=3, frameon=False)
    fig.savefig(file, dpi=DPI)
    plt.close(fig)
    return True


@plt_settings()
def plot_calibration(report: dict[str, Any], file: Path) -> bool:
    """Draw the share of detections that are right against their confidence.

    Args:
        report (dict): Metrics, as `collect_metrics` returns them.
        file (Path): Picture to write.

    Returns:
        (bool): Whether it was drawn.
    """
    import matplotlib.pyplot as plt

    models = {role: m["calibration"]["bins"] for role, m in report["models"].items() if m.get("calibration")}
    if not any(models.values()):
        return False
    fig, ax = plt.subplots(figsize=(5, 4.2), layout="constrained")
    ax.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    for role, bins in models.items():
        conf, right = [b["conf"] for b in bins], [b["right"] for b in bins]
        ax.plot(conf, right, marker=MARKERS[role], color=COLORS[role], label=role)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("confidence")
    ax.set_ylabel("share of detections that are right")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    fig.savefig(file, dpi=DPI)
    plt.close(fig)
    return True


def read_curves(source: str) -> pl.DataFrame | None:
    """Return the results.csv of the run that the weights came from, None if it is missing or unreadable.

    Args:
        source (str): Path of weights; Ultralytics keeps them in RUN/weights.
    """
    file = Path(source).parent.parent / "results.csv"
    if not Path(source).is_file() or not file.is_file():
        return None
    try:
        table = pl.read_csv(file, infer_schema_length=None)
        return table.rename({name: name.strip() for name in table.columns})
    except (pl.exceptions.PolarsError, OSError):  # a line that was cut off, two columns of one name
        return None


def validated_head(source: str) -> str:
    """Return which of a model's two heads Ultralytics validated while it trained.

    Args:
        source (str): Path of weights in RUN/weights; the run's `args.yaml` is in RUN.
    """
    file = Path(source).parent.parent / "args.yaml"
    try:
        arguments = load_yaml(file) if file.is_file() else {}
    except KDError:  # it is damaged
        arguments = {}
    return END2END if arguments.get("nms") is False else NMS


@plt_settings()
def plot_curves(curves: dict[str, pl.DataFrame], metric: str, label: str, file: Path) -> bool:
    """Draw the losses and the score of each training over its epochs.

    Args:
        curves (dict[str, DataFrame]): results.csv of each model, by role.
        metric (str): Column of the score.
        label (str): Name of the score.
        file (Path): Picture to write.

    Returns:
        (bool): Whether it was drawn.
    """
    import matplotlib.pyplot as plt

    names = [c.removeprefix("train/") for t in curves.values() for c in t.columns if c.startswith("train/")]
    losses = [name for name in dict.fromkeys(names) if any(_varies(t, name) for t in curves.values())]
    if not losses:
        return False
    panels = {**{name: {f"train/{name}": "-", f"val/{name}": ":"} for name in losses}, label: {metric: "-"}}
    rows = -(-len(panels) // 3)
    fig, axes = plt.subplots(rows, 3, figsize=(11, 2.5 * rows), squeeze=False, layout="constrained")
    for ax, (title, columns) in zip(axes.flat, panels.items()):
        for role, table in curves.items():
            for column, line in columns.items():
                if column in table.columns:
                    ax.plot(table["epoch"], table[column].cast(pl.Float64, strict=False), line, color=COLORS[role])
        ax.set_title(title, fontsize=11)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    handles = [plt.Line2D([], [], color=COLORS[role], label=role) for role in curves]
    handles.append(plt.Line2D([], [], color="grey", linestyle="-", label="train"))
    handles.append(plt.Line2D([], [], color="grey", linestyle=":", label="val"))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    fig.savefig(file, dpi=DPI)
    plt.close(fig)
    return True


def _varies(table: pl.DataFrame, loss: str) -> bool:
    """Return whether a loss column is not all zeros, as it is for a term that was off."""
    column = f"train/{loss}"
    return column in table.columns and bool((table[column].cast(pl.Float64, strict=False).fill_null(0) != 0).any())
