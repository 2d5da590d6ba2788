"""Jobs of a bench: processes that leave records, and the folder that keeps them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import ultralytics
from filelock import FileLock, Timeout
from ultralytics.utils import LOGGER

from .. import __version__
from ..errors import KDError
from ..files import lock_file, make_folder
from ..report.score_names import END2END, NMS, ONE

VERSIONS = {"ultralytics_kd": __version__, "ultralytics": ultralytics.__version__, "torch": str(torch.__version__)}


@dataclass(frozen=True)
class Job:
    """A training or scoring that leaves a record.

    Attributes:
        name (str): Name in messages, and of record, log and run folder.
        identity (dict[str, Any]): What its result depends on, in terms that another machine can compare.
        work (dict[str, Any]): What the worker is told, as in `worker.work`.
        arm (str | None): Arm of a student.
        seed (int | None): Seed of a student.
    """

    name: str
    identity: dict[str, Any]
    work: dict[str, Any]
    arm: str | None = None
    seed: int | None = None


class JobFolder:
    """The folder of a bench, for one bench at a time.

    Attributes:
        path (Path): The folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self._running: set[subprocess.Popen] = set()
        self._stopped = False
        self._told: set[str] = set()  # jobs whose other versions have been told of
        self._lock = FileLock(path / ".lock")

    def __enter__(self) -> JobFolder:
        """Take the folder.

        Raises:
            KDError: If another bench has it, or it cannot be made.
        """
        make_folder(self.path)
        lock_file(self.path)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as e:
            raise KDError(f"another bench is at work in {self.path}: wait for it, or give another name=.") from e
        return self

    def __exit__(self, *_: Any) -> None:
        """End what still runs, and leave the folder to others."""
        self.stop()
        self._lock.release()

    def stop(self) -> None:
        """End what runs, and begin nothing more."""
        self._stopped = True
        for process in list(self._running):
            kill_tree(process.pid)

    def record(self, job: Job) -> dict[str, Any] | None:
        """Return the record of a job if it is there.

        Raises:
            KDError: If it is damaged, or that of another job by the same name.
        """
        file = self._file("records", job)
        if not file.exists():
            return None
        record = read_record(file, trained=job.arm is not None)
        was, now = record["job"], job.identity
        changed = sorted(k for k in {*was, *now} if was.get(k) != now.get(k))
        if changed:
            k = changed[0]
            rename = "rename the arm, " if job.arm and {"teacher", "distill_model"} & now.keys() else ""
            raise KDError(
                f"'{job.name}' in {self.path} was made with {k}={was.get(k)}, and {k}={now.get(k)} is asked for: give "
                f"another name=, {rename}or delete {file}."
            )
        if record["versions"] != VERSIONS and job.name not in self._told:
            self._told.add(job.name)
            LOGGER.warning(f"'{job.name}' was made with {record['versions']}, this is {VERSIONS}.")
        return record

    def run(self, job: Job) -> None:
        """Do a job in a process of its own, what it prints in a log.

        Raises:
            KDError: If it fails.
        """
        file, log, record = self._file("jobs", job), self._file("logs", job, ".log"), self._file("records", job)
        for f in (file, log):
            f.parent.mkdir(parents=True, exist_ok=True)
        told = {
            **job.work,
            "identity": job.identity,
            "versions": VERSIONS,
            "record": str(record.absolute()),
            "trained": str(self._file("trained", job).absolute()),
            "bench": os.getpid(),
        }
        file.write_text(json.dumps(told, indent=2, default=str), encoding="utf-8")
        command = [sys.executable, "-m", "ultralytics_kd.bench.worker", str(file)]
        with log.open("w", encoding="utf-8") as out:
            if self._stopped:
                raise KDError(f"{job.name}: the bench was stopped.")
            process = subprocess.Popen(command, stdout=out, stderr=out)
            self._running.add(process)
            status = process.wait()
            self._running.discard(process)
        if status or not record.exists():
            raise KDError(f"{job.name}: {_last_line(log) or f'exit status {status}'} ({log})")

    def _file(self, kind: str, job: Job, suffix: str = ".json") -> Path:
        """Return a file of a job."""
        return self.path / kind / f"{job.name}{suffix}"


def read_record(file: Path, trained: bool) -> dict[str, Any]:
    """Return what a job has left.

    Args:
        file (Path): Its record.
        trained (bool): Whether it was a training.

    Raises:
        KDError: If it is no such record.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        kinds = {"job": dict, "versions": dict, "scores": dict, "parameters": int, "weights": str, "unmatched": list}
        kinds |= {"epochs": int, "batch": int} if trained else {}
        scores = list(record["scores"].values())
        values = [value for each in scores for value in each.values()]
        values += [record[name] for name in ("seconds", "epochs", "batch") if trained]
        good = (
            all(isinstance(record[key], kind) for key, kind in kinds.items())
            and bool(scores)
            and {*record["scores"]} <= {NMS, END2END, ONE}
            and all({"score", "second"} <= {*each} and not {*each} & {"arm", "seed", "head"} for each in scores)
            and all(type(value) in {int, float} and not abs(value) > sys.maxsize for value in values)
            and all(isinstance(name, str) for name in record["unmatched"])
        )
    # OSError: a folder in its place; the others are what comes of looking into something else
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise KDError(f"{file} is damaged or another program's: delete it, and what it is of will be done again.")
    return dict(record)


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started."""
    try:
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue


def _last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")
