"""Files that others wrote, folders that others can write to, values that nobody would expect: one sentence each."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import yaml
from test_fuzz import BOMB, MANIFEST, RECORD, a_report
from ultralytics.cfg import get_cfg

from ultralytics_kd import KDError, cli
from ultralytics_kd.bench import worker
from ultralytics_kd.bench.jobs import Job, JobFolder
from ultralytics_kd.bench.plan import make_plan
from ultralytics_kd.bench.table import markdown
from ultralytics_kd.cache import make_cache
from ultralytics_kd.cache.keys import KeyIndex
from ultralytics_kd.cache.options import CACHE_ONLY, check_options
from ultralytics_kd.cache.shards import SCHEMA, Row
from ultralytics_kd.cache.store import Store, locked
from ultralytics_kd.demo import run_demo
from ultralytics_kd.image_files import find_unlabeled
from ultralytics_kd.report import options, page, plots
from ultralytics_kd.teachers.class_map import class_names, match_classes

NAMES = {0: "a", 1: "b"}
BENCH = {"data": "d.yaml", "model": "m.yaml", "teacher": "t.pt", "task": "detect"}
HUGE = 10**5000  # Python refuses to write it down
NO_MAP = "no map from teacher class names to student class names: give a line 'teacher name: student name' for each"


# Messages -------------------------------------------------------------------------------------------------------------
def test_message_is_one_line_that_leaves_the_terminal_alone():
    assert str(KDError("a\nb\x1b[31m\udcff ±")) == r"a\nb\x1b[31m\udcff ±"
    long = str(KDError(f"'kd_cls_loss={'x' * 10**6}' is invalid: give bckd."))
    assert len(long) < 3000 and long.startswith("'kd_cls_loss=xx") and long.endswith("give bckd.")


def test_bytes_that_are_no_text_can_be_printed(capfd, caplog):
    assert cli.main(["train", "te\udcffcher=x.pt"]) == 1
    assert r"te\udcffcher" in caplog.text and "Logging error" not in capfd.readouterr().err


# Arguments ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "line, said",
    [
        (["train", "mode=drain"], "Invalid 'mode=drain'"),
        (["train", "task=detct"], "Invalid 'task=detct'"),
        (["train", "end2end=5"], "Deprecated 'end2end' must be a bool"),
        (["train", "model=5"], "'model=5' is of invalid type int: give a text"),
        (["train", "mode=[1]"], "'mode=[1]' is of invalid type list"),
        (["train", "cfg=5"], "'5' is not a YAML file"),
        (["[", "=x"], "an '=' has no argument before it"),
        (["cache", "[", "=x"], "an '=' has no argument before it"),
        (["cache", "teacher= "], "'teacher= ' is not a 'key=value' argument"),
    ],
)
def test_command_lines_that_mean_nothing(line, said, caplog):
    assert cli.main(line) == 1
    assert said in caplog.text


def test_lists_without_end():
    deep: list = []
    for _ in range(3000):
        deep = [deep]
    ring: list = []
    ring.append(ring)
    wide = ["x"] * 10
    for _ in range(9):
        wide = [wide] * 10
    for value in (deep, ring, wide):
        with pytest.raises(KDError, match="nested too deeply or has too many parts"):
            get_cfg(overrides={"kd_unlabeled": value})


@pytest.mark.parametrize(
    "given, said",
    [
        ({"seeds": "²"}, "'seeds=.*' is invalid"),
        ({"seeds": 10**9}, "at most 10000"),
        ({"seeds": [[1]]}, "'seeds=.*' is invalid"),
        ({"task": ["detect"]}, "cannot be compared yet"),
        ({"holdout": "half"}, "'holdout=half' is invalid"),
        ({"holdout": "0.5", "split": "test"}, "'holdout=0.5' is invalid"),
        ({"jobs": 2**70}, "of 64 bits at most"),
        ({"teacher": None, "teacher_model": 5, "teacher_epochs": 1}, "'teacher_model=5' is not a model"),
        ({"arms": '{"kd": ' + "[" * 100_000}, "is not valid JSON"),
        ({"arms": {"x" * 300: {"kd_cls": 1.0}}}, "no longer than 100 bytes"),
        ({"cfg": 5}, "'5' is not a YAML file"),
        ({"cfg": "notes.txt"}, "'notes.txt' could not be read as YAML"),
        ({"name": "x" * 5000}, "make no folder"),
        ({"name": b"x"}, "make no folder"),
    ],
)
def test_benches_of_nonsense(given, said):
    with pytest.raises(KDError, match=said):
        make_plan({**BENCH, **given})


@pytest.mark.parametrize(
    "given, said",
    [
        ({"kd_cache": 5}, "'kd_cache=5' is invalid"),
        ({"kd_cache_scales": [10**400]}, "must be a number"),
        ({"kd_cache_topk": 2**70}, "of 64 bits at most"),
    ],
)
def test_caches_of_nonsense(given, said):
    with pytest.raises(KDError, match=said):
        make_cache({"teacher": "t.pt", "data": "d.yaml", **given})
    if "kd_cache" not in given:
        with pytest.raises(KDError, match=said):
            check_options({**CACHE_ONLY, **given})


def test_demos_of_nonsense():
    with pytest.raises(KDError, match="make no folder"):
        run_demo({"name": "x" * 5000})


def test_reports_into_folders_that_cannot_be():
    for name in ("x" * 5000, b"x"):
        with pytest.raises(KDError, match="make no folder"):
            options.check_options({"teacher": "t", "student": "s.pt", "data": "d", "name": name}, "detect")


# YAML -----------------------------------------------------------------------------------------------------------------
HARMFUL = {
    "aliases": (BOMB, "stands for more than 100,000 values"),
    "aliases after what PyYAML refuses": (f"x: \x01\n{BOMB}", "stands for more than 100,000 values"),
    "itself": ("a: &a {b: *a}", "stands for more than 100,000 values"),
    "merged": (BOMB.replace("[*", "{<<: [*").replace("]\n", "]}\n"), "could not be read|stands for"),
    "long": (f"a: {'x' * 2**20}", "more than 1 MiB"),
    "code": ("a: !!python/object/apply:os.system ['touch hacked']", "could not determine a constructor"),
    "deep": ("a: " + "[" * 5000, "could not be read"),
    "no number": ("a: !!int x", "could not be read"),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_harmful_yaml_is_one_sentence_wherever_it_is_read(kind, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    text, said = HARMFUL[kind]
    Path("harm.yaml").write_text(text)
    start = time.perf_counter()
    with pytest.raises(KDError, match=said):
        match_classes(NAMES, NAMES, "harm.yaml")
    for given in ({"cfg": "harm.yaml"}, {"arms": "harm.yaml"}):
        with pytest.raises(KDError, match=said):
            make_plan({**BENCH, **given})
    assert cli.main(["train", "cfg=harm.yaml"]) == 1 and "harm.yaml" in caplog.text
    assert time.perf_counter() - start < 5 and not Path("hacked").exists()


def test_harmful_text_of_a_class_map_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = "{" + BOMB.strip().replace("\n", ", ") + "}"
    for text in (bomb, "{a: !!python/object/apply:os.system ['touch hacked']}", "{" * 3000, "{a: !!bool x}"):
        with pytest.raises(KDError, match="neither 'auto', nor a map, nor a readable YAML"):
            match_classes(NAMES, NAMES, text)
    assert not Path("hacked").exists()


def test_recipes_with_names_that_are_no_texts(tmp_path, caplog):
    file = tmp_path / "recipe.yaml"
    file.write_text("1: 2\n")
    assert (
        cli.main(["train", f"cfg={file}"]) == 1 and "the name of an argument must be a text, not 1 (int)" in caplog.text
    )
    file.write_text("model: [a]\n")
    assert cli.main(["train", f"cfg={file}"]) == 1 and "'model=['a']' is of invalid type list" in caplog.text
    file.unlink()
    file.mkdir()
    assert cli.main(["train", f"cfg={file}"]) == 1 and "could not be read as YAML" in caplog.text


@pytest.mark.parametrize(
    "value", [{"a": ["b"]}, {"a": {"b": "c"}}, {"a": None}, {("a",): "b"}, {"a": HUGE}, {"a": b"b"}]
)
def test_maps_of_what_is_no_name(value, tmp_path):
    with pytest.raises(KDError, match=NO_MAP):
        match_classes(NAMES, NAMES, value)
    if not {HUGE, b"b"} & {v for v in value.values() if isinstance(v, (int, bytes))} and ("a",) not in value:
        (tmp_path / "map.yaml").write_text(yaml.safe_dump(value))
        with pytest.raises(KDError, match=NO_MAP):
            match_classes(NAMES, NAMES, str(tmp_path / "map.yaml"))


def test_names_and_maps_of_other_types():
    assert class_names(SimpleNamespace(names={float("inf"): "a"})) == {}
    with pytest.raises(KDError, match="kd_classes is a int"):
        match_classes(NAMES, NAMES, 5)


# Stored answers -------------------------------------------------------------------------------------------------------
@pytest.fixture
def store(tmp_path) -> Store:
    """Return a cache without answers."""
    store = Store(tmp_path / "c")
    store.begin(MANIFEST)
    return store


@pytest.mark.parametrize(
    "change",
    [
        {"teachers": None},
        {"teachers": []},
        {"teachers": [{"name": "t.pt"}]},
        {"teachers": [{"name": 1, "sha256": "0"}]},
        {"names": {}},
        {"names": {"0": "a", "2": "b"}},
        {"names": {"0": ["a"]}},
        {"imgsz": "64"},
        {"imgsz": True},
        {"imgsz": 10**400},
        {"imgsz": 0},
        {"conf": float("nan")},
        {"iou": -1},
        {"topk": 1.5},
        {"scales": []},
        {"scales": [1.0, 0.5]},
        {"scales": [0]},
        {"scales": 1},
        {"flip": 0},
        {"precision": "fp8"},
        {"precision": []},
        {"channels": None},
        {"versions": []},
        {"format": [2]},
        {"more": 1},
    ],
)
def test_every_field_of_a_manifest_is_checked(store, change):
    (store.folder / "manifest.json").write_text(json.dumps({**asdict(MANIFEST), **change}))
    with pytest.raises(KDError, match=r"manifest.json is damaged or belongs to another program|has format \[2\]"):
        store.manifest()


def test_a_cache_without_a_manifest_has_no_answers(tmp_path):
    store = Store(tmp_path / "c")
    store.folder.mkdir()
    assert store.damaged() == [] and store.keys() == set()


def test_a_deeply_nested_manifest_is_damaged(store):
    (store.folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(KDError, match="damaged or belongs to another program"):
        store.manifest()


def write_shard(store: Store, row: dict, schema: dict | None = None) -> Path:
    """Write a shard of one row, with the name that its content asks for."""
    buffer = io.BytesIO()
    pl.DataFrame({k: [v] for k, v in row.items()}, schema=schema or SCHEMA).write_parquet(buffer)
    return write_bytes(store, buffer.getvalue())


def write_bytes(store: Store, content: bytes) -> Path:
    """Write content as a shard, with the name that it asks for."""
    path = store.folder / f"answers-00000000-{hashlib.blake2b(content, digest_size=16).hexdigest()[:8]}.parquet"
    path.write_bytes(content)
    return path


ROW = {"key": "k", "width": 8, "height": 4, "boxes": [0.5] * 4, "probs": [9, 8], "seen": [7, 6]}


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": [0.5] * 3},
        {"boxes": [0.5] * 8},
        {"probs": [9]},
        {"seen": [9]},
        {"boxes": [float("nan")] * 4},
        {"boxes": [float("inf")] * 4},
        {"boxes": [0.5, 0.5, 1.5, 0.5]},
        {"boxes": [-0.5, 0.5, 0.5, 0.5]},
        {"boxes": None},
        {"probs": [None, 3]},
        {"width": 0},
        {"height": 0},
        {"key": None},
    ],
)
def test_every_row_of_a_shard_is_checked(store, change):
    good = write_shard(store, ROW)
    assert not store.damaged() and len(list(store.read())) == 1
    good.unlink()
    bad = write_shard(store, {**ROW, **change})
    assert store.damaged() == [bad]
    with pytest.raises(KDError, match=f"{bad.name} is damaged: run yolo-kd cache again"):
        list(store.read())


def test_shards_with_other_columns_or_that_are_not_parquet_are_damaged(store):
    rest = {name: kind for name, kind in SCHEMA.items() if name != "seen"}
    bad = [
        write_shard(store, {k: v for k, v in ROW.items() if k != "seen"}, rest),
        write_shard(store, {**ROW, "width": -8}, {**SCHEMA, "width": pl.Int64}),
        write_bytes(store, b"no parquet"),
        write_bytes(store, b""),
    ]
    assert store.damaged() == sorted(bad)


def test_images_are_hashed_again_if_the_index_is_damaged(store, tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"image")
    (key,) = store.image_keys([str(image)], write=True).values()
    (index,) = store.folder.glob("files-*.parquet")
    content = bytearray(index.read_bytes())
    for place in range(0, len(content), 31):  # with some of these Polars would allocate all memory and end the process
        index.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        assert KeyIndex(store.folder).read() == {}
    assert store.image_keys([str(image)], write=True) == {str(image): key}
    assert len(list(store.folder.glob("files*"))) == 1 and list(KeyIndex(store.folder).read()) == [str(image)]
    frame = pl.DataFrame({"file": [["x"]], "size": [1], "mtime_ns": [1], "key": [None]})  # other columns
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    name = hashlib.blake2b(buffer.getvalue(), digest_size=16).hexdigest()[:8]
    (store.folder / f"files-{name}.parquet").write_bytes(buffer.getvalue())
    assert list(KeyIndex(store.folder).read()) == [str(image)]


@pytest.mark.skipif(os.name != "posix", reason="file names of any bytes")
def test_image_files_whose_names_are_not_valid_text_get_keys(store, tmp_path):
    image = tmp_path / os.fsdecode(b"\xff.png")
    image.write_bytes(b"image")
    assert len(store.image_keys([str(image)], write=True)) == 1 and KeyIndex(store.folder).read() == {}


# Shared folders -------------------------------------------------------------------------------------------------------
def test_links_out_of_a_cache_are_not_followed(store, tmp_path):
    outside = write_shard(Store(store.folder), ROW).rename(tmp_path / "outside.parquet")
    link = store.folder / "answers-00000000-11111111.parquet"
    link.symlink_to(outside)
    for look in (store.damaged, store.keys, store.shards):
        with pytest.raises(KDError, match=r"11111111.parquet is not a file, or is a link that leads out of the cache"):
            look()
    link.unlink()
    link.mkdir()
    with pytest.raises(KDError, match="is not a file, or is a link"):
        store.damaged()
    link.rmdir()
    (store.folder / "manifest.json").rename(tmp_path / "manifest.json")
    (store.folder / "manifest.json").symlink_to(tmp_path / "manifest.json")
    for look in (store.manifest, lambda: store.begin(MANIFEST)):
        with pytest.raises(KDError, match=r"manifest.json is not a file, or is a link"):
            look()


def test_links_within_a_cache_are_files_of_it(store):
    shard = write_shard(store, ROW)
    (store.folder / "kept").mkdir()
    shard.rename(store.folder / "kept" / shard.name)
    shard.symlink_to(f"kept/{shard.name}")
    assert store.keys() == {"k"}


def test_links_in_place_of_written_files_are_not_followed(store, tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (store.folder / "manifest.json").unlink()
    (store.folder / "manifest.json.1234.tmp").symlink_to(precious)
    (store.folder / "odd.tmp").mkdir()
    store.begin(MANIFEST)  # removes temporary files, not the targets of links
    monkeypatch.setattr(secrets, "token_hex", lambda n: "1234")
    row = Row("k", 8, 4, np.full((1, 4), 0.5, np.float32), np.ones((1, 2)), np.ones((1, 2)))
    name = store.write([row]).name
    (store.folder / name).unlink()
    (store.folder / f".{name}.1234.tmp").symlink_to(precious)
    with pytest.raises(FileExistsError):
        store.write([row])
    (store.folder / ".lock").symlink_to(precious)
    with pytest.raises(KDError, match=r"\.lock is a link: remove it"), locked(store.folder, ""):
        pass
    with pytest.raises(KDError, match=r"\.lock is a link: remove it"), JobFolder(store.folder):
        pass
    assert precious.read_text() == "precious"


def test_a_full_disk_is_one_sentence_and_leaves_no_partial_file(store):
    first = store.write([Row("k", 8, 4, np.full((1, 4), 0.5), np.ones((1, 2)), np.ones((1, 2)))])
    rng = np.random.default_rng(0)
    many = [Row("l", 8, 4, rng.random((2000, 4)), rng.random((2000, 2)), rng.random((2000, 2)))]
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # Python ignores the signal, and the error is EFBIG
    try:
        with pytest.raises(KDError, match=r"no space is left in .*: what is stored stays; make room and run the same"):
            store.write(many)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.shards() == [first] and not list(store.folder.glob("*.tmp"))
    assert store.write(many) in store.shards() and store.keys() == {"k", "l"}


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "c", Path("x" * 5000), Path("x\x00")):
        with pytest.raises(KDError, match="cannot be made"):
            Store(folder).begin(MANIFEST)
        for lock in (partial(locked, advice=""), JobFolder):
            with pytest.raises(KDError, match="cannot be made"), lock(folder):
                pass
        with pytest.raises(KDError, match="holds no answers"):
            Store(folder).manifest()


# Benches and reports --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [
        {"job": None},
        {"scores": {}},
        {"scores": {"nms": 0.5}},
        {"scores": {"nms": {"score": 0.5}}},
        {"scores": {"nms": {"score": "high", "second": 0.5}}},
        {"scores": {"nms": {"score": 0.5, "second": 0.5, "arm": 1}}},
        {"scores": {"worst": {"score": 0.5, "second": 0.5}}},
        {"seconds": None},
        {"epochs": 10**400},
        {"batch": "4"},
        {"parameters": "1"},
        {"unmatched": [1]},
        {"versions": 1},
    ],
)
def test_every_field_of_a_benchs_record_is_checked(tmp_path, change):
    file = tmp_path / "records" / "kd-0.json"
    file.parent.mkdir()
    job = Job("kd-0", RECORD["job"], {}, arm="kd", seed=0)
    file.write_text(json.dumps(RECORD))
    assert JobFolder(tmp_path).record(job) == RECORD
    file.write_text(json.dumps({**RECORD, **change}))
    with pytest.raises(KDError, match=r"kd-0.json is damaged or belongs to another program: delete it"):
        JobFolder(tmp_path).record(job)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'{"job": {}}'])
def test_records_and_notes_that_are_none(tmp_path, content):
    file = tmp_path / "records" / "kd-0.json"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(KDError, match="damaged or belongs to another program"):
        JobFolder(tmp_path).record(Job("kd-0", {}, {}, arm="kd", seed=0))
    with pytest.raises(KDError, match="damaged or belongs to another program: delete it to train again"):
        worker.run_job({"trained": str(file), "identity": {}, "args": {}})


def test_scores_that_are_no_number_are_no_damage(tmp_path):
    file = tmp_path / "records" / "kd-0.json"
    file.parent.mkdir()
    file.write_text(json.dumps({**RECORD, "scores": {"output": {"score": float("nan"), "second": 0.5}}}))
    assert JobFolder(tmp_path).record(Job("kd-0", RECORD["job"], {}, arm="kd", seed=0))


def test_text_stays_in_its_cell_of_a_markdown_table():
    text = markdown([["a", "b"], ["x|y\nz", "<script>"], ["$x$", "\\|"]])
    assert text.splitlines()[2:] == [r"| x\|y\\nz | \<script> |", r"| \$x\$ | \\\| |"]


@pytest.mark.skipif(os.name != "posix", reason="file names of any bytes")
def test_a_page_is_written_whatever_bytes_a_name_has(tmp_path):
    report = a_report(tmp_path, os.fsdecode(b"\xff<b>.png"))
    page.write_page(report, tmp_path)
    text = Path(report["page"]).read_text(encoding="utf-8")
    assert r"\udcff&lt;b&gt;.png" in text and "<b>.png" not in text


def test_results_with_columns_of_one_name_are_left_out(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "best.pt").write_bytes(b"")
    (tmp_path / "results.csv").write_text("epoch,time, time\n1,2,3\n")
    assert plots.read_curves(str(tmp_path / "weights" / "best.pt")) is None


# Images without labels ------------------------------------------------------------------------------------------------
def test_folders_of_images_that_lead_back_to_themselves(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "deep" / "x.png").write_bytes(b"")
    assert len(find_unlabeled(str(tmp_path / "a"))) == 1
    (tmp_path / "b" / "one").symlink_to("../a")
    assert len(find_unlabeled(str(tmp_path / "b"))) == 1  # a link to a folder elsewhere is none that leads back
    for link, leads in (("a/deep/up", "../../a"), ("a/deep/over", "../../b")):
        (tmp_path / link).symlink_to(leads)
        with pytest.raises(KDError, match="a link to one of its parents: remove it"):
            find_unlabeled(str(tmp_path / "a"))
        (tmp_path / link).unlink()


@pytest.mark.parametrize("source", ["x" * 5000, "x\x00y", ["x\x00y"]])
def test_folders_of_images_whose_names_cannot_be(source):
    with pytest.raises(KDError, match="cannot be read"):
        find_unlabeled(source)
