"""Raw outputs of students and teachers in one common form. Only these files know the layout of heads.

Files:
    heads: kind, layout and towers of YOLO heads, and frozen heads that return raw outputs.
    grid: predictions of YOLO's detection-like heads at every anchor point.
    dense: outputs of models without anchor points: classification, semantic segmentation, depth.
    queries: predictions of RT-DETR's decoder.
    weight_selection: the weights that a student takes from a bigger teacher (`kd_init`).
    channel_picks, output_channels: the channels that it takes, of hidden layers and of a head's output layers.
    weight_fitting: selected weights refitted to the teacher's activations (`kd_init=fit`).
    block_counterparts: what it fits blocks to whose layout the teacher does not have.
    norm_statistics: BatchNorm statistics measured anew on images.
    weight_origin: which of a model's weights are trained.
"""

from .dense import (
    DENSE_TASK_OF,
    SIDE,
    calibration,
    capture_maps,
    dense_maps,
    dense_output,
    probe,
    uncalibrated,
    within_limits,
)
from .grid import (
    ANGLES,
    BOXES,
    COEFFICIENTS,
    KEYPOINTS,
    ONE2MANY,
    ONE2ONE,
    PROTO,
    SCORES,
    SIGMAS,
    Branch,
    FeatureLayout,
    Layout,
    anchors,
    branches,
    common_strides,
    crop,
    decode,
    distances,
    level_scores,
    on_levels,
    pad,
    pixels,
    take_images,
)
from .heads import (
    TASK_OF,
    RawHead,
    class_rows,
    detect_head,
    find_head,
    finish_towers,
    first_conv,
    frozen_statistics,
    head_fault,
    keep_branches,
    last_conv,
    layout,
    map_channels,
    map_head_classes,
    read_grey,
    stem_features,
    towers,
    use_raw_head,
)
from .queries import has_queries, query_features, use_raw_decoder

__all__ = (
    "ANGLES",
    "BOXES",
    "COEFFICIENTS",
    "DENSE_TASK_OF",
    "KEYPOINTS",
    "ONE2MANY",
    "ONE2ONE",
    "PROTO",
    "SCORES",
    "SIDE",
    "SIGMAS",
    "TASK_OF",
    "Branch",
    "FeatureLayout",
    "Layout",
    "RawHead",
    "anchors",
    "branches",
    "calibration",
    "capture_maps",
    "class_rows",
    "common_strides",
    "crop",
    "decode",
    "dense_maps",
    "dense_output",
    "detect_head",
    "distances",
    "find_head",
    "finish_towers",
    "first_conv",
    "frozen_statistics",
    "has_queries",
    "head_fault",
    "keep_branches",
    "last_conv",
    "layout",
    "level_scores",
    "map_channels",
    "map_head_classes",
    "on_levels",
    "pad",
    "pixels",
    "probe",
    "query_features",
    "read_grey",
    "stem_features",
    "take_images",
    "towers",
    "uncalibrated",
    "use_raw_decoder",
    "use_raw_head",
    "within_limits",
)
