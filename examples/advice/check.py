"""Would `yolo-kd advise` have been right? Its rule on every finished bench of the study, beside what the bench showed.

    python examples/advice/check.py     writes results/check.csv and check.md

The rule is `ultralytics_kd.advice.verdict.judge`. Its inputs are taken from records, as the models are not in the
repository: scores of teacher and student alone on the val set (with NMS, if the head has both), classes that the
teacher lacks, parameters and image sizes. What only a run of `advise` measures is not in the records, and is left
unknown: the cosine of the gradients, and classes that are taken for others. So two verdicts are given:

    with baseline       the student alone is known: its mean score in the same bench stands for `baseline=alone.pt`
    without             it is not known, and there was no short training; parameters times pixels stand for computation

What the bench showed is the gain over the student alone, paired by seed, mean of both heads, with its 95% interval.
"better" is an interval above zero, "worse" one below. GO is right if it was better, NO GO if it was not.

`READINGS` are trainings on held-out training images that the study's README tells of: one seed each, so no interval.
There "better" is any gain. They are the only ones with bad teachers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from ultralytics_kd.advice.verdict import GO, NO_GO, TRAINED, Facts, judge
from ultralytics_kd.bench.table import gain_text, interval, markdown

HERE = Path(__file__).resolve().parent
STUDY = HERE.parent / "study" / "results"
FIRST = "With the student's own score"  # first words below the table
BETTER, WORSE, OPEN = "better", "worse", "not shown"
ALONE, BUILTIN = "alone", "builtin"
# Row of coco-readings.csv (its set and arm), and the teacher's score on those images, with NMS: from the study's
# README, for the wrong order as `advise` finds it on the val images
READINGS = (
    ("bccd", "weights and terms of teacher A at 224 px (the defaults)", 0.626),
    ("bccd", "terms of teacher A at 224 px, own weights", 0.626),
    ("bccd", "terms of teacher B at 128 px, own weights", 0.561),
    ("bccd", "fitted weights and terms of teacher B at 128 px", 0.561),
    ("bccd", "terms of teacher D, own weights", 0.478),
    ("bccd", "terms of a teacher of one epoch, constant weights", 0.188),
    ("bccd", "terms of teacher A with its classes in a wrong order, constant weights", 0.003),
    ("deeppcb", "weights and terms of teacher C at 256 px (the defaults)", 0.446),
)


def of_stage(name: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for every arm of a bench that has a teacher.

    Args:
        name (str): The stage.
        report (dict): Its bench.json.
    """
    runs = pl.DataFrame(report["runs"]).select("arm", "seed", "head", "score")
    first = report["table"][0]["head"]  # with NMS, or the only one
    settings, teachers = report["settings"], {(t["arm"], t["head"]): t for t in report["teachers"]}
    alone = runs.filter((pl.col("arm") == ALONE) & (pl.col("head") == first))["score"].mean()
    rows = []
    for arm, args in settings["arms"].items():
        teacher = teachers.get((arm, first))
        if teacher is None:
            continue
        gain, low, high = gain_of(runs, arm)
        size = (args.get("kd_teacher_imgsz") or settings["imgsz"]) / settings["imgsz"]
        students = student_parameters(name)
        rows.append(
            row(
                stage=name,
                arm="distill_model" if arm == BUILTIN else arm,
                teacher=teacher["score"],
                alone=float(alone),  # type: ignore[arg-type]
                computes=teacher["parameters"] / students * size**2 if students else None,
                unmatched=teacher["unmatched"],
                gain=gain,
                interval=(low, high),
            )
        )
    return rows


def gain_of(runs: pl.DataFrame, arm: str) -> tuple[float, float | None, float | None]:
    """Return the gain of an arm over the student alone, mean of both heads, and its 95% interval.

    Args:
        runs (pl.DataFrame): Scores by arm, seed and head.
        arm (str): The arm.
    """
    means = runs.group_by("arm", "seed", maintain_order=True).agg(pl.col("score").mean())
    own, base = (means.filter(pl.col("arm") == each) for each in (arm, ALONE))
    pairs = own.join(base, on="seed", suffix="_alone").sort("seed")
    differences = (pairs["score"] - pairs["score_alone"]).to_list()
    return sum(differences) / len(differences), *interval(differences)


def student_parameters(stage: str) -> int | None:
    """Return the parameters of a stage's student, None if no record tells."""
    file = STUDY / stage / "records" / "alone-0.json"
    return json.loads(file.read_text(encoding="utf-8"))["parameters"] if file.exists() else None


def row(
    stage: str,
    arm: str,
    teacher: float,
    alone: float,
    computes: float | None,
    unmatched: list[str],
    gain: float,
    interval: tuple[float | None, float | None],
) -> dict[str, Any]:
    """Return what the rule says of a teacher, and what was shown."""
    lead = teacher - alone if not unmatched else None
    with_baseline, _ = judge(Facts(teacher, alone, TRAINED, lead))
    without, _ = judge(Facts(teacher, computes=computes))
    shown = outcome(gain, *interval)
    return {
        "stage": stage,
        "arm": arm,
        "teacher": teacher,
        "alone": alone,
        "lead": lead,
        "computes": computes,
        "verdict": with_baseline,
        "without": without,
        "gain": gain,
        "ci_low": interval[0],
        "ci_high": interval[1],
        "shown": shown,
        "right": right(with_baseline, shown),
        "without_right": right(without, shown),
    }


def outcome(gain: float, low: float | None, high: float | None) -> str:
    """Return whether a gain was shown; without an interval its sign counts."""
    if low is None or high is None:
        return BETTER if gain > 0 else WORSE
    return BETTER if low > 0 else WORSE if high < 0 else OPEN


def right(verdict: str, shown: str) -> bool | None:
    """Return whether a verdict was right; None if it left the question open."""
    if verdict == GO:
        return shown == BETTER
    return shown != BETTER if verdict == NO_GO else None


def readings(file: Path) -> list[dict[str, Any]]:
    """Return the rows of the held-out readings.

    Args:
        file (Path): coco-readings.csv of the study.
    """
    table = pl.read_csv(file)
    rows = []
    for name, arm, teacher in READINGS:
        of_set = table.filter(pl.col("set") == name)
        base = of_set.filter(pl.col("arm") == f"{ALONE}, 40 epochs").row(0, named=True)
        own = of_set.filter(pl.col("arm") == arm).row(0, named=True)
        gain = own["mean"] - base["mean"]
        rows.append(row(f"held-out {name}", arm, teacher, base["nms"], None, [], gain, (None, None)))
    return rows


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    marks = {True: "right", False: "**wrong**", None: "open"}
    lines = [
        ["stage", "arm", "teacher", "alone", "lead", "with baseline", "without", "gain (95% CI)", "shown", "verdict"]
    ]
    for each in rows:
        verdict = marks[each["right"]]
        lines.append(
            [
                each["stage"],
                each["arm"],
                f"{each['teacher']:.3f}",
                f"{each['alone']:.3f}",
                f"{each['lead']:+.3f}",
                each["verdict"],
                "" if each["computes"] is None else each["without"],
                gain_text(each, 3),
                each["shown"],
                verdict,
            ]
        )
    return markdown(lines).replace("\\*\\*", "**")


def summary(rows: list[dict[str, Any]]) -> str:
    """Return how often the rule was right, in a sentence for each of its two forms."""
    texts = []
    for key, name, of in (
        ("right", FIRST, rows),
        ("without_right", "Without it", [each for each in rows if each["computes"] is not None]),
    ):
        count = {value: sum(each[key] is value for each in of) for value in (True, False, None)}
        texts.append(f"{name}: {count[True]} right, {count[False]} wrong, {count[None]} left open, of {len(of)}.")
    several = [each for each in rows if each["ci_low"] is not None]
    for name, of in (("", rows), (f"Of the {len(several)} with an interval, {{}} were right; there t", several)):
        better, known = (sum(each["shown"] == BETTER for each in of), sum(each["right"] is True for each in of))
        first = name.format(known) if name else "T"
        texts.append(f"{first}o say GO to every teacher would have been right {better} times of {len(of)}.")
    return "\n".join(texts)


def main(out: Path = HERE / "results") -> list[dict[str, Any]]:
    """Write the table, and return its rows.

    Args:
        out (Path): Folder for the table.
    """
    rows = []
    for file in sorted(STUDY.glob("*/bench.json")):
        rows += of_stage(file.parent.name, json.loads(file.read_text(encoding="utf-8")))
    rows += readings(STUDY / "coco-readings.csv")
    out.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_csv(out / "check.csv", float_precision=5)
    text = f"{to_markdown(rows)}\n{summary(rows)}\n"
    (out / "check.md").write_text(text, encoding="utf-8")
    print(text)
    return rows


if __name__ == "__main__":
    main()
