"""Stored answers: their files, how teachers compute them, and how a training uses them."""

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
import torch
from conftest import NAMES, STUDENT, TEACHER, draw_dataset, save_model
from ultralytics import YOLO as StockYOLO
from ultralytics.utils import LOGGER, YAML
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.cache import build, make_cache
from ultralytics_kd.cache.answering import numbered, spelling
from ultralytics_kd.cache.answers import StoredAnswers
from ultralytics_kd.cache.keys import image_key
from ultralytics_kd.cache.manifest import Manifest
from ultralytics_kd.cache.shards import Row, stored_rows
from ultralytics_kd.cache.store import Store
from ultralytics_kd.cli import main
from ultralytics_kd.errors import KDTypeError
from ultralytics_kd.teachers.class_map import match_classes
from ultralytics_kd.teachers.detections import Detections
from ultralytics_kd.teachers.fusion import fuse

QUIET = {"workers": 0, "device": "cpu", "batch": 4, "imgsz": 64}
MANIFEST = Manifest(
    teachers=[{"name": "t.pt", "sha256": "0" * 64}],
    names={0: "a", 1: "b"},
    imgsz=64,
    conf=0.05,
    iou=0.7,
    topk=100,
    scales=[1.0],
    flip=False,
    precision="fp32",
)


@pytest.fixture
def cache(tmp_path, data, teacher) -> Store:
    """Return a cache of the drawn data set, in shards of three images."""
    return make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c"), "kd_cache_shard": 3})


def rows(store: Store) -> pl.DataFrame:
    """Return all rows in the order of their keys."""
    return pl.concat(store.read()).sort("key")


def stored(store: Store, file: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes and probabilities of an image."""
    by_key = {row.key: row for t in store.read() for row in stored_rows(t, store.manifest())}
    row = by_key[image_key(file)]
    return row.boxes, row.probs / 65535


# Files ----------------------------------------------------------------------------------------------------------------
def test_rows_come_back_as_they_were_written(tmp_path):
    store = Store(tmp_path / "c")
    manifest = replace(MANIFEST, scales=[0.5, 1.0])
    store.begin(manifest)
    rng = np.random.default_rng(0)
    boxes = rng.random((3, 4), dtype=np.float32)
    probs = np.array([[1.0, 0.0], [0.5, 0.25], [1e-5, 1.0]])
    confidence = np.array([[0.0, 1.0], [0.25, 0.5], [1.0, 0.0]])
    store.write([Row("k1", 32, 24, boxes, probs, confidence), Row("k0", 10, 20, boxes[:0], probs[:0], confidence[:0])])
    assert store.keys() == {"k0", "k1"} and store.manifest() == manifest
    assert store.count() == 2
    (table,) = store.read()
    row, empty = stored_rows(table, manifest)
    assert row.key == "k1" and np.array_equal(row.boxes, boxes) and np.abs(row.probs / 65535 - probs).max() <= 1e-5
    assert np.abs(row.scale_confidence / 65535 - confidence).max() <= 1e-5
    assert (
        empty.boxes.shape == (0, 4) and empty.scale_confidence.shape == (0, 2) and table["width"].to_list() == [32, 10]
    )
    np.testing.assert_allclose(row.sides, boxes[:, 2:] * (1, 0.75), rtol=1e-6)  # of an image of 32 x 24


def test_a_damaged_shard_is_named_and_replaced(cache, data, teacher):
    before, shard = rows(cache), cache.shards()[1]
    content = bytearray(shard.read_bytes())
    for damage in (content[: len(content) // 2], content[:50] + b"x" + content[51:]):
        shard.write_bytes(damage)
        with pytest.raises(KDError, match=f"{shard.name} is damaged: run yolo-kd cache again"):
            list(cache.read())
        again = make_cache(
            {**QUIET, "data": data, "teacher": teacher, "kd_cache": str(cache.folder), "kd_cache_shard": 3}
        )
        assert rows(again).equals(before) and shard.exists()


def test_temporary_files_are_removed_and_other_folders_are_left_alone(tmp_path, data, teacher):
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "answers-1-2.parquet.17.tmp").write_bytes(b"PAR1")
    store = make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(folder)})
    assert not list(folder.glob("*.tmp")) and len(store.keys()) == 8
    other = tmp_path / "photos"
    other.mkdir()
    (other / "holiday.jpg").write_bytes(b"jpg")
    with pytest.raises(KDError, match="photos holds files, but is not a cache: give an empty"):
        make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(other)})
    assert [p.name for p in other.iterdir() if p.name != ".lock"] == ["holiday.jpg"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 2}', '{"format": 99, "names": {}}', '{"format": 2, "names": 3}']
)
def test_a_damaged_or_foreign_manifest_is_an_error(cache, content):
    (cache.folder / "manifest.json").write_text(content)
    message = (
        "has format 99, this release reads format 2: delete" if "99" in content else "is damaged or belongs to another"
    )
    with pytest.raises(KDError, match=message):
        cache.manifest()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kd_cache_imgsz": 96}, "imgsz=64 is stored, 96 requested"),
        ({"kd_cache_flip": True}, "flip=False is stored, True requested"),
    ],
)
def test_answers_with_other_settings_are_refused(cache, data, teacher, change, message):
    with pytest.raises(KDError, match=message):
        make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(cache.folder), **change})


def test_a_rerun_answers_only_what_is_missing(tmp_path, teacher, monkeypatch):
    data = draw_dataset(tmp_path / "d", images=6)
    given = {**QUIET, "data": str(data), "teacher": teacher, "kd_cache": str(tmp_path / "c"), "kd_cache_shard": 2}
    first = rows(make_cache(given))
    shards = {p: p.stat().st_mtime_ns for p in Store(tmp_path / "c").shards()}
    image = cv2.imread(str(tmp_path / "d/images/train/0.png"))
    cv2.imwrite(str(tmp_path / "d/images/train/new.png"), 255 - image)
    (tmp_path / "d/images/train/copy.png").write_bytes((tmp_path / "d/images/train/3.png").read_bytes())
    (tmp_path / "d/images/train/5.png").rename(tmp_path / "d/images/train/renamed.png")
    answered = []
    from ultralytics_kd.cache import answering

    call = answering.Answerer.__call__
    monkeypatch.setattr(answering.Answerer, "__call__", lambda s, i, h, k: (answered.extend(k), call(s, i, h, k))[1])
    again = make_cache(given)
    assert answered == [image_key(tmp_path / "d/images/train/new.png")]
    assert {p: p.stat().st_mtime_ns for p in again.shards() if p in shards} == shards
    assert rows(again).filter(pl.col("key").is_in(first["key"].to_list())).equals(first)
    make_cache(given)
    assert len(answered) == 1


def test_a_renamed_teacher_goes_on_in_its_folder_whether_it_is_named_or_not(tmp_path, data, teacher):
    first, renamed = tmp_path / "first.pt", tmp_path / "renamed.pt"
    given = {**QUIET, "data": data, "project": str(tmp_path / "runs")}
    shutil.copy(teacher, first)
    named = make_cache({**given, "teacher": str(first), "kd_cache": str(tmp_path / "c")})
    unnamed = make_cache({**given, "teacher": str(first)})
    first.rename(renamed)
    for store in (named, unnamed):
        times = [p.stat().st_mtime_ns for p in store.shards()]
        again = make_cache(
            {**given, "teacher": str(renamed), "kd_cache": str(store.folder) if store is named else True}
        )
        assert again.folder == store.folder and [p.stat().st_mtime_ns for p in again.shards()] == times


def test_answers_go_on_in_the_precision_that_they_began_with_unless_another_is_given(tmp_path, data, teacher):
    given = {**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c")}
    make_cache({**given, "kd_precision": "bf16"})  # as on another device
    assert make_cache(given).manifest().precision == "bf16"
    with pytest.raises(KDError, match="precision=bf16 is stored, fp32 requested"):
        make_cache({**given, "kd_precision": "fp32"})


def test_new_images_among_answered_ones_share_a_shard(tmp_path, teacher):
    data = draw_dataset(tmp_path / "d", images=8)
    given = {**QUIET, "data": str(data), "teacher": teacher, "kd_cache": str(tmp_path / "c"), "kd_cache_shard": 2}
    before = len(make_cache(given).shards())
    for i in range(0, 8, 2):  # one beside every second image of the sorted list
        image = cv2.imread(str(tmp_path / f"d/images/train/{i}.png"))
        cv2.imwrite(str(tmp_path / f"d/images/train/{i}x.png"), 255 - image)
    again = make_cache(given)
    assert len(again.shards()) == before + 2 and again.count() == 12


def test_the_command_after_a_part_of_the_images_names_the_part(data, teacher, tmp_path, caplog):
    LOGGER.propagate = True
    make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c"), "fraction": 0.5})
    LOGGER.propagate = False
    assert "fraction=0.5" in caplog.text.partition("yolo-kd train")[2]


def test_a_cache_reads_ndjson_as_a_training_does(data, teacher, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "convert_ndjson_to_yolo_if_needed", lambda given: asked.append(given) or data)
    make_cache({**QUIET, "data": "set.ndjson", "teacher": teacher, "kd_cache": str(tmp_path / "c")})
    assert asked == ["set.ndjson"]


def test_an_image_that_was_turned_with_its_time_kept_is_noticed(tmp_path, teacher, quick):
    data = draw_dataset(tmp_path / "d", images=4)
    file = tmp_path / "d/images/train/0.png"
    image = cv2.imread(str(file))
    cv2.imwrite(str(file), image[:-8])
    store = make_cache({**QUIET, "data": str(data), "teacher": teacher, "kd_cache": str(tmp_path / "c")})
    stat = file.stat()
    cv2.imwrite(str(file), image[:-8].transpose(1, 0, 2))
    content = file.read_bytes().ljust(stat.st_size, b"\0")
    if len(content) != stat.st_size:
        pytest.skip("the turned image needs more bytes")
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(KDError, match=r"0.png has 56x64 pixels, and its stored answer is to 64x56"):
        YOLO(STUDENT).train(**{**quick, "data": str(data), "teacher": teacher, "kd_cache": str(store.folder)})


CODE = """
import sys
from ultralytics_kd.cache import make_cache, store
kill = int(sys.argv[1])
if kill >= 0:  # at another random moment in each run: before, while or after a file is written
    import os, random, signal
    random.seed(kill)
    def hook(f):
        def g(*a):
            if random.random() < 0.15: os.kill(os.getpid(), signal.SIGKILL)
            r = f(*a)
            if random.random() < 0.1: os.kill(os.getpid(), signal.SIGKILL)
            return r
        return g
    os.replace, os.fsync = hook(os.replace), hook(os.fsync)
    from ultralytics_kd.cache.answering import Answerer
    Answerer.__call__ = hook(Answerer.__call__)
make_cache({"data": sys.argv[2], "teacher": sys.argv[3], "kd_cache": sys.argv[4], "kd_cache_shard": 3, "workers": 0,
            "device": "cpu", "batch": 2, "imgsz": 64})
"""


@pytest.mark.slow
@pytest.mark.nightly
def test_a_cache_that_was_killed_repeatedly_equals_one_that_was_not(tmp_path, teacher):
    """After SIGKILL at random points at most one shard is lost, and the finished cache has the same files."""
    most = 10 if os.environ.get("ULTRALYTICS_KD_TEST_KILLS") else 3
    data = str(draw_dataset(tmp_path / "d", images=24))

    def run(kill, folder):
        return subprocess.run([sys.executable, "-c", CODE, str(kill), data, teacher, folder], capture_output=True)

    assert run(-1, str(tmp_path / "whole")).returncode == 0
    kills, attempt, before = 0, 0, 0
    while kills < most:
        attempt += 1
        done = run(attempt, str(tmp_path / "cut"))
        if done.returncode == 0:  # it was not killed: delete most shards and begin again
            for path in random.Random(attempt).sample(Store(tmp_path / "cut").shards(), 6):
                path.unlink()
            before = 0
            continue
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
        cut = Store(tmp_path / "cut")
        assert not cut.damaged() and len(cut.shards()) >= before
        before = len(cut.shards())
    assert run(-1, str(tmp_path / "cut")).returncode == 0
    whole, cut = Store(tmp_path / "whole"), Store(tmp_path / "cut")
    assert [p.name for p in whole.shards()] == [p.name for p in cut.shards()] and len(whole.shards()) == 8
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(whole.shards(), cut.shards()))
    assert whole.manifest() == cut.manifest() and not list(cut.folder.glob("*.tmp"))


@pytest.mark.nightly
def test_ray_gives_the_same_rows(tmp_path, data, teacher, cache):
    pytest.importorskip("ray")
    given = {**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "r"), "kd_cache_shard": 3, "ray": 2}
    spread = make_cache(given)
    assert rows(spread).equals(rows(cache)) and len(spread.keys()) == 8
    assert [p.name for p in spread.shards()] == [p.name for p in cache.shards()]


# Answers --------------------------------------------------------------------------------------------------------------
@pytest.mark.core
@pytest.mark.parametrize("cfg", [TEACHER, "yolo11n.yaml"])
def test_answers_are_the_teachers_predictions(tmp_path, cfg):
    """Boxes, confidence and classes equal those of `predict` with class-agnostic NMS, in images of any shape."""
    torch.manual_seed(0)
    teacher = save_model(tmp_path / "t.pt", cfg)
    data = draw_dataset(tmp_path / "d", images=3)
    rng = np.random.default_rng(0)
    for name, shape in (("wide", (40, 90, 3)), ("high", (200, 70, 3))):
        cv2.imwrite(str(tmp_path / f"d/images/train/{name}.png"), rng.integers(0, 255, shape, dtype=np.uint8))
    given = {"kd_cache": str(tmp_path / "c"), "batch": 2, "kd_cache_scales": 1}
    store = make_cache({**QUIET, "data": data, "teacher": teacher, **given})
    for file in sorted((tmp_path / "d/images/train").glob("*.png")):
        (result,) = StockYOLO(teacher).predict(
            str(file),
            imgsz=64,
            conf=0.05,
            iou=0.7,
            max_det=100,
            agnostic_nms=True,
            rect=False,
            end2end=False,  # answers come from the one2many branch
            verbose=False,
            save=False,
        )
        boxes, probs = stored(store, file)
        expected = result.boxes
        assert len(boxes) == len(expected) > 0
        np.testing.assert_allclose(np.sort(boxes, 0), np.sort(expected.xywhn.numpy(), 0), atol=5e-3)
        np.testing.assert_allclose(probs.max(1), expected.conf.numpy(), atol=1e-3)
        assert (probs.argmax(1) == expected.cls.numpy()).mean() >= 0.9  # the order of equal probabilities is open


def test_teachers_that_spell_a_class_differently_answer_for_the_same_class(tmp_path, data, teacher):
    """A running teacher is matched by itself, so `Disc` of one and `disc` of another both teach `disc`."""
    other = str(save_model(tmp_path / "other.pt", TEACHER, {0: "Disc", 1: "hard_box", 2: "lid"}))
    given = {**QUIET, "data": data, "teacher": [teacher, other], "kd_cache": str(tmp_path / "c")}
    store = make_cache({**given, "kd_cache_scales": 1})
    assert list(store.manifest().names.values()) == [*NAMES.values(), "hard_box", "lid"]
    assert match_classes(NAMES, store.manifest().names).student == [0, 1, 2]


@pytest.mark.parametrize(
    "names, key",
    [
        ([{0: "Disc"}, {0: "disc"}], "disc"),
        ([{0: "Disc", 1: "disc"}, {0: "disc"}], "Disc"),  # they are two classes of one teacher
    ],
)
def test_spelling_counts_only_if_a_teacher_tells_classes_apart_by_it(names, key):
    assert spelling(names)("Disc") == key


def test_fused_views_average_boxes_and_probabilities_of_teachers_with_the_class():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    views = [
        Detections(boxes, torch.tensor([[0.8, 0.0]])),
        Detections(boxes + torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.tensor([[0.4, 0.2]])),
        Detections(torch.tensor([[50.0, 50.0, 60.0, 60.0]]), torch.tensor([[0.0, 0.6]])),
    ]
    (fused,) = fuse([[view] for view in views], torch.tensor([3.0, 2.0]), conf=0.05)
    assert fused.boxes[0].tolist() == pytest.approx([0, 0, 10 + 1 / 3, 10])  # weights 0.8 and 0.4
    assert fused.probs[0].tolist() == pytest.approx([1.2 / 3, 0.2 / 2])
    assert fused.probs[1].tolist() == pytest.approx([0, 0.6 / 2]) and len(fused.boxes) == 2
    nothing = [[Detections(torch.zeros(0, 4), torch.zeros(0, 2))]] * 3
    assert fuse(nothing, torch.tensor([3.0, 2.0]), 0.05)[0].boxes.shape == (0, 4)


def test_mirrored_and_scaled_views_return_boxes_of_the_original_image(tmp_path, data, teacher):
    """Boxes of a mirrored or scaled view, mapped back to the image, are close to those of the image itself."""
    from ultralytics_kd.cache.answering import Answerer
    from ultralytics_kd.cache.work import LetterboxedImages
    from ultralytics_kd.teachers import open_teacher

    files = sorted(str(p) for p in (Path(data).parent / "images/train").glob("*.png"))[:2]
    model = open_teacher(teacher)
    model.inspect()
    answerer = Answerer([model], replace(MANIFEST, names=NAMES), torch.device("cpu"))
    images = torch.stack([LetterboxedImages(files, 64, 3)[i][0] for i in range(2)]).float() / 255
    symmetric = (images + images.flip(3)) / 2
    plain = answerer._view(model, answerer.class_indices[0], symmetric, 1.0, False)
    mirrored = answerer._view(model, answerer.class_indices[0], symmetric, 1.0, True)
    for a, b in zip(plain, mirrored):
        boxes = torch.stack((64 - b.boxes[:, 2], b.boxes[:, 1], 64 - b.boxes[:, 0], b.boxes[:, 3]), 1)
        torch.testing.assert_close(boxes, a.boxes, rtol=0, atol=0.05)
        torch.testing.assert_close(b.probs, a.probs, rtol=0, atol=1e-3)
    known = {"imgsz": 128, "conf": 0.05, "iou": 0.7, "max_det": 100, "agnostic_nms": True, "end2end": False}
    larger = torch.nn.functional.interpolate(images, scale_factor=2.0, mode="bilinear")
    results = StockYOLO(teacher).predict(larger, **known, verbose=False, save=False)
    for result, scaled in zip(results, answerer._view(model, answerer.class_indices[0], images, 2.0, False)):
        assert len(scaled.boxes) == len(result.boxes) > 0
        close = (scaled.boxes.clamp(0, 64) - result.boxes.xyxy / 2).abs().amax(1) < 1e-2
        assert close.float().mean() > 0.95  # NMS may keep either of two boxes with equal scores


def test_classes_with_one_name_are_stored_apart_and_a_list_of_sides_is_the_longest_one(tmp_path, data):
    teacher = save_model(tmp_path / "t.pt", TEACHER, {0: "bolt", 1: "bolt", 2: "nut"})
    given = {**QUIET, "imgsz": [64, 32], "data": data, "teacher": str(teacher), "kd_cache": str(tmp_path / "c")}
    store = make_cache({**given, "fraction": 2, "kd_cache_scales": 1.0})
    manifest = store.manifest()
    assert manifest.names == {0: "bolt", 1: "bolt", 2: "nut"} and manifest.imgsz == 64
    probs = np.concatenate([row.probs for table in store.read() for row in stored_rows(table, manifest)])
    assert (probs[:, 0] != probs[:, 1]).any() and probs.any(0).all()
    assert numbered({0: "bolt", 1: "nut", 2: "bolt"}) == [("bolt", 0), ("nut", 0), ("bolt", 1)]


@pytest.mark.nightly
def test_answers_to_images_of_other_channels_are_refused(tmp_path, data, teacher, quick):
    store = make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c"), "fraction": 2})
    grey = YAML.load(data) | {"channels": 1}
    YAML.save(tmp_path / "grey.yaml", grey)
    with pytest.raises(KDError, match=r"holds answers to images of 3 channel\(s\), and those of the data have 1: "):
        YOLO(STUDENT).train(
            **quick | {"data": str(tmp_path / "grey.yaml")}, teacher=teacher, kd_cache=str(store.folder)
        )


def test_several_teachers_scales_and_mirror_images_make_one_set(tmp_path, data, teacher):
    torch.manual_seed(1)
    other = save_model(tmp_path / "other.pt", "yolo11n.yaml", {0: "bar", 1: "disc", 2: "star"})
    given = {"kd_cache_scales": [1.0, 1.5], "kd_cache_flip": True, "kd_cache_conf": 0.01}
    store = make_cache(
        {**QUIET, "data": data, "teacher": [teacher, str(other)], "kd_cache": str(tmp_path / "c"), **given}
    )
    manifest = store.manifest()
    assert manifest.names == {0: "disc", 1: "box", 2: "bar", 3: "star"}
    assert [t["name"] for t in manifest.teachers] == ["teacher.pt", "other.pt"]
    for table in store.read():
        for row in stored_rows(table, manifest):
            highest = row.scale_confidence.max(1) / 65535
            assert len(row.boxes) and row.probs.shape[1] == 4 and row.scale_confidence.shape[1] == 2
            assert (highest > 0.01).all() and (np.diff(highest) <= 1e-4).all()
            assert (row.probs.max(1) <= row.scale_confidence.max(1)).all()


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"teacher": None}, KDError, "needs teacher=PATH"),
        ({"data": None}, KDError, "needs data=PATH"),
        ({"epochs": 3}, KDError, "'epochs' is not an argument of 'yolo-kd cache'"),
        ({"kd_cache_topk": 0}, KDError, "whole number of 1 or more"),
        ({"kd_cache_conf": 1.5}, KDError, "0 or more and less than 1"),
        ({"kd_cache_conf": "high"}, KDTypeError, "must be a number"),
        ({"kd_cache_scales": []}, KDError, "between 0.1 and 10"),
        ({"kd_cache_scales": [0.0]}, KDError, "between 0.1 and 10"),
        ({"kd_cache_flip": 1}, KDTypeError, "must be True or False"),
        ({"ray": -2}, KDError, "whole number of 1 or more"),
        ({"teacher": "none.pt"}, KDError, "none.pt was not found"),
    ],
)
def test_arguments_are_checked_before_anything_is_written(tmp_path, data, teacher, given, error, message):
    with pytest.raises(error, match=message):
        make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c"), **given})
    assert not (tmp_path / "c").exists()


def test_the_command_makes_a_cache(tmp_path, data, teacher):
    folder = tmp_path / "c"
    arguments = [f"{k}={v}" for k, v in QUIET.items()]
    assert main(["cache", f"data={data}", f"teacher={teacher}", f"kd_cache={folder}", *arguments]) == 0
    assert len(Store(folder).keys()) == 8
    assert main(["cache", f"data={data}"]) == 1
    assert main(["cache", "help"]) == 0


# Training -------------------------------------------------------------------------------------------------------------
@pytest.mark.core
def test_a_training_from_stored_answers_keeps_no_teacher_in_memory(quick, teacher, cache):
    from ultralytics_kd.teachers import open_teacher

    def living_models():
        gc.collect()
        return [o for o in gc.get_objects() if isinstance(o, torch.nn.Module) and hasattr(o, "yaml")]

    model, record, others = (
        YOLO(STUDENT),
        {},
        {id(m): m for m in living_models()},
    )  # models that other tests keep

    def look(trainer):
        count = sum(p.numel() for p in open_teacher(teacher).original.parameters())
        models = [m for m in living_models() if id(m) not in others]
        record["teachers"] = [m for m in models if sum(p.numel() for p in m.parameters()) == count]
        record["teacher"] = trainer.teacher.original, trainer.teacher.model, trainer.teacher.head
        record["items"] = dict(trainer.loss_items)
        gc.collect()

    model.add_callback("on_train_epoch_end", look)
    metrics = model.train(**{**quick, "teacher": teacher, "kd_cache": str(cache.folder)})
    assert not record["teachers"] and record["teacher"] == (None, None, None)
    assert record["items"]["kd_cls"] > 0 and record["items"]["kd_box"] > 0
    header = model.trainer.csv.read_text().splitlines()[0].split(",")  # terms that are off, and to val images, are not
    assert [name for name in header if "/kd" in name] == ["train/kd_cls", "train/kd_box"]
    assert "val/box_loss" in header and not any("/kd" in name for name in model.trainer.metrics)
    assert metrics is not None and model.trainer.teacher_metrics
    assert YAML.load(model.trainer.save_dir / "args.yaml")["kd_cache"] == str(cache.folder.resolve())
    assert model.trainer.initialized  # the teacher was there for kd_init


@pytest.mark.core
def test_with_augmentation_off_a_batch_holds_the_teachers_predictions_for_its_images(quick, tmp_path, teacher):
    """The answers in a batch equal the teacher's predictions for the batch's image tensor, in images of any shape."""
    data = draw_dataset(tmp_path / "d", images=3)
    rng = np.random.default_rng(0)
    for i, shape in enumerate(((32, 64, 3), (128, 64, 3))):
        cv2.imwrite(str(tmp_path / f"d/images/train/other{i}.png"), rng.integers(0, 255, shape, dtype=np.uint8))
    off = ("mosaic", "translate", "scale", "fliplr", "hsv_h", "hsv_s", "hsv_v")
    given = {**quick, **dict.fromkeys(off, 0.0), "data": str(data), "teacher": teacher, "kd_cache": True, "epochs": 1}
    batches = []
    model = YOLO(STUDENT)
    model.add_callback("on_train_start", lambda t: batches.extend(t.preprocess_batch(b) for b in t.train_loader))
    model.train(**given, augmentations=[])
    known = {"imgsz": 64, "conf": 0.05, "iou": 0.7, "max_det": 100, "agnostic_nms": True, "end2end": False}
    areas = {"other0.png": (0.0, 0.25, 1.0, 0.75), "other1.png": (0.25, 0.0, 0.75, 1.0)}  # the image inside its padding
    count = 0
    for batch in batches:
        results = StockYOLO(teacher).predict(batch["img"], **known, verbose=False, save=False)
        for i, result in enumerate(results):
            left, top, right, bottom = areas.get(Path(batch["im_file"][i]).name, (0.0, 0.0, 1.0, 1.0))
            low, high = torch.tensor([left, top] * 2), torch.tensor([right, bottom] * 2)
            predicted = result.boxes.xyxyn.clamp(low, high)
            large = ((predicted[:, 2:] - predicted[:, :2]) * 64 > 2.1).all(1)  # Ultralytics drops smaller boxes
            answer = batch["teacher"]
            of_image = answer.batch_idx == i
            boxes, probs = xywh2xyxy(answer.bboxes[of_image]), answer.probs[of_image]
            distance = torch.cdist(boxes, predicted, p=float("inf"))
            assert (distance.amin(1) < 1e-3).float().mean() > 0.95  # NMS may keep either of two equal boxes
            assert (distance.amin(0)[large] < 1e-3).float().mean() > 0.95
            score = torch.where(distance < 1e-3, result.boxes.conf, -1).amax(1)
            assert ((probs.amax(1) - score).abs() < 1e-3).float().mean() > 0.9
            count += len(boxes)
    assert count > 50


def test_kd_cache_true_makes_the_cache_once(quick, teacher):
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1, "teacher": teacher, "kd_cache": True})
    folder = Path(model.trainer.args.kd_cache)
    assert folder.parent == Path(quick["project"]).resolve() / "kd_cache" and len(Store(folder).keys()) == 8
    shards = [p.stat().st_mtime_ns for p in Store(folder).shards()]
    again = YOLO(STUDENT)
    again.train(**{**quick, "epochs": 1, "teacher": teacher, "kd_cache": True, "exist_ok": True})
    assert (
        again.trainer.args.kd_cache == str(folder) and [p.stat().st_mtime_ns for p in Store(folder).shards()] == shards
    )


def test_making_a_cache_leaves_a_training_the_random_numbers_that_it_has_alone(quick, teacher):
    states = []

    def keep(_):
        states.append((random.getstate(), torch.get_rng_state().tolist()))

    for given in ({}, {"teacher": teacher, "kd_cache": True}):
        model = YOLO(STUDENT)
        model.add_callback("on_train_start", keep)
        model.train(**{**quick, "epochs": 1, "val": False}, **given)
    assert states[0] == states[1]


@pytest.mark.core
def test_a_training_from_stored_answers_resumes(quick, teacher, cache):
    model = YOLO(STUDENT)

    def stop(trainer):
        if trainer.epoch == 0:
            raise KeyboardInterrupt

    model.add_callback("on_model_save", stop)
    with pytest.raises(KeyboardInterrupt):
        model.train(**{**quick, "teacher": teacher, "kd_cache": str(cache.folder)})
    resumed = YOLO(str(Path(quick["project"]) / "run/weights/last.pt"))
    items = []
    resumed.add_callback("on_train_epoch_end", lambda t: items.append(float(t.tloss["kd_box"])))
    resumed.train(resume=True)
    assert resumed.trainer.start_epoch == 1 and len(items) == 1 and items[0] > 0


@pytest.mark.parametrize(
    "args, message",
    [
        ({"kd_feat": 1.0}, "'kd_feat=1.0' compares whole feature maps, and kd_cache stores detections"),
        ({"kd_box_loss": "ld"}, "'kd_box_loss=ld' compares distributions over box bins"),
        (
            {"kd_cache": "nowhere"},
            r"kd_cache=nowhere holds no answers \(manifest.json is missing\): make them with yolo-kd cache",
        ),
        ({"kd_cache": 3}, "it must be True, False or a folder"),
        ({"teacher": None}, "'kd_cache=.*' has no effect without a teacher"),
    ],
)
def test_unsupported_arguments_are_refused_before_training(quick, teacher, cache, args, message):
    with pytest.raises((KDError, TypeError), match=message):
        YOLO(STUDENT).train(**{**quick, "teacher": teacher, "kd_cache": str(cache.folder), **args})
    assert not (Path(quick["project"]) / "run").exists()


def test_answers_of_another_teacher_or_to_other_images_are_refused(quick, tmp_path, cache, teacher):
    torch.manual_seed(5)
    other = save_model(tmp_path / "other.pt", TEACHER)
    with pytest.raises(KDError, match=r"holds answers of other weights \(teacher.pt\)"):
        YOLO(STUDENT).train(**{**quick, "teacher": str(other), "kd_cache": str(cache.folder)})
    data = draw_dataset(tmp_path / "more", images=10, seed=7)
    with pytest.raises(KDError, match="has no answer to 10 of 10 training images \\(for example"):
        YOLO(STUDENT).train(**{**quick, "data": str(data), "teacher": teacher, "kd_cache": str(cache.folder)})


def test_answers_from_before_a_teachers_names_were_corrected_are_refused(quick, tmp_path, cache, teacher):
    """Its weights are the same, and the answers are in the old names."""
    model = torch_load(teacher)
    model["model"].names = {i: name for i, name in enumerate(reversed(NAMES.values()))}
    torch.save(model, tmp_path / "corrected.pt")
    with pytest.raises(KDError, match=r"was made when teacher=.* had other class names \('disc', now 'bar'\)"):
        YOLO(STUDENT).train(**{**quick, "teacher": str(tmp_path / "corrected.pt"), "kd_cache": str(cache.folder)})


def test_classes_of_stored_answers_are_matched(cache, data):
    """Classes in another order, fewer classes, and several teacher classes for one match as for a running teacher."""
    files = sorted(str(p) for p in (Path(data).parent / "images/train").glob("*.png"))
    whole = StoredAnswers(cache, files, match_classes(NAMES, NAMES), 64)
    fewer = StoredAnswers(cache, files, match_classes({0: "bar", 1: "other"}, NAMES), 64)
    merged = StoredAnswers(cache, files, match_classes({0: "thing"}, NAMES, {"disc": "thing", "box": "thing"}), 64)
    for file in files:
        (boxes, relative), (some, bar), (_, thing) = whole[file], fewer[file], merged[file]
        highest = relative[:, :3] * relative[:, 3:-2].max(1, keepdims=True)  # at the scale with the highest confidence
        keep, either = highest[:, 2] > 0.05, highest[:, :2].max(1) > 0.05
        # Relative to the most probable class, taught or not, because the confidence per scale is that of this class
        assert np.array_equal(some, boxes[keep]) and np.array_equal(bar[:, 0], relative[keep, 2])
        assert np.array_equal(thing[:, 0], relative[either, :2].max(1))
        assert np.array_equal(bar[:, 1:], relative[keep, 3:])  # confidence per scale, and sides
    boxes, probs = whole[files[0]]
    boxes[:], probs[:] = 9, 9  # a copy: the next epoch reads the answers again
    assert whole[files[0]][0].max() < 2


def test_only_changed_images_are_read_again(cache, data, monkeypatch):
    """Images are read only if their file's size or time has changed."""
    files = sorted(str(p) for p in (Path(data).parent / "images/train").glob("*.png"))
    from ultralytics_kd.cache import keys

    read = []
    monkeypatch.setattr(keys, "image_key", lambda f: (read.append(f), image_key(f))[1])
    assert len(cache.image_keys(files)) == 8 and not read
    os.utime(files[0], (time.time() + 5, time.time() + 5))
    assert cache.image_keys(files)[files[0]] == image_key(files[0]) and read == [files[0]]
    (index,) = cache.folder.glob("files-*.parquet")
    index.write_bytes(b"damaged")  # a damaged index is ignored
    assert len(cache.image_keys(files)) == 8 and len(read) == 9
    assert json.loads((cache.folder / "manifest.json").read_text())["versions"]["torch"] == torch.__version__
