"""SIGKILL while a student learns: the run goes on from its last whole checkpoint, and ends as one that was only paused.

`ULTRALYTICS_KD_TEST_KILLS=20 pytest tests/test_interruption.py` kills as often, at moments of every kind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import KD, results
from ultralytics.utils.patches import torch_load

KILLS = int(os.environ.get("ULTRALYTICS_KD_TEST_KILLS", 2))
EPOCHS = 2 if KILLS < 10 else 8
MOMENTS = (
    *("half a checkpoint", "batch", "between checkpoints", "any", "validation", "batch", "results", "any"),
    *("batch", "half a checkpoint", "any", "validation", "between checkpoints", "batch", "any", "half a checkpoint"),
)
LATE = ("stripping", "stripping", "final validation")  # moments at a run's end


class Runs:
    """A process that trains when told, and is told again when the training was killed."""

    def __init__(self, tmp_path: Path, data: str, teacher: str):
        self.args = {"data": data, "teacher": teacher, **KD, "kd_schedule": "cosine", "kd_weight": 0.5}
        self.log = tmp_path / "log"
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("interrupted_runs.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env={**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},  # else nothing that was forked could use a GPU
        )

    def __call__(self, project: Path, moment: str, seed: int = 0) -> int:
        """Train, and return the exit status."""
        order = {"project": str(project), "moment": moment, "seed": seed, "epochs": EPOCHS, "args": self.args}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():  # the child's progress bars come this way too
            if line.strip().lstrip("-").isdigit():
                return int(line)
        raise AssertionError(self.log.read_text()[-3000:])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture
def runs(tmp_path, data, teacher):
    process = Runs(tmp_path, data, teacher)
    yield process
    process.close()


def epoch_of(weights: Path) -> int:
    """Return how many epochs are in last.pt, 0 if there is none; every checkpoint must be whole."""
    for file in weights.glob("*.pt"):
        ckpt = torch_load(file)
        assert all(v.isfinite().all() for v in (ckpt["ema"] or ckpt["model"]).state_dict().values())
    last = weights / "last.pt"
    return torch_load(last)["epoch"] + 1 if last.exists() else 0


def test_killed_at_any_moment_a_run_ends_like_one_that_was_paused(runs, tmp_path):
    late = LATE[: max(KILLS // 4, 1)]
    early = MOMENTS * KILLS
    killed, number, have, stops = [], 0, 0, []
    while len(killed) < KILLS:
        folder = tmp_path / f"killed-{number}"
        weights = folder / "run" / "weights"
        ends = have >= EPOCHS - 1 or len(killed) >= KILLS - len(late)  # the rest is for the moments at a run's end
        moment = late[len(killed) % len(late)] if ends else early[len(killed)]
        status = runs(folder, moment, seed=len(killed))
        assert status in {-signal.SIGKILL, 0}, (moment, runs.log.read_text()[-3000:])
        killed += [moment] if status else []
        now = epoch_of(weights)
        over = (weights / "last.pt").exists() and not now  # it is stripped
        assert now >= have or over, "an epoch that was saved is lost"
        stops += [now] if have < now < EPOCHS else []
        have = now
        if status == 0 or over:  # it came to its end, or was killed behind it
            check_finished(folder / "run", clean=status == 0)
            if len(killed) < KILLS:
                number, have, stops = number + 1, 0, []
    if not (weights / "last.pt").exists() or torch_load(weights / "last.pt")["optimizer"]:
        assert runs(folder, "never") == 0, runs.log.read_text()[-3000:]
        check_finished(folder / "run")
    kinds = ", ".join(f"{killed.count(moment)} {moment}" for moment in dict.fromkeys(killed))
    print(f"{KILLS} kills in {number + 1} runs: {kinds}")

    if KILLS < 10:
        return
    # A run that stops right behind its checkpoints, where the other was killed some time later
    paused = tmp_path / "paused"
    for epoch in stops:
        assert runs(paused, f"saved {epoch}") == -signal.SIGKILL
    assert runs(paused, "never") == 0, runs.log.read_text()[-3000:]
    check_finished(paused / "run")
    states = [torch_load(f / "run" / "weights" / "last.pt")["model"].state_dict() for f in (folder, paused)]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    ours, theirs = (results(f / "run") for f in (folder, paused))
    assert [{k: v for k, v in row.items() if k != "time"} for row in ours] == [
        {k: v for k, v in row.items() if k != "time"} for row in theirs
    ]


def check_finished(run: Path, clean: bool = True) -> None:
    """Every epoch is in the results once, and the checkpoints are finished ones."""
    assert [row["epoch"] for row in results(run)] == list(range(1, EPOCHS + 1))
    for name in ("last.pt", "best.pt"):
        ckpt = torch_load(run / "weights" / name)
        assert ckpt["optimizer"] is None and ckpt["model"] is not None
    assert not clean or not list((run / "weights").glob(".*"))
