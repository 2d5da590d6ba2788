"""Detectors from elsewhere: any object with `names` and `teach`, and classifiers of any library."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NAMES, STUDENT, save_model
from task_models import task_model
from ultralytics import YOLO as StockYOLO

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.distillation.distillers import GridDistiller
from ultralytics_kd.teachers import open_teacher

CPU = torch.device("cpu")
BOX = [4.0, 4.0, 40.0, 40.0]


class Elsewhere(torch.nn.Module):
    """A detector of another library: labels and scores as torchvision's, and a feature map."""

    names = ("disc", "box", "bar")
    strides, channels = (16,), (8,)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 16, 16)

    def teach(self, images):
        assert images.dtype == torch.float32 and not torch.is_grad_enabled()
        found = {"boxes": [[4.0, 4, 40, 40], [20, 10, 60, 50]], "scores": [0.9, 0.4], "labels": [0, 2]}
        return {
            "detections": [{k: torch.tensor(v) for k, v in found.items()} for _ in images],
            "features": [self.conv(images)],
        }


def test_fingerprint_that_fails_costs_no_run(quick, caplog, monkeypatch):
    monkeypatch.setattr("ultralytics.utils.LOGGER.propagate", True)

    class Broken(Elsewhere):
        def fingerprint(self):
            raise OSError("no weights here")

    YOLO(STUDENT).train(**{**quick, "epochs": 1}, teacher=Broken())
    assert "its fingerprint() fails, so resume cannot compare weights: no weights here" in caplog.text


def test_object_with_names_and_teach_teaches_detections_and_features(quick, tmp_path):
    last = tmp_path / "last.pt"
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    answers = []
    model.add_callback("on_train_end", lambda t: answers.append(t.teacher(torch.rand(2, 3, 64, 64))))
    model.train(**quick, teacher=Elsewhere(), kd_feat=1.0)
    items = model.trainer.loss_items
    assert all(items[k] > 0 for k in ("kd_cls", "kd_box", "kd_feat"))
    (answer,) = answers
    assert answer.probs.tolist() == [pytest.approx([0.9, 0, 0]), pytest.approx([0, 0, 0.4])] * 2
    assert answer.batch_idx.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(answer.bboxes[0], torch.tensor([22 / 64, 22 / 64, 36 / 64, 36 / 64]))
    with pytest.raises(KDError, match="an object in memory, which cannot be saved: give it again"):
        YOLO(last).train(resume=True)
    again = YOLO(last)
    again.train(resume=True, teacher=Elsewhere())
    assert again.trainer.start_epoch == 1


def test_object_of_a_module_is_named_by_a_text_and_resumed(quick, tmp_path, monkeypatch):
    (tmp_path / "my_teacher.py").write_text(
        "import torch\n"
        "class Mine:\n"
        "    names = {0: 'disc', 1: 'box', 2: 'bar'}\n"
        "    def teach(self, images):\n"
        "        one = {'boxes': torch.tensor([[4., 4, 40, 40]]), 'probs': torch.tensor([[.8, .1, .1]])}\n"
        "        return [one for _ in images]\n"
    )
    monkeypatch.chdir(tmp_path)
    last = tmp_path / "last.pt"
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**quick, teacher="my_teacher:Mine")
    assert model.trainer.loss_items["kd_cls"] > 0
    again = YOLO(last)
    again.train(resume=True)
    assert again.trainer.start_epoch == 1


@pytest.mark.parametrize(
    "said, message",
    [
        ([], "was given 2 images and returned 0 answers"),
        (
            [{"boxes": [BOX], "probs": torch.rand(1, 2)}] * 2,
            r"1 boxes and 'probs' of shape \(1, 2\) for an image; 'probs' needs shape \(1, 3\)",
        ),
        ([{"boxes": [BOX], "scores": [0.5], "labels": [7]}] * 2, "labels from 7"),
        (
            [{"boxes": [BOX, BOX], "scores": [0.5], "labels": [1, 2]}] * 2,
            r"'scores' of shape \(1,\) for an image; 'scores' needs shape \(2,\)",
        ),
        ([{"boxes": [BOX, BOX], "scores": [0.5, 0.5], "labels": [1]}] * 2, r"'labels' of shape \(1,\)"),
        ([{"boxes": [BOX], "scores": 0.5, "labels": [1]}] * 2, r"'scores' of shape \(\)"),
        ([{"boxes": [], "probs": torch.rand(2, 3)}] * 2, "0 boxes and 'probs'"),
        ([{"boxes": torch.ones(4, 5), "probs": torch.rand(4, 3)}] * 2, r"'boxes' of shape \(4, 5\)"),
        ([{"boxes": [BOX], "scores": [0.5], "labels": ["disc"]}] * 2, "returned values that are not numbers"),
        ([{"boxes": [BOX], "probs": None}] * 2, "returned values that are not numbers"),
        ([{"boxes": "many", "probs": []}] * 2, "returned values that are not numbers"),
        ([{"boxes": [[0.1, 0.1, 0.9, 0.9]], "probs": [[0.9, 0, 0]]}] * 2, "none of the first 2 boxes covers a pixel"),
        ([{"boxes": [[40.0, 40, 9, 9]], "probs": [[0.9, 0, 0]]}] * 2, "x1, y1, x2, y2 in pixels"),
        ([{"boxes": [[400.0, 4, 900, 9]], "probs": [[0.9, 0, 0]]}] * 2, "of the images that teach"),
        (7, "returned values that are not numbers"),
        (
            [{"boxes": torch.full((1, 4), float("nan")), "probs": torch.rand(1, 3)}] * 2,
            "NaN or Inf in float32: make teach\\(\\) return finite values",
        ),
        (None, "returns no detections"),
        ({"detection": []}, "returns no detections"),
        ([None, None], "returned NoneType for an image"),
        ([{"boxes": torch.zeros(1, 4)}] * 2, "'boxes' and 'probs'"),
        ([{"boxes": [[1.0, 1, 9, 9]], "probs": [[3.0, -1, 0]]}] * 2, r"probabilities outside \[0, 1\]"),
    ],
)
def test_answers_that_make_no_sense_are_named(said, message):
    class Odd:
        names = ("disc", "box", "bar")

        def teach(self, images):
            return said

    teacher = open_teacher(Odd())
    teacher.match(NAMES)
    with pytest.raises(KDError, match=message):
        teacher.prepare(CPU)(torch.rand(2, 3, 64, 64))


def test_lists_and_nothing_found_are_fine_and_boxes_end_at_the_border():
    class Plain:
        names = ("disc", "box", "bar")

        def teach(self, images):
            nothing = {"boxes": torch.zeros(0), "probs": torch.zeros(0)}
            return [{"boxes": [[-10.0, -10, 900, 900]], "scores": [0.9], "labels": [1]}, nothing]

    teacher = open_teacher(Plain())
    teacher.match(NAMES)
    answer = teacher.prepare(CPU)(torch.rand(2, 3, 64, 64))
    assert answer.bboxes.tolist() == [[0.5, 0.5, 1.0, 1.0]] and answer.batch_idx.tolist() == [0.0]


class Later:
    """A teacher from elsewhere that breaks after some answers."""

    names = ("disc", "box", "bar")

    def __init__(self, answers):
        self.answers = answers

    def teach(self, images):
        self.answers -= 1
        value = 0.9 if self.answers >= 0 else float("nan")
        return [{"boxes": [[5.0, 5, 30, 30]], "probs": [[value, 0, 0]]} for _ in images]


@pytest.mark.parametrize("answers", [0, 1])
def test_only_a_run_whose_teacher_made_sense_once_leaves_a_folder(quick, answers):
    with pytest.raises(KDError, match="NaN or Inf"):
        YOLO(STUDENT).train(**quick, teacher=Later(answers))
    assert Path(quick["project"]).exists() == bool(answers)


def test_numbers_that_break_in_a_later_batch_are_named():
    teacher = open_teacher(Later(3))
    teacher.match(NAMES)
    teacher.prepare(CPU)
    teacher(torch.rand(2, 3, 64, 64))
    with pytest.raises(KDError, match="returned NaN or Inf in float32: make teach"):
        for _ in range(4):
            teacher(torch.rand(2, 3, 64, 64))


class Sure:
    """A detector that sees the same everywhere, and does something to the images that it is given."""

    names = ("disc", "box", "bar")

    def __init__(self, do=lambda images: None, names=names):
        self.do, self.names = do, names

    def teach(self, images):
        self.do(images)
        return [{"boxes": [BOX], "probs": [[0.9, 0.0, 0.0]]} for _ in images]


def prepared(teacher):
    """Return a teacher that can be asked."""
    teacher = open_teacher(teacher)
    teacher.match(NAMES)
    return teacher.prepare(CPU)


def test_object_may_change_the_images_that_it_is_given_in_place():
    images = torch.rand(2, 3, 64, 64)
    before = images.clone()
    prepared(Sure(lambda x: x.sub_(0.45).div_(0.2)))(images)
    assert torch.equal(images, before)


def test_classifier_may_change_the_images_that_it_is_given_in_place():
    class InPlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 6)

        def forward(self, x):
            return self.linear(self.conv(x.sub_(0.45)).mean((2, 3)))

    model = InPlace()
    model.names, model.task = {i: str(i) for i in range(6)}, "classify"
    teacher = open_teacher(model, "classify")
    teacher.match(teacher.names)
    images = torch.rand(2, 3, 64, 64)
    before = images.clone()
    teacher.prepare(CPU)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("names", [np.array(["disc", "box", "bar"]), dict.fromkeys(["disc", "box", "bar"]).keys()])
def test_names_may_be_any_sequence(names):
    assert open_teacher(Sure(names=names)).names == NAMES


@pytest.mark.parametrize("names", ["disc", len, None, 7, {}, {1: "a", 5: "b"}])
def test_what_is_no_names_is_said(names):
    with pytest.raises(KDError, match="needs `names`"):
        open_teacher(Sure(names=names))


def test_class_is_made_an_object():
    assert isinstance(open_teacher(Sure).original, Sure)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"teach": 5}, "its `teach` is not callable"),
        ({"strides": 8}, "lists of whole numbers"),
        ({"strides": (8, 16), "channels": (4,)}, "has 2 strides and 1 channels"),
    ],
)
def test_attributes_that_make_no_sense_are_named(more, message):
    with pytest.raises(KDError, match=message):
        open_teacher(type("Odd", (Sure,), more)())


def test_fingerprint_that_cannot_be_asked_is_none():
    with pytest.raises(KDError, match="no `fingerprint\\(\\)`"):
        open_teacher(type("Odd", (Sure,), {"fingerprint": "abc"})()).fingerprint()


@pytest.mark.parametrize("broken", ["boxes", "features"])
def test_numbers_of_every_kind_are_looked_at_in_every_batch(broken):
    class Drifting(Elsewhere):
        answers = 0

        def teach(self, images):
            said = super().teach(images)
            self.answers += 1
            if self.answers > 1:
                bad = said["features"] if broken == "features" else [d["boxes"] for d in said["detections"]]
                bad[0].fill_(torch.nan)
            return said

    teacher = prepared(Drifting())
    teacher(torch.rand(2, 3, 64, 64))
    with pytest.raises(KDError, match="returned NaN or Inf in float32: make teach"):
        teacher(torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize(
    "features, message",
    [
        (lambda f: f, "list of maps"),
        (lambda f: [f.flatten(2)], r"shape \[\(2, 8, 16\)\]"),
        (lambda f: [f, f], "features of shape"),
        (lambda f: ["map"], "returned values that are not numbers"),
    ],
)
def test_features_that_make_no_sense_are_named(features, message):
    class Odd(Elsewhere):
        def teach(self, images):
            said = super().teach(images)
            return {**said, "features": features(said["features"][0])}

    from ultralytics_kd.teachers import Reads

    teacher = open_teacher(Odd())
    teacher.match(NAMES)
    with pytest.raises(KDError, match=message):
        teacher.prepare(CPU, Reads(features=(16,)))(torch.rand(2, 3, 64, 64))


def test_features_may_be_arrays():
    class Arrays(Elsewhere):
        def teach(self, images):
            said = super().teach(images)
            return {**said, "features": [f.numpy() for f in said["features"]]}

    assert prepared(Arrays())(torch.rand(2, 3, 64, 64)).features == [[]]  # nobody reads them


def test_error_of_the_first_answer_leaves_nothing(quick):
    def fail(images):
        raise ArithmeticError("my own error")

    with pytest.raises(ArithmeticError, match="my own error"):
        YOLO(STUDENT).train(**quick, teacher=Sure(fail))
    assert not Path(quick["project"]).exists()


@pytest.mark.parametrize(
    "code, message",
    [
        ("def make(size): pass", "raised TypeError"),
        ("def make(): raise ValueError('no such file')", "raised ValueError: no such file"),
        ("make = 1 / 0", "raised ZeroDivisionError"),
        ("def make(:", "raised SyntaxError"),
    ],
)
def test_module_that_makes_no_teacher_is_one_sentence(code, message, tmp_path, monkeypatch):
    name = f"maker_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KDError, match=message):
        open_teacher(f"{name}:make")


def test_lists_in_a_list_and_other_types_are_one_short_sentence():
    with pytest.raises(KDError, match="a list with lists in it"):
        open_teacher([["a.pt", "b.pt"], "a.pt"])
    with pytest.raises(KDError, match="teacher of type OrderedDict: give a path") as error:
        open_teacher(torch.nn.Linear(2, 2).state_dict())
    assert len(str(error.value)) < 150


# Classifiers ----------------------------------------------------------------------------------------------------------
class Plain(torch.nn.Module):
    """A classifier of six classes."""

    def __init__(self, said=lambda x: x, **more):
        super().__init__()
        self.conv, self.linear, self.said = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 6), said
        self.names, self.task = {i: str(i) for i in range(6)}, "classify"
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.said(self.linear(self.conv(x).mean((2, 3))))


@pytest.mark.parametrize(
    "said, message",
    [
        (lambda x: {"logits": x}, "returns dict"),
        (lambda x: (x,), "cannot read an image"),
        (lambda x: x[0], r"a tensor of shape \(6,\)"),
        (lambda x: x[..., None], r"a tensor of shape \(1, 6, 1\)"),
        (lambda x: x.numpy(), "returns ndarray"),
        (lambda x: x[:, :5], "scores 5 classes and has 6 `names`"),
    ],
)
def test_classifier_that_answers_otherwise_is_one_sentence(said, message):
    with pytest.raises(KDError, match=message):
        open_teacher(Plain(said), "classify")


@pytest.mark.parametrize(
    "more, message",
    [
        ({"mean": [0.5, 0.5], "std": [0.2, 0.2]}, "`mean` of 2 numbers for 3 channels"),
        ({"mean": [0.5, 0.5, 0.5]}, "one of `mean` and `std`"),
        ({"mean": "grey", "std": 1.0}, "not a list of numbers"),
    ],
)
def test_preprocessing_that_makes_no_sense_is_named(more, message):
    with pytest.raises(KDError, match=message):
        open_teacher(Plain(**more), "classify")


@pytest.mark.parametrize(
    "mean", [0.5, [0.5, 0.5, 0.5], torch.full((3,), 0.5), np.full(3, 0.5), torch.full((1, 3, 1, 1), 0.5)]
)
def test_preprocessing_may_come_in_any_form(mean):
    teacher, plain = open_teacher(Plain(mean=mean, std=0.25), "classify"), open_teacher(Plain(), "classify")
    plain.original.load_state_dict(teacher.original.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    for each in (teacher, plain):
        each.match(each.names)
        each.prepare(CPU)
    torch.testing.assert_close(teacher(images).value, plain((images - 0.5) / 0.25).value)


def test_model_without_maps_or_vector_teaches_without_features():
    class Free(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(6, 3))
            self.names, self.task = {i: str(i) for i in range(6)}, "classify"

        def forward(self, x):
            return x.mean((2, 3)) @ self.weight.T

    teacher = open_teacher(Free(), "classify")
    teacher.match(teacher.names)
    assert teacher.maps[0].channels == () and teacher.prepare(CPU)(torch.rand(2, 3, 64, 64)).value.shape == (2, 6)


def test_teacher_that_cannot_be_saved_teaches_and_is_said_to_be_needed_again(tmp_path, caplog):
    from conftest import QUICK

    from ultralytics_kd.demo.tasks import draw_task_dataset

    data = draw_task_dataset(tmp_path / "set", "classify", 8, 4, 64)
    names = sorted(p.name for p in (data / "train").iterdir())
    model = task_model("classify")
    model.names = dict(enumerate(sorted([*names, "a", "b", "c", "d", "e", "f"][:6])))
    model.odd = lambda x: x
    student = YOLO("yolo26n-cls.yaml")
    student.train(**{**QUICK, "epochs": 1}, data=str(data), teacher=model, project=str(tmp_path / "runs"))
    assert student.trainer.loss_items["kd_cls"] > 0 and "give it again to resume the run" in caplog.text


# Arguments ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("teacher", ["ema", Sure()])
def test_precision_of_a_teacher_that_has_its_own_is_said_to_be_idle(teacher, quick, caplog):
    YOLO(STUDENT).train(**{**quick, "epochs": 1}, teacher=teacher, kd_precision="bf16")
    assert "'kd_precision=bf16' has no effect: this teacher chooses its own precision" in caplog.text


def test_one_class_may_be_chosen_by_its_number(quick, teacher):
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1, "classes": 1}, teacher=teacher)
    assert model.trainer.teacher.classes.student == [1]


def test_map_may_be_a_text(quick, teacher):
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1}, teacher=teacher, kd_classes='{"disc": "box"}')
    assert model.trainer.teacher.classes.sources == {1: (0,)}
    with pytest.raises(KDError, match="holds no map"):
        YOLO(STUDENT).train(**quick, teacher=teacher, kd_classes="{disc}")


def test_exported_file_in_a_model_is_that_file(quick, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    save_model(tmp_path / "model.pt", "yolo11n.yaml")
    path = StockYOLO(tmp_path / "model.pt").export(format="onnx", imgsz=64)
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1}, teacher=StockYOLO(path, task="detect"))
    assert model.trainer.args.teacher == str(Path(path).resolve())


@pytest.mark.parametrize("cfg", ["yolo26n-p6.yaml", pytest.param("yolov8n-p6.yaml", marks=pytest.mark.nightly)])
def test_teacher_with_a_coarser_level_is_scored(quick, tmp_path, cfg):
    torch.manual_seed(0)
    path = save_model(tmp_path / "p6.pt", cfg)
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1, "imgsz": 64}, teacher=str(path))
    metrics = model.trainer.teacher_metrics
    stock = StockYOLO(path).val(
        data=quick["data"], imgsz=64, plots=False, device="cpu", project=str(tmp_path), workers=0
    )
    assert set(metrics) == set(stock.results_dict) and "metrics/mAP50-95(B)" in metrics


def test_stored_answers_of_an_object_are_compared_with_it(quick, tmp_path):
    class Marked(Sure):
        def fingerprint(self):
            return "one"

    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1}, teacher=Marked(), kd_cache=True)
    assert "metrics/mAP50-95(B)" in model.trainer.teacher_metrics


def test_search_needs_a_teacher_that_travels(quick):
    with pytest.raises(KDError, match="the processes that search cannot get a teacher in memory"):
        YOLO(STUDENT).tune(data=quick["data"], teacher=Sure(), iterations=1)


@pytest.mark.parametrize("precision, outcome", [("auto", torch.float32), ("fp16", None)])
def test_overflow_in_a_later_batch_ends_in_float32_or_in_a_sentence(precision, outcome, monkeypatch):
    student = task_model("detect", seed=1).train()
    from ultralytics.cfg import get_cfg

    student.args = get_cfg(overrides={"teacher": "t.pt"})
    teacher = open_teacher(task_model("detect", "yolo26s"))
    teacher.match(teacher.names)
    distiller = GridDistiller(student.args, student, teacher)
    teacher.prepare(CPU, distiller.reads, torch.bfloat16, fall_back=precision == "auto")
    images = torch.rand(1, 3, 64, 64)
    teacher(images)
    run = type(teacher)._run

    def overflowing(self, x):
        said = run(self, x)
        if self.dtype is not torch.float32:
            said["one2many"].scores.fill_(torch.inf)
        return said

    monkeypatch.setattr(type(teacher), "_run", overflowing)
    if outcome is None:
        with pytest.raises(KDError, match="use kd_precision=fp32"):
            teacher(images)
    else:
        assert teacher(images).branches["one2many"].scores.isfinite().all() and teacher.dtype is outcome


def test_depth_has_no_classes_to_map():
    teacher = open_teacher(task_model("depth"), "depth")
    with pytest.raises(KDError, match="has no classes"):
        teacher.match({0: "depth"}, {"depth": "other"})
