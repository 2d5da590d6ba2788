"""`yolo-kd advise`: its rule, what it measures, what it refuses, and the files that it leaves."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import polars as pl
import pytest
import torch
from conftest import NAMES, STUDENT, TEACHER, draw_dataset, save_model, unwrapped
from task_models import OTHERS, SUFFIX, task_model
from ultralytics import YOLO as StockYOLO
from ultralytics.cfg import parse_key_value_pair
from ultralytics.data.utils import check_cls_dataset, check_det_dataset
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import ClassificationModel
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, YAML, callbacks

from ultralytics_kd.advice import ADVICE_ONLY, costs, run_advice, steps, trial
from ultralytics_kd.advice.commands import next_command
from ultralytics_kd.advice.contradictions import contradict, find_contradictions, write_list
from ultralytics_kd.advice.costs import hours
from ultralytics_kd.advice.gradients import TOGETHER, compare_gradients
from ultralytics_kd.advice.options import check_options
from ultralytics_kd.advice.sample import part_of
from ultralytics_kd.advice.scores import figures, lead, lead_by, student_as_it_is
from ultralytics_kd.advice.table import FEW_LABELS, better_text, student_text, to_text
from ultralytics_kd.advice.trial import QUIET, Probe, Trial, train_alone
from ultralytics_kd.advice.verdict import GO, ITSELF, NO_GO, SHORTLY, TRAINED, UNCERTAIN, Facts, best_of, judge
from ultralytics_kd.bench.plan import make_plan
from ultralytics_kd.cli import main
from ultralytics_kd.demo.tasks import draw_task_dataset
from ultralytics_kd.distillation.pseudo_boxes import PseudoBoxes
from ultralytics_kd.image_files import find_unlabeled, image_files
from ultralytics_kd.report.validation import Objects, ValidationResult

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "advice"))
import check  # noqa: E402

QUICK = {"imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "epochs": 3, "optimizer": "AdamW", "probe": 0}


BOX = (0, 0, 20, 20)


def objects(*rows: tuple[float, ...]) -> Objects:
    """Return objects from rows of class, confidence and box."""
    table = np.array(rows, dtype=np.float32).reshape(len(rows), 6)
    return Objects(table[:, 2:], table[:, 0].astype(int), table[:, 1])


def unmeasured_steps(options, scratch):
    """Return the `Steps` of an advice without setting up a training."""
    each = object.__new__(steps.Steps)
    each._options, each._scratch = options, scratch
    return each


# The rule -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "facts, verdict, reason",
    [
        # The score of the student trained alone is known
        (Facts(0.6, 0.5, TRAINED, 0.1, cosine=0.5), GO, "the student trained alone 0.500"),
        (Facts(0.6, 0.5, TRAINED, 0.1), GO, ""),
        (Facts(0.5, 0.5, TRAINED, 0.0, cosine=0.5), NO_GO, "nothing to learn"),
        (Facts(0.51, 0.5, TRAINED, 0.01, cosine=0.5), UNCERTAIN, "lead of 0.010"),
        (Facts(0.6, 0.5, TRAINED, 0.1, cosine=0.05), UNCERTAIN, "kd_weight=auto"),
        (Facts(0.6, 0.5, TRAINED, 0.1, cosine=0.5, covered=2, classes=3), GO, "2 of 3 classes"),
        # It is not known: a bound from below can exclude a teacher, and never confirms one alone
        (Facts(0.3, 0.4, SHORTLY, -0.1, 0.9, 9, trained="60 seconds of training"), NO_GO, "after 60 seconds"),
        (Facts(0.3, 0.4, ITSELF, -0.1, cosine=0.9, computes=9), NO_GO, "as it is"),
        (Facts(0.6, 0.4, SHORTLY, 0.2, cosine=0.5, computes=3.0), GO, "3.0 times"),
        (Facts(0.6, 0.4, SHORTLY, 0.2, cosine=0.5, computes=1.0), UNCERTAIN, "1.0 times"),
        (Facts(0.6, 0.4, SHORTLY, 0.2, cosine=0.5), UNCERTAIN, "not known"),
        (Facts(0.6, 0.4, SHORTLY, 0.2, cosine=0.2, computes=3.0), UNCERTAIN, "hardly agree"),
        (Facts(0.6, 0.4, SHORTLY, 0.2, cosine=0.0, computes=3.0), NO_GO, "do not agree"),
        (Facts(0.6, 0.59, SHORTLY, 0.01, cosine=0.5, computes=3.0), UNCERTAIN, "may well pass"),
        (Facts(0.6, cosine=0.5, computes=3.0), GO, "scores 0.600"),
        # Whatever the scores: most objects are taken for others
        (Facts(0.01, cosine=0.5, computes=3.0, swapped=0.8), NO_GO, "80% of the objects"),
    ],
)
def test_verdict(facts, verdict, reason):
    given, because = judge(facts)
    assert (given, reason in because) == (verdict, True), because
    assert because.endswith(".") and because.count(". ") == 0  # one sentence


def test_a_teacher_that_sees_too_small_images_is_told_how_to_see_more():
    hint = "The teacher was trained at 160 px and saw 96 px: kd_teacher_imgsz=160 shows it what it knows."
    worse, better = (Facts(score, 0.5, TRAINED, score - 0.5, smaller=hint) for score in (0.4, 0.6))
    assert judge(worse)[0] == NO_GO and judge(worse)[1].endswith(f"nothing to learn from it. {hint}")
    assert judge(better)[0] == GO and hint not in judge(better)[1]


def test_the_best_teacher_has_the_best_verdict_then_the_best_score():
    def teacher(source, verdict, score):
        return {"source": source, "verdict": verdict, "score": score}

    teachers = [teacher("a", UNCERTAIN, 0.9), teacher("b", GO, 0.5), teacher("c", GO, 0.6), teacher("d", NO_GO, 0.95)]
    assert best_of(teachers)["source"] == "c"
    assert best_of(teachers[:1])["source"] == "a"
    assert best_of(teachers[3:]) is None


def test_a_class_that_the_teacher_does_not_know_counts_nothing():
    classes = {"a": {"score": 0.4}, "b": {"score": 0.2}}
    alone = {"score": 0.3, "classes": classes, "sizes": {}}
    teacher = {"score": 0.3, "classes": {"a": {"score": 0.6}, "b": {"score": 0.0}}, "sizes": {}}
    assert lead(teacher, alone, []) == pytest.approx(0.0)
    assert lead(teacher, alone, ["b"]) == pytest.approx(0.1)


@pytest.mark.parametrize(("unmatched", "sizes"), [([], {"small": 0.5, "medium": 0.4}), (["small"], {})])
def test_sizes_are_compared_if_the_teacher_knows_all_classes(unmatched, sizes):
    """The others would count 0 in every size; a class may have the name of a size."""
    labels = {"a.png": objects((0, 1, *BOX), (1, 1, 30, 30, 90, 90))}
    model = SimpleNamespace(
        loaded=SimpleNamespace(classes=SimpleNamespace(unmatched=unmatched)),
        costs=lambda imgsz: {"imgsz": imgsz, "parameters": None, "gflops": None},
    )
    teacher = figures(model, ValidationResult(0.9, 0.9, objects=labels, labels=labels), 64)
    alone = {"sizes": {"small": {"score": 0.5}, "medium": {"score": 0.6}}}
    assert lead_by(teacher, alone, "sizes") == sizes


@pytest.mark.parametrize(("model", "words"), [("yolo11n", "trained for these classes"), ("yolo11n.yml", "trained,")])
def test_only_a_configuration_was_never_trained(model, words):
    advice = {"metrics": ["mAP50-95"], "alone": None, "alone_origin": None, "student": None, "model": model}
    assert f"it is not {words}" in student_text(advice)


def test_a_student_is_found_by_a_name_without_suffix(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "yolo11n.pt", STUDENT)
    args = check_options({**asked, "model": "yolo11n"}).args
    assert student_as_it_is("yolo11n", args, "detect", NAMES) is not None


def test_the_table_of_the_study_is_the_saved_one(tmp_path, capsys):
    """If not: python examples/advice/check.py."""
    rows = check.main(tmp_path)
    saved = ROOT / "examples" / "advice" / "results"
    assert (tmp_path / "check.csv").read_text() == (saved / "check.csv").read_text()
    assert (tmp_path / "check.md").read_text() == (saved / "check.md").read_text()
    assert {row["right"] for row in rows} >= {True, False}  # misses are shown too


# Contradictions -------------------------------------------------------------------------------------------------------
def test_contradictions_of_an_image():
    labels = objects((0, 1, *BOX), (1, 1, 40, 40, 60, 60), (2, 1, 80, 0, 99, 20), (1, 1, 0, 80, 20, 99))
    detections = objects(
        (0, 0.9, *BOX),  # right
        (2, 0.8, 40, 40, 60, 60),  # another class
        (0, 0.7, 40, 80, 60, 99),  # no label
        (2, 0.3, 80, 0, 99, 20),  # a label that is seen, but not with confidence
        (0, 0.05, 0, 80, 20, 99),  # less than that
    )
    found = contradict(detections, labels, 0.5, {0, 1, 2})
    assert (found["extra"], found["missed"], found["swapped"]) == ([2], [3], [(1, 1)])
    assert found["weight"] == pytest.approx(0.7 + 0.8 + 0.95)
    assert contradict(detections, labels, 0.5, {0, 2})["missed"] == []  # it does not know class 1


def test_a_box_that_counts_sees_its_label_however_low_its_confidence():
    found = contradict(objects((0, 0.07, *BOX)), objects((0, 1, *BOX)), 0.05, {0})
    assert (found["paired"], found["missed"], found["weight"]) == (1, [], 0)


@pytest.mark.parametrize(("right", "swapped"), [(0.95, []), (0.4, [(0, 0)])])
def test_a_label_with_a_box_of_its_class_is_not_taken_for_another(right, swapped):
    detections = objects((0, right, 0, 0, 20, 16), (1, 0.5, 0, 0, 20, 19))  # the box of the other class fits better
    found = contradict(detections, objects((0, 1, *BOX)), 0.5, {0, 1})
    assert (found["swapped"], found["extra"], found["paired"]) == (swapped, [], 1)


def test_images_are_listed_by_their_contradictions(tmp_path):
    files = [str(tmp_path / f"{name}.png") for name in "abc"]
    labels = {file: objects((0, 1, *BOX)) for file in files}
    detections = {
        files[0]: objects((0, 0.9, *BOX)),
        files[1]: objects((1, 0.9, *BOX)),
        files[2]: objects((0, 0.9, *BOX), (0, 0.8, 40, 40, 60, 60), (1, 0.7, 70, 70, 90, 90)),
    }
    result = ValidationResult(0, 0, objects=detections, labels=labels)
    found = find_contradictions(result, "detect", {0: "cat", 1: "dog"}, 0.5, {0, 1})
    assert [Path(row["file"]).stem for row in found["rows"]] == ["c", "b"]
    assert (found["confident"], found["labels"]) == (3, 3)
    assert (found["labels"], found["extra"], found["missed"], found["swapped"]) == (3, 2, 0, 1)
    assert found["swaps"] == [{"label": "cat", "teacher": "dog", "count": 1}]
    write_list({"t.pt": found["rows"]}, tmp_path / "list.csv")
    assert pl.read_csv(tmp_path / "list.csv")["image"].to_list() == [files[2], files[1]]
    write_list({"t.pt": []}, tmp_path / "list.csv")
    assert pl.read_csv(tmp_path / "list.csv").height == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8(asked, tmp_path, monkeypatch):
    folder = Path(asked["data"]).parent / "images" / "train"
    odd = folder / os.fsdecode(b"\xff.png")
    (folder / "0.png").rename(odd)
    # People read them with escapes
    write_list({"t.pt": [{"file": str(odd), "original": str(odd), "weight": 1.0}]}, tmp_path / "list.csv")
    assert pl.read_csv(tmp_path / "list.csv")["image"].to_list() == [f"{folder}/\\udcff.png"]
    # Stored answers to images without labels, of which Ultralytics reads no list
    monkeypatch.setattr(steps, "build_cache", lambda *_, **__: None)
    options = check_options({**asked, "kd_unlabeled": str(folder)})
    training, _ = unmeasured_steps(options, tmp_path / "scratch")._stored(asked["teacher"])
    links = find_unlabeled(training["kd_unlabeled"])
    assert {Path(link).resolve() for link in links} == set(folder.glob("*.png"))
    # Tasks whose parts are lists
    part = part_of(asked["data"], "semantic", "train", 4, tmp_path / "part")
    images = image_files(check_det_dataset(part.data)["val"])
    assert len(images) == part.used == 4 and str(odd) not in images


# What is measured -----------------------------------------------------------------------------------------------------
def test_a_part_of_a_set_has_its_images_and_labels_and_leaves_the_set_alone(tmp_path):
    data = draw_dataset(tmp_path / "set", images=8)
    before = sorted(path for path in tmp_path.rglob("*"))
    part = part_of(str(data), "detect", "train", 3, tmp_path / "part")
    assert (part.used, part.total, part.split) == (3, 8, "val")
    files = sorted(Path(check_det_dataset(part.data)["val"]).iterdir())
    sources = [Path(part.original(str(file))) for file in files]
    assert [source.stem for source in sources] == ["0", "4", "7"]
    for file, source in zip(files, sources):
        own = (file.parents[1] / "labels" / f"{file.stem}.txt").read_text()
        assert own == (source.parents[2] / "labels" / "train" / f"{source.stem}.txt").read_text()
    assert sorted(p for p in tmp_path.rglob("*") if "part" not in p.parts) == before
    whole = part_of(str(data), "detect", "train", 8, tmp_path / "part")
    assert (whole.data, whole.split, whole.used) == (str(data), "train", 8)
    assert whole.original(str(sources[0])) == str(sources[0])


def test_the_class_of_an_image_is_the_first_folder_below_its_split(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    for split in ("train", "val"):
        for place in ("cat/indoors", "cat/garden", "dog/indoors", "dog", ""):
            (tmp_path / "set" / split / place).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "set" / split / place / "0.png"), image)
    part = part_of(str(tmp_path / "set"), "classify", "val", 3, tmp_path / "part")
    assert (part.used, part.total) == (3, 4)  # the image outside the folders is not one of the set
    assert check_cls_dataset(part.data)["names"] == {0: "cat", 1: "dog"}
    for file in Path(part.data, "val").rglob("*.png"):
        assert file.parent.name == Path(part.original(str(file))).relative_to(tmp_path / "set" / "val").parts[0]


def test_images_of_a_part_are_named_where_links_are_not_allowed_too(tmp_path, monkeypatch):
    def refuse(*_):
        """Refuse a link, as Windows does by default."""
        raise OSError("a required privilege is not held")

    monkeypatch.setattr("os.symlink", refuse)
    part = part_of(str(draw_dataset(tmp_path / "set", images=8)), "detect", "train", 2, tmp_path / "part")
    files = sorted(Path(check_det_dataset(part.data)["val"]).iterdir())
    assert not any(file.is_symlink() for file in files)
    sources = [Path(part.original(str(file))) for file in files]
    assert [source.stem for source in sources] == ["0", "7"]
    assert [source.read_bytes() for source in sources] == [file.read_bytes() for file in files]


def test_the_first_batch_is_not_part_of_the_time_to_answer_an_image():
    assert steps.seconds_per_image([(10.0, 0), (16.0, 8), (18.0, 8), (20.0, 8)]) == pytest.approx(4 / 16)
    assert steps.seconds_per_image([(10.0, 0), (16.0, 8)]) == pytest.approx(6 / 8)  # there is no other


def test_hours_count_loading_beside_the_step_or_in_turn_with_it():
    assert hours(2.0, 1.0, workers=0, steps=3600) == pytest.approx(3.0)
    assert hours(2.0, 1.0, workers=2, steps=3600) == pytest.approx(2.0)
    assert hours(2.0, 8.0, workers=2, steps=3600) == pytest.approx(4.0)


@pytest.fixture
def asked(tmp_path):
    """Arguments of an advice on drawn images, with a teacher that was never trained."""
    return {
        **QUICK,
        "data": str(draw_dataset(tmp_path / "set")),
        "model": STUDENT,
        "teacher": str(save_model(tmp_path / "teacher.pt", TEACHER)),
        "save_dir": str(tmp_path / "advice"),
    }


def test_gradients_of_labels_count_pseudo_boxes_as_training_does(asked, tmp_path, monkeypatch):
    own = {k: v for k, v in asked.items() if k not in {*ADVICE_ONLY, "save_dir"}}
    extra = Path(asked["data"]).parent / "images" / "val"
    boxes = {"kd_unlabeled": str(extra), "kd_unlabeled_boxes": 0.5, "kd_init": False}
    each = Trial({**own, **boxes, "teacher": asked["teacher"]}, tmp_path / "trial", 1)
    stock, losses = PseudoBoxes.loss, []

    def noted(*args):
        losses.append(stock(*args))
        return losses[-1]

    monkeypatch.setattr(PseudoBoxes, "loss", noted)
    measured = compare_gradients(each)
    assert len(losses) == 1 and measured[TOGETHER]["ratio"] > 0
    loss = each.trainer.model.criterion
    assert loss.inspect is not None and loss.distiller.balance is None  # as they were


def test_gradients_are_those_of_labels_and_terms(asked, tmp_path):
    """The same as by hand: the gradients of base loss and terms at the features that enter the head."""
    own = {k: v for k, v in asked.items() if k not in {*ADVICE_ONLY, "save_dir"}}
    each = Trial({**own, "teacher": asked["teacher"], "kd_init": False}, tmp_path / "trial", 1)
    measured = compare_gradients(each)
    assert set(measured) == {"kd_cls", "kd_box", TOGETHER}
    student, batch = each.trainer.model, each.prepared(0)
    loss = student.criterion
    preds = student(batch["img"])
    parts, _ = loss(preds, batch)
    kd = {"kd_cls": parts[-2], "kd_box": parts[-1]}
    points = loss.distiller.points(preds)

    def gradient(value):
        parts = torch.autograd.grad(value, points, retain_graph=True, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(parts, points)])

    labels = gradient(parts[:3].sum())
    for name, value in {**kd, TOGETHER: sum(kd.values())}.items():
        term = gradient(value)
        assert measured[name]["ratio"] == pytest.approx(float(term.norm() / labels.norm()), rel=0.02)
        assert measured[name]["cosine"] == pytest.approx(float(torch.cosine_similarity(term, labels, 0)), abs=0.02)
    each.close()


def test_stored_answers_are_those_of_the_training_that_is_asked_about(asked, tmp_path, monkeypatch):
    YAML.save(asked["data"], {**YAML.load(asked["data"]), "test": "images/val"})
    own = {"split": "test", "kd_classes": {"disc": "disc"}, "kd_precision": "fp16", "kd_teacher_imgsz": 128}
    made = []
    monkeypatch.setattr(steps, "build_cache", lambda args, *_, **__: made.append(args))
    options = check_options({**asked, **own})
    training, _ = unmeasured_steps(options, tmp_path / "scratch")._stored(asked["teacher"])
    assert all(getattr(made[0], name) == value for name, value in own.items() if name != "split")
    assert check_det_dataset(training["data"])[training["split"]]  # the part has no test images


def test_gradients_of_a_compiled_student_are_compared(asked, tmp_path):
    own = {k: v for k, v in asked.items() if k not in {*ADVICE_ONLY, "save_dir"}}
    each = Trial({**own, "teacher": asked["teacher"], "kd_init": False}, tmp_path / "trial", 1)
    plain = compare_gradients(each)
    each.trainer.model = torch.compile(each.trainer.model, backend="aot_eager")
    assert compare_gradients(each)[TOGETHER] == pytest.approx(plain[TOGETHER], abs=0.02)
    each.close()


@pytest.mark.parametrize(
    ("own", "precision", "given"),
    [({}, False, dict), ({"amp": "bf16"}, torch.bfloat16, dict), ({"compile": "default"}, False, torch.Tensor)],
)
def test_a_step_is_that_of_ultralytics_loop(own, precision, given, asked, tmp_path, monkeypatch):
    each = Trial({k: v for k, v in asked.items() if k not in {*ADVICE_ONLY, "save_dir"}}, tmp_path / "trial", 1)
    vars(each.trainer.args).update(own)  # later than a set-up that would compile, or look for a GPU
    precisions, inputs = [], []
    monkeypatch.setattr(trial, "autocast", lambda enabled, **_: precisions.append(enabled) or nullcontext())
    each.trainer.model.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    each.step()
    each.close()
    assert precisions == [precision] and isinstance(inputs[0], given)


@pytest.mark.parametrize(("verdict", "mode"), [(GO, "train"), (UNCERTAIN, "bench")])
def test_the_next_command_stores_the_answers_of_a_teacher_that_sees_more(verdict, mode):
    training = {"data": "d.yaml", "model": "m.pt", "kd_teacher_imgsz": 2}
    words = shlex.split(next_command(verdict, training, "t.pt", stored=True))
    assert words[:2] == ["yolo-kd", mode] and {"teacher=t.pt", "kd_teacher_imgsz=2", "kd_cache=True"} <= set(words)
    assert not any("kd_" in word for word in shlex.split(next_command(NO_GO, training, "t.pt", stored=True))[1:])


def test_the_next_command_after_the_arguments_of_a_run_is_one_that_a_bench_takes(asked, tmp_path):
    YAML.save(tmp_path / "args.yaml", {**DEFAULT_CFG_DICT, "mode": "train", "task": "detect", "save_dir": "runs/a"})
    options = check_options({**asked, "resume": False, "cfg": str(tmp_path / "args.yaml")})
    words = shlex.split(next_command(UNCERTAIN, options.training, asked["teacher"]))[2:]
    plan = make_plan(dict(parse_key_value_pair(word) for word in words))
    assert plan.common["batch"] == 4 and [arm.name for arm in plan.arms] == ["alone", "kd"]


def test_advice_leaves_figures_a_list_and_a_page(asked, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(LOGGER, "info", lambda text, *_: lines.append(str(text)))
    monkeypatch.setattr(callbacks, "add_integration_callbacks", _tracked)
    for place, name, few in ((costs, "ROUNDS", 1), (steps, "ANSWERED", 4), (steps, "BATCHES", 2)):
        monkeypatch.setattr(place, name, few)
    assert main(["advise", *(f"{k}={v}" for k, v in {**asked, "images": 2, "kd_cls": 3.0}.items())]) == 0
    folder = Path(asked["save_dir"])
    advice = json.loads((folder / "advice.json").read_text())
    (teacher,) = advice["teachers"]
    assert teacher["source"] == asked["teacher"] and teacher["verdict"] in {GO, NO_GO, UNCERTAIN}
    assert set(teacher["costs"]["arms"]) == {"alone", "with teacher", "stored answers"}
    assert all(row["ms"] > 0 and row["hours"] > 0 for row in teacher["costs"]["arms"].values())
    assert teacher["costs"]["steps"] == 2 * 3
    assert (advice["student"], advice["alone"]) == (None, None)  # it was never trained, and there was no probe
    # The command says what was asked about
    words = shlex.split(teacher["command"])
    assert words[0] == "yolo-kd" and f"data={asked['data']}" in words and "imgsz=64" in words
    assert "probe=0" not in words and f"save_dir={asked['save_dir']}" not in words
    # Files
    assert pl.read_csv(folder / "contradictions.csv").columns[:3] == ["teacher", "image", "weight"]
    page = (folder / "advice.html").read_text()
    assert page.count('src="data:image/jpeg') == len(teacher["pictures"]) == 2
    assert teacher["verdict"] in page and teacher["reason"].split("'")[0] in page
    # The terminal
    shown = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines[-1].splitlines()]
    long = [line for line in shown if len(line) > 80 and str(folder.parent) not in line]
    assert shown and not long, long


def test_advice_speaks_of_the_images_that_were_asked_for_and_of_no_folder_of_its_own(asked, monkeypatch, caplog):
    for place, name, few in ((costs, "ROUNDS", 1), (steps, "ANSWERED", 4), (steps, "BATCHES", 2)):
        monkeypatch.setattr(place, name, few)
    YAML.save(asked["data"], {**YAML.load(asked["data"]), "test": "images/val"})
    model = torch.load(asked["teacher"], weights_only=False)["model"]
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": 640}}, asked["teacher"])  # a reason to warn
    advice = run_advice({**asked, "split": "test", "sample": 3, "images": 0})
    assert (advice["val"]["split"], advice["train"]["split"]) == ("test", "train")
    assert "(3 of 4 test images)" in to_text(advice) and "scores on 3 test images" in caplog.text
    assert "Scores on 3 of 4 test images." in Path(advice["page"]).read_text()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [w for w in warnings if "sees 64 px" in w] and not [w for w in warnings if "kd_cache=" in w]
    # Of another task, where no part of the list counts
    assert "count for the verdict" in unwrapped(to_text(advice))
    teachers = [{**advice["teachers"][0], "contradictions": {"images": 3, "listed": 1}}]
    assert "count for the verdict" not in unwrapped(to_text({**advice, "teachers": teachers}))


def _tracked(trainer):
    """Let a trainer run a callback that must not run: a tracker must not hear of a trial."""

    def hear(_):
        raise AssertionError("a tracker heard of a trial")

    for event in ("on_pretrain_routine_start", "on_train_start", "on_train_epoch_end", "on_train_end"):
        trainer.callbacks[event].append(hear)


def test_the_student_is_trained_alone_for_a_moment_and_no_tracker_hears_of_it(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "add_integration_callbacks", _tracked)
    own = {k: v for k, v in asked.items() if k not in {*ADVICE_ONLY, "save_dir"}}
    weights, _ = train_alone(own, tmp_path / "probe", 0.5)
    assert StockYOLO(weights).names == NAMES


def test_a_student_with_time_for_all_epochs_has_the_schedule_of_a_whole_training(asked, tmp_path):
    own = {k: v for k, v in asked.items() if k not in {*ADVICE_ONLY, "save_dir"}} | {"epochs": 2, "nbs": 4}
    weights, probe = train_alone(own, tmp_path / "probe", 600)
    assert (probe.epochs, probe.words) == (2, "all 2 epochs") and probe.complete and probe.seconds < 600
    assert len(pl.read_csv(Path(weights).parents[1] / "results.csv")) == 2
    StockYOLO(own["model"]).train(**own, **QUIET, project=str(tmp_path), name="whole")  # without validations too
    trained, whole = (StockYOLO(file).model.state_dict() for file in (weights, tmp_path / "whole/weights/best.pt"))
    assert all(torch.equal(trained[name], value) for name, value in whole.items())


def test_the_student_is_not_trained_for_longer_than_is_asked_about(asked, tmp_path):
    own = {k: v for k, v in asked.items() if k not in {*ADVICE_ONLY, "save_dir"}}
    weights, _ = train_alone({**own, "epochs": 1}, tmp_path / "probe", 600)
    assert len(pl.read_csv(Path(weights).parents[1] / "results.csv")) == 1


def test_an_epoch_that_was_cut_off_and_the_validation_after_it_do_not_count(asked, tmp_path, monkeypatch):
    own = {k: v for k, v in asked.items() if k not in {*ADVICE_ONLY, "save_dir"}} | {"epochs": 1, "nbs": 4}
    stock, trained = BaseTrainer.validate, []

    def slow(self):
        trained.append(time.time() - self.train_time_start)
        time.sleep(0.2)
        return stock(self)

    monkeypatch.setattr(BaseTrainer, "validate", slow)
    _, probe = train_alone(own, tmp_path / "probe", 1e-3)  # time for one of two batches
    assert (probe.epochs, probe.complete) == (0, False) and probe.words.endswith("seconds of training")
    assert 0 < probe.seconds <= trained[0]


@pytest.mark.parametrize(
    "epochs, asked, words", [(3, 100, "61 seconds of training"), (6, 6, "all 6 epochs"), (1, 1, "its only epoch")]
)
def test_the_length_of_a_short_training_in_words(epochs, asked, words):
    assert Probe(epochs, asked, 61.2).words == words


def test_scores_of_few_labels_say_so():
    rows = {"few": {"labels": FEW_LABELS - 1}, "many": {"labels": FEW_LABELS}}
    better = {"sizes": {"many": 0.1}, "classes": {"few": 0.2, "many": 0.1}}
    text = better_text({"better": better, "sizes": rows, "classes": rows})
    assert text == "many objects +0.100; few +0.200 (29 labels), many +0.100"


@pytest.mark.parametrize("moment", ["gradients", "steps"])
def test_an_interrupted_advice_leaves_no_folder_and_no_training(moment, asked, monkeypatch):
    made, stock, stock_close = [], Trial.__init__, Trial.close
    place, name = {"gradients": (steps, "compare_gradients"), "steps": (costs, "time_steps")}[moment]

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, name, stop)
    monkeypatch.setattr(Trial, "__init__", lambda self, *args: made.append(self) or stock(self, *args))
    monkeypatch.setattr(Trial, "close", lambda self: made.remove(self) or stock_close(self))
    with pytest.raises(KeyboardInterrupt):
        run_advice(asked)
    assert not made and not Path(asked["save_dir"]).exists()


# What is refused ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "given, message",
    [
        ({"teacher": ""}, "needs teacher=PATH"),
        ({"teacher": "ema"}, "has no score before it"),
        ({"teacher": "SAME"}, "is given twice"),
        ({"model": ""}, "needs model="),
        ({"data": ""}, "needs data="),
        ({"data": "NO VAL"}, "lacks train: or val: images"),
        ({"data": "EMPTY VAL"}, "has no val images"),
        ({"data": "OTHER COUNT"}, "'names' length 3 and 'nc: 4' must match"),
        ({"data": "NO NAMES"}, "either 'names' or 'nc' are required"),
        ({"data": "NOWHERE"}, "cannot be read"),
        ({"baseline": "OTHERS"}, "knows none of the classes"),
        ({"teacher": "OTHERS"}, "has no class in common"),
        ({"teacher": "CLASSIFIER"}, "ends in 'Classify'"),
        ({"batch": -1}, "give a batch size"),
        ({"device": "0,1"}, "on one device"),
        ({"kd_cache": True}, "takes no 'kd_cache=True'"),
        ({"time": 1.0}, "takes no 'time=1.0'"),
        ({"kd_keep": True}, "takes no 'kd_keep=True'"),
        ({"kd_teacher_weights": [2, 1]}, "takes no 'kd_teacher_weights"),
        ({"probe": -1}, "'probe=-1'"),
        ({"probe": "long"}, "'probe=long'"),
        ({"sample": 0}, "'sample=0'"),
        ({"images": -1}, "'images=-1'"),
        ({"match_conf": 1.5}, "'match_conf=1.5'"),
        ({"imgsz": "large"}, "'imgsz=large'"),
        ({"kd_teacher_imgsz": 32}, "smaller than imgsz=64"),
        ({"kd_cls": 0, "kd_box": 0}, "all distillation weights are 0"),
        ({"nms": True}, "'nms=False'"),
    ],
)
def test_bad_input_is_refused_in_a_sentence_before_anything_is_written(asked, given, message, tmp_path):
    folder = Path(asked["data"]).parent
    data = YAML.load(asked["data"])
    (folder / "empty").mkdir()
    made = {
        "NO VAL": {k: v for k, v in data.items() if k != "val"},
        "EMPTY VAL": {**data, "val": "empty"},
        "OTHER COUNT": {**data, "nc": 4},
        "NO NAMES": {k: v for k, v in data.items() if k not in {"names", "nc"}},
    }
    for name, content in made.items():
        YAML.save(folder / f"{name}.yaml", content)
    places = {name: str(folder / f"{name}.yaml") for name in (*made, "NOWHERE")}
    if "OTHERS" in given.values():
        places["OTHERS"] = str(save_model(tmp_path / "others.pt", STUDENT, {0: "cat", 1: "dog"}))
    if "CLASSIFIER" in given.values():
        torch.save({"model": ClassificationModel("yolov8n-cls.yaml", verbose=False)}, tmp_path / "other.pt")
        places["CLASSIFIER"] = str(tmp_path / "other.pt")
    places["SAME"] = f"{asked['teacher']},{asked['teacher']}"
    given = {k: places.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        run_advice({**asked, **given})
    assert "\n" not in str(error.value)
    assert not Path(asked["save_dir"]).exists()


def test_an_unknown_argument_is_refused(asked):
    with pytest.raises(SyntaxError, match="teachr"):
        check_options({**asked, "teachr": "a.pt"})


def test_a_recipe_gives_the_arguments_of_the_training(asked, tmp_path):
    YAML.save(tmp_path / "recipe.yaml", {"epochs": 7, "kd_cls": 4.0, "mode": "train", "batch": 2})
    options = check_options({**asked, "cfg": str(tmp_path / "recipe.yaml")})
    assert (options.training["epochs"], options.training["batch"], options.training["kd_cls"]) == (3, 4, 4.0)


def test_a_time_limit_in_a_recipe_is_refused(asked, tmp_path):
    YAML.save(tmp_path / "recipe.yaml", {"time": 2.0})
    with pytest.raises(ValueError, match=r"takes no 'time=2.0'"):
        check_options({**asked, "cfg": str(tmp_path / "recipe.yaml")})


# Longer ---------------------------------------------------------------------------------------------------------------
@pytest.mark.nightly
@pytest.mark.parametrize("task", OTHERS)
def test_every_task_is_advised(task, tmp_path):
    data = draw_task_dataset(tmp_path / "set", task, 24, 12, 64)
    torch.save({"model": task_model(task), "train_args": {"task": task}}, tmp_path / "teacher.pt")
    given = {
        **QUICK,
        "data": str(data),
        "model": f"yolo26n{SUFFIX[task]}.yaml",
        "teacher": str(tmp_path / "teacher.pt"),
    }
    advice = run_advice({**given, "images": 2, "sample": 6, "save_dir": str(tmp_path / "advice")})
    (teacher,) = advice["teachers"]
    assert advice["val"]["used"] == 6 and "kd_cache" in teacher["costs"]["not_stored"]
    assert len(teacher["pictures"]) == min(teacher["contradictions"]["listed"], 2)
    assert Path(advice["page"]).exists()


@pytest.mark.nightly
def test_a_trained_teacher_is_a_go_and_one_with_classes_in_a_wrong_order_is_not(tmp_path):
    data = draw_dataset(tmp_path / "set", images=64)
    trained = StockYOLO(TEACHER)
    args = {**QUICK, "epochs": 40, "lr0": 0.004, "plots": False, "batch": 8, "nbs": 8, "mosaic": 0.0, "val": False}
    args.pop("probe")
    trained.train(data=str(data), project=str(tmp_path), name="teacher", verbose=False, **args)
    good = tmp_path / "teacher" / "weights" / "last.pt"
    wrong = StockYOLO(str(good))
    wrong.model.names = {0: "bar", 1: "disc", 2: "box"}
    torch.save({"model": wrong.model.float(), "train_args": {"task": "detect"}}, tmp_path / "wrong.pt")
    given = {**QUICK, "nbs": 4, "data": str(data), "model": STUDENT, "teacher": f"{good},{tmp_path / 'wrong.pt'}"}
    advice = run_advice({**given, "probe": 2, "save_dir": str(tmp_path / "advice")})
    first, second = advice["teachers"]
    assert first["verdict"] == GO, first["reason"]
    assert second["verdict"] == NO_GO, second["reason"]
    assert advice["alone_origin"] == SHORTLY and advice["best"] == str(good)
