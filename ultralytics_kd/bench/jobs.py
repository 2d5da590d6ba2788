"""Jobs of a bench: each runs in a process and leaves a record. The folder of the bench keeps the records."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from ultralytics.utils import LOGGER

from ..compat import versions
from ..errors import KDError
from ..files import lock_file, make_folder
from .records import read_record

VERSIONS = versions()


@dataclass(frozen=True)
class Job:
    """A training or scoring that leaves a record.

    Attributes:
        name (str): Name in messages, and of record, log and run folder.
        identity (dict[str, Any]): Everything that the result depends on, the same on every machine.
        inputs (dict[str, Any]): Inputs of the worker, as in `worker.run_job`.
        arm (str | None): Arm of a student; None for a teacher.
        seed (int | None): Seed of a student; None for a teacher.
    """

    name: str
    identity: dict[str, Any]
    inputs: dict[str, Any]
    arm: str | None = None
    seed: int | None = None


class JobFolder:
    """The folder of a bench; only one bench at a time can use it.

    Attributes:
        path (Path): The folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self._running: set[subprocess.Popen] = set()
        self._stopped = False
        self._warned: set[str] = set()  # jobs for which a warning about other versions was logged
        self._lock = FileLock(path / ".lock")

    def __enter__(self) -> JobFolder:
        """Lock the folder.

        Raises:
            KDError: If another bench uses it, or it cannot be made.
        """
        make_folder(self.path)
        lock_file(self.path)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as e:
            raise KDError(f"another bench is running in {self.path}: wait for it, or give another name=.") from e
        return self

    def __exit__(self, *_: Any) -> None:
        """Stop, and unlock the folder."""
        self.stop()
        self._lock.release()

    def stop(self) -> None:
        """Kill running jobs, and start no others."""
        self._stopped = True
        for process in list(self._running):
            kill_tree(process.pid)

    def record(self, job: Job) -> dict[str, Any] | None:
        """Return the record of a job, None if there is none.

        Raises:
            KDError: If it is damaged, or of another job with the same name.
        """
        file = self._file("records", job)
        if not file.exists():
            return None
        record = read_record(file, trained=job.arm is not None)
        old, new = record["job"], job.identity
        changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        if changed:
            key = changed[0]
            rename = "rename the arm, " if job.arm and {"teacher", "distill_model"} & new.keys() else ""
            raise KDError(
                f"'{job.name}' in {self.path} was made with {key}={old.get(key)}, not with {key}={new.get(key)}: give "
                f"another name=, {rename}or delete {file}."
            )
        if record["versions"] != VERSIONS and job.name not in self._warned:
            self._warned.add(job.name)
            LOGGER.warning(f"'{job.name}' was made with {record['versions']}, but {VERSIONS} are installed.")
        return record

    def run(self, job: Job) -> None:
        """Run a job in a separate process, with its output in a log.

        Raises:
            KDError: If it fails.
        """
        file, log, record = self._file("jobs", job), self._file("logs", job, ".log"), self._file("records", job)
        for f in (file, log):
            f.parent.mkdir(parents=True, exist_ok=True)
        content = {
            **job.inputs,
            "identity": job.identity,
            "versions": VERSIONS,
            "record": str(record.absolute()),
            "trained": str(self._file("trained", job).absolute()),
            "bench": os.getpid(),
        }
        file.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
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


def kill_tree(pid: int) -> None:
    """Kill a process and its children."""
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
    """Return the last line of a log that is not empty; of an error of this package only its message."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return re.sub(r"^ultralytics_kd\.errors\.\w+: ", "", next((line for line in reversed(lines) if line), ""))
