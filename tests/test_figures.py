"""The figures in the README and in the summary of the results page are those of the tables in the repository."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "examples" / "study"
sys.path.insert(0, str(STUDY))

import coco  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS_PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
GAINS = coco.gains(coco.runs(STUDY / "results")).to_dicts()
ROWS = re.findall(
    r"^\| (\w+) \((\d+) (?:images|photos).*?, (\d+) epochs, (\w+) seeds\) \| (.+) \|$", README, re.MULTILINE
)
NUMBERS = {"three": 3, "four": 4, "five": 5}


def gain(name: str, epochs: int, arm: str) -> dict:
    """Return the row of a set, a number of epochs and an arm."""
    return next(row for row in GAINS if (row["set"], row["epochs"], row["arm"]) == (name, epochs, arm))


def interval(row: dict) -> str:
    """Return a gain with its interval as text."""
    return f"{row['gain']:+.3f} ({row['ci_low']:+.3f} to {row['ci_high']:+.3f})"


def means() -> dict[str, dict[str, float]]:
    """Return gain and closed share of the gap by arm: the mean of both sets and both heads, from random weights."""
    with (STUDY / "results" / "summary.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"].startswith("mean of") and row["gain"]]
    arms: dict[str, list[dict]] = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(row)
    return {
        arm: {key: sum(float(row[key]) for row in both) / len(both) for key in ("gain", "gap_closed")}
        for arm, both in arms.items()
    }


def step(arm: str) -> dict:
    """Return the row of an arm in the table of step times, for YOLO26s as the teacher."""
    rows = json.loads((ROOT / "examples" / "speed" / "results" / "cpu.json").read_text())["teachers"]["s"]
    return next(row for row in rows if row["arm"] == arm)


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_readme_has_results():
    assert ROWS


@pytest.mark.parametrize(("name", "images", "epochs", "seeds", "cells"), ROWS)
def test_readme_shows_the_gains_of_the_study(name, images, epochs, seeds, cells):
    alone, stored, kd, builtin, teacher = (cell.strip(" *") for cell in cells.split("|"))
    arms = {row["arm"]: row for row in GAINS if (row["set"], row["epochs"]) == (name, int(epochs))}
    assert stored == (interval(arms["stored"]) if "stored" in arms else "not run")
    assert teacher == f"{arms['kd']['teacher']:.3f}"
    assert alone == f"{gain(name, int(epochs), 'alone')['score']:.3f}"
    assert kd == interval(gain(name, int(epochs), "kd"))
    assert builtin == interval(gain(name, int(epochs), "builtin"))
    assert {arms[arm]["runs"] for arm in ("alone", "stored", "kd", "builtin") if arm in arms} == {NUMBERS[seeds]}


def test_readme_and_results_page_show_what_is_left_at_equal_time():
    longer, stored = gain("deeppcb", 60, "alone")["score"], gain("deeppcb", 30, "stored")["score"]
    text = " ".join(README.split())
    for arm, words in (("stored", "then takes {} and {} times"), ("kd", "at every step it takes {} and {} times")):
        times = (f"{gain(*stage, arm)['time']:.2f}" for stage in (("deeppcb", 30), ("bccd", 40)))
        assert words.format(*times) in text
    assert f"has {longer:.3f} after twice the epochs (one seed), {stored - longer:.3f} less" in text
    page = " ".join(RESULTS_PAGE.split())
    assert f"has {longer:.3f}: stored answers are {stored - longer:.3f} ahead" in page


def test_readme_shows_what_the_teachers_score_at_the_students_size():
    *others, last = (f"{gain(name, int(epochs), 'kd')['small']:.3f}" for name, _, epochs, _, _ in ROWS)
    assert f"on 128 px images they themselves have {', '.join(others)} and {last}" in " ".join(README.split())


def test_pages_show_the_gain_by_a_bigger_teacher():
    kd, stored, builtin = (gain("bccd, bigger teacher", 40, arm) for arm in ("kd", "stored", "builtin"))
    readme, page = (" ".join(text.split()) for text in (README, RESULTS_PAGE))
    assert f"That YOLO26s of {kd['teacher']:.3f}" in readme and f"a YOLO26s has {kd['teacher']:.3f}" in page
    assert f"{interval(kd)}, {kd['closed']:.0%} of the gap, in three seeds" in readme
    assert f"(`distill_model`: {builtin['gain']:+.3f})" in readme and kd["runs"] == builtin["runs"] == 3
    assert f"[{interval(kd)}](#students-with-coco-weights), {kd['closed']:.0%} of the gap" in page
    assert f"`kd` {kd['score']:.3f}, {interval(kd)}" in page
    assert f"stored answers {stored['score']:.3f}, {interval(stored)}: {kd['closed']:.0%} and" in page


def test_pages_show_what_the_bigger_teachers_weights_do():
    records = STUDY / "results" / "coco-bccd-s" / "records"
    scores = [json.loads((records / f"{arm}-0.json").read_text(encoding="utf-8"))["scores"] for arm in ("init", "kd")]
    weights, both = (sum(head["score"] for head in heads.values()) / len(heads) for heads in scores)
    assert f"begun so, with labels alone, it has {weights:.3f} (one seed)" in " ".join(README.split())
    shown = f"labels alone after them the student has {weights:.3f} in seed 0, and with terms {both:.3f}"
    assert shown in " ".join(RESULTS_PAGE.split())


def test_pages_show_what_longer_trainings_leave_of_the_gain():
    alone, stored = ([gain("bccd", epochs, arm) for epochs in (40, 80, 160)] for arm in ("alone", "stored"))
    assert [row["runs"] for row in (*alone, *stored)] == [5, 1, 3, 5, 1, 3]
    readme, page = (" ".join(text.split()) for text in (README, RESULTS_PAGE))
    for words, rows in (("alone", alone), ("With stored answers it", stored)):
        first, second, third = (f"{row['score']:.3f}" for row in rows)
        assert f"{words} has {first} after 40" in page and f"{second} after 80 (one seed) and {third} after 160" in page
    early, middle, late = stored
    shown = f"shrinks from {early['gain']:.3f} to {middle['gain']:.3f} and to {interval(late)}"
    assert shown in page and late["ci_low"] < 0
    assert (
        f"it is {interval(late)} after 160 epochs (three seeds), where the student alone has {third_of(alone)}"
        in readme
    )
    assert f"[{interval(late)}](#students-with-coco-weights) after 160 epochs: not shown" in page
    longer = gain("bccd, longer teacher", 160, "stored")
    assert longer["ci_low"] < 0 and longer["runs"] == 3 and f"trained as long {interval(longer)}" in readme
    assert f"trained for as long, [{interval(longer)}](#students-with-coco-weights): not shown" in page
    assert f"(0.611) the student has {longer['score']:.3f} after 160 epochs: {interval(longer)}" in page


def third_of(rows: list[dict]) -> str:
    """Return the score of the longest training as text."""
    return f"{rows[2]['score']:.3f}"


def test_pages_show_the_gain_with_a_tenth_of_the_labels():
    kd, builtin = (gain("helmet, 10% of the labels", 60, arm) for arm in ("kd", "builtin"))
    readme, page = (" ".join(text.split()) for text in (README, RESULTS_PAGE))
    assert f"the gain is {interval(kd)} (`distill_model`: {builtin['gain']:+.3f})" in readme and kd["runs"] == 3
    assert f"`kd` gains {interval(kd)} in 60 epochs, three seeds, {kd['closed']:.0%} of the gap" in page
    assert f"`distill_model` {interval(builtin)} (`coco-helmet-tenth`)" in page
    assert f"[{interval(kd)}](#students-with-coco-weights) on building sites" in page


def test_pages_show_the_gain_at_four_times_the_epochs():
    scores = {}
    for stage in ("variants-bccd", "variants-bccd-4x"):
        report = json.loads((STUDY / "results" / stage / "bench.json").read_text(encoding="utf-8"))
        for arm in ("alone", "kd"):
            heads = [row["score"] for row in report["table"] if row["arm"] == arm]
            scores[arm, report["settings"]["epochs"]] = sum(heads) / len(heads)
    page = " ".join(RESULTS_PAGE.split())
    assert f"alone has {scores['alone', 40]:.3f} after 40 epochs and {scores['alone', 160]:.3f} after 160." in page
    assert f"it has {scores['kd', 40]:.3f} after 40 and {scores['kd', 160]:.3f} after 160" in page
    early, late = (scores["kd", epochs] - scores["alone", epochs] for epochs in (40, 160))
    assert f"{early:+.3f} and {late:+.3f} (`variants-bccd`, `variants-bccd-4x`)" in page


def test_results_page_shows_fading_and_measured_weights():
    table = json.loads((STUDY / "results" / "variants-bccd" / "bench.json").read_text(encoding="utf-8"))["table"]
    arms = ("linear", "weight-auto", "kd")
    fading, measured, constant = (sum(r["score"] for r in table if r["arm"] == arm) / 2 for arm in arms)
    shown = (
        f"{fading:.3f} with `kd_schedule=linear` and {measured:.3f} with `kd_weight=auto`, {constant:.3f} with constant"
    )
    assert shown in " ".join(RESULTS_PAGE.split())


def test_results_page_shows_a_student_of_another_family_and_heavier_terms():
    page = " ".join(RESULTS_PAGE.split())
    assert f"as no weights fit: {interval(gain('bccd, YOLO11n', 40, 'kd'))}" in page
    runs = json.loads((STUDY / "results" / "variants-deeppcb" / "bench.json").read_text(encoding="utf-8"))["table"]
    arms = ("cls-4", "box-16", "kd", "alone")
    cls, box, kd, alone = (sum(r["score"] for r in runs if r["arm"] == arm) / 2 for arm in arms)
    assert f"`kd_cls=4` had {cls:.3f} and `kd_box=16` {box:.3f}" in page
    assert f"the defaults {kd:.3f} and the student alone {alone:.3f}" in page


def test_pages_show_the_gains_from_random_weights():
    kd, builtin = means()["kd"], means()["builtin"]
    shown = f"+{kd['gain']:.3f} on the mean of two sets, {kd['gap_closed']:.0%} of the gap"
    text = " ".join(README.split())
    assert shown in text and f"`distill_model`: +{builtin['gain']:.3f}" in text
    assert f"+{kd['gain']:.3f}, the mean of two sets" in RESULTS_PAGE


def test_pages_show_the_measured_costs():
    factors = [f"{step(arm)['of_limit']:.2f}" for arm in ("kd_cls + kd_box", "kd_cache", "distill_model")]
    row = next(line for line in README.splitlines() if "adds to a step" in line)
    assert re.findall(r"\d\.\d\d", row) == factors
    plain = step("kd_cls + kd_box")["ms"] / step("plain")["ms"]
    assert f"[{plain:.2f} times a plain step](speed.md)" in RESULTS_PAGE


def test_results_page_begins_with_the_gain_of_a_student_with_coco_weights():
    stages = (("bccd", 40), ("deeppcb", 30), ("helmet", 15))
    for stage in stages:
        assert f"[{interval(gain(*stage, 'stored'))}](#students-with-coco-weights)" in RESULTS_PAGE
    *others, last = (f"{gain(*stage, 'builtin')['gain']:+.3f}" for stage in stages)
    assert f"`distill_model` {', '.join(others)} and {last}" in RESULTS_PAGE


def test_results_page_shows_how_often_advise_was_right():
    text = (ROOT / "examples" / "advice" / "results" / "check.md").read_text(encoding="utf-8")
    right, of = re.search(r"own score: (\d+) right.* of (\d+)\.", text).groups()
    assert f"`advise` was right {right} times of {of}" in RESULTS_PAGE


@pytest.mark.parametrize(
    "classes, arm, words", [("15+5", "keep", "with all images"), ("19+1", "unlabeled", "with all labels")]
)
def test_results_page_shows_what_keeping_classes_brings(classes, arm, words):
    text = (STUDY / "results" / "keep" / "keep.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    scores = {row[2]: row[6] for row in rows if row[:2] == [classes, "NMS"]}
    shown = f"[{scores[arm]} over all classes, {scores['finetune']} by fine-tuning, {scores['joint']} {words}]"
    assert shown in RESULTS_PAGE


@pytest.mark.parametrize(
    ("stage", "arms"),
    [
        ("variants-bccd", ("alone", "terms", "weights", "kd")),
        ("begin-mean-bccd", ("alone", "terms")),
        ("begin-narrow-bccd", ("alone", "terms", "weights", "kd")),
    ],
)
def test_results_page_shows_whose_weights_to_begin_with(stage, arms):
    section = RESULTS_PAGE.partition("## Where to begin")[2].partition("\n## ")[0]
    table = json.loads((STUDY / "results" / stage / "bench.json").read_text(encoding="utf-8"))["table"]
    scores = {(row["arm"], row["head"]): f"{row['score']:.3f}" for row in table}
    for arm in arms:
        assert f"{scores[arm, 'nms']} / {scores[arm, 'end2end']}" in section


def test_pages_show_what_a_teacher_from_random_weights_does():
    with (STUDY / "results" / "coco-readings.csv").open(encoding="utf-8") as file:
        bccd = [row for row in csv.DictReader(file) if row["set"] == "bccd"]
    scores = {row["arm"]: f"{row['nms']} / {row['end2end']}" for row in bccd}
    rows = [line for line in RESULTS_PAGE.partition("## Where to begin")[2].splitlines() if line.startswith("|")]
    alone, taught = rows[6:8]
    assert f"({scores['teacher D itself: YOLO26s from random weights, 60 epochs']})" in alone
    assert f"**{scores['alone, 40 epochs']}**" in alone and scores["weights of teacher D, labels alone"] in alone
    weights_and_terms = scores["weights and terms of teacher D, from random weights"]
    assert scores["terms of teacher D, own weights"] in taught and weights_and_terms in taught
    page = " ".join((ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8").split())
    shown = (
        f"had {weights_and_terms} on held-out images of bccd with such weights, and {scores['alone, 40 epochs']} alone"
    )
    assert shown in page
