"""Reports from the command line, from Python and at the end of a training."""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ultralytics.data.utils import check_det_dataset, convert_ndjson_to_yolo_if_needed
from ultralytics.models.yolo.model import YOLO
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER
from ultralytics.utils.torch_utils import select_device

from ..config.arguments import TASKS, as_list, learned_classes, parse_list
from ..config.label_free import lacks_training_images, with_train_entry
from ..errors import NOT_FOUND, KDError, ModelError, NoSharedClassError, first_line
from ..screen import command_line, row
from ..teachers import Teacher, match_channels, open_teacher
from ..teachers.sizes import train_args
from ..teachers.validation import check_scorable
from .compared_model import BASELINE, STUDENT, TEACHER, ComparedModel
from .datasets import channels_of, class_names_of
from .options import PLACES, QUIET, REPORT_ONLY, USED, Options, check_given, check_options
from .report_folder import EvaluationSetup, write_report

ONE_TRAINING = (
    "One training of each proves little: 'yolo-kd bench' with the arguments of the training repeats both with several "
    "seeds."
)
NEXT = "What did distillation bring? baseline=alone.pt, the same student trained alone, shows it."


def run_report(given: Mapping[str, Any]) -> dict[str, Any]:
    """Compare a student with its teacher and with the same student trained alone, as `yolo-kd report` does.

    Args:
        given (Mapping): "teacher", "student" and "data"; optionally "baseline" and the other options of `REPORT_ONLY`,
            and Ultralytics' arguments in `USED`.

    Returns:
        (dict): The content of `report.json`; "save_dir" is the folder, "page" the page in it.

    Raises:
        KDError: If an argument is missing, unknown or invalid, or a model cannot be compared.

    Examples:
        >>> from ultralytics_kd.report import run_report
        >>> report = run_report({"teacher": "yolo26x.pt", "student": "best.pt", "data": "coco8.yaml", "imgsz": 640})
        >>> report["page"], report["kept"], report["models"]["student"]["latency"]["ms"]
        ('runs/detect/report/report.html', 0.83, 21.4)
    """
    check_given(given)
    task, given = _task_of(given["student"]), _at_its_size(given)
    options = check_options(given, task)
    args = options.args
    args.data = str(convert_ndjson_to_yolo_if_needed(args.data))
    with tempfile.TemporaryDirectory() as folder:
        if lacks_training_images(args.data, task):
            args.data = with_train_entry(args.data, Path(folder))
        report = _compare(given, task, options)
    LOGGER.info("\n".join(row("next", ONE_TRAINING if BASELINE in report["models"] else NEXT)))
    return report


def _at_its_size(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments, with the size at which the teacher taught if the student's checkpoint names one."""
    if given.get("kd_teacher_imgsz") is not None:
        return given
    trained = train_args(YOLO(str(given["student"])).ckpt)
    size, teachers = trained.get("kd_teacher_imgsz"), as_list(parse_list(trained.get("teacher")))
    same = [Path(str(t)).resolve() for t in teachers] == [Path(str(t)).resolve() for t in as_list(given["teacher"])]
    if size is None or not same:
        return given
    LOGGER.info(f"The teacher is shown images of kd_teacher_imgsz={size}, as in the student's training.")
    return {**given, "kd_teacher_imgsz": size}


def _compare(given: Mapping[str, Any], task: str, options: Options) -> dict[str, Any]:
    """Return the content of the report of checked arguments."""
    args = options.args
    names = class_names_of(args.data, task, args.single_cls)
    models = []
    for role, source in options.models.items():
        model = _load(role, source, args)
        if role == BASELINE:
            warn_of_taught(source)
        _match_classes(role, model, args, class_names_of(args.data, task) if role == TEACHER else names)
        if task == "pose":
            _check_keypoints(role, model, args)
        models.append(ComparedModel(role, model, imgsz=options.teacher_imgsz if role == TEACHER else None))
    validator = YOLO(str(given["student"])).task_map[task]["validator"]
    device = select_device(args.device, verbose=False)
    setup = EvaluationSetup(names, validator, device, command_line("report", given), _initialized(given))
    return write_report(models, setup, options)


def warn_of_taught(baseline: Any) -> None:
    """Warn if the student that was trained alone, for comparison, had a teacher.

    Args:
        baseline (str | Path): Its checkpoint.
    """
    trained = train_args(YOLO(str(baseline)).ckpt)
    for name in ("teacher", "distill_model"):
        if trained.get(name):
            LOGGER.warning(
                f"baseline={baseline} was trained with {name}={trained[name]}: give the student that was trained alone."
            )


def _initialized(given: Mapping[str, Any]) -> int | None:
    """Return how many parameters of the student began with the teacher's weights; None if that is not known.

    The report of the student's run has the number. It counts only if the run had the same teacher.
    """
    file = Path(str(given["student"])).parent.parent / "report" / "report.json"
    try:
        left = json.loads(file.read_text(encoding="utf-8"))
        count, teacher = left["initialized"], Path(left["models"][TEACHER]["source"])
        if teacher.resolve() != Path(str(given["teacher"])).resolve():
            return None
    except (OSError, ValueError, KeyError, TypeError):  # there is none, an older release made it, or it is damaged
        return None
    return count if isinstance(count, int) else None


def report_training(
    teacher: Teacher | None,
    student: Path,
    setup: EvaluationSetup,
    training: Mapping[str, Any],
    folder: Path,
    teacher_imgsz: int | None = None,
) -> dict[str, Any]:
    """Write the report of a finished distillation.

    Args:
        teacher (Teacher | None): The teacher, its classes matched with those of the data; left out if it cannot be
            validated.
        student (Path): The finished student.
        setup (EvaluationSetup): How the models are evaluated; its command is made here.
        training (Mapping): Arguments of the training.
        folder (Path): Folder of the report.
        teacher_imgsz (int, optional): Size of the images that the teacher answered, in pixels; None for `imgsz`.

    Returns:
        (dict): The content of `report.json`.
    """
    validation = {"mode": "val", "split": "val", "rect": True, "compile": False, "cache": False, **QUIET}
    args = sized(Namespace(**{**training, **validation}), teacher_imgsz)
    loaded = _load(STUDENT, str(student), args)
    _match_classes(STUDENT, loaded, args, setup.names)
    models = [ComparedModel(STUDENT, loaded)]
    if teacher is not None and teacher.can_validate:
        models.insert(0, ComparedModel(TEACHER, teacher, imgsz=args.kd_teacher_imgsz))
    command = command_of(args, str(student)) if len(models) > 1 and teacher is not None and teacher.portable else ""
    options = Options({}, args, REPORT_ONLY["images"], REPORT_ONLY["match_conf"], folder)
    return write_report(models, replace(setup, command=command), options)


def sized(args: Namespace, teacher_imgsz: int | None) -> Namespace:
    """Return the arguments of a report that scores a teacher at the size that it taught at.

    Args:
        args (Namespace): Arguments of the training.
        teacher_imgsz (int | None): Size of the images that the teacher answered, in pixels; None for `imgsz`.
    """
    own = None if teacher_imgsz == args.imgsz else teacher_imgsz
    return Namespace(**{**vars(args), "kd_teacher_imgsz": own})


def command_of(args: Namespace, student: str) -> str:
    """Return the command line that makes the report of a finished training.

    Args:
        args (Namespace): Arguments of the training.
        student (str): Path of the finished student.
    """
    given = {"teacher": args.teacher, "student": student}
    for name in (n for n in USED if n not in PLACES | {"split"}):
        value = getattr(args, name, None)
        if name in {"data", "imgsz"} or value != DEFAULT_CFG_DICT.get(name):
            given[name] = value
    return command_line("report", given)


def _task_of(student: Any) -> str:
    """Return the task of the student.

    Raises:
        KDError: If the file is missing or is not a checkpoint, or its task cannot be distilled.
    """
    if Path(str(student)).suffix.lower() != ".pt":
        raise KDError(f"student={student} is not a PyTorch checkpoint: give trained weights (.pt).")
    try:
        task = YOLO(str(student)).task
    except FileNotFoundError as e:
        raise ModelError(student, NOT_FOUND, STUDENT) from e
    except Exception as e:  # a damaged file can make the unpickler raise any error
        raise ModelError(student, f"could not be read as a YOLO checkpoint: {first_line(e)}", STUDENT) from e
    if task not in TASKS:
        raise KDError(f"student={student} is a '{task}' model; reports are for {', '.join(TASKS)}.")
    return str(task)


def _load(role: str, source: Any, args: Namespace) -> Teacher:
    """Open a model as a teacher.

    Raises:
        KDError: If it cannot be opened or validated; the message names the role's argument.
    """
    weights = args.kd_teacher_weights if role == TEACHER else None
    try:
        model = open_teacher(source, args.task, weights, args.kd_trust_teacher)
        match_channels(model, channels_of(args.data, args.task))
    except ModelError as e:
        raise e.for_argument(role) from e
    except KDError as e:
        raise e if role == TEACHER else ModelError(source, f"cannot be compared: {e}", role) from e
    if not model.can_validate:
        raise ModelError(source, "cannot be validated, which a report needs: give trained weights (.pt).", role)
    return model


def _check_keypoints(role: str, model: Teacher, args: Namespace) -> None:
    """Raise if a pose model predicts other keypoints than the data has; the message names the role's argument."""
    try:
        check_scorable(model, check_det_dataset(args.data))
    except ModelError as e:
        raise e.for_argument(role) from e


def _match_classes(role: str, model: Teacher, args: Namespace, names: Mapping[int, str]) -> None:
    """Match a model's classes with those of the data: a teacher's by `kd_classes`, others by name.

    Args:
        role (str): Role of the model.
        model (Teacher): The model.
        args (Namespace): Arguments of the report.
        names (Mapping[int, str]): Classes of the data; for a teacher before `single_cls` makes them one.

    Raises:
        KDError: If no class matches.
    """
    if role == TEACHER:
        learned = learned_classes(args.classes, args.task)
        model.match(names, args.kd_classes, learned, bool(args.single_cls))
        return
    try:
        model.match(names)
    except NoSharedClassError as e:
        known = ", ".join(map(str, model.names.values()))
        raise ModelError(
            model.source, f"knows none of the classes of data={args.data}: its classes are {known}.", role
        ) from e
