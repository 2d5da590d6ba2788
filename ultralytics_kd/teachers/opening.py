"""From the `teacher` argument to a teacher: where its model comes from, and which kind of teacher it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn
from ultralytics.engine.model import Model
from ultralytics.nn.tasks import guess_model_task
from ultralytics.utils import SETTINGS
from ultralytics.utils.checks import check_file, check_model_file_from_stem, normalize_platform_uri

from .. import outputs
from ..config.user_code import import_object, names_object
from ..errors import KDError, ModelError, first_line
from ..files import reason_of
from .backbone import BackboneTeacher, names_backbone
from .base import FINGERPRINT, Teacher
from .beside import together
from .checkpoint_files import NAMES, SEVERAL, UNTRUSTED, load_model, plain_model
from .class_map import class_names
from .custom import CustomTeacher
from .dense import DenseTeacher
from .ema import EMA as MOVING_AVERAGE
from .ema import MovingAverage
from .exported import ExportedTeacher
from .grid import GridTeacher
from .prompted import PromptedTeacher
from .scratch import scratch_data
from .sets import QueryTeacher, SetTeacher
from .sizes import trained_size
from .zoo import zoo_model

IN_MEMORY = " in memory"
EXPORTED = (  # suffixes by which Ultralytics' AutoBackend recognises exported models
    *(".onnx", ".torchscript", ".engine", ".mlpackage", ".mlmodel", ".aimodel", ".pb", ".tflite", ".mnn"),
    *("_openvino_model", "_saved_model", "_paddle_model", "_ncnn_model", "_imx_model", "_rknn_model"),
    *("_executorch_model", "_axelera_model", "_deepx_model", "_hailo_model", "_ascend_model", "_xilinx_model"),
)
DATA_ALONE = (".onnx", ".tflite", ".mnn", "_openvino_model", "_ncnn_model")  # these formats hold no code


def open_teacher(
    source: Any, task: str = "detect", weights: Sequence[float] | None = None, trust: bool = False
) -> Teacher:
    """Open the teacher that a `teacher` argument names; it is inspected unless it follows the student.

    Args:
        source (Any): Trained weights as a name that Ultralytics downloads, a local path, a URL or a `ul://` URI; an
            exported file; a backbone as `timm:NAME`; a classifier as `timm:NAME` or `torchvision:NAME`; `module:name`
            of a Python object; "ema" for the student's own moving average; a `YOLO` or a model in memory, which is not
            changed; an object with `names` and `teach`; or a list of these.
        task (str): The student's task.
        weights (Sequence[float], optional): Weight of each teacher of a list; equal if None.
        trust (bool): Whether files may run code when they are opened. A `.pt` is a pickle, which can run any code;
            without trust only the classes of Ultralytics' own models are loaded from it.

    Raises:
        KDError: If the source holds no model that can teach, has another task, or needs trust.

    Examples:
        >>> teacher = open_teacher("yolo26x.pt")
        >>> teacher.match({0: "person", 1: "car"})  # the student's classes
        >>> teacher.prepare(torch.device("cpu"))
        >>> teacher(images).branches["one2many"].scores  # logits of shape (B, anchor points, 2)
    """
    if names_backbone(source, task):
        source = [source]
    if isinstance(source, (list, tuple)):
        if not source:
            raise KDError("teacher=[] is an empty list: name the teachers, or drop it.")
        if any(isinstance(each, (list, tuple)) for each in source):
            raise KDError("'teacher' is a list with lists in it: give one list of all teachers.")
        members = [_member(each, task, trust) for each in source]
        if any(m.follows_student for m in members) and len(members) > 1:
            raise KDError(f"teacher={MOVING_AVERAGE} cannot be one of several teachers: give it alone.")
        if len(members) > 1 or isinstance(members[0], BackboneTeacher):
            teacher: Teacher = together(members, weights)
            teacher.inspect()
            return teacher
        source = source[0]
    if weights is not None:
        raise KDError("'kd_teacher_weights' weighs several teachers: give teacher=[a.pt,b.pt], or drop it.")
    if isinstance(source, str) and source.strip().lower() == MOVING_AVERAGE:
        return MovingAverage(task)
    teacher = _open(source, trust)
    if task == "detect" and isinstance(teacher, GridTeacher) and teacher.task == "segment":
        teacher = teacher.as_detector()
    if teacher.task != task:
        raise ModelError(
            teacher.source,
            f"is a '{teacher.task}' model and the student's task is '{task}': both must have the same task, so give a "
            f"teacher of '{task}' or a student of '{teacher.task}'.",
        )
    if isinstance(teacher, SetTeacher) and task != "detect":
        raise ModelError(
            teacher.source,
            f"predicts detections, which can only teach a detector: for task '{task}' give trained weights (.pt).",
        )
    teacher.inspect()
    return teacher


def names_exported(source: Any) -> bool:
    """Return whether a `teacher` argument names an exported file.

    Args:
        source (Any): The argument.
    """
    return isinstance(source, (str, Path)) and str(source).strip().rstrip("/").lower().endswith(EXPORTED)


def _member(source: Any, task: str, trust: bool) -> Teacher:
    """Return one of several teachers, inspected."""
    if not names_backbone(source, task):
        return open_teacher(source, task, trust=trust)
    teacher = BackboneTeacher(source, task)
    teacher.inspect()
    return teacher


def _open(source: Any, trust: bool) -> Teacher:
    """Return the teacher of one source."""
    name = _name(source)
    if isinstance(source, str):
        source = zoo_model(source) or source
    if isinstance(source, str) and names_object(source):
        source = import_object("teacher", source, _instantiate)
    if isinstance(source, Model) and isinstance(source.model, (str, Path)):
        source = source.model  # a YOLO that holds an exported file
    if names_exported(source):
        return ExportedTeacher(_exported_file(str(source).strip(), trust))
    if hasattr(source, "teach") and not isinstance(source, Model):
        return CustomTeacher(source() if isinstance(source, type) else source, name)
    model, ckpt = _load(source, trust)
    teacher = _of_model(model, name)
    teacher.trained_imgsz, teacher.scratch_data = trained_size(ckpt), scratch_data(ckpt)
    if isinstance(ckpt, Mapping) and isinstance(ckpt.get(FINGERPRINT), str):
        teacher._hash = ckpt[FINGERPRINT]
    return teacher


def _of_model(model: nn.Module, name: str) -> Teacher:
    """Return the teacher of the kind that a model's head needs."""
    names = class_names(model)
    if outputs.takes_prompts(model):
        if not outputs.is_fixed(model):
            return PromptedTeacher(model, name, names)
        outputs.fix_texts(model)
    if outputs.has_queries(model):
        return QueryTeacher(model, name, "detect", names)
    task = getattr(model, "task", None) or guess_model_task(model)
    if task in outputs.DENSE_TASK_OF.values():
        return DenseTeacher(model, name, task, names)
    return GridTeacher(model, name, task, names)


def _name(source: Any) -> str:
    """Return a teacher's name in messages: as it was given, or an object's type and the file that it came from."""
    if isinstance(source, (str, Path)):
        return str(source)
    file = getattr(source.model if isinstance(source, Model) else source, "pt_path", None)
    return " ".join([type(source).__name__, *([Path(file).name] if file else [])]) + IN_MEMORY


def _instantiate(imported: Any) -> Any:
    """Return the teacher from an imported object: the object, or its result if it is a function or class."""
    ready = isinstance(imported, nn.Module) or hasattr(imported, "teach") or not callable(imported)
    teacher = imported if ready else imported()
    return teacher() if isinstance(teacher, type) else teacher


def _exported_file(source: str, trust: bool) -> str:
    """Return the path of an exported model, downloaded if it is a URL.

    Raises:
        KDError: If it does not exist, or can hold code and is not trusted.
    """
    remote = "://" in source
    try:
        found = remote or Path(source).exists()
    except OSError as e:  # no permission, a network drive that is gone
        raise ModelError(source, f"cannot be read: {reason_of(e)}") from e
    if not found:
        raise ModelError(source, "was not found.")
    if not trust and not source.rstrip("/").lower().endswith(DATA_ALONE):
        raise ModelError(source, f"has a format that can hold code, which would run here: {UNTRUSTED}.")
    return _fetch(source) if remote else str(Path(source))


def _load(source: Any, trust: bool) -> tuple[nn.Module, Any]:
    """Return the model behind one source, in float32, and the checkpoint that it is from; None if there is none."""
    ckpt = None
    if isinstance(source, Model):
        source, ckpt = source.model, source.ckpt
    if isinstance(source, nn.Module):
        ckpt = ckpt or _trained_with(source)
        return plain_model(source, copied=True).cpu().float().eval(), ckpt  # as from a file, also if it is on a GPU
    if not isinstance(source, (str, Path)):
        raise KDError(
            f"teacher of type {type(source).__name__}: give a path, a YOLO, a model, or an object with `names` and "
            "`teach`."
        )
    path = str(source).strip()
    if path.endswith(IN_MEMORY):
        raise KDError(
            f"teacher={path}: the teacher of this run was an object in memory, which cannot be saved: give it again "
            "with teacher=..."
        )
    if "://" not in path and path.lower().endswith(".pt") and Path(path).parent != Path() and _is_missing(path):
        raise ModelError(source, f"was not found: {SEVERAL if ',' in path else NAMES}.")  # a path is no name to look up
    path = _fetch(path) if "://" in path else str(check_model_file_from_stem(path))
    if Path(path).is_dir():
        raise ModelError(source, "is a folder: give trained weights (.pt), of a run its weights/best.pt.")
    if path.lower().endswith((".yaml", ".yml")):
        raise ModelError(source, "is an untrained architecture: give trained weights (.pt).")
    if Path(path).suffix.lower() != ".pt":
        raise ModelError(source, "is neither a PyTorch checkpoint nor an exported model: give trained weights (.pt).")
    return load_model(path, source, trust)


def _is_missing(path: str) -> bool:
    """Return whether there is no file of this path; a file that cannot be reached brings an error of its own."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _trained_with(model: nn.Module) -> dict[str, Any] | None:
    """Return the arguments that Ultralytics keeps in a model after loading or training, as a checkpoint has them."""
    args: Any = getattr(model, "args", None)
    args = args if isinstance(args, Mapping) else vars(args) if isinstance(args, SimpleNamespace) else {}
    return {"train_args": dict(args)} if args.get("data") else None


def _fetch(source: str) -> str:
    """Download a URL or `ul://` URI as Ultralytics does for `model=`, and return the file.

    Ultralytics takes a file of the same name in the folder for the URL's, and many are named `best.pt`: so each URL has
    a folder of its own. It makes such folders for models on Platform itself.

    Raises:
        KDError: If it does not exist or the download fails.
    """
    folder = Path(SETTINGS["weights_dir"])
    if not str(normalize_platform_uri(source)).lower().startswith("ul://"):
        folder /= hashlib.sha256(source.encode()).hexdigest()[:12]
    try:
        return str(check_file(source, download_dir=folder))
    except FileNotFoundError as e:
        raise ModelError(source, f"was not found: {first_line(e)}") from e
    except Exception as e:  # a missing or wrong key, no access, no network: each raises a different type
        raise ModelError(source, f"could not be downloaded: {first_line(e)}") from e
