"""The measurements of validation and of how cost grows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest

SPEED = Path(__file__).parents[1] / "examples" / "speed"
sys.path.insert(0, str(SPEED))

import growth  # noqa: E402
import plot  # noqa: E402
import processes  # noqa: E402
import stored_answers  # noqa: E402
import validation  # noqa: E402


@pytest.mark.parametrize("script", [growth, processes, stored_answers, validation], ids=lambda s: s.__name__)
def test_a_shipped_table_is_that_of_its_figures(script):
    file = SPEED / "results" / f"{script.__name__}.json"
    assert script.to_markdown(json.loads(file.read_text(encoding="utf-8"))) == file.with_suffix(".md").read_text()


def test_every_measured_value_is_in_the_picture(tmp_path):
    rates, openings, reports = plot.tables(SPEED / "results")
    assert sorted(rates.select("actors", "sizes").rows()) == [(a, n) for a in plot.ACTORS for n in (1, 2, 3, 4)]
    assert {(way, 10**n) for way in plot.WAYS for n in (3, 4, 5, 6)} == set(openings.select("way", "images").rows())
    assert sorted(reports["images"]) == [100, 1000, 5000]
    assert "(assets/growth.png)" in (SPEED.parents[1] / "docs" / "speed.md").read_text(encoding="utf-8")


@pytest.mark.nightly
def test_the_picture_is_drawn_for_a_phone(tmp_path):
    plot.plot(SPEED / "results", tmp_path / "growth.png")
    height, width = cv2.imread(str(tmp_path / "growth.png")).shape[:2]
    assert width == 750 and height > width  # twice the width of a phone; panels below each other


def test_times_of_validation_are_compared_with_those_of_a_run_without_a_teacher():
    times = {arm: {"epoch": [2.0 * k] * 3, "validation": [1.0 * k] * 3} for k, arm in enumerate(validation.ARMS, 1)}
    rows = {row["arm"]: row for row in validation.summarize(times)}
    assert [row["validation"]["over_plain"] for row in rows.values()] == [1, 2, 3]
    assert rows["answers kept"]["epoch"]["seconds"] == 6
    text = validation.to_markdown({"table": list(rows.values())})
    assert "| answers kept | 3.00 (3.00 to 3.00) | 3.00x | 6.00 (6.00 to 6.00) | 3.00x |" in text


def test_a_loader_with_too_few_images_for_its_bursts_is_refused(tmp_path):
    """Each burst takes 5 batches of 2 images, and the 4 that its 2 workers had ready."""
    few = {"folder": tmp_path / "f", "images": "", "loader": 53, "batch": 2, "workers": 2, "rounds": 2, "burst": 5}
    with pytest.raises(
        ValueError, match=r"^loader=53: 2 rounds and a warm-up.* need 54 images\. Give loader=54 or more"
    ):
        stored_answers.main([f"{k}={v}" for k, v in few.items()])
    assert not (tmp_path / "f").exists()


@pytest.mark.nightly
def test_a_loader_with_just_enough_images_is_measured(tmp_path):
    just = {"images": "", "loader": 54, "batch": 2, "workers": 2, "rounds": 2, "burst": 5, "imgsz": 64}
    report = stored_answers.main(
        [f"{k}={v}" for k, v in {**just, "folder": tmp_path, "out": tmp_path / "s.json"}.items()]
    )
    assert [row["way"] for row in report["loading"]] == ["plain", "memory", "disk"]


def test_times_of_processes_are_compared_with_one_alone_and_with_two_apart():
    times = {
        arm: {"one": [0.1 * k] * 3, "apart": [0.2 * k] * 3, "together": [0.3 * k] * 3}
        for k, arm in enumerate(processes.ARMS, 1)
    }
    rows = processes.summarize(times)
    assert [row["over_one"] for row in rows] == pytest.approx([3] * 3)
    assert [row["over_apart"] for row in rows] == pytest.approx([1.5] * 3)
    assert [row["together"]["over_plain"] for row in rows] == pytest.approx([1, 2, 3])
    assert "| kd_cls + kd_box | 200 (200 to 200) | 2.00x |" in processes.to_markdown({"table": rows})


@pytest.mark.nightly
def test_two_processes_take_their_steps_together(tmp_path):
    toy = {"teacher": "n", "imgsz": 64, "batch": 2, "rounds": 2, "out": tmp_path / "p.json"}
    report = processes.main([f"{k}={v}" for k, v in toy.items()])
    assert [row["arm"] for row in report["table"]] == list(processes.ARMS)
    assert all(row[way]["ms"] > 0 for row in report["table"] for way in processes.WAYS)
    assert (tmp_path / "p.md").read_text() == processes.to_markdown(report)


def test_an_unknown_part_of_growth_is_refused():
    with pytest.raises(ValueError, match="unknown speed; use cache, start, report"):
        growth.main(["only=start,speed"])


@pytest.mark.nightly
def test_a_teacher_whose_answers_are_kept_is_asked_in_the_first_epoch_only(tmp_path, monkeypatch):
    asked = {}
    stock = validation.train

    def counting(arm, settings, folder):
        from ultralytics_kd.teachers import Teacher

        calls = []
        with monkeypatch.context() as patch:
            answer = Teacher.run
            patch.setattr(Teacher, "run", lambda self, *args: calls.append(1) or answer(self, *args))
            clock = stock(arm, settings, folder)
        asked[arm] = len(calls)
        return clock

    monkeypatch.setattr(validation, "train", counting)
    report = validation.main([f"{k}={v}" for k, v in {**TOY, "out": tmp_path / "v.json"}.items()])
    assert asked["plain"] == 0 < asked["answers kept"] < asked["asked every epoch"]
    assert (tmp_path / "v.md").read_text() == validation.to_markdown(report)
    assert all(row["validation"]["seconds"] < row["epoch"]["seconds"] for row in report["table"])


TOY = {"teacher": "n", "imgsz": 64, "batch": 4, "images": 8, "epochs": 3, "rounds": 1}


@pytest.mark.nightly
def test_growth_is_measured_part_by_part(tmp_path):
    out = tmp_path / "g.json"
    shared = {"imgsz": 64, "images": 64, "val": "4,8", "rounds": 1, "out": out}
    for part in ("start", "report"):
        report = growth.main([f"{k}={v}" for k, v in {**shared, "only": part}.items()])
    assert [row["part"] for row in report["table"]] == ["start"] * 5 + ["report"] * 2
    assert all(row["value"] > 0 for row in report["table"])
    assert out.with_suffix(".md").read_text() == growth.to_markdown(report)
