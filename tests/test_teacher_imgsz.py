"""A teacher that sees larger images than its student (`kd_teacher_imgsz`)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import NAMES, STUDENT, TEACHER, draw_dataset, make_model, save_model, unwrapped
from test_own_trainer import Alone, Drops, Mirrors, OwnDataset
from test_training import results
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDDetectionTrainer, KDError, config
from ultralytics_kd.cache import make_cache
from ultralytics_kd.config.teacher_size import teacher_size
from ultralytics_kd.distillation.distillers import build_distiller
from ultralytics_kd.outputs import ONE2MANY
from ultralytics_kd.report import run_report
from ultralytics_kd.teachers import SetAnswer, open_teacher
from ultralytics_kd.teachers.answers import Reads
from ultralytics_kd.teachers.detections import Thresholds, suppress_boxes
from ultralytics_kd.teachers.sets import SetTeacher, as_set
from ultralytics_kd.teachers.sizes import no_lead_warnings, size_warnings
from ultralytics_kd.training.autobatch import StudentWithTeacher
from ultralytics_kd.training.images import large_images
from ultralytics_kd.training.images.large_images import LargeImageTeacher
from ultralytics_kd.training.scores import evaluation

LARGE = 96  # the students' images are 64 px


class Watches:
    """Keeps what the teacher was asked and what the student was given."""

    def _setup_train(self):
        super()._setup_train()
        self.asked, self.given = [], []
        stock = self.teacher.run

        def run(images):
            self.asked.append(images.clone())
            return stock(images)

        self.teacher.run = run

    def preprocess_batch(self, batch):
        batch = super().preprocess_batch(batch)
        self.given.append(batch)
        batch["seen"] = batch["img"].clone()  # plots change the images
        return batch


class Watching(Watches, KDDetectionTrainer):
    """A trainer that does so."""


def train(quick: dict, trainer: type = Watching, student: str = STUDENT, **more):
    """Train for an epoch with larger images for the teacher; return the trainer."""
    model = YOLO(student)
    model.train(**{**quick, "epochs": 1, "kd_teacher_imgsz": LARGE, **more}, trainer=trainer)
    return model.trainer


class Plain(KDDetectionTrainer):
    """Keeps what the student was given in a run without a teacher."""

    def preprocess_batch(self, batch):
        self.given = getattr(self, "given", [])
        batch = super().preprocess_batch(batch)
        self.given.append(batch["img"].clone())
        return batch


def shows_the_same(large: torch.Tensor, small: torch.Tensor) -> bool:
    """Return whether each large image, made smaller, is nearer to its small one than to any other."""
    seen = nn.functional.interpolate(large, small.shape[-2:], mode="bilinear", antialias=True)
    distances = (seen[:, None] - small[None]).abs().mean((2, 3, 4))
    return distances.argmin(1).tolist() == list(range(len(small)))


@pytest.fixture
def log(caplog):
    """Return what Ultralytics logs."""
    LOGGER.propagate = True
    yield caplog
    LOGGER.propagate = False


# The argument ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "value, size", [(96, 96), (1.5, 96), (97, 128), (1.01, 96), (16, 1024), (17, 32), (128.0, 128)]
)
def test_it_is_pixels_or_up_to_sixteen_a_factor_of_the_students_size(value, size):
    config.check_values({"kd_teacher_imgsz": value})
    assert teacher_size(value, 64, 32) == teacher_size(value, [32, 64], 32) == size


@pytest.mark.parametrize("value", [True, "large", [96], 1, 0, -2, 0.5, 100.5, 1e9, float("nan"), float("inf")])
def test_other_values_are_refused(value):
    with pytest.raises(KDError, match=rf"'kd_teacher_imgsz={value}'".replace("[", r"\[")):
        config.check_values({"kd_teacher_imgsz": value})


@pytest.mark.parametrize(
    "given, message",
    [
        ({"teacher": None}, "has no effect without a teacher"),
        ({"task": "segment"}, "is supported for detect and classify, not for task 'segment'"),
        ({"task": "obb"}, "is supported for detect and classify"),
        ({"kd_teacher_imgsz": 640}, r"^'kd_teacher_imgsz=640' has no effect: the student's imgsz is 640 too"),
        ({"kd_teacher_imgsz": 320}, "is smaller than imgsz=640"),
        ({"imgsz": 100, "kd_teacher_imgsz": 120, "kd_cache": True}, "has no effect: the student's imgsz is 128 too"),
        ({"kd_feat": 1.0, "kd_feat_loss": "sl2"}, "'kd_feat_loss=sl2' needs the teacher's answer at"),
        ({"kd_feat": 1.0, "kd_feat_loss": "crosskd"}, "'kd_feat_loss=crosskd' needs the teacher's answer at"),
        ({"kd_box_loss": "ld"}, "'kd_box_loss=ld' needs the teacher's answer at"),
        ({"rect": True}, "'kd_teacher_imgsz=1280' and 'rect' exclude each other"),
        ({"cutmix": 0.5}, "'kd_teacher_imgsz=1280' and 'cutmix' exclude each other"),
        ({"copy_paste": 0.3}, "'kd_teacher_imgsz=1280' and 'copy_paste' exclude each other"),
        ({"kd_cache": True, "kd_teacher_imgsz": 320}, "is smaller than imgsz=640"),
    ],
)
def test_combinations_without_a_meaning_are_refused(given, message):
    arguments = get_cfg(
        overrides={"teacher": "t.pt", "task": "detect", "kd_teacher_imgsz": 1280, "imgsz": 640, **given}
    )
    with pytest.raises(KDError, match=message):
        config.check_combination(vars(arguments))


def test_a_size_that_is_the_students_after_rounding_has_no_effect(teacher):
    with pytest.raises(KDError, match="kd_teacher_imgsz=70' has no effect: the student's imgsz is 96 too"):
        LargeImageTeacher(open_teacher(teacher), 70).imgsz(96)


def test_size_is_a_multiple_of_the_strides_of_teacher_and_student(tmp_path):
    coarse = open_teacher(str(save_model(tmp_path / "p6.pt", "yolov8n-p6.yaml")))
    assert LargeImageTeacher(coarse, 1.5).imgsz(64) == 128
    large = LargeImageTeacher(open_teacher(make_model(TEACHER)), 1.5)
    assert large.imgsz(64) == 96
    large.fit(SimpleNamespace(stride=torch.tensor([8.0, 16.0, 64.0])))
    assert large.imgsz(64) == 128
    assert large.size_warnings(64)[0] == "'kd_teacher_imgsz=1.5' is rounded up to a multiple of 64: 128 px."


@pytest.mark.parametrize(
    "imgsz, parameters, task, warns",
    [
        (320, 100, "detect", True),
        (512, 90, "classify", True),
        (640, 100, "detect", False),  # it sees what it was trained with
        (1280, 100, "detect", False),
        (319, 100, "detect", False),  # the other warning says so
        (320, 50, "detect", False),  # a larger teacher has another lead
        (320, 100, "pose", False),
    ],
)
def test_a_teacher_without_a_lead_but_its_pixels_is_warned_of(imgsz, parameters, task, warns):
    teacher = SimpleNamespace(source="t.pt", task=task, trained_imgsz=640, parameters=lambda: 100)
    sentences = no_lead_warnings([teacher], imgsz, parameters)
    assert len(sentences) == warns and all("kd_teacher_imgsz=640" in sentence for sentence in sentences)


def test_a_run_warns_of_a_teacher_that_lost_its_lead(quick, tmp_path, warnings):
    file = save_model(tmp_path / "teacher.pt", STUDENT)
    torch.save({**torch_load(file), "train_args": {"task": "detect", "imgsz": 128}}, file)
    given = {**quick, "epochs": 1, "teacher": str(file)}
    YOLO(STUDENT).train(**given)
    assert sum("it may have nothing to teach" in sentence for sentence in warnings) == 1
    warnings.clear()
    YOLO(STUDENT).train(**given, kd_teacher_imgsz=96)
    assert not any("nothing to teach" in sentence for sentence in warnings)


def test_a_teacher_of_another_size_is_judged_by_the_images_that_it_sees():
    teacher = SimpleNamespace(source="t.pt", task="detect", trained_imgsz=640, fixed_imgsz=None)
    assert "sees 128 px, where it may be much worse: add kd_teacher_imgsz=640" in size_warnings([teacher], 128)[0]
    assert "kd_teacher_imgsz" not in size_warnings([SimpleNamespace(**{**vars(teacher), "task": "pose"})], 128)[0]
    assert "kd_teacher_imgsz" not in size_warnings([teacher], 1280)[0]  # it can only be larger than the student's
    (sentence,) = size_warnings([teacher], 256, own_images=True)
    assert "sees 256 px" in sentence and "set kd_teacher_imgsz nearer to 640" in sentence
    assert not size_warnings([teacher], 640, own_images=True)


# Answers --------------------------------------------------------------------------------------------------------------
def prepared(source, names=("disc", "box", "bar")):
    """Return an opened teacher that is matched, prepared and ready to answer with a set."""
    teacher = open_teacher(source)
    teacher.match(dict(enumerate(names)))
    return teacher.prepare(torch.device("cpu"), Reads({ONE2MANY: {"scores", "boxes"}}, None, (8, 16, 32)))


def images(count: int = 2, side: int = LARGE) -> torch.Tensor:
    """Return random images."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_answer_is_what_the_teacher_detects_in_the_large_images(teacher):
    answerer = prepared(teacher, ("bar", "disc"))  # in another order, and one class less
    answer = answerer.answer_for_any_size(images())
    detections, features = answerer.detect(images(), Thresholds())
    expected = as_set(detections, features, answerer.classes, 0.05, images())
    assert len(answer.bboxes) > 10 and answer.probs.shape[1] == 2
    for name in ("bboxes", "probs", "batch_idx", "classes"):
        assert torch.equal(getattr(answer, name), getattr(expected, name)), name
    assert [f.shape[-1] for f in answer.features[0]] == [12, 6, 3]
    corners = answer.instances((64, 64)).boxes  # in pixels of the student
    assert torch.allclose(corners / 64, answer.instances((LARGE, LARGE)).boxes / LARGE)


def test_a_mosaic_of_many_objects_keeps_all_detections():
    """A mosaic shows the objects of four images; those without a detection would be taught as background."""
    places = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0)) * 40
    boxes, probs = torch.cat((places, places + 30), 1)[None], torch.full((1, 256, 1), 0.9)
    assert len(suppress_boxes(boxes, probs, SetTeacher.thresholds)[0].boxes) == 256


def test_teachers_that_share_a_grid_answer_with_the_detections_of_their_mean(teacher):
    both, alone = prepared([teacher, teacher]), prepared(teacher)
    answer, expected = both.answer_for_any_size(images()), alone.answer_for_any_size(images())
    assert isinstance(answer, SetAnswer) and len(answer.features) == 2
    torch.testing.assert_close(answer.bboxes, expected.bboxes, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(answer.probs, expected.probs, rtol=1e-3, atol=1e-3)
    assert torch.equal(answer.batch_idx, expected.batch_idx)


class Boxes:
    """A teacher that predicts a set: the middle of each image; it keeps the sizes that it was asked."""

    names = ("disc", "box", "bar")

    def __init__(self):
        self.sides = []

    def teach(self, images):
        side = images.shape[-1]
        self.sides.append(side)
        box = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * side
        return [{"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([0])} for _ in images]


def test_a_set_teacher_answers_as_ever():
    answer = prepared(Boxes()).answer_for_any_size(images())
    assert torch.allclose(answer.bboxes, torch.tensor([[0.5, 0.5, 0.5, 0.5]]).expand(2, 4))


def test_terms_are_those_of_a_set_and_feature_maps_of_both_sizes_are_compared(teacher):
    student, answerer = make_model(STUDENT), open_teacher(teacher)
    answerer.match(NAMES)
    student.args.kd_feat = 1.0
    distiller = build_distiller(student.args, student, answerer, as_sets=True)
    assert not distiller.teacher_heads and "detections assigned like labels" in distiller.levels
    answerer.prepare(torch.device("cpu"), distiller.reads)
    profiled = StudentWithTeacher(student.train(), answerer, distiller, 0.0, LARGE)
    asked = []
    run = answerer.run
    answerer.run = lambda x: asked.append(x.shape) or run(x)
    total = sum(x.sum() for x in profiled(images(2, 64)))
    total.backward()
    assert asked == [(2, 3, LARGE, LARGE)]
    assert all(p.grad is not None and p.grad.any() for p in distiller.adapters.parameters())


# Trainings ------------------------------------------------------------------------------------------------------------
@pytest.mark.core
def test_teacher_gets_large_images_and_the_student_those_of_a_run_without_teacher(quick, teacher, log):
    plain = YOLO(STUDENT)
    plain.train(**{**quick, "epochs": 1, "plots": True}, trainer=Plain)
    trainer = train(quick, teacher=teacher, kd_feat=1.0, plots=True)
    assert all(torch.equal(batch["seen"], images) for batch, images in zip(trainer.given, plain.trainer.given))
    assert len(trainer.given) == 2 == len([x for x in trainer.asked if x.shape[-1] == LARGE])
    for large, batch in zip(trainer.asked, trainer.given):
        assert large.shape == (4, 3, LARGE, LARGE) and shows_the_same(large, batch["seen"])
        assert isinstance(batch["teacher"], SetAnswer) and batch["seen"].shape[-1] == 64
    (row,) = results(Path(trainer.save_dir))
    assert all(row[f"train/{term}"] > 0 for term in ("kd_cls", "kd_box", "kd_feat"))
    assert not any(name.startswith("val/kd") for name in row)
    assert trainer.args.imgsz == 64 and "kd_teacher_imgsz: 96" in (trainer.save_dir / "args.yaml").read_text()
    assert f"GFLOPs at 96 px {Path(teacher)}" in unwrapped(log.text) and "at 96 px..." in log.text
    assert "The teacher was scored on images of 96 px, the student on 64 px." in log.text
    report = json.loads((trainer.save_dir / "report" / "report.json").read_text())
    assert [report["models"][role]["imgsz"] for role in ("teacher", "student")] == [96, 64]
    assert "kd_teacher_imgsz=96" in report["command"] and "imgsz=64" in report["command"]
    page = (trainer.save_dir / "report" / "report.html").read_text()
    assert "at 64 pixels (the teacher at 96)" in page and "The teacher sees images of 96 px" in page


def test_without_it_nothing_of_this_is_used(quick, teacher, monkeypatch):
    monkeypatch.setattr(large_images.LargeImageTeacher, "__init__", pytest.fail)
    monkeypatch.setattr(evaluation, "_val_images", pytest.fail)
    trainer = train(quick, teacher=teacher, kd_teacher_imgsz=None)
    assert all(torch.equal(a, b["img"]) for a, b in zip(trainer.asked, trainer.given))
    assert trainer.distillation.teacher_imgsz == 64 and trainer.distillation.large_images is None


def scores_alone(weights: str, data: str, size: int) -> dict[str, float]:
    """Return the scores of weights in a validation of their own."""
    metrics = YOLO(weights).val(data=data, imgsz=size, batch=4, workers=0, plots=False, verbose=False, device="cpu")
    return {k: v for k, v in metrics.results_dict.items() if k.startswith("metrics/")}


def test_teacher_is_scored_at_its_own_size(quick, teacher):
    """Its score is that of a validation at that size, not that at the student's."""
    trainer = train(quick, KDDetectionTrainer, teacher=teacher, kd_teacher_imgsz=160)
    small, large = (scores_alone(teacher, quick["data"], size) for size in (64, 160))
    assert small != large
    assert {k: trainer.teacher_metrics[k] for k in large} == pytest.approx(large, abs=1e-6)
    assert trainer.test_loader.dataset.imgsz == trainer.args.imgsz == 64


# Stored answers -------------------------------------------------------------------------------------------------------
def test_stored_answers_are_asked_at_the_teachers_size_and_the_student_sees_its_own(quick, teacher):
    """One argument more than for a teacher that runs; the data set has no second images."""
    trainer = train(quick, KDDetectionTrainer, teacher=teacher, kd_cache=True, val=False, epochs=1)
    assert trainer.store.manifest().imgsz == LARGE and trainer.distillation.teacher_imgsz == LARGE
    assert trainer.distillation.large_images is None
    assert trainer.args.kd_teacher_imgsz == LARGE and trainer.args.imgsz == 64


def test_an_augmentation_that_two_sizes_exclude_fits_stored_answers():
    given = {"teacher": "t.pt", "task": "detect", "kd_teacher_imgsz": 2, "kd_cache": True, "rect": True}
    config.check_combination(vars(get_cfg(overrides=given)))


def test_a_cache_of_another_size_is_refused(quick, teacher, tmp_path):
    folder = str(tmp_path / "answers")
    given = {"teacher": teacher, "data": quick["data"], "imgsz": 64, "device": "cpu", "kd_cache_scales": 1}
    store = make_cache({**given, "kd_cache": folder, "kd_teacher_imgsz": 1.5})
    assert store.manifest().imgsz == 96
    with pytest.raises(KDError, match=r"holds answers to images of 96 px, and kd_teacher_imgsz=160 asks for 160 px"):
        train(quick, KDDetectionTrainer, teacher=teacher, kd_cache=folder, kd_teacher_imgsz=160)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"kd_teacher_imgsz": 32}, "'kd_teacher_imgsz=32' is smaller than imgsz=64"),
        (
            {"kd_teacher_imgsz": 2, "kd_cache_imgsz": 128},
            "'kd_cache_imgsz' and 'kd_teacher_imgsz' are both the size that",
        ),
        ({"kd_teacher_imgsz": "large"}, "'kd_teacher_imgsz=large' is invalid"),
    ],
)
def test_sizes_that_a_cache_cannot_have_are_refused(quick, teacher, tmp_path, given, message):
    shared = {"teacher": teacher, "data": quick["data"], "imgsz": 64, "kd_cache": str(tmp_path / "answers")}
    with pytest.raises(KDError, match=message):
        make_cache({**shared, **given})
    assert not (tmp_path / "answers").exists()


@pytest.mark.nightly
def test_stored_answers_resume_at_the_teachers_size(quick, teacher):
    trainer = train(quick, KDDetectionTrainer, teacher=teacher, kd_cache=True, epochs=2, save_period=1)
    (trainer.wdir / "epoch0.pt").replace(trainer.last)  # as if it had been stopped there
    again = YOLO(str(trainer.last))
    again.train(resume=True)
    assert again.trainer.start_epoch == 1 and again.trainer.store.folder == trainer.store.folder


@pytest.mark.nightly
def test_teacher_of_stored_answers_is_scored_at_the_size_of_the_answers(quick, teacher, tmp_path, log):
    folder = str(tmp_path / "answers")
    make_cache({"teacher": teacher, "kd_cache": folder, "data": quick["data"], "imgsz": 160, "device": "cpu"})
    trainer = train(quick, KDDetectionTrainer, teacher=teacher, kd_teacher_imgsz=None, kd_cache=folder)
    assert "The teacher was scored on images of 160 px, the student on 64 px." in log.text
    expected = scores_alone(teacher, quick["data"], 160)
    assert {k: trainer.teacher_metrics[k] for k in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.nightly
def test_with_multi_scale_the_teacher_sees_its_size_and_the_student_the_drawn_ones(quick, teacher):
    trainer = train(quick, teacher=teacher, multi_scale=0.5, epochs=2, val=False)
    assert {x.shape[-1] for x in trainer.asked[:4]} == {LARGE}
    assert len({b["img"].shape[-1] for b in trainer.given}) > 1
    assert all(shows_the_same(large, batch["img"]) for large, batch in zip(trainer.asked, trainer.given))


@pytest.mark.nightly
@pytest.mark.parametrize("sources", ["set", "ensemble", "ema"])
def test_other_kinds_of_teachers_see_large_images(quick, teacher, tmp_path, sources):
    boxes = Boxes()
    torch.manual_seed(1)
    second = str(save_model(tmp_path / "second.pt", TEACHER))
    given = {"set": boxes, "ensemble": [teacher, second], "ema": "ema"}[sources]
    trainer = train(quick, teacher=given, val=False)
    assert all(isinstance(b["teacher"], SetAnswer) for b in trainer.given)
    assert {x.shape[-1] for x in trainer.asked[:2]} == {LARGE}
    if sources == "set":  # val images are padded to half a stride more than their size
        assert boxes.sides == [LARGE, LARGE, LARGE + 32]
    if sources != "ema":  # an untrained average detects nothing
        assert results(Path(trainer.save_dir))[0]["train/kd_cls"] > 0


@pytest.mark.nightly
def test_images_without_labels_are_as_large(quick, teacher, tmp_path):
    draw_dataset(tmp_path / "more", images=6, seed=7)
    trainer = train(quick, teacher=teacher, kd_unlabeled=str(tmp_path / "more" / "images" / "train"), val=False)
    assert trainer.asked[0].shape == (8, 3, LARGE, LARGE) and trainer.given[0]["img"].shape == (8, 3, 64, 64)
    assert shows_the_same(trainer.asked[0], trainer.given[0]["img"])
    assert trainer.given[0]["teacher"].batch_idx.max() > 3


@pytest.mark.nightly
def test_images_for_a_fit_are_of_the_students_size(quick, teacher):
    seen = []

    class Fitting(KDDetectionTrainer):
        def setup_model(self):
            ckpt = super().setup_model()
            seen.extend(self._calibration_batches())
            return ckpt

    train(quick, Fitting, teacher=teacher, val=False)
    assert all(batch["img"].shape[1:] == (3, 64, 64) and 0.2 < batch["img"].max() <= 1 for batch in seen) and seen


@pytest.mark.nightly
def test_resume_goes_on_at_the_same_sizes(quick, teacher, tmp_path):
    import shutil

    last = tmp_path / "last.pt"
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**quick, teacher=teacher, kd_teacher_imgsz=1.5)
    whole = results(Path(model.trainer.save_dir))
    assert torch_load(last)["train_args"]["kd_teacher_imgsz"] == 1.5
    again = YOLO(last)
    again.train(resume=True)
    assert again.trainer.start_epoch == 1 and again.trainer.train_loader.dataset.large.imgsz == LARGE
    assert results(Path(again.trainer.save_dir))[1]["train/kd_cls"] == pytest.approx(whole[1]["train/kd_cls"], rel=0.2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> str:
    """Return a data set for classification: bright and dark images."""
    where, rng = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for low, name in enumerate(("dark", "bright")):
            (where / split / name).mkdir(parents=True)
            for i in range(count):
                picture = rng.integers(low * 120, low * 120 + 80, (80, 80, 3), dtype=np.uint8)
                cv2.imwrite(str(where / split / name / f"{i}.png"), picture)
    return str(where)


def test_a_classifier_answers_the_large_images(quick, folders, tmp_path):
    from ultralytics.nn.tasks import ClassificationModel

    from ultralytics_kd.trainer import KDClassificationTrainer

    torch.manual_seed(0)
    model = ClassificationModel("yolo26n-cls.yaml", nc=2, verbose=False)
    model.names, model.args = {0: "bright", 1: "dark"}, get_cfg()
    torch.save({"model": model, "train_args": {"task": "classify"}}, tmp_path / "teacher.pt")

    class Looking(Watches, KDClassificationTrainer):
        pass

    trainer = train(
        {**quick, "data": folders}, Looking, "yolo26n-cls.yaml", teacher=str(tmp_path / "teacher.pt"), kd_feat=1.0
    )
    pairs = list(zip(trainer.asked, (batch["seen"] for batch in trainer.given)))
    assert pairs and all(x.shape[-1] == LARGE and y.shape[-1] == 64 and shows_the_same(x, y) for x, y in pairs)
    assert results(Path(trainer.save_dir))[0]["train/kd_cls"] > 0
    assert trainer.teacher_metrics and trainer.model.transforms.transforms[0].size == 64


# Code of the user's ---------------------------------------------------------------------------------------------------
class Brighter(KDDetectionTrainer):
    """Changes the colours of the prepared images."""

    def preprocess_batch(self, batch):
        batch = super().preprocess_batch(batch)
        batch["img"] = batch["img"] * 0.9
        return batch


class Few(KDDetectionTrainer):
    """Prepares the batch itself, and keeps only the entries that it knows."""

    def preprocess_batch(self, batch):
        batch = DetectionTrainer.preprocess_batch(self, batch)
        return {k: batch[k] for k in ("img", "cls", "bboxes", "batch_idx", "im_file", "ori_shape", "ratio_pad")}


@pytest.mark.parametrize("trainer", [Brighter, pytest.param(Alone, marks=pytest.mark.nightly)])
def test_a_trainer_that_goes_on_preparing_the_batch_distils(quick, teacher, trainer):
    done = train(quick, trainer, teacher=teacher, val=False)
    assert results(Path(done.save_dir))[0]["train/kd_cls"] > 0


@pytest.mark.parametrize(
    "trainer, message",
    [
        (Mirrors, r"Mirrors\.preprocess_batch changes the labels' boxes"),
        pytest.param(Drops, "the batches lack the teacher's images", marks=pytest.mark.nightly),
        pytest.param(Few, "the batches lack the teacher's images", marks=pytest.mark.nightly),
        (OwnDataset, r"the batches lack the teacher's images: build_dataset must call super"),
    ],
)
def test_code_that_keeps_the_teacher_from_the_images_is_refused(quick, teacher, trainer, message):
    with pytest.raises(KDError, match=message):
        train(quick, trainer, teacher=teacher)
    assert not Path(quick["project"], "run").exists()


# Reports --------------------------------------------------------------------------------------------------------------
@pytest.mark.nightly
def test_a_report_scores_the_teacher_at_its_own_size(quick, teacher, tmp_path):
    torch.manual_seed(2)
    student = str(save_model(tmp_path / "student.pt", STUDENT))
    given = {"teacher": teacher, "student": student, "data": quick["data"], "imgsz": 64, "project": str(tmp_path)}
    large = run_report({**given, "kd_teacher_imgsz": 2.5, "name": "large"})
    plain = run_report({**given, "name": "plain"})
    alone = run_report({**given, "imgsz": 160, "name": "alone"})
    score = {
        name: r["models"]["teacher"]["heads"]["nms"]["score"]
        for name, r in (("large", large), ("plain", plain), ("alone", alone))
    }
    assert score["large"] == pytest.approx(score["alone"]) != pytest.approx(score["plain"])
    assert large["models"]["teacher"]["gflops"] == alone["models"]["teacher"]["gflops"]
    assert large["models"]["student"]["heads"] == plain["models"]["student"]["heads"]
    with pytest.raises(KDError, match=r"kd_teacher_imgsz=0\.5"):
        run_report({**given, "kd_teacher_imgsz": 0.5})
