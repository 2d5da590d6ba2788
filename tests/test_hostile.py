"""Files from strangers: opening them runs nothing that they name, and says what to do about it."""

from __future__ import annotations

import pickle
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import ultralytics.cfg as ul_cfg
from conftest import NAMES, STUDENT, TEACHER, make_model
from test_training import results
from ultralytics import YOLO as StockYOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn import tasks
from ultralytics.utils import YAML

from ultralytics_kd import YOLO, KDDetectionTrainer, KDError, cli
from ultralytics_kd.bench.plan import make_plan
from ultralytics_kd.cache import make_cache
from ultralytics_kd.config.recipes import check_arguments, check_call, check_line, check_recipe, noting_its_line
from ultralytics_kd.install import install
from ultralytics_kd.report import run_report
from ultralytics_kd.teachers import open_teacher


class Payload:
    """An object whose unpickling makes a file: in an attack it would be any command."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def hostile(folder: Path, place: str) -> tuple[Path, Path]:
    """Write a checkpoint with a payload somewhere in it; return it and the file that a payload that runs would make."""
    ran, file = folder / "ran", folder / "hostile.pt"
    model = make_model(STUDENT)
    model.names = dict(NAMES)
    content = {"model": model, "train_args": {"task": "detect"}}
    if place == "model":
        content["model"] = Payload(ran)
    elif place == "arguments":
        content["train_args"] = {"task": Payload(ran)}
    elif place == "names":
        model.names[0] = Payload(ran)
    elif place == "attribute":
        model.model[3].extra = Payload(ran)
    if place == "no archive":
        file.write_bytes(pickle.dumps({"model": Payload(ran)}, protocol=2))
    else:
        torch.save(content, file)
    return file, ran


PLACES = ["model", "arguments", "names", "attribute", "no archive"]


@pytest.mark.core
@pytest.mark.parametrize("place", PLACES)
def test_code_in_a_teacher_file_does_not_run(tmp_path, place):
    file, ran = hostile(tmp_path, place)
    with pytest.raises(KDError, match=r"is not a plain YOLO checkpoint.*set kd_trust_teacher=True") as error:
        open_teacher(str(file))
    assert not ran.exists() and "\n" not in str(error.value)
    assert tasks.SAFE_LOAD is False  # Ultralytics' own loading is as it was
    with suppress(KDError):  # what comes out need not be a teacher
        open_teacher(str(file), trust=True)
    assert ran.exists()  # whoever trusts it runs it


@pytest.mark.parametrize("way", ["train", "python", "cache", "report", "tune"])
def test_no_command_opens_a_hostile_teacher(tmp_path, quick, data, teacher, way, capfd):
    file, ran = hostile(tmp_path, "model")
    message = r"kd_trust_teacher=True"
    if way == "train":
        args = [f"{k}={v}" for k, v in quick.items()]
        assert cli.main(["train", f"model={STUDENT}", f"teacher={file}", *args]) == 1
    elif way == "python":
        with pytest.raises(KDError, match=message):
            YOLO(STUDENT).train(**quick, teacher=[teacher, str(file)])
    elif way == "cache":
        with pytest.raises(KDError, match=message):
            make_cache({"teacher": str(file), "data": data, "kd_cache": str(tmp_path / "c")})
    elif way == "report":
        with pytest.raises(KDError, match=message):
            run_report({"teacher": str(file), "student": teacher, "data": data, "project": quick["project"]})
    else:
        with pytest.raises(KDError, match=message):
            YOLO(STUDENT).tune(**quick, teacher=str(file), iterations=1)
    assert not ran.exists() and not Path(quick["project"]).exists()


class Strange(torch.nn.Module):
    """A user's own layer, which a restricted loader cannot know."""

    def forward(self, x):
        return x


def test_teacher_with_the_users_own_layers_is_opened_when_it_is_trusted_and_resumed(quick, tmp_path):
    model = make_model(TEACHER)
    model.names, model.model[0].act = dict(NAMES), torch.nn.Sequential(model.model[0].act, Strange())
    file, last = tmp_path / "own.pt", tmp_path / "last.pt"
    torch.save({"model": model, "train_args": {"task": "detect"}}, file)
    with pytest.raises(KDError, match=r"would run code that the file names \(test_hostile.Strange\)"):
        YOLO(STUDENT).train(**quick, teacher=str(file))
    student = YOLO(STUDENT)
    student.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    student.train(**quick, teacher=str(file), kd_trust_teacher=True)
    assert results(Path(quick["project"]) / "run")[-1]["train/kd_cls"] > 0
    again = YOLO(last)
    again.train(resume=True)
    assert again.trainer.start_epoch == 1 and again.trainer.args.kd_trust_teacher is True


def test_teacher_with_own_layers_that_was_given_in_memory_is_resumed_from_beside_the_checkpoint(quick, monkeypatch):
    """It is as trusted as the checkpoint itself, which Ultralytics unpickles."""
    model = make_model(TEACHER)
    model.names, model.model[0].act = dict(NAMES), torch.nn.Sequential(model.model[0].act, Strange())
    student, stopped = YOLO(STUDENT), {}

    def stop(trainer):
        stopped["at"] = trainer.epoch
        raise KeyboardInterrupt

    student.add_callback("on_model_save", stop)
    with pytest.raises(KeyboardInterrupt):
        student.train(**quick, teacher=model)
    last = Path(quick["project"]) / "run" / "weights" / "last.pt"
    assert last.with_name("teacher.pt").exists()
    monkeypatch.chdir(last.parents[1])
    YOLO("weights/last.pt").train(resume=True)
    assert [row["epoch"] for row in results(last.parents[1])] == [1, 2]


@pytest.mark.parametrize("name", ["model.torchscript", "model.engine", "x_saved_model", "model.pb"])
def test_exported_formats_that_can_hold_programs_are_asked_about(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(KDError, match=r"can hold code.*set kd_trust_teacher=True"):
        open_teacher(str(tmp_path / name))


# Recipes --------------------------------------------------------------------------------------------------------------
CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
def loss(student, teacher): return (student - teacher).square().mean()
"""
RECIPES = {
    "teacher": {"teacher": "stranger:loss"},
    "loss": {"kd_feat": 1.0, "kd_feat_loss": "stranger:loss"},
    "class loss": {"kd_cls_loss": "stranger:loss"},
    "box loss": {"kd_box_loss": "stranger:loss"},
    "trust": {"kd_trust_teacher": True},
    "trust and loss": {"kd_trust_teacher": True, "kd_feat": 1.0, "kd_feat_loss": "stranger:loss"},
}


@pytest.mark.core
@pytest.mark.parametrize("way", ["command line", "python"])
@pytest.mark.parametrize("kind", RECIPES)
def test_recipe_neither_runs_code_nor_says_that_it_is_trusted(tmp_path, quick, teacher, monkeypatch, capfd, kind, way):
    (tmp_path / "stranger.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    recipe = {"model": STUDENT, "teacher": teacher, **quick, **RECIPES[kind]}
    YAML.save(tmp_path / "recipe.yaml", recipe)
    if way == "command line":
        assert cli.main(["train", "cfg=recipe.yaml"]) == 1
    else:
        with pytest.raises(KDError, match=r"cfg=recipe\.yaml"):
            YOLO(STUDENT).train(cfg="recipe.yaml")
    assert not (tmp_path / "ran").exists() and not Path(quick["project"]).exists()


@pytest.mark.core
@pytest.mark.parametrize("name", ["teacher", "kd_feat_loss", " kd_feat_loss "])
@pytest.mark.parametrize(
    "value",
    [
        "a.pt,evil:make",
        " evil:make",
        "'evil:make'",
        "[a.pt, 'evil:make']",
        "('evil:make',)",
        "'ev' 'il:make'",
        r"'evil\x3amake'",
        ["a.pt", " 'evil:make' "],
        "\"'evil:make'\"",
    ],
)
def test_no_way_to_write_code_hides_it_in_a_recipe(name, value):
    """Later readers drop quotes and spaces, split at commas, or read the value as Python."""
    with pytest.raises(KDError, match=r"evil:make, which would run code"):
        check_arguments({name: value}, "cfg=recipe.yaml", {})


def test_a_value_that_contains_itself_is_one_sentence(tmp_path):
    (tmp_path / "recipe.yaml").write_text("teacher: &a [*a]\n")
    with pytest.raises(KDError, match="stands for more than 100,000 values"):
        check_recipe(tmp_path / "recipe.yaml", {})


def test_a_recipe_does_not_trust_itself_by_spaces_around_the_name():
    with pytest.raises(KDError, match="which only the command can set"):
        check_arguments({"kd_trust_teacher ": True}, "cfg=recipe.yaml", {})


@pytest.mark.parametrize("source", ["timm:convnext_tiny", "torchvision:resnet50", "[timm:a,torchvision:b]"])
def test_recipe_may_name_pretrained_models_of_known_libraries(tmp_path, source):
    YAML.save(tmp_path / "recipe.yaml", {"teacher": source})
    assert check_recipe(tmp_path / "recipe.yaml", {}) == {"teacher": source}
    for code in ("os:system", "timm.models:create_model", "torchvision.datasets:CIFAR10"):
        YAML.save(tmp_path / "recipe.yaml", {"teacher": f"[{source.strip('[]')},{code}]"})
        with pytest.raises(KDError, match=f"teacher={code}, which would run code"):
            check_recipe(tmp_path / "recipe.yaml", {})
    for loss in ("kd_feat_loss", "kd_cls_loss"):  # only teachers are models
        with pytest.raises(KDError, match=f"{loss}=timm:create_model, which would run code"):
            check_arguments({loss: "timm:create_model"}, "cfg=recipe.yaml", {})


@pytest.mark.parametrize("given", [["kd_feat_loss=stranger:loss"], ["kd_trust_teacher=True"]])
def test_command_itself_may_name_code_beside_a_recipe(tmp_path, quick, teacher, monkeypatch, given):
    (tmp_path / "stranger.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    recipe = {"model": STUDENT, "teacher": teacher, **quick, "epochs": 1, **RECIPES["loss"]}
    YAML.save(tmp_path / "recipe.yaml", recipe)
    assert cli.main(["train", "cfg=recipe.yaml", *given]) == 0
    assert (tmp_path / "ran").exists() and results(Path(quick["project"]) / "run")[0]["train/kd_feat"] > 0


@pytest.mark.parametrize(
    "recipe, call",
    [
        ("loss", {"kd_feat_loss": "stranger:loss"}),
        ("loss", {"kd_trust_teacher": True}),
        ("trust and loss", {"kd_trust_teacher": True}),
        ("trust", {"kd_trust_teacher": False}),
    ],
)
def test_call_itself_may_name_code_beside_a_recipe(tmp_path, quick, teacher, monkeypatch, recipe, call):
    (tmp_path / "stranger.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    YAML.save(tmp_path / "recipe.yaml", {"teacher": teacher, **quick, "epochs": 1, **RECIPES[recipe]})
    YOLO(STUDENT).train(cfg="recipe.yaml", **call)
    assert (tmp_path / "ran").exists() == ("loss" in recipe)
    assert YAML.load(Path(quick["project"]) / "run/args.yaml")["cfg"] is None  # other processes do not check it again


def test_a_teacher_of_the_call_replaces_the_one_that_a_recipe_names(tmp_path, quick, teacher, monkeypatch):
    (tmp_path / "stranger.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    YAML.save(tmp_path / "recipe.yaml", {**quick, "epochs": 1, **RECIPES["teacher"]})
    YOLO(STUDENT).train(cfg="recipe.yaml", teacher=teacher)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["teacher", "loss", "trust and loss"])
@pytest.mark.parametrize(
    "door",
    [
        *(
            "resume",
            "two recipes",
            "several data sets",
            "bench",
            "bench's arms",
            "tune",
            "a trainer's own",
            "no distiller",
        ),
        *("no distiller", "another program", "stock YOLO"),
    ],
)
def test_recipe_runs_no_code_by_any_other_door(tmp_path, quick, data, teacher, monkeypatch, door, kind):
    (tmp_path / "stranger.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    recipe = {"model": STUDENT, "teacher": teacher, **quick, "epochs": 1, **RECIPES[kind]}
    if door == "several data sets":
        recipe["data"] = [data, data]
    YAML.save(tmp_path / "recipe.yaml", recipe)
    YAML.save(tmp_path / "mine.yaml", {"model": STUDENT})
    YAML.save(tmp_path / "arms.yaml", {"other": {k: v for k, v in recipe.items() if k in RECIPES[kind]}})
    lines = {
        "resume": ["train", "resume", f"model={teacher}", "cfg=recipe.yaml"],
        "two recipes": ["train", "cfg=recipe.yaml", "cfg=mine.yaml"],
        "several data sets": ["train", "--cfg=recipe.yaml"],
        "bench": ["bench", "cfg=recipe.yaml", "seeds=1"],
        "bench's arms": ["bench", f"model={STUDENT}", f"data={data}", f"teacher={teacher}", "arms=arms.yaml"],
    }
    if door in lines:
        assert cli.main(lines[door]) == 1
    else:
        with pytest.raises(KDError, match=r"cfg=recipe\.yaml"):
            knock(door)
    assert not (tmp_path / "ran").exists() and not Path(quick["project"]).exists()


def knock(door: str) -> None:
    """Train by one of the ways that do not lead through our command line."""
    if door == "tune":
        YOLO(STUDENT).tune(cfg="recipe.yaml", iterations=1)
    elif door == "a trainer's own":
        KDDetectionTrainer(cfg="recipe.yaml")
    elif door == "no distiller":
        StockYOLO(STUDENT).train(trainer=DetectionTrainer, cfg="recipe.yaml")
    elif door == "stock YOLO":
        StockYOLO(STUDENT).train(trainer=KDDetectionTrainer, cfg="recipe.yaml")
    else:  # as `ultralytics` is called after `yolo-kd enable`
        install()
        before = ul_cfg.ARGV[:]
        ul_cfg.ARGV[:] = ["/usr/bin/ultralytics", "train", "cfg=recipe.yaml"]
        try:
            ul_cfg.entrypoint()
        finally:
            ul_cfg.ARGV[:] = before


@pytest.mark.parametrize("program", ["train.py", "/home/me/yolo.py", "/usr/bin/yolo", "ul", "yolo-kd"])
def test_command_line_of_another_program_is_none_of_ours(tmp_path, monkeypatch, program):
    """Whatever its name: it is ours only while Ultralytics' command line runs."""
    mine = {"teacher": "stranger:loss", "kd_trust_teacher": True, "kd_cls_loss": "stranger:loss"}
    YAML.save(tmp_path / "app.yaml", {**mine, "train": {"teacher": "stranger:loss"}})
    monkeypatch.setattr(ul_cfg, "ARGV", [program, f"--cfg={tmp_path / 'app.yaml'}", f"cfg={tmp_path / 'app.yaml'}"])
    check_call({"data": "coco8.yaml"})
    check_call({"data": "coco8.yaml", **mine})
    with pytest.raises(KDError, match=r"'kd_cls=2\.0' has no effect without a teacher"):  # the call is still checked
        check_call({"data": "coco8.yaml", "kd_cls": 2.0})


@pytest.mark.parametrize("way", ["line", "debug"])
def test_command_line_is_read_while_ultralytics_runs_it_and_no_longer(tmp_path, monkeypatch, way):
    YAML.save(tmp_path / "its.yaml", {"kd_trust_teacher": True})
    line = ["yolo", "train", f"cfg={tmp_path / 'its.yaml'}"]
    monkeypatch.setattr(ul_cfg, "ARGV", line if way == "line" else ["train.py"])
    called = []

    def stock(debug: str = "") -> None:
        called.append(debug)
        check_call({"data": "coco8.yaml", "kd_trust_teacher": True})

    with pytest.raises(KDError, match=r"its\.yaml sets kd_trust_teacher, which only the command can set"):
        noting_its_line(stock)(" ".join(line) if way == "debug" else "")
    assert called
    check_call({"data": "coco8.yaml", "kd_trust_teacher": True, "teacher": "t.pt"})


@pytest.mark.parametrize("line", [["cfg=nowhere.yaml"], ["--cfg="], ["=", "x"], ["cfg=[1]"], ["["], []])
def test_command_line_that_cannot_be_read_is_left_to_ultralytics(monkeypatch, line):
    monkeypatch.setattr(ul_cfg, "ARGV", ["yolo", *line])
    called = []
    noting_its_line(called.append)()
    assert called == [""]


def test_recipe_that_is_no_yaml_is_an_error_of_our_own_command_line(tmp_path):
    (tmp_path / "its.yaml").write_text("{no yaml: [")
    with pytest.raises(KDError, match="could not be read as YAML"):
        check_line([f"cfg={tmp_path / 'its.yaml'}"])


def test_bench_trusts_a_teacher_when_the_command_does_and_no_sooner(tmp_path, teacher, data):
    given = {"model": STUDENT, "data": data, "teacher": teacher, "project": str(tmp_path)}
    assert make_plan(given).trust is False
    assert make_plan({**given, "kd_trust_teacher": True}).trust is True


def test_torch_without_a_restricted_loader_opens_nothing_that_is_not_trusted(teacher, monkeypatch):
    monkeypatch.delattr(torch.serialization, "get_unsafe_globals_in_checkpoint")
    with pytest.raises(KDError, match=r"cannot load untrusted files safely: use torch 2\.6 or newer"):
        open_teacher(teacher)
    assert open_teacher(teacher, trust=True).names == NAMES
