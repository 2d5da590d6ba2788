"""The measurements of validation and of how cost grows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[1] / "examples" / "speed"
sys.path.insert(0, str(SPEED))

import growth  # noqa: E402
import validation  # noqa: E402


@pytest.mark.parametrize("script", [growth, validation], ids=lambda s: s.__name__)
def test_a_shipped_table_is_that_of_its_figures(script):
    file = SPEED / "results" / f"{script.__name__}.json"
    assert script.to_markdown(json.loads(file.read_text(encoding="utf-8"))) == file.with_suffix(".md").read_text()


def test_times_of_validation_are_compared_with_those_of_a_run_without_a_teacher():
    times = {arm: {"epoch": [2.0 * k] * 3, "validation": [1.0 * k] * 3} for k, arm in enumerate(validation.ARMS, 1)}
    rows = {row["arm"]: row for row in validation.summarize(times)}
    assert [row["validation"]["over_plain"] for row in rows.values()] == [1, 2, 3]
    assert rows["answers kept"]["epoch"]["seconds"] == 6
    text = validation.to_markdown({"table": list(rows.values())})
    assert "| answers kept | 3.00 (3.00 to 3.00) | 3.00x | 6.00 (6.00 to 6.00) | 3.00x |" in text


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
