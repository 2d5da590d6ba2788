"""The figures that the project shows are those of its own runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import draw_dataset
from task_models import task_model
from ultralytics.engine.results import Boxes
from ultralytics.utils import YAML

from ultralytics_kd.bench.plan import make_plan
from ultralytics_kd.bench.table import Run, summarize

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "examples" / "study" / "results"
STAGES = sorted(file.parent for file in RESULTS.glob("*/bench.json"))

sys.path.insert(0, str(ROOT / "examples" / "study"))  # scripts beside each other, as Python runs them
import average  # noqa: E402
import coco  # noqa: E402
import duplicates  # noqa: E402
import keep  # noqa: E402
import lost  # noqa: E402
import study  # noqa: E402
import widen  # noqa: E402


def report(arms: dict[str, list[float]], teacher: float) -> dict:
    """Return the report of a bench, scores by arm and seed."""

    def record(nms: float, seconds: float) -> dict:
        scores = {head: {"score": nms - less, "second": 0.9} for head, less in (("nms", 0), ("end2end", 0.1))}
        return {"scores": scores, "seconds": seconds, "epochs": 1, "batch": 4, "parameters": 9, "unmatched": []}

    runs = [
        Run(arm, seed, record(nms, 10.0 if arm == "alone" else 15.0))
        for arm, seeds in arms.items()
        for seed, nms in enumerate(seeds)
    ]
    return {"settings": {"data": "/home/me/sets/d.yaml"}, **summarize([*arms], runs, {"kd": record(teacher, 0)})}


def save(folder: Path, content: dict) -> None:
    (folder / "records").mkdir(parents=True)
    (folder / "bench.json").write_text(json.dumps(content))
    (folder / "records" / "kd-0.json").write_text('{"weights": "/home/me/runs/x.pt"}')


def test_tables_are_saved_without_folders_of_the_machine(tmp_path):
    save(tmp_path / "bench", report({"alone": [0.2], "kd": [0.3]}, 0.4))
    study.keep_tables(tmp_path / "bench", tmp_path / "kept", {"/home/me/sets/": "", "/home/me/runs/": ""})
    assert json.loads((tmp_path / "kept/bench.json").read_text())["settings"]["data"] == "d.yaml"
    assert json.loads((tmp_path / "kept/records/kd-0.json").read_text()) == {"weights": "x.pt"}


def test_kept_records_count_on_another_machine(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("kd-0", "teacher", "teacher-1234"):
        job = {"data": "bccd/data.yaml", "seed": 0, **({} if name == "teacher-1234" else {"model": "weights/n.pt"})}
        (kept / f"{name}.json").write_text(json.dumps({"job": job, "scores": {}}))
    study.restore_records(kept, tmp_path / "records", {"data": "/here/bccd/data.yaml", "model": "/here/weights/n.pt"})
    restored = {f.stem: json.loads(f.read_text())["job"] for f in (tmp_path / "records").glob("*.json")}
    assert restored == {
        "kd-0": {"data": "/here/bccd/data.yaml", "seed": 0, "model": "/here/weights/n.pt"},
        "teacher-1234": {"data": "/here/bccd/data.yaml", "seed": 0},
    }


def test_summary_has_every_stage_and_the_mean_of_both_sets(tmp_path):
    save(tmp_path / "final-bccd", report({"alone": [0.2, 0.22], "kd": [0.3, 0.34]}, 0.41))
    save(tmp_path / "final-helmet", report({"alone": [0.4, 0.4], "kd": [0.5, 0.5], "more": [0.6, 0.6]}, 0.6))
    table = study.summarize(tmp_path)
    mean = table.filter(pl.col("stage").str.starts_with("mean"), pl.col("head") == "nms")
    assert dict(zip(mean["arm"], mean["score"])) == pytest.approx({"alone": 0.305, "kd": 0.41, "teacher": 0.505})
    kd = mean.row(by_predicate=pl.col("arm") == "kd", named=True)
    assert (kd["gain"], kd["gap_closed"], kd["time"], kd["runs"]) == pytest.approx((0.105, 0.525, 1.5, 4))
    text = study.to_markdown(table)
    assert "| final-bccd | mAP50-95 | kd | 0.320 ± 0.028 | +0.110 (-0.017 to +0.237) | 55% | 0.220 ± 0.028 |" in text
    assert "| final-helmet | mAP50-95 | teacher | 0.600 |  |  | 0.500 |  |  |  |" in text


def test_classes_of_coco128_seg_are_those_of_its_names(tmp_path):
    source, target = tmp_path / "source", tmp_path / "runs" / "coco128-seg"
    for folder in ("labels", "images"):
        (source / folder / "train").mkdir(parents=True)
    (source / "data.yaml").write_text("train: images/train\nval: images/val\nnames: {0: person, 79: toothbrush}\n")
    (source / "labels/train/a.txt").write_text("1 0.1 0.2 0.3 0.4 0.5 0.6\n90 0 0 1 0 1 1\n\n")
    (source / "images/train/a.jpg").write_bytes(b"photo")
    data = YAML.load(study.renumber(source, target))
    assert data["train"] == data["val"] == "images/train" and data["names"] == {0: "person", 79: "toothbrush"}
    assert (Path(data["path"]) / "labels/train/a.txt").read_text() == "0 0.1 0.2 0.3 0.4 0.5 0.6\n79 0 0 1 0 1 1\n"
    assert (Path(data["path"]) / "images/train/a.jpg").read_bytes() == b"photo"


def test_labels_of_a_part_are_kept_and_scored_images_are_in_neither_part(data, tmp_path):
    """`few-labels` and its records keep their folder and their images."""
    assert study.labeled_folder("helmet", 0.1, 0) == "labeled-helmet"
    assert study.labeled_folder("helmet", 0.01, 0.2) == "labeled-helmet-0.01-held-out-0.2"
    parts = {}
    for held_out in (0, 0.25):
        made, rest = study.part_labels(data, 0.5, tmp_path / str(held_out), held_out)
        lists = {f.stem: f.read_text().split() for f in Path(made).parent.glob("*.txt")}
        assert Path(rest).read_text().split() == lists["rest"] and sum(map(len, lists.values())) == 8
        assert len({file for files in lists.values() for file in files}) == 8
        parts[held_out] = {name: len(files) for name, files in lists.items()}, YAML.load(made)["val"]
    assert parts[0] == ({"labeled": 4, "rest": 4, "held-out": 0}, str(Path(data).parent / "images" / "val"))
    assert parts[0.25] == ({"labeled": 3, "rest": 3, "held-out": 2}, "held-out.txt")


@pytest.mark.parametrize("name", [s for s in YAML.load(study.STUDY / "stages.yaml")["stages"] if "boxes-" in s])
def test_stages_of_pseudo_boxes_are_benches(name, data, tmp_path, monkeypatch):
    """Teachers come from stages that exist, and unlabelled images are those of the same split."""
    plans = []
    monkeypatch.setattr(study, "run_bench", lambda arguments: plans.append(make_plan(arguments)))
    monkeypatch.setattr(study, "find_data", lambda *_: data)
    monkeypatch.setattr(study, "keep_tables", lambda *_: None)
    study.run_stage(name, tmp_path / "data", tmp_path / "runs")
    (plan,) = plans
    stages = YAML.load(study.STUDY / "stages.yaml")["stages"]
    for arm in plan.arms[1:]:
        assert Path(arm.args["kd_unlabeled"]).parent == Path(plan.common["data"]).parent
        teacher = arm.args["teacher"]
        assert (teacher is None) != arm.name.startswith("all-")
        if teacher:
            stage, _, run = str(Path(teacher).relative_to(tmp_path / "runs")).partition("/runs/")
            assert stages[stage]["data"] == stages[name]["data"] and run.split("/")[0] in {"alone-0", "teacher"}
            assert stages[stage].get("held_out") == stages[name].get("held_out")


@pytest.mark.parametrize(
    "options, stage, expected",
    [
        ([], {}, (False, 2)),
        (["--ray"], {}, (True, 1)),
        (["--kept", "--ray=4"], {"ray": True}, (4, 1)),
        ([], {"ray": 3}, (3, 1)),
    ],
)
def test_stages_run_on_a_cluster_if_asked_for(options, stage, expected, tmp_path, monkeypatch):
    plans = []
    stages = YAML.load(study.STUDY / "stages.yaml")
    stages["stages"] = {"final-bccd": {**stages["stages"]["final-bccd"], **stage}}
    (tmp_path / "stages.yaml").write_text(json.dumps(stages))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "STUDY", tmp_path)
    monkeypatch.setattr(study, "run_bench", lambda arguments: plans.append(make_plan(arguments)))
    for name in ("restore_records", "keep_tables", "write_summary"):
        monkeypatch.setattr(study, name, lambda *_: None)
    study.main([*options, str(tmp_path / "data"), "final-bccd"])
    assert [(plan.ray, plan.jobs) for plan in plans] == [expected]


@pytest.mark.parametrize("option", ["--rays", "--ray=few", "--ray=-1"])
def test_options_of_the_study_that_do_not_exist_are_refused(option):
    with pytest.raises(SystemExit, match=option):
        study.main([option, "data"])


def test_study_has_the_tables_that_the_readme_shows():
    assert {"final-bccd", "final-helmet"} <= {folder.name for folder in STAGES}


@pytest.mark.parametrize("folder", STAGES, ids=lambda f: f.name)
def test_a_shipped_table_is_computed_from_its_records(folder):
    shown = json.loads((folder / "bench.json").read_text())
    records = {f.stem: json.loads(f.read_text()) for f in (folder / "records").glob("*.json")}
    arms, seeds = [*shown["settings"]["arms"]], shown["settings"]["seeds"]
    runs = [Run(arm, seed, records[f"{arm}-{seed}"]) for arm in arms for seed in seeds]
    jobs = {arm: records[f"{arm}-{seeds[0]}"]["job"] for arm in arms if arm != "alone"}
    sizes = {arm: f"-{job['kd_teacher_imgsz']}px" if job.get("kd_teacher_imgsz") else "" for arm, job in jobs.items()}
    teachers = {
        arm: records[f"teacher-{(job.get('teacher') or job['distill_model'])[:12]}{sizes[arm]}"]
        for arm, job in jobs.items()
    }
    assert json.loads(json.dumps(summarize(arms, runs, teachers)["table"])) == shown["table"]


def test_summary_and_tables_of_pages_are_those_of_the_stages():
    text = study.to_markdown(study.summarize(RESULTS))
    assert (RESULTS / "summary.md").read_text() == text
    tables = {file.stem: file.read_text() for file in (RESULTS / "tables").glob("*.md")}
    assert tables == study.tables_of_pages(text)
    assert not set(text.splitlines()) - {line for table in tables.values() for line in table.splitlines()}


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("*.json")), ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_no_shipped_table_names_a_folder_of_a_machine(file):
    assert '"/' not in file.read_text() and " /" not in file.read_text()


def test_quick_start_shows_the_demo_that_was_run():
    arms = json.loads((RESULTS / "demo.json").read_text())["arms"]
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    titles = {"teacher": "teacher (YOLO26s, 12 epochs)", "alone": "YOLO26n alone, 8 epochs"}
    for name, arm in arms.items():
        title = titles.get(name, "YOLO26n distilled, 8 epochs")
        figures = f"{arm['map50_95']:.3f} | {arm['map50']:.3f} | {arm['parameters']:,}"
        assert f"| {title} | {figures} |" in page


def test_a_duplicate_overlaps_a_more_confident_detection_of_its_class():
    boxes = [
        [0, 0, 10, 10, 0.9, 0],
        [0, 0, 10, 9, 0.3, 0],  # the same object again
        [0, 0, 9, 10, 0.5, 0],  # and again: every repetition counts once
        [0, 0, 10, 10, 0.8, 1],  # another class
        [6, 0, 16, 10, 0.6, 0],  # a neighbour that overlaps by a quarter
    ]
    assert duplicates.count(Boxes(torch.tensor(boxes), (20, 20))) == 2
    assert duplicates.count(Boxes(torch.zeros(0, 6), (20, 20))) == 0


def test_a_widened_model_computes_what_the_small_one_computes():
    small = task_model("detect").eval()
    wide = widen.widen(small).eval()
    assert sum(p.numel() for p in wide.parameters()) > 3 * sum(p.numel() for p in small.parameters())
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = small(images)[1], wide(images)[1]
    for head in ("one2many", "one2one"):
        for part in ("scores", "boxes"):
            torch.testing.assert_close(theirs[head][part], ours[head][part], rtol=1e-3, atol=1e-3)
    first = wide.model[2].cv1.conv.weight
    assert not torch.allclose(first[:, 0::2], first[:, 1::2])  # copies do not share a weight alike


def test_the_mean_of_two_models_has_the_second_ones_classes():
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    first, second = (DetectionModel("yolo26n.yaml", nc=nc, verbose=False) for nc in (80, 3))
    mean, ones, others = average.average(first, second).state_dict(), first.state_dict(), second.state_dict()
    torch.testing.assert_close(
        mean["model.0.conv.weight"], (ones["model.0.conv.weight"] + others["model.0.conv.weight"]) / 2
    )
    scores = "model.23.one2one_cv3.0.2.weight"
    assert len(mean[scores]) == 3 and len(ones[scores]) == 80
    torch.testing.assert_close(mean[scores], others[scores])
    torch.testing.assert_close(second.state_dict()["model.0.conv.weight"], others["model.0.conv.weight"])


def test_gains_of_coco_starts_are_those_of_the_mean_of_both_heads(tmp_path):
    content = report({"alone": [0.2, 0.22], "kd": [0.3, 0.34]}, 0.41)
    content["settings"]["epochs"] = 40
    content["teachers"] += [{**t, "arm": "builtin", "score": t["score"] - 0.2} for t in content["teachers"]]
    save(tmp_path / "coco-bccd", content)
    costs = {"arms": {"alone": {"hours": 0.2}, "with teacher": {"hours": 0.3}}}
    (tmp_path / "coco-bccd" / "costs.json").write_text(json.dumps(costs))
    content = report({"alone": [0.25]}, 0.41)
    content["settings"]["epochs"] = 80
    (tmp_path / "coco-bccd-2x").mkdir()
    (tmp_path / "coco-bccd-2x" / "bench.json").write_text(json.dumps(content))
    coco.write(tmp_path, tmp_path)
    table = coco.gains(coco.runs(tmp_path))
    kd = table.row(by_predicate=(pl.col("arm") == "kd"), named=True)
    assert (kd["score"], kd["gain"], kd["teacher"], kd["time"]) == pytest.approx((0.27, 0.11, 0.36, 1.5))
    assert kd["closed"] == pytest.approx(0.11 / (0.36 - 0.16))
    assert (
        "| bccd | 40 | kd | 2 | 0.270 | +0.110 (-0.017 to +0.237) | 55% | 1.50x | 0.360 | 0.160 |"
        in (tmp_path / "coco.md").read_text()
    )
    assert table.filter(pl.col("epochs") == 80)["time"].to_list() == [None]  # it was not measured
    assert (tmp_path / "coco-epochs.png").stat().st_size > 5000 and (tmp_path / "coco-parts.png").exists()


def test_the_shipped_table_of_coco_starts_is_computed_from_the_stages():
    assert (RESULTS / "coco.md").read_text() == coco.to_markdown(coco.gains(coco.runs(RESULTS)))


def test_the_shipped_table_of_what_lost_is_computed_from_the_readings():
    table = lost.readings(RESULTS)
    assert (RESULTS / "lost.md").read_text() == lost.to_markdown(table)
    assert len(table) >= 20 and table["difference"].median() < 0


def test_arms_of_a_variants_stage_stand_beside_the_defaults(tmp_path):
    content = report({"alone": [0.3], "kd": [0.4], "feat": [0.35]}, 0.5)
    arms = {"alone": {}, "kd": {"kd_cls": 2.0, "kd_feat": 0.0}, "feat": {"kd_cls": 2.0, "kd_feat": 1.0}}
    content["settings"] = {**content["settings"], "epochs": 40, "arms": arms}
    save(tmp_path / "variants-bccd", content)
    row = lost.variants(tmp_path / "variants-bccd" / "bench.json").row(1, named=True)
    assert (row["configuration"], row["setting"]) == ("kd_feat=1.0", "bccd, stored answers, 40 epochs")
    assert row["nms"] < row["kept_nms"] and row["nms_free"] < row["kept_nms_free"]


def test_the_study_gives_each_part_labels_of_its_classes_alone(tmp_path):
    voc = tmp_path / "voc07"
    draw_dataset(voc, images=6, seed=1)  # classes 0, 1 and 2, of which the last is new
    data = keep.prepare(voc, tmp_path / "parts", 1, holdout=False)
    expected = {"old": ({0, 1}, 2), "new": ({0}, 1), "union": ({2}, 3), "joint": ({0, 1, 2}, 3)}
    for name, (ids, count) in expected.items():
        folder, labels = Path(data[name]).parent, {"train": [], "val": []}
        for split, found in labels.items():
            found += [(f.stem, f.read_text().split("\n")) for f in (folder / "labels" / split).glob("*.txt")]
        assert {int(line[0]) for _, lines in labels["train"] for line in lines if line} == ids, name
        assert all(any(lines) for _, lines in labels["train"]) and len(labels["val"]) == 3
        assert len(YAML.load(data[name])["names"]) == count
        assert {f.stem for f in (folder / "images" / "train").iterdir()} == {stem for stem, _ in labels["train"]}
    rest = {Path(line).stem for line in Path(data["rest"]).read_text().splitlines()}
    shown = {f.stem for f in (Path(data["new"]).parent / "images" / "train").iterdir()}
    assert rest and rest == {f.stem for f in (voc / "images" / "train").iterdir()} - shown
    assert keep.prepare(voc, tmp_path / "parts", 1, holdout=False) == data


def test_gains_of_kept_classes_are_paired_with_fine_tuning(tmp_path):
    scores = {"finetune-0": 0.1, "finetune-1": 0.2, "keep-0": 0.4, "keep-1": 0.6, "before-0": 0.5, "joint-1": 0.7}
    heads = {
        name: {head: {f"{part}{of}": value for part in keep.SETS for of in ("", "50")} for head in keep.HEADS}
        for name, value in scores.items()
    }
    (tmp_path / "keep-15+5.json").write_text(json.dumps({"settings": keep.SETTINGS, "runs": heads}))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in keep.to_markdown(tmp_path).splitlines()[2:]]
    assert [row[:4] for row in rows if row[1] == "NMS"] == [
        ["15+5", "NMS", arm, runs] for arm, runs in (("before", "1"), ("finetune", "2"), ("keep", "2"), ("joint", "1"))
    ]
    gains = {row[2]: row[-1] for row in rows if row[1] == "NMS"}
    assert gains == {"before": "", "finetune": "", "keep": "+0.350 (-0.285 to +0.985)", "joint": ""}


def test_a_narrower_architecture_has_a_part_of_the_channels(tmp_path):
    from ultralytics.nn.tasks import DetectionModel

    half, whole = (
        DetectionModel(file, nc=3, verbose=False)
        for file in (study.narrower("yolo26n.yaml", 0.5, tmp_path), "yolo26n.yaml")
    )
    assert [m.model[4].cv2.conv.out_channels for m in (half, whole)] == [64, 128]
    assert half.model[-1].one2one_cv2 is not None and len(half.model) == len(whole.model)
