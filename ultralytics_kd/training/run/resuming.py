"""Resume a run with a teacher: read its state from the checkpoint, and restore it before the run continues."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.patches import torch_load
from ultralytics.utils.torch_utils import init_seeds

from ...config import has_teacher
from ...config.arguments import TASK_WEIGHTS
from ...config.named_files import MOVED
from ...distillation.terms.feature import set_mask_states
from ...errors import KDError
from ...files import write_whole
from ...teachers import Teacher
from ...teachers.prompted import remember
from .checkpoints import PARTS, RUN_KEY, fingerprint, how_to_continue, loaders
from .moved_run import RunPlace, bring_up_to_date
from .random_streams import set_random_state

MOVABLE = (*MOVED, "kd_trust_teacher")  # `resume` accepts these again, as paths may have changed


def check_same_kind(args: Any, overrides: dict[str, Any]) -> None:
    """Raise if the call that resumes a run would add or remove the teacher.

    Args:
        args (Namespace): Arguments of the run.
        overrides (dict): Arguments of the call.

    Raises:
        KDError: If only one of them has a teacher.
    """
    if "teacher" in overrides and has_teacher(overrides) != has_teacher(vars(args)):
        began = "with" if has_teacher(vars(args)) else "without"
        raise KDError(
            f"this run began {began} a teacher and is resumed the same way: drop teacher={overrides['teacher']}"
            f", or start a new run from its weights (model={args.model})."
        )


class ResumedRun:
    """The run that a checkpoint belongs to.

    Attributes:
        folder (Path): Folder of the checkpoint.
        teacher_given (bool): Whether the call that resumes the run names the teacher again.
        all_trained (bool): Whether all epochs are trained, so that only the end of the run is left.
    """

    def __init__(self, args: Any, overrides: dict[str, Any]):
        """Read a checkpoint, and put paths that have changed, or that the user gave again, into the arguments.

        Args:
            args (Namespace): Arguments of the run; `model` is the checkpoint. They are changed.
            overrides (dict): Arguments of the call.
        """
        self.teacher_given = "teacher" in overrides
        if self.teacher_given:
            args.teacher = overrides["teacher"]
        for name in MOVED:
            given, own = overrides.get(name), getattr(args, name)
            if name != "teacher" and given and own:
                setattr(args, name, given)
            elif name not in {"teacher", "data"} and name in overrides and bool(given) != bool(own) and RANK in {-1, 0}:
                LOGGER.warning(
                    f"Resume ignores '{name}={given}', as the run began {'with' if own else 'without'} it. Start a new "
                    "run to change that."
                )
        args.kd_trust_teacher = overrides.get("kd_trust_teacher", args.kd_trust_teacher)
        self.folder = Path(args.model).parent
        checkpoint = torch_load(Path(args.model), map_location="cpu")  # Ultralytics has opened it already
        before = (checkpoint.get("train_args") or {}).get("save_dir")
        bring_up_to_date(args, overrides, RunPlace(Path(args.model), before))
        optimizer = checkpoint.get("optimizer") or {}
        state = optimizer.get(RUN_KEY, {})
        over = state.get("over") or checkpoint.get("epoch", -1) + 1 >= args.epochs
        self.all_trained = bool(optimizer) and over
        remember(state.get("words") or {})  # so that a prompted teacher needs no text encoder again
        self._teachers: list[str | None] | None = state.get("teachers")
        self._state: dict[str, Any] = {}

    def check_teacher(self, teacher: Teacher) -> list[str | None]:
        """Raise if the teacher's weights are not those that the run began with; warn if the user named the teacher.

        Args:
            teacher (Teacher): The opened teacher.

        Returns:
            (list[str | None]): Hash of every teacher's weights, None where there is none.

        Raises:
            KDError: If the weights differ.
        """
        before, now = self._teachers, [fingerprint(member) for member in teacher.members]
        if before is None or (len(before) == len(now) and all(a == b or None in {a, b} for a, b in zip(before, now))):
            return now
        if self.teacher_given:
            LOGGER.warning(f"teacher={teacher.source} has other weights than the run began with: they are used now.")
            return now
        raise KDError(
            f"teacher={teacher.source} has other weights than when this run began: resume with teacher=PATH of the "
            f"old weights, or with teacher={teacher.source} to go on with the new ones."
        )

    def remove_partial_files(self, trainer: Any) -> None:
        """Remove partial files of a process that was killed while it wrote."""
        if RANK in {-1, 0}:
            for folder in trainer.wdir.glob(f"{PARTS}*"):
                shutil.rmtree(folder, ignore_errors=True)
            for file in (*trainer.wdir.glob(".*.tmp"), *trainer.save_dir.glob(".*.tmp")):
                file.unlink(missing_ok=True)

    def keep_random_state(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random state of a checkpoint until the first epoch starts."""
        self._state = (checkpoint.get("optimizer") or {}).get(RUN_KEY, {})

    def restore_random_state(self, trainer: Any) -> None:
        """Restore the random state when the first epoch starts; nothing in later epochs."""
        state, self._state = self._state, {}
        if state.get("random") is None:
            return
        if trainer.unlabeled is not None:  # the next pass; the rest of the interrupted one is left out
            trainer.unlabeled.passes = state.get("unlabeled_passes", 0)
        if RANK in {-1, 0}:
            set_random_state(state["random"], trainer.device, loaders(trainer))
            set_mask_states(trainer.distiller.adapters, state.get("masks", []))
        else:  # the checkpoint has the state of rank 0 only; a new seed keeps other ranks from repeating their numbers
            seed = trainer.args.seed + 1 + RANK + trainer.world_size * trainer.start_epoch
            init_seeds(seed, trainer.args.deterministic)

    @staticmethod
    def trim_results(trainer: Any) -> None:
        """Drop rows of results.csv that are half written, or of epochs that are trained again."""
        if RANK not in {-1, 0} or not trainer.csv.is_file():
            return
        header, *rows = trainer.csv.read_text(encoding="utf-8").splitlines() or [""]
        kept = [row for row in rows if _is_whole(row, header) and int(row.partition(",")[0]) <= trainer.start_epoch]
        if kept != rows:
            write_whole(trainer.csv, ("\n".join((header, *kept)) + "\n").encode(), how_to_continue(trainer))

    @staticmethod
    def drop_columns(trainer: Any, metrics: dict[str, Any]) -> None:
        """Drop columns of terms that are off from results.csv: only older releases of this package wrote them.

        Args:
            trainer (BaseTrainer): The trainer.
            metrics (dict[str, Any]): The next row.
        """
        if not trainer.csv.is_file():
            return
        rows = [line.split(",") for line in trainer.csv.read_text(encoding="utf-8").splitlines()]
        terms = {f"{split}/{name}" for split in ("train", "val") for name in TASK_WEIGHTS[trainer.args.task]}
        kept = [i for i, name in enumerate(rows[0]) if name in metrics or name not in terms]
        if len(kept) < len(rows[0]):
            text = "".join(",".join(row[i] for i in kept) + "\n" for row in rows)
            write_whole(trainer.csv, text.encode(), how_to_continue(trainer))

    @staticmethod
    def finish(trainer: Any) -> None:
        """Finish a run whose epochs are all trained: the final evaluation, plots and callbacks."""
        LOGGER.info(f"All {trainer.epochs} epochs of {trainer.args.model} are trained: the final validation is left.")
        if trainer.world_size > 1:
            trainer._setup_ddp()
        trainer.train_time_start = trainer.epoch_time_start = time.time()  # trackers read them
        trainer.epoch_time, trainer.tloss = 0.0, {}
        trainer._setup_train()
        trainer.lr = {f"lr/pg{i}": group["lr"] for i, group in enumerate(trainer.optimizer.param_groups)}
        trainer.final_eval()
        if RANK in {-1, 0}:
            if trainer.args.plots:
                trainer.plot_metrics()
            trainer.run_callbacks("on_train_end")
        for loader in (trainer.train_loader, trainer.test_loader):
            if hasattr(loader, "close"):
                loader.close()


def _is_whole(row: str, header: str) -> bool:
    """Return whether a row of results.csv has all columns and begins with an epoch."""
    return row.count(",") == header.count(",") and row.partition(",")[0].isdigit()
