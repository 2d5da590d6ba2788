"""The Ultralytics releases that this plugin is tested with, and the parts of them that it uses.

The package checks these parts before any of its modules imports them; see `ultralytics_kd/__init__.py`.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

from . import __version__
from .errors import KDError

OLDEST, NEWEST = "8.4.153", "8.4.190"
TESTED = f">={OLDEST},<={NEWEST}"

# By module: names, attributes of classes and of their objects, and in brackets a parameter that a part must take.
# Parts that some tested releases lack, such as a task, are not here: the code that uses them checks whether they exist.
INTERNALS: dict[str, tuple[str, ...]] = {
    "ultralytics": ("__version__",),
    "ultralytics.utils": (
        *("DEFAULT_CFG", "DEFAULT_CFG_DICT", "LOCAL_RANK", "LOGGER", "NUM_THREADS", "RANK", "SETTINGS", "TQDM"),
        "WORLD_SIZE",
        *("YAML.load", "YAML.save(data)", "colorstr", "plt_settings"),
    ),
    "ultralytics.cfg": (
        *("ARGV", "CFG_BOOL_KEYS", "CFG_FLOAT_KEYS", "CFG_FRACTION_KEYS", "CFG_INT_KEYS", "CFG_STR_KEYS"),
        *("CLI_HELP_MSG", "DEFAULT_CFG_PATH", "MODES", "TASK2DATA", "TASK2METRIC", "TASKS", "_YOLO_CLI_COMMAND"),
        *("check_cfg(cfg)", "check_cfg(hard)", "entrypoint(debug)", "get_cfg(overrides)", "get_save_dir(args)"),
        *("merge_equals_args", "parse_key_value_pair", "smart_value"),
    ),
    "ultralytics.models.yolo.model": ("YOLO.task_map", "YOLO.train(trainer)", "YOLO.tune(use_ray)"),
    "ultralytics.engine.model": (
        *("Model._check_is_pytorch_model", "Model.tune(use_ray)", "Model.tune(iterations)", "Model.model"),
    ),
    "ultralytics.engine.trainer": (
        *("BaseTrainer._build_train_pipeline", "BaseTrainer._close_dataloader_mosaic", "BaseTrainer._setup_train"),
        *("BaseTrainer._load_checkpoint_state(ckpt)", "BaseTrainer._model_train", "BaseTrainer.auto_batch"),
        *("BaseTrainer._setup_scheduler", "BaseTrainer.check_resume(overrides)", "BaseTrainer.final_eval"),
        *("BaseTrainer.optimizer", "BaseTrainer.plot_training_labels"),
        *("BaseTrainer.get_dataset", "BaseTrainer.on_plot", "BaseTrainer.optimizer_step", "BaseTrainer.plot_metrics"),
        *("BaseTrainer.run_callbacks(event)", "BaseTrainer.setup_model", "BaseTrainer.validate"),
        *("BaseTrainer.amp", "BaseTrainer.args", "BaseTrainer.batch_size", "BaseTrainer.best", "BaseTrainer.callbacks"),
        *("BaseTrainer.csv", "BaseTrainer.data", "BaseTrainer.ddp", "BaseTrainer.device", "BaseTrainer.ema"),
        *("BaseTrainer.epoch", "BaseTrainer.epochs", "BaseTrainer.last", "BaseTrainer.metrics", "BaseTrainer.model"),
        *("BaseTrainer.resume", "BaseTrainer.save_dir", "BaseTrainer.test_loader", "BaseTrainer.train_loader"),
        *("BaseTrainer.validator", "BaseTrainer.wdir", "BaseTrainer.world_size", "BaseTrainer._do_train"),
        *("BaseTrainer._handle_nan_recovery(epoch)", "BaseTrainer.resume_training(ckpt)", "BaseTrainer.save_model"),
        *(
            "BaseTrainer.get_dataloader(rank)",
            "BaseTrainer.label_loss_items(prefix)",
            "BaseTrainer.save_metrics(metrics)",
            "BaseTrainer._setup_ddp",
            "strip_optimizer(updates)",
        ),
    ),
    "ultralytics.models.yolo": (
        *("classify.ClassificationTrainer", "obb.OBBTrainer", "pose.PoseTrainer", "segment.SegmentationTrainer"),
    ),
    "ultralytics.models.yolo.detect": (
        *("DetectionTrainer.build_dataset(img_path)", "DetectionTrainer.build_dataset(batch)"),
        *("DetectionTrainer.get_model(weights)", "DetectionTrainer.get_validator", "DetectionTrainer.auto_batch"),
        *("DetectionTrainer.plot_training_samples(ni)", "DetectionTrainer.preprocess_batch(batch)"),
        *("DetectionValidator._prepare_batch(si)", "DetectionValidator.init_metrics(model)"),
        *("DetectionValidator.postprocess(preds)", "DetectionValidator.preprocess(batch)"),
        *("DetectionValidator.update_metrics(preds)", "DetectionValidator.training"),
    ),
    "ultralytics.utils.callbacks": ("default_callbacks", "get_default_callbacks"),
    "ultralytics.utils.checks": (
        *("check_file(download_dir)", "check_imgsz(min_dim)", "check_model_file_from_stem", "check_requirements"),
        *("check_yaml", "normalize_platform_uri"),
    ),
    "ultralytics.utils.patches": ("imread(flags)", "imwrite", "override_configs", "torch_load", "torch_save"),
    "ultralytics.utils.plotting": ("Annotator", "colors", "plot_images", "plot_results"),
    "ultralytics.utils.torch_utils": (
        *("attempt_compile(mode)", "autocast(device)", "get_cpu_info", "get_flops(imgsz)", "get_num_params"),
        *("init_seeds(seed)", "scale_img", "select_device(verbose)", "torch_distributed_zero_first", "unwrap_model"),
    ),
    "ultralytics.utils.instance": (
        *("Instances.bboxes", "Instances.concatenate", "Instances.convert_bbox(format)", "Instances.denormalize"),
        *("Instances._bboxes", "Instances.fliplr", "Instances.normalize", "Instances.normalized", "Instances.segments"),
    ),
    "ultralytics.utils.loss": (
        *("E2ELoss.o2m", "E2ELoss.o2o", "E2ELoss.one2many", "E2ELoss.one2one", "E2ELoss.update"),
        *("E2ELoss.updates",),
        *("v8ClassificationLoss", "v8DetectionLoss.assigner", "v8DetectionLoss.hyp", "v8PoseLoss.keypoint_loss"),
        *("v8DetectionLoss.bce", "v8DetectionLoss.parse_output(preds)", "KeypointLoss.sigmas"),
    ),
    "ultralytics.utils.metrics": (
        *("Metric.ap", "Metric.ap50", "Metric.ap_class_index", "Metric.p", "Metric.r", "DetMetrics.nt_per_class"),
        *("ap_per_class", "batch_probiou(obb1)", "bbox_ioa(iou)", "bbox_iou(xywh)", "box_iou", "probiou(obb1)"),
    ),
    "ultralytics.utils.nms": ("TorchNMS.fast_nms(iou_func)", "non_max_suppression(return_idxs)"),
    "ultralytics.utils.ops": (
        *("crop_mask(boxes)", "resample_segments(n)", "scale_boxes(xywh)", "xywh2xyxy", "xywhr2xyxyxyxy", "xyxy2xywh"),
        *("xyxy2xywhn",),
    ),
    "ultralytics.utils.tal": (
        *("TaskAlignedAssigner.forward(mask_gt)", "dist2bbox(xywh)", "dist2rbox(pred_angle)", "make_anchors"),
    ),
    "ultralytics.nn.autobackend": ("AutoBackend.forward(im)", "check_class_names"),
    "ultralytics.nn.tasks": (
        *("BaseModel.fuse(verbose)", "BaseModel.init_criterion", "BaseModel.loss(preds)", "BaseModel.criterion"),
        *("SAFE_LOAD", "guess_model_task", "load_checkpoint(weight)"),
        *("DetectionModel", "SegmentationModel", "WorldModel.get_text_pe(cache_clip_model)", "WorldModel.txt_feats"),
        "YOLOEModel.get_text_pe(without_reprta)",
    ),
    "ultralytics.nn.modules": ("Conv.act", "Conv.conv", "head"),
    "ultralytics.nn.modules.head": (
        *("Detect.cv2", "Detect.cv3", "Detect.end2end", "Detect.forward_head(box_head)", "Detect.fuse", "Detect.nc"),
        *("Detect.no", "Detect.one2one_cv2", "Detect.one2one_cv3", "Detect.reg_max", "Detect.stride"),
        *("OBB.cv4", "Pose.cv4", "Pose.kpt_shape", "RTDETRDecoder.forward(batch)", "Segment.cv4", "Segment.proto"),
        *("RTDETRDecoder.dec_score_head", "RTDETRDecoder.enc_score_head", "WorldDetect", "YOLOEDetect.is_fused"),
        *("Segment", "YOLOESegment.cv5", "YOLOEDetect.fuse(txt_feats)", "YOLOEDetect.get_tpe(tpe)", "WorldDetect.cv4"),
        "Classify.linear",
    ),
    "ultralytics.data.augment": (
        *("Albumentations.contains_spatial", "Albumentations.transform", "BaseTransform.apply_instances(params)"),
        *("Compose.transforms", "CopyPaste.mode", "CutMix", "Format.bbox_format", "Format.normalize", "LetterBox"),
        *("MixUp", "Mosaic", "Mosaic.get_params(labels)", "RandomFlip", "RandomHSV", "RandomPerspective", "random"),
    ),
    "ultralytics.data.base": (
        *("BaseDataset.fraction", "BaseDataset.get_img_files(img_path)", "BaseDataset.get_labels"),
        *("BaseDataset.im_files", "BaseDataset.load_image(rect_mode)", "BaseDataset.prefix", "BaseDataset.transforms"),
        *("BaseDataset.get_image_and_label(index)", "BaseDataset.labels"),
    ),
    "ultralytics.data.build": ("build_dataloader(shuffle)", "build_yolo_dataset(mode)"),
    "ultralytics.data.dataset": (
        *("ClassificationDataset.samples", "ClassificationDataset.torch_transforms", "YOLODataset.close_mosaic(hyp)"),
        *("YOLODataset.build_transforms(hyp)", "YOLODataset.collate_fn(batch)", "YOLODataset.data"),
    ),
    "ultralytics.data.utils": (
        *("IMG_FORMATS", "check_cls_dataset", "check_det_dataset", "convert_ndjson_to_yolo_if_needed"),
        *("get_split_fraction", "img2label_paths", "verify_image(args)"),
    ),
}
_CONFIGURATION = ("ultralytics", "ultralytics.utils", "ultralytics.utils.checks", "ultralytics.cfg")
# The parts that the arguments need. While Ultralytics is being imported, the others may not exist yet
CONFIGURATION = {module: INTERNALS[module] for module in _CONFIGURATION}

_warned = False


def check_ultralytics(version: str | None = None) -> None:
    """Raise if a part that the plugin uses is missing, and warn once outside the tested range of releases.

    Args:
        version (str, optional): Ultralytics release; the installed one if None.

    Raises:
        KDError: If an internal has moved or takes other parameters; the message names it.
    """
    global _warned
    version = version or installed_release()
    check_parts(INTERNALS, version)
    from ultralytics.utils import LOGGER

    if not _numbers(OLDEST) <= _numbers(version) <= _numbers(NEWEST) and not _warned:
        _warned = True
        LOGGER.warning(
            f"ultralytics_kd {__version__} is tested with ultralytics{TESTED}, found {version}: watch the first epochs."
        )


def check_parts(parts: Mapping[str, tuple[str, ...]], version: str | None = None) -> None:
    """Raise if one of these parts of Ultralytics is missing.

    Args:
        parts (Mapping[str, tuple[str, ...]]): Parts by module, as in `INTERNALS`.
        version (str, optional): Ultralytics release; the installed one if None.

    Raises:
        KDError: If a part has moved or takes other parameters; the message names it.
    """
    missing = [name for module in parts for part in parts[module] if (name := _missing(module, part))]
    if "ultralytics.utils.loss" in parts and not missing and not _loss_names_its_parts():
        missing = ["'ultralytics.utils.loss.v8DetectionLoss' that returns its parts by name"]
    if missing:
        version = version or installed_release()
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise KDError(
            f"ultralytics {version} has no {missing[0]}{others}, which ultralytics_kd {__version__} needs: "
            f"{advice(version)}."
        )


def versions() -> dict[str, str]:
    """Return the releases of ultralytics_kd, Ultralytics and PyTorch, for records and reports."""
    import torch

    return {"ultralytics_kd": __version__, "ultralytics": installed_release(), "torch": str(torch.__version__)}


def advice(version: str) -> str:
    """Return what to do about a release that does not fit, as the end of a sentence.

    Args:
        version (str): The release.
    """
    text = f"install ultralytics{TESTED}"
    if _numbers(version) > _numbers(NEWEST):
        text += ", or a newer ultralytics_kd"
    if "ultralytics_kd._autoload" in sys.modules:
        text += ", or go on without it after 'yolo-kd disable'"
    return text


def installed_release() -> str:
    """Return the installed Ultralytics release."""
    import ultralytics

    return str(getattr(ultralytics, "__version__", "(unknown version)"))


def _numbers(version: str) -> tuple[int, ...]:
    """Return the three numbers of a release."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _missing(module: str, part: str) -> str:
    """Return the name of a part for an error if it is missing or lacks the parameter; an empty text otherwise."""
    path, _, parameter = part.rstrip(")").partition("(")
    try:
        value: Any = importlib.import_module(module)
        for name in path.split("."):
            owner, value = value, getattr(value, name, None)
            if value is None and not _has(owner, name):
                raise AttributeError(name)
    except AttributeError:
        return f"'{module}.{path}'"
    except ModuleNotFoundError as e:
        if not (e.name or "").startswith("ultralytics"):  # another package is not installed, and this error names it
            raise
        return f"'{module}.{path}'"
    if parameter and parameter not in inspect.signature(value).parameters:
        return f"'{module}.{path}' with parameter '{parameter}'"
    return ""


def _has(owner: Any, name: str) -> bool:
    """Return whether an object has an attribute; for a class, also whether its methods set it on its objects."""
    if not inspect.isclass(owner):
        return hasattr(owner, name)
    functions = [f for kind in owner.__mro__ for f in vars(kind).values() if inspect.isfunction(f)]
    return hasattr(owner, name) or any(name in f.__code__.co_names for f in functions)


def _loss_names_its_parts() -> bool:
    """Return whether Ultralytics' loss returns its parts by name (since 8.4.104), as far as its annotation tells."""
    from ultralytics.utils.loss import v8DetectionLoss

    returned = inspect.signature(v8DetectionLoss.__call__).return_annotation
    return returned is inspect.Signature.empty or "dict" in str(returned)
