"""Every touch point to Ultralytics' training loop, in one mixin.

Methods are here because Ultralytics calls them. Each does what Ultralytics does, and calls what a distillation adds:
`Distillation` (teacher, terms, batches), `checkpoints` and `resuming`, `RunFolder`, `evaluation`, `distributed`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK
from ultralytics.utils.torch_utils import torch_distributed_zero_first, unwrap_model

from ..cache.store import Store
from ..config import check_combination, check_user_losses, has_teacher, parse_list
from ..config.recipes import check_merged, check_recipe
from ..distillation.distillers import Distiller
from ..distillation.loss import LABELED, DistillationLoss
from ..errors import KDError, first_line
from ..teachers import Teacher
from ..teachers.prompted import PromptedTeacher
from . import distributed
from .autobatch import StudentWithTeacher
from .calibration import calibration_batches
from .distillation import Distillation
from .first_step import HOOKS, overriding_class
from .images.unlabeled import UnlabeledStream
from .images.unlabeled_alone import UnlabeledAlone
from .run import checkpoints
from .run.resuming import MOVABLE, ResumedRun, check_same_kind
from .run.run_folder import RunFolder
from .run.teacher_source import TeacherSource
from .scores import evaluation

# The mixin is combined with one of Ultralytics' trainers; a type checker must know the methods that it calls there
_Trainer: Any = BaseTrainer if TYPE_CHECKING else object

NO_MODELOPT = (
    'quantize=8 needs NVIDIA\'s ModelOpt, which is not installed: pip install "nvidia-modelopt>=0.44" huggingface_hub'
)


class DistillationMixin(_Trainer):
    """Adds a teacher to an Ultralytics trainer; without the `teacher` argument it changes nothing.

    Attributes:
        distils (bool): Always True; a trainer without this attribute raises an error if it is given a teacher.
        distillation (Distillation | None): Teacher, terms and batches; None in a run without a teacher.
        resumed (ResumedRun | None): The run that is resumed.
        run_folder (RunFolder | None): The folder of a run with a teacher.
    """

    distils = True
    distillation: Distillation | None = None
    resumed: ResumedRun | None = None
    run_folder: RunFolder | None = None
    args: Any
    model: Any
    metrics: Any
    save_dir: Path
    world_size: int
    _setup_scheduler: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a trainer whose other bases would hide this class's methods."""
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if BaseTrainer in order and order.index(BaseTrainer) < order.index(DistillationMixin):
            raise KDError(
                f"class {cls.__name__}: DistillationMixin must stand before the trainer class among its bases."
            )

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: dict | None = None):
        """Check the arguments, load the teacher and set up the base trainer.

        Args:
            cfg (str | dict | Namespace): Base configuration.
            overrides (dict, optional): Arguments over it; `teacher` may be a model in memory.
            _callbacks (dict, optional): Callbacks by event.

        Raises:
            KDError: If the distillation cannot run as asked; no output folder is left behind.
        """
        if isinstance(cfg, (str, Path)):
            check_recipe(cfg, overrides or {})
        self._fingerprints: list[str | None] = []  # of the teachers' weights; checkpoints hold them
        self._extended: Any = None  # the optimizer that trains the adapters
        self._teacher_unscored = False  # whether the run has ended and the teacher is not validated yet
        # Arguments as the user gave them; a teacher in memory must not stay there
        self.asked = {name: value for name, value in (overrides or {}).items() if name != "teacher"}
        with distributed.reporting_errors(), self._undone_on_error(constructing=True):
            super().__init__(cfg, overrides, _callbacks)
            if has_teacher(vars(self.args)) and self.distillation is None:
                raise KDError(
                    f"check_resume must call super().check_resume(overrides), which opens the teacher; {HOOKS}."
                )
            if self.distillation is not None and self.run_folder is not None:
                self._match_data(self.data)
                self.world_size = distributed.world_size(self.world_size)
                if self.distillation.source.in_memory:
                    self.distillation.source.save_beside(self, self.distillation.teacher)
                self.run_folder.note_files()

    # What users read --------------------------------------------------------------------------------------------------
    @property
    def teacher(self) -> Teacher | None:
        """The frozen teacher; its weights are released when training ends."""
        return self.distillation.teacher if self.distillation else None

    @property
    def distiller(self) -> Distiller | None:
        """The terms and their adapters."""
        return self.distillation.distiller if self.distillation else None

    @property
    def initialized(self) -> int:
        """Number of the student's parameters that the teacher's weights initialized."""
        return self.distillation.beginning.initialized if self.distillation else 0

    @property
    def store(self) -> Store | None:
        """Stored answers, from which the student learns without the teacher."""
        return self.distillation.cached.store if self.distillation and self.distillation.cached else None

    @property
    def unlabeled(self) -> UnlabeledStream | None:
        """Images without labels that join the batches."""
        part = self.distillation.unlabeled if self.distillation is not None else None
        return part.stream if part is not None else None

    @property
    def teacher_metrics(self) -> dict[str, float]:
        """The teacher's scores on the val set, after training."""
        return self.distillation.teacher_metrics if self.distillation else {}

    @property
    def kept_metrics(self) -> dict[str, dict[str, float]]:
        """Scores of teacher and student on the val set of `kd_keep_data`, after training."""
        return self.distillation.kept_metrics if self.distillation else {}

    # Setup ------------------------------------------------------------------------------------------------------------
    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Resolve the arguments, then load the teacher: the first step of a trainer, before anything is written."""
        check_merged(overrides)
        super().check_resume({k: v for k, v in overrides.items() if k not in {*MOVABLE, "cfg"}})
        if self.resume:
            check_same_kind(self.args, overrides)
        if not has_teacher(vars(self.args)):
            return
        self.resumed = ResumedRun(self.args, overrides) if self.resume else None
        self.args.cfg = None  # the recipe is merged and checked: neither other processes nor `resume` need it again
        check_combination(vars(self.args))
        check_user_losses(vars(self.args))
        named = not self.resume or overrides.get("device") is not None
        distributed.join(self.args, self._claim_folder, named)  # before Ultralytics makes the process group
        self.distillation = self._open_teacher()
        self.distillation.source.check_place(Path(self._claim_folder()), self.args.save_period)

    def _open_teacher(self) -> Distillation:
        """Return the distillation with its teacher opened."""
        folder, teacher_given = (self.resumed.folder, self.resumed.teacher_given) if self.resumed else (None, False)
        source = TeacherSource(parse_list(self.args.teacher), folder, teacher_given)
        with distributed.machine_by_machine():
            teacher = source.open(self.args)
        return Distillation(self.args, source, teacher)

    def _claim_folder(self) -> str:
        """Create the run's folder, if there is none yet, and return its path."""
        if self.run_folder is None and self.resume:
            path = getattr(self.args, "save_dir", None) or Path(self.args.model).parents[1]
            self.run_folder = RunFolder.of_resumed_run(Path(path))
        elif self.run_folder is None:
            self.run_folder = RunFolder.claim(self.args)
        return str(self.run_folder.path)

    def get_dataset(self) -> dict[str, Any]:
        """Load the data set's description and match its classes with the teacher's."""
        unlabeled = self.distillation.unlabeled if self.distillation is not None else None
        if unlabeled is not None:
            self.args.data = unlabeled.data_file(self.args.data, Path(self._claim_folder()))
        data = super().get_dataset()
        self._match_data(data)
        return data

    def _match_data(self, data: dict[str, Any]) -> None:
        """Match the data set's classes with the teacher's, unless that is done."""
        if self.distillation is None or self.distillation.teacher.classes is not None:
            return
        with distributed.machine_by_machine():  # prompts may need a text encoder, which Ultralytics downloads
            try:
                self.distillation.match_data(data)
            except KDError:  # if the teacher was replaced, that is the error to report
                self._check_resumed_teacher(matched=False)
                raise
        self._check_resumed_teacher()
        self.distillation.open_cache(data)

    def _check_resumed_teacher(self, matched: bool = True) -> None:
        """Raise if a resumed run has another teacher than it began with.

        Args:
            matched (bool): Whether its classes are matched. Before that, a prompted teacher cannot be compared.
        """
        assert self.distillation is not None
        teacher = self.distillation.teacher
        comparable = matched or not any(isinstance(member, PromptedTeacher) for member in teacher.members)
        if self.resumed and comparable and not distributed.launched():  # the launcher has checked it
            self._fingerprints = self.resumed.check_teacher(teacher)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build a data set; the one for training also has larger images for the teacher, or carries stored answers."""
        stock: Any = super().build_dataset
        unlabeled = self.distillation.unlabeled if self.distillation is not None and mode == "train" else None
        if isinstance(unlabeled, UnlabeledAlone):
            stock = lambda *_: unlabeled.training_set(self)  # noqa: E731
        if self.distillation is not None and self.distillation.keeping is not None:
            stock = self.distillation.keeping.building(self, stock)
        large = self.distillation.large_images if self.distillation is not None and mode == "train" else None
        if large is not None:
            return large.data_set(lambda: stock(img_path, mode, batch), self.args)
        dataset = stock(img_path, mode, batch)
        if mode == "train" and self.distillation is not None and self.distillation.cached is not None:
            self.distillation.cached.adopt(dataset, self.args.imgsz, self.save_dir)
        return dataset

    def setup_model(self) -> Any:
        """Build the student, then match it with the teacher, before the optimizer is made."""
        ckpt = super().setup_model()
        self._match_student()
        return ckpt

    def _match_student(self) -> None:
        """Match the student with the teacher, unless that is done."""
        if self.distillation is not None and self.distillation.distiller is None:
            student = unwrap_model(self.model)
            self.distillation.match_student(student, self.device, self._average, self._calibration_batches)

    def _calibration_batches(self) -> list[dict[str, Any]]:
        """Return prepared training batches for `kd_init`, the student ready to compute its base loss on them."""
        self.set_model_attributes()  # Ultralytics calls it later
        return calibration_batches(self, super().preprocess_batch)

    def _average(self) -> nn.Module:
        """Return the student's moving average, or the student as long as there is none."""
        ema = getattr(self, "ema", None)
        student = self.model.student if isinstance(self.model, StudentWithTeacher) else self.model
        return ema.ema if ema else student

    def auto_batch(self, *args: Any, **kwargs: Any) -> int:
        """Choose a batch size that has room for the teacher, the terms and the adapters too."""
        if self.distillation is None:
            return super().auto_batch(*args, **kwargs)
        self._match_student()
        self.distillation.prepare_teacher(self.device, self.amp)
        student: Any = self.model
        self.model = self.distillation.with_teacher(student)
        try:
            return super().auto_batch(*args, **kwargs)
        finally:
            self.model = student
            self.distiller.adapters.zero_grad()  # type: ignore[union-attr]

    def _build_train_pipeline(self) -> None:
        """Build data loaders, optimizer and scheduler, and the stream of images without labels."""
        if self.distillation is not None and isinstance(self.distillation.unlabeled, UnlabeledAlone):
            self.distillation.unlabeled.check_images()
        self._match_student()
        with self._optimizer_extended_first():
            super()._build_train_pipeline()
        if self.distillation is None:
            return
        if self.distillation.keeping is not None:
            for loader in (self.train_loader, self.test_loader):
                self.distillation.keeping.check_labels(loader.dataset)
        if self.distillation.cached is not None:
            self.distillation.cached.adopt_from(self.train_loader, self.args.imgsz, self.save_dir)
        if self.distillation.unlabeled is not None:
            self.distillation.unlabeled.open(self)

    @contextmanager
    def _optimizer_extended_first(self) -> Iterator[None]:
        """Add the adapters to the optimizer before the scheduler sees its groups, even if user code makes both."""
        set_up = self._setup_scheduler

        def extended() -> None:
            self._extend_optimizer()
            set_up()

        self._setup_scheduler = extended
        try:
            yield
        finally:
            del self._setup_scheduler

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Build a data loader; on several machines rank 0 builds it first, as they may share the label file."""
        first = self.distillation is not None and distributed.several_machines()
        with torch_distributed_zero_first(RANK if first else -1):
            return super().get_dataloader(*args, **kwargs)

    def _extend_optimizer(self) -> None:
        """Let the current optimizer train the adapters and carry the run's state."""
        if self.distiller is None or self.optimizer is self._extended:
            return
        assert self.distillation is not None
        # Hashed now, because with stored answers the teacher is released before the first checkpoint
        if not self._fingerprints:
            self._fingerprints = [checkpoints.fingerprint(member) for member in self.distillation.teacher.members]
        checkpoints.add_to_optimizer(
            self.optimizer, self.distiller, lambda: checkpoints.run_state(self, self._fingerprints)
        )
        if self.world_size > 1:
            check = self.distillation.first_step.check_ranks
            self.optimizer.register_step_pre_hook(lambda *_: check())
        self._extended = self.optimizer

    def _setup_train(self) -> None:
        """Set up training, then put the distillation loss in place of the base loss."""
        if self.distillation is None:
            super()._setup_train()
            return
        distributed.check_shared(self.save_dir)
        try:
            super()._setup_train()
        except ImportError as e:
            if not self.distillation.quantizes or not (e.name or "").startswith("modelopt"):
                raise
            raise KDError(NO_MODELOPT) from e
        adapters = self.distillation.distiller.adapters  # type: ignore[union-attr]
        if self.world_size > 1:  # a user's module may start from other weights in every process
            distributed.broadcast((*adapters.parameters(), *adapters.buffers()))
        self.distillation.prepare_teacher(self.device, self.amp)
        self._attach_loss()
        self.distillation.start(unwrap_model(self.model), overriding_class(self, "preprocess_batch"))

    def _attach_loss(self) -> None:
        """Wrap the base losses of the student and of its moving average, unless they are wrapped."""
        assert self.distillation is not None
        self.distillation.attach_loss(unwrap_model(self.model), self.ema.ema if self.ema else None)

    def _keep_attached(self, event: str) -> None:
        """Restore distillation loss and adapters if callbacks replaced loss or optimizer, and check the first batch."""
        if self.distillation is not None and self.distillation.trains:
            self._attach_loss()
            self._extend_optimizer()
            if event == "on_train_epoch_start" and self.distillation.cached is not None:
                for loader in filter(None, (self.train_loader, self.unlabeled and self.unlabeled.loader)):
                    self.distillation.cached.check_loader(loader)
            self.distillation.first_step.follow(event, self)
            if event == "on_train_epoch_end":
                self.distillation.log_epoch()

    # Steps ------------------------------------------------------------------------------------------------------------
    def train(self) -> Any:
        """Train, then release the teacher. A run that fails before its first batch leaves nothing on disk."""
        if self.distillation is None and has_teacher(vars(self.args)):
            raise KDError("args.teacher was set after the trainer was built: give teacher= to train() or in overrides.")
        if self.distillation is None or self.run_folder is None:
            return super().train()
        try:
            if self.ddp:
                with distributed.launching(self.run_folder.undo), self._folder_kept():
                    return super().train()
            with distributed.reporting_errors(), self._undone_on_error():
                return super().train()
        finally:
            self.distillation.release()

    @contextmanager
    def _folder_kept(self) -> Iterator[None]:
        """Hide the run's folder from Ultralytics while it launches processes: it would remove the folder first."""
        path = self.save_dir
        with tempfile.TemporaryDirectory() as folder:
            self.save_dir = path if self.resume else Path(folder)
            try:
                yield
            finally:
                self.save_dir = path

    @contextmanager
    def _undone_on_error(self, constructing: bool = False) -> Iterator[None]:
        """Remove what a run with a teacher has written if it fails before it starts.

        Args:
            constructing (bool): Whether the block is the constructor, which closes no trackers when it fails.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as e:  # it is raised again
            folder, started = self.run_folder, self.distillation is not None and self.distillation.started
            if started or (folder is None and not distributed.launched()):
                raise
            if constructing and hasattr(self, "callbacks"):  # or Ultralytics Platform keeps capturing the console
                self.run_callbacks("teardown")
            error = folder.disk_error(e) if folder is not None else None
            distributed.failed_before_start(folder.undo if folder is not None else lambda: None)
            if error is None:
                raise
            raise error from e

    def _do_train(self) -> None:
        """Train; if the run was interrupted after its last epoch, do only what is left."""
        if self.resumed is not None and self.resumed.all_trained:
            self.resumed.finish(self)
        else:
            super()._do_train()

    def _model_train(self) -> None:
        """Start an epoch: train mode, the random streams of a resumed run, and the terms' schedule."""
        super()._model_train()
        if self.resumed is not None:
            self.resumed.restore_random_state(self)
        if self.distiller is not None:
            self._attach_loss()
            # With `time`, each process estimates the number of epochs by its own clock
            progress = distributed.from_first(lambda: min(self.epoch / max(self.epochs - 1, 1), 1.0))
            self.distiller.start_epoch(progress)

    def _close_dataloader_mosaic(self) -> None:
        """Continue without mosaics."""
        super()._close_dataloader_mosaic()
        if self.distillation is not None and self.distillation.unlabeled is not None:
            self.distillation.unlabeled.close_mosaic()

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add images without labels, prepare the batch, and add the teacher's answer.

        If a subclass overrides this method, the loss adds the answer instead. Here, before the student's forward pass,
        the answer takes less memory.
        """
        if self.distillation is None:
            return super().preprocess_batch(batch)
        if self.distillation.unlabeled is not None and self.distillation.unlabeled.ready:  # quantization comes before
            self.distillation.unlabeled.add_to(batch)
        batch = super().preprocess_batch(batch)
        if getattr(self.preprocess_batch, "__func__", None) is DistillationMixin.preprocess_batch:
            self.distillation.answers.add_answer(batch)
        return batch

    def optimizer_step(self) -> None:
        """Average the adapters' gradients over ranks, then step."""
        if self.distillation is not None and self.distillation.distiller is not None and self.world_size > 1:
            parameters = list(self.distillation.distiller.adapters.parameters())
            if parameters:
                distributed.average_gradients(parameters)
                self.distillation.first_step.averaged = True
        super().optimizer_step()

    def validate(self) -> Any:
        """Validate the moving average."""
        if self.distillation is None or self.distillation.distiller is None:
            return super().validate()
        if self.world_size > 1:  # statistics of norm layers differ between ranks; those of rank 0 are saved
            distributed.broadcast(self.distillation.distiller.adapters.buffers())
        with self.distillation.validating(unwrap_model(self.ema.ema)):
            return super().validate()

    def plot_training_samples(self, batch: dict[str, Any], ni: int) -> None:
        """Plot training images with their labels; those without are plotted separately if they have pseudo-boxes."""
        count, drawn = batch.get(LABELED), batch  # with no label at all, the images are still worth a look
        if self.distillation is not None:
            # On a CPU, Ultralytics scales the drawn images in place, and the first step is checked later
            drawn = {**batch, "img": batch["img"][: count or None].clone()}
        super().plot_training_samples(drawn, ni)
        if count is not None and self.distillation is not None and self.distillation.pseudo is not None:
            self.distillation.pseudo.plot(batch["img"], self.data["names"], self.save_dir / f"unlabeled_batch{ni}.jpg")

    def plot_training_labels(self) -> None:
        """Plot the labels of the training set, if it has any."""
        if self.distillation is None or not self.distillation.alone:
            super().plot_training_labels()

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Restore the last checkpoint when the loss is non-finite, and log which part became non-finite first.

        Raises:
            KDError: If there is no checkpoint and the student's weights are lost, or if restoring does not help.
        """
        if self.distiller is None:
            return super()._handle_nan_recovery(epoch)
        nonfinite = unwrap_model(self.model).criterion.first_nonfinite
        first = nonfinite.names()
        nonfinite.reset()
        message = f"{' and '.join(first)} became NaN or Inf in epoch {epoch + 1}"
        advice = "lower its weight or set it to 0" if set(first) & set(self.distiller.weights) else "lower lr0"
        if first and RANK in {-1, 0}:
            LOGGER.warning(f"{message}.")
        try:
            recovers = super()._handle_nan_recovery(epoch)
        except RuntimeError as e:
            raise KDError(f"{first_line(e)[:-1]}{f': {message}' if first else ''}; {advice}.") from e
        lost = first and not recovers and not all(p.isfinite().all() for p in self.model.parameters())
        if lost:  # in the first epoch Ultralytics would continue with these weights
            left = f"{self.last} is as it was" if self.last.exists() else "there is no checkpoint yet"
            raise KDError(f"{message}, the student's weights are lost, and {left}: {advice}.")
        base: Any = getattr(unwrap_model(self.model).criterion, "base", None)
        if recovers and hasattr(base, "updates"):  # the repeated epoch must not change the branches' gains twice
            base.updates = epoch - 1
            base.update()
        return recovers

    # Checkpoints ------------------------------------------------------------------------------------------------------
    def save_model(self) -> Any:
        """Save checkpoints, each of them whole or not at all."""
        save = super().save_model
        return save() if self.distillation is None else checkpoints.save_whole(self, save)

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Add a row to results.csv; a full disk raises an error of one sentence."""
        if self.distillation is None:
            super().save_metrics(metrics)
            return
        with checkpoints.disk_errors(self):
            if self.resumed is not None and self.epoch == self.start_epoch:  # drop older columns before its first row
                self.resumed.drop_columns(self, metrics)
            super().save_metrics(metrics)

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        """Return the parts of the loss for the log; parts of val lack the terms if val images get no answers."""
        parts = super().label_loss_items(loss_items, prefix)
        if prefix != "val" or self.distiller is None or self.distillation.answers_val:  # type: ignore[union-attr]
            return parts
        names = [name for name in parts if name.rpartition("/")[2] not in self.distiller.terms]
        return names if loss_items is None else {name: parts[name] for name in names}

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Continue from a checkpoint, with the adapters and the random streams that the run had there.

        Raises:
            KDError: If no epoch is left to train.
        """
        if self.resumed is None or ckpt is None:
            super().resume_training(ckpt)
            return
        self.resumed.remove_partial_files(self)
        if self.resumed.all_trained:
            self._load_checkpoint_state(ckpt)
            self.epoch = ckpt["epoch"]
            self.start_epoch = self.epoch + 1
            return
        try:
            super().resume_training(ckpt)
        except AssertionError as e:  # Ultralytics' message that no epoch is left to train
            raise KDError(" ".join(str(e).split())) from e
        self.resumed.trim_results(self)
        self.resumed.keep_random_state(ckpt)

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Restore optimizer and EMA. The restored EMA is a new model and needs the distillation loss again."""
        if self.distiller is not None:
            checkpoints.check_adapters(ckpt.get("optimizer"), self.distiller)
        student = unwrap_model(self.model)
        try:
            with self.distillation.uncaptured(student) if self.distillation else nullcontext():
                super()._load_checkpoint_state(ckpt)
        except ValueError as e:  # PyTorch's, about parameter groups of other sizes
            if self.distillation is None or isinstance(e, KDError):
                raise
            raise KDError(
                "the checkpoint's optimizer has other parameter groups than this trainer's: resume with the trainer "
                "that the run began with, e.g. YOLO('last.pt').train(resume=True, trainer=MyTrainer)."
            ) from e
        if self.distillation is not None and isinstance(getattr(student, "criterion", None), DistillationLoss):
            self.ema.ema.criterion = None
            self._attach_loss()

    # End --------------------------------------------------------------------------------------------------------------
    def final_eval(self) -> None:
        """Validate the best student, then the teacher on the same images, and show them side by side."""
        if self.distillation is None:
            super().final_eval()
            return
        self.distillation.stop()
        self._teacher_unscored = True
        with checkpoints.stripped_whole(self):
            super().final_eval()
            if self._teacher_unscored:  # there was no best student to validate
                self._score_teacher()
            evaluation.log_results(self.distillation, self)

    def run_callbacks(self, event: str) -> None:
        """Run an event's callbacks. Trackers get the teacher's score together with the student's final score."""
        if self._teacher_unscored and event == "on_fit_epoch_end":
            self._score_teacher()
        super().run_callbacks(event)
        if event == "on_train_start" and self.distillation is not None and not self.distillation.trains:
            raise KDError(f"_setup_train must call super()._setup_train(), which prepares the teacher; {HOOKS}.")
        self._keep_attached(event)

    def _score_teacher(self) -> None:
        """Validate the teacher, and put its score beside the student's, as `teacher/...`."""
        assert self.distillation is not None
        self._teacher_unscored = False
        evaluation.score_teacher(self.distillation, self, self.get_validator)

    def plot_metrics(self) -> None:
        """Plot results.csv, including the active terms."""
        if self.distillation is None or self.distillation.distiller is None:
            super().plot_metrics()
        else:
            evaluation.plot_log(self.distillation, self)
