"""The plot of a bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.utils import plt_settings

from ..report.score_names import HEADS


@plt_settings()
def plot_table(table: list[dict[str, Any]], metric: str, file: Path) -> None:
    """Draw each run as a point, the mean of each arm as a line and its teacher as a dashed line; a panel per head.

    Args:
        table (list[dict]): Rows of the table, as `summarize` returns them.
        metric (str): Name of the score.
        file (Path): Image to write.
    """
    import matplotlib.pyplot as plt

    heads = list(dict.fromkeys(row["head"] for row in table))
    height = 1.4 + 0.45 * max(sum(row["head"] == head for row in table) for head in heads)
    fig, axes = plt.subplots(1, len(heads), figsize=(6 * len(heads), height), squeeze=False, layout="constrained")
    for ax, head in zip(axes[0], heads):
        rows = [row for row in table if row["head"] == head]
        for y, row in enumerate(rows):
            values = list(row["seeds"].values())
            ax.plot(values, [y] * len(values), "o", alpha=0.6, color=f"C{y % 10}")
            ax.plot([row["score"]] * 2, [y - 0.3, y + 0.3], color=f"C{y % 10}", linewidth=2)
            if row["teacher"] is not None:
                ax.plot([row["teacher"]] * 2, [y - 0.4, y + 0.4], "--", color="black", linewidth=1)
        ax.set_yticks(range(len(rows)), [row["arm"] for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel(f"{metric}, dashed: teacher")
        ax.set_title(f"{HEADS[head]} head" if HEADS[head] else "")
        ax.grid(axis="x", alpha=0.3)
    fig.savefig(file, dpi=150)
    plt.close(fig)
