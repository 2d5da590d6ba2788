"""The end of a run: the teacher's scores beside the student's, the report, and the plots of the log."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ultralytics.utils import LOCAL_RANK, LOGGER, RANK, callbacks
from ultralytics.utils.patches import override_configs
from ultralytics.utils.plotting import plot_results
from ultralytics.utils.torch_utils import unwrap_model

from ... import outputs
from ...errors import KDError
from ...report.report_folder import EvaluationSetup
from ...report.run import command_of, report_training, sized
from ...report.score_names import END2END, HEADS, NMS
from ...screen import near
from ...teachers.validation import check_scorable
from ..distillation import Distillation
from . import kept_scores, tables
from .next_bench import bench_command
from .scoring import reason, validated

ONLY_SCORES = "Only the teacher's scores are missing; the student is whole."


def score_teacher(distillation: Distillation, trainer: Any, make_validator: Callable[[], Any]) -> None:
    """Validate the teacher, and put its scores beside the student's, as `teacher/...`.

    Args:
        distillation (Distillation): The distillation; its `teacher_metrics` are set.
        trainer (BaseTrainer): The trainer; its `metrics` get the scores.
        make_validator (Callable): Returns a validator of the task.
    """

    def prepare() -> Callable[[], dict[str, float]] | None:
        """Return the validation of the teacher, opened again if stored answers replaced it."""
        distillation.open_again(trainer.data)
        return _prepare_validation(distillation, trainer, make_validator)

    def sentence(error: Exception) -> str:
        """Return why the teacher has no scores."""
        named = isinstance(error, KDError)  # the sentence names the teacher already
        could_not = "" if named else f"teacher={distillation.teacher.source} could not be scored: "
        return f"{could_not}{reason(error)} {ONLY_SCORES}"

    distillation.teacher_metrics = validated(trainer, prepare, sentence) or {}
    scores = {k.removeprefix("metrics/"): v for k, v in distillation.teacher_metrics.items() if "metrics/" in k}
    named = {f"teacher/{name}": value for name, value in scores.items()}
    trainer.metrics = {**(trainer.metrics or {}), **named}  # only rank 0 has any if no best student was validated
    kept_scores.score_kept(distillation, trainer, lambda: _quiet_validator(trainer, make_validator))


def _prepare_validation(
    distillation: Distillation, trainer: Any, make_validator: Callable[[], Any]
) -> Callable[[], dict[str, float]] | None:
    """Return a function that validates the teacher in the student's classes and precision; None if it has no model.

    The validator is a new one, so that files, plots and callbacks of the student's validation stay the student's.
    """
    if not distillation.teacher.can_validate:
        return None
    check_scorable(distillation.teacher, trainer.data)
    names = trainer.data["names"]
    model = distillation.teacher.validator_model(len(names), names)
    validator = _quiet_validator(trainer, make_validator)
    own = distillation.teacher_imgsz

    def validate() -> dict[str, float]:
        """Return the teacher's metrics on the val set, at the size that it teaches at."""
        same = own == trainer.args.imgsz
        LOGGER.info(f"\nValidating teacher {near(distillation.teacher.source)}{'' if same else f' at {own} px'}...")
        with tempfile.TemporaryDirectory() as folder, nullcontext() if same else _val_images(validator, trainer, own):
            validator.save_dir = Path(folder)
            return validator(model=model) or {}

    return validate


def _quiet_validator(trainer: Any, make_validator: Callable[[], Any]) -> Any:
    """Return a validator of the student's precision that draws and writes nothing."""
    validator = make_validator()
    validator.callbacks = callbacks.get_default_callbacks()
    validator.args.plots = validator.args.save_txt = validator.args.compile = False
    validator.args.quantize = getattr(trainer.validator.args, "quantize", None)
    return validator


@contextmanager
def _val_images(validator: Any, trainer: Any, side: int) -> Iterator[None]:
    """Give a validator val images of another size within a block.

    Args:
        validator (BaseValidator): The validator.
        trainer (BaseTrainer): The trainer, which loads the images like its own val images.
        side (int): Size of the images in pixels.
    """
    student = unwrap_model(trainer.model)
    transforms = vars(student).get("transforms")  # those of a classifier's val images, which a new loader replaces
    batch = max(trainer.batch_size // max(trainer.world_size, 1), 1)
    data = trainer.data
    source = data.get(trainer.args.split) or data.get("val") or data.get("test")
    with override_configs(trainer.args, {"imgsz": side}):
        loader = trainer.get_dataloader(source, batch, rank=LOCAL_RANK, mode="val")
    if transforms is not None:
        student.transforms = transforms
    validator.args.imgsz, validator.dataloader = side, loader
    try:
        yield
    finally:
        if hasattr(loader, "close"):
            loader.close()


def log_results(distillation: Distillation, trainer: Any) -> None:
    """Log student and teacher side by side, and write the report if plots are on.

    Args:
        distillation (Distillation): The distillation, its teacher scored.
        trainer (BaseTrainer): The trainer, its student scored.
    """
    if RANK not in {-1, 0}:
        return
    scores, sizes = distillation.teacher_metrics, (trainer.args.imgsz, distillation.teacher_imgsz)
    best = trainer.best if trainer.best.exists() else trainer.last
    table = tables.end_table(trainer.metrics, scores, distillation.teacher, sizes, str(best), scored_head(trainer))
    LOGGER.info(f"\n{table}")
    if distillation.kept_metrics:
        title, kept = f"On kd_keep_data={trainer.args.kd_keep_data}:", distillation.kept_metrics
        student, teacher = (kept.get(role, {}) for role in ("student", "teacher"))  # the second may have failed
        LOGGER.info(tables.scores_table(title, student, teacher, distillation.teacher.task))
    if trainer.args.plots:
        write_report(distillation, trainer)
    if trainer.args.verbose:  # below the report, which prints a screen of its own
        LOGGER.info(tables.next_step(bench_command(trainer.args, trainer.asked)))


def scored_head(trainer: Any) -> str:
    """Return the name of the student's head that was validated; empty if it has one only.

    Args:
        trainer (BaseTrainer): The trainer, its student scored.
    """
    if getattr(outputs.find_head(trainer.model), "one2one_cv2", None) is None:
        return ""
    return HEADS[END2END if getattr(trainer.validator, "end2end", False) else NMS]


def write_report(distillation: Distillation, trainer: Any) -> None:
    """Write the report of a finished run into its folder; with several processes, log the command for it instead."""
    student = trainer.best if trainer.best.exists() else trainer.last
    if trainer.world_size > 1:  # validation would need all of them
        of_report = sized(trainer.args, distillation.teacher_imgsz)
        keeps = distillation.keeping is not None
        file = str(student)
        lines = kept_scores.commands(distillation, of_report, file) if keeps else [command_of(of_report, file)]
        LOGGER.info("\n".join(f"For a report: {line}" for line in lines))
        return
    try:
        check_scorable(distillation.teacher, trainer.data)
        quantize = getattr(trainer.validator.args, "quantize", None)
        args = {**vars(trainer.args), "quantize": quantize}
        setup = EvaluationSetup(
            dict(trainer.data["names"]),
            type(trainer.validator),
            trainer.device,
            initialized=None if trainer.resume else distillation.beginning.initialized,
        )
        if distillation.keeping is not None:
            kept_scores.write_reports(distillation, trainer, student, setup, args)
            return
        report_training(
            distillation.teacher, student, setup, args, trainer.save_dir / "report", distillation.teacher_imgsz
        )
    except Exception as e:  # the student is finished and must not be lost for pictures
        LOGGER.warning(f"the report in {trainer.save_dir / 'report'} could not be written: {reason(e)}")


def plot_log(distillation: Distillation, trainer: Any) -> None:
    """Plot results.csv with the terms: Ultralytics plots columns named "loss", so those of active terms are renamed.

    Args:
        distillation (Distillation): The distillation.
        trainer (BaseTrainer): The trainer.
    """
    assert distillation.distiller is not None
    terms = distillation.distiller.terms
    header, *rows = trainer.csv.read_text(encoding="utf-8").splitlines()
    names = [f"{n} (loss)" if n.rpartition("/")[2] in terms else n for n in header.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.csv"
        file.write_text("\n".join((",".join(names), *rows)) + "\n", encoding="utf-8")
        plot_results(file=file)
        plot = Path(folder) / "results.png"
        if plot.exists():
            trainer.on_plot(shutil.copy2(plot, trainer.save_dir / "results.png"))
