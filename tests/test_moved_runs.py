"""Runs whose folder or files are moved, renamed, copied or about to be overwritten."""

from __future__ import annotations

import shutil
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
import torch
from conftest import STUDENT, save_model
from ultralytics.utils import YAML

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.files import exists
from ultralytics_kd.trainer import KDDetectionTrainer
from ultralytics_kd.training.run.moved_run import RunPlace, bring_up_to_date
from ultralytics_kd.training.run.run_folder import RunFolder
from ultralytics_kd.training.run.teacher_source import TeacherSource
from ultralytics_kd.training.tuning import search_arguments


# A teacher that its student would overwrite ---------------------------------------------------------------------------
def touch(*files: Path) -> None:
    """Write empty files and their folders."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "epoch3.pt"])
@pytest.mark.parametrize("way", ["itself", "a link to it", "a linked folder", "relative", "one of several"])
def test_teacher_that_its_student_would_overwrite_is_refused(tmp_path, monkeypatch, name, way):
    folder = tmp_path / "exp"
    file = folder / "weights" / name
    touch(file, tmp_path / "other.pt")
    (tmp_path / "link.pt").symlink_to(file)
    (tmp_path / "linked").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    teacher = {
        "itself": str(file),
        "a link to it": tmp_path / "link.pt",
        "a linked folder": str(tmp_path / "linked" / "weights" / name),
        "relative": f"exp/../exp/weights/{name}",
        "one of several": [str(tmp_path / "other.pt"), file],
    }[way]
    for run in (folder, tmp_path / "linked"):
        with pytest.raises(KDError, match=r"would overwrite it: give another name= or project=, or from Python"):
            TeacherSource(teacher).check_place(run, save_period=1)


def test_teacher_that_no_student_overwrites_may_be_in_the_runs_folder(tmp_path):
    folder = tmp_path / "exp"
    files = [folder / "weights" / name for name in ("teacher.pt", "big.pt", "epoch3.pt")]
    files += [folder / "best.pt", folder / "teachers" / "best.pt", tmp_path / "old" / "weights" / "best.pt"]
    touch(*files)
    (folder / "weights" / "best.pt").symlink_to(files[-1])  # the link is replaced, its target stays
    sources = [*files, folder / "weights" / "best.pt", "yolo26x.pt", "ema", "https://a.b/best.pt", "x\0y"]
    for source in sources:
        TeacherSource(str(source)).check_place(folder, save_period=-1)
        TeacherSource(str(source)).check_place(tmp_path / "new", save_period=1)
    with pytest.raises(KDError, match=r"teacher\.pt is in .*would overwrite it"):  # the object is saved as teacher-1.pt
        TeacherSource([str(files[0]), torch.nn.Linear(1, 1)]).check_place(folder, save_period=-1)


@pytest.mark.parametrize("by", ["exist_ok", "save_dir"])
def test_refused_before_anything_is_written(quick, teacher, by):
    folder = Path(quick["project"]) / "run"
    touch(folder / "args.yaml", folder / "results.csv", folder / "weights" / "best.pt")
    shutil.copy2(teacher, folder / "weights" / "best.pt")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    given = {"exist_ok": True} if by == "exist_ok" else {"save_dir": str(folder)}
    with pytest.raises(KDError, match=r"best\.pt is in .*run, where this run saves its student"):
        YOLO(STUDENT).train(**quick, **given, teacher=str(folder / "weights" / "best.pt"))
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_search_that_is_resumed_does_not_overwrite_its_teacher_either(tmp_path, teacher):
    best = tmp_path / "tune" / "weights" / "best.pt"
    best.parent.mkdir(parents=True)
    shutil.copy2(teacher, best)
    given = {"teacher": str(best), "project": str(tmp_path), "data": "coco8.yaml"}
    assert search_arguments(given, "detect", False)["teacher"] == str(best)  # a new search gets a folder of its own
    with pytest.raises(KDError, match="would overwrite it"):
        search_arguments({**given, "resume": True}, "detect", False)


def test_a_run_that_fails_in_the_folder_of_an_earlier_one_leaves_its_arguments_and_results(tmp_path):
    touch(tmp_path / "run" / "args.yaml")
    (tmp_path / "run" / "results.csv").write_text("epoch\n1\n")
    named = {"project": str(tmp_path), "name": "run", "exist_ok": True, "save_dir": None}
    folder = RunFolder.claim(SimpleNamespace(task="detect", mode="train", **named))
    (tmp_path / "run" / "args.yaml").write_text("of the run that fails")
    (tmp_path / "run" / "results.csv").unlink()  # as Ultralytics does
    folder.undo()
    assert (tmp_path / "run" / "args.yaml").read_text() == ""
    assert (tmp_path / "run" / "results.csv").read_text() == "epoch\n1\n"


# Where the files of a run are now -------------------------------------------------------------------------------------
def a_run(folder: Path) -> Path:
    """Make the folder of a run, and return its checkpoint."""
    touch(folder / "args.yaml", folder / "weights" / "last.pt", folder / "weights" / "best.pt")
    return folder / "weights" / "last.pt"


def test_files_of_a_moved_project_are_found_where_they_were_beside_the_run(tmp_path):
    last = a_run(tmp_path / "new" / "exp")
    now = tmp_path / "new"
    files = ["exp/weights/teacher.pt", "exp/cache", "big/weights/best.pt", "images"]
    touch(*(now / file / ".keep" if "." not in file else now / file for file in files))
    place = RunPlace(last, "/home/a/old/exp")
    assert place.moved and place.now == now / "exp"
    assert place.find([f"/home/a/old/{file}" for file in files]) == [str(now / file) for file in files]
    others = ["/home/a/old/gone.pt", "/data/gone.pt", "yolo26x.pt", "ema", "ul://a/b/c", "timm:resnet18"]
    assert place.find(others) == others
    assert place.find(True) is True and place.find(None) is None


def test_file_beside_the_checkpoint_is_found_but_never_the_student(tmp_path):
    last = a_run(tmp_path / "exp")
    touch(last.with_name("big.pt"))
    place = RunPlace(last, "/home/a/old/exp")
    assert place.find("/data/teachers/big.pt") == str(last.with_name("big.pt"))
    for name in ("best.pt", "last.pt"):
        assert place.find(f"/data/teachers/{name}") == f"/data/teachers/{name}"


def test_copy_of_a_run_has_its_own_files_and_the_run_itself_those_it_recorded(tmp_path):
    for folder in ("old", "copy"):
        a_run(tmp_path / folder / "exp")
        touch(tmp_path / folder / "exp" / "weights" / "teacher.pt", tmp_path / folder / "big.pt")
    touch(tmp_path / "teacher.pt")
    recorded = [str(tmp_path / "old" / "big.pt"), str(tmp_path / "old" / "exp" / "weights" / "teacher.pt")]
    copy = RunPlace(tmp_path / "copy" / "exp" / "weights" / "last.pt", str(tmp_path / "old" / "exp"))
    assert copy.moved and copy.find(recorded) == [each.replace("/old/", "/copy/") for each in recorded]
    (tmp_path / "linked").symlink_to(tmp_path / "old")
    for last in (tmp_path / "old" / "exp" / "weights" / "last.pt", tmp_path / "linked" / "exp" / "weights" / "last.pt"):
        itself = RunPlace(last, str(tmp_path / "old" / "exp"))
        assert not itself.moved and itself.find([*recorded, tmp_path / "teacher.pt"]) == [
            *recorded,
            str(tmp_path / "teacher.pt"),  # and not the one of the same name beside the checkpoint
        ]


def test_checkpoint_that_was_copied_alone_goes_on_in_the_folder_of_its_run(tmp_path):
    old = a_run(tmp_path / "old" / "exp")
    for copied in (tmp_path / "last.pt", tmp_path / "backup" / "weights" / "last.pt"):
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(old, copied)
        assert not RunPlace(copied, str(tmp_path / "old" / "exp")).moved
    assert not RunPlace(tmp_path / "last.pt", "/home/a/gone/exp").moved  # its folder is no run's
    assert RunPlace(tmp_path / "backup" / "weights" / "last.pt", "/home/a/gone/exp").moved
    assert not RunPlace(old, None).moved


def test_run_of_another_operating_system_is_found(tmp_path):
    last = a_run(tmp_path / "new" / "exp")
    touch(last.with_name("teacher.pt"), tmp_path / "new" / "big.pt")
    place = RunPlace(last, str(PureWindowsPath(r"C:\Users\a\runs\exp")))
    assert place.find(r"C:\Users\a\runs\exp\weights\teacher.pt") == str(last.with_name("teacher.pt"))
    assert place.find(r"C:\Users\a\runs\big.pt") == str(tmp_path / "new" / "big.pt")
    assert place.find(r"D:\big.pt") == r"D:\big.pt"


def test_arguments_of_the_call_stay_and_data_moves_only_when_it_is_gone(tmp_path):
    last = a_run(tmp_path / "new" / "exp")
    touch(tmp_path / "new" / "data.yaml", tmp_path / "new" / "t.pt", tmp_path / "here.yaml")
    recorded = {"teacher": "/old/p/t.pt", "kd_unlabeled": None, "kd_cache": False, "save_dir": "/old/p/exp"}
    for data, found in (("/old/p/data.yaml", tmp_path / "new" / "data.yaml"), (tmp_path / "here.yaml",) * 2):
        args = SimpleNamespace(**recorded, data=str(data))
        bring_up_to_date(args, {}, RunPlace(last, "/old/p/exp"))
        assert (args.teacher, args.data) == (str(tmp_path / "new" / "t.pt"), str(found))
        assert args.save_dir == str(tmp_path / "new" / "exp") and args.kd_cache is False
    args = SimpleNamespace(**recorded, data="coco8.yaml")
    bring_up_to_date(args, {"teacher": "/old/p/t.pt", "save_dir": "/old/p/exp"}, RunPlace(last, "/old/p/exp"))
    assert vars(args) == {**recorded, "data": "coco8.yaml"}


@pytest.mark.parametrize("name", ["kd_unlabeled", "kd_cache"])
def test_images_and_answers_that_are_gone_are_missed_at_once(tmp_path, name):
    recorded = {"teacher": "/old/p/t.pt", "kd_unlabeled": None, "kd_cache": False, "data": "coco8.yaml"}
    place = RunPlace(a_run(tmp_path / "exp"), "/old/p/exp")
    args = SimpleNamespace(**{**recorded, name: "/old/p/gone"})
    with pytest.raises(
        KDError, match=f"{name}=/old/p/gone was not found.*: if it is elsewhere now, resume with {name}="
    ):
        bring_up_to_date(args, {}, place)
    bring_up_to_date(args, {name: str(tmp_path)}, place)  # the call names another place


def test_drive_that_is_gone_is_a_place_where_nothing_exists(monkeypatch):
    def stat(*_, **__):
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr("pathlib.Path.stat", stat)
    assert not exists("/mnt/share/teacher.pt")
    assert TeacherSource("/mnt/share/teacher.pt").check_place(Path("/tmp")) is None


def test_folder_that_cannot_be_made_here_is_one_sentence(tmp_path):
    touch(tmp_path / "file")
    with pytest.raises(KDError, match=r"cannot be created .*: resume with save_dir=FOLDER"):
        RunFolder.of_resumed_run(tmp_path / "file" / "exp")
    folder = RunFolder.of_resumed_run(tmp_path / "gone" / "exp")
    assert folder.path.is_dir()
    folder.undo()
    assert not (tmp_path / "gone").exists()


# A run ----------------------------------------------------------------------------------------------------------------
@pytest.mark.nightly
def test_moved_run_with_all_its_files_is_resumed_where_it_is_now(quick, tmp_path, data, monkeypatch):
    """A project with its teacher, data and images is renamed; nothing of it is at the old place."""
    project = tmp_path / "project"
    shutil.copytree(Path(data).parent, project / "shapes")
    YAML.save(project / "shapes" / "data.yaml", {**YAML.load(data), "path": ""})  # relative to the file
    save_model(project / "big.pt", STUDENT)
    given = {"data": str(project / "shapes" / "data.yaml"), "project": str(project / "runs")}
    given |= {"teacher": "big.pt", "kd_unlabeled": "shapes/images/val"}
    monkeypatch.chdir(project)  # relative paths
    run = interrupted({**quick, **given})
    monkeypatch.chdir(tmp_path)
    project.rename(tmp_path / "renamed")
    last = tmp_path / "renamed" / run.relative_to(project) / "weights" / "last.pt"
    model = YOLO(last)
    model.train(resume=True)
    assert model.trainer.start_epoch == 1 and model.trainer.save_dir == last.parents[1] and not project.exists()
    saved = YAML.load(last.parents[1] / "args.yaml")
    assert saved["teacher"] == str(tmp_path / "renamed" / "big.pt")
    assert saved["kd_unlabeled"] == str(tmp_path / "renamed" / "shapes" / "images" / "val")


def interrupted(args: dict) -> Path:
    """Start a run, interrupt it after its first epoch, and return its folder."""

    def stop(trainer):
        raise KeyboardInterrupt

    trainer = KDDetectionTrainer(overrides={**args, "model": STUDENT})
    trainer.add_callback("on_model_save", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer.save_dir


@pytest.mark.nightly
def test_copied_run_goes_on_with_its_own_teacher_and_cache_and_leaves_the_original_alone(quick, tmp_path, teacher):
    teacher_in_memory = YOLO(teacher)
    run = interrupted({**quick, "teacher": teacher_in_memory, "kd_cache": True})
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    copied = shutil.copytree(run, tmp_path / "elsewhere" / "copy")
    model = YOLO(copied / "weights" / "last.pt")
    model.train(resume=True)
    assert model.trainer.args.teacher == str(copied / "weights" / "teacher.pt")
    assert model.trainer.save_dir == copied and (copied / "results.csv").read_text().count("\n") == 3
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
