"""Stored answers stay on disk: the file with single answers, its making, its damage, and those who read it."""

from __future__ import annotations

import errno
import importlib.util
import json
import multiprocessing
import os
import pickle
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from conftest import STUDENT
from test_cache import MANIFEST, QUIET
from ultralytics.utils import LOGGER

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.cache import copying, lookup, make_cache
from ultralytics_kd.cache import store as store_module
from ultralytics_kd.cache.answers import StoredAnswers
from ultralytics_kd.cache.keys import KeyIndex, image_key
from ultralytics_kd.cache.lookup import uri_of
from ultralytics_kd.cache.shards import Row
from ultralytics_kd.cache.store import Store
from ultralytics_kd.teachers.class_map import match_classes

SPEED = Path(__file__).parents[1] / "examples" / "speed"
sys.path.insert(0, str(SPEED))  # as Python does for a script
spec = importlib.util.spec_from_file_location("stored_answers", SPEED / "stored_answers.py")
measured = importlib.util.module_from_spec(spec)
sys.modules["stored_answers"] = measured  # its dataclass looks up its own module
spec.loader.exec_module(measured)

NAMES = {0: "disc", 1: "box", 2: "bar"}
SAME = match_classes(NAMES, NAMES)


@pytest.fixture
def drawn(tmp_path) -> tuple[Store, list[str]]:
    """Return a cache of drawn answers in three shards, and its images; one has no detection, one is a copy."""
    return draw(tmp_path / "c", tmp_path, range(7), [0.5, 1.0])


def draw(folder: Path, images: Path, numbers: range, scales: list[float]) -> tuple[Store, list[str]]:
    """Write images and drawn answers to them."""
    store, rng, rows, files = Store(folder), np.random.default_rng(numbers.start), [], []
    store.begin(replace(MANIFEST, names=NAMES, scales=scales))
    for i in numbers:
        file, count = images / f"{i}.png", int(rng.integers(1, 6)) if i else 0
        file.write_bytes(f"image {i}".encode())
        boxes, probs = rng.random((count, 4), dtype=np.float32), rng.random((count, 3)) * rng.random((count, 1))
        confidence = probs.max(1, keepdims=True, initial=0) * rng.random((count, len(scales)))
        rows.append(Row(image_key(file), 30 + i, 20, boxes, probs, confidence))
        files.append(str(file))
    for first in range(0, len(rows), 3):
        store.write(rows[first : first + 3])
    copy = images / f"copy{numbers.start}.png"
    copy.write_bytes(Path(files[-1]).read_bytes())
    store.image_keys([*files, str(copy)], write=True)
    return store, [*files, str(copy)]


def equal(answers: object, others: object, files: list[str]) -> bool:
    """Return whether all answers are the same, bit for bit."""
    pairs = [(a, b) for f in files for a, b in zip(answers[f], others[f])]
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


def read(answers: StoredAnswers, file: str) -> bytes:
    """Return an answer as bytes."""
    return b"".join(part.tobytes() for part in answers[file])


@pytest.fixture
def log(caplog):
    """Return what Ultralytics logs."""
    LOGGER.propagate = True
    yield caplog
    LOGGER.propagate = False


# The same numbers -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scales", [[1.0], [0.5, 0.7, 1.0, 1.4]])
@pytest.mark.parametrize(
    "classes",
    [
        SAME,
        match_classes({0: "bar", 1: "other"}, NAMES),
        match_classes({0: "thing", 1: "bar"}, NAMES, {"disc": "thing", "box": "thing", "bar": "bar"}),
    ],
)
def test_answers_on_disk_are_those_in_memory_bit_for_bit(tmp_path, classes, scales):
    store, files = draw(tmp_path / "c", tmp_path, range(40), scales)
    whole, disk = (way(store, files, classes, 96) for way in (measured.AnswersInMemory, StoredAnswers))
    assert equal(disk, whole, files) and sum(len(disk[f][0]) for f in files) > 40
    boxes, rows = disk[files[1]]
    boxes[:], rows[:] = 9, 9  # augmentation changes them
    assert equal(disk, whole, files) and disk[files[0]][0].shape == (0, 4)


def test_few_answers_are_kept(drawn, monkeypatch):
    monkeypatch.setattr("ultralytics_kd.cache.answers.RECENT", 2)
    store, files = drawn
    answers = StoredAnswers(store, files, SAME, 64)
    whole = measured.AnswersInMemory(store, files, SAME, 64)
    assert equal(answers, whole, files * 3) and len(answers._recent) == 2


def test_memory_grows_by_32_bytes_for_each_image(drawn):
    store, files = drawn
    answers = StoredAnswers(store, files * 100, SAME, 64)
    arrays = [v for v in vars(answers).values() if isinstance(v, np.ndarray)]
    assert sum(a.nbytes for a in arrays) == 32 * 100 * len(files)
    assert all(a.base is None for a in arrays)  # no larger one is kept alive
    with pytest.raises(KeyError):
        answers["another.png"]


@pytest.mark.parametrize("way", ["fork", pytest.param("spawn", marks=pytest.mark.nightly)])
def test_other_processes_read_what_this_one_reads(drawn, way):
    store, files = drawn
    answers = StoredAnswers(store, files, SAME, 64)
    expected = [read(answers, f) for f in files]  # it is open here before the others begin
    with multiprocessing.get_context(way).Pool(2) as pool:
        assert pool.starmap(read, [(answers, f) for f in files]) == expected
    assert [read(answers, f) for f in files] == expected
    assert [read(pickle.loads(pickle.dumps(answers)), f) for f in files] == expected


def opened(folder: Path, files: list[str]) -> tuple[list[bytes], int]:
    """Open a cache and return its answers, and which file they are from."""
    answers = StoredAnswers(Store(folder), files, SAME, 64)
    return [read(answers, f) for f in files], answers.lookup.file.stat().st_ino


@pytest.mark.nightly
def test_of_several_processes_that_open_a_cache_one_makes_the_file(drawn):
    store, files = drawn
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(opened, [(store.folder, files)] * 3)
    assert all(each == found[0] for each in found)


# Making the file ------------------------------------------------------------------------------------------------------
def test_a_cache_is_made_with_the_file_and_a_rerun_keeps_or_completes_it(tmp_path, data, teacher, monkeypatch):
    given = {**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c"), "kd_cache_shard": 3}
    store = make_cache({**given, "fraction": 4})
    file = store.folder / copying.NAME
    before = file.stat()
    make_cache({**given, "fraction": 4})
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    make_cache(given)
    monkeypatch.setattr(copying, "write_lookup", lambda *_: pytest.fail("the file is complete"))
    files = sorted(str(p) for p in (Path(data).parent / "images/train").glob("*.png"))
    answers = StoredAnswers(store, files, match_classes(store.manifest().names, store.manifest().names), 64)
    assert answers.lookup.file == file and len(files) == 8 and all(len(answers[f][0]) for f in files)


def test_new_shards_are_added_and_the_file_of_an_older_release_is_made(drawn, tmp_path):
    store, files = drawn
    assert not (store.folder / copying.NAME).exists()  # as 0.2.0 left it
    early = StoredAnswers(store, files, SAME, 64)
    expected = [read(early, f) for f in files]
    store, more = draw(store.folder, tmp_path, range(10, 15), [0.5, 1.0])
    before = early.lookup.file.stat().st_ino
    assert opened(store.folder, files) == (expected, before)  # nothing is missing
    late = StoredAnswers(store, files + more, SAME, 64)
    assert equal(late, measured.AnswersInMemory(store, files + more, SAME, 64), files + more)
    assert late.lookup.file.stat().st_ino != before and [read(early, f) for f in files] == expected
    store.shards()[0].unlink()
    with pytest.raises(KDError, match=r"has no answer to \d of 14 training images \(for example"):
        StoredAnswers(store, files + more, SAME, 64)


def test_a_shard_that_was_damaged_later_is_an_error_and_one_that_was_copied_is_not(drawn):
    store, files = drawn
    expected, shard = opened(store.folder, files), store.shards()[1]
    os.utime(shard, (1, 1))
    assert opened(store.folder, files) == expected
    content = shard.read_bytes()
    shard.write_bytes(content[:60] + b"x" + content[61:])
    with pytest.raises(KDError, match=f"{shard.name} is damaged: run yolo-kd cache again"):
        opened(store.folder, files)


# Damage, and files of strangers ---------------------------------------------------------------------------------------
def test_no_damage_to_the_file_gives_other_answers(drawn):
    """Wherever bytes are changed, answers are the same, or an error says what to do."""
    store, files = drawn
    expected, file = opened(store.folder, files)[0], store.folder / copying.NAME
    content, outcomes = file.read_bytes(), set()
    for place in range(0, len(content), 61):
        file.write_bytes(content[:place] + bytes(b ^ 255 for b in content[place : place + 2]) + content[place + 2 :])
        try:
            assert opened(store.folder, files)[0] == expected
            outcomes.add(file.read_bytes() == content)
        except KDError as e:
            assert "answers.sqlite is damaged (" in str(
                e
            ) or "run yolo-kd cache with the data, fraction and kd_unlabeled of this" in str(e)
            outcomes.add("error")
    assert outcomes == {True, False, "error"}  # made again, not noticed in unused bytes, reported
    for short in (content[: len(content) // 2], content[:100], b""):
        file.write_bytes(short)
        assert opened(store.folder, files)[0] == expected


def test_a_rerun_of_yolo_kd_cache_replaces_a_file_that_lost_an_answer(tmp_path, data, teacher):
    given = {**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c")}
    store = make_cache(given)
    with closing(sqlite3.connect(store.folder / copying.NAME)) as db:
        db.execute("DELETE FROM answers WHERE rowid = 3")
        db.commit()
    files = sorted(str(p) for p in (Path(data).parent / "images/train").glob("*.png"))
    with pytest.raises(KDError, match="has no answer to 1 of 8 training images"):
        opened(store.folder, files)
    assert len(opened(make_cache(given).folder, files)[0]) == 8


@pytest.mark.parametrize(
    "change, said",
    [
        (
            "UPDATE answers SET boxes = CAST(x'0000c07f' || substr(boxes, 5) AS BLOB)",
            "a box lies outside its image",
        ),  # not a number
        (
            "UPDATE answers SET boxes = CAST(x'0000a040' || substr(boxes, 5) AS BLOB)",
            "a box lies outside its image",
        ),  # 5.0
        ("UPDATE answers SET probs = CAST(probs || x'0000' AS BLOB)", "a row is too long or too short"),
        ("UPDATE answers SET seen = x''", "a row is too long or too short"),
        ("UPDATE answers SET width = 0", "a box lies outside its image"),
        ("UPDATE answers SET height = 'high'", "not supported"),
        ("UPDATE answers SET boxes = NULL", "required"),
        ("UPDATE answers SET probs = 'text'", "required"),
    ],
)
def test_rows_with_a_checksum_that_fits_are_checked_too(drawn, change, said):
    store, files = drawn
    answers = StoredAnswers(store, files, SAME, 64)

    def checksum(*columns: object) -> int | None:
        try:
            return lookup.checksum(*columns)
        except TypeError:
            return 0

    with closing(sqlite3.connect(answers.lookup.file)) as db:
        db.create_function("crc", 6, checksum)
        db.execute(change)
        db.execute("UPDATE answers SET crc = crc(key, width, height, boxes, probs, seen)")
        db.commit()
    with pytest.raises(KDError, match=rf"answers.sqlite is damaged \(.*{said}.*\): delete it; the next training makes"):
        StoredAnswers(store, files, SAME, 64)[files[1]]


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE notes (text TEXT)",
        "CREATE TRIGGER t AFTER INSERT ON answers BEGIN SELECT 1; END",
        "DROP TABLE shards; CREATE VIEW shards AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) "
        "SELECT x AS name, x AS size, x AS mtime_ns FROM n",  # it would never end
        "UPDATE cache SET settings = '{}'",
        "DELETE FROM cache",
        "DROP TABLE answers",
    ],
)
def test_a_file_of_another_program_is_replaced(drawn, script):
    store, files = drawn
    expected, before = opened(store.folder, files)
    with closing(sqlite3.connect(store.folder / copying.NAME)) as db:
        db.executescript(script)
    found, after = opened(store.folder, files)
    assert found == expected and after != before


def test_answers_of_another_manifest_are_not_used(drawn):
    store, files = drawn
    opened(store.folder, files)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    (store.folder / "manifest.json").write_text(json.dumps({**manifest, "names": {"0": "a", "1": "b"}}))
    with pytest.raises(KDError, match="is damaged: run yolo-kd cache again"):
        opened(store.folder, files)


def test_a_link_in_place_of_the_file_is_not_followed(drawn, tmp_path):
    store, files = drawn
    opened(store.folder, files)
    (store.folder / copying.NAME).rename(tmp_path / "outside")
    (store.folder / copying.NAME).symlink_to(tmp_path / "outside")
    with pytest.raises(KDError, match=r"answers.sqlite is not a file, or is a link that leads out of the cache"):
        opened(store.folder, files)


def test_images_that_must_be_read_at_every_start_bring_the_advice_to_note_them(drawn, log):
    store, files = drawn
    opened(store.folder, files)
    assert "yolo-kd cache" not in log.text
    os.utime(files[0])
    opened(store.folder, files)
    assert f"1 of {len(files)} images were read to find their answers" in log.text


# Folders that cannot be written to ------------------------------------------------------------------------------------
@pytest.fixture
def read_only(monkeypatch):
    """Make folders of the name "c" read-only, also for root."""

    class Refusing(store_module.FileLock):
        def acquire(self, *args, **kwargs):
            if Path(self.lock_file).parent.name == "c":
                raise OSError(errno.EROFS, "Read-only file system", self.lock_file)
            return super().acquire(*args, **kwargs)

    monkeypatch.setattr(store_module, "FileLock", Refusing)


def test_answers_are_copied_if_their_folder_is_read_only(drawn, read_only, tmp_path, log):
    store, files = drawn
    with pytest.raises(KDError, match=r"c cannot be written to \(Read-only file system\): make room, or run"):
        StoredAnswers(store, files, SAME, 64)
    answers = StoredAnswers(store, files, SAME, 64, tmp_path / "run" / "answers")
    assert "For this training the answers are copied to" in log.text
    assert answers.lookup.file.parent == tmp_path / "run" / "answers"
    assert equal(answers, measured.AnswersInMemory(store, files, SAME, 64), files)
    again = StoredAnswers(store, files, SAME, 64, tmp_path / "run" / "answers")  # another process of the training
    assert again.lookup.file.stat().st_ino == answers.lookup.file.stat().st_ino


def test_making_answers_in_a_read_only_folder_is_a_sentence(tmp_path, data, teacher, read_only):
    with pytest.raises(
        KDError, match=r"c cannot be written to \(Read-only file system\): give another folder. A training"
    ):
        make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c")})


@pytest.mark.nightly
def test_a_training_from_a_read_only_cache_leaves_no_copy(tmp_path, quick, data, teacher, request):
    store = make_cache({**QUIET, "data": data, "teacher": teacher, "kd_cache": str(tmp_path / "c")})
    (store.folder / copying.NAME).unlink()
    request.getfixturevalue("read_only")
    model, seen = YOLO(STUDENT), []
    model.add_callback("on_train_start", lambda t: seen.extend(t.save_dir.glob("answers/*.sqlite")))
    model.train(**{**quick, "epochs": 1, "teacher": teacher, "kd_cache": str(store.folder)})
    assert len(seen) == 1 and not seen[0].parent.exists() and not (store.folder / copying.NAME).exists()


def test_a_full_disk_is_a_sentence_and_leaves_no_partial_file(drawn):
    store, files = drawn
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
    try:
        with pytest.raises(KDError, match=r"no space is left in .*c: make room, or run yolo-kd cache"):
            StoredAnswers(store, files, SAME, 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(store.folder.glob("*.tmp")) and len(opened(store.folder, files)[0]) == len(files)


def test_a_disk_that_only_the_partial_file_fills_is_a_sentence_too(drawn, monkeypatch):
    """Once the partial file is removed there is room again, and a probe would find nothing wrong."""
    store, files = drawn
    resource = pytest.importorskip("resource")
    full = lambda folder: errno.ENOSPC if list(folder.glob("*.tmp")) else None  # noqa: E731
    monkeypatch.setattr("ultralytics_kd.files._probe", full)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
    try:
        with pytest.raises(KDError, match="no space is left in"):
            StoredAnswers(store, files, SAME, 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Keys -----------------------------------------------------------------------------------------------------------------
def test_compact_keys_are_the_keys(drawn):
    store, files = drawn
    odd = [f for f in files if not f.endswith("2.png")] + files[:2]
    (index,) = store.folder.glob("files-*.parquet")
    for _ in range(2):
        keys = KeyIndex(store.folder).compact(odd)
        assert [key.tobytes().hex() for key in keys] == [image_key(f) for f in odd]
        index.unlink(missing_ok=True)  # then they are hashed


# The measurement ------------------------------------------------------------------------------------------------------
def test_the_table_is_of_the_figures():
    file = SPEED / "results" / "stored_answers.json"
    assert measured.to_markdown(json.loads(file.read_text())) == file.with_suffix(".md").read_text()


@pytest.mark.nightly
def test_opening_and_loading_are_measured(tmp_path):
    given = {"folder": tmp_path / "m", "images": "300", "loader": 96, "imgsz": 64, "batch": 4, "rounds": 2, "burst": 2}
    report = measured.main([f"{k}={v}" for k, v in {**given, "out": tmp_path / "out.json"}.items()])
    assert [r["way"] for r in report["opening"]] == ["memory", "disk, first time", "disk"]
    assert all(r["ms"] > 0 for r in report["loading"]) and report["loading"][0]["way"] == "plain"
    assert (tmp_path / "out.md").read_text() == measured.to_markdown(report)


def test_a_file_on_a_network_drive_is_opened_without_a_host():
    """SQLite refuses the URI file://server/share, which pathlib makes of such a path."""
    assert uri_of(PureWindowsPath(r"\\server\share\answers.sqlite")) == "file:////server/share/answers.sqlite"
    assert uri_of(PureWindowsPath(r"C:\answers.sqlite")) == "file:///C:/answers.sqlite"
    assert uri_of(PurePosixPath("/a b/answers.sqlite")) == "file:///a%20b/answers.sqlite"


def test_a_command_whose_answers_stayed_on_other_machines_says_so(drawn):
    store, _ = drawn
    keys = [*store.keys()]
    copying.complete_lookup(store, keys)
    with pytest.raises(KDError, match=r"has no answer to 1 of \d+ images.*all machines must share this folder"):
        copying.complete_lookup(store, [*keys, "0" * 32])
