"""The benchmark of a training step, and its table in the documentation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
RESULTS = sorted(f for f in (ROOT / "examples/speed/results").glob("*.json") if "teachers" in json.loads(f.read_text()))

sys.path.insert(0, str(ROOT / "examples" / "speed"))  # as Python does for a script

import speed  # noqa: E402


@pytest.fixture
def prepared(tmp_path):
    """Return settings, and a folder with data, teacher and answers."""
    settings = speed.Settings(teachers="n", imgsz=64, batch=2, rounds=2, device="cpu")
    speed.prepare(settings, tmp_path)
    return settings, tmp_path


@pytest.mark.nightly
def test_every_arm_takes_a_step_with_the_terms_in_its_name(prepared):
    arms = {name: speed.Arm(name, *prepared, "n") for name in speed.ARMS}
    seconds = {name: arm.step() for name, arm in arms.items()}
    items = {name: arm.trainer.loss_items for name, arm in arms.items()}
    assert all(s > 0 for s in seconds.values())
    assert not {"kd_cls", "kd_box", "kd_feat"} & items["plain"].keys() and not vars(arms["plain"].trainer.args).get(
        "teacher"
    )
    on = {n: {k for k in ("kd_cls", "kd_box", "kd_feat") if items[n].get(k, 0) > 0} for n in arms}
    assert on["kd_cls"] == {"kd_cls"} and on["kd_box"] == {"kd_box"} and on["kd_feat"] == {"kd_feat"}
    assert on["kd_cls + kd_box"] == {"kd_cls", "kd_box"} and len(on["all three"]) == 3
    assert on["kd_cache"] == {"kd_cls", "kd_box"} and arms["kd_cache"].trainer.teacher.model is None
    assert len(arms["kd_cache"].batch["kd_bboxes"]) > 2 * 10
    assert any("dis" in key for key in items["distill_model"])
    weights = [next(arm.trainer.model.parameters()).clone() for arm in arms.values()]
    assert all(torch.isfinite(w).all() for w in weights)
    assert arms["plain"].load() > 0


@pytest.mark.nightly
def test_memory_is_measured_in_a_separate_process(prepared):
    assert 0.1 < speed.measure_memory(*prepared, "n", "kd_cache") < 8
    with pytest.raises(RuntimeError, match="no arm"):
        speed.measure_memory(*prepared, "n", "no arm")


def test_table_has_medians_and_the_added_time_over_that_of_the_limit():
    times = {name: [0.1, 0.3, 0.2] for name in speed.ARMS}
    times |= {
        "limit": [0.2, 0.4, 0.3],
        "kd_cls": [0.21, 0.41, 0.31],
        "loading, plain": [0.5],
        "loading, kd_cache": [0.6],
    }
    rows = {row["arm"]: row for row in speed.summarize(times, dict.fromkeys(speed.ARMS, 1.5))}
    assert rows["plain"]["ms"] == pytest.approx(200) and rows["plain"]["over_plain"] == 1
    assert rows["kd_cls"]["of_limit"] == pytest.approx(1.1) and rows["limit"]["of_limit"] == 1
    assert rows["kd_cls"]["over_plain"] == pytest.approx(1.55)
    text = speed.to_markdown({"teachers": {"s": list(rows.values())}})
    assert "| YOLO26s | kd_cls | 310 (210 to 410) | 1.55x | 1.10 | 1.50 GiB |" in text


def test_settings_are_read_and_unknown_ones_are_named():
    settings = speed.read_settings(speed.Settings, ["teachers=sx", "compile=True", "amp=False", "batch=64"])
    assert (settings.teachers, settings.compile, settings.amp, settings.batch) == ("sx", True, False, 64)
    with pytest.raises(ValueError, match=r"settings jobs, rounds: give name=value with teachers, "):
        speed.read_settings(speed.Settings, ["jobs=2", "rounds"])


@pytest.mark.nightly
def test_compiled_students_and_teachers_take_a_step(tmp_path):
    settings = speed.Settings("n", imgsz=64, batch=2, device="cpu", arms="kd_cls, limit", compile=True, kd_compile=True)
    speed.prepare(settings, tmp_path)
    arms = {name: speed.Arm(name, settings, tmp_path, "n") for name in settings.names}
    assert all(arm.step() > 0 for arm in arms.values())
    for name, arm in arms.items():
        assert hasattr(arm.trainer.model, "_orig_mod"), name
    assert hasattr(arms["kd_cls"].trainer.teacher.model, "_orig_mod")


def test_given_arms_are_measured_with_plain():
    assert speed.Settings().names == list(speed.ARMS)
    assert speed.Settings(arms="kd_cache, kd_cls").names == ["plain", "kd_cls", "kd_cache"]
    with pytest.raises(ValueError, match="unknown arms kd_nothing: use plain"):
        speed.main(["arms=kd_nothing"])
    rows = speed.summarize({"plain": [0.1, 0.2], "kd_cache": [0.1, 0.2]}, {"plain": 1.0, "kd_cache": 1.5})
    assert rows[1]["of_limit"] is None
    assert "1.00x |  | 1.50 GiB |" in speed.to_markdown({"teachers": {"s": rows}})


@pytest.mark.parametrize("file", RESULTS, ids=lambda f: f.stem)
def test_documentation_shows_the_table_that_was_measured(file):
    text = speed.to_markdown(json.loads(file.read_text()))
    assert file.with_suffix(".md").read_text() == text
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert f'--8<-- "{file.with_suffix(".md").relative_to(ROOT)}"' in page


def test_there_is_a_table():
    assert RESULTS
