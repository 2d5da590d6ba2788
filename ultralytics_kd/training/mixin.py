"""Every touch point to Ultralytics' training loop, in one mixin."""

from __future__ import annotations

import functools
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.cfg import get_save_dir
from ultralytics.engine.model import Model
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK, LOGGER, RANK, YAML, callbacks
from ultralytics.utils.patches import torch_save
from ultralytics.utils.plotting import plot_results
from ultralytics.utils.torch_utils import autocast, torch_distributed_zero_first, unwrap_model

from .. import config, outputs
from ..cache import augmentation, scales
from ..cache.answers import StoredAnswers
from ..cache.augmentation import AnsweredDataset
from ..cache.build import build_cache
from ..cache.options import CACHE_ONLY, check_options
from ..cache.store import Manifest, Store
from ..config.recipes import check_recipe
from ..config.user_code import names_object
from ..distillation.distillers import Distiller, build_distiller
from ..distillation.loss import LABELED, SOUND, DistillationLoss, Rehearsal
from ..errors import KDError, first_line
from ..files import disk_fault, part_of
from ..outputs.weight_selection import never_trained, select_weights
from ..report.run import Subject, command_of, report_run
from ..teachers import Teacher, open_teacher
from ..teachers.answers import SetAnswer
from ..teachers.class_map import ClassMap, load_map, match_classes
from ..teachers.opening import IN_MEMORY
from . import distributed, tables
from .checkpoints import ContinuityMixin
from .unlabeled import UnlabeledImages, UnlabeledSamples, UnlabeledStream, find_unlabeled, readable

KEPT = re.compile(r"teacher(-\d+)?\.pt")  # names of teachers that a run keeps beside its checkpoints
NO_MEMORY = (  # what errors say after which Ultralytics begins again with a smaller batch
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_internal_error",
    "unable to find an engine",
)
RANDOM_RANGES = (
    "quantize=8 fixes the ranges of activations before training, and those of random weights are none: start with "
    "trained weights (model=student.pt), or with a teacher whose weights the student can begin with (kd_init)."
)
NO_MODELOPT = (
    'quantize=8 needs NVIDIA\'s ModelOpt, which is not installed: pip install "nvidia-modelopt>=0.44" huggingface_hub'
)


class DistillationMixin(ContinuityMixin):
    """Adds a teacher to an Ultralytics trainer; without the `teacher` argument it changes nothing.

    Attributes:
        teacher (Teacher | None): The frozen teacher.
        distiller (Distiller | None): The terms and their adapters.
        initialized (int): Number of the student's parameters that the teacher's weights began.
        store (Store | None): Stored answers, from which the student then learns without the teacher.
        stored_manifest (Manifest | None): The question to which they were given.
        stored_classes (ClassMap | None): How the stored answers' classes teach the student's.
        unlabeled (UnlabeledStream | None): Images without labels that join the batches.
        teacher_metrics (dict[str, float]): The teacher's scores on the val set, after training.
    """

    distils = True  # a trainer without it is not given a teacher
    teacher: Teacher | None = None
    distiller: Distiller | None = None
    model: Any
    metrics: Any
    initialized: int = 0
    world_size: int
    store: Store | None = None
    stored_manifest: Manifest | None = None
    stored_classes: ClassMap | None = None
    unlabeled: UnlabeledStream | None = None
    args: Any

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
        self.teacher_metrics: dict[str, float] = {}
        self._untrained = False  # whether the student was built with random weights
        self._in_memory: Any = None
        self._unlabeled_files: list[str] = []
        self._ears = ExitStack()  # what the terms hear of the student's forward passes
        self._fresh_dirs: list[Path] = []
        self._args_before: tuple[Path, bytes] | None = None
        self._answered = False  # whether the teacher has answered a batch
        self._unscored = False  # whether the run is at its end and the teacher is to be validated
        with distributed.heard(), self._nothing_left_on_error(), self._trackers_let_go_on_error():
            try:
                super().__init__(cfg, overrides, _callbacks)
                if self.teacher is not None:
                    self.world_size = distributed.world_size(self.world_size)
                if self._in_memory is not None:
                    self._keep_teacher_in_memory()
            except OSError as e:  # of the folder of the run, which is not there to be named yet
                said = disk_fault(e, Path(e.filename or "."), "give another project=FOLDER, or make room.")
                if said is None or not self._of_run(e.filename):
                    raise
                raise said from e

    # Setup ------------------------------------------------------------------------------------------------------------
    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Resolve the arguments, then load the teacher: the first step of a trainer, before anything is written."""
        moved = {"teacher", "kd_unlabeled", "kd_trust_teacher"}  # what may be elsewhere now
        super().check_resume({k: v for k, v in overrides.items() if k not in moved})
        if self.resume and "teacher" in overrides:
            if config.has_teacher(overrides) != config.has_teacher(vars(self.args)):
                began = "with" if config.has_teacher(vars(self.args)) else "without"
                raise KDError(
                    f"this run began {began} a teacher and is resumed the same way: drop teacher={overrides['teacher']}"
                    f", or start a new run from its weights (model={self.args.model})."
                )
            self.args.teacher, self._teacher_given = overrides["teacher"], True
        if self.resume and overrides.get("kd_unlabeled") and getattr(self.args, "kd_unlabeled", None):
            self.args.kd_unlabeled = overrides["kd_unlabeled"]
        if not config.has_teacher(vars(self.args)):
            return
        if self.resume:
            self._look_ahead()
            self.args.kd_trust_teacher = overrides.get("kd_trust_teacher", self.args.kd_trust_teacher)
        config.check_combination(vars(self.args))
        if self.args.kd_feat and names_object(self.args.kd_feat_loss):
            config.own_loss(self.args.kd_feat_loss)  # before anything is written
        distributed.join(self.args)
        source = config.listed(self.args.teacher)
        source = [_file_of(each) for each in source] if isinstance(source, list) else _file_of(source)
        with distributed.machine_by_machine():
            self.teacher = self._opened(source)
        if self.resume and not distributed.launched():  # who launched them has seen to it
            self._check_teachers()
        if all(isinstance(each, (str, Path)) for each in _listed(source)):
            places = [str(Path(p).resolve() if Path(p).exists() else p) for p in _listed(source)]  # resume anywhere
            self.args.teacher = places if isinstance(source, list) else places[0]
        else:
            self._in_memory, self.args.teacher = source, self.teacher.source
        if self.args.kd_unlabeled:
            self._find_unlabeled()
        if isinstance(self.args.kd_classes, str) and self.args.kd_classes.lower() != "auto":
            self.args.kd_classes = dict(load_map(self.args.kd_classes))  # the run must not need the file again
        if self.resume:
            file = Path(getattr(self.args, "save_dir", None) or Path(self.args.model).parents[1]) / "args.yaml"
            self._args_before = (file, file.read_bytes()) if file.is_file() else None
        else:
            self._fresh_dirs = missing_dirs(get_save_dir(self.args))

    def _opened(self, source: Any) -> Teacher:
        """Open the teacher; where a resumed run does not find it, say how it goes on."""
        # A teacher that was kept beside the checkpoint is as trusted as that, which Ultralytics has unpickled
        kept = self.resume and all(
            isinstance(each, (str, Path)) and self._beside(Path(each)) for each in _listed(source)
        )
        try:
            trust = self.args.kd_trust_teacher or kept
            return open_teacher(source, self.args.task, self.args.kd_teacher_weights, trust)
        except KDError as e:
            if not self.resume or self._teacher_given or str(source).endswith(IN_MEMORY):  # it says what to do
                raise
            raise KDError(f"{first_line(e)[:-1]}; if it is elsewhere now, resume with teacher=ITS PATH.") from e

    def _beside(self, file: Path) -> bool:
        """Return whether a file is a teacher that a run kept beside the checkpoint that is resumed."""
        return bool(KEPT.fullmatch(file.name)) and file.resolve().parent == Path(self.args.model).resolve().parent

    def _of_run(self, file: Any) -> bool:
        """Return whether a file is of this run's folder, or of those that are made for it."""
        folders = [*self._fresh_dirs, *([Path(self.save_dir)] if hasattr(self, "save_dir") else [])]
        return self.teacher is not None and bool(file) and any(Path(file).is_relative_to(f) for f in folders)

    def _find_unlabeled(self) -> None:
        """Find the images without labels, and note where they are so that `resume` finds them from anywhere."""
        if self.args.rect:
            raise KDError("'kd_unlabeled' and 'rect' exclude each other: batches then have shapes of their own.")
        source = config.listed(self.args.kd_unlabeled)
        self._unlabeled_files = find_unlabeled(source)
        places = [str(Path(p).resolve()) for p in _listed(source)]
        self.args.kd_unlabeled = places if isinstance(source, (list, tuple)) else places[0]

    def get_dataset(self) -> dict[str, Any]:
        """Load the data set's description and match its classes with the teacher's."""
        data = super().get_dataset()
        if self.teacher is not None:
            names = dict(enumerate(data["names"])) if isinstance(data["names"], list) else data["names"]
            self.teacher.match(names, self.args.kd_classes, self._kept(data))
            if self.args.kd_cache:
                self._open_store(data, names)
        return data

    def _kept(self, data: dict[str, Any]) -> list[int] | None:
        """Return the classes that `classes` keeps; Ultralytics adds the background of polygons to them."""
        if self.args.classes is None:
            return None
        background = data.get("bg_class_idx")
        return [*_listed(self.args.classes), *([background] if background else [])]

    def _open_store(self, data: dict[str, Any], names: dict[int, str]) -> None:
        """Open the cache, made first if it is `True`, and match its classes."""
        assert self.teacher is not None
        if self.args.kd_cache is True:
            sources = _listed(self.args.teacher if self._in_memory is None else self._in_memory)
            with torch_distributed_zero_first(LOCAL_RANK):
                self.args.kd_cache = str(build_cache(self.args, sources, check_options(CACHE_ONLY)).folder)
        self.store = Store(self.args.kd_cache)
        manifest = self.store.manifest()
        stored = {t["sha256"] for t in manifest.teachers}
        if not all(m.fingerprint() in stored for m in self.teacher.members):
            theirs = ", ".join(t["name"] for t in manifest.teachers)
            raise KDError(
                f"kd_cache={self.args.kd_cache} holds answers of other weights ({theirs}), not of "
                f"teacher={self.teacher.source}: name the teacher that it was made with."
            )
        self.args.kd_cache = str(Path(self.args.kd_cache).resolve())
        self.stored_manifest = manifest
        self.stored_classes = match_classes(names, manifest.names, self.args.kd_classes, self._kept(data))

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build a data set; that of training brings stored answers along."""
        dataset = super().build_dataset(img_path, mode, batch)
        if mode == "train" and self.store is not None and self.stored_classes is not None:
            AnsweredDataset.adopt(
                dataset, StoredAnswers(self.store, dataset.im_files, self.stored_classes, self.args.imgsz)
            )
        return dataset

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        """Build the student, and note on it whether it has trained weights: another process may be the one to train."""
        model = super().get_model(cfg, weights, verbose)
        if self.teacher is not None:
            model.kd_untrained = weights is None or never_trained(weights)
        return model

    def setup_model(self) -> Any:
        """Build the student, then match it with the teacher, before the optimizer is made."""
        ckpt = super().setup_model()
        if self.teacher is not None:
            self._match()
        return ckpt

    def _match(self) -> None:
        """Match teacher and student, and build terms and adapters."""
        assert self.teacher is not None
        self.teacher.follow(self.model, self._average)
        channels = outputs.first_conv(self.model).in_channels
        if self.teacher.channels != channels:
            raise KDError(
                f"the teacher reads images of {self.teacher.channels} channel(s) and the student of {channels}: "
                "both must read the same images."
            )
        self._untrained = self.model.__dict__.pop("kd_untrained", False)
        if self.args.kd_init and self._untrained:
            self._begin_with_weights()
        if self._quantizes and self._untrained and not self.initialized:
            raise KDError(RANDOM_RANGES)
        self.distiller = build_distiller(self.args, self.model, self.teacher, self.store is not None)
        self.distiller.adapters.to(self.device)

    @property
    def _quantizes(self) -> bool:
        """Whether training is quantization-aware; not every release of Ultralytics knows it."""
        return getattr(self.args, "quantize", None) == 8

    def _average(self) -> nn.Module:
        """Return the student's moving average, or the student as long as there is none."""
        ema = getattr(self, "ema", None)
        student = self.model.student if isinstance(self.model, Rehearsal) else self.model
        return ema.ema if ema else student

    def _begin_with_weights(self) -> None:
        """Let the student begin with weights of the first teacher that is a bigger model of the same kind."""
        assert self.teacher is not None
        for member in self.teacher.members:
            if not isinstance(member.original, nn.Module) or member.classes is None:
                continue
            taught = {ours: theirs[0] for ours, theirs in member.classes.sources.items()}
            self.initialized = select_weights(self.model, member.original, None if member.classes.identity else taught)
            if self.initialized:
                return

    def _prepare_teacher(self) -> None:
        """Make the teacher that runs, once it is known in which precision the student trains; repeatable."""
        if self.teacher is None or self.distiller is None or self.store or self.teacher.ready:
            return
        half = torch.bfloat16 if self.args.amp == "bf16" else torch.float16
        auto = half if self.amp and self.device.type == "cuda" else torch.float32
        asked = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.get(self.args.kd_precision)
        self.teacher.prepare(
            self.device, self.distiller.reads, asked or auto, fall_back=asked is None, compile=self.args.kd_compile
        )

    def auto_batch(self, *args: Any, **kwargs: Any) -> int:
        """Choose a batch size that has room for the teacher, the terms and the adapters too."""
        self._prepare_teacher()
        if self.teacher is None or self.distiller is None or self.store:
            return super().auto_batch(*args, **kwargs)
        student: Any = self.model
        ratio = self.args.kd_unlabeled_ratio if self._unlabeled_files else 0.0
        self.model = Rehearsal(student, self.teacher, self.distiller, ratio)
        try:
            return super().auto_batch(*args, **kwargs)
        finally:
            self.model = student
            self.distiller.adapters.zero_grad()

    def _build_train_pipeline(self) -> None:
        """Build data loaders, optimizer and scheduler, and the stream of images without labels."""
        super()._build_train_pipeline()
        if not self._unlabeled_files:
            return
        if self.unlabeled is not None:  # memory ran out, and the batch was halved
            self.unlabeled.close()
            dataset: Any = self.unlabeled.dataset
        else:
            dataset = self._unlabeled_dataset()
        batch = max(self.batch_size // max(self.world_size, 1), 1)
        self.unlabeled = UnlabeledStream(
            dataset, self.args.kd_unlabeled_ratio, batch, self.args.workers, LOCAL_RANK, self.device
        )

    def _unlabeled_dataset(self) -> Any:
        """Return the images without labels, with the augmentation of the training."""
        files = distributed.from_first(lambda: readable(self._unlabeled_files))
        validation = self.test_loader.dataset
        listed = [s[0] for s in validation.samples] if self.args.task == "classify" else validation.im_files
        validated = {str(Path(f).resolve()) for f in listed}
        seen = sum(str(Path(f).resolve()) in validated for f in files)
        if seen and RANK in {-1, 0}:
            LOGGER.warning(f"{seen} of kd_unlabeled's images are val images: the scores will flatter the student.")
        if self.args.task == "classify":
            return UnlabeledSamples(files, self.train_loader.dataset)
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        with torch_distributed_zero_first(LOCAL_RANK):  # cache=disk writes files
            return UnlabeledImages(files, self.args, self.data, stride)

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Build a data loader; of several machines the first one begins, as they may share the file of its labels."""
        first = self.teacher is not None and distributed.several_machines()
        with torch_distributed_zero_first(RANK if first else -1):
            return super().get_dataloader(*args, **kwargs)

    def _close_dataloader_mosaic(self) -> None:
        """Go on without mosaics."""
        super()._close_dataloader_mosaic()
        if self.unlabeled is not None:
            self.unlabeled.close_mosaic(self.args)

    def _setup_train(self) -> None:
        """Set up training, then put the distillation loss in place of the base loss and say what will happen."""
        with self._nothing_left_on_error():
            if self.teacher is not None:
                distributed.check_shared(self.save_dir)
            self._setup_student()
            if self.teacher is None or self.distiller is None:
                return
            if self.world_size > 1:  # one of the user's own may begin with other numbers in every process
                distributed.broadcast((*self.distiller.adapters.parameters(), *self.distiller.adapters.buffers()))
            self._prepare_teacher()
            self._attach_loss()
        self._ears.enter_context(self.distiller.listening(unwrap_model(self.model)))
        if RANK in {-1, 0}:
            student = unwrap_model(self.model)
            beginning = tables.beginning(student, self.args.kd_init, self._untrained, self.initialized)
            extra = len(self.unlabeled.dataset) if self.unlabeled else 0
            LOGGER.info(tables.start_table(self.args, student, self.teacher, self.distiller, beginning, extra))
            own = all(member.own_precision for member in self.teacher.members)
            for sentence in config.idle_arguments(vars(self.args), own):
                LOGGER.warning(sentence)
        if self.store:
            self.teacher.release()

    def _setup_student(self) -> None:
        """Set up training as Ultralytics does; what quantization-aware training lacks is a sentence."""
        try:
            super()._setup_train()
        except ImportError as e:
            if self.teacher is None or not self._quantizes or not (e.name or "").startswith("modelopt"):
                raise
            raise KDError(NO_MODELOPT) from e

    def _attach_loss(self) -> None:
        """Wrap the base losses of the student and of its moving average."""
        assert self.distiller is not None
        student = unwrap_model(self.model)
        for model in (student, self.ema.ema if self.ema else None):
            if model is not None and not isinstance(getattr(model, "criterion", None), DistillationLoss):
                base = getattr(model, "criterion", None) or model.init_criterion()
                head = outputs.find_head(model)
                model.criterion = DistillationLoss(base, self.distiller, head, trains=model is student)

    def _keep_teacher_in_memory(self) -> None:
        """Save teachers that came as objects beside the run, so that `resume` finds them."""
        if self.ddp:
            self.args.teacher = self._in_memory  # travels to the workers, which save it
            return
        assert self.teacher is not None
        sources, members = _listed(self._in_memory), self.teacher.members
        kept = [
            str(source) if isinstance(source, (str, Path)) else self._keep(member, i if len(sources) > 1 else None)
            for i, (source, member) in enumerate(zip(sources, members))
        ]
        self.args.teacher = kept if isinstance(self._in_memory, (list, tuple)) else kept[0]
        if RANK in {-1, 0}:
            YAML.save(self.save_dir / "args.yaml", vars(copy(self.args)))

    def _keep(self, teacher: Teacher, number: int | None) -> str:
        """Save one teacher beside the run, and return where; one that is no model is only named."""
        if not teacher.portable:
            return teacher.source
        path: Path = self.wdir / ("teacher.pt" if number is None else f"teacher-{number}.pt")
        if RANK in {-1, 0}:
            try:
                model: Any = deepcopy(teacher.original)
                model.criterion = None
                with part_of(path) as part:
                    torch_save({"model": model, "train_args": {"task": teacher.task}}, part)
            except (pickle.PicklingError, AttributeError, TypeError) as e:
                LOGGER.warning(f"teacher={teacher.source} cannot be saved, and to resume must be given again: {e}")
                return teacher.source
        return str(path)

    @contextmanager
    def _nothing_left_on_error(self) -> Iterator[None]:
        """Remove what a run with a teacher has written, if it fails before it begins."""
        try:
            yield
        except Exception as e:  # it goes on to the caller, and no folder of a run that never began is left
            again = RANK == -1 and any(text in str(e).lower() for text in NO_MEMORY)
            if not again:  # with a smaller batch, by Ultralytics
                distributed.failed_unbegun(self._leave_nothing)
            raise

    @contextmanager
    def _trackers_let_go_on_error(self) -> Iterator[None]:
        """Let trackers that follow a run with a teacher close it, if it fails before `train` would see to that."""
        try:
            yield
        except Exception:  # it goes on to the caller; without this Platform keeps the console
            if self.teacher is not None and hasattr(self, "callbacks"):
                self.run_callbacks("teardown")
            raise

    def _leave_nothing(self) -> None:
        """Remove the output folder of a run that never began, and the folders above it that it made."""
        if self._args_before is not None:  # of a run that could not be resumed
            self._args_before[0].write_bytes(self._args_before[1])
        if not self._fresh_dirs or getattr(self, "save_dir", None) != self._fresh_dirs[0]:
            return
        shutil.rmtree(self._fresh_dirs[0], ignore_errors=True)
        for folder in self._fresh_dirs[1:]:
            try:
                folder.rmdir()
            except OSError:  # another run has moved in
                return

    # Steps ------------------------------------------------------------------------------------------------------------
    def optimizer_step(self) -> None:
        """Average the adapters' gradients over ranks, then step."""
        parameters = list(self.distiller.adapters.parameters()) if self.distiller else []
        if parameters and self.world_size > 1:
            distributed.average_gradients(parameters)
        super().optimizer_step()

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add images without labels, prepare the batch and let the teacher answer it."""
        if self.unlabeled is not None:
            batch[LABELED] = len(batch["img"])
            batch["img"] = torch.cat((batch["img"], self.unlabeled.take(len(batch["img"]))))
        return self._ask_teacher(super().preprocess_batch(batch))

    def _ask_teacher(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Put the teacher's answer in a batch of prepared images."""
        if self.stored_classes is not None:
            if augmentation.BOXES in batch:  # val images have none
                batch["teacher"] = self._stored_answer(batch)
        elif self.teacher is not None and self.teacher.ready:  # quantization calibrates before training
            batch["teacher"] = self._answer(batch["img"])
            sound = self.teacher.sound  # computed when it is asked for
            if sound is not None:
                batch[SOUND] = sound
        return batch

    def _answer(self, images: torch.Tensor) -> Any:
        """Return the teacher's answer; when it makes no sense at the very first, the run has not begun."""
        assert self.teacher is not None
        if self._answered:
            return self.teacher(images)
        with self._nothing_left_on_error():
            answer = self.teacher(images)
        self._answered = True
        return answer

    def _stored_answer(self, batch: dict[str, Any]) -> SetAnswer:
        """Return the stored instances of a batch, as the teacher would see them at their size there."""
        assert self.stored_manifest is not None and self.stored_classes is not None
        boxes, rows, images = (batch[name] for name in (augmentation.BOXES, augmentation.ROWS, augmentation.IMAGES))
        manifest, shape = self.stored_manifest, tuple(batch["img"].shape[2:])
        probs, seen = scales.unpack(boxes, rows, manifest.scales, shape, manifest.conf)
        return SetAnswer(boxes[seen], probs[seen], images[seen], self.stored_classes.taught(boxes.device))

    def _model_train(self) -> None:
        """Begin an epoch: train mode, and the schedule's place in the run."""
        super()._model_train()
        if self.distiller is not None:
            self.distiller.progress = min(self.epoch / max(self.epochs - 1, 1), 1.0)

    def get_validator(self) -> Any:
        """Return the task's validator, which asks the teacher too while training, for the val losses."""
        validator = super().get_validator()
        if self.teacher is not None and not self.teacher.follows_student:  # the average is what is validated
            stock = validator.preprocess

            @functools.wraps(stock)
            def preprocess(batch: dict[str, Any]) -> dict[str, Any]:
                batch = stock(batch)
                if not validator.training:
                    return batch
                # Ultralytics validates under autocast too, but prepares the batch before it
                dtype = torch.bfloat16 if self.args.amp == "bf16" else self.amp
                with autocast(dtype, device=self.device.type):
                    return self._ask_teacher(batch)

            validator.preprocess = preprocess
        return validator

    def validate(self) -> Any:
        """Validate the moving average, and listen to it as to the student."""
        if self.distiller is None:
            return super().validate()
        if self.world_size > 1:  # statistics of its norms are each process's own; saved are the first one's
            distributed.broadcast(self.distiller.adapters.buffers())
        self.distiller.adapters.eval()  # a loss of the user's may have norms or dropout
        try:
            with self.distiller.listening(unwrap_model(self.ema.ema)):
                return super().validate()
        finally:
            self.distiller.adapters.train()

    def plot_training_samples(self, batch: dict[str, Any], ni: int) -> None:
        """Plot training images with their labels; those without are left out."""
        count = batch.get(LABELED)
        super().plot_training_samples(batch if count is None else {**batch, "img": batch["img"][:count]}, ni)

    def train(self) -> Any:
        """Train, and then let the teacher go: what stays with the model must not hold its weights.

        What a process that Ultralytics launched failed with is said last.
        """
        if self.teacher is None:
            return super().train()
        try:
            with distributed.launching(self._leave_nothing) if self.ddp else distributed.heard():
                return super().train()
        finally:
            self._ears.close()
            self._in_memory = None
            self.teacher.release()

    # End --------------------------------------------------------------------------------------------------------------
    def final_eval(self) -> None:
        """Validate the best student, then the teacher on the same images, and show them side by side."""
        self._ears.close()
        if self.unlabeled is not None:
            self.unlabeled.close()
        if self.teacher is None:
            super().final_eval()
            return
        self._unscored = True
        with self._stripping_whole():
            self._evaluate_both()

    def _evaluate_both(self) -> None:
        """Validate student and teacher, and say what came out."""
        assert self.teacher is not None
        super().final_eval()
        if self._unscored:  # there was no best student to validate
            self._score_teacher()
        if RANK in {-1, 0}:
            LOGGER.info(tables.end_table(self.metrics, self.teacher_metrics, unwrap_model(self.model), self.teacher))
            if self.args.plots:
                self._write_report()

    def _write_report(self) -> None:
        """Write the report of the finished run into its folder; a run of several processes is told how to make one."""
        assert self.teacher is not None and self.validator is not None
        student = self.best if self.best.exists() else self.last
        if self.world_size > 1:  # validation is then a matter of all of them
            LOGGER.info(f"For a report: {command_of(self.args, str(student))}")
            return
        try:
            quantize = getattr(self.validator.args, "quantize", None)
            args = {**vars(self.args), "quantize": quantize}
            subject = Subject(dict(self.data["names"]), type(self.validator), self.device, "")
            report_run(self.teacher, student, subject, args, self.save_dir / "report")
        except Exception as e:  # the student is finished and must not be lost for pictures
            LOGGER.warning(f"the report could not be written: {type(e).__name__}: {e}")

    def run_callbacks(self, event: str) -> None:
        """Run an event's callbacks: trackers are told the teacher's score with the final one of the student."""
        if self._unscored and event == "on_fit_epoch_end":
            self._score_teacher()
        super().run_callbacks(event)

    def _score_teacher(self) -> None:
        """Validate the teacher, and put its score beside the student's, as `teacher/...`."""
        self._unscored = False
        try:
            if self.store:
                source = self.args.teacher if self._in_memory is None else self._in_memory
                self.teacher = self._opened(source)
                self.teacher.match(self.data["names"], self.args.kd_classes, self._kept(self.data))
            self.teacher_metrics = self._validate_teacher() or {}
        except Exception as e:  # the student is finished and must not be lost for a figure of comparison
            LOGGER.warning(f"the teacher could not be validated: {type(e).__name__}: {e}")
        scores = {f"teacher/{k[8:]}": v for k, v in self.teacher_metrics.items() if k.startswith("metrics/")}
        self.metrics = {**self.metrics, **scores}

    def _validate_teacher(self) -> dict[str, float] | None:
        """Return the teacher's metrics on the val set, in the student's classes and precision; None if it has none.

        The validator is one of its own: files, plots and callbacks of the student's validation stay the student's.
        """
        assert self.teacher is not None and self.validator is not None
        model = self.teacher.validator_model(len(self.data["names"]), self.data["names"])
        if model is None:
            return None
        LOGGER.info(f"\nValidating teacher {self.teacher.source}...")
        validator = super().get_validator()
        validator.callbacks = callbacks.get_default_callbacks()
        validator.args.plots = validator.args.save_txt = validator.args.compile = False
        validator.args.quantize = getattr(self.validator.args, "quantize", None)
        with tempfile.TemporaryDirectory() as folder:
            validator.save_dir = Path(folder)
            return validator(model=model)

    def plot_metrics(self) -> None:
        """Plot results.csv; Ultralytics plots columns named "loss", so that those of terms that are on are renamed."""
        if self.distiller is None:
            super().plot_metrics()
            return
        header, *rows = self.csv.read_text(encoding="utf-8").splitlines()
        names = [f"{n} (loss)" if n.rpartition("/")[2] in self.distiller.terms else n for n in header.split(",")]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "results.csv"
            file.write_text("\n".join((",".join(names), *rows)) + "\n", encoding="utf-8")
            plot_results(file=file)
            plot = Path(folder) / "results.png"
            if plot.exists():
                target = shutil.copy2(plot, self.save_dir / "results.png")
                self.on_plot(target)


def _file_of(source: Any) -> Any:
    """Return a teacher as it was given, or the file of a `YOLO` that holds an exported one."""
    return source.model if isinstance(source, Model) and isinstance(source.model, (str, Path)) else source


def _listed(value: Any) -> list[Any]:
    """Return a value that may be a list as one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def missing_dirs(path: Path) -> list[Path]:
    """Return the folder and those above it that do not exist yet, innermost first; none if the folder exists."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]
