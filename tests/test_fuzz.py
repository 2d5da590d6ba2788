"""Whatever a user, a file or another program gives is accepted, or refused in one sentence, and nothing else happens.

Here a few cases of each kind run. `ULTRALYTICS_KD_TEST_FUZZ=1000 pytest -n0 -s tests/test_fuzz.py`, a job for the
night, runs so many of each kind, new ones each time, and prints how many were accepted and refused.
"""

from __future__ import annotations

import hashlib
import html.parser
import io
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
import ultralytics
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from ultralytics_kd import cli
from ultralytics_kd.bench.jobs import VERSIONS, Job, JobFolder
from ultralytics_kd.bench.plan import BENCH_ONLY, make_plan
from ultralytics_kd.bench.records import read_note
from ultralytics_kd.bench.table import Run, markdown, summarize, to_markdown
from ultralytics_kd.cache import build as cache_build
from ultralytics_kd.cache.answers import StoredAnswers
from ultralytics_kd.cache.build import make_cache
from ultralytics_kd.cache.keys import image_key
from ultralytics_kd.cache.manifest import Manifest
from ultralytics_kd.cache.options import CACHE_ONLY
from ultralytics_kd.cache.shards import SCHEMA
from ultralytics_kd.cache.store import Store
from ultralytics_kd.config.arguments import ARGUMENTS, TASKS
from ultralytics_kd.config.checks import check_combination
from ultralytics_kd.config.idle import idle_arguments
from ultralytics_kd.demo import DEMO_ONLY
from ultralytics_kd.demo import run as demo_run
from ultralytics_kd.errors import KDError
from ultralytics_kd.image_files import find_unlabeled, readable
from ultralytics_kd.report.options import REPORT_ONLY, check_options
from ultralytics_kd.report.page import write_page
from ultralytics_kd.report.plots import read_curves
from ultralytics_kd.teachers.class_map import class_names, match_classes

NIGHT = int(os.environ.get("ULTRALYTICS_KD_TEST_FUZZ", 0))
COUNTS: dict[str, Counter] = {}

# Values ---------------------------------------------------------------------------------------------------------------
TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates and control characters too
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**63, 10**400, 1e-320, 0.5, 2.0])
HOSTILE = st.sampled_from(
    [
        "__import__('os').system('touch hacked')",
        "!!python/object/apply:os.system ['touch hacked']",
        "nowhere:nothing",
        "../../../etc/passwd",
        "a" * 5000,
        "a\x00b",
        "\x1b[31mred",
        "$(touch hacked)",
        "%s%n{0}",
        "[" * 300,
        "{" * 300,
        "-" * 5000 + "1",
        "1e999",
        "nan",
        "²",
        "٣",
        "None",
        "True",
        "os.O_EXCL",
        " ",
        "[]",
        "{}",
        "auto",
    ]
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS | HOSTILE | st.binary(max_size=8)


def parts(inner: st.SearchStrategy) -> st.SearchStrategy:
    """Return lists and maps of values."""
    keys = TEXTS | st.integers() | st.booleans() | st.none()
    return st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4) | st.tuples(inner, inner)


VALUES = st.recursive(SCALARS, parts, max_leaves=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=6,
)
# YAML that means harm, or is none
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij"))
DOCUMENTS = (
    HOSTILE
    | TEXTS
    | st.sampled_from(
        [
            BOMB,
            BOMB.replace("[*", "{<<: [*").replace("]\n", "]}\n"),
            "a: &a [*a]",
            "a: &a {b: *a}",
            "? [a, b]\n: c",
            "{a: 1, a: 2}",
            "a: 2024-99-99",
            "a: !!int x",
            "a: !!bool x",
            "a: !!binary x",
            "? !!set {x}\n: y",
            "1: 2\nmodel: 5",
            "a: !!python/object/apply:os.system ['touch hacked']",
            "!!python/object/new:type {args: [x, !!python/tuple [], {}]}",
            "--- a\n--- b\n",
            "\ufeffa: b",
        ]
    )
    | JSON.map(lambda value: yaml.safe_dump(value, allow_unicode=True))
)
BYTES = st.binary(max_size=200) | DOCUMENTS.map(lambda text: text.encode(errors="surrogatepass"))


def changed(document: dict[str, Any], values: st.SearchStrategy) -> st.SearchStrategy:
    """Return a document as it is, or with a value at any depth changed or gone."""
    paths = list(_paths(document))

    def change(drawn: tuple) -> Any:
        path, value, gone = drawn
        copy = json.loads(json.dumps(document))
        if path is None:
            return copy
        *outer, last = path
        inner = copy
        for key in outer:
            inner = inner[key]
        if gone:
            del inner[last]
        else:
            inner[last] = value
        return copy

    return st.tuples(st.none() | st.sampled_from(paths), values, st.booleans()).map(change)


def _paths(document: Any, before: tuple = ()) -> Any:
    """Yield the way to every value in a document."""
    for key in document if isinstance(document, dict) else range(len(document)):
        yield (*before, key)
        if isinstance(document[key], (dict, list)):
            yield from _paths(document[key], (*before, key))


# Running --------------------------------------------------------------------------------------------------------------
def for_all(
    strategy: st.SearchStrategy,
    case: Callable[[Any], Any],
    refusals: Any = KDError,
    share: float = 1,
    both: bool = True,
) -> None:
    """Run a case for many values; it must end well or with a sentence, and of both there must be some.

    A case that returns an exit status other than 0 was refused by the command line.
    """
    counts = COUNTS[os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0]] = Counter()

    @settings(
        max_examples=max(int((NIGHT or 30) * share), 1),
        derandomize=not NIGHT,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def judge(value: Any) -> None:
        counts["cases"] += 1
        try:
            refused = case(value)
        except refusals as e:
            assert str(e).strip() and (str(e).isprintable() or not isinstance(e, KDError))
            refused = True
        counts["refused" if refused else "accepted"] += 1

    judge()
    if both:
        assert counts["accepted"] and counts["refused"], counts


@pytest.fixture(scope="module", autouse=True)
def told():
    """Say at the end how many cases there were."""
    yield
    for name, counts in COUNTS.items():
        print(f"{name}: {counts['cases']} cases, {counts['accepted']} accepted, {counts['refused']} refused")
    print(f"all: {sum(c['cases'] for c in COUNTS.values())} cases")


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    """Work in a folder of its own, which nothing may be written to unasked, and without a word."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    level = LOGGER.level
    LOGGER.setLevel(logging.CRITICAL)
    yield
    LOGGER.setLevel(level)
    assert not list((tmp_path / "here").iterdir())


# Arguments ------------------------------------------------------------------------------------------------------------
def fitting(name: str) -> st.SearchStrategy:
    """Return values that a kd argument may take, and some that look like it."""
    argument = ARGUMENTS[name]
    kinds = {"bool": st.booleans(), "float": st.floats(0, 10)}
    kind = kinds.get(argument.type.split(",")[0], st.just(argument.default))
    special = {
        "kd_classes": st.sampled_from(["auto", {"a": "b"}, Path("a.yaml")]),
        "kd_teacher_weights": st.lists(st.floats(0.1, 2), min_size=1),
        "kd_unlabeled": st.sampled_from(["a", ["a", "b"]]),
        "teacher": st.sampled_from(["t.pt", "ema", ["a.pt", "b.pt"]]),
    }
    return special.get(name, st.sampled_from(argument.choices) if argument.choices else kind)


def some(names: Any, value: Callable[[str], st.SearchStrategy], most: int = 3) -> st.SearchStrategy:
    """Return a few arguments."""
    one = st.sampled_from(sorted(names)).flatmap(lambda name: st.tuples(st.just(name), value(name)))
    return st.lists(one, max_size=most).map(dict)


def test_values_of_kd_arguments():
    def case(drawn: tuple) -> None:
        overrides, task = drawn
        cfg = vars(get_cfg(overrides={"teacher": "t.pt", **overrides, "task": task}))
        check_combination(cfg)
        idle_arguments(cfg)

    for_all(st.tuples(some(ARGUMENTS, lambda n: fitting(n) | VALUES), st.sampled_from(TASKS)), case)


class Model:
    """Stands for a model that is about to be trained: its arguments are checked as its trainer checks them."""

    def __init__(self, model: Any, task: Any = None):
        self.task = task or "detect"

    def __getattr__(self, mode: str) -> Callable:
        def run(**kwargs: Any) -> None:
            cfg = vars(get_cfg(overrides={**kwargs, "task": self.task, "mode": mode}))
            if mode == "train":
                check_combination(cfg)

        return run


@pytest.fixture
def no_models(monkeypatch):
    for name in ("YOLO", "RTDETR", "SAM", "FastSAM", "NAS"):
        monkeypatch.setattr(ultralytics, name, Model)


# A line of text as an argument of a process may hold it
LINES = (TEXTS | HOSTILE | VALUES.map(str)).map(lambda text: text.replace("\x00", ""))


def test_command_lines_of_trainings(no_models):
    def case(drawn: tuple) -> int:
        named, loose = drawn
        return cli.main(["train", "model=m.yaml", "teacher=t.pt", *(f"{k}={v}" for k, v in named.items()), *loose])

    lines = some([*ARGUMENTS, "mode", "task", "model"], lambda n: fitting_text(n) | LINES)
    for_all(st.tuples(lines, st.lists(LINES.filter(_no_command), max_size=1)), case)


def _no_command(text: str) -> bool:
    """Return whether a text is none of Ultralytics' own commands: they are not ours, and some end the process."""
    return not text.lstrip("-")[:1].isalpha()


def fitting_text(name: str) -> st.SearchStrategy:
    """Return texts that an argument may take on a command line."""
    return fitting(name).map(str) if name in ARGUMENTS else st.sampled_from(["train", "detect", "m.yaml"])


def own_commands(monkeypatch) -> dict[str, tuple[list[str], dict[str, Any], Callable[[dict], Any]]]:
    """Return what each of our commands needs, its own arguments, and what checks them."""
    store = SimpleNamespace(folder="c", shards=list, count=int)
    monkeypatch.setattr(cache_build, "build_cache", lambda *_, **__: store)
    monkeypatch.setattr(demo_run, "StockYOLO", Model)
    monkeypatch.setattr(demo_run, "draw_dataset", _enough)

    def demo(given: dict) -> None:
        with pytest.raises(Enough):
            demo_run.run_demo({"project": "/nowhere", **given})

    checks = {
        "bench": (["data=d.yaml", "model=m.yaml", "teacher=t.pt", "task=detect"], BENCH_ONLY, make_plan),
        "cache": (["data=d.yaml", "teacher=t.pt"], {**CACHE_ONLY, "kd_cache": 0}, make_cache),
        "report": (
            ["data=d.yaml", "teacher=t.pt", "student=s.pt"],
            REPORT_ONLY,
            lambda given: check_options(given, "detect"),
        ),
        "demo": ([], DEMO_ONLY, demo),
    }
    functions = {"bench": "run_bench", "cache": "make_cache", "report": "run_report", "demo": "run_demo"}
    for name, function in functions.items():
        monkeypatch.setattr(f"ultralytics_kd.{name}.{function}", checks[name][2])
    return checks


class Enough(BaseException):
    """Arguments were accepted."""


def _enough(*_: Any) -> None:
    """Go no further."""
    raise Enough


RIGHT = {
    "arms": ["kd", '{"kd": {}, "x": {"kd_cls": 1}}', "alone,kd"],
    "seeds": [2, "0,1", [3, 4]],
    "holdout": [0.5, 0],
    "kd_cache_conf": [0.1],
    "kd_cache_iou": [0.1],
    "kd_cache_scales": [1, [0.5, 1.0]],
    "kd_cache": ["c", True],
    "images": [0, 5],
    "match_conf": [0.5],
    "teacher": ["t.pt"],
    "kd_cache_flip": [True],
    "ray": [False, 2],
}


@pytest.mark.parametrize("command", ["bench", "cache", "report", "demo"])
@pytest.mark.parametrize("typed", [True, False])
def test_arguments_of_own_commands(command, typed, monkeypatch):
    needed, own, check = own_commands(monkeypatch)[command]
    names = [*own, "imgsz", "project", "name", "kd_cls", "teacher"]

    def right(name: str) -> st.SearchStrategy:
        return st.sampled_from(RIGHT.get(name, [1, 32]))

    def case(drawn: dict) -> Any:
        if typed:
            return cli.main([command, *needed, *(f"{k}={v}" for k, v in drawn.items())])
        return check({**dict(pair.split("=") for pair in needed), **drawn}) and None

    values = (lambda n: right(n).map(str) | LINES) if typed else (lambda n: right(n) | VALUES)
    for_all(some(names, values, most=2), case, refusals=KDError if typed else (KDError, SyntaxError))


# Class maps -----------------------------------------------------------------------------------------------------------
NAMES = {0: "a", 1: "b", 2: "None", 3: "1"}


def test_class_maps_in_texts_and_files(tmp_path):
    file = tmp_path / "map.yaml"

    def case(content: Any) -> None:
        if isinstance(content, bytes):
            file.write_bytes(content)
            match_classes(NAMES, NAMES, str(file))
        else:
            match_classes(NAMES, NAMES, content)

    right = st.dictionaries(st.sampled_from("ab"), st.sampled_from("ab"), min_size=1)
    braces = DOCUMENTS.map(lambda text: f"{{{text}}}")
    for_all(BYTES | right.map(lambda m: json.dumps(m).encode()) | right.map(str) | braces | VALUES.map(str), case)


def test_class_maps_and_names_of_any_values():
    known = st.recursive(st.none() | st.booleans() | NUMBERS | TEXTS, parts, max_leaves=3)
    names = st.dictionaries(st.integers(0, 3), known, min_size=1, max_size=4) | st.just(NAMES)
    maps = st.dictionaries(SCALARS, VALUES, max_size=3) | st.just("auto") | st.just({"a": "b"}) | VALUES

    def case(drawn: tuple) -> None:
        student, teacher, spec = drawn
        class_names(SimpleNamespace(names=spec))
        match_classes(student, teacher, spec)

    for_all(st.tuples(names, names, maps), case)


# Stored answers -------------------------------------------------------------------------------------------------------
TEACHERS = [{"name": "t.pt", "sha256": "0" * 64}]
MANIFEST = Manifest(TEACHERS, {0: "a", 1: "b"}, 64, 0.05, 0.7, 100, [0.5, 1.0], False, "fp32")


def test_manifests_of_caches(tmp_path):
    right = json.loads(json.dumps(asdict(MANIFEST)))
    texts = changed(right, JSON | st.sampled_from([10**400, 2**64, float("nan"), [], {}, ""])).map(json.dumps)
    nested = st.sampled_from(["[" * 100_000, '{"format":' * 10_000, "9" * 5000, '{"format": 9}'])
    store = Store(tmp_path / "c")
    store.folder.mkdir()

    def case(content: bytes) -> None:
        (store.folder / "manifest.json").write_bytes(content)
        store.manifest().differences(MANIFEST)
        store.begin(MANIFEST)

    for_all((texts | nested | JSON.map(json.dumps)).map(str.encode) | st.binary(max_size=40), case)


@pytest.fixture
def store(tmp_path) -> tuple[Store, str]:
    """Return a cache without answers, and an image."""
    image = tmp_path / "image.png"
    image.write_bytes(b"image")
    store = Store(tmp_path / "c")
    store.begin(MANIFEST)
    return store, str(image)


COLUMNS = {
    "key": (TEXTS, pl.String),
    "width": (st.integers(0, 9), pl.UInt32),
    "height": (st.integers(0, 9), pl.UInt32),
    "boxes": (st.lists(st.floats(-0.5, 1.5, width=32) | st.floats(width=32), max_size=9), pl.List(pl.Float32)),
    "probs": (st.lists(st.integers(0, 65535), max_size=5), pl.List(pl.UInt16)),
    "seen": (st.lists(st.integers(0, 65535), max_size=5), pl.List(pl.UInt16)),
}
KINDS = st.sampled_from([pl.String, pl.Int64, pl.Float64, pl.List(pl.Float64), pl.List(pl.List(pl.Int8)), pl.Null])


@st.composite
def shards(draw: Any, key: str) -> tuple[bytes, bytes]:
    """Return a shard of one row, and what its name claims to hold: answers, with something changed, or bytes.

    A file whose name was made to fit is no damaged one, but somebody's work; Polars may end the process at a Parquet
    that is one but for some bytes, so that of those the name does not fit.
    """
    n = draw(st.integers(0, 2))
    row: dict[str, Any] = {"key": key, "width": 8, "height": 4}
    row |= {"boxes": [0.5] * 4 * n, "probs": [60000, 9] * n, "seen": [50000, 60000] * n}
    schema = dict(SCHEMA)
    for name in draw(st.lists(st.sampled_from(list(SCHEMA)), max_size=2)):
        what = draw(st.sampled_from(["value", "gone", "null", "type", "inner"]))
        if what == "value" and name in row:
            row[name], schema[name] = draw(COLUMNS[name][0]), SCHEMA[name]
        elif what == "gone":
            row.pop(name, None)
            schema.pop(name, None)
        elif what == "type" and name in row:
            row[name], schema[name] = None, draw(KINDS)
        elif name in row:
            row[name] = [None, *row[name]] if what == "inner" and isinstance(row[name], list) else None
    if "key" in row and isinstance(row["key"], str):
        row["key"] = row["key"].encode(errors="ignore").decode()
    buffer = io.BytesIO()
    pl.DataFrame({k: [v] for k, v in row.items()}, schema=schema).write_parquet(buffer)
    whole = buffer.getvalue()
    content = bytearray(whole)
    for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=3)) if draw(st.booleans()) else ():
        content[place] = draw(st.integers(0, 255))
    junk = st.binary(max_size=60).map(lambda b: (b, b))
    return draw(st.just((bytes(content), whole)) | st.just((whole, whole)) | junk)


def test_shards_of_caches(store):
    folder, image = store
    classes = match_classes({0: "b"}, MANIFEST.names)

    def case(drawn: tuple[bytes, bytes]) -> None:
        content, claimed = drawn
        name = f"answers-00000000-{image_key_of(claimed)[:8]}.parquet"
        (folder.folder / name).write_bytes(content)
        try:
            whole = not folder.damaged()
            StoredAnswers(folder, [image], classes, 64)[image]
            assert whole
        finally:
            (folder.folder / name).unlink()

    for_all(shards(image_key(image)), case)


def image_key_of(content: bytes) -> str:
    """Return the hash of bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def test_notes_of_image_files(store):
    folder, image = store
    stat = os.stat(image)
    right = {"file": image, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "key": "0" * 32}

    def table(row: dict) -> bytes:
        buffer = io.BytesIO()
        pl.DataFrame([row]).write_parquet(buffer)
        return buffer.getvalue()

    values = st.none() | st.integers(0, 9) | st.text(max_size=3) | st.lists(st.integers(0, 9), max_size=2)

    def case(content: bytes) -> bool:
        for old in folder.folder.glob("files-*"):
            old.unlink()
        (folder.folder / f"files-{image_key_of(content)[:8]}.parquet").write_bytes(content)
        keys = folder.image_keys([image])
        assert keys[image] in {right["key"], image_key(image)}
        return keys[image] == image_key(image)

    for_all(changed(right, values).filter(bool).map(table) | st.binary(max_size=60), case)


# Recipes --------------------------------------------------------------------------------------------------------------
def test_recipes(tmp_path, no_models):
    file = tmp_path / "recipe.yaml"
    right = {"task": "detect", "mode": "train", "model": "m.yaml", "teacher": "t.pt", "kd_cls": 2.0, "epochs": 3}
    more = {**right, **{k: DEFAULT_CFG_DICT[k] for k in ("imgsz", "project", "optimizer", "amp", "fraction", "scale")}}
    texts = changed(more, JSON).map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode())

    def case(content: bytes) -> int:
        file.write_bytes(content)
        return cli.main(["train", f"cfg={file}"])

    for_all(texts | BYTES | st.just(b""), case)


def test_recipes_and_arms_of_benches(tmp_path):
    file = tmp_path / "recipe.yaml"
    texts = changed({"kd": {"kd_cls": 2.0}, "x": {"kd_box": 1}}, JSON).map(lambda v: yaml.safe_dump(v).encode())

    def case(drawn: tuple) -> None:
        content, place = drawn
        file.write_bytes(content)
        needed = {"data": "d.yaml", "model": "m.yaml", "teacher": "t.pt", "task": "detect"}
        make_plan({**needed, place: str(file)})

    for_all(st.tuples(texts | BYTES, st.sampled_from(["arms", "cfg"])), case, refusals=(KDError, SyntaxError))


# Benches --------------------------------------------------------------------------------------------------------------
SCORES = {"score": 0.5, "second": 0.6, "precision": 0.1}
RECORD = {
    "job": {"epochs": 2},
    "versions": VERSIONS,
    "scores": {"nms": SCORES, "end2end": SCORES},
    "parameters": 1,
    "weights": "w.pt",
    "unmatched": ["a"],
    "seconds": 1.0,
    "epochs": 2,
    "batch": 4,
}


def test_records_of_benches(tmp_path):
    job = Job("kd-0", {"epochs": 2}, {}, arm="kd", seed=0)
    file = tmp_path / "records" / "kd-0.json"
    file.parent.mkdir()
    texts = changed(RECORD, JSON | st.just(10**400)).map(lambda v: json.dumps(v).encode())

    def case(content: bytes) -> None:
        file.write_bytes(content)
        record = JobFolder(tmp_path).record(job)
        report = summarize(["kd"], [Run("kd", 0, record)], {"kd": record})
        to_markdown({**report, "metrics": ["a", "b"]})
        read_note(file)

    for_all(texts | BYTES, case)


@pytest.mark.skipif(os.name != "posix", reason="links and file names of any bytes")
def test_lists_of_images_without_labels(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    cv2.imwrite(str(folder / "deep" / "a.png"), np.zeros((16, 16, 3), np.uint8))
    (folder / "link.png").symlink_to("deep/a.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "folder.png").mkdir()
    listed = tmp_path / "list.txt"
    lines = st.sampled_from([str(folder / "deep/a.png"), "./images/deep/a.png", str(folder), "/dev/zero", "./x.png"])

    def case(drawn: Any) -> None:
        if isinstance(drawn, bytes):
            listed.write_bytes(drawn)
            drawn = listed
        files = find_unlabeled(drawn)
        readable(random.Random(0).sample(files, min(len(files), 20)))

    texts = st.lists(lines | TEXTS, max_size=5).map(lambda t: "\n".join(t).encode(errors="surrogatepass"))
    places = st.sampled_from([folder, [folder, folder], folder / "link.png", tmp_path / "nowhere", "a" * 5000, "a\x00"])
    for_all(texts | BYTES | st.just(b"x.png\n" * 5000) | places, case)


# Pages ----------------------------------------------------------------------------------------------------------------
MARKUP = st.sampled_from(
    ["<script>alert(1)</script>", "</td><img src=x onerror=alert(1)>", '" onload="x', "$x^2$", "a|b", "{{ 7 * 7 }}"]
)


def a_report(folder: Path, name: str) -> dict[str, Any]:
    """Return a report in which everything that others named is called so."""
    cv2.imwrite(str(folder / "p.png"), np.zeros((4, 4, 3), np.uint8))
    figures = {"score": 0.5, "labels": 3}
    model = {"name": name, "source": name, "heads": {"nms": {"score": 0.5, "second": 0.5}}, "head": "nms"}
    model |= {"parameters": 1, "gflops": 1.0, "megabytes": 1.0, "latency": None, "classes": {name: figures}}
    model |= {"unmatched": [name], "sizes": None, "calibration": None}
    row = {"name": name, "picture": "p.png", "found": 1, "missed": 0, "extra": 2}
    report = {"models": {"teacher": model, "student": model}, "metrics": ["mAP50-95", "mAP50"], "task": "detect"}
    report |= {"data": name, "split": "val", "count": 1, "imgsz": 64, "date": name, "verdict": [name], "heads": ["nms"]}
    report |= {"gap": None, "lead": {}, "agreement": None, "charts": {"classes": "p.png"}, "images": [row]}
    report |= {"levels": [row], "trained": [name], "command": name, "device": name, "threads": 1, "rounds": 1}
    return {
        **report,
        "versions": {name: name},
        "counted": "labels",
        "match_conf": 0.25,
        "page": str(folder / "report.html"),
    }


class Tags(html.parser.HTMLParser):
    """Notes tags with the names of their attributes, and texts outside of styles and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read_page(folder: Path, name: str) -> Tags:
    """Return what a browser makes of a report's page."""
    report = a_report(folder, f"x{name}")  # some of what has no name is not on the page
    write_page(report, folder)
    tags = Tags()
    tags.feed(Path(report["page"]).read_text(encoding="utf-8"))
    return tags


def test_names_on_pages(tmp_path):
    plain = read_page(tmp_path, "plain").tags

    def case(name: str) -> None:
        assert read_page(tmp_path, name).tags == plain

    for_all(TEXTS | MARKUP | HOSTILE, case, share=0.3, both=False)


def test_names_in_markdown_tables():
    def case(name: str) -> None:
        text = markdown([["a", "b"], [name, "1"]])
        *_, row, end = text.split("\n")
        assert end == "" and text.count("\n") == 3
        assert row.replace("\\\\", "").replace("\\|", "").count("|") == 3 and "<" not in row.replace("\\<", "")

    for_all(TEXTS | MARKUP | HOSTILE, case, both=False)


def test_results_beside_weights(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "best.pt").write_bytes(b"")

    def case(content: bytes) -> bool:
        (tmp_path / "results.csv").write_bytes(content)
        return read_curves(str(tmp_path / "weights" / "best.pt")) is None

    lines = st.lists(st.sampled_from(["epoch, a,a", "epoch,time", "1,2", "1,2,3", "x", ""]), max_size=4)
    for_all(st.binary(max_size=60) | lines.map(lambda t: "\n".join(t).encode()), case)
