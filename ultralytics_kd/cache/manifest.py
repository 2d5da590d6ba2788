"""The manifest of a cache: its teachers and settings, and the check of a manifest from a file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from typing import Any

FORMAT = 2
MAX_SIDE = 2**16  # pixels
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Manifest:
    """The teachers of a cache and the settings that they answered with.

    Attributes:
        teachers (list[dict[str, str]]): Name and SHA-256 of each teacher's weights.
        names (dict[int, str]): Classes of the stored probabilities.
        imgsz (int): Image size in pixels that the teachers saw at scale 1.
        conf (float): Lowest confidence of a detection that is kept.
        iou (float): IoU above which two detections count as one object.
        topk (int): Largest number of detections per image and scale.
        scales (list[float]): Factors of `imgsz` at which the teachers answered, ascending.
        flip (bool): Whether answers to mirrored images were averaged in.
        precision (str): Precision that the teachers ran in, one of `PRECISIONS`.
        channels (int): Channels of the images.
        versions (dict[str, str]): Releases that made the cache, for information only.
        format (int): Version of the file layout.
    """

    teachers: list[dict[str, str]]
    names: dict[int, str]
    imgsz: int
    conf: float
    iou: float
    topk: int
    scales: list[float]
    flip: bool
    precision: str
    channels: int = 3
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def differences(self, other: Manifest) -> list[str]:
        """Return one phrase per field that differs from a requested manifest, but for `versions` and teachers' names.

        Args:
            other (Manifest): The requested settings.
        """
        phrases = []
        for f in fields(self):
            stored, requested = getattr(self, f.name), getattr(other, f.name)
            if f.name == "versions" or stored == requested:
                continue
            if f.name == "teachers":
                if [t["sha256"] for t in stored] == [t["sha256"] for t in requested]:
                    continue
                stored, requested = (
                    [f"{t['name']} ({t['sha256'][:8]})" for t in teachers] for teachers in (stored, requested)
                )
            phrases.append(f"{f.name}={stored} is stored, {requested} requested")
        return phrases


def check_manifest(manifest: Manifest) -> Manifest:
    """Return a manifest that was read from a file, if all of its fields are valid.

    Args:
        manifest (Manifest): The manifest, with fields of any type.

    Raises:
        ValueError: If a field is invalid.
    """
    m = manifest
    valid = {
        "teachers": isinstance(m.teachers, list)
        and m.teachers != []
        and all(isinstance(t[k], str) and t[k] for t in m.teachers for k in ("name", "sha256")),
        "names": list(m.names) == list(range(len(m.names)))
        and m.names != {}
        and all(isinstance(name, str) for name in m.names.values()),
        "imgsz": _is_count(m.imgsz, MAX_SIDE),
        "conf": _is_number(m.conf, 0, 1),
        "iou": _is_number(m.iou, 0, 1),
        "topk": _is_count(m.topk, sys.maxsize),
        "scales": isinstance(m.scales, list)
        and m.scales != []
        and all(_is_number(s, 0.1, 10) for s in m.scales)
        and m.scales == sorted({*m.scales}),
        "flip": isinstance(m.flip, bool),
        "precision": m.precision in PRECISIONS,
        "channels": _is_count(m.channels, MAX_SIDE),
        "versions": isinstance(m.versions, dict) and all(isinstance(v, str) for v in m.versions.values()),
    }
    for name, is_valid in valid.items():
        if not is_valid:
            raise ValueError(f"'{name}' is invalid")
    return manifest


def _is_count(value: Any, most: int) -> bool:
    """Return whether a value is a whole number from 1 to `most`."""
    return type(value) is int and 1 <= value <= most


def _is_number(value: Any, low: float, high: float) -> bool:
    """Return whether a value is a number from `low` to `high`."""
    return type(value) in {int, float} and low <= value <= high
