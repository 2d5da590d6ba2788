"""Reports: the meaning of their metrics, the files that are written, and the page in a browser."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from argparse import Namespace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
import torch
from conftest import NAMES, STUDENT, make_model, save_model, unwrapped
from task_models import task_model
from ultralytics import YOLO as StockYOLO
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.classify import ClassificationValidator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import YAML
from ultralytics.utils.metrics import ap_per_class, box_iou

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.cli import main
from ultralytics_kd.demo.tasks import draw_task_dataset
from ultralytics_kd.errors import ModelError
from ultralytics_kd.report import plots, run_report
from ultralytics_kd.report.datasets import class_names_of, distinct
from ultralytics_kd.report.dense import (
    DensePrediction,
    dense_agreement,
    difference,
    image_classes,
    pixel_classes,
    worst_dense_images,
)
from ultralytics_kd.report.gap import gap_closed
from ultralytics_kd.report.matching import agreement, calibration, correct, disagreement, overlaps
from ultralytics_kd.report.metrics import worst_images
from ultralytics_kd.report.object_sizes import ap_by_size
from ultralytics_kd.report.page import verdict
from ultralytics_kd.report.report_folder import _remove_pictures
from ultralytics_kd.report.run import _at_its_size, command_of, warn_of_taught
from ultralytics_kd.report.validation import Objects, validate

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def objects(*rows: tuple[float, ...]) -> Objects:
    """Return objects from rows of class, confidence and box."""
    table = np.array(rows, dtype=np.float32).reshape(len(rows), 6)
    return Objects(table[:, 2:], table[:, 0].astype(int), table[:, 1])


def drawn(seed: int, images: int = 6) -> tuple[dict[str, Objects], dict[str, Objects]]:
    """Return labels, and detections that are near many of them."""
    rng = np.random.default_rng(seed)
    labels, detections = {}, {}
    for i in range(images):
        corner, side = rng.uniform(0, 200, (8, 2)), rng.uniform(30, 150, (8, 2))
        boxes = np.concatenate((corner, corner + side), 1).astype(np.float32)
        labels[str(i)] = Objects(boxes, rng.integers(0, 3, 8), np.ones(8))
        near = np.repeat(boxes, 3, 0) + rng.normal(0, 4, (24, 4)).astype(np.float32)
        conf = np.sort(rng.uniform(0, 1, 24))[::-1]
        detections[str(i)] = Objects(near, np.where(rng.random(24) < 0.8, np.repeat(labels[str(i)].cls, 3), 0), conf)
    return labels, detections


# Figures --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.core
def test_average_precision_of_all_sizes_is_near_ultralytics(seed):
    """They differ by how precision is interpolated between recalls."""
    labels, detections = drawn(seed)
    validator = DetectionValidator(args={"task": "detect"})
    alike = torch.zeros(2)
    if not validator.match_predictions(alike, alike, torch.tensor([[0.9, 0.8], [0.0, 0.6]]))[1, 0]:
        pytest.skip("a detection whose nearest label is taken gets no other in this Ultralytics, as it would in COCO's")
    hits, conf, cls, target = [], [], [], []
    for name, truth in labels.items():
        predicted = detections[name]
        iou = box_iou(torch.from_numpy(truth.boxes), torch.from_numpy(predicted.boxes))
        classes = [torch.from_numpy(x.cls) for x in (predicted, truth)]
        hits.append(validator.match_predictions(*classes, iou).numpy())
        for kept, values in ((conf, predicted.conf), (cls, predicted.cls), (target, truth.cls)):
            kept.append(values)
    expected = ap_per_class(*(np.concatenate(x) for x in (hits, conf, cls, target)))[5].mean()
    result = ap_by_size(detections, labels, {"all": (0, 1e10)})
    assert 0.05 < expected < 0.95
    assert result == {"all": {"score": pytest.approx(expected, abs=5e-3), "labels": 48}}


def test_average_precision_is_cocos():
    """Precision at 101 recalls; a range includes its limits; 100 detections of an image and class at most."""
    labels = {"a": objects((0, 1, 0, 0, 32, 32), (0, 1, 100, 100, 120, 120))}
    hit, miss, late = (0, 0.9, 0, 0, 32, 32), (0, 0.8, 300, 300, 320, 320), (0, 0.7, 100, 100, 120, 120)
    result = ap_by_size({"a": objects(hit, miss, late)}, labels)
    assert result["small"] == {"score": pytest.approx((51 + 50 * 2 / 3) / 101), "labels": 2}
    assert result["medium"] == {"score": pytest.approx(1), "labels": 1}  # the label of 32 x 32 pixels
    crowd = [(0, 0.8, 300 + i, 300, 320 + i, 320) for i in range(99)]
    assert ap_by_size({"a": objects(*crowd, late)}, labels)["small"]["score"] > 0
    assert ap_by_size({"a": objects(*crowd, miss, late)}, labels)["small"]["score"] == 0


def test_average_precision_of_rotated_boxes_is_by_their_overlap():
    """Boxes of one place and size, turned: the right angle matches, a quarter turn does not."""

    def rotated(*rows):
        table = np.array(rows, dtype=np.float32).reshape(len(rows), 7)
        return Objects(table[:, 2:], table[:, 0].astype(int), table[:, 1])

    labels = {"a": rotated((1, 1, 50, 50, 80, 8, 0.2))}
    right, turned, other = (1, 0.9, 50, 50, 80, 8, 0.2), (1, 0.8, 50, 50, 80, 8, 1.77), (0, 0.95, 50, 50, 80, 8, 0.2)
    assert ap_by_size({"a": rotated(other, right)}, labels)["small"] == {"score": pytest.approx(1), "labels": 1}
    assert ap_by_size({"a": rotated(turned)}, labels)["small"] == {"score": 0.0, "labels": 1}


def test_sizes_count_their_own_objects_alone():
    """A small object found, a large one missed; what matches or invents objects of another size is left out."""
    small, large = (0, 1.0, 10, 10, 20, 20), (0, 1.0, 100, 100, 300, 300)
    invented = (0, 0.99, 400, 400, 600, 600)
    sizes = ap_by_size({"a": objects(invented, small)}, {"a": objects(small, large)})
    assert sizes["small"] == {"score": pytest.approx(1), "labels": 1}
    assert sizes["large"] == {"score": 0.0, "labels": 1}
    assert sizes["medium"] == {"score": None, "labels": 0}
    both = ap_by_size({"a": objects((0, 0.9, 100, 100, 300, 300), small)}, {"a": objects(small, large)})
    assert both["small"]["score"] == both["large"]["score"] == pytest.approx(1)
    empty = ap_by_size({"a": objects(small)}, {"a": objects()})
    assert set(empty) == {"small", "medium", "large"} and all(s == {"score": None, "labels": 0} for s in empty.values())


def test_a_label_is_matched_once_by_the_most_confident_of_its_class():
    labels = objects((1, 1, 0, 0, 10, 10), (2, 1, 20, 20, 30, 30))
    detections = objects((1, 0.9, 0, 0, 10, 9), (1, 0.8, 0, 0, 10, 10), (1, 0.7, 20, 20, 30, 30))
    assert correct(detections, labels, 0.5).tolist() == [True, False, False]
    assert correct(detections, labels, 0.95).tolist() == [False, True, False]
    assert correct(detections, objects()).tolist() == [False] * 3


def test_agreement_counts_pairs_classes_and_confidence():
    teacher = {"a": objects((0, 0.9, 0, 0, 10, 10), (1, 0.8, 20, 20, 30, 30), (1, 0.1, 50, 50, 60, 60)), "b": objects()}
    student = {"a": objects((0, 0.7, 0, 0, 10, 10), (0, 0.7, 20, 20, 30, 26)), "b": objects((0, 0.6, 0, 0, 9, 9))}
    assert agreement(teacher, student, 0.25) == {
        "teacher_detections": 2,
        "own_detections": 3,
        "found50": 1.0,
        "found75": 0.5,
        "same_class": 0.5,
        "extra": pytest.approx(1 / 3),
        "bias": pytest.approx(-0.2),  # of the pair with the same class
        "difference": pytest.approx(0.2),
    }
    nothing = agreement({"a": objects()}, {"a": objects()}, 0.25)
    assert nothing["teacher_detections"] == 0 and nothing["found50"] is nothing["extra"] is nothing["bias"] is None


def test_a_box_of_another_class_takes_no_partner_from_one_of_the_same_class():
    dog = objects((0, 0.9, 0, 0, 100, 100))
    both = objects((0, 0.8, 0, 0, 100, 80), (1, 0.3, 0, 0, 100, 90))  # the cat overlaps it more
    assert disagreement(dog, both, 0.25) == (pytest.approx(0.3), {"found": 1, "missed": 0, "extra": 1})
    figures = agreement({"a": dog}, {"a": both}, 0.25)
    assert figures["same_class"] == 1.0 and figures["bias"] == pytest.approx(-0.1) and figures["found50"] == 1.0


def test_neighbours_are_found_at_a_high_iou_even_if_other_pairs_overlap_more_in_all():
    """The greatest sum of IoU pairs two neighbours crosswise; at 0.75 only the first one has a partner."""
    teacher = objects((0, 0.9, 0, 0, 100, 100), (0, 0.8, 0, 45, 100, 145))
    student = objects((0, 0.9, 0, 0, 100, 98), (0, 0.8, 0, -30, 100, 70))
    iou = overlaps(teacher, student)
    assert iou[0, 0] > 0.75 and iou[0, 1] + iou[1, 0] < iou[0, 0] + 0.5
    assert agreement({"a": teacher}, {"a": student}, 0.25)["found75"] == 0.5


def test_sizes_of_several_classes_are_those_of_all_at_once():
    rng = np.random.default_rng(0)

    def drawn(count):
        corners = rng.uniform(0, 200, (count, 2))
        boxes = np.concatenate((corners, corners + rng.uniform(8, 120, (count, 2))), 1)
        return objects(*((int(c), 1 - i / count, *b) for i, (c, b) in enumerate(zip(rng.integers(0, 3, count), boxes))))

    labels = {str(i): drawn(6) for i in range(4)}
    moved = {f: Objects(o.boxes + rng.normal(0, 4, o.boxes.shape), o.cls, o.conf) for f, o in labels.items()}
    whole = ap_by_size(moved, labels, {"all": (0, 1e10)})["all"]["score"]
    each = [
        ap_by_size({f: o.of(c) for f, o in moved.items()}, {f: o.of(c) for f, o in labels.items()}, {"all": (0, 1e10)})
        for c in range(3)
    ]
    assert whole == pytest.approx(np.mean([row["all"]["score"] for row in each])) and 0.1 < whole < 1


def test_calibration_is_the_distance_of_confidence_from_what_is_right():
    box = (0, 0, 10, 10)
    labels = {str(i): objects((0, 1, *box)) if i < 8 else objects() for i in range(10)}
    honest = calibration({str(i): objects((0, 0.8, *box)) for i in range(10)}, labels)
    boastful = calibration({str(i): objects((0, 0.95, *box)) for i in range(10)}, labels)
    assert honest["error"] == pytest.approx(0, abs=1e-6) and boastful["error"] == pytest.approx(0.15)
    assert honest["bins"] == [{"conf": pytest.approx(0.8), "right": 0.8, "count": 10}]
    assert calibration({"0": objects()}, labels) == {"error": None, "bins": []}


def test_worst_disagreements_come_first():
    one, other = objects((0, 0.9, 0, 0, 10, 10)), objects((1, 0.8, 0, 0, 10, 10))
    spent, counts = disagreement(one, other, 0.25)
    assert spent == pytest.approx(1.7) and counts == {"found": 0, "missed": 1, "extra": 1}
    rows = worst_images(
        {"same": one, "missed": one, "other": one}, {"same": one, "missed": objects(), "other": other}, 0.25, 2
    )
    assert [row["file"] for row in rows] == ["other", "missed"]
    assert disagreement(one, one, 0.25) == (pytest.approx(0), {"found": 1, "missed": 0, "extra": 0})


def with_arguments(folder, name, **train_args) -> str:
    """Save a student with the arguments of its training."""
    torch.save({"model": make_model(STUDENT), "train_args": {"task": "detect", **train_args}}, folder / name)
    return str(folder / name)


def test_a_teacher_is_shown_the_images_with_which_it_taught(tmp_path):
    (tmp_path / "t.pt").touch(), (tmp_path / "u.pt").touch()
    teacher = str(tmp_path / "t.pt")
    student = with_arguments(tmp_path, "s.pt", teacher=teacher, kd_teacher_imgsz=160)
    given = {"student": student, "teacher": teacher}
    assert _at_its_size(given) == {**given, "kd_teacher_imgsz": 160}
    for other in ({"teacher": str(tmp_path / "u.pt")}, {"kd_teacher_imgsz": 64}):
        assert _at_its_size({**given, **other}) == {**given, **other}
    plain = {**given, "student": with_arguments(tmp_path, "p.pt")}
    assert _at_its_size(plain) == plain


def test_a_baseline_that_had_a_teacher_is_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("ultralytics.utils.LOGGER.propagate", True)
    warn_of_taught(with_arguments(tmp_path, "alone.pt"))
    assert "was trained with" not in caplog.text
    warn_of_taught(with_arguments(tmp_path, "taught.pt", teacher="t.pt"))
    assert "was trained with teacher=t.pt: give the student that was trained alone" in caplog.text


def test_gap_closed_is_a_share_of_the_teachers_lead():
    assert gap_closed(0.6, 0.4, 0.5) == pytest.approx(0.5)
    assert gap_closed(0.6, 0.4, 0.7) == pytest.approx(1.5) and gap_closed(0.6, 0.4, 0.3) == pytest.approx(-0.5)
    assert gap_closed(0.4, 0.4, 0.5) is None and gap_closed(0.3, 0.4, 0.5) is None
    assert gap_closed(0.42, 0.41, 0.5, 0.02) is None


def test_models_without_boxes_are_compared_by_image_and_by_pixel():
    def prediction(*values):
        return DensePrediction(np.array(values, dtype=np.float16), (64, 64))

    one, other = prediction(0.7, 0.2, 0.1), prediction(0.2, 0.7, 0.1)
    assert difference(one, other, "classify") == (pytest.approx(0.5, abs=1e-3), 0.0)
    assert difference(prediction([0, 1], [2, 3]), prediction([0, 1], [2, 2]), "semantic") == (0.25, 0.75)
    depths = prediction([2.0, 2.0], [0.0, 4.0]), prediction([2.0, 4.0], [1.0, 4.4])
    distance, same = difference(*depths, "depth")  # where both have a depth: equal, twice, a tenth more
    assert distance == pytest.approx((np.log(2) + np.log(1.1)) / 3, abs=1e-3) and same == pytest.approx(2 / 3)
    teacher, student = {"a": one, "b": one}, {"a": other, "b": one}
    truth = {"a": prediction(0, 1, 0), "b": prediction(0, 1, 0)}
    same = dense_agreement(teacher, student, "classify", truth)
    assert same == {"same": 0.5, "distance": pytest.approx(0.25, abs=1e-3)}
    assert [row["file"] for row in worst_dense_images(teacher, student, "classify", truth, 5)] == ["a", "b"]
    padded = prediction([0, 255], [255, 255])  # pixels without a label do not count
    assert difference(prediction([0, 1], [2, 3]), prediction([0, 2], [0, 1]), "semantic", padded) == (0.0, 1.0)
    classes = image_classes({0: "x", 1: "y", 2: "z"}, {"a": other, "b": one}, truth)
    assert classes == {"y": {"score": 0.5, "labels": 2}}


def test_score_of_a_class_of_pixels_is_its_intersection_over_union():
    from ultralytics.utils.metrics import SemanticMetrics

    metrics = SemanticMetrics({0: "a", 1: "b", 2: "c"})
    truth = torch.tensor([[[0, 0, 1, 1]]])
    metrics.update_stats(torch.tensor([[[0, 1, 1, 2]]]), truth)
    metrics.process()
    classes = pixel_classes(metrics)
    assert classes == {"a": {"score": 0.5, "labels": 2}, "b": {"score": pytest.approx(1 / 3), "labels": 2}}
    assert np.mean([c["score"] for c in classes.values()]) == pytest.approx(metrics.results_dict["metrics/mIoU"])


# Reports --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def report(tmp_path_factory, data, teacher):
    """Return a report of a student with the very weights of its teacher, beside another one with a run of its own."""
    folder = tmp_path_factory.mktemp("report")
    weights = folder / "run/weights"
    weights.mkdir(parents=True)
    shutil.copy2(teacher, weights / "student.pt")
    epochs = [(1, 3.0, 2.0, 0.0, 3.2, 0.1), (2, 2.0, 1.0, 0.0, 2.9, 0.2)]
    columns = ["epoch", "train/box_loss", "train/kd_cls", "train/kd_feat", "val/box_loss", "metrics/mAP50-95(B)"]
    pl.DataFrame(epochs, schema=columns, orient="row").write_csv(folder / "run/results.csv")
    torch.manual_seed(5)
    baseline = save_model(folder / "baseline.pt", "yolo11n.yaml")
    return run_report(
        {"teacher": teacher, "student": str(weights / "student.pt"), "baseline": str(baseline), "data": data,
         "imgsz": 64, "batch": 4, "images": 3, "device": "cpu", "project": str(folder), "name": "out"}
    )  # fmt: skip


@pytest.mark.core
def test_a_student_with_its_teachers_weights_is_its_equal(report):
    teacher, student = report["models"]["teacher"], report["models"]["student"]
    for key in ("heads", "classes", "sizes", "calibration", "parameters", "gflops"):
        assert student[key] == teacher[key]
    assert report["kept"] == 1.0 and set(report["lead"].values()) == {0.0}
    same = report["agreement"]["student"]
    assert same["found50"] == same["found75"] == same["same_class"] == 1.0 and same["teacher_detections"] > 10
    assert same["extra"] == same["bias"] == same["difference"] == 0.0
    assert report["agreement"]["baseline"]["found50"] < 0.9
    assert [row["missed"] + row["extra"] for row in report["images"]] == [0, 0, 0]


@pytest.mark.core
def test_scores_and_costs_are_what_ultralytics_says(report, data):
    for role in ("student", "baseline"):
        model = report["models"][role]
        for head, nms in (("nms", None), ("end2end", False)):
            if head in model["heads"]:
                own = StockYOLO(model["source"]).val(data=data, imgsz=64, batch=4, nms=nms, plots=False, verbose=False)
                assert model["heads"][head]["score"] == pytest.approx(own.box.map, abs=1e-9)
        assert set(model["heads"]) == ({"nms", "end2end"} if role == "student" else {"nms"})
        assert model["parameters"] == sum(p.numel() for p in StockYOLO(model["source"]).model.parameters())
        assert model["megabytes"] == pytest.approx(Path(model["source"]).stat().st_size / 2**20)
        assert 0 < model["latency"]["low"] <= model["latency"]["ms"] <= model["latency"]["high"]
    assert sum(c["labels"] for c in report["models"]["student"]["classes"].values()) == sum(
        size["labels"] for size in report["models"]["student"]["sizes"].values()
    )


def test_page_pictures_and_figures_are_written(report):
    folder = Path(report["save_dir"])
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    assert set(report["charts"]) == {"latency", "classes", "calibration", "curves"} and report["trained"] == ["student"]
    pictures = [*report["charts"].values(), *(row["picture"] for row in (*report["images"], *report["levels"]))]
    assert len(report["images"]) == 3 and len(report["levels"]) == 2
    for name in pictures:
        image = cv2.imread(str(folder / name))
        assert image is not None and image.std() > 5  # drawn on
    four = cv2.imread(str(folder / report["images"][0]["picture"]))  # teacher, baseline, student, labels
    assert four.shape[1] == 4 * 420 + 3 * 6


class Page(HTMLParser):
    """The sources, links and structure of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.sources, self.alts, self.headings, self.scopes, self.links, self.ids = [], [], [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.add(given.get("id"))
        if tag in {"img", "script", "iframe", "link", "source"}:
            self.sources.append(given.get("src") or given.get("href") or "")
        if tag == "img":
            self.alts.append(given.get("alt", ""))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "th":
            self.scopes.append(given.get("scope"))
        if tag == "a":
            self.links.append(given["href"])


def test_page_needs_nothing_beside_it_and_has_a_sound_structure(report):
    text = Path(report["page"]).read_text(encoding="utf-8")
    page = Page(text)
    assert all(source == "" or source.startswith("data:") for source in page.sources)
    assert "http" not in re.sub(r"data:[^\"]+", "", text) and "@import" not in text
    assert all(len(alt) > 20 for alt in page.alts) and len(page.alts) == 9
    assert page.headings[0] == 1 and set(page.headings[1:]) == {2}
    assert all(scope in {"col", "row"} for scope in page.scopes)
    assert all(link.removeprefix("#") in page.ids for link in page.links) and len(page.links) == 9
    for sentence in report["verdict"]:
        assert sentence.replace("'", "&#39;") in text


def test_names_in_a_page_are_text_and_no_markup(tmp_path, data):
    """A class, or a file, may be called what it likes."""
    odd = {0: "a & b", 1: "<script>alert(1)</script>", 2: NAMES[2]}
    copy = tmp_path / "set"
    shutil.copytree(Path(data).parent, copy)
    text = (copy / "data.yaml").read_text().replace(str(Path(data).parent), str(copy))
    for i, name in odd.items():
        text = re.sub(rf"{i}: \w+", f"{i}: '{name}'", text)
    (copy / "data.yaml").write_text(text)
    model = str(save_model(tmp_path / "model.pt", names=odd))
    made = run_report({"teacher": model, "student": model, "data": str(copy / "data.yaml"), "imgsz": 64, "images": 0,
                       "device": "cpu", "project": str(tmp_path), "name": "out"})  # fmt: skip
    page = Path(made["page"]).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
    assert made["images"] == [] and made["gap"] is None and "baseline" not in made["models"]


def test_a_teacher_of_other_classes_and_several_teachers_are_reported(tmp_path, data, teacher):
    """Same weights with permuted classes: the same figures. Two of the same weights: one set of detections."""
    model = make_model(STUDENT)
    torch.save({"model": model, "train_args": {"task": "detect"}}, tmp_path / "student.pt")
    model.names = {0: NAMES[1], 1: NAMES[2], 2: NAMES[0]}
    head = model.model[-1]
    for tower in (*head.cv3, *head.one2one_cv3):
        for values in (tower[-1].weight, tower[-1].bias):
            values.data = values.data[[1, 2, 0]]
    torch.save({"model": model, "train_args": {"task": "detect"}}, tmp_path / "teacher.pt")
    StockYOLO(tmp_path / "student.pt")  # readable
    student = torch.load(tmp_path / "student.pt", weights_only=False)
    student["model"].names = dict(NAMES)
    torch.save(student, tmp_path / "student.pt")
    rest = {"student": str(tmp_path / "student.pt"), "data": data, "imgsz": 64, "images": 1, "device": "cpu",
            "project": str(tmp_path), "name": "out"}  # fmt: skip
    made = run_report({**rest, "teacher": str(tmp_path / "teacher.pt"), "nms": False})
    assert made["models"]["teacher"]["classes"] == made["models"]["student"]["classes"]
    assert made["agreement"]["student"]["same_class"] == 1.0 and made["models"]["student"]["head"] == "end2end"
    both = run_report({**rest, "teacher": [teacher, teacher]})
    assert both["models"]["teacher"]["parameters"] > 1e5 and both["agreement"]["student"]["teacher_detections"] > 0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"student": None}, "needs student=PATH"),
        ({"teacher": None}, "needs teacher=PATH"),
        ({"data": None}, "needs data=PATH"),
        ({"epochs": 3}, "'epochs' is not an argument of 'yolo-kd report'"),
        ({"images": -1}, "'images=-1' is an invalid value"),
        ({"images": True}, "'images=True' is an invalid value"),
        ({"match_conf": 2}, "'match_conf=2' is an invalid value"),
        ({"match_conf": "high"}, "'match_conf=high' must be a number"),
        ({"nms": True}, "'nms=False' compares the NMS-free heads"),
        ({"student": "yolo26n.yaml"}, "student=yolo26n.yaml is not a PyTorch checkpoint"),
        ({"student": "gone.pt"}, "student=gone.pt was not found"),
        ({"baseline": "gone.pt"}, "baseline=gone.pt was not found"),
        ({"teacher": "ema"}, "teacher=ema"),
    ],
)
def test_bad_arguments_are_one_sentence_and_leave_nothing(given, sentence, tmp_path, data, teacher):
    fine = {"teacher": teacher, "student": teacher, "data": data, "project": str(tmp_path / "out"), "device": "cpu"}
    with pytest.raises(KDError, match=re.escape(sentence)):
        run_report({**fine, **given})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["student", "baseline"])
def test_errors_about_a_student_name_its_argument(role, tmp_path, data, teacher):
    """Paths and class names that hold words of a sentence stay as they are."""
    folder = tmp_path / "teacher=the teacher"
    folder.mkdir()
    model = save_model(folder / "x.pt", names={0: "the teacher", 1: "teacher=cat", 2: "dog"})
    fine = {"teacher": teacher, "student": teacher, "data": data, "project": str(tmp_path / "out"), "device": "cpu"}
    with pytest.raises(ModelError) as error:
        run_report({**fine, role: str(model)})
    assert str(error.value) == (
        f"{role}={model} knows none of the classes of data={data}: its classes are the teacher, teacher=cat, dog."
    )
    assert error.value.source == str(model)
    (folder / "broken.pt").write_bytes(b"broken")
    with pytest.raises(ModelError, match=re.escape(f"{role}={folder / 'broken.pt'} could not be read")):
        run_report({**fine, role: str(folder / "broken.pt")})
    with pytest.raises(ModelError, match=re.escape(f"{role}=gone/the teacher.pt was not found: give ")):
        run_report({**fine, role: "gone/the teacher.pt"})
    assert not (tmp_path / "out").exists()


@pytest.mark.nightly
def test_all_classes_as_one_are_those_of_the_teacher_that_match(tmp_path, data, teacher):
    student = save_model(tmp_path / "student.pt", names={0: "item"})
    made = run_report({"teacher": teacher, "student": str(student), "data": data, "imgsz": 64, "single_cls": True,
                       "images": 1, "device": "cpu", "project": str(tmp_path), "name": "out"})  # fmt: skip
    assert list(made["models"]["teacher"]["classes"]) == list(made["models"]["student"]["classes"]) == ["item"]
    assert made["agreement"]["student"]["teacher_detections"] > 0 and len(made["images"]) == 1


def test_a_classifications_labels_are_those_of_its_files(tmp_path):
    """Batches of a classification do not hold their files, and Ultralytics shuffles them."""
    data = draw_task_dataset(tmp_path / "set", "classify", 12, 18, 32)
    model = task_model("classify")
    args = {"task": "classify", "data": str(data), "imgsz": 32, "batch": 4, "plots": False, "device": "cpu"}
    result = validate(model, ClassificationValidator, Namespace(**args), tmp_path)
    assert len(result.predictions) == 18 and result.classes
    for file, label in result.truth.items():
        assert model.names[int(label.values.argmax())] == Path(file).parent.name


def test_classes_of_polygons_read_as_pixels_have_a_background(tmp_path, data):
    assert class_names_of(data, "semantic") == {**NAMES, 3: "background"}
    assert class_names_of(data, "detect") == NAMES and class_names_of(data, "detect", single_cls=True) == {0: "item"}
    assert distinct({0: "x", 1: "y", 2: "x"}) == {0: "x (0)", 1: "y", 2: "x (2)"}


@pytest.mark.nightly
def test_odd_images_names_and_sizes_cost_no_report(tmp_path, data):
    """A tall image, a name twice, dollar signs, a size that is no multiple of 32, a teacher with a coarser level."""
    copy = tmp_path / "set"
    shutil.copytree(Path(data).parent, copy)
    for kind, end in (("images", "png"), ("labels", "txt")):
        (copy / kind / "val" / "more").mkdir()
        shutil.copy2(copy / kind / "val" / f"0.{end}", copy / kind / "val" / "more" / f"0.{end}")
    cv2.imwrite(str(copy / "images" / "val" / "1.png"), np.full((3000, 12, 3), 90, np.uint8))
    names = {0: "cost $_$ a", 1: "50% $\\foo$", 2: "$x^$"}
    YAML.save(copy / "data.yaml", {"path": str(copy), "train": "images/train", "val": "images/val", "names": names})
    teacher, student = (
        save_model(tmp_path / "t.pt", "yolo26n-p6.yaml", names),
        save_model(tmp_path / "s.pt", names=names),
    )
    made = run_report({"teacher": str(teacher), "student": str(student), "data": str(copy / "data.yaml"), "imgsz": 90,
                       "device": "cpu", "project": str(tmp_path), "name": "out"})  # fmt: skip
    assert made["imgsz"] == 96 and set(made["charts"]) >= {"latency", "classes"}
    shown = {row["name"] for row in made["images"]}
    assert {"0.png", "more/0.png", "1.png"} <= shown and len(made["levels"]) == 2
    tall = next(row["picture"] for row in made["images"] if row["name"] == "1.png")
    assert cv2.imread(str(tmp_path / "out" / tall)).shape[0] < 1400


def test_classes_that_are_left_out_are_left_out_of_everything(report, tmp_path, data, teacher):
    made = run_report({"teacher": teacher, "student": teacher, "data": data, "imgsz": 64, "classes": [2], "images": 0,
                       "device": "cpu", "project": str(tmp_path), "name": "out"})  # fmt: skip
    student = made["models"]["student"]
    assert list(student["classes"]) == [NAMES[2]]
    assert 0 < made["agreement"]["student"]["teacher_detections"] < report["agreement"]["student"]["teacher_detections"]
    bins = [sum(b["count"] for b in r["models"]["student"]["calibration"]["bins"]) for r in (made, report)]
    assert 0 < bins[0] < bins[1]


def test_command_repeats_what_the_report_depends_on():
    args = vars(get_cfg(overrides={"data": "d.yaml", "imgsz": 96, "classes": [1, 2], "single_cls": True}))
    args |= {"teacher": ["a.pt", "b c.pt"], "kd_classes": {"car": "vehicle"}, "kd_teacher_weights": [2, 1]}
    command = shlex.split(command_of(Namespace(**args), "s.pt"))
    assert command[:4] == ["yolo-kd", "report", "teacher=[a.pt,b c.pt]", "student=s.pt"]
    assert {"data=d.yaml", "imgsz=96", "classes=[1,2]", "single_cls=True", "kd_teacher_weights=[2,1]"} <= set(command)
    assert 'kd_classes={"car":"vehicle"}' in command
    assert not any(a.startswith(("batch=", "iou=", "project=", "device=")) for a in command)


def test_command_line_writes_a_report_and_says_where(tmp_path, data, teacher, caplog):
    from ultralytics.utils import LOGGER

    (tmp_path / "out").mkdir()
    for name in ("image-05.png", "levels-01.png", "curves.png", "image-mine.png"):
        (tmp_path / "out" / name).write_bytes(b"old")
    pictures = {"images": [{"picture": "image-05.png"}], "levels": [{"picture": "levels-01.png"}]}
    (tmp_path / "out/report.json").write_text(json.dumps({"charts": {"curves": "curves.png"}, **pictures}))
    LOGGER.propagate = True
    fine = [f"teacher={teacher}", f"student={teacher}", f"data={data}", "imgsz=64", "device=cpu", "images=1"]
    assert main(["report", *fine, f"project={tmp_path}", "name=out", "exist_ok=True"]) == 0
    left = {file.name for file in (tmp_path / "out").glob("*.png") if file.read_bytes() == b"old"}
    assert left == {"image-mine.png"}
    assert main(["report", *fine[:2]]) == 1
    LOGGER.propagate = False
    said = unwrapped(caplog.text)
    assert f"{tmp_path}/out/report.html" in said and "keeps 100% of the teacher's quality" in said
    made = json.loads((tmp_path / "out/report.json").read_text())
    assert "teacher=" in made["command"] and made["command"].startswith("yolo-kd report ")


def test_a_report_removes_the_pictures_of_an_older_one_and_no_other_file(tmp_path):
    for name in ("image-01.png", "image-holiday.png", "curves.png", "latency.png", "levels-01.png"):
        (tmp_path / name).touch()
    _remove_pictures(tmp_path)  # there is no report
    assert len(list(tmp_path.iterdir())) == 5
    older = {
        "charts": {"latency": "latency.png", "x": "../x.png"},
        "images": [{"picture": "image-01.png"}],
        "levels": [],
    }
    (tmp_path / "report.json").write_text(json.dumps(older))
    _remove_pictures(tmp_path)
    left = {"image-holiday.png", "curves.png", "levels-01.png", "report.json"}
    assert {file.name for file in tmp_path.iterdir()} == left


def test_verdict_names_what_the_teacher_does_not_know():
    model = {"heads": {"nms": {"score": 0.4}}, "head": "nms", "unmatched": [], "parameters": None, "latency": None}
    report = {"models": {"teacher": {**model, "unmatched": ["bar"]}, "student": model}, "metrics": ["mAP50-95"],
              "kept": 1.0, "gap": None}  # fmt: skip
    assert verdict(report) == [
        "The student scores 0.400 mAP50-95, its teacher 0.400.",
        "The teacher does not know bar, which count as missed.",
    ]
    report["models"]["baseline"], report["gap"] = model, {"overall": 2.67, "classes": {}}
    assert not any("gap" in sentence for sentence in verdict(report))


INHERITED = [
    "It began with weights of its teacher (kd_init), and so with the teacher's epochs.",
    "A training with kd_init=False shows what teaching brings without them.",
]


def test_a_copied_teacher_can_be_trained_on_to_see_what_its_weights_bring():
    model = {"heads": {"nms": {"score": 0.4}}, "head": "nms", "unmatched": [], "parameters": 9, "latency": None}
    report = {"models": {"teacher": {**model, "source": "t.pt"}, "student": model}, "metrics": ["mAP50-95"],
              "kept": 1.0, "gap": None, "initialized": 9}  # fmt: skip
    assert verdict(report)[-1].endswith(
        "without them, and one of 'yolo train model=t.pt' what they bring without teaching."
    )
    report["models"]["teacher"]["parameters"] = 12
    assert verdict(report)[-2:] == INHERITED


@pytest.mark.parametrize("nms, head", [("", "nms"), ("nms: false", "end2end"), ("nms: true", "nms"), ("[", "nms")])
def test_the_validated_head_of_a_run_is_that_of_its_arguments(tmp_path, nms, head):
    assert plots.validated_head(str(tmp_path / "run/weights/best.pt")) == "nms"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/args.yaml").write_text(nms)
    assert plots.validated_head(str(tmp_path / "run/weights/best.pt")) == head


def test_a_distillation_ends_with_a_report(quick, teacher, monkeypatch):
    labels, draw = [], plots.plot_curves
    monkeypatch.setattr(
        plots,
        "plot_curves",
        lambda tables, metric, label, file: labels.append(label) or draw(tables, metric, label, file),
    )
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1, "plots": True}, teacher=teacher)
    made = json.loads((Path(quick["project"]) / "run/report/report.json").read_text())
    best = str(Path(quick["project"]) / "run/weights/best.pt")
    assert made["models"]["student"]["source"] == best and f"student={best}" in made["command"]
    assert made["trained"] == ["student"] and made["charts"]["curves"] == "curves.png"
    key = "metrics/mAP50-95(B)"
    scores = {role: model["heads"]["nms"]["score"] for role, model in made["models"].items()}
    assert scores["teacher"] == pytest.approx(model.trainer.teacher_metrics[key], abs=2e-3)
    assert labels == ["mAP50-95, NMS head"]
    assert made["initialized"] == model.trainer.initialized > 0 and made["verdict"][-2:] == INHERITED
    again = run_report({"teacher": teacher, "student": best, "data": quick["data"], "imgsz": 64, "images": 0,
                        "device": "cpu", "project": quick["project"], "name": "again"})  # fmt: skip
    assert again["initialized"] == made["initialized"] and again["verdict"][-2:] == INHERITED
    other = shutil.copy(teacher, Path(quick["project"]) / "other.pt")
    again = run_report({"teacher": str(other), "student": best, "data": quick["data"], "imgsz": 64, "images": 0,
                        "device": "cpu", "project": quick["project"], "name": "other"})  # fmt: skip
    assert again["initialized"] is None and INHERITED[0] not in again["verdict"]


# Browser --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, report):
    """Return the page of the report, open, with its messages and requests."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.messages, opened.requests = [], []
    opened.on("console", lambda message: opened.messages.append(message.text))
    opened.on("pageerror", lambda error: opened.messages.append(str(error)))
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.goto(Path(report["page"]).as_uri())
    yield opened
    opened.close()


def test_browser_shows_every_picture_without_a_request_or_an_error(page, report):
    page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert page.evaluate("[...document.images].map(image => image.naturalWidth > 100)") == [True] * 9
    assert not page.messages and [url for url in page.requests if not url.startswith("data:")] == [page.url]
    assert report["verdict"][0] in page.inner_text("#verdict")


def test_browser_sorts_classes_by_keyboard(page, report):
    button = page.get_by_role("button", name="labels")
    button.focus()
    page.keyboard.press("Enter")
    counts = [int(t) for t in page.locator("table.sortable tbody tr td:nth-child(2)").all_inner_texts()]
    assert counts == sorted(counts, reverse=True)
    assert page.locator("table.sortable th").nth(1).get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    counts = [int(t) for t in page.locator("table.sortable tbody tr td:nth-child(2)").all_inner_texts()]
    assert counts == sorted(counts)
    page.get_by_role("button", name="class").press("Enter")
    names = page.locator("table.sortable tbody tr th").all_inner_texts()
    assert names == sorted(report["models"]["student"]["classes"])


def test_browser_reaches_everything_by_tab_and_skips_to_the_results(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    page.goto(page.url.split("#")[0])
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim().slice(0, 8)"))
    assert {"Models", "Images", "labels", "student"} <= {text.split(" ")[0] for text in reached}
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("width", [390, 1280])
def test_browser_needs_no_sideways_scrolling(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_browser_prints_pages_of_paper(page, tmp_path):
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and page.locator("#models table").is_visible()
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    text = (tmp_path / "report.pdf").read_bytes()
    assert text.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", text)) <= 12
