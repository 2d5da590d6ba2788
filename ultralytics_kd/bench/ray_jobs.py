"""Runs the jobs of a bench on a Ray cluster, each where it has room."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER, colorstr

from ..cluster import connected
from ..config.arguments import as_list
from ..config.named_files import FILES
from ..errors import first_line
from ..files import exists, write_whole
from . import node
from .jobs import STOPPED
from .node import job_file
from .placement import need_of
from .records import read_note

TRIES = 3  # of a job whose machine or process was lost
MOST = 1000  # jobs that wait for Ray at once
PATHS = ("data", "model", "pretrained", "distill_model", *FILES)  # arguments that may name files
SCORED = {"weights": "teacher", "kept": "kd_keep_data"}  # inputs of a scoring, and where they come from


@contextmanager
def ray_runner(at_once: bool | int, device: Any) -> Iterator[RayRunner]:
    """Connect to a Ray cluster, and yield what runs jobs there.

    Args:
        at_once (bool | int): Jobs at once; True for as many as have room.
        device (Any): The `device` argument of the bench.

    Raises:
        KDError: If Ray is missing, or the cluster does not answer or lacks the devices.
    """
    with connected("ray>=2.40") as ray:
        runner = RayRunner(ray, at_once, device)
        runner.describe()
        ray.cloudpickle.register_pickle_by_value(node)
        try:
            yield runner
        finally:
            runner.stop()
            ray.cloudpickle.unregister_pickle_by_value(node)


class RayRunner:
    """Runs jobs on a Ray cluster. A job whose machine or process is lost starts again; one that fails does not.

    The machines must have the data set, the teachers and the model at the same paths. They need not share the bench's
    folder: where they do not, what a job leaves comes back at its end.

    Attributes:
        at_once (int): Jobs that run or wait for room at the same time.
    """

    def __init__(self, ray: Any, at_once: bool | int, device: Any):
        """Prepare, without asking the cluster.

        Args:
            ray (ModuleType): Ray's module, connected to a cluster.
            at_once (bool | int): Jobs at once; True for as many as have room.
            device (Any): The `device` argument of the bench.
        """
        self.at_once = MOST if at_once is True else min(int(at_once), MOST)
        self._ray, self._device = ray, device
        self._task = ray.remote(max_retries=0, scheduling_strategy="SPREAD")(node.run_there)
        self._running: set[Any] = set()
        self._put: dict[tuple[str, int], Any] = {}  # files that were sent
        self._lock = threading.Lock()
        self._stopped = False

    def describe(self) -> None:
        """Say where trainings run.

        Raises:
            KDError: If no machine has the devices.
        """
        machines = self._machines()
        need = need_of(self._device, machines)
        gpus, cpus = (int(sum(m.get(kind, 0) for m in machines)) for kind in ("GPU", "CPU"))
        total = f"{len(machines)} machine{'s' if len(machines) != 1 else ''} with {gpus} GPUs and {cpus} CPUs"
        LOGGER.info(f"{colorstr('Bench:')} on a Ray cluster of {total}, {need} for each training")
        if not need.fits:
            LOGGER.warning("no machine of the Ray cluster has a CPU for trainings: they wait until one joins.")

    def run(self, root: Path, name: str, content: Mapping[str, Any]) -> str:
        """Run a job until it has left a record, and return why it failed; empty after success.

        Args:
            root (Path): Folder of the bench.
            name (str): Name of the job.
            content (Mapping): Content of its file.
        """
        from ray.exceptions import RayError, RayTaskError

        reason = ""
        for left in reversed(range(TRIES)):
            try:
                outcome = self._attempt(root.resolve(), name, content)
            except RayTaskError as e:  # the machine could not run it
                return first_line(e.cause if isinstance(e.cause, Exception) else e)
            except RayError as e:
                reason = f"its machine or process was lost ({type(e).__name__})"
            else:
                self._save(root, name, outcome)
                if not outcome["killed"]:
                    return str(outcome["error"])
                reason = f"its process was killed on {outcome['host']}"
            if self._stopped:
                return STOPPED
            if left:
                LOGGER.warning(f"{name}: {reason}. It starts again, at most {left} more time{'s' * (left > 1)}.")
        return f"{reason}, {TRIES} times in all."

    def stop(self) -> None:
        """End running jobs, and start no others."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for reference in running:
            self._ray.cancel(reference, force=True)  # the training sees that its parent has ended, and ends too

    def _machines(self) -> list[Mapping[str, float]]:
        """Return the resources of the machines of the cluster."""
        return [each["Resources"] for each in self._ray.nodes() if each["Alive"]]

    def _attempt(self, root: Path, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Run a job once and return its outcome; errors of Ray are raised."""
        need = need_of(self._device, self._machines())
        content, needs, inside = for_machines(root, {**content, "token": secrets.token_hex(8)}, need.device)
        text = json.dumps(content, indent=2, default=str)
        job_file(root, "jobs", name).write_text(text, encoding="utf-8")
        sent = {str(file.relative_to(root)): self._reference(file) for file in inside}
        threads = {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}  # Ultralytics sets it; Ray has another default
        task = self._task.options(num_cpus=need.cpus, num_gpus=need.gpus, name=name)
        with self._lock:
            if self._stopped:
                return {"killed": True, "host": "", "record": None, "files": {}}
            reference = task.remote(str(root), name, text, needs, sent, threads)
            self._running.add(reference)
        try:
            return dict(self._ray.get(reference))
        finally:
            with self._lock:
                self._running.discard(reference)

    def _reference(self, file: Path) -> Any:
        """Return a reference to the content of a file in the cluster; it is sent there once."""
        with self._lock:
            key = str(file), file.stat().st_mtime_ns
            if key not in self._put:
                self._put[key] = self._ray.put(file.read_bytes())
            return self._put[key]

    @staticmethod
    def _save(root: Path, name: str, outcome: Mapping[str, Any]) -> None:
        """Write the files that came back, then the record, which may not be visible here yet in a shared folder."""
        for path, data in outcome["files"].items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(root / path, data)
        if outcome["record"] is not None:
            record = job_file(root, "records", name)
            record.parent.mkdir(parents=True, exist_ok=True)
            write_whole(record, outcome["record"].encode())


def for_machines(
    root: Path, content: Mapping[str, Any], device: str
) -> tuple[dict[str, Any], list[tuple[str, str]], list[Path]]:
    """Return a job as other machines can run it, and the files that it reads.

    Args:
        root (Path): Folder of the bench, absolute and without links.
        content (Mapping): Content of the job's file.
        device (str): The device to train on.

    Returns:
        content (dict): The content with absolute paths and the device.
        needs (list[tuple[str, str]]): Argument and path of files outside the folder.
        inside (list[Path]): Files in the folder.
    """
    args = {**content["args"], "device": device}
    args |= {name: _absolute(args[name], root) for name in PATHS if name in args}
    others = {name: _absolute(content[name], root) for name in SCORED if name in content}
    named = [(name, each) for name in PATHS for each in as_list(args.get(name))]
    named += [(SCORED[name], each) for name, each in others.items()]
    texts = [(name, each) for name, each in named if isinstance(each, str) and os.path.isabs(each)]
    paths = [(name, Path(each)) for name, each in texts if exists(each)]
    inside = [path for _, path in paths if path.is_relative_to(root)]
    inside += [each for path in inside if path.suffix == ".yaml" for each in path.parent.glob("*.txt")]  # of a split
    note = Path(content["trained"])
    if note.is_file():  # trained already; its scores failed
        inside += [note, Path(read_note(note)["weights"])]
    needs = [(name, str(path)) for name, path in paths if not path.is_relative_to(root)]
    return {**content, **others, "args": args}, needs, [path for path in dict.fromkeys(inside) if path.is_file()]


def _absolute(value: Any, root: Path) -> Any:
    """Return a value in which existing files are absolute paths, those in the bench's folder without links."""

    def absolute(each: Any) -> Any:
        if not isinstance(each, (str, Path)) or not str(each) or str(each) == "auto" or not exists(each):
            return each
        path = Path(each).resolve()
        return str(path if path.is_relative_to(root) else Path(each).absolute())

    values = [absolute(each) for each in as_list(value)]
    return values if isinstance(value, (list, tuple)) or len(values) > 1 else values[0]
