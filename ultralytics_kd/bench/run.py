"""Runs a bench: trains what is not yet recorded, a process each, and keeps the table up to date."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import ultralytics
from ultralytics.utils import LOGGER, colorstr

from .. import __version__
from ..config import register
from ..errors import KDError
from ..teacher import Teacher
from .plan import ALONE, Arm, Plan, make_plan
from .scores import VAL_ARGS
from .split import hold_out
from .table import Run, save_tables, summarize, to_text

VERSIONS = {"ultralytics_kd": __version__, "ultralytics": ultralytics.__version__, "torch": torch.__version__}


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


def run_bench(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Train every arm with every seed, and compare them.

    Finished runs are kept in `records/`, one small JSON each: the same command goes on where it was interrupted, and
    one with more arms or seeds adds to it. A run that was cut short starts over, so that the table is the one that an
    uninterrupted bench would have written.

    Args:
        overrides (Mapping): Arguments: `arms`, `seeds`, `teacher` or `teacher_model` with `teacher_epochs`, `holdout`,
            `jobs`, and Ultralytics' and kd arguments. kd arguments reach the arms with a teacher alone.

    Returns:
        (dict): What `bench.json` holds: "settings", "versions", "runs", "teachers" and "table".

    Raises:
        KDError: If the bench cannot run as asked, or a training failed; what was finished is kept.
        SyntaxError: If an argument is unknown.
    """
    register()
    plan = make_plan(overrides)
    data = str(plan.common["data"])
    if plan.holdout:
        data = str(hold_out(data, plan.holdout, plan.save_dir / "holdout"))
    LOGGER.info(
        f"{colorstr('Bench:')} {len(plan.arms)} arms x {len(plan.seeds)} seeds of {plan.common['model']} in "
        f"{plan.save_dir}"
    )
    bench = Bench(plan, data)
    teacher = bench.train_teacher()
    teachers = bench.score_teachers(teacher)
    bench.train_students(teacher, teachers)
    report = bench.report()
    LOGGER.info(to_text(report))
    if bench.failed:
        raise KDError(f"{len(bench.failed)} of the trainings failed: {'; '.join(bench.failed)}.")
    return report


class Bench:
    """A bench under way.

    Attributes:
        plan (Plan): What to do.
        data (str): The data set, or the held-out split of it.
        runs (list[Run]): Records of students.
        teachers (dict[str, dict[str, Any]]): Records of teachers by arm.
        failed (list[str]): What failed, and where its log is.
    """

    def __init__(self, plan: Plan, data: str):
        self.plan, self.data = plan, data
        self.runs: list[Run] = []
        self.teachers: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []

    def train_teacher(self) -> str | None:
        """Train the teacher if the plan says so, and return its weights."""
        plan = self.plan
        if plan.teacher_model is None:
            return None
        args = {**plan.common, "model": plan.teacher_model, "epochs": plan.teacher_epochs, "seed": plan.seeds[0]}
        record = self._one(self._training("teacher", args))
        if not Path(record["weights"]).exists():
            raise KDError(f"the teacher's weights are gone: {record['weights']}; restore them, or choose another name.")
        return str(record["weights"])

    def score_teachers(self, trained: str | None) -> dict[str, dict[str, Any]]:
        """Score the teacher of every arm, each once, and return their paths and hashes by arm."""
        found: dict[str, dict[str, Any]] = {}
        for arm in self.plan.arms:
            if not arm.teacher_key:
                continue
            path = _resolve(arm.args[arm.teacher_key] or trained)
            found[arm.name] = {"path": str(path), "sha256": _sha256(path)}
            classes = arm.args.get("kd_classes", "auto")
            seen = {k: v for k, v in self.plan.common.items() if k in VAL_ARGS}
            identity = self._identity({**seen, "teacher": found[arm.name]["sha256"], "kd_classes": classes})
            name = f"teacher-{found[arm.name]['sha256'][:12]}"
            args = {**self.plan.common, "data": self.data}
            job = Job(name, identity, {"args": args, "weights": str(path), "classes": classes})
            self.teachers[arm.name] = self._one(job)
        return found

    def train_students(self, trained: str | None, teachers: dict[str, dict[str, Any]]) -> None:
        """Train every arm with every seed: all arms of one seed, then the next, so that a part can be compared."""
        jobs = [self._student(arm, seed, teachers) for seed in self.plan.seeds for arm in self.plan.arms]
        open_jobs = [job for job in jobs if not self._take(job)]
        if self.runs:
            LOGGER.info(f"{colorstr('Bench:')} {len(self.runs)} of {len(jobs)} trainings are finished already")
        self.report()
        with ThreadPoolExecutor(self.plan.jobs) as pool:
            pending: dict[Future, Job] = {pool.submit(self._run, job): job for job in open_jobs}
            try:
                while pending:
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        self._finish(pending.pop(future), future)
            except BaseException:  # what has not begun must not begin
                for future in pending:
                    future.cancel()
                raise

    def _finish(self, job: Job, future: Future) -> None:
        """Take the record of a training that has ended."""
        try:
            future.result()
        except KDError as e:
            self.failed.append(str(e))
            LOGGER.error(str(e))
            return
        self._take(job)
        run = self.runs[-1]
        scores = ", ".join(f"{head} {s['map']:.4f}" for head, s in run.record["scores"].items())
        LOGGER.info(f"{colorstr('Bench:')} {job.name}: mAP50-95 {scores} ({run.record['seconds']:.0f} s)")
        self.report()

    def report(self) -> dict[str, Any]:
        """Write the tables of what is finished, and return them."""
        plan = self.plan
        settings = {
            "arms": {arm.name: arm.args for arm in plan.arms},
            "seeds": plan.seeds,
            **(
                {"teacher_model": plan.teacher_model, "teacher_epochs": plan.teacher_epochs}
                if plan.teacher_model
                else {}
            ),
            **({"holdout": plan.holdout} if plan.holdout else {}),
            **plan.common,
        }
        order = [arm.name for arm in plan.arms]
        report = {
            "settings": settings,
            "versions": VERSIONS,
            **summarize(order, self.runs, self.teachers),
        }
        save_tables(report, plan.save_dir)
        return report

    # Jobs -------------------------------------------------------------------------------------------------------------
    def _student(self, arm: Arm, seed: int, teachers: dict[str, dict[str, Any]]) -> Job:
        """Return the training of one arm with one seed."""
        args = {**self.plan.common, **arm.args, "seed": seed}
        if arm.teacher_key:
            args[arm.teacher_key] = teachers[arm.name]["path"]
        job = self._training(f"{arm.name}-{seed}", args)
        if arm.teacher_key:
            job.identity[arm.teacher_key] = teachers[arm.name]["sha256"]
        return Job(job.name, job.identity, job.work, arm.name, seed)

    def _training(self, name: str, args: dict[str, Any]) -> Job:
        """Return a training."""
        place = {"data": self.data, "project": str(self.plan.save_dir / "runs"), "name": name, "exist_ok": True}
        return Job(name, self._identity(args), {"args": {**args, **place}})

    def _identity(self, args: dict[str, Any]) -> dict[str, Any]:
        """Return what a result depends on: the arguments, and the data set as the user named it."""
        shared = {"data": self.plan.common["data"], "holdout": self.plan.holdout}
        return json.loads(json.dumps({**args, **shared}, default=str))

    def _file(self, job: Job) -> Path:
        """Return the file of a job's record."""
        return self.plan.save_dir / "records" / f"{job.name}.json"

    def _record(self, job: Job) -> dict[str, Any] | None:
        """Return the record of a job if it is there.

        Raises:
            KDError: If it is that of another job by the same name.
        """
        file = self._file(job)
        if not file.exists():
            return None
        record = json.loads(file.read_text(encoding="utf-8"))
        was, now = record["job"], job.identity
        changed = sorted(k for k in {*was, *now} if was.get(k) != now.get(k))
        if changed:
            k = changed[0]
            rename = "rename the arm, " if job.arm not in {None, ALONE} else ""
            raise KDError(
                f"'{job.name}' in {self.plan.save_dir} was made with {k}={was.get(k)}, and {k}={now.get(k)} is asked "
                f"for: give another name=, {rename}or delete {file}."
            )
        return record

    def _one(self, job: Job) -> dict[str, Any]:
        """Return the record of a job, after doing it if need be."""
        if self._record(job) is None:
            LOGGER.info(f"{colorstr('Bench:')} {job.name}...")
            self._run(job)
        record = self._record(job)
        assert record is not None
        return record

    def _take(self, job: Job) -> bool:
        """Add a student's record to the runs, and return whether there was one."""
        record = self._record(job)
        if record is not None:
            assert job.arm is not None and job.seed is not None
            self.runs.append(Run(job.arm, job.seed, record))
        return record is not None

    def _run(self, job: Job) -> None:
        """Do a job in a process of its own, what it prints in a log.

        Raises:
            KDError: If it fails.
        """
        folder = self.plan.save_dir
        file, log, record = (folder / "jobs" / f"{job.name}.json", folder / "logs" / f"{job.name}.log", self._file(job))
        for f in (file, log):
            f.parent.mkdir(parents=True, exist_ok=True)
        work = {**job.work, "identity": job.identity, "record": str(record.absolute())}
        file.write_text(json.dumps(work, indent=2, default=str), encoding="utf-8")
        with log.open("w", encoding="utf-8") as out:
            done = subprocess.run(
                [sys.executable, "-m", "ultralytics_kd.bench.worker", str(file)], stdout=out, stderr=out
            )
        if done.returncode or not record.exists():
            lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
            last = next((line for line in reversed(lines) if line), f"exit status {done.returncode}")
            raise KDError(f"{job.name}: {last} ({log})")


def _resolve(teacher: Any) -> Path:
    """Return the local file of a teacher, downloaded if need be.

    Raises:
        KDError: If nothing that can teach is found there.
    """
    loaded = Teacher(teacher)
    loaded.inspect()
    return Path(str(loaded.original.pt_path)).resolve()


def _sha256(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
