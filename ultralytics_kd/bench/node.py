"""What a machine of a Ray cluster does with a job of a bench.

The functions are sent there as they are (see `ray_jobs`), so that Ray's own processes need not load torch. Therefore
this module imports the standard library alone; `job_file` and `last_line` serve both sides.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KILLED = (-9, -15)  # exit statuses of a process that was killed from outside: out of memory, by a scheduler or a user
TEXTS = {".csv", ".json", ".txt", ".yaml"}  # files of a bench that may name the bench's folder


def run_there(
    root: str, name: str, job: str, needs: list[tuple[str, str]], sent: dict[str, Any], environment: dict[str, str]
) -> dict[str, Any]:
    """Run a job on this machine, in the bench's folder if this machine shares it, and else in a temporary one.

    Args:
        root (str): Folder of the bench, as an absolute path.
        name (str): Name of the job.
        job (str): Content of its file, which the driver has also written to the folder.
        needs (list[tuple[str, str]]): Argument and path of files outside the folder that the job reads.
        sent (dict[str, Any]): Files in the folder that the job reads, by relative path, as references of Ray.
        environment (dict[str, str]): Variables to set for the training.

    Returns:
        (dict): "host"; "error", empty after success; "killed", whether the process was killed from outside; "record",
            the text of the record, None without one; "files", contents by relative path, empty in a shared folder.
    """
    outcome = {"host": socket.gethostname(), "error": "", "killed": False, "record": None, "files": {}}
    for argument, path in needs:
        if not os.path.exists(path):
            advice = "copy it there, or put it on storage that all machines share."
            return {**outcome, "error": f"{argument}={path} does not exist on {outcome['host']}: {advice}"}
    shared = shares_folder(root, name, job)
    place = root if shared else tempfile.mkdtemp(prefix="ultralytics_kd_bench_")
    try:
        if not shared:
            _unpack(place, root, {**_contents(sent), f"jobs/{name}.json": job.encode()})
        status = _run(place, name, environment)
        record = job_file(place, "records", name)
        if status == 0 and record.exists():
            outcome["record"] = moved(record.read_text(encoding="utf-8"), place, root)
        else:
            reason = last_line(job_file(place, "logs", name, ".log")) or f"exit status {status}"
            outcome |= {"error": reason, "killed": status in KILLED}
        if not shared:
            outcome["files"] = _pack(place, root, name)
        return outcome
    finally:
        if not shared:
            shutil.rmtree(place, ignore_errors=True)


def shares_folder(root: str, name: str, job: str) -> bool:
    """Return whether this machine sees the driver's folder: it then finds the job's file with its random token.

    Args:
        root (str): Folder of the bench.
        name (str): Name of the job.
        job (str): Content of its file.
    """
    file = job_file(root, "jobs", name)
    return file.is_file() and file.read_text(encoding="utf-8") == job


def _run(place: str, name: str, environment: dict[str, str]) -> int:
    """Run the process of a job with its output in a log, and return its exit status."""
    log = job_file(place, "logs", name, ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command(job_file(place, "jobs", name)), stdout=out, stderr=out, env={**os.environ, **environment}
        )
        try:
            return process.wait()
        except BaseException:  # Ray ends the task
            process.kill()
            raise


def command(file: Path) -> list[str]:
    """Return the command that runs a job, as a child of this process.

    Args:
        file (Path): File of the job.
    """
    return [sys.executable, "-m", "ultralytics_kd.bench.worker", str(file), str(os.getpid())]


def job_file(root: str | Path, kind: str, name: str, suffix: str = ".json") -> Path:
    """Return a file of a job.

    Args:
        root (str | Path): Folder of the bench.
        kind (str): Name of the folder in it.
        name (str): Name of the job.
        suffix (str): Suffix of the file.
    """
    return Path(root) / kind / f"{name}{suffix}"


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty; of an error of this package only its message.

    Args:
        log (Path): The log.
    """
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return re.sub(r"^ultralytics_kd\.errors\.\w+: ", "", next((line for line in reversed(lines) if line), ""))


def moved(text: str, old: str, new: str) -> str:
    """Return a text in which paths in one folder are replaced by paths in another.

    Args:
        text (str): Text with absolute paths, each at the start of a line or after a blank or a quote.
        old (str): The folder that the text names.
        new (str): The other folder.
    """
    return re.sub(rf"(?<![^\s\"']){re.escape(old)}(?=[/\\])", lambda _: new, text)


def _moved_content(path: str, content: bytes, old: str, new: str) -> bytes:
    """Return the content of a file with the paths in it moved, if it is a text."""
    if os.path.splitext(path)[1] not in TEXTS:
        return content
    return os.fsencode(moved(os.fsdecode(content), old, new))  # names of files may hold bytes that are not text


def _contents(sent: dict[str, Any]) -> dict[str, bytes]:
    """Return the contents of files that were sent."""
    if not sent:
        return {}
    import ray

    return dict(zip(sent, ray.get(list(sent.values()))))


def _unpack(place: str, root: str, contents: dict[str, bytes]) -> None:
    """Write files of the bench's folder to a place on this machine."""
    for path, content in contents.items():
        file = Path(place) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_moved_content(path, content, root, place))


def _pack(place: str, root: str, name: str) -> dict[str, bytes]:
    """Return what a job has left: its log, and a finished training with its note, which comes last."""
    log, note = job_file(place, "logs", name, ".log"), job_file(place, "trained", name)
    files = [log]
    if note.exists():
        files += [*(f for f in sorted((Path(place) / "runs" / name).rglob("*")) if f.is_file()), note]
    paths = {str(file.relative_to(place)): file for file in files}
    return {path: _moved_content(path, file.read_bytes(), place, root) for path, file in paths.items()}
