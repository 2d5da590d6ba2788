"""The table of a bench in the terminal, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultralytics.utils import colorstr

from ..report.options import PLACES, USED
from ..report.score_names import HEADS, ONE
from ..screen import command, command_line, counted, duration, near, near_value, paragraph, row, table
from .arms import ALONE, Arm
from .table import gain_text, metric_names, score_text, teacher_name

SHOWN = "A gain whose interval reaches below zero has not been shown."
ONE_SEED = "With one seed a gain has no interval: seeds=3 or more show whether it is chance."


def start_text(arms: Sequence[Arm], seeds: Sequence[int], model: str, folder: Path) -> str:
    """Return what a bench is about to do.

    Args:
        arms (Sequence[Arm]): Its arms.
        seeds (Sequence[int]): Seeds of each.
        model (str): The student.
        folder (Path): Folder of the bench.
    """
    trainings = f"{counted(len(arms) * len(seeds), 'training')}: {counted(len(seeds), 'seed')} of each arm"
    rows = {"student": near(model), "arms": ", ".join(arm.name for arm in arms), "runs": trainings}
    lines = [line for title, text in rows.items() for line in row(title, text)]
    return "\n".join([colorstr("Bench:"), *lines, *row("folder", near(folder)), ""])


def to_text(report: dict[str, Any], folder: Path) -> str:
    """Return the tables, one for each head, with their files and the next command.

    Args:
        report (dict): Report, as `run_bench` returns it.
        folder (Path): Folder of the bench.
    """
    if not report["table"]:
        return ""
    lines = []
    for head in dict.fromkeys(each["head"] for each in report["table"]):
        lines += ["", *table(_of_head(report, head))]
    gains = [each for each in report["table"] if each["gain"] is not None]
    if gains:
        lines += ["", *paragraph(SHOWN if any(each["ci_low"] is not None for each in gains) else ONE_SEED)]
    for sentence in losses(report):
        lines += paragraph(sentence)
    lines += row("tables", f"bench.md, bench.csv, bench.json and bench.png in {near(folder)}")
    following = next_command(report, folder)
    return "\n".join(lines + (command(following) if following else []))


def losses(report: dict[str, Any]) -> list[str]:
    """Return a sentence on the arms that are worse than the student alone, and one on teachers that are no better.

    Args:
        report (dict): Report, as `run_bench` returns it.
    """
    alone = {each["head"]: each["score"] for each in report["table"] if each["arm"] == ALONE}
    heads = list(dict.fromkeys(each["head"] for each in report["table"]))
    worse = [
        (each["arm"], each["head"]) for each in report["table"] if each["ci_high"] is not None and each["ci_high"] < 0
    ]
    weak = [
        (each["arm"], head)
        for each in report["teachers"]
        for head in heads
        if not each["unmatched"]  # a teacher scores 0 in classes that it lacks
        if each["head"] in {head, ONE} and head in alone and each["score"] <= alone[head]
    ]
    sentences = {
        "Worse than the student alone: {}.": worse,
        "No better than the student alone: the teacher of {}. It has nothing to teach.": weak,
    }
    return [text.format(_with_heads(found, heads)) for text, found in sentences.items() if found]


def _with_heads(found: list[tuple[str, str]], heads: list[str]) -> str:
    """Return names of arms as text, each with its heads unless it was found with all heads.

    Args:
        found (list[tuple[str, str]]): Arms and heads.
        heads (list[str]): All heads of the table.
    """
    by_arm: dict[str, list[str]] = {}
    for arm, head in found:
        by_arm.setdefault(arm, []).append(HEADS[head])
    return ", ".join(
        arm if len(names) == len(heads) else f"{arm} ({' and '.join(names)})" for arm, names in by_arm.items()
    )


def _of_head(report: dict[str, Any], head: str) -> list[list[str]]:
    """Return the cells of the table of one head, the header first."""
    main, second = metric_names(report)
    rows = [each for each in report["table"] if each["head"] == head]
    alone = next((each["seconds"] for each in rows if each["arm"] == ALONE), None)
    seeds = sorted({seed for each in rows for seed in each["seeds"]})
    keeps = any("kept" in each for each in rows)
    old = [f"old classes: {main}"] if keeps else []
    header = [HEADS[head], main, "gain over alone (95% CI)", "gap closed", second, *old, "time"]
    lines = [[*header, *(f"seed {seed}" for seed in seeds)]]
    for each in rows:
        ratio = f" ({each['seconds'] / alone:.2f}x)" if alone and each["arm"] != ALONE else ""
        lines.append(
            [
                each["arm"],
                score_text(each),
                gain_text(each),
                "" if each["gap_closed"] is None else f"{each['gap_closed']:.0%}",
                f"{each['second']:.4f}",
                *([f"{each['kept']:.4f}" if "kept" in each else ""] if keeps else []),
                duration(each["seconds"]) + ratio,
                *(f"{each['seeds'][seed]:.4f}" if seed in each["seeds"] else "" for seed in seeds),
            ]
        )
    teachers = {(t["score"], t["second"], t["parameters"]): t for t in report["teachers"] if t["head"] in {head, ONE}}
    for t in teachers.values():
        name = teacher_name(report, t["arm"], len(teachers) > 1)
        kept = [f"{t['kept']:.4f}" if "kept" in t else ""] if keeps else []
        lines.append([name, f"{t['score']:.4f}", "", "", f"{t['second']:.4f}", *kept, "", *("" for _ in seeds)])
    return lines


def next_command(report: dict[str, Any], folder: Path) -> str:
    """Return the command that shows where the best arm differs from the student alone; empty if there is none.

    Args:
        report (dict): Report, as `run_bench` returns it.
        folder (Path): Folder of the bench.
    """
    settings = report["settings"]
    gains = {each["arm"]: each for each in report["table"] if each["gain"] is not None}
    taught = {
        arm: settings["arms"][arm]["teacher"] or folder / "runs" / "teacher" / "weights" / "best.pt"
        for arm in gains
        if "teacher" in settings.get("arms", {}).get(arm, {})
    }
    if not taught:
        return ""
    arm = max(taught, key=lambda name: float(gains[name]["gain"]))
    seed = next(iter(gains[arm]["seeds"]))
    best = {name: folder / "runs" / f"{name}-{seed}" / "weights" / "best.pt" for name in (arm, ALONE)}
    if not all(file.is_file() for file in best.values()):
        return ""
    args = {**settings, **settings["arms"][arm]}
    if settings.get("holdout"):  # the val set stays unseen
        args["data"] = folder / f"holdout-{settings['holdout']:g}" / "data.yaml"
    if args.get("kd_keep"):  # such a teacher may know no class of the data
        if not args.get("kd_keep_data"):
            return ""
        args["data"] = args["kd_keep_data"]
    models = {"teacher": taught[arm], "student": best[arm], "baseline": best[ALONE]}
    names = [name for name in USED if name not in PLACES | {"batch"} and args.get(name) is not None]
    given = {**models, **{name: args[name] for name in names}}
    return command_line("report", {k: near_value(v) for k, v in given.items()})
