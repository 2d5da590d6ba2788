"""The model in a `.pt` file: opened without running code that the file names, unwrapped, or refused with advice."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn import tasks
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.patches import torch_load
from ultralytics.utils.torch_utils import unwrap_model

from ..errors import KDError, ModelError, first_line
from ..files import reason_of

NAMES = "give a path, or a name that Ultralytics downloads, e.g. yolo26x.pt"
SEVERAL = "give a path, or several as a list, e.g. teacher=[a.pt,b.pt]"
UNTRUSTED = "if you trust its origin, set kd_trust_teacher=True"
# Classes of models in the repositories of YOLOv5 and YOLOv7; Ultralytics cannot run them
FOREIGN = re.compile(r"models\.yolo\.(Base|Detection|Segmentation|Classification)?Model")
FOREIGN_MODULES = {"models", "models.yolo"}
# Names in older files that Ultralytics itself replaces
RENAMED = {"ultralytics.nn.modules.block.Silence", "ultralytics.nn.tasks.YOLOv10DetectionModel"}
LAYERS = ("ultralytics.nn.modules.", "ultralytics.nn.tasks.")  # only these are imported: others may install packages
# Wrappers by their names in a file, and the attribute that holds the model
WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
}
# Keys in the state dict of an Ultralytics model: what wrappers put before them, and the name of its layers
KEY = re.compile(r"((?:module\.|_orig_mod\.|model\.(?=model\.))*)(model\.)?\d+\.")
_loading = threading.Lock()


def load_model(path: str, source: Any, trust: bool) -> tuple[nn.Module, Any]:
    """Return the model in a checkpoint, in float32, and the checkpoint.

    Args:
        path (str): The file, or a name that Ultralytics downloads.
        source (Any): The teacher as it was given, for errors.
        trust (bool): Whether the file may run code.

    Raises:
        KDError: If the file is missing, holds no model that can be opened, or would run code and is not trusted.
    """
    code = _named_code(path)
    _check_openable(source, code)
    try:
        with _restricted(not trust):
            model, ckpt = load_checkpoint(path)
    except KDError:
        raise
    except FileNotFoundError as e:
        raise ModelError(source, f"was not found: {SEVERAL if ',' in path else NAMES}.") from e
    except Exception as e:  # a damaged file can make the unpickler raise any error
        raise _unreadable(path, source, e, code, trust) from e
    if type(model) is nn.Sequential:  # from `torch.save(model, file)` Ultralytics takes the layers without the names
        raise ModelError(
            source,
            "is a bare model: save it in a dict, torch.save({'model': model}, FILE), as Ultralytics saves checkpoints.",
        )
    return plain_model(model), ckpt


def plain_model(model: nn.Module, copied: bool = False) -> nn.Module:
    """Return a model without wrappers of torch; from a model of Ultralytics' own distillation, its student.

    Args:
        model (nn.Module): A model.
        copied (bool): Whether to return a copy, so that the model does not change.
    """
    plain: Any = unwrap_model(model)
    if type(plain).__name__ == "DistillationModel" and isinstance(getattr(plain, "student_model", None), nn.Module):
        plain = unwrap_model(plain.student_model)
    wrapped = plain is not model
    plain = deepcopy(plain) if copied else plain
    for module in plain.modules() if wrapped else ():  # hooks that collect feature maps for Ultralytics' distillation
        for handle, hook in list(module._forward_hooks.items()):
            if type(hook).__name__ == "FeatureHook":
                del module._forward_hooks[handle]
    for name in ("names", "args", "task", "pt_path") if wrapped else ():  # some may be on the wrapper alone
        if hasattr(model, name) and (name == "pt_path" or not hasattr(plain, name)):
            setattr(plain, name, getattr(model, name))
    return plain


# Before a file is opened ----------------------------------------------------------------------------------------------
def _named_code(path: str) -> list[str]:
    """Return the functions and classes that a file names, apart from torch's own; no code in the file runs."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a missing, foreign or damaged file: opening it raises the reason
        return []


def _check_openable(source: Any, code: list[str]) -> None:
    """Raise if a file cannot be opened here, whether it is trusted or not."""
    if any(FOREIGN.fullmatch(name) for name in code):
        raise _foreign(source)
    missing = next((name for name in code if not _installed(name.partition(".")[0])), None)
    if missing:
        raise ModelError(
            source,
            f"was saved with code that is not installed here ({missing}): install its package, or save an Ultralytics "
            "model.",
        )
    layer = next((name for name in code if name.startswith(LAYERS) and not _exists(name)), None)
    if layer:
        raise ModelError(
            source,
            f"was saved by another or a changed Ultralytics: this one has no {layer}. Export the model to ONNX there "
            "and give the .onnx file, or train in that environment.",
        )


def _foreign(source: Any) -> ModelError:
    """Return the error for a model of the repository of YOLOv5 or YOLOv7."""
    return ModelError(
        source,
        "is a checkpoint of the YOLOv5 or YOLOv7 repository, which Ultralytics cannot open: train an Ultralytics model "
        "on its data (yolov5su.pt is one), or give an object with `names` and `teach` that runs it.",
    )


def _installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    try:
        return package in sys.modules or importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _exists(name: str) -> bool:
    """Return whether Ultralytics has a layer or model of this name, or takes another in its place."""
    module, _, attribute = name.rpartition(".")
    try:
        return name in RENAMED or hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False


# Opening a file -------------------------------------------------------------------------------------------------------
@contextmanager
def _restricted(enabled: bool) -> Iterator[None]:
    """Make Ultralytics load checkpoints without running code that they name, if enabled.

    `load_checkpoint` has no argument for it. Ultralytics' setting is global, so it is set only during this block.
    """
    if not enabled:
        yield
        return
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):  # Ultralytics would load it unsafely
        raise KDError(f"torch {torch.__version__} cannot load untrusted files safely: use torch 2.6 or newer.")
    with _loading:
        previous, tasks.SAFE_LOAD = tasks.SAFE_LOAD, True
        try:
            yield
        finally:
            tasks.SAFE_LOAD = previous


# After a file could not be opened -------------------------------------------------------------------------------------
def _unreadable(path: str, source: Any, error: Exception, code: list[str], trust: bool) -> ModelError:
    """Return the error for a file that could not be opened."""
    if isinstance(error, OSError) and error.errno and error.strerror:  # no permission, a network drive that is gone
        return ModelError(source, f"cannot be read: {reason_of(error)}")
    refused = _refused_code(error)
    if refused and not code and (FOREIGN.fullmatch(refused) or refused in FOREIGN_MODULES):  # a file of an old torch
        return _foreign(source)
    wrappers = [name for name in code if name in WRAPPERS]
    if wrappers and (trust or refused in WRAPPERS):
        return _wrapped(source, wrappers[0], trust)
    if refused and not trust:
        return ModelError(
            source,
            f"is not a plain YOLO checkpoint: opening it would run code that the file names ({refused}); {UNTRUSTED}.",
        )
    without_model = isinstance(error, TypeError) and error.__cause__ is None
    return (_without_model(path, source, trust) if without_model else None) or _no_checkpoint(path, source, error)


def _wrapped(source: Any, wrapper: str, trust: bool) -> ModelError:
    """Return the error for a model that was saved inside a wrapper of torch."""
    needs_processes = "Distributed" in wrapper  # it cannot be opened without a process group
    return ModelError(
        source,
        f"holds its model inside {wrapper.rpartition('.')[2]}: save the model alone, "
        f"torch.save({{'model': model.{WRAPPERS[wrapper]}}}, FILE)"
        f"{'' if trust or needs_processes else f', or {UNTRUSTED}'}.",
    )


def _no_checkpoint(path: str, source: Any, error: Exception) -> ModelError:
    """Return the error for a file without a more specific reason; a failed download is often a page of text."""
    text = _first_text(path)
    reason = first_line(error) if text is None else f"it is a text, which begins with '{text}': download it again."
    failed = "downloaded" if isinstance(error, ConnectionError) else "read as a YOLO checkpoint"
    return ModelError(source, f"could not be {failed}: {reason}")


def _first_text(path: str) -> str | None:
    """Return the beginning of a file of text, None for any other file."""
    try:
        with open(path, "rb") as file:
            lines = file.read(60).decode().strip().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return lines[0] if lines and all(line.isprintable() for line in lines) else None


def _refused_code(error: BaseException) -> str | None:
    """Return the function or class in a loading error that is not part of a plain checkpoint; None if there is none."""
    match = re.search(r"\bGLOBAL:? (?:GLOBAL )?([\w.]+)|No module named '([\w.]+)'", _messages(error), re.IGNORECASE)
    return next(name for name in match.groups() if name) if match else None


def _messages(error: BaseException) -> str:
    """Return the messages of an error and of its causes."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return " ".join(str(e) for e in causes)


def _without_model(path: str, source: Any, trust: bool) -> ModelError | None:
    """Return the error for a file of weights alone or without a model, None for any other file."""
    try:
        content = torch_load(path, map_location="cpu", weights_only=not trust)
    except Exception:  # the first error is raised
        return None
    for key, weights in ((None, content), *(content.items() if isinstance(content, Mapping) else ())):
        if isinstance(weights, Mapping) and weights and all(isinstance(each, Tensor) for each in weights.values()):
            return _weights_alone(source, Path(path).name, key, str(next(iter(weights))))
    return ModelError(source, "holds no model under 'ema' or 'model', where Ultralytics saves it.")


def _weights_alone(source: Any, file: str, key: Any, first: str) -> ModelError:
    """Return the error for a state dict, with the code that makes a checkpoint of it.

    Args:
        source (Any): The teacher as it was given.
        file (str): Name of its file.
        key (Any): Where the state dict is in the file; None if it is the file's content.
        first (str): The first key in it.
    """
    match = KEY.match(first)
    if match is None:
        return ModelError(
            source,
            "holds weights (a state dict) of a model that is not Ultralytics': give an object with `names` and `teach` "
            "that runs it.",
        )
    prefix, layers = match.groups()
    weights = f"torch.load('{file}'){'' if key is None else f'[{key!r}]'}"
    if prefix:
        weights = f"{{k.removeprefix({prefix!r}): v for k, v in {weights}.items()}}"
    return ModelError(
        source,
        "holds weights (a state dict) and no model. Make a checkpoint of it: model = YOLO('ITS.yaml').model; "
        f"model{'' if layers else '.model'}.load_state_dict({weights}); model.names = {{0: 'NAME'}}; "
        "torch.save({'model': model}, 'teacher.pt').",
    )
