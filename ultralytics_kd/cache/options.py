"""The options of `yolo-kd cache`: names, defaults and checks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ..config.arguments import as_list
from ..config.checks import check_plain, whole_number
from ..errors import KDError, KDTypeError

# Options that only `yolo-kd cache` has, with their defaults
CACHE_ONLY: dict[str, Any] = {
    "kd_cache_imgsz": None,  # None: kd_teacher_imgsz if it is given, else imgsz
    "kd_cache_conf": 0.05,
    "kd_cache_iou": 0.7,
    "kd_cache_topk": 100,
    # Ultralytics' default augmentation (scale=0.5) scales objects by 0.5 to 1.5
    "kd_cache_scales": [0.5, 0.7, 1.0, 1.4],
    "kd_cache_flip": False,
    "kd_cache_shard": 256,
    "ray": False,
}
# Arguments of a training that `yolo-kd cache` takes too
USED = (
    *("data", "imgsz", "batch", "workers", "device", "fraction", "kd_cache", "kd_precision", "teacher", "project"),
    *("kd_trust_teacher", "kd_classes", "kd_teacher_imgsz", "kd_unlabeled"),
)


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a cache, checked and converted to their types.

    Args:
        options (Mapping): A value for every option in `CACHE_ONLY`.

    Raises:
        KDError: If a value is out of range.
        KDTypeError: If a value has the wrong type.
    """
    check_plain(options)
    checked = dict(options)
    for name in ("kd_cache_topk", "kd_cache_shard"):
        whole_number(name, checked[name])
    if checked["kd_cache_imgsz"] is not None:
        whole_number("kd_cache_imgsz", checked["kd_cache_imgsz"])
    for name in ("kd_cache_conf", "kd_cache_iou"):
        checked[name] = _number(name, checked[name])
        if not 0 <= checked[name] < 1:
            raise KDError(f"'{name}={checked[name]}' is an invalid value: it must be 0 or more and less than 1.")
    if not isinstance(checked["kd_cache_flip"], bool):
        raise KDTypeError(f"'kd_cache_flip={checked['kd_cache_flip']}' must be True or False.")
    scales = as_list(checked["kd_cache_scales"])
    checked["kd_cache_scales"] = sorted({round(_number("kd_cache_scales", s), 4) for s in scales})
    if not scales or not all(0.1 <= s <= 10 for s in checked["kd_cache_scales"]):
        raise KDError(f"'kd_cache_scales={scales}' is an invalid value: give numbers between 0.1 and 10.")
    if not isinstance(checked["ray"], bool):
        whole_number("ray", checked["ray"])
    return checked


def _number(name: str, value: Any) -> float:
    """Return a finite number as float.

    Raises:
        KDTypeError: If the value is not a finite number.
    """
    most = sys.float_info.max
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -most <= value <= most:
        raise KDTypeError(f"'{name}={value}' is of invalid type or value: it must be a number.")
    return float(value)
