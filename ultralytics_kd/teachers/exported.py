"""Teachers in exported files, from Ultralytics or in the same format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.nn.autobackend import AutoBackend, check_class_names
from ultralytics.utils.ops import xywh2xyxy

from ..errors import ModelError, first_line
from .answers import Reads
from .base import Teacher
from .custom import CustomTeacher
from .detections import Detections, Thresholds, suppress_boxes

PADDING = 114 / 255  # the grey with which Ultralytics pads images


class ExportedTeacher(CustomTeacher):
    """A detector in a file that Ultralytics' AutoBackend runs: ONNX, OpenVINO, TorchScript and others."""

    float32_advice = Teacher.float32_advice

    def __init__(self, path: str):
        """Open the file on the CPU; `prepare` opens it on the device where it runs.

        Raises:
            KDError: If it cannot be run, or is not a detector.
        """
        self.path = path
        super().__init__(_ExportedModel(path, torch.device("cpu")), path)
        self.portable = True

    def _prepare(self, device: torch.device, reads: Reads, dtype: torch.dtype, compile: bool | str) -> None:
        """Open the file on the device."""
        if device.type != "cpu":
            self.original = _ExportedModel(self.path, device)

    def _image_detections(self, output: Mapping[str, Tensor], thresholds: Thresholds) -> Detections:
        """Return an image's detections, most confident first, after suppression if the file does none."""
        if self.original.suppresses:
            return super()._image_detections(output, thresholds)
        return suppress_boxes(output["boxes"].float()[None], output["probs"].float()[None], thresholds)[0]


class _ExportedModel:
    """An exported model with the methods that `CustomTeacher` needs.

    Attributes:
        suppresses (bool): Whether its last detections were final, and not boxes before suppression.
    """

    suppresses = True

    def __init__(self, path: str, device: torch.device):
        """Open a file.

        Raises:
            KDError: If it cannot be run, or is not a detector.
        """
        try:
            self.backend: Any = AutoBackend(model=path, device=device, verbose=False)
        except Exception as e:  # each format has its own runtime with its own errors
            raise ModelError(path, f"cannot be run here: {first_line(e)}") from e
        self.path = path
        self.names = check_class_names(self.backend.names)
        self.task = getattr(self.backend, "task", None) or "detect"
        self.input_channels = int(getattr(self.backend, "channels", 3) or 3)
        self._queries = self.backend.metadata.get("head") == "RTDETRDecoder"

    def teach(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return the detections in images; scale and pad the images and split the batch as the file requires."""
        height, width = images.shape[-2:]
        fixed = not getattr(self.backend, "dynamic", False)
        size = tuple(self.backend.imgsz) if fixed and getattr(self.backend, "imgsz", None) else (height, width)
        ratio, left, top = 1.0, 0, 0
        if size != (height, width):
            ratio = min(size[0] / height, size[1] / width)
            inner = round(height * ratio), round(width * ratio)
            images = F.interpolate(images, size=inner, mode="bilinear", align_corners=False)
            top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
            sides = (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top)
            images = F.pad(images, sides, value=PADDING)
        batch = int(self.backend.metadata.get("batch", 1)) if fixed else len(images)
        offset = images.new_tensor((left, top) * 2)
        detections = [d for part in images.split(batch) for d in self._detect(part, batch)]
        return [{"boxes": (d.boxes - offset) / ratio, "probs": d.probs} for d in detections]

    def _detect(self, images: Tensor, batch: int) -> list[Detections]:
        """Return the detections in at most `batch` images, in pixels of the file's input."""
        count = len(images)
        if count < batch:  # the file's batch size is fixed
            images = torch.cat((images, images.new_zeros(batch - count, *images.shape[1:])))
        # A format that runs on the CPU reads the memory of its input
        out = self.backend(images.to(self.backend.device).contiguous())
        out = torch.as_tensor(out[0] if isinstance(out, (list, tuple)) else out)[:count]
        out = out.to(images.device, torch.float32, copy=True)  # backends write the next result to the same memory
        nc = len(self.names)
        self.suppresses = out.shape[1:2] != (4 + nc,)
        if not self.suppresses:  # (B, 4 + nc, A)
            out = out.transpose(1, 2)
            return [Detections(xywh2xyxy(rows[:, :4]), rows[:, 4:]) for rows in out]
        if out.shape[-1:] != (6,):
            raise ModelError(self.path, f"returned an array of shape {tuple(out.shape)}: it is not a detector.")
        if self._queries:  # its boxes are x, y, w, h as shares of the image
            height, width = images.shape[-2:]
            out[..., :4] = xywh2xyxy(out[..., :4]) * out.new_tensor((width, height) * 2)
        detections = []
        for rows in out:  # (B, n, 6): box, score and class after suppression
            probs = rows.new_zeros(len(rows), nc)
            probs[torch.arange(len(rows)), rows[:, 5].long().clamp(0, nc - 1)] = rows[:, 4]
            detections.append(Detections(rows[:, :4], probs))
        return detections

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file, or of the files in a folder."""
        path, digest = Path(self.path), hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
        return digest.hexdigest()
