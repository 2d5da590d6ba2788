"""Benches: their arms, the records that they keep, and the table."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import NAMES, QUICK, STUDENT, TEACHER, draw_dataset, save_model
from ultralytics import YOLO as StockYOLO
from ultralytics.utils import DEFAULT_CFG_DICT, YAML

from ultralytics_kd.bench import run_bench
from ultralytics_kd.bench.contents import hash_data
from ultralytics_kd.bench.jobs import VERSIONS, Job, JobFolder
from ultralytics_kd.bench.plan import make_plan
from ultralytics_kd.bench.records import write
from ultralytics_kd.bench.run import Bench, _check_models
from ultralytics_kd.bench.scores import load, score
from ultralytics_kd.bench.split import hold_out
from ultralytics_kd.bench.table import Run, interval, save_tables, summarize, to_markdown
from ultralytics_kd.bench.text import next_command, to_text
from ultralytics_kd.cli import main
from ultralytics_kd.config.arguments import ARGUMENTS
from ultralytics_kd.errors import KDError
from ultralytics_kd.image_files import find_unlabeled
from ultralytics_kd.screen import near
from ultralytics_kd.teachers import open_teacher

TRAINING = {"data": "d.yaml", "model": STUDENT, "teacher": "t.pt"}


def plan(**given):
    return make_plan({**TRAINING, **given})


def record(nms: float, end2end: float | None = None, seconds: float = 10.0) -> dict:
    scores = {
        head: {"score": v, "second": v + 0.2, "precision": 0.5, "recall": 0.5}
        for head, v in (("nms", nms), ("end2end", end2end))
        if v is not None
    }
    trained = {"seconds": seconds, "epochs": 2, "batch": 4}
    return {"scores": scores, "parameters": 1, "weights": "w.pt", "unmatched": [], **trained}


# Plan -----------------------------------------------------------------------------------------------------------------
def test_default_arms_are_the_student_alone_the_built_in_method_and_kd():
    arms = {arm.name: arm for arm in plan().arms}
    assert list(arms) == ["alone", "builtin", "kd"]
    assert arms["alone"].args == {}
    assert arms["builtin"].args == {"distill_model": "t.pt"}
    assert arms["kd"].args == {n: a.default for n, a in ARGUMENTS.items()} | {"teacher": "t.pt", "kd_feat": 0.0}


def test_alone_is_compared_with_whatever_arms_are_asked_for():
    assert [arm.name for arm in plan(arms='{"kd": {"kd_feat": 0}}').arms] == ["alone", "kd"]


def test_arms_come_as_names_json_a_dict_or_a_yaml(tmp_path):
    (tmp_path / "arms.yaml").write_text("kd: {}\nstrong: {kd_cls: 2.0}\nold: {dis: 1.0}\n")
    spec = {"kd": {}, "strong": {"kd_cls": 2.0}, "old": {"dis": 1.0}}
    for arms in (str(tmp_path / "arms.yaml"), spec, json.dumps(spec)):
        made = {arm.name: arm.args for arm in plan(arms=arms).arms}
        assert made["strong"]["kd_cls"] == 2.0 and made["strong"]["teacher"] == "t.pt"
        assert made["kd"]["kd_cls"] == ARGUMENTS["kd_cls"].default
        assert made["old"] == {"distill_model": "t.pt", "dis": 1.0}
    assert [arm.name for arm in plan(arms="kd, alone").arms] == ["alone", "kd"]


def test_feature_weight_that_is_not_given_is_0_as_in_older_records_unless_classes_are_kept():
    arms = plan(arms={"kd": {}, "some": {"kd_feat": 2.0}, "keep": {"kd_keep": True}}).arms
    assert {arm.name: arm.args.get("kd_feat", "none") for arm in arms} == {
        "alone": "none",
        "kd": 0.0,
        "some": 2.0,
        "keep": None,
    }


def test_kd_arguments_of_the_bench_reach_the_arms_with_a_teacher_and_an_arm_may_have_another():
    arms = {a.name: a for a in plan(kd_cls=3.0, arms={"kd": {}, "other": {"kd_cls": 1.5, "teacher": "x.pt"}}).arms}
    assert (arms["kd"].args["kd_cls"], arms["other"].args["kd_cls"]) == (3.0, 1.5)
    assert (arms["kd"].args["teacher"], arms["other"].args["teacher"]) == ("t.pt", "x.pt")
    assert "kd_cls" not in arms["alone"].args


def test_seeds_are_a_number_or_a_list():
    assert plan(seeds=2).seeds == [0, 1]
    assert plan(seeds=(5, 3)).seeds == plan(seeds="5,3").seeds == plan(seeds=[5, 3]).seeds == [5, 3]


def test_a_recipe_gives_arguments_and_the_command_line_wins(tmp_path):
    (tmp_path / "r.yaml").write_text("model: yolo26m.yaml\nkd_cls: 2.0\nepochs: 7\nseeds: 2\n")
    made = plan(cfg=str(tmp_path / "r.yaml"))
    assert (made.common["model"], made.common["epochs"], made.seeds) == (STUDENT, 7, [0, 1])
    assert made.arms[-1].args["kd_cls"] == 2.0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"teacher": None}, "arm 'builtin' needs a teacher"),
        ({"teacher_model": TEACHER, "teacher_epochs": 2}, "give one of them"),
        ({"teacher": None, "teacher_model": TEACHER}, "go together"),
        ({"teacher_epochs": 3}, "go together"),
        ({"teacher": None, "teacher_model": TEACHER, "teacher_epochs": 0}, "whole number"),
        ({"teacher": torch.nn.Identity()}, "save the teacher"),
        ({"arms": "alone"}, "no arm uses the teacher"),
        ({"arms": "alone,mine"}, "arm 'mine' is unknown"),
        ({"arms": {"alone": {"kd_cls": 1.0}}}, "takes no arguments"),
        ({"arms": {"kd": {"epochs": 3}}}, "arm 'kd' sets 'epochs'"),
        ({"arms": {"kd": {"kd_clss": 3}}}, "arm 'kd' sets 'kd_clss'"),
        ({"arms": {"kd": {"kd_cls": -1}}}, "arm 'kd': 'kd_cls=-1' is an invalid value"),
        ({"arms": {"kd": {"kd_cls": 0, "kd_box": 0, "kd_feat": 0}}}, "all distillation weights are 0"),
        ({"arms": {"a/b": {"kd_cls": 1}}}, "needs a name"),
        ({"arms": '{"kd": {'}, "not valid JSON"),
        ({"arms": 3}, "is invalid"),
        ({"arms": "alone,builtin", "kd_cls": 2.0}, "no arm in arms reads it"),
        ({"arms": "alone,kd", "dis": 2.0}, "no arm in arms reads it"),
        ({"task": "caption"}, "task 'caption' cannot be compared"),
        ({"model": "yolo26n-seg.yaml", "arms": {"kd": {"kd_cls_loss": "dkd"}}}, "does not suit task 'segment'"),
        ({"model": "yolo26n-cls.yaml", "holdout": 0.2}, "a classification has folders of classes"),
        ({"batch": -1}, "give a batch size, as AutoBatch"),
        ({"batch": 0.7}, "AutoBatch"),
        ({"data": ["a.yaml", "b.yaml"]}, "data=... with a single value"),
        ({"holdout": 0.2, "split": "test"}, "exclude each other"),
        ({"teacher": None, "teacher_model": TEACHER, "teacher_epochs": 2, "time": 1}, "exclude each other"),
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": "1,1"}, "different ones"),
        ({"seeds": True}, "is invalid"),
        ({"holdout": 1.0}, "holdout=1.0"),
        ({"jobs": 0}, "whole number"),
        ({"ray": 0}, "'ray=0' is an invalid value"),
        ({"ray": "yes"}, "'ray=yes' is an invalid value"),
        ({"ray": True, "jobs": 2}, "'jobs' and 'ray' exclude each other"),
        ({"ray": 2, "device": "mps"}, "'device=mps' and 'ray' exclude each other"),
        ({"seed": 1}, "seeds=3"),
        ({"resume": True}, "run the same command again"),
        ({"data": None}, "needs data="),
        ({"kd_cls_loss": "bckdd"}, "did you mean bckd"),
    ],
)
def test_what_cannot_be_compared_is_an_error_before_anything_is_trained(given, sentence):
    with pytest.raises(KDError, match=sentence):
        plan(**given)


def test_whole_configurations_are_recipes_and_broken_ones_are_errors(tmp_path):
    (tmp_path / "args.yaml").write_text("mode: train\nresume: false\nseed: 0\nsave_dir: elsewhere\nepochs: 5\n")
    made = plan(cfg=str(tmp_path / "args.yaml"))
    assert made.common["epochs"] == 5 and "elsewhere" not in str(made.save_dir)
    for text in ("a: [1", "just words"):
        (tmp_path / "broken.yaml").write_text(text)
        with pytest.raises(KDError, match=r"broken\.yaml"):
            plan(cfg=str(tmp_path / "broken.yaml"))
        with pytest.raises(KDError, match=r"broken\.yaml"):
            plan(arms=str(tmp_path / "broken.yaml"))


def test_a_given_teacher_and_held_out_images_bring_a_warning(caplog):
    plan(holdout=0.2)
    assert "has not been trained on that part" in caplog.text


def test_a_misspelt_argument_is_named():
    with pytest.raises(SyntaxError, match="epoch"):
        plan(epochz=3)


# Split ----------------------------------------------------------------------------------------------------------------
def test_holdout_splits_the_training_images_and_leaves_the_val_set_alone(tmp_path):
    data = draw_dataset(tmp_path / "shapes", 10)
    made = hold_out(str(data), 0.2, tmp_path / "split")
    train, val = ({*(made.parent / f"{part}.txt").read_text().split()} for part in ("train", "val"))
    assert (len(train), len(val)) == (8, 2) and not train & val
    assert train | val == {str(f) for f in (tmp_path / "shapes/images/train").iterdir()}
    assert hold_out(str(data), 0.2, tmp_path / "again").parent.joinpath("val.txt").read_text().split() == sorted(val)


def test_a_bench_goes_on_with_its_split_or_not_at_all(tmp_path):
    """With another split, models would be scored on images that they were trained on."""
    data = draw_dataset(tmp_path / "shapes", 10)
    first = hold_out(str(data), 0.2, tmp_path / "split").with_name("train.txt").read_text()
    assert hold_out(str(data), 0.2, tmp_path / "split").with_name("train.txt").read_text() == first
    added = next((tmp_path / "shapes/images/train").iterdir())
    (added.parent / f"new{added.suffix}").write_bytes(added.read_bytes())
    with pytest.raises(KDError, match="have changed since they were split"):
        hold_out(str(data), 0.2, tmp_path / "split")
    assert (tmp_path / "split/train.txt").read_text() == first


def test_holdout_of_too_few_images_is_refused(tmp_path):
    with pytest.raises(KDError, match="empty"):
        hold_out(str(draw_dataset(tmp_path / "shapes", 2)), 0.1, tmp_path / "split")


# Table ----------------------------------------------------------------------------------------------------------------
def test_interval_is_by_students_t():
    low, high = interval([0.01, 0.02, 0.03])  # t of 0.975 with 2 degrees of freedom is 4.3027, s / sqrt(3) is 0.0057735
    assert low == pytest.approx(0.02 - 4.302653 * 0.00577350, abs=1e-7)
    assert high == pytest.approx(0.02 + 4.302653 * 0.00577350, abs=1e-7)
    assert interval([0.1]) == (None, None)


def test_gains_are_paired_by_seed_and_heads_are_separate():
    runs = [
        Run("kd", 1, record(0.45, 0.40, 15.0)),
        Run("alone", 0, record(0.30, 0.20)),
        Run("kd", 0, record(0.35, 0.30)),
    ]
    runs += [Run("alone", 1, record(0.44, 0.20)), Run("alone", 2, record(0.90, 0.90))]
    table = summarize(["alone", "kd"], runs, {"kd": record(0.57, 0.30)})["table"]
    assert [(row["head"], row["arm"]) for row in table] == [
        ("nms", "alone"), ("nms", "kd"), ("end2end", "alone"), ("end2end", "kd")
    ]  # fmt: skip
    kd = table[1]
    assert kd["gain"] == pytest.approx((0.05 + 0.01) / 2)  # seed 2 has no run of kd
    assert kd["gap_closed"] == pytest.approx(0.03 / (0.57 - 0.37))
    assert kd["seeds"] == {0: 0.35, 1: 0.45} and kd["seconds"] == 12.5
    assert table[0]["gain"] is None and table[0]["score"] == pytest.approx((0.30 + 0.44 + 0.90) / 3)
    assert table[3]["gain"] == pytest.approx(0.15)


def test_a_teacher_that_is_no_better_leaves_no_gap():
    runs = [Run("alone", 0, record(0.30)), Run("kd", 0, record(0.35))]
    row = summarize(["alone", "kd"], runs, {"kd": record(0.25)})["table"][1]
    assert row["gap_closed"] is None and row["ci_low"] is None


def test_a_lead_within_noise_makes_no_gap():
    runs = [Run("alone", 0, record(0.505)), Run("kd", 0, record(0.5225))]
    (row,) = [r for r in summarize(["alone", "kd"], runs, {"kd": record(0.5051)})["table"] if r["arm"] == "kd"]
    assert row["gap_closed"] is None and row["gain"] == pytest.approx(0.0175)


def test_the_report_after_a_bench_with_holdout_leaves_the_val_set_unseen(tmp_path):
    for name in ("alone-0", "kd-0"):
        (tmp_path / "runs" / name / "weights").mkdir(parents=True)
        (tmp_path / "runs" / name / "weights" / "best.pt").touch()
    runs = [Run("alone", 0, record(0.5)), Run("kd", 0, record(0.6))]
    settings = {"arms": {"alone": {}, "kd": {"teacher": "t.pt"}}, "data": "mine.yaml", "holdout": 0.2}
    report = {"settings": settings, **summarize(["alone", "kd"], runs, {"kd": record(0.7)})}
    words = shlex.split(next_command(report, tmp_path))
    assert f"data={near(tmp_path / 'holdout-0.2/data.yaml')}" in words


def test_images_without_labels_are_searched_once_for_all_trainings(bench, tmp_path, monkeypatch):
    images = draw_dataset(tmp_path / "more").parent / "images" / "train"
    searched = []
    monkeypatch.setattr(
        "ultralytics_kd.bench.run.find_unlabeled", lambda source: searched.append(source) or find_unlabeled(source)
    )
    made = make_plan({**bench, "kd_unlabeled": str(images)})

    def hashes(bench):
        args = made.arms[-1].args
        return {bench._identity({**made.common, **args, "seed": seed})["unlabeled_sha256"] for seed in range(3)}

    first = hashes(Bench(made, made.common["data"], None))
    assert len(first) == len(searched) == 1
    next(images.iterdir()).unlink()
    assert hashes(Bench(made, made.common["data"], None)) != first


@pytest.mark.parametrize("task, folder, suffix", [("semantic", "masks", ".png"), ("depth", "depth", ".npy")])
def test_changed_masks_depth_maps_and_test_labels_change_the_hash(tmp_path, task, folder, suffix):
    data = draw_dataset(tmp_path / "set")
    images = sorted((tmp_path / "set/images/val").iterdir())
    map_of_first = tmp_path / "set" / folder / "val" / images[0].with_suffix(suffix).name
    map_of_first.parent.mkdir(parents=True)
    map_of_first.write_bytes(b"one")
    before = hash_data(str(data), task)
    map_of_first.write_bytes(b"two")
    assert hash_data(str(data), task) != before
    YAML.save(data, {**YAML.load(data), "val": "images/train", "test": "images/val"})
    before, tested = hash_data(str(data), "detect"), hash_data(str(data), "detect", "test")
    label = tmp_path / "set/labels/val" / images[0].with_suffix(".txt").name
    label.write_text("0 0.5 0.5 0.1 0.1\n")
    assert hash_data(str(data), "detect") == before and hash_data(str(data), "detect", "test") != tested


def test_the_score_of_a_teacher_that_lacks_classes_makes_no_gap():
    runs = [Run("alone", 0, record(0.30)), Run("kd", 0, record(0.35))]
    row = summarize(["alone", "kd"], runs, {"kd": {**record(0.40), "unmatched": ["box"]}})["table"][1]
    assert row["gap_closed"] is None and row["gain"] == pytest.approx(0.05)


def test_files_hold_the_table(tmp_path):
    runs = [
        Run(arm, seed, record(0.3 + 0.1 * (arm == "kd") + 0.01 * seed)) for arm in ("alone", "kd") for seed in (0, 1)
    ]
    report = {"settings": {}, "versions": {}, **summarize(["alone", "kd"], runs, {"kd": record(0.5)})}
    save_tables(report, tmp_path)
    csv = pl.read_csv(tmp_path / "bench.csv")
    assert csv["gain"].to_list() == [None, 0.1] and csv["seed_1"].to_list() == [0.31, 0.41]
    assert json.loads((tmp_path / "bench.json").read_text())["table"][1]["gap_closed"] == pytest.approx(0.1 / 0.195)
    assert "| NMS | kd | 2 | 0.4050 ± 0.0071 | 0.4000 0.4100 | +0.1000" in (tmp_path / "bench.md").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 5000
    assert "51%" in to_markdown(report) and "51%" in to_text(report, tmp_path)


# Runs -----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def bench(tmp_path, teacher):
    """Return the arguments of a quick bench with a data set of its own."""
    data = draw_dataset(tmp_path / "shapes", 8)
    rest = {k: v for k, v in QUICK.items() if k not in {"plots", "verbose"}}
    return {**rest, "data": str(data), "model": STUDENT, "teacher": teacher, "project": str(tmp_path / "out"),
            "name": "bench", "arms": "alone,kd"}  # fmt: skip


def test_a_list_of_teachers_is_named_member_by_member_and_scored_if_one_predicts(bench, teacher, tmp_path):
    other = str(save_model(tmp_path / "other.pt", TEACHER))
    plan = make_plan({**bench, "teacher": f"[{teacher},{other}]", "arms": {"kd": {}, "one": {"teacher": other}}})
    assert [arm.args.get("teacher") for arm in plan.arms] == [None, [teacher, other], other]
    of = Bench(plan, bench["data"], None)
    several = of._resolve([teacher, other], False, "auto")
    assert several["path"] == [str(Path(teacher).resolve()), other] and several["scored"] is None
    alone = of._resolve(other, False, "auto")
    assert alone["path"] == other and alone["scored"] == {"path": other, "sha256": alone["sha256"]}
    assert several["sha256"] != alone["sha256"]
    with pytest.raises(KDError, match="arm 'builtin' is Ultralytics' own distillation, which takes one teacher"):
        make_plan({**bench, "teacher": [teacher, other], "arms": "builtin,kd"})


def test_of_a_model_and_a_backbone_the_model_is_scored(bench, teacher, tmp_path):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_convnext", pretrained=False).state_dict(), tmp_path / "w.pth")
    backbone = f"timm:test_convnext@{tmp_path / 'w.pth'}"
    plan = make_plan({**bench, "teacher": f"[{teacher},{backbone}]"})
    found = Bench(plan, bench["data"], None)._resolve([teacher, backbone], False, "auto")
    assert found["path"] == [str(Path(teacher).resolve()), backbone]
    assert found["scored"]["path"] == str(Path(teacher).resolve())
    assert plan.arms[-1].args["kd_feat"] is None  # the training chooses the weight of a backbone's features


@pytest.mark.parametrize("kind", ["ema", "object", "exported"])
def test_a_teacher_that_is_no_checkpoint_is_named_and_not_scored(bench, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "exported":
        StockYOLO(save_model(tmp_path / "t.pt")).export(format="torchscript", imgsz=64)
        source, expected = "t.torchscript", str(tmp_path / "t.torchscript")
    elif kind == "object":
        (tmp_path / "own_teachers.py").write_text(
            f"class Mine:\n    names = {NAMES}\n\n    def teach(self, images):\n        return []\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        source = expected = "own_teachers:Mine"
    else:
        source = expected = "ema"
    plan = make_plan({**bench, "teacher": source, "kd_trust_teacher": True})
    found = Bench(plan, bench["data"], None)._resolve(source, True, "auto")
    assert found["path"] == expected and found["scored"] is None and len(found["sha256"]) == 64


@pytest.mark.nightly
def test_a_bench_of_the_students_own_average_has_no_row_of_a_teacher(bench):
    report = run_bench({**bench, "teacher": "ema", "epochs": 2, "seeds": 1})
    assert [row["arm"] for row in report["table"]] == ["alone", "kd"] * 2 and not report["teachers"]


@pytest.mark.nightly
def test_an_arm_is_distilled_from_several_teachers(bench, teacher, tmp_path):
    other = str(save_model(tmp_path / "other.pt", TEACHER))
    report = run_bench({**bench, "teacher": [teacher, other], "epochs": 1, "seeds": 1})
    assert [row["arm"] for row in report["table"]] == ["alone", "kd"] * 2 and not report["teachers"]
    saved = YAML.load(tmp_path / "out" / "bench" / "runs" / "kd-0" / "args.yaml")
    assert saved["teacher"] == [teacher, other]


def scores_of(report: dict) -> list:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report["table"]]


def weights_of(folder: Path, run: str) -> dict:
    return torch.load(folder / "runs" / run / "weights/last.pt", weights_only=False)["model"].state_dict()


@pytest.mark.nightly
def test_a_killed_bench_goes_on_and_ends_like_one_that_was_not(bench, tmp_path):
    whole = run_bench({**bench, "seeds": 1, "name": "whole"})
    command = [sys.executable, "-m", "ultralytics_kd", "bench", *(f"{k}={v}" for k, v in bench.items()), "seeds=1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "out" / "bench"
    for _ in range(1200):
        if (folder / "runs/kd-0/args.yaml").exists():  # the second training has begun
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = folder / "records/alone-0.json"
    assert first.exists() and not (folder / "records/kd-0.json").exists()
    before = first.stat().st_mtime_ns
    time.sleep(3)  # the worker notices that its bench has ended
    resumed = run_bench({**bench, "seeds": 1})
    assert first.stat().st_mtime_ns == before
    assert scores_of(resumed) == scores_of(whole)
    for run in ("alone-0", "kd-0"):
        continued, expected = weights_of(folder, run), weights_of(tmp_path / "out/whole", run)
        assert all(torch.equal(continued[k], expected[k]) for k in expected)


@pytest.mark.slow
@pytest.mark.parametrize("arms", [["kd"], pytest.param(["builtin", "kd"], marks=pytest.mark.nightly)], ids=str)
def test_a_bench_trains_its_teacher_holds_images_out_and_runs_several_at_a_time(bench, tmp_path, arms):
    bench.pop("teacher")
    report = run_bench(
        {**bench, "teacher_model": TEACHER, "teacher_epochs": 1, "holdout": 0.25, "jobs": 2, "seeds": 1,
         "arms": ",".join(arms)}
    )  # fmt: skip
    folder = tmp_path / "out" / "bench"
    assert [(row["head"], row["arm"]) for row in report["table"]] == [
        (head, arm) for head in ("nms", "end2end") for arm in ("alone", *arms)
    ]
    assert {t["parameters"] for t in report["teachers"]} == {120_626}
    args = (folder / "runs/kd-0/args.yaml").read_text()
    assert str(folder / "runs/teacher/weights/best.pt") in args and str(folder / "holdout-0.25/data.yaml") in args
    assert "distill_model: null" in args
    others = {arm: (folder / f"runs/{arm}-0/args.yaml").read_text() for arm in ("alone", *arms) if arm != "kd"}
    assert not any("kd_cls" in text for text in others.values())
    assert "distill_model: /" in others.get("builtin", "distill_model: /")


def test_a_training_with_a_halved_batch_brings_a_warning(bench, tmp_path, caplog):
    made, folder = make_plan({**bench, "batch": 8}), JobFolder(tmp_path)
    comparison = Bench(made, made.common["data"], folder)
    job = comparison._student(made.arms[0], 0, {})
    for batch, warned in ((8, False), (4, True)):  # Ultralytics halves 8 when memory runs out
        write(
            tmp_path / "records/alone-0.json",
            {"job": job.identity, "versions": VERSIONS, **record(0.3), "batch": batch},
        )
        assert comparison._add_run(job)
        assert ("'alone-0' was trained with batch=4 instead of 8" in caplog.text) == warned


def test_records_of_other_versions_bring_one_warning(tmp_path, caplog):
    folder, job = JobFolder(tmp_path), Job("kd-0", {"epochs": 2}, {})
    versions = {**VERSIONS, "torch": "1.0"}
    write(tmp_path / "records/kd-0.json", {**record(0.3), "job": job.identity, "versions": versions})
    assert folder.record(job) and folder.record(job)
    assert caplog.text.count("'kd-0' was made with") == 1


def test_records_are_refused_after_labels_or_the_model_file_have_changed(bench, tmp_path):
    data = draw_dataset(tmp_path / "own")
    student = save_model(tmp_path / "student.pt")

    def job():
        made = make_plan({**bench, "data": str(data), "model": str(student)})
        return Bench(made, made.common["data"], folder, _check_models(made))._training("alone-0", made.common)

    folder = JobFolder(tmp_path / "bench")
    first = job()
    file = folder.path / "records/alone-0.json"
    write(file, {"job": first.identity, "versions": VERSIONS, **record(0.3)})
    assert folder.record(job())
    label = next((tmp_path / "own/labels/val").glob("*.txt"))
    before = label.read_text()
    label.write_text(before.replace("0.", "0.0", 1))
    with pytest.raises(KDError, match="made before the images or labels of the data set changed"):
        folder.record(job())
    label.write_text(before)
    assert folder.record(job())
    save_model(student)  # of other random weights
    with pytest.raises(KDError, match="made before the file of the model changed"):
        folder.record(job())
    older = {name: value for name, value in first.identity.items() if "sha256" not in name}
    write(file, {"job": older, "versions": VERSIONS, **record(0.3)})
    assert folder.record(job())  # records of former versions have no hashes


@pytest.mark.nightly
def test_finished_runs_are_kept_while_their_arguments_are_the_same(bench, tmp_path, capsys):
    run_bench({**bench, "seeds": 1})
    record = tmp_path / "out/bench/records/kd-0.json"
    made = record.stat().st_mtime_ns
    with pytest.raises(KDError, match="was made with epochs=2, not with epochs=3"):
        run_bench({**bench, "seeds": 1, "epochs": 3})
    with pytest.raises(KDError, match=r"'kd-0'.*was made with kd_cls=.*rename the arm"):
        run_bench({**bench, "seeds": 1, "kd_cls": 9.0})
    report = run_bench({**bench, "seeds": 1, "arms": {"kd": {}, "cls": {"kd_box": 0}}})  # another arm joins them
    assert record.stat().st_mtime_ns == made
    assert [row["arm"] for row in report["table"][:3]] == ["alone", "kd", "cls"]


@pytest.mark.nightly
def test_a_failed_training_is_named_with_its_log_and_the_others_are_finished(bench, tmp_path):
    with pytest.raises(KDError, match=r"1 of the trainings failed: bins-0: .*reg_max=1.*bins-0\.log"):
        run_bench({**bench, "seeds": 1, "arms": {"bins": {"kd_box_loss": "ld"}, "kd": {}}})
    report = json.loads((tmp_path / "out/bench/bench.json").read_text())
    assert {row["arm"] for row in report["table"]} == {"alone", "kd"}


@pytest.mark.nightly
def test_a_teacher_without_any_of_the_classes_is_an_error_before_training(bench, tmp_path):
    other = save_model(tmp_path / "other.pt", names={0: "cat"})
    with pytest.raises(KDError, match="teacher-"):
        run_bench({**bench, "teacher": str(other)})
    assert not (tmp_path / "out/bench/runs").exists()


def test_a_teacher_with_classes_in_another_order_predicts_those_of_the_data(tmp_path):
    torch.manual_seed(0)
    straight = save_model(tmp_path / "straight.pt")
    saved = torch.load(straight, weights_only=False)
    for tower in (*saved["model"].model[-1].cv3, *saved["model"].model[-1].one2one_cv3):
        tower[-1].weight.data = tower[-1].weight.data.flip(0)
        tower[-1].bias.data = tower[-1].bias.data.flip(0)
    saved["model"].names = dict(enumerate(reversed(list(saved["model"].names.values()))))
    torch.save(saved, tmp_path / "flipped.pt")
    images, predictions = torch.rand(1, 3, 64, 64), []
    for name in ("straight", "flipped"):
        teacher = open_teacher(tmp_path / f"{name}.pt")
        teacher.match(NAMES)
        model = load(str(tmp_path / f"{name}.pt"), teacher)
        assert model.names == NAMES
        with torch.no_grad():
            predictions.append(model.model(images)[0])
    assert torch.equal(*predictions) and predictions[0][..., 4].max() > 0.1


@pytest.mark.slow
def test_single_class_and_mapped_classes_are_scored(tmp_path, data):
    args = {"data": data, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}
    item = save_model(tmp_path / "item.pt", names={0: "item"})
    assert set(score(str(item), {**args, "single_cls": True})["scores"]) == {"nms", "end2end"}
    several = save_model(tmp_path / "several.pt", names={0: "disc", 1: "zebra", 2: "bars"})
    row = score(str(several), {**args, "single_cls": True})
    assert set(row["scores"]) == {"nms", "end2end"} and row["unmatched"] == []
    other = save_model(tmp_path / "other.pt", names={0: "round", 1: "long"})
    assert score(str(other), args, {"round": "disc", "long": "bar"})["unmatched"] == ["box"]
    chosen = [index for index, name in NAMES.items() if name != "box"]  # the class that it lacks is not learned
    assert score(str(other), {**args, "classes": chosen}, {"round": "disc", "long": "bar"})["unmatched"] == []


@pytest.mark.nightly
def test_a_finished_training_is_not_repeated_when_its_scores_fail(bench, tmp_path):
    arms = {"kd": {}}
    run_bench({**bench, "seeds": 1, "arms": arms})
    folder = tmp_path / "out/bench"
    weights = (folder / "runs/kd-0/weights/best.pt").stat().st_mtime_ns
    (folder / "records/kd-0.json").unlink()
    run_bench({**bench, "seeds": 1, "arms": arms})
    assert (folder / "records/kd-0.json").exists()
    assert (folder / "runs/kd-0/weights/best.pt").stat().st_mtime_ns == weights


def test_one_bench_at_a_time_uses_a_folder(tmp_path):
    with JobFolder(tmp_path), pytest.raises(KDError, match="another bench is running"), JobFolder(tmp_path):
        pass
    with JobFolder(tmp_path):
        pass


def test_a_model_that_cannot_be_compared_is_refused_before_anything_is_trained(bench, tmp_path):
    trained = {"teacher": None, "teacher_epochs": 1}
    for name, model, given in (("model", "yolov8n-world.yaml", {}), ("teacher_model", "yolo26n-seg.yaml", trained)):
        with pytest.raises(KDError, match=f"{name}={model}"):
            run_bench({**bench, **given, name: model})
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_larger_images_is_trained_and_scored_at_its_size(bench, monkeypatch, tmp_path):
    arms = {"builtin": {}, "kd": {"kd_teacher_imgsz": 1.5}}
    given = {**bench, "teacher": None, "teacher_model": TEACHER, "teacher_epochs": 1, "teacher_imgsz": 96, "arms": arms}
    plan, jobs = make_plan(given), {}
    running = Bench(plan, bench["data"], None)
    weights = tmp_path / "teacher.pt"
    weights.touch()
    monkeypatch.setattr(running, "_completed", lambda job: jobs.setdefault(job.name, job) and {"weights": weights})
    running.train_teacher()
    assert jobs["teacher"].inputs["args"]["imgsz"] == 96 and bench["imgsz"] == 64
    builtin, kd = (running._scoring({"sha256": "0" * 64, "path": "t.pt"}, arm) for arm in plan.arms[1:])
    assert (builtin.inputs["args"]["imgsz"], kd.inputs["args"]["imgsz"]) == (64, 96)
    assert builtin.name != kd.name and builtin.identity != kd.identity
    with pytest.raises(KDError, match="'teacher_imgsz' is the size that 'teacher_model' is trained at"):
        make_plan({**bench, "teacher_imgsz": 96})


@pytest.mark.nightly
def test_another_task_is_compared_by_its_own_metric(tmp_path):
    from ultralytics_kd.demo.tasks import draw_task_dataset

    data = draw_task_dataset(tmp_path / "set", "depth", 8, 6, 64, seed=3)
    report = run_bench(
        {
            **{k: v for k, v in QUICK.items() if k not in {"verbose", "plots"}},
            "data": str(data),
            "model": "yolo26n-depth.yaml",
            "teacher_model": "yolo26s-depth.yaml",
            "teacher_epochs": 1,
            "epochs": 2,
            "val": False,  # as in long studies; then the columns of depth's results.csv are not the same in every row
            "arms": "kd",
            "seeds": 1,
            "project": str(tmp_path / "out"),
        }
    )
    assert {row["head"] for row in report["table"]} == {"output"} and report["metrics"][0] == "delta1"
    assert report["metrics"][0] in (tmp_path / "out" / "bench" / "bench.md").read_text()
    assert all(row["score"] is not None for row in report["table"]) and report["teachers"]


def test_command_line_shows_the_arguments_of_a_bench_and_errors(caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line, status, message in (
        (["bench", "help"], 0, "holdout=0.0"),
        (["bench", "data=x.yaml"], 1, "a bench needs model="),
        (["bench", "seeds"], 1, "'seeds' is not a 'key=value' argument of 'yolo-kd bench'"),
    ):
        caplog.clear()
        assert main(line) == status
        assert message in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.core
@pytest.mark.parametrize(
    "given, arms",
    [
        ({"teacher": "t.pt"}, ["alone", "builtin", "kd"]),
        ({"teacher": "[a.pt,b.pt]"}, ["alone", "kd"]),
        ({"teacher": "t.onnx"}, ["alone", "kd"]),
        ({"teacher": "torchvision:resnet18", "task": "classify"}, ["alone", "kd"]),
        ({"teacher": "t.pt", "task": "semantic"}, ["alone", "kd"]),
        ({"teacher_model": "yolo26s.yaml", "teacher_epochs": 1}, ["alone", "builtin", "kd"]),
        ({"teacher": "[a.pt,b.pt]", "arms": "alone,kd"}, ["alone", "kd"]),
    ],
)
def test_without_arms_ultralytics_own_distillation_is_compared_where_it_works(given, arms):
    if "distill_model" not in DEFAULT_CFG_DICT:
        arms = ["alone", "kd"]
    plan = make_plan({"data": "d.yaml", "model": STUDENT, "task": "detect", **given})
    assert [arm.name for arm in plan.arms] == arms
