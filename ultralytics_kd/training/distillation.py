"""All that a run with a teacher needs in addition to a plain run.

The trainer's mixin holds one `Distillation`, or None, and calls it at the touch points of Ultralytics' training loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from ultralytics.utils import LOGGER, RANK, colorstr
from ultralytics.utils.torch_utils import autocast, get_num_params

from .. import outputs
from ..config import idle_arguments
from ..config.arguments import TASK_WEIGHTS
from ..distillation.distillers import Distiller, GridDistiller, build_distiller
from ..distillation.ignored_background import check_levels
from ..distillation.keeping import ClassKeeper
from ..distillation.loss import LABELED, DistillationLoss
from ..distillation.pseudo_boxes import PseudoBoxes, build_pseudo_boxes
from ..errors import KDError
from ..outputs.output_channels import keypoint_names
from ..outputs.weight_origin import never_trained
from ..teachers import Teacher, match_channels
from ..teachers.class_map import load_map, match_classes
from ..teachers.sizes import no_lead_warnings
from ..teachers.validation import check_keypoints
from .answer_sources import CachedTeacher, LiveTeacher
from .autobatch import StudentWithTeacher
from .beginning import Batches, Beginning, begin
from .data_classes import class_names, class_rules
from .first_step import HOOKS, FirstStep
from .images.large_images import LargeImageTeacher
from .images.unlabeled_alone import DetectionsOnly, needs_sets, unlabeled_part
from .keeping import Keeping, kept_feature_weight
from .run.teacher_source import TeacherSource
from .scores import tables
from .stored_answers import open_store

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FEATURES = 1.0  # weight of `kd_feat` with a backbone as teacher, if none is given
RANDOM_RANGES = (
    "quantize=8 fixes the ranges of activations before training, and random weights have no useful ranges: start with "
    "trained weights (model=student.pt), or with a teacher whose weights the student can start from (kd_init)."
)


def weigh_features(args: Any, teacher: Teacher) -> None:
    """Set the weights of the terms if a teacher is a backbone, in place.

    A backbone has features and no predictions. Features teach through `kd_feat`, which is off by default. If no teacher
    predicts, the other terms have nothing to compare.

    Args:
        args (Namespace): Arguments of the training.
        teacher (Teacher): The opened teacher.

    Raises:
        KDError: If the weight of the features is 0.
    """
    if not teacher.backbones:
        return
    if args.kd_feat == 0:
        raise KDError(
            "'kd_feat=0' leaves the backbones among the teachers (timm:NAME) nothing to teach: drop it, or drop them."
        )
    args.kd_feat = FEATURES if args.kd_feat is None else args.kd_feat
    if teacher.predictor in teacher.backbones:
        for name in TASK_WEIGHTS[args.task]:
            if name != "kd_feat":
                setattr(args, name, 0.0)


class Distillation:
    """A teacher, the terms between it and the student, and all else that belongs to a distillation.

    Attributes:
        args (Namespace): Arguments of the training.
        source (TeacherSource): Where the teacher comes from.
        teacher (Teacher): The frozen teacher. With stored answers it is released when training starts.
        answers (LiveTeacher | CachedTeacher): Adds the answer to every batch.
        distiller (Distiller | None): The terms and their adapters, as soon as there is a student.
        unlabeled (UnlabeledPart | None): Images without labels that join the batches.
        pseudo (PseudoBoxes | None): The teacher's boxes as labels of these images, as soon as there is a student.
        keeping (Keeping | None): Classes that the student keeps (`kd_keep`), as soon as the data are known.
        keeper (ClassKeeper | None): Corrects base loss and answers for these classes, as soon as there are terms.
        beginning (Beginning): Where the student's weights came from, as soon as there is a student.
        teacher_metrics (dict[str, float]): The teacher's scores on the val set, after training.
        kept_metrics (dict[str, dict[str, float]]): Scores on the val set of `kd_keep_data` after training, of "teacher"
            and "student".
        first_step (FirstStep): Checks of the first step, as soon as there are terms.
        trains (bool): Whether the student is trained now: its loss and its optimizer must stay in place.
        preprocessor (type | None): User class whose `preprocess_batch` the batches pass through, if there is one.
    """

    def __init__(self, args: Any, source: TeacherSource, teacher: Teacher):
        """Take an opened teacher.

        Args:
            args (Namespace): Arguments of the training; paths in them become absolute.
            source (TeacherSource): Where the teacher came from.
            teacher (Teacher): The teacher.

        Raises:
            KDError: If `kd_unlabeled` or `kd_classes` cannot be read.
        """
        self.args, self.source, self.teacher = args, source, teacher
        self.answers: LiveTeacher | CachedTeacher = LiveTeacher(teacher)
        if args.kd_teacher_imgsz is not None and not args.kd_cache:
            self.answers = LargeImageTeacher(teacher, args.kd_teacher_imgsz)
        self.distiller: Distiller | None = None
        self.unlabeled = unlabeled_part(args)
        self.pseudo: PseudoBoxes | None = None
        self.keeping: Keeping | None = None
        self.keeper: ClassKeeper | None = None
        self.beginning = Beginning(0, 0, False)
        self._keypoints: list[str] | None = None  # names of the data's keypoints
        self.teacher_metrics: dict[str, float] = {}
        self.kept_metrics: dict[str, dict[str, float]] = {}
        self.first_step: FirstStep
        self.preprocessor: type | None = None
        self.trains = False
        self._autocast: Callable[[], Any] = nullcontext
        self._capture_hooks = ExitStack()  # they capture the student's feature maps if its head does not return them
        args.teacher = source.argument(teacher)
        weigh_features(args, teacher)
        if isinstance(args.kd_classes, str) and args.kd_classes.lower() != "auto":
            args.kd_classes = dict(load_map(args.kd_classes))  # the run must not need the file again

    # Setup ------------------------------------------------------------------------------------------------------------
    @property
    def cached(self) -> CachedTeacher | None:
        """The stored answers, None if the teacher runs."""
        return self.answers if isinstance(self.answers, CachedTeacher) else None

    @property
    def large_images(self) -> LargeImageTeacher | None:
        """The teacher that sees larger images than the student, None if it sees the student's images."""
        return self.answers if isinstance(self.answers, LargeImageTeacher) else None

    @property
    def alone(self) -> bool:
        """Whether no training image has labels."""
        return self.unlabeled is not None and self.unlabeled.alone

    @property
    def _as_sets(self) -> bool:
        """Whether the teacher answers with detections even if it has anchor points."""
        return isinstance(self.answers, (LargeImageTeacher, DetectionsOnly))

    @property
    def teacher_imgsz(self) -> int:
        """Side of the images that the teacher answers, in pixels."""
        return self.answers.imgsz(self.args.imgsz)

    def match_data(self, data: dict[str, Any]) -> None:
        """Match the teacher's classes with the data set's.

        Args:
            data (dict): Ultralytics' description of the data set. With `kd_keep` its classes become the student's.
        """
        if self.args.kd_keep and self.keeping is None:
            self.keeping = Keeping(self.args, data)
        self.teacher.match(class_names(self.args, data), **class_rules(self.args, data))
        if self.keeping is not None:
            self.keeping.check_teacher(self.teacher)
        self._keypoints = keypoint_names(data.get("kpt_names"))
        if self.args.task == "pose" and self.args.kd_kpt:
            for member in self.teacher.members:
                check_keypoints(member, self._keypoints)

    def open_cache(self, data: dict[str, Any]) -> None:
        """Open the cache if answers are stored, the teacher's classes matched.

        Args:
            data (dict): Ultralytics' description of the data set.
        """
        if self.args.kd_cache:
            made, names = self.args.kd_cache is True, class_names(self.args, data)
            store = open_store(self.args, self.source, self.teacher, data["channels"], names)
            classes = match_classes(names, store.manifest().names, **class_rules(self.args, data))
            self.answers = CachedTeacher(store, classes, self.teacher, made)

    def match_student(
        self, student: Any, device: torch.device, average: Callable[[], nn.Module], batches: Batches
    ) -> None:
        """Match the student with the teacher, and build terms and adapters, before the optimizer is made.

        Args:
            student (nn.Module): The student.
            device (torch.device): Where it trains.
            average (Callable): Returns its moving average, or the student as long as there is none.
            batches (Callable): Returns prepared training batches on that device, for `kd_init`.

        Raises:
            KDError: If the two cannot be matched.
        """
        self.teacher.follow(student, average)
        if self.large_images is not None:
            self.large_images.fit(student)
        match_channels(self.teacher, outputs.first_conv(student).in_channels)
        if self.teacher.predictor in self.teacher.backbones:
            self._check_without_predictions()
        unlabelled_classes = self.alone or self.keeping is not None
        runs_on_same = self.large_images is None and self.cached is None
        if unlabelled_classes and runs_on_same and needs_sets(student, self.teacher):
            self.answers = DetectionsOnly(self.teacher)
        self.beginning = self._begin(student, batches)
        if self.quantizes and not self.beginning.trained:
            raise KDError(RANDOM_RANGES)
        stored = self.cached is not None
        if self.args.kd_feat is None and self.keeping is not None and runs_on_same:
            self.args.kd_feat = kept_feature_weight(student, self.teacher, self.args)
        self.distiller = build_distiller(self.args, student, self.teacher, stored, self._as_sets)
        self.first_step = FirstStep(self.distiller)  # `started` reads it if an error is raised below
        self.distiller.adapters.to(device)
        self.pseudo = build_pseudo_boxes(self.args, self.distiller, self.teacher)
        if self.keeping is not None and isinstance(self.distiller, GridDistiller):
            check_levels(f"'kd_keep={self.args.kd_keep}'", self.distiller, self.teacher)
            self.keeper = ClassKeeper(self.keeping.kept, self.distiller.student_layout, self.distiller.strides)

    def _begin(self, student: Any, batches: Batches) -> Beginning:
        """Give the student the weights that it begins with, and return where they came from."""
        if self.args.resume:
            return Beginning(get_num_params(student), 0, True)
        if self.keeping is not None:
            self.keeping.check_rows(student)
        how = self.args.kd_init if self.keeping is None else False
        # Frozen layers could not be trained after the change. Without labels no base losses can be compared
        if how == "auto" and (self.args.freeze or self.alone):
            how = "fit"
        return begin(student, self.teacher, how, self._keypoints, batches, self.args.data, self.quantizes)

    def _check_without_predictions(self) -> None:
        """Raise if the run needs predictions; no teacher has any."""
        if self.args.kd_unlabeled_boxes is not None:
            raise KDError(
                f"'kd_unlabeled_boxes={self.args.kd_unlabeled_boxes}' needs boxes, and teacher={self.teacher.source} "
                "has features alone: add a teacher that predicts, or drop it."
            )
        if self.alone:
            raise KDError(
                f"teacher={self.teacher.source} teaches by features alone, and data={self.args.data} has no training "
                "images with labels: nothing would teach the head. Add a teacher that predicts."
            )

    @property
    def quantizes(self) -> bool:
        """Whether training is quantization-aware, which not every release of Ultralytics supports."""
        return getattr(self.args, "quantize", None) == 8

    def prepare_teacher(self, device: torch.device, amp: bool) -> None:
        """Make the teacher ready to run, once the student's precision is known; calling it again changes nothing.

        Args:
            device (torch.device): Where it runs.
            amp (bool): Whether the student trains in mixed precision.
        """
        # Ultralytics validates under autocast too, and in bfloat16 only if the model is trained in it
        dtype = torch.bfloat16 if self.args.amp == "bf16" else amp
        self._autocast = partial(autocast, dtype, device=device.type)
        if self.cached or self.teacher.ready or self.distiller is None:
            return
        half = torch.bfloat16 if self.args.amp == "bf16" else torch.float16
        auto = half if amp and device.type == "cuda" else torch.float32
        given = PRECISIONS.get(self.args.kd_precision)
        self.teacher.prepare(
            device, self.distiller.reads, given or auto, fall_back=given is None, compile=self.args.kd_compile
        )

    def with_teacher(self, student: nn.Module) -> nn.Module:
        """Return a model whose step takes the memory of a training step, for AutoBatch to profile."""
        # The part is falsy here: its images are counted once the stream is open, which comes after AutoBatch
        ratio = self.args.kd_unlabeled_ratio if self.unlabeled is not None and not self.alone else 0.0
        if self.distiller is None or (self.cached and not ratio):
            return student
        teacher, side = None if self.cached else self.teacher, self.teacher_imgsz if self._as_sets else None
        return StudentWithTeacher(student, teacher, self.distiller, ratio, side)

    def attach_loss(self, student: nn.Module, average: nn.Module | None) -> None:
        """Wrap the base losses of the student and of its moving average, unless they are wrapped.

        A loss that somebody sets as `criterion` becomes the base loss. Ultralytics drops a model's `criterion` when it
        saves the model, so checkpoints hold neither loss nor teacher.

        Args:
            student (nn.Module): The student.
            average (nn.Module | None): Its moving average.
        """
        assert self.distiller is not None
        models: tuple[Any, ...] = (student,) if average is None else (student, average)
        for model in models:
            if isinstance(getattr(model, "criterion", None), DistillationLoss):
                continue
            base = getattr(model, "criterion", None) or model.init_criterion()
            trains = model is student
            answer = self.answer if self.unlabeled is not None else self.answers.add_answer
            ask = answer if trains else self.add_val_answer
            pseudo = self.pseudo if trains else None
            head, terms = outputs.find_head(model), self.distiller
            model.criterion = DistillationLoss(base, terms, head, trains, ask, pseudo, self.keeper)
            if trains and not self.first_step.over:
                model.criterion.inspect = self.first_step.inspect

    def start(self, student: Any, preprocessor: type | None = None) -> None:
        """Log the start table and warnings, capture the student's feature maps, and prepare checks of the first step.

        Args:
            student (nn.Module): The student, its loss attached.
            preprocessor (type, optional): User class whose `preprocess_batch` the batches pass through.
        """
        assert self.distiller is not None
        self.preprocessor = preprocessor
        self.answers.passed_through = f"{preprocessor.__name__}.preprocess_batch" if preprocessor else None
        self.trains = True
        self._capture_hooks.enter_context(self.distiller.capturing_features(student))
        if RANK in {-1, 0}:
            weights = tables.initial_weights(student, self.args.kd_init, self.beginning, bool(self.args.resume))
            extra = len(self.unlabeled) if self.unlabeled else 0
            kept = self.keeping.description if self.keeping else ""
            given = self.teacher_imgsz, kept, self.alone
            LOGGER.info(tables.start_table(self.args, student, self.teacher, self.distiller, weights, extra, *given))
            for member in self.teacher.members:
                if isinstance(member.original, nn.Module) and never_trained(member.original):
                    LOGGER.warning(f"teacher={member.source} was never trained: its weights are random.")
            own_precision = all(member.own_precision for member in self.teacher.members)
            for idle in idle_arguments(vars(self.args), own_precision):
                LOGGER.warning(idle.sentence)
            for sentence in self.answers.size_warnings(self.args.imgsz):
                LOGGER.warning(sentence)
            if self.args.kd_teacher_imgsz is None:
                for sentence in no_lead_warnings(self.teacher.members, self.teacher_imgsz, get_num_params(student)):
                    LOGGER.warning(sentence)
        if self.cached:
            self.teacher.release()

    # Steps ------------------------------------------------------------------------------------------------------------
    def answer(self, batch: dict[str, Any]) -> None:
        """Add the teacher's answer to a training batch that has images without labels.

        Args:
            batch (dict): The batch that the student's loss is computed for.

        Raises:
            KDError: If user code has dropped these images.
        """
        if LABELED not in batch or len(batch["img"]) <= batch[LABELED]:
            where = self.preprocessor.__name__ if self.preprocessor else "the trainer"
            raise KDError(
                f"kd_unlabeled: {where}.preprocess_batch must call super().preprocess_batch(batch), which adds the "
                f"images without labels behind those with, and keep them and the entry '{LABELED}'; {HOOKS}."
            )
        self.answers.add_answer(batch)

    def log_epoch(self) -> None:
        """Log how many pseudo-boxes the last epoch had, and which terms `kd_weight` took back."""
        balance = None if self.distiller is None else self.distiller.balance
        for sentence in balance.news() if balance is not None and RANK in {-1, 0} else []:
            LOGGER.warning(sentence)
        sentence, alarming = ("", False) if self.pseudo is None else self.pseudo.news()
        if sentence and RANK in {-1, 0}:
            (LOGGER.warning if alarming else LOGGER.info)(f"{colorstr('kd:')} {sentence}")

    def add_val_answer(self, batch: dict[str, Any]) -> None:
        """Add the answer to a prepared val batch, for the val losses."""
        assert self.distiller is not None
        with self._autocast():
            self.answers.add_val_answer(batch, keep_features="kd_feat" in self.distiller.terms)

    @property
    def answers_val(self) -> bool:
        """Whether val images get answers, so that the terms have val losses."""
        return self.answers.answers_val and not self.teacher.follows_student  # it would be the model under validation

    @property
    def started(self) -> bool:
        """Whether the first batch was trained. A run that fails earlier leaves nothing on disk."""
        return self.distiller is not None and self.first_step.started

    def validating(self, average: nn.Module) -> Any:
        """Return a context for validating the moving average: adapters in eval mode, feature maps captured.

        Args:
            average (nn.Module): The student's moving average.
        """
        assert self.distiller is not None
        context = ExitStack()
        adapters = self.distiller.adapters.eval()  # a user's module may have norm or dropout layers
        context.callback(adapters.train)
        context.enter_context(self.distiller.capturing_features(average))
        return context

    # End --------------------------------------------------------------------------------------------------------------
    def open_again(self, data: dict[str, Any]) -> None:
        """Open the teacher again for its validation, if stored answers replaced it during training.

        Args:
            data (dict): Ultralytics' description of the data set.
        """
        if self.cached:
            self.teacher = self.source.open(self.args)
            match_channels(self.teacher, data["channels"])
            self.teacher.match(class_names(self.args, data), **class_rules(self.args, data))

    def stop(self) -> None:
        """Stop capturing feature maps and reading images without labels."""
        self.trains = False
        self._close_hooks()
        if self.unlabeled is not None:
            self.unlabeled.close()

    def release(self) -> None:
        """Release the teacher: the trainer stays with the model and must not hold the teacher's weights."""
        self._close_hooks()
        self.answers.release()
        if self.source.in_memory:
            self.source.value = None
        self.teacher.release()

    @contextmanager
    def uncaptured(self, student: nn.Module) -> Iterator[None]:
        """Remove the hooks while Ultralytics copies the student: a copy that has them could not be saved.

        Args:
            student (nn.Module): The student.
        """
        self._capture_hooks.close()
        try:
            yield
        finally:
            if self.trains and self.distiller is not None:
                self._capture_hooks.enter_context(self.distiller.capturing_features(student))

    def _close_hooks(self) -> None:
        """Remove the hooks and wrappers around the student's methods."""
        self._capture_hooks.close()
        if self.distiller is not None:
            self.first_step.stop_watching()
