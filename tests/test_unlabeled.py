"""Images without labels in a training: they bring the teacher's terms and nothing else."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import STUDENT, TEACHER, draw_dataset
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER, YAML
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDDetectionTrainer, KDError
from ultralytics_kd.distillation.loss import LABELED
from ultralytics_kd.training.autobatch import StudentWithTeacher
from ultralytics_kd.training.images.unlabeled import UnlabeledStream
from ultralytics_kd.training.images.unlabeled_images import UnlabeledImages


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder of images, with labels beside them that nobody may read."""
    where = tmp_path_factory.mktemp("extra")
    draw_dataset(where / "shapes", images=6, seed=7)
    return where / "shapes" / "images" / "train"


def batches(model: YOLO, **args) -> tuple[list, dict]:
    """Train an epoch; return each batch's loss call and the items of the last."""
    seen = []

    def listen(trainer):
        criterion = trainer.model.criterion
        base = criterion.base

        def heard(preds, batch):
            seen.append((preds["one2many"]["scores"].shape[0], len(batch["img"]), len(batch["batch_idx"])))
            return base(preds, batch)

        heard.o2m, heard.o2o, heard.one2many, heard.one2one = base.o2m, base.o2o, base.one2many, base.one2one
        criterion.base = heard

    model.add_callback("on_train_start", listen)
    model.train(**args)
    return seen, model.trainer.loss_items


@pytest.mark.core
def test_batches_grow_and_the_base_loss_sees_the_labelled_part_alone(quick, teacher, folder):
    kept = []
    model = YOLO(STUDENT)
    from ultralytics_kd.trainer import KDDetectionTrainer

    class Looking(KDDetectionTrainer):
        def preprocess_batch(self, batch):
            batch = super().preprocess_batch(batch)
            kept.append(batch)
            return batch

    seen, items = batches(
        model, trainer=Looking, **{**quick, "epochs": 1}, teacher=teacher, kd_unlabeled=folder, kd_unlabeled_ratio=1.5
    )
    sizes = [(len(b["img"]), b[LABELED], b["teacher"].branches["one2many"].scores.shape[0]) for b in kept]
    assert sizes == [(10, 4, 10), (10, 4, 10)]  # 4 labelled and 6 more, which the teacher answers too
    assert [(n, images) for n, images, _ in seen] == [(4, 4), (4, 4)]
    assert items["kd_cls"] > 0


def test_unlabelled_images_do_not_touch_the_base_loss(quick, teacher, folder):
    """Gradient of the base loss is 0 in their predictions: nothing in them counts as background."""
    from test_teachers import batch_of, build, pair

    student, teacher, _, loss = pair(STUDENT, build(TEACHER), kd_cls=1.0, kd_box=1.0)
    batch = batch_of()
    preds = student.eval()(batch["img"])[1]
    for branch in preds.values():
        branch["scores"].retain_grad()
    batch = {k: v[batch["batch_idx"] == 0] if k != "img" else v for k, v in batch.items()}  # no labels in the second
    total, _ = loss(preds, {**batch, LABELED: 1, "teacher": teacher(batch["img"])})
    total[:3].sum().backward(retain_graph=True)
    for branch in preds.values():
        assert branch["scores"].grad[0].any() and not branch["scores"].grad[1].any()
        branch["scores"].grad = None
    total[3:].sum().backward()
    for branch in preds.values():
        assert branch["scores"].grad[1].any()


@pytest.mark.core
def test_base_loss_of_a_batch_is_that_without_the_other_images():
    from test_teachers import batch_of, build, pair

    student, teacher, _, loss = pair(STUDENT, build(TEACHER), kd_cls=1.0)
    student.eval()
    alone, both = batch_of(1), batch_of(2)
    with torch.no_grad():
        expected, _ = loss(student(alone["img"]), {**alone, "teacher": teacher(alone["img"])})
        labels = {k: alone[k] for k in ("batch_idx", "cls", "bboxes")}
        more = torch.cat((alone["img"], both["img"][1:]))
        got, _ = loss(student(more), {**labels, "img": more, LABELED: 1, "teacher": teacher(more)})
    torch.testing.assert_close(got[:3], expected[:3], rtol=1e-4, atol=1e-5)


def test_run_says_it_saves_it_and_resumes_with_it(quick, teacher, folder, tmp_path, caplog):
    import shutil

    last = tmp_path / "last.pt"
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    LOGGER.propagate = True
    model.train(**quick, teacher=teacher, kd_unlabeled=str(folder))
    LOGGER.propagate = False
    assert "6 without labels, 1 for each with labels" in caplog.text
    saved = torch_load(last)["train_args"]
    assert saved["kd_unlabeled"] == str(folder) and saved["kd_unlabeled_ratio"] == 1.0
    again, passes = YOLO(last), []
    again.add_callback("on_train_batch_end", lambda t: passes.append(t.unlabeled.passes))
    again.train(resume=True)
    assert again.trainer.start_epoch == 1 and len(again.trainer.unlabeled.dataset) == 6
    assert passes[0] == 3  # the first epoch began two passes over 6 images, whose orders do not come again


@pytest.mark.parametrize("cached", [False, True], ids=["teacher", "stored"])
def test_autobatch_counts_images_without_labels(cached, quick, teacher, folder, monkeypatch, tmp_path):
    profiled = []
    monkeypatch.setattr(
        "ultralytics.engine.trainer.check_train_batch_size", lambda model, **_: profiled.append(model) or 4
    )
    given = {"kd_unlabeled": str(folder), "kd_unlabeled_ratio": 1.5, "kd_cache": cached}
    YOLO(STUDENT).train(**{**quick, "batch": -1, "epochs": 1}, teacher=teacher, **given)
    assert isinstance(profiled[0], StudentWithTeacher) and profiled[0].unlabeled == 1.5
    assert (profiled[0].teacher is None) is cached


def test_images_that_have_moved_are_named_anew_on_resume(quick, teacher, folder, tmp_path):
    import shutil

    last, before, now = tmp_path / "last.pt", tmp_path / "before", tmp_path / "now"
    shutil.copytree(folder, before)
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**quick, teacher=teacher, kd_unlabeled=before)
    before.rename(now)
    with pytest.raises(KDError, match="kd_unlabeled"):
        YOLO(last).train(resume=True)
    again = YOLO(last)
    again.train(resume=True, kd_unlabeled=now)
    assert again.trainer.start_epoch == 1 and again.trainer.args.kd_unlabeled == str(now)


@pytest.mark.core
def test_unlabelled_images_are_augmented_until_mosaics_are_closed(quick, teacher, folder):
    kinds = []
    model = YOLO(STUDENT)
    model.add_callback(
        "on_train_epoch_end",
        lambda t: kinds.append(next(x.p for x in t.unlabeled.dataset.transforms.transforms[0].transforms[:1])),
    )
    model.train(**{**quick, "close_mosaic": 1}, teacher=teacher, kd_unlabeled=folder)
    assert kinds == [1.0, 0.0]


def augmented(task: str, folder: Path) -> UnlabeledImages:
    """Return the images as a task's training would augment them."""
    args = get_cfg(overrides={"task": task, "imgsz": 64, "mosaic": 1.0, "mixup": 1.0, "copy_paste": 1.0})
    files = sorted(map(str, folder.glob("*.png")))
    return UnlabeledImages(files, args, {"names": {0: "a"}, "nc": 1, "channels": 3}, 32)


def test_images_of_depth_are_not_put_together_as_scale_is_what_depth_is_read_from(folder):
    images = augmented("depth", folder)
    kinds = {type(t).__name__: t.p for t in flat(images.transforms) if hasattr(t, "p")}
    assert {kinds[name] for name in ("Mosaic", "MixUp", "CutMix", "CopyPaste")} == {0}
    assert {type(t).__name__: t.p for t in flat(augmented("detect", folder).transforms) if hasattr(t, "p")}[
        "Mosaic"
    ] == 1


def flat(transforms) -> list:
    """Return all transforms in a nest of them."""
    inner = getattr(transforms, "transforms", None)
    return [transforms] if inner is None else [t for each in inner for t in flat(each)]


@pytest.mark.core
def test_semantic_segmentation_scales_them_by_the_short_side_as_labelled_ones(tmp_path):
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((40, 80, 3), np.uint8))
    assert augmented("semantic", tmp_path).load_image(0)[2] == (64, 128)
    assert augmented("detect", tmp_path).load_image(0)[2] == (32, 64)


@pytest.mark.nightly
def test_a_list_of_files_and_several_sources_do_as_well(quick, teacher, folder, tmp_path):
    files = sorted(folder.glob("*.png"))
    (tmp_path / "rest.txt").write_text("\n".join(map(str, files[:2])))
    (tmp_path / "more").mkdir()
    cv2.imwrite(str(tmp_path / "more" / "one.png"), np.zeros((32, 48, 3), np.uint8))
    for sources in ([str(tmp_path / "rest.txt"), str(tmp_path / "more")], f"[{tmp_path}/rest.txt,{tmp_path}/more]"):
        model = YOLO(STUDENT)
        model.train(**{**quick, "epochs": 1}, teacher=teacher, kd_unlabeled=sources)
        assert len(model.trainer.unlabeled.dataset) == 3
        assert model.trainer.args.kd_unlabeled == [f"{tmp_path}/rest.txt", f"{tmp_path}/more"]


def test_unreadable_images_are_left_out_and_val_images_warned_of(quick, teacher, tmp_path, caplog):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "broken.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "odd" / "good.png"), np.zeros((64, 64, 3), np.uint8))
    val = Path(quick["data"]).parent / "images" / "val"
    LOGGER.propagate = True
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1}, teacher=teacher, kd_unlabeled=[str(tmp_path / "odd"), str(val)])
    LOGGER.propagate = False
    assert len(model.trainer.unlabeled.dataset) == 5
    assert "broken.png: ignoring corrupt image" in caplog.text
    assert "4 of kd_unlabeled's images are val images" in caplog.text


@pytest.mark.parametrize(
    "given, message",
    [
        ({"kd_unlabeled": "EMPTY"}, r"has no images \(No images found in \S+\): give a folder of images, or a file"),
        ({"kd_unlabeled": "nowhere"}, "does not exist"),
        ({"kd_unlabeled": "IMAGE"}, "is an image: give its folder"),
        ({"kd_unlabeled": 7}, "give a folder of images"),
        ({"kd_unlabeled": "FOLDER", "kd_unlabeled_ratio": 0}, "greater than 0"),
        ({"kd_unlabeled": "FOLDER", "rect": True}, "exclude each other"),
        ({"kd_unlabeled": "FOLDER", "teacher": None}, "no effect without a teacher"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(quick, teacher, folder, tmp_path, given, message):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "FOLDER": str(folder), "IMAGE": str(next(folder.glob("*.png")))}
    given = {k: places.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(KDError, match=message) as error:
        YOLO(STUDENT).train(**{**quick, "teacher": teacher, **given})
    assert "\n" not in str(error.value) and not Path(quick["project"]).exists()


def test_folder_whose_images_are_all_broken_is_named(quick, teacher, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "broken.png").write_bytes(b"no image")
    with pytest.raises(KDError, match="none of its 1 images can be read"):
        YOLO(STUDENT).train(**quick, teacher=teacher, kd_unlabeled=tmp_path / "odd")
    assert not Path(quick["project"]).exists()


def test_ratio_without_images_is_said_to_be_idle(quick, teacher, caplog):
    LOGGER.propagate = True
    YOLO(STUDENT).train(**{**quick, "epochs": 1}, teacher=teacher, kd_unlabeled_ratio=2.0)
    LOGGER.propagate = False
    assert "'kd_unlabeled_ratio=2' has no effect: kd_unlabeled is not set" in caplog.text
    assert YAML.load(Path(quick["project"]) / "run" / "args.yaml")["kd_unlabeled"] is None


@pytest.mark.nightly
def test_multi_scale_and_plots_go_with_it(quick, teacher, folder):
    run = Path(quick["project"]) / "run"
    YOLO(STUDENT).train(
        **{**quick, "epochs": 1, "plots": True, "multi_scale": 0.5}, teacher=teacher, kd_unlabeled=folder
    )
    assert (run / "train_batch0.jpg").exists() and (run / "results.png").exists()


@pytest.mark.parametrize("labeled", [None, 0, 1])
def test_what_is_drawn_is_a_copy_of_the_batch(labeled, monkeypatch):
    """Ultralytics scales the images in place, and the check of the first step reads them afterwards."""
    drawn = []
    monkeypatch.setattr(
        DetectionTrainer, "plot_training_samples", lambda self, batch, ni: drawn.append(batch["img"].mul_(255))
    )
    trainer = object.__new__(KDDetectionTrainer)
    trainer.distillation = SimpleNamespace(pseudo=None)
    batch = {"img": torch.full((2, 3, 4, 4), 0.5), **({} if labeled is None else {LABELED: labeled})}
    trainer.plot_training_samples(batch, 0)
    assert bool((batch["img"] == 0.5).all()) and len(drawn[0]) == (labeled or 2)


class Draws(torch.utils.data.Dataset):
    """Samples that show the random numbers of the process that made them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"img": torch.tensor([random.random(), float(np.random.rand()), float(torch.rand(1))])}


def test_images_without_labels_are_augmented_by_numbers_of_their_own():
    """Ultralytics seeds the workers of all its loaders alike."""
    draws = Draws()
    draws.collate_fn = torch.utils.data.default_collate
    labeled = next(iter(build_dataloader(draws, 4, workers=2, shuffle=True, device=torch.device("cpu"))))["img"]
    stream = UnlabeledStream(draws, 1.0, 4, 2, -1, torch.device("cpu"))
    unlabeled = stream.take(4)["img"]
    stream.close()
    assert not set(labeled.flatten().tolist()) & set(unlabeled.flatten().tolist())
