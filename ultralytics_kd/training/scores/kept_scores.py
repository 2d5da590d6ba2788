"""The end of a run that keeps classes (`kd_keep`): scores on the val set of `kd_keep_data`, and reports."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ultralytics.utils import LOCAL_RANK, LOGGER
from ultralytics.utils.patches import override_configs

from ...report.report_folder import EvaluationSetup
from ...report.run import command_of, report_training
from ...teachers import Teacher
from ..distillation import Distillation
from ..keeping import Labels
from .scoring import reason, validated

ONLY_SCORES = "Only the scores on kd_keep_data are missing; the student is whole."


def score_kept(distillation: Distillation, trainer: Any, make_validator: Callable[[], Any]) -> None:
    """Validate teacher and student on the val set of `kd_keep_data`, if it is given.

    Args:
        distillation (Distillation): The distillation, its teacher open; its `kept_metrics` are set.
        trainer (BaseTrainer): The trainer; its `metrics` get the student's scores as `kept/...`.
        make_validator (Callable): Returns a validator that draws and writes nothing.
    """
    if distillation.keeping is None or distillation.keeping.old is None:
        return

    def prepare() -> Callable[[], None]:
        """Return the validation of both models."""
        models: dict[str, tuple[Any, int]] = {}  # with the size of their images in pixels
        names = trainer.data["names"]
        if distillation.teacher.can_validate:
            twin = distillation.teacher.validator_model(len(names), names)
            models["teacher"] = twin, distillation.teacher_imgsz
        models["student"] = trainer.best if trainer.best.exists() else trainer.last, trainer.args.imgsz

        def validate() -> None:
            """Validate both models; scores from before an error are kept."""
            for role, (model, side) in models.items():
                LOGGER.info(f"\nValidating {role} on {trainer.args.kd_keep_data}...")
                distillation.kept_metrics[role] = _validated(model, side, distillation, trainer, make_validator())

        return validate

    def sentence(error: Exception) -> str:
        """Return why scores are missing."""
        return f"kd_keep_data={trainer.args.kd_keep_data} could not be scored: {reason(error)} {ONLY_SCORES}"

    validated(trainer, prepare, sentence)
    scores = distillation.kept_metrics.get("student", {})
    added = {f"kept/{k.removeprefix('metrics/')}": v for k, v in scores.items() if k.startswith("metrics/")}
    trainer.metrics = {**(trainer.metrics or {}), **added}


def _validated(model: Any, side: int, distillation: Distillation, trainer: Any, validator: Any) -> dict[str, float]:
    """Return the metrics of a model on the val images of `kd_keep_data`.

    Args:
        model (Any): What Ultralytics' validator takes as a model, with the student's classes.
        side (int): Size of its images in pixels.
        distillation (Distillation): The distillation.
        trainer (BaseTrainer): The trainer, which loads the images like its own val images.
        validator (DetectionValidator): The validator.
    """
    assert distillation.keeping is not None
    batch = max(trainer.batch_size // max(trainer.world_size, 1), 1)
    with distillation.keeping.old_data() as old, override_configs(trainer.args, {"imgsz": side}):
        source = old.data.get(trainer.args.split) or old.data["val"]
        loader = trainer.get_dataloader(source, batch, rank=LOCAL_RANK, mode="val")
    validator.dataloader = loader
    validator.args.data, validator.args.imgsz = trainer.args.kd_keep_data, side
    try:
        with tempfile.TemporaryDirectory() as folder:
            validator.save_dir = Path(folder)
            return dict(validator(model=model) or {})
    finally:
        if hasattr(loader, "close"):
            loader.close()


def write_reports(
    distillation: Distillation, trainer: Any, student: Path, setup: EvaluationSetup, args: dict[str, Any]
) -> None:
    """Write a report on the data, and one on `kd_keep_data` if it is given, each in the classes that its labels have.

    Args:
        distillation (Distillation): The distillation.
        trainer (BaseTrainer): The trainer.
        student (Path): The finished student.
        setup (EvaluationSetup): How models are evaluated; its classes are replaced.
        args (dict): Arguments of the training.
    """
    keeping = distillation.keeping
    assert keeping is not None
    for labels, data, name in (
        (keeping.labels, args["data"], "report"),
        (keeping.old, args["kd_keep_data"], "report-kept"),
    ):
        if labels is not None:
            teacher, folder = _matched(distillation.teacher, labels), trainer.save_dir / name
            own = {**args, "data": data}
            report_training(
                teacher, student, replace(setup, names=labels.names), own, folder, distillation.teacher_imgsz
            )


def commands(distillation: Distillation, args: Any, student: str) -> list[str]:
    """Return the command lines that make the reports of `write_reports`, without one whose teacher knows no class.

    Args:
        distillation (Distillation): The distillation.
        args (Namespace): Arguments of the training.
        student (str): Path of the finished student.
    """
    keeping, lines = distillation.keeping, []
    assert keeping is not None
    for labels, data in ((keeping.labels, args.data), (keeping.old, args.kd_keep_data)):
        if labels is not None and _matched(distillation.teacher, labels) is not None:
            lines.append(command_of(Namespace(**{**vars(args), "data": data}), student))
    return lines


def _matched(teacher: Teacher, labels: Labels) -> Teacher | None:
    """Return a teacher in the classes of a data set; None if it cannot be compared there.

    Args:
        teacher (Teacher): The teacher, its classes matched with the student's.
        labels (Labels): The data set.
    """
    assert teacher.classes is not None
    classes = labels.classes_of(teacher.classes)
    if not classes.sources or len(teacher.members) > 1:
        return None
    twin = teacher.unprepared_copy()
    twin.classes = classes
    return twin
