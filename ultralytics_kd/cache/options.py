"""The options of a cache: names, defaults and checks, and the command that makes one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER

from ..config.arguments import check_plain, check_values, listed, whole_number
from ..config.registration import register_arguments
from ..errors import KDError, KDTypeError
from .build import build_cache
from .store import Store

CACHE_ONLY: dict[str, Any] = {
    "kd_cache_imgsz": None,  # imgsz
    "kd_cache_conf": 0.05,
    "kd_cache_iou": 0.7,
    "kd_cache_topk": 100,
    # Half to one and a half times the size is what Ultralytics' default augmentation (scale=0.5) makes of an object
    "kd_cache_scales": [0.5, 0.7, 1.0, 1.4],
    "kd_cache_flip": False,
    "kd_cache_shard": 256,
    "ray": False,
}
USED = (
    *("data", "imgsz", "batch", "workers", "device", "fraction", "kd_cache", "kd_precision", "teacher", "project"),
    "kd_trust_teacher",
)


def make_cache(given: Mapping[str, Any]) -> Store:
    """Answer the training images of a data set with one teacher or several, as `yolo-kd cache` does.

    Args:
        given (Mapping): `teacher`, `data`, the options of `CACHE_ONLY`, and of Ultralytics' arguments those in `USED`.

    Returns:
        (Store): The cache.

    Raises:
        KDError: If an argument is missing, unknown or invalid, or the cache cannot be made.
    """
    check_plain(given)
    check_values({"kd_cache": given.get("kd_cache") or True})
    for name in ("teacher", "data"):
        if not given.get(name):
            raise KDError(f"'yolo-kd cache' needs {name}=PATH.")
    for name in given:
        if name not in CACHE_ONLY and name not in USED:
            raise KDError(f"'{name}' is no argument of 'yolo-kd cache': they are {', '.join((*USED, *CACHE_ONLY))}.")
    options = check_options({**CACHE_ONLY, **{k: v for k, v in given.items() if k in CACHE_ONLY}})
    teachers = listed(given["teacher"])
    sources = teachers if isinstance(teachers, list) else [teachers]
    plain = {k: v for k, v in given.items() if k in USED and k not in {"teacher", "kd_cache"}}
    register_arguments()
    args = get_cfg(overrides={"task": "detect", "mode": "train", **plain})
    args.kd_cache = given.get("kd_cache") or True
    whole_number("batch", args.batch)
    store = build_cache(args, list(sources), options)
    LOGGER.info(f"Train with them: yolo-kd train data={given['data']} teacher=... kd_cache={store.folder}")
    return store


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a cache, checked and in their types.

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
    scales = checked["kd_cache_scales"]
    scales = scales if isinstance(scales, (list, tuple)) else [scales]
    checked["kd_cache_scales"] = sorted({round(_number("kd_cache_scales", s), 4) for s in scales})
    if not scales or not all(0.1 <= s <= 10 for s in checked["kd_cache_scales"]):
        raise KDError(f"'kd_cache_scales={scales}' is an invalid value: scales lie between 0.1 and 10.")
    if not isinstance(checked["ray"], bool):
        whole_number("ray", checked["ray"])
    return checked


def _number(name: str, value: Any) -> float:
    """Return a finite number as float."""
    most = sys.float_info.max
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -most <= value <= most:
        raise KDTypeError(f"'{name}={value}' is of invalid type or value: it must be a number.")
    return float(value)
