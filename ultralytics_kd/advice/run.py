"""The advice: from models and data to scores, gradients, costs, verdicts, and the files that hold them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.torch_utils import get_cpu_info, select_device

from ..compat import versions
from ..files import make_folder
from ..logs import quietly
from ..report.compared_model import ComparedModel
from ..report.metrics import short_name
from ..report.run import warn_of_taught
from ..report.score_names import END2END, HEADS, METRICS, NMS
from ..report.validation import ValidationResult
from ..screen import command_line
from ..teachers.sizes import seen_smaller
from . import contradictions, scores
from .commands import alone, next_command
from .folder import Shown, write_folder
from .gradients import TOGETHER
from .options import Options, check_options
from .sample import Part, part_of
from .scores import taught
from .steps import Steps
from .table import to_text
from .trial import Probe, train_alone
from .verdict import FEWEST_CONFIDENT, ITSELF, SHORTLY, TRAINED, Facts, best_of, judge


def run_advice(given: Mapping[str, Any]) -> dict[str, Any]:
    """Measure whether a distillation will pay, as `yolo-kd advise` does.

    Args:
        given (Mapping): "data", "model" and "teacher"; optionally the other arguments of `ADVICE_ONLY`, and those of
            the training that is asked about.

    Returns:
        (dict): The content of `advice.json`: "teachers", each with "verdict", "reason", "command" and what they
            follow from; "best", the file of the teacher to take, None if there is none; "save_dir" and "page".

    Raises:
        KDError: If an argument is missing or invalid, or a model cannot be judged; nothing is written then.
        SyntaxError: If an argument is unknown.

    Examples:
        >>> from ultralytics_kd.advice import run_advice
        >>> advice = run_advice({"data": "coco8.yaml", "model": "yolo26n.pt", "teacher": "yolo26s.pt,yolo26x.pt"})
        >>> [(teacher["source"], teacher["verdict"]) for teacher in advice["teachers"]], advice["best"]
        ([('yolo26s.pt', 'UNCERTAIN'), ('yolo26x.pt', 'GO')], 'yolo26x.pt')
    """
    with tempfile.TemporaryDirectory() as scratch:
        with quietly():
            options = check_options(given)
            advisor = Advisor(options, Path(scratch), command_line("advise", given))
        make_folder(options.folder)  # before the measurements, as it may fail
        try:
            advice = advisor.advise()
        except BaseException:  # Ctrl-C too; it is raised again, and an empty folder is of no use
            with suppress(OSError):
                options.folder.rmdir()
            raise
    LOGGER.info(to_text(advice))
    return advice


class Advisor:
    """Judges the teachers of one student and one data set.

    Attributes:
        options (Options): The checked arguments.
        scratch (Path): Folder for temporary files.
        command (str): Command line that asks for the advice.
        judge (Judge): How models are scored.
        candidates (list[ComparedModel]): The teachers.
        baseline (ComparedModel | None): The student trained alone, if it is given.
        alone (tuple | None): Figures of the student without a teacher, and where they are from.
        probed (Probe | None): How long the student was trained alone; None if it was not.
        steps (Steps): The trainings whose steps are measured.
    """

    def __init__(self, options: Options, scratch: Path, command: str):
        """Open all models, so that a wrong one is refused before anything is written or trained."""
        self.options, self.scratch, self.command, args = options, scratch, command, options.args
        self.judge = scores.make_judge(args, options.task, options.training["model"], scratch)
        self.candidates = [
            scores.open_candidate(source, args, options.task, options.teacher_imgsz) for source in options.teachers
        ]
        self.baseline: ComparedModel | None = None
        if options.baseline:
            warn_of_taught(options.baseline)
            self.baseline = scores.open_reference(options.baseline, args, options.task, self.judge.names, "baseline")
        self.alone: tuple[dict[str, Any], str] | None = None
        self.probed: Probe | None = None
        self.steps: Steps

    def describe(self) -> dict[str, Any]:
        """Return what is asked about, and on which machine."""
        options, device = self.options, select_device(self.options.args.device, verbose=False)
        return {
            "task": options.task,
            "data": str(options.args.data),
            "model": str(options.training["model"]),
            "imgsz": options.args.imgsz,
            "head": self._head(),
            "epochs": options.argument("epochs"),
            "metrics": [name for _, name in METRICS[options.task]],
            "command": self.command,
            "match_conf": options.match_conf,
            "probe": options.probe,
            "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "device": str(torch.cuda.get_device_name(device) if device.type == "cuda" else get_cpu_info()),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "save_dir": str(options.folder),
        }

    def _head(self) -> str:
        """Return the name of the heads that are scored; empty if no teacher has two."""
        preferred = END2END if self.options.args.nms is False else NMS
        return next((HEADS[model.head(preferred)] for model in self.candidates if len(model.heads) > 1), "")

    def advise(self) -> dict[str, Any]:
        """Measure, judge every teacher, and write the folder."""
        options, start = self.options, perf_counter()
        val = self._part(options.split, "val")
        train = self._part("train", "train")
        student = self._score_student(val)
        self._say("time and memory of a step without a teacher")
        self.steps = Steps(options, self.scratch, warm=self.probed is not None)
        found, results = {}, {}
        teachers = []
        with closing(self.steps):
            for candidate in self.candidates:
                source = candidate.loaded.source
                figures, results[source], found[source] = self._look_at(candidate, val, train)
                teachers.append(self._judged(candidate, figures, found[source]))
        best = best_of(teachers)
        advice = {
            **self.describe(),
            "val": val.described(str(options.args.data), options.split),
            "train": train.described(str(options.args.data), "train"),
            **student,
            "teachers": teachers,
            "best": best and best["source"],
        }
        shown = {
            candidate.loaded.source: Shown(results[source], found[source]["rows"], taught(candidate))
            for source, candidate in zip(found, self.candidates)
        }
        write_folder(advice, shown, options, self.judge.names, start)
        return advice

    def _part(self, split: str, folder: str) -> Part:
        """Return the images of a split that are looked at."""
        options = self.options
        with quietly():
            return part_of(options.args.data, options.task, split, options.sample, self.scratch / folder)

    # The student ------------------------------------------------------------------------------------------------------
    def _score_student(self, val: Part) -> dict[str, Any]:
        """Return the figures of the student as it is, and without a teacher; sets `alone`."""
        options = self.options
        self._say(f"scores on {val.used} {options.split} images")
        model = str(options.training["model"])
        itself = scores.student_as_it_is(model, options.args, options.task, self.judge.names)
        as_it_is = self._figures(itself, val)[0] if itself else None
        reference, origin = self.baseline, TRAINED
        if reference is None and options.probe:
            reference = self._probe()
            origin = TRAINED if self.probed and self.probed.complete else SHORTLY
        if reference is not None:
            self.alone = self._figures(reference, val)[0], origin
        if as_it_is and (self.alone is None or (origin == SHORTLY and as_it_is["score"] > self.alone[0]["score"])):
            self.alone = as_it_is, ITSELF
        return {
            "student": as_it_is,
            "alone": self.alone and self.alone[0],
            "alone_origin": self.alone and self.alone[1],
            "probed": None if self.probed is None else vars(self.probed) | {"words": self.probed.words},
        }

    def _probe(self) -> ComparedModel | None:
        """Train the student alone for a short time and return it; None if no checkpoint was saved."""
        options = self.options
        self._say(f"at most {options.probe:.0f} seconds of training without a teacher")
        weights, self.probed = train_alone(alone(options.training), self.scratch / "probe", options.probe)
        if weights is None:
            return None
        return scores.open_reference(weights, options.args, options.task, self.judge.names, "model")

    def _figures(self, model: ComparedModel, val: Part) -> tuple[dict[str, Any], ValidationResult]:
        """Return a model's figures and its result on the val images."""
        with quietly():
            result = self.judge.predictions(model, val)
        return scores.figures(model, result, self.options.args.imgsz), result

    # A teacher --------------------------------------------------------------------------------------------------------
    def _look_at(
        self, candidate: ComparedModel, val: Part, train: Part
    ) -> tuple[dict[str, Any], ValidationResult, dict[str, Any]]:
        """Return a teacher's figures on val images, its predictions on training images, and its contradictions."""
        self._say(f"{candidate.loaded.source}: scores, and {train.used} training images beside their labels")
        figures, _ = self._figures(candidate, val)
        with quietly():
            result = self.judge.predictions(candidate, train)
        options = self.options
        found = contradictions.find_contradictions(
            result, options.task, self.judge.names, options.match_conf, taught(candidate), train.original
        )
        return figures, result, found

    def _judged(self, candidate: ComparedModel, figures: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        """Return all that the advice says about a teacher, gradients, costs and verdict included."""
        teacher, options = candidate.loaded, self.options
        assert teacher.classes is not None
        unmatched = [str(name) for name in teacher.classes.unmatched]
        self._say(f"{teacher.source}: gradients, and time and memory of a step")
        gradients, cost = self.steps.measure(teacher.source)
        lead = better = None
        if self.alone is not None:
            lead = scores.lead(figures, self.alone[0], unmatched)
            better = {
                "classes": scores.lead_by(figures, self.alone[0], "classes", unmatched),
                "sizes": scores.lead_by(figures, self.alone[0], "sizes"),
            }
        facts = Facts(
            score=figures["score"],
            alone=self.alone and self.alone[0]["score"],
            origin=self.alone and self.alone[1],
            lead=lead,
            cosine=gradients[TOGETHER]["cosine"],
            computes=scores.computes_more(figures, self.steps.plain.trainer.model, options.args.imgsz),
            covered=len(teacher.classes.student),
            classes=len(teacher.classes.learned_names),
            swapped=found["swapped"] / found["confident"] if found.get("confident", 0) >= FEWEST_CONFIDENT else 0.0,
            trained=self.probed.words if self.probed else "",
            smaller=seen_smaller(teacher, options.teacher_imgsz or options.args.imgsz),
        )
        verdict, reason = judge(facts)
        # Answers to larger images teach as much when they are stored, at the cost of a training alone (docs/results.md)
        stored = options.teacher_imgsz is not None and not cost["not_stored"]
        return {
            "source": teacher.source,
            "name": short_name(candidate),
            "verdict": verdict,
            "reason": reason,
            "command": next_command(verdict, options.training, teacher.source, stored),
            **figures,
            "lead": lead,
            "better": better,
            "facts": vars(facts),
            "unmatched": unmatched,
            "contradictions": {k: v for k, v in found.items() if k != "rows"} | {"listed": len(found["rows"])},
            "gradients": gradients,
            "costs": cost,
        }

    def _say(self, what: str) -> None:
        """Log what is measured now."""
        LOGGER.info(f"{colorstr('Advice:')} {what} ...")
