"""Runs a bench: trains every arm that has no record yet, each in a process, and keeps the table up to date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from ultralytics.data.utils import convert_ndjson_to_yolo_if_needed
from ultralytics.utils import DEFAULT_CFG, LOGGER, colorstr

from .. import outputs
from ..config.arguments import GRID_TASKS, as_list, parse_list
from ..config.label_free import lacks_training_images, with_train_entry
from ..config.registration import register_arguments
from ..config.teacher_size import scored_size
from ..config.user_code import names_object
from ..errors import KDError, ModelError
from ..files import make_folder
from ..image_files import find_unlabeled
from ..model import YOLO
from ..report.datasets import class_names_of
from ..report.score_names import HEADS, METRICS
from ..screen import duration, near
from ..teachers import Teacher, open_teacher
from ..teachers.backbone import absolute
from ..teachers.prompted import PromptedTeacher, give_prompts
from ..training.run.checkpoints import fingerprint
from .arms import Arm
from .contents import hash_data, hash_model, hash_names
from .jobs import VERSIONS, Job, JobFolder, LocalRunner, Runner
from .plan import QUIET, Plan, make_plan
from .ray_jobs import ray_runner
from .scores import VAL_ARGS
from .split import hold_out
from .table import Run, save_tables, summarize
from .text import start_text, to_text


def _place(source: Any, teacher: Teacher) -> str:
    """Return where the processes of a bench find a teacher: its file, or its name if it has none.

    Args:
        source (str): The teacher, as the user named it.
        teacher (Teacher): The opened teacher.
    """
    named = str(absolute(source))
    file = None if names_object(named) else getattr(teacher.original, "pt_path", None)
    if file is None and Path(named).exists():  # an exported model
        file = named
    return named if file is None else str(Path(str(file)).resolve())


def run_bench(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Train every arm with every seed, and compare them.

    Finished runs are kept in `records/`, one small JSON each: the same command continues where it was interrupted, and
    a command with more arms or seeds adds to the table. An interrupted training starts again, so that the table is the
    same as without the interruption.

    Args:
        overrides (Mapping): Arguments: `arms`, `seeds`, `teacher` or `teacher_model` with `teacher_epochs`, `holdout`,
            `jobs` or `ray`, and Ultralytics' and kd arguments. Only arms with a teacher get the kd arguments.

    Returns:
        (dict): The content of `bench.json`: "settings", "versions", "metrics", "runs", "teachers" and "table".

    Raises:
        KDError: If an argument is invalid or a training failed; finished runs are kept.
        SyntaxError: If an argument is unknown.

    Examples:
        >>> from ultralytics_kd.bench import run_bench
        >>> shared = {"data": "coco8.yaml", "model": "yolo26n.yaml", "teacher": "yolo26x.pt", "epochs": 100}
        >>> report = run_bench({**shared, "seeds": 3, "arms": {"kd": {}, "features": {"kd_feat": 1.0}}})
        >>> [(row["arm"], row["score"], row["gain"]) for row in report["table"] if row["head"] == "end2end"]
    """
    register_arguments()
    plan = make_plan(overrides)
    _check_folder(plan.save_dir)
    models = _check_models(plan)
    data = str(convert_ndjson_to_yolo_if_needed(plan.common["data"]))
    if lacks_training_images(data, plan.task):
        make_folder(plan.save_dir)
        data = with_train_entry(data, plan.save_dir.absolute())
    with _runner(plan) as runner, JobFolder(plan.save_dir, runner) as folder:
        if plan.holdout:
            data = str(hold_out(data, plan.holdout, plan.save_dir / f"holdout-{plan.holdout:g}"))
        LOGGER.info(start_text(plan.arms, plan.seeds, plan.common["model"], plan.save_dir))
        bench = Bench(plan, data, folder, models)
        bench.train_students(bench.score_teachers(bench.train_teacher()))
        report = bench.report()
    LOGGER.info(to_text(report, plan.save_dir))
    if bench.failed:
        raise KDError(f"{len(bench.failed)} of the trainings failed: {'; '.join(bench.failed)}.")
    return report


def _runner(plan: Plan) -> AbstractContextManager[Runner]:
    """Return what runs the jobs of a plan: this machine, or a Ray cluster."""
    return ray_runner(plan.ray, plan.common.get("device")) if plan.ray else nullcontext(LocalRunner(plan.jobs))


def _check_folder(folder: Path) -> None:
    """Raise if a folder belongs to a training."""
    if (folder / "args.yaml").exists() or (folder / "weights").exists():
        raise KDError(f"{near(folder)} holds a training: give the bench another name=.")


def _check_models(plan: Plan) -> dict[str, str]:
    """Return the hashes of the student and of the teacher to train, by their source.

    Raises:
        KDError: If one is of another task, or its head is not supported.
    """
    hashes = {}
    for name, source in (("model", plan.common["model"]), ("teacher_model", plan.teacher_model)):
        if source is None:
            continue
        model = YOLO(source)
        if model.task != plan.task:
            raise KDError(f"{name}={source} is a '{model.task}' model, and the bench is of task '{plan.task}'.")
        if plan.task in GRID_TASKS and (fault := outputs.head_fault(model.model)):
            raise ModelError(source, f"{fault}.", name)
        hashes[str(source)] = hash_model(model)
    return hashes


class Bench:
    """A bench that is running.

    Attributes:
        plan (Plan): What to train and to score.
        data (str): The data set. With holdout, a copy whose val set is the held-out images.
        folder (JobFolder): Folder of jobs and records.
        models (dict[str, str]): Hashes of the models that are trained, by their source.
        runs (list[Run]): Records of students.
        teachers (dict[str, dict[str, Any]]): Records of teachers by arm.
        failed (list[str]): A message for each failed training, with the path of its log.
    """

    def __init__(self, plan: Plan, data: str, folder: JobFolder, models: dict[str, str] | None = None):
        self.plan, self.data, self.folder, self.models = plan, data, folder, models or {}
        self.runs: list[Run] = []
        self.teachers: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []
        self._unlabeled: dict[str, str] = {}  # hashes of images without labels, by `kd_unlabeled`

    @cached_property
    def _data_hash(self) -> str:
        """The hash of the data set."""
        return hash_data(self.data, self.plan.task, str(self.plan.common.get("split") or "val"))

    @cached_property
    def _kept_hash(self) -> str:
        """The hash of the data of the classes that are kept."""
        return hash_data(str(self.plan.kept), self.plan.task)

    def _unlabeled_hash(self, source: Any) -> str:
        """Return the hash of the images that `kd_unlabeled` names; they are searched once for all trainings."""
        if str(source) not in self._unlabeled:
            self._unlabeled[str(source)] = hash_names(find_unlabeled(parse_list(source)))
        return self._unlabeled[str(source)]

    @property
    def count(self) -> int:
        """Number of trainings of students."""
        return len(self.plan.arms) * len(self.plan.seeds)

    def train_teacher(self) -> str | None:
        """Train the teacher if the plan has one to train, and return the path of its weights."""
        plan = self.plan
        if plan.teacher_model is None:
            return None
        args = {**plan.common, "model": plan.teacher_model, "epochs": plan.teacher_epochs, "seed": plan.seeds[0]}
        if plan.teacher_imgsz:
            args["imgsz"] = plan.teacher_imgsz
        weights = str(self._completed(self._training("teacher", args))["weights"])
        if not Path(weights).exists():
            raise KDError(f"the teacher's weights {weights} no longer exist: restore them, or give another name=.")
        return weights

    def score_teachers(self, trained: str | None) -> dict[str, dict[str, Any]]:
        """Score the teacher of every arm, each teacher once, and return their paths and hashes by arm."""
        by_arm: dict[str, dict[str, Any]] = {}
        by_source: dict[str, dict[str, Any]] = {}  # so that a teacher of several arms is loaded and hashed once
        for arm in self.plan.arms:
            if not arm.teacher_key:
                continue
            source, classes = arm.args[arm.teacher_key] or str(trained), self._classes(arm)
            key = f"{source} {classes}"  # the prompts of a prompted teacher are part of its identity
            if key not in by_source:
                trust = self.plan.trust or bool(arm.args.get("kd_trust_teacher"))
                by_source[key] = self._resolve(source, trust, classes)
            by_arm[arm.name] = by_source[key]
            if by_source[key]["scored"] is not None:
                self.teachers[arm.name] = self._completed(self._scoring(by_source[key]["scored"], arm))
        return by_arm

    def train_students(self, teachers: dict[str, dict[str, Any]]) -> None:
        """Train every arm with one seed, then with the next, so that the first seeds can be compared early."""
        jobs = [self._student(arm, seed, teachers) for seed in self.plan.seeds for arm in self.plan.arms]
        unfinished = [job for job in jobs if not self._add_run(job)]
        if self.runs:
            LOGGER.info(f"{colorstr('Bench:')} {len(self.runs)} of {self.count} trainings are finished already")
        self.report()
        with ThreadPoolExecutor(self.folder.runner.at_once) as pool:
            pending: dict[Future, Job] = {pool.submit(self.folder.run, job): job for job in unfinished}
            try:
                while pending:
                    # With a timeout, because Ray would otherwise hold back Ctrl-C until a training ends
                    for future in wait(pending, timeout=1, return_when=FIRST_COMPLETED).done:
                        self._finish(pending.pop(future), future)
            finally:  # after an interruption, running trainings must end and no others may start
                self.folder.runner.stop()

    def _finish(self, job: Job, future: Future) -> None:
        """Add the record of a training that has ended to the runs and tables, or note why it failed."""
        try:
            future.result()
        except KDError as e:
            self.failed.append(str(e))
            LOGGER.error(str(e))
            return
        self._add_run(job)
        run = self.runs[-1]
        scores = ", ".join(f"{s['score']:.4f} {HEADS[head]}".strip() for head, s in run.record["scores"].items())
        LOGGER.info(
            f"{colorstr('Bench:')} {len(self.runs)} of {self.count}, {run.arm}, seed {run.seed}: "
            f"{METRICS[self.plan.task][0][1]} {scores} in {duration(run.record['seconds'])}"
        )
        self.report()

    def report(self) -> dict[str, Any]:
        """Write the tables of all finished runs, and return them."""
        plan = self.plan
        settings: dict[str, Any] = {"arms": {arm.name: arm.args for arm in plan.arms}, "seeds": plan.seeds}
        if plan.teacher_model:
            settings |= {"teacher_model": plan.teacher_model, "teacher_epochs": plan.teacher_epochs}
        if plan.teacher_imgsz:
            settings["teacher_imgsz"] = plan.teacher_imgsz
        settings |= {"holdout": plan.holdout, **plan.common}
        table = summarize([arm.name for arm in plan.arms], self.runs, self.teachers)
        names = [name for _, name in METRICS[plan.task]]
        report = {"settings": settings, "versions": VERSIONS, "metrics": names, **table}
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
        return Job(job.name, job.identity, job.inputs, arm.name, seed)

    def _training(self, name: str, args: dict[str, Any]) -> Job:
        """Return a training."""
        place = {"data": self.data, "project": str(self.plan.save_dir / "runs"), "name": name, "exist_ok": True}
        return Job(name, self._identity(args), {"args": {**args, **place}, **self._keeping()})

    def _scoring(self, teacher: dict[str, Any], arm: Arm) -> Job:
        """Return the scoring of an arm's teacher."""
        classes = self._classes(arm)
        args = {**self.plan.common, "data": self.data}
        own = arm.args.get("kd_teacher_imgsz")
        if own is not None:  # it teaches at this size, so it is scored there
            args["imgsz"] = scored_size(own, args.get("imgsz", DEFAULT_CFG.imgsz))
        val_args = {k: v for k, v in args.items() if k in VAL_ARGS and k != "data"}
        identity = self._identity({**val_args, "teacher": teacher["sha256"], "kd_classes": classes})
        name = f"teacher-{teacher['sha256'][:12]}"
        if classes != "auto":
            name += f"-{hashlib.sha256(json.dumps(classes, sort_keys=True, default=str).encode()).hexdigest()[:6]}"
        if own is not None:
            name += f"-{args['imgsz']}px"
        inputs = {"args": args, "weights": teacher["path"], "classes": classes, "task": self.plan.task}
        return Job(name, identity, {**inputs, **self._keeping()})

    def _keeping(self) -> dict[str, Any]:
        """Return the inputs of jobs in a bench where an arm keeps classes."""
        return {"keeps": True, "kept": self.plan.kept} if self.plan.keeps else {}

    def _classes(self, arm: Arm) -> Any:
        """Return how the classes of an arm's teacher map to those of the data set."""
        return arm.args.get("kd_classes", self.plan.classes)

    def _resolve(self, source: Any, trust: bool, classes: Any) -> dict[str, Any]:
        """Return the local files of a teacher, after a download if needed, and the hash of its weights and prompts.

        A hash of the file would be worse: a teacher that is trained again has the same weights and another date.

        Args:
            source (str | list[str]): The teacher, or a list.
            trust (bool): Whether it may run code when it is opened.
            classes (Any): How its classes map to those of the data set.

        Returns:
            (dict): "path", or the name of a teacher without a file; a list for a list. "sha256". "scored", path and
                hash of the only model in it that predicts; None if no model predicts, or several together, or one
                that is no checkpoint.

        Raises:
            KDError: If it cannot be opened as a teacher.
        """
        teacher = open_teacher(source, self.plan.task, trust=trust)
        predicting = [member for member in teacher.members if member not in teacher.backbones]
        words = [member for member in predicting if isinstance(member, PromptedTeacher)]
        if words:
            give_prompts(predicting, class_names_of(self.data, self.plan.task), classes)
        places = [_place(each, member) for each, member in zip(as_list(source), teacher.members)]
        scored = None
        if len(predicting) == 1 and (path := dict(zip(teacher.members, places))[predicting[0]]).endswith(".pt"):
            scored = {"path": path, "sha256": predicting[0].fingerprint()}
        identity = fingerprint(teacher)
        if identity is None:  # of a user's object, or of the student's own average
            identity = hashlib.sha256(str(source).encode()).hexdigest()
        return {"path": places if isinstance(source, list) else places[0], "sha256": identity, "scored": scored}

    def _identity(self, args: dict[str, Any]) -> dict[str, Any]:
        """Return everything that a result depends on: the arguments, the data set as the user named it, and hashes."""
        shared = {"data": self.plan.common["data"], "holdout": self.plan.holdout, "data_sha256": self._data_hash}
        if str(args.get("model")) in self.models:
            shared["model_sha256"] = self.models[str(args["model"])]
        if args.get("kd_unlabeled"):
            shared["unlabeled_sha256"] = self._unlabeled_hash(args["kd_unlabeled"])
        if self.plan.kept is not None:  # all models are scored on it
            shared |= {"kd_keep_data": self.plan.kept, "kept_sha256": self._kept_hash}
        return json.loads(json.dumps({k: v for k, v in {**args, **shared}.items() if k not in QUIET}, default=str))

    def _completed(self, job: Job) -> dict[str, Any]:
        """Return the record of a job; run the job if there is none."""
        if self.folder.record(job) is None:
            what = "training the teacher"
            if "weights" in job.inputs:
                side = job.inputs["args"].get("imgsz", DEFAULT_CFG.imgsz)
                what = f"scoring {near(job.inputs['weights'])} at {side} px"
            LOGGER.info(f"{colorstr('Bench:')} {what} ...")
            self.folder.run(job)
        record = self.folder.record(job)
        assert record is not None
        return record

    def _add_run(self, job: Job) -> bool:
        """Add a student's record to the runs, and return whether there is one."""
        record = self.folder.record(job)
        if record is None:
            return False
        assert job.arm is not None and job.seed is not None
        self.runs.append(Run(job.arm, job.seed, record))
        batch = self.plan.common.get("batch", DEFAULT_CFG.batch)
        if record["batch"] != batch:  # Ultralytics halves it when a GPU's memory runs out
            LOGGER.warning(
                f"'{job.name}' was trained with batch={record['batch']} instead of {batch}, as memory ran out. Its "
                "scores are not comparable: give all arms a smaller batch=."
            )
        return True
