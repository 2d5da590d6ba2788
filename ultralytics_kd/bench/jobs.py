"""Jobs of a bench: each runs in a process and leaves a record. The folder of the bench keeps the records."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
from filelock import FileLock, Timeout
from ultralytics.utils import LOGGER

from ..compat import versions
from ..errors import KDError
from ..files import lock_file, make_folder
from .contents import HASHES, changed
from .node import command, job_file, last_line
from .records import read_record

VERSIONS = versions()
STOPPED = "the bench was stopped."


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


class Runner(Protocol):
    """Runs jobs, on this machine or others.

    Attributes:
        at_once (int): Jobs that run at the same time.
    """

    at_once: int

    def run(self, root: Path, name: str, content: Mapping[str, Any]) -> str:
        """Run a job in the bench's folder `root`, and return why it failed; empty after success.

        Args:
            root (Path): Folder of the bench.
            name (str): Name of the job.
            content (Mapping): Content of its file.
        """

    def stop(self) -> None:
        """End running jobs, and start no others."""


class LocalRunner:
    """Runs jobs on this machine.

    Attributes:
        at_once (int): Jobs that run at the same time.
    """

    def __init__(self, at_once: int = 1):
        self.at_once = at_once
        self._running: set[subprocess.Popen] = set()
        self._stopped = False
        self._starting = threading.Lock()  # a process that starts while others are stopped must be stopped too

    def run(self, root: Path, name: str, content: Mapping[str, Any]) -> str:
        """Run a job and return why it failed, empty after success; see `Runner`."""
        file, log = job_file(root, "jobs", name), job_file(root, "logs", name, ".log")
        file.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
        with log.open("w", encoding="utf-8") as out:
            with self._starting:
                if self._stopped:
                    return STOPPED
                process = subprocess.Popen(command(file), stdout=out, stderr=out)
                self._running.add(process)
            status = process.wait()
            self._running.discard(process)
        return (last_line(log) or f"exit status {status}") if status else ""

    def stop(self) -> None:
        """Kill running jobs, and start no others."""
        with self._starting:
            self._stopped = True
        for process in list(self._running):
            kill_tree(process.pid)


class JobFolder:
    """The folder of a bench; only one bench at a time can use it.

    Attributes:
        path (Path): The folder.
        runner (Runner): Runs its jobs.
    """

    def __init__(self, path: Path, runner: Runner | None = None):
        self.path, self.runner = path, runner or LocalRunner()
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
        """Stop its jobs, and unlock the folder."""
        self.runner.stop()
        self._lock.release()

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
        differ = changed(old, new)
        if differ and differ[0] in HASHES:
            raise KDError(
                f"'{job.name}' in {self.path} was made before {HASHES[differ[0]]} changed: give another name=, or "
                f"delete {file}."
            )
        if differ:
            key = differ[0]
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
        log, record = self._file("logs", job, ".log"), self._file("records", job)
        for kind in ("jobs", "logs"):
            (self.path / kind).mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)  # of an earlier try
        content = {
            **job.inputs,
            "identity": job.identity,
            "record": str(record.absolute()),
            "trained": str(self._file("trained", job).absolute()),
        }
        reason = self.runner.run(self.path, job.name, content)
        if reason or not record.exists():
            where = f" ({log})" if log.exists() else ""
            raise KDError(f"{job.name}: {reason or 'it left no record.'}{where}")

    def _file(self, kind: str, job: Job, suffix: str = ".json") -> Path:
        """Return a file of a job."""
        return job_file(self.path, kind, job.name, suffix)


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
