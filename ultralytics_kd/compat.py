"""Which Ultralytics releases this plugin is tested with, and which of their parts it leans on."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from ultralytics import __version__
from ultralytics.utils import LOGGER
from ultralytics.utils.checks import check_version
from ultralytics.utils.loss import v8DetectionLoss

from .errors import KDError

TESTED = ">=8.4.150,<=8.4.190"

# (module, attribute path, parameter that it must take or None)
INTERNALS: tuple[tuple[str, str, str | None], ...] = (
    ("ultralytics.utils", "DEFAULT_CFG_DICT", None),
    ("ultralytics.utils", "DEFAULT_CFG", None),
    ("ultralytics.cfg", "CFG_FLOAT_KEYS", None),
    ("ultralytics.cfg", "CFG_STR_KEYS", None),
    ("ultralytics.cfg", "CFG_FRACTION_KEYS", None),
    ("ultralytics.cfg", "CFG_INT_KEYS", None),
    ("ultralytics.cfg", "CLI_HELP_MSG", None),
    ("ultralytics.cfg", "ARGV", None),
    ("ultralytics.cfg", "_YOLO_CLI_COMMAND", None),
    ("ultralytics.cfg", "check_cfg", "cfg"),
    ("ultralytics.cfg", "get_cfg", "overrides"),
    ("ultralytics.cfg", "get_save_dir", "args"),
    ("ultralytics.cfg", "entrypoint", "debug"),
    ("ultralytics.utils.callbacks", "default_callbacks", None),
    ("ultralytics.nn.tasks", "load_checkpoint", "weight"),
    ("ultralytics.utils.checks", "check_file", "download_dir"),
    ("ultralytics.nn.modules.head", "Detect.forward_head", "box_head"),
    ("ultralytics.nn.tasks", "BaseModel.loss", "preds"),
    ("ultralytics.utils.loss", "v8DetectionLoss.parse_output", "preds"),
    ("ultralytics.utils.loss", "E2ELoss.update", None),
    ("ultralytics.utils.tal", "TaskAlignedAssigner.forward", "mask_gt"),
    ("ultralytics.data.augment", "BaseTransform.apply_instances", "params"),
    ("ultralytics.data.dataset", "YOLODataset.collate_fn", "batch"),
    ("ultralytics.data.dataset", "YOLODataset.build_transforms", "hyp"),
    ("ultralytics.utils.nms", "non_max_suppression", "return_idxs"),
    ("ultralytics.utils.metrics", "probiou", "obb1"),
    ("ultralytics.utils.ops", "crop_mask", "boxes"),
    ("ultralytics.utils.tal", "dist2rbox", "pred_angle"),
    ("ultralytics.data.utils", "verify_image", "args"),
    ("ultralytics.data.build", "build_dataloader", "shuffle"),
    ("ultralytics.nn.autobackend", "AutoBackend.forward", "im"),
    ("ultralytics.nn.modules.head", "RTDETRDecoder.forward", "batch"),
    ("ultralytics.engine.model", "Model.tune", "use_ray"),
    ("ultralytics.engine.trainer", "BaseTrainer._build_train_pipeline", None),
    ("ultralytics.engine.trainer", "BaseTrainer._close_dataloader_mosaic", None),
    ("ultralytics.engine.trainer", "BaseTrainer._setup_train", None),
    ("ultralytics.engine.trainer", "BaseTrainer._model_train", None),
    ("ultralytics.engine.trainer", "BaseTrainer._load_checkpoint_state", "ckpt"),
    ("ultralytics.engine.trainer", "BaseTrainer.build_optimizer", "decay"),
    ("ultralytics.engine.trainer", "BaseTrainer.optimizer_step", None),
    ("ultralytics.engine.trainer", "BaseTrainer.check_resume", "overrides"),
    ("ultralytics.engine.trainer", "BaseTrainer.final_eval", None),
    ("ultralytics.engine.trainer", "BaseTrainer.run_callbacks", "event"),
    ("ultralytics.engine.trainer", "BaseTrainer.plot_metrics", None),
    ("ultralytics.models.yolo.detect", "DetectionTrainer.preprocess_batch", "batch"),
    ("ultralytics.models.yolo.detect", "DetectionTrainer.get_validator", None),
    ("ultralytics.models.yolo.detect", "DetectionValidator.preprocess", "batch"),
    ("ultralytics.models.yolo.detect", "DetectionValidator.postprocess", "preds"),
    ("ultralytics.models.yolo.model", "YOLO.task_map", None),
)


def check_ultralytics(version: str = __version__) -> None:
    """Warn outside the tested range of releases, and raise when a part that the plugin leans on is not there.

    Args:
        version (str): Installed Ultralytics release.

    Raises:
        KDError: If an internal has moved or takes other parameters; the message names it.
    """
    if not check_version(version, TESTED):
        LOGGER.warning(f"ultralytics_kd is tested with ultralytics{TESTED}, found {version}: watch the first epochs.")
    advice = f"which ultralytics_kd leans on: install ultralytics{TESTED}, or a newer ultralytics_kd."
    for module, path, parameter in INTERNALS:
        if not _available(module, path, parameter):
            taking = f" with parameter {parameter!r}" if parameter else ""
            raise KDError(f"ultralytics {version} has no '{module}.{path}'{taking}, {advice}")
    if not _names_its_parts(v8DetectionLoss):
        raise KDError(
            f"ultralytics {version} has no 'ultralytics.utils.loss.v8DetectionLoss' that names its parts, {advice}"
        )


def _names_its_parts(loss: type) -> bool:
    """Return whether a loss says that it returns its parts by name (it does since 8.4.104), or says nothing."""
    returned = inspect.signature(loss.__call__).return_annotation
    return returned is inspect.Signature.empty or "dict" in str(returned)


def _available(module: str, path: str, parameter: str | None) -> bool:
    """Return whether the attribute exists and, if a parameter is given, takes it."""
    try:
        part: Any = importlib.import_module(module)
        for name in path.split("."):
            part = getattr(part, name)
    except (ImportError, AttributeError):
        return False
    return parameter is None or parameter in inspect.signature(part).parameters
