"""Which classes a student keeps (`kd_keep`), and what a training with kept classes cannot have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import KDError, KDTypeError
from .named_files import is_average

OLD, DATA = "old", "data"  # whose classes come first in the student's
ORDERS = (OLD, DATA)


def check_keep(cfg: Mapping[str, Any]) -> None:
    """Check the values of `kd_keep` and `kd_keep_data` on their own.

    Args:
        cfg (Mapping): Arguments.

    Raises:
        KDTypeError: If one of them has an invalid value.
    """
    keep, data = cfg.get("kd_keep"), cfg.get("kd_keep_data")
    if keep is not None and not isinstance(keep, bool) and keep not in ORDERS:
        raise KDTypeError(
            f"'kd_keep={keep}' is invalid: it must be True, False, or whose classes come first: old, data."
        )
    if data is not None and not (isinstance(data, (str, Path)) and str(data).strip()):
        raise KDTypeError(f"'kd_keep_data={data}' is invalid: give the data.yaml of the old classes.")


def first_classes(keep: bool | str) -> str:
    """Return whose classes come first in the student's: "old" or "data".

    Args:
        keep (bool | str): The checked argument, which is on.
    """
    return OLD if keep is True else str(keep)


def check_keeping(cfg: Mapping[str, Any]) -> None:
    """Check the other arguments of a training that keeps classes; if it keeps none, check only `kd_keep_data`.

    Args:
        cfg (Mapping): All arguments of the training, with a teacher.

    Raises:
        KDError: If the training cannot keep classes, or `kd_keep_data` is given without `kd_keep`.
    """
    if not cfg.get("kd_keep"):
        if cfg.get("kd_keep_data") is not None:
            raise KDError(f"'kd_keep_data={cfg['kd_keep_data']}' has no effect without kd_keep: add kd_keep=True.")
        return
    given = f"'kd_keep={cfg['kd_keep']}'"
    if cfg["task"] != "detect":
        raise KDError(f"{given} is supported for detect, not for task '{cfg['task']}': drop it.")
    for name in ("single_cls", "classes"):
        if cfg.get(name) is not None and cfg[name] is not False:  # class 0 equals False
            raise KDError(f"{given} and '{name}' exclude each other: give a data.yaml that names what it labels.")
    if cfg.get("pretrained") not in (None, True):
        raise KDError(
            f"{given} keeps the weights of model=, and pretrained={cfg['pretrained']} replaces them: drop it."
        )
    if cfg.get("cls_remap") is False:
        raise KDError(f"{given} needs the weights of known classes, and cls_remap=False drops them: drop it.")
    if is_average(cfg.get("teacher")):
        raise KDError(
            f"{given} needs a teacher that does not forget, and teacher=ema changes with the student: name one."
        )
    if not cfg.get("kd_cls"):
        raise KDError(f"{given} leaves the kept classes to the teacher, and with kd_cls=0 it does not teach them.")
    if cfg.get("kd_weight") is not None:
        raise KDError(
            f"{given} and 'kd_weight' exclude each other: it turns off terms that do not agree with the labels, and "
            "these teach what the labels lack."
        )
    if cfg.get("kd_schedule") not in (None, "constant"):
        raise KDError(
            f"{given} and kd_schedule={cfg['kd_schedule']} exclude each other: as the terms fade, nothing teaches the "
            "kept classes: drop it."
        )
