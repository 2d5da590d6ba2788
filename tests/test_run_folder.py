"""The folder of a run belongs to one run, and a failed start removes nothing that another process made."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import STUDENT, save_model

from ultralytics_kd import KDError
from ultralytics_kd.trainer import KDDetectionTrainer
from ultralytics_kd.training.run.run_folder import RunFolder


def arguments(project: Path, **given) -> SimpleNamespace:
    """Return what Ultralytics names a folder by."""
    named = {"project": str(project), "name": "run", "exist_ok": False, "save_dir": None}
    return SimpleNamespace(task="detect", mode="train", **{**named, **given})


def test_runs_of_one_name_that_start_together_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: RunFolder.claim(arguments(tmp_path / "runs" / "deep")), range(16)))
    assert len({folder.path for folder in folders}) == 16 and all(folder.path.is_dir() for folder in folders)
    assert sum(len(folder.created) for folder in folders) == 16 + 2  # "runs" and "deep" were created once


CLAIM = """
import sys
from pathlib import Path
from types import SimpleNamespace
from ultralytics_kd.training.run.run_folder import RunFolder
named = dict(task="detect", mode="train", project=sys.argv[1], name="run", exist_ok=False, save_dir=None)
sys.stdin.readline()
for _ in range(40):
    print(RunFolder.claim(SimpleNamespace(**named)).path)
"""


@pytest.mark.slow
def test_processes_that_start_together_get_folders_of_their_own(tmp_path):
    command = [sys.executable, "-c", CLAIM, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    claimed = [process.communicate("go\n")[0].split() for process in processes]
    assert len(claimed[0]) == len(claimed[1]) == 40 and not set(claimed[0]) & set(claimed[1])


def test_a_failed_start_leaves_the_folders_that_another_run_uses(tmp_path):
    first = RunFolder.claim(arguments(tmp_path / "runs"))
    second = RunFolder.claim(arguments(tmp_path / "runs"))
    (second.path / "results.csv").write_text("of the second run")
    (first.path / "args.yaml").write_text("of the first run")
    first.undo()
    assert not first.path.exists() and (second.path / "results.csv").exists()
    second.undo()
    assert not second.path.exists() and (tmp_path / "runs").is_dir()  # which the first run created


def test_a_folder_that_was_there_is_left_as_it_was(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.csv").write_text("of an earlier run")
    for given in ({"exist_ok": True}, {"save_dir": str(tmp_path / "run")}):
        folder = RunFolder.claim(arguments(tmp_path, **given))
        assert folder.path == tmp_path / "run" and folder.created == []
        folder.undo()
    assert (tmp_path / "run" / "results.csv").read_text() == "of an earlier run"


def test_a_shared_folder_loses_only_the_files_of_the_run_that_failed(tmp_path):
    folder = RunFolder.claim(arguments(tmp_path / "runs", exist_ok=True))
    (folder.path / "weights").mkdir()
    (folder.path / "args.yaml").write_text("of this run")
    folder.note_files()
    (folder.path / "weights" / "last.pt").write_text("of another run that joined")
    folder.undo()
    assert [f.name for f in (tmp_path / "runs").rglob("*") if f.is_file()] == ["last.pt"]


def test_a_shared_folder_that_nobody_joined_goes_with_the_run(tmp_path):
    folder = RunFolder.claim(arguments(tmp_path / "runs", exist_ok=True))
    (folder.path / "weights").mkdir()
    (folder.path / "args.yaml").write_text("of this run")
    folder.note_files()
    folder.undo()
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_leaves_the_folder_of_a_run_of_the_same_name_that_started_meanwhile(quick, teacher):
    overrides = {**quick, "model": STUDENT, "teacher": teacher}
    running = KDDetectionTrainer(overrides=overrides)
    with pytest.raises(KDError, match="no class in common"):
        KDDetectionTrainer(overrides={**overrides, "kd_classes": "auto", "teacher": str(other_classes(quick))})
    assert running.save_dir.is_dir() and [f.name for f in running.save_dir.parent.iterdir()] == ["run"]


def other_classes(quick: dict) -> Path:
    """Return a teacher that knows none of the data's classes."""
    Path(quick["project"]).parent.mkdir(parents=True, exist_ok=True)
    return save_model(Path(quick["project"]).parent / "other.pt", names={0: "fork", 1: "spoon", 2: "knife"})
