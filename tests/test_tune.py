"""Searches over kd arguments, with Ultralytics' own tuner and with Ray Tune."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import QUICK, STUDENT, save_model
from ultralytics import YOLO as StockYOLO
from ultralytics.engine import tuner
from ultralytics.engine.model import Model
from ultralytics.utils import YAML

import ultralytics_kd.trainer  # noqa: F401 (registers the kd arguments)
from ultralytics_kd import YOLO, KDDetectionTrainer, KDError
from ultralytics_kd.config.named_files import absolute
from ultralytics_kd.install import _checked_tune, install
from ultralytics_kd.model import sweep_arguments
from ultralytics_kd.training import tuning
from ultralytics_kd.training.tuning import search_arguments

SPACE = {"kd_cls": (0.2, 4.0), "kd_box": (2.0, 16.0)}


def trained(folder: Path) -> tuple[dict, dict[str, float]]:
    """Return the arguments of a run and the last row of its results."""
    header, *rows = [line.split(",") for line in (folder / "results.csv").read_text().splitlines()]
    return YAML.load(folder / "args.yaml"), dict(zip(header, map(float, rows[-1])))


def is_distillation(folder: Path, teacher: str, searched: dict[str, float]) -> bool:
    """Return whether a run had the teacher and the searched values, and lost by them."""
    args, row = trained(folder)
    assert {name: args[name] for name in searched} == pytest.approx(searched)
    return args["teacher"] == teacher and row["train/kd_cls"] > 0 and row["train/kd_box"] > 0


@pytest.fixture(scope="module")
def arguments(data, teacher) -> dict:
    """Return arguments of a search in which only the teacher's file name is given, from its folder."""
    return {**QUICK, "epochs": 1, "data": data, "teacher": Path(teacher).name}


@pytest.fixture(scope="module")
def search(tmp_path_factory, arguments, teacher) -> Path:
    """Return the folder of a search of two iterations, which was interrupted after the first."""
    project = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(teacher).parent)
        keep = SimpleNamespace(copy2=shutil.copy2, rmtree=lambda *_, **__: None)  # runs that are not the best too
        patch.setattr(tuner, "shutil", keep)
        for iterations, resume in ((1, False), (2, True)):
            YOLO(STUDENT).tune(
                space=SPACE, iterations=iterations, resume=resume, project=str(project), name="search", **arguments
            )
    return project / "search"


@pytest.mark.nightly
def test_every_iteration_is_a_distillation_with_values_of_its_own(search, teacher):
    records = [json.loads(line) for line in (search / "tune_results.ndjson").read_text().splitlines()]
    assert [r["iteration"] for r in records] == [1, 2]  # the second went on where the first had stopped
    first, second = (r["hyperparameters"] for r in records)
    assert first == {"kd_cls": 2.0, "kd_box": 8.0}  # the defaults
    assert first != second and all(low <= second[name] <= high for name, (low, high) in SPACE.items())
    for record in records:
        (folder,) = record["save_dirs"].values()
        assert is_distillation(Path(folder), teacher, record["hyperparameters"])


@pytest.mark.nightly
def test_best_values_of_a_search_are_arguments_of_a_training(search):
    best = YAML.load(search / "best_hyperparameters.yaml")
    records = [json.loads(line) for line in (search / "tune_results.ndjson").read_text().splitlines()]
    assert best in [r["hyperparameters"] for r in records]
    assert (search / "weights" / "best.pt").is_file()


@pytest.mark.nightly
def test_ray_searches_the_same_space_by_distillations(tmp_path, arguments, teacher, monkeypatch):
    """The teacher's path is relative, and Ray's processes run elsewhere."""
    tune = pytest.importorskip("ray.tune")
    monkeypatch.chdir(Path(teacher).parent)
    space = {**SPACE, "kd_box_loss": tune.choice(["l1"])}
    found = YOLO(STUDENT).tune(
        True, 2, space=space, search_alg="random", project=str(tmp_path), name="search", **arguments
    )
    configs = [result.config for result in found]
    assert len(configs) == 2 and configs[0]["kd_cls"] != configs[1]["kd_cls"]
    for result in found:
        run = next(r for r in tmp_path.glob("search_*") if r.name.endswith(Path(result.path).name[-5:]))
        assert is_distillation(run, teacher, {name: result.config[name] for name in SPACE})
        assert all(low <= result.config[name] <= high for name, (low, high) in SPACE.items())
        assert trained(run)[0]["kd_box_loss"] == "l1" and result.metrics["val/kd_box"] > 0


@pytest.mark.parametrize("use_ray", [False, True])
@pytest.mark.parametrize(
    "space, given, sentence",
    [
        ({"kd_cls": (0.2, 4.0)}, {"teacher": None}, "'kd_cls' in space= has no effect without a teacher"),
        ({"kd_clss": (0.2, 4.0)}, {}, r"'kd_clss' in space= is not an argument \(did you mean kd_cls\?\)"),
        ({"kd_cls_loss": (0.2, 4.0)}, {}, "'kd_cls_loss' in space= cannot have bounds"),
        ({"kd_init": (0, 1)}, {}, "'kd_init' in space= cannot have bounds"),
        ({"teacher": ["a.pt", "b.pt"]}, {}, "'teacher' in space= cannot be searched"),
        ({"kd_cls": (-1.0, 4.0)}, {}, "'kd_cls=-1.0' is an invalid value"),
        ({"kd_tau": (0.0, 4.0)}, {"kd_cls_loss": "kl"}, "'kd_tau=0.0' is an invalid value"),
        ({"kd_cls": (4.0, 0.2)}, {}, "low not above high"),
        ({"kd_cls": (0.2, "4")}, {}, "low not above high"),
        ({"kd_kpt": (1.0, 4.0)}, {}, "'kd_kpt' in space= has no effect"),
        ({"kd_tau": (1.0, 4.0)}, {}, "'kd_tau' in space= has no effect"),
        ({"kd_cls": (0.0, 4.0)}, {"kd_box": 0.0}, "all distillation weights are 0"),
        ({"kd_cls": (0.2, 4.0)}, {"teacher": "nowhere.pt"}, "nowhere.pt"),
    ],
)
def test_space_that_cannot_be_searched_is_a_sentence_before_anything_is_written(
    quick, teacher, space, given, sentence, use_ray
):
    with pytest.raises(KDError, match=sentence):
        YOLO(STUDENT).tune(use_ray, space=space, **{**quick, "teacher": teacher, **given})
    assert not Path(quick["project"]).exists()


def test_kinds_of_ray_need_ray_and_are_checked_value_by_value(quick, teacher):
    tune = pytest.importorskip("ray.tune")
    choice = {"kd_cls_loss": tune.choice(["bckd", "kl"])}
    with pytest.raises(KDError, match="use_ray=True"):
        YOLO(STUDENT).tune(space=choice, teacher=teacher, **quick)
    with pytest.raises(KDError, match="does not suit task 'detect'"):
        YOLO(STUDENT).tune(True, space={"kd_cls_loss": tune.choice(["kl", "dkd"])}, teacher=teacher, **quick)
    with pytest.raises(KDError, match="is also in space="):
        YOLO(STUDENT).tune(True, space=SPACE, teacher=teacher, kd_cls=1.0, **quick)


def test_bounds_become_rays_kinds_and_other_values_stay(teacher):
    sample = pytest.importorskip("ray.tune.search.sample")
    space = {"kd_cls": (0.2, 4.0, 0.5), "close_mosaic": (0.5, 3.5), "freeze": [0, 1], "lr0": [1e-4, 1e-2]}
    made = search_arguments({"teacher": teacher, "space": space}, "detect", use_ray=True)["space"]
    assert isinstance(made["kd_cls"], sample.Float) and (made["kd_cls"].lower, made["kd_cls"].upper) == (0.2, 4.0)
    assert isinstance(made["close_mosaic"], sample.Integer)
    assert {made["close_mosaic"].sample() for _ in range(100)} == {1, 2, 3}
    assert isinstance(made["lr0"], sample.Float) and made["freeze"] == [0, 1]


def test_search_of_a_temperature_begins_between_its_bounds(teacher):
    given = {"teacher": teacher, "kd_cls_loss": "kl", "space": {"kd_tau": (1.0, 5.0)}}
    assert search_arguments(given, "detect", use_ray=False)["kd_tau"] == 3.0
    assert search_arguments({**given, "kd_tau": 2.0}, "detect", use_ray=False)["kd_tau"] == 2.0


def test_answers_are_stored_once_for_all_iterations_of_a_search(quick, teacher):
    given = {**quick, "teacher": teacher, "kd_cache": True, "space": SPACE}
    folders = {search_arguments(given, "detect", use_ray=False)["kd_cache"] for _ in range(2)}
    assert len(folders) == 1 and Path(folders.pop(), "manifest.json").is_file()


def test_answers_of_a_search_are_to_all_classes_that_the_student_keeps(quick, tmp_path, monkeypatch):
    """A prompted teacher looks for them, and the data name the new ones only."""
    old = str(save_model(tmp_path / "old.pt", STUDENT, {0: "disc", 1: "box", 2: "cup"}))
    asked = {}
    monkeypatch.setattr(
        tuning,
        "build_cache",
        lambda args, sources, options, names=None: asked.update(names) or SimpleNamespace(folder=""),
    )
    given = {**quick, "teacher": old, "kd_cache": True, "kd_keep": True, "space": {"kd_cls": (0.2, 4.0)}}
    search_arguments(given, "detect", use_ray=False, own={"model": old})
    assert list(asked.values()) == ["disc", "box", "cup", "bar"]


def test_a_search_is_checked_with_the_models_own_size_and_data(quick, teacher, monkeypatch):
    """Ultralytics trains with them where the search gives none."""
    stored = {}
    monkeypatch.setattr(
        tuning, "build_cache", lambda args, *_, **__: stored.update(vars(args)) or SimpleNamespace(folder="answers")
    )
    given = {"teacher": teacher, "kd_cache": True, "kd_teacher_imgsz": 128, "space": {"kd_cls": (0.2, 4.0)}}
    made = search_arguments(given, "detect", use_ray=False, own={"imgsz": 64, "data": quick["data"], "model": None})
    assert (stored["imgsz"], stored["data"]) == (64, quick["data"])
    assert made["kd_cache"] == "answers" and "imgsz" not in made and "data" not in made
    with pytest.raises(KDError, match="is smaller than imgsz=640"):
        search_arguments(given, "detect", use_ray=False)


def test_answers_that_are_stored_once_cannot_follow_a_search(quick, teacher):
    given = {**quick, "teacher": teacher, "kd_cache": True, "space": {"imgsz": (64, 128)}}
    with pytest.raises(KDError, match="'imgsz' in space= changes the teacher's answers"):
        search_arguments(given, "detect", use_ray=True)


@pytest.fixture
def asked(monkeypatch) -> dict:
    """Return the arguments with which Ultralytics' own tuners are called, and the class of the model."""
    seen: dict = {}
    monkeypatch.setattr(
        Model, "tune", lambda self, use_ray, iterations, **given: seen.update(given, model_class=type(self))
    )
    return seen


def test_a_recipe_of_a_search_is_read_whole(tmp_path, teacher, asked):
    """Ultralytics' tuners drop `cfg`: every training would be one without a teacher."""
    recipe = {"teacher": teacher, "kd_box": 4.0, "epochs": 3, "mode": "train", "model": "other.pt", "lr0": None}
    YAML.save(tmp_path / "recipe.yaml", recipe)
    YOLO(STUDENT).tune(cfg=str(tmp_path / "recipe.yaml"), iterations=1, epochs=2)
    given = {name: asked[name] for name in asked if name != "model_class"}
    assert given == {"teacher": teacher, "kd_box": 4.0, "epochs": 2}


def test_rays_processes_get_a_model_whose_class_brings_the_kd_arguments(teacher, asked):
    install()
    model = StockYOLO(STUDENT)
    model.tune(use_ray=True, iterations=1, teacher=teacher)
    assert asked["model_class"] is YOLO and type(model) is StockYOLO


def test_a_plain_search_is_ultralytics_own_where_the_plugin_is_enabled():
    space, seen = {"lr0": (0.01, 0.01), "momentum": (np.float32(0.7), np.float32(0.9))}, {}  # the first one is pinned
    tune = _checked_tune(lambda self, *args, **given: seen.update(given))
    tune(None, space=space, iterations=1)
    assert seen == {"space": space, "iterations": 1}
    assert search_arguments({"space": space}, "detect", use_ray=False) == {"space": space}


def test_answers_to_several_data_sets_are_made_before_a_search(quick, teacher):
    given = {**quick, "data": [quick["data"]] * 2, "teacher": teacher, "kd_cache": True, "space": SPACE}
    with pytest.raises(KDError, match="to one data set, and data= names several"):
        search_arguments(given, "detect", use_ray=False)


def test_names_of_files_become_absolute_and_keywords_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ema", "auto", "a.pt"):
        Path(name).touch()
    assert absolute("ema") == "ema" and absolute("auto") == "auto"
    assert absolute([Path("a.pt"), "b.pt"]) == [str(tmp_path / "a.pt"), "b.pt"]
    assert absolute("[a.pt,b.pt]") == [str(tmp_path / "a.pt"), "b.pt"]  # as on a command line
    assert absolute(Path("a.pt")) == str(tmp_path / "a.pt") and absolute(None) is None
    sweep = {"data": ["x.yaml", "y.yaml"], "teacher": [Path("a.pt"), "ema"], "epochs": 1}
    assert sweep_arguments(sweep) == {**sweep, "teacher": [str(tmp_path / "a.pt"), "ema"]}


def test_untrained_student_begins_with_the_teachers_weights_from_a_file_too(quick, tmp_path):
    """Searches and sweeps hand the student over in a file."""
    teacher = str(save_model(tmp_path / "teacher.pt", "yolo26s.yaml"))
    StockYOLO("yolo26n.yaml").save(tmp_path / "student.pt")
    trainer = KDDetectionTrainer(overrides={**quick, "model": str(tmp_path / "student.pt"), "teacher": teacher})
    trainer.setup_model()
    assert trainer.initialized > 0
    trainer = KDDetectionTrainer(overrides={**quick, "model": teacher, "teacher": teacher})
    trainer.setup_model()
    assert trainer.initialized == 0


@pytest.mark.core
def test_plain_yolo_searches_kd_arguments_where_the_plugin_is_enabled(data):
    install()
    with pytest.raises(KDError, match="'kd_cls' in space= has no effect without a teacher"):
        StockYOLO(STUDENT).tune(data=data, space={"kd_cls": (0.2, 4.0)})
