"""Stored answers to images without labels: `kd_cache` beside `kd_unlabeled`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import STUDENT, draw_dataset
from ultralytics.utils import LOGGER, YAML
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDDetectionTrainer, KDError
from ultralytics_kd.advice import run_advice
from ultralytics_kd.cache import make_cache
from ultralytics_kd.cache.augmentation import BOXES, IMAGES, ROWS
from ultralytics_kd.cli import main
from ultralytics_kd.distillation.loss import LABELED
from ultralytics_kd.distillation.pseudo_boxes import check_stored_detections, lowest_confidence
from ultralytics_kd.training.autobatch import StudentWithTeacher
from ultralytics_kd.training.images.unlabeled import UnlabeledPart
from ultralytics_kd.training.images.unlabeled_images import AnsweredUnlabeledImages

QUIET = {"workers": 0, "device": "cpu", "batch": 4, "imgsz": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Return a folder of images without labels."""
    return str(draw_dataset(tmp_path_factory.mktemp("extra") / "shapes", images=6, seed=7).parent / "images" / "train")


@pytest.fixture
def cache(tmp_path, data, teacher, folder) -> str:
    """Return a cache of answers to the data's 8 images and to the folder's 6, with all that the teacher finds."""
    given = {**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c"), "kd_cache_conf": 0.001}
    return str(make_cache({**given, "kd_unlabeled": folder}).folder)


@pytest.fixture
def names_only(data, tmp_path) -> str:
    """Return a data.yaml with names and a val set."""
    described = YAML.load(data)
    YAML.save(tmp_path / "names.yaml", {k: described[k] for k in ("path", "val", "names")})
    return str(tmp_path / "names.yaml")


class Looking(KDDetectionTrainer):
    """A trainer that keeps its batches, to which the loss adds the answers."""

    kept: list[dict]

    def preprocess_batch(self, batch):
        self.kept.append(super().preprocess_batch(batch))
        return self.kept[-1]


@pytest.fixture
def looking():
    """Return that trainer class without batches."""
    Looking.kept = []
    return Looking


@pytest.mark.core
def test_images_without_labels_bring_their_stored_answers(quick, teacher, folder, cache, looking):
    model = YOLO(STUDENT)
    args = {**quick, "epochs": 1, "teacher": teacher, "kd_unlabeled": folder, "kd_unlabeled_ratio": 1.5}
    model.train(trainer=looking, **args, kd_cache=cache)
    assert [(len(batch["img"]), batch[LABELED]) for batch in looking.kept] == [(10, 4), (10, 4)]
    for batch in looking.kept:
        images = batch["teacher"].batch_idx
        assert set(images.int().tolist()) == set(range(10))  # this teacher finds something in every image
        assert len(batch["bboxes"]) == 0 or batch["batch_idx"].max() < 4
    items = model.trainer.loss_items
    assert items["kd_cls"] > 0 and items["kd_box"] > 0
    assert isinstance(model.trainer.unlabeled.dataset, AnsweredUnlabeledImages)


@pytest.mark.core
def test_they_are_the_images_of_a_training_whose_teacher_runs(quick, teacher, folder, cache, looking):
    args = {**quick, "trainer": looking, "epochs": 1, "teacher": teacher, "kd_unlabeled": folder, "kd_init": False}
    YOLO(STUDENT).train(**args)
    running, looking.kept = looking.kept, []
    YOLO(STUDENT).train(**args, kd_cache=cache)
    assert len(running) == len(looking.kept) == 2
    for one, other in zip(running, looking.kept):
        assert torch.equal(one["img"], other["img"]) and torch.equal(one["bboxes"], other["bboxes"])


@pytest.mark.nightly
def test_stored_boxes_follow_the_augmentation_of_their_image(quick, data, folder, cache, teacher, looking):
    """With mirrored images each stored box is mirrored, and nothing else about it changes."""
    args = {**quick, "epochs": 1, "teacher": teacher, "kd_unlabeled": folder, "kd_cache": cache}
    still = {"mosaic": 0, "scale": 0, "translate": 0, "fliplr": 0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0}
    YOLO(STUDENT).train(trainer=looking, **args, **still)
    plain, looking.kept = looking.kept, []
    YOLO(STUDENT).train(trainer=looking, **args, **{**still, "fliplr": 1.0})
    one, other = (torch.cat([b["img"][b[LABELED] :] for b in kept]) for kept in (plain, looking.kept))
    assert torch.equal(one.flip(3), other)
    one, other = (
        torch.cat([b["teacher"].bboxes[b["teacher"].batch_idx >= b[LABELED]] for b in k]) for k in (plain, looking.kept)
    )
    assert len(one) == len(other) > 0
    torch.testing.assert_close(other[:, 0], 1 - one[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(other[:, 1:], one[:, 1:])


@pytest.mark.core
def test_parts_of_batches_keep_each_answer_with_its_image():
    def part(images: list[int], instances: list[int]) -> dict:
        rows = torch.tensor([float(images[i]) for i in instances])
        return {
            "img": torch.tensor(images)[:, None, None, None],
            BOXES: rows[:, None].expand(-1, 4),
            ROWS: rows[:, None],
            IMAGES: torch.tensor(instances, dtype=torch.float32),
        }

    stream = iter([part([20, 21, 22], [0, 0, 2]), part([23, 24, 25], [0, 1, 1, 2])])
    unlabeled = UnlabeledPart.__new__(UnlabeledPart)
    from ultralytics_kd.training.images.unlabeled import UnlabeledStream

    unlabeled.stream = UnlabeledStream.__new__(UnlabeledStream)
    unlabeled.stream.ratio, unlabeled.stream._batches = 2.5, stream
    batch = {**part([10, 11], [1]), "bboxes": torch.zeros(0, 4)}
    unlabeled.add_to(batch)
    assert batch[LABELED] == 2 and batch["img"].flatten().tolist() == [10, 11, 20, 21, 22, 23, 24]
    assert batch["img"].flatten()[batch[IMAGES].long()].tolist() == batch[ROWS].flatten().tolist()
    assert batch[ROWS].flatten().tolist() == batch[BOXES][:, 0].tolist() == [11, 20, 20, 22, 23, 24, 24]


def test_run_makes_the_cache_itself_and_resumes_with_it(quick, teacher, folder, tmp_path):
    last = tmp_path / "last.pt"
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**quick, teacher=teacher, kd_unlabeled=folder, kd_cache=True)
    assert model.trainer.store.count() == 14
    saved = torch_load(last)["train_args"]
    assert saved["kd_unlabeled"] == folder and Path(saved["kd_cache"]).is_dir()
    again = YOLO(last)
    again.train(resume=True)
    assert again.trainer.start_epoch == 1 and len(again.trainer.unlabeled.dataset) == 6
    assert isinstance(again.trainer.unlabeled.dataset, AnsweredUnlabeledImages)


def test_a_cache_without_them_is_an_error_that_says_so(quick, data, teacher, folder, tmp_path):
    store = make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c")})
    message = r"no answer to 6 of 6 training images \(for example .*"
    r"run yolo-kd cache with the data, fraction and kd_unlabeled of this"
    with pytest.raises(KDError, match=message):
        YOLO(STUDENT).train(**quick, teacher=teacher, kd_unlabeled=folder, kd_cache=str(store.folder))


def test_command_names_the_training_and_adds_what_is_missing(data, teacher, folder, tmp_path, caplog):
    args = [f"data={data}", f"teacher={teacher}", "imgsz=64", "device=cpu", "workers=0", f"kd_cache={tmp_path / 'c'}"]
    main(["cache", *args])
    LOGGER.propagate = True
    main(["cache", *args, f"kd_unlabeled={folder}"])
    LOGGER.propagate = False
    text = " ".join(caplog.text.split())
    assert "8 of 14 images have answers" in text and "to 14 images" in text and f"kd_unlabeled={folder}" in text


@pytest.mark.parametrize("value, message", [("nowhere", "has no images"), (7, "give a folder of images")])
def test_command_refuses_what_is_no_folder(data, teacher, tmp_path, value, message):
    with pytest.raises(KDError, match=message):
        make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c"), "kd_unlabeled": value})
    assert not (tmp_path / "c").exists()


def test_boxes_that_the_teacher_is_sure_of_are_read_from_the_cache(quick, teacher, folder, cache):
    model = YOLO(STUDENT)
    counted = []
    model.add_callback("on_train_batch_end", lambda t: counted.append(vars(t.distillation.pseudo.counts).copy()))
    args = {**quick, "epochs": 1, "teacher": teacher, "kd_unlabeled": folder, "kd_cache": cache}
    model.train(**args, kd_unlabeled_boxes=0.01)
    assert counted[-1]["images"] == 8 and counted[-1]["boxes"] > 0


def test_a_cache_without_detections_in_doubt_is_refused(quick, data, teacher, folder, tmp_path):
    given = {**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c"), "kd_cache_conf": 0.3}
    store = make_cache({**given, "kd_unlabeled": folder})
    args = {**quick, "teacher": teacher, "kd_unlabeled": folder, "kd_cache": str(store.folder)}
    with pytest.raises(KDError, match=r"lacks detections that 'kd_unlabeled_boxes=0\.5' needs.* kd_cache_conf=0\.1 or"):
        YOLO(STUDENT).train(**args, kd_unlabeled_boxes=0.5)


@pytest.mark.parametrize(
    "conf, iou, most, message",
    [
        (0.05, 0.7, 100, r"kd_cache_conf=0\.02 or less \(it has 0\.05\)"),
        (0.01, 0.5, 100, r"kd_cache_iou=0\.7 or more \(it has 0\.5\)"),
        (0.01, 0.7, 10, r"kd_cache_topk=100 or more \(it has 10\)"),
    ],
)
def test_limits_of_a_cache_that_cut_pseudo_boxes_are_named(conf, iou, most, message):
    needed = "kd_unlabeled_boxes=0.02", lowest_confidence(0.02), "c"
    check_stored_detections(*needed, 0.02, 0.7, 100)
    with pytest.raises(KDError, match=message):
        check_stored_detections(*needed, conf, iou, most)


def test_no_image_is_answered_for_boxes_that_the_cache_would_not_hold(quick, teacher, folder):
    args = {**quick, "teacher": teacher, "kd_unlabeled": folder, "kd_cache": True}
    with pytest.raises(KDError, match="kd_cache=True lacks detections"):
        YOLO(STUDENT).train(**args, kd_unlabeled_boxes=0.02)
    assert not Path(quick["project"]).exists()


@pytest.mark.parametrize("boxes", [0.01, pytest.param(None, marks=pytest.mark.nightly)])
def test_they_may_be_all_training_images(quick, teacher, folder, names_only, tmp_path, boxes):
    given = {**QUIET, "data": names_only, "teacher": teacher, "kd_cache": str(tmp_path / "c"), "kd_cache_conf": 0.001}
    store = make_cache({**given, "kd_unlabeled": folder})
    assert store.count() == 6
    model = YOLO(STUDENT)
    args = {**quick, "data": names_only, "teacher": teacher, "kd_unlabeled": folder, "kd_unlabeled_boxes": boxes}
    model.train(**args, kd_cache=str(store.folder))
    items = model.trainer.loss_items
    assert items["kd_cls"] > 0 and bool(items["box_loss"] > 0) == (boxes is not None)
    assert isinstance(model.trainer.train_loader.dataset, AnsweredUnlabeledImages)


@pytest.mark.nightly
def test_a_run_without_training_images_makes_its_cache(quick, teacher, folder, names_only):
    model = YOLO(STUDENT)
    model.train(**{**quick, "data": names_only, "epochs": 1}, teacher=teacher, kd_unlabeled=folder, kd_cache=True)
    assert model.trainer.store.count() == 6


def test_autobatch_sees_images_without_labels_and_no_teacher(teacher):
    from test_teachers import build, pair

    student, _, distiller, _ = pair(STUDENT, build(STUDENT))
    profiled = StudentWithTeacher(student, None, distiller, 1.5)
    seen = []
    student.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    profiled(torch.zeros(2, 3, 64, 64))
    assert seen == [5]


@pytest.mark.parametrize("given", [{"kd_cache": True}, {"kd_teacher_imgsz": 2}])
def test_code_that_may_move_images_without_any_label_is_refused(quick, teacher, folder, names_only, looking, given):
    """The labels' boxes tell whether images were moved, and here there are none."""
    args = {**quick, "data": names_only, "teacher": teacher, "kd_unlabeled": folder}
    with pytest.raises(KDError, match=r"Looking\.preprocess_batch may move images, and without labels nothing tells"):
        YOLO(STUDENT).train(trainer=looking, **args, **given)


def test_transforms_that_a_callback_adds_to_them_are_refused(quick, teacher, folder):
    class Mirror:
        def __call__(self, labels):
            return labels

    model = YOLO(STUDENT)
    model.add_callback("on_train_start", lambda t: t.unlabeled.dataset.transforms.insert(0, Mirror()))
    with pytest.raises(KDError, match="does not support the augmentation 'Mirror'"):
        model.train(**{**quick, "close_mosaic": 0}, teacher=teacher, kd_unlabeled=folder, kd_cache=True)


@pytest.mark.nightly
def test_a_list_behind_a_link_names_the_same_images_for_cache_and_training(quick, teacher, folder, tmp_path):
    (tmp_path / "near").mkdir()
    (tmp_path / "far").mkdir()
    shutil.copytree(folder, tmp_path / "near" / "images")
    names = sorted(path.name for path in (tmp_path / "near" / "images").glob("*.png"))
    (tmp_path / "far" / "list.txt").write_text("\n".join(f"./images/{name}" for name in names))
    (tmp_path / "near" / "list.txt").symlink_to(tmp_path / "far" / "list.txt")
    model = YOLO(STUDENT)
    args = {**quick, "epochs": 1, "teacher": teacher, "kd_cache": True}
    model.train(**args, kd_unlabeled=str(tmp_path / "near" / "list.txt"))
    assert model.trainer.store.count() == 14


@pytest.mark.nightly
def test_fraction_takes_its_share_of_them_if_they_are_all(quick, teacher, folder, names_only):
    model = YOLO(STUDENT)
    args = {**quick, "data": names_only, "epochs": 1, "fraction": 0.5, "teacher": teacher, "kd_unlabeled": folder}
    model.train(**args, kd_cache=True)
    assert model.trainer.store.count() == len(model.trainer.train_loader.dataset) == 3


def test_images_that_cannot_be_read_leave_no_cache(data, teacher, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "broken.png").write_bytes(b"no image")
    given = {**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c")}
    with pytest.raises(KDError, match="none of its 1 images can be read"):
        make_cache({**given, "kd_unlabeled": str(tmp_path / "odd")})
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_data_without_any_image_to_answer_is_one_sentence(teacher, names_only, tmp_path):
    given = {**QUIET, "data": names_only, "teacher": teacher, "kd_cache": str(tmp_path / "c")}
    with pytest.raises(KDError, match="has no training images to answer: name them under train:, or in kd_unlabeled"):
        make_cache(given)


@pytest.mark.nightly
def test_a_folder_may_have_brackets_in_its_name(data, teacher, tmp_path):
    store = make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c[1]")})
    assert store.count() == 8


@pytest.mark.nightly
def test_advice_measures_their_stored_answers(data, teacher, folder, tmp_path):
    given = {**QUIET, "data": data, "model": STUDENT, "teacher": teacher, "kd_unlabeled": folder}
    report = run_advice({**given, "save_dir": str(tmp_path / "advice"), "epochs": 3, "probe": 0, "images": 1})
    costs = report["teachers"][0]["costs"]
    assert not costs["not_stored"] and costs["arms"]["stored answers"]["making_hours"] > 0


@pytest.mark.nightly
def test_mosaics_are_closed_for_them_too_and_worker_processes_carry_answers(quick, teacher, folder, cache):
    model = YOLO(STUDENT)
    args = {**quick, "close_mosaic": 1, "workers": 2, "teacher": teacher, "kd_unlabeled": folder, "kd_cache": cache}
    model.train(**args)
    assert model.trainer.unlabeled.dataset.transforms.transforms[0].transforms[0].p == 0
    assert model.trainer.loss_items["kd_cls"] > 0
