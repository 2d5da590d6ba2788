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
        self.fixed_imgsz = max(self.original.imgsz) if self.original.imgsz else None

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
        imgsz (tuple[int, ...]): Height and width of the only images that it reads; empty if it reads all sizes.
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
        if not self.backend.metadata.get("names"):  # AutoBackend has invented 999 names
            raise ModelError(
                path,
                "lacks the class names that Ultralytics' export writes into it: export it again, or wrap it in an "
                "object with `names` and `teach`.",
            )
        self.names = check_class_names(self.backend.names)
        self.task = getattr(self.backend, "task", None) or "detect"
        self.input_channels = int(getattr(self.backend, "channels", 3) or 3)
        self.imgsz = (
            () if getattr(self.backend, "dynamic", False) else tuple(getattr(self.backend, "imgsz", None) or ())
        )
        self._stride = int(getattr(self.backend, "stride", 32) or 32)
        self._queries = self.backend.metadata.get("head") == "RTDETRDecoder"

    def teach(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return the detections in images; scale and pad the images and split the batch as the file requires."""
        dynamic = getattr(self.backend, "dynamic", False)
        images, ratio, (left, top) = self._fitted(images)
        batch = len(images) if dynamic else int(self.backend.metadata.get("batch", 1))
        offset = images.new_tensor((left, top) * 2)
        detections = [d for part in images.split(batch) for d in self._detect(part, batch)]
        return [{"boxes": (d.boxes - offset) / ratio, "probs": d.probs} for d in detections]

    def _fitted(self, images: Tensor) -> tuple[Tensor, float, tuple[int, int]]:
        """Return images of a size that the file reads, their scale, and where they begin from the left and top."""
        height, width = images.shape[-2:]
        if not self.imgsz:  # val images have multiples of 32 pixels, and some models need multiples of 64
            right, bottom = -width % self._stride, -height % self._stride
            return F.pad(images, (0, right, 0, bottom), value=PADDING), 1.0, (0, 0)
        size = self.imgsz
        if size == (height, width):
            return images, 1.0, (0, 0)
        ratio = min(size[0] / height, size[1] / width)
        inner = round(height * ratio), round(width * ratio)
        images = F.interpolate(images, size=inner, mode="bilinear", align_corners=False)
        top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        sides = (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top)
        return F.pad(images, sides, value=PADDING), ratio, (left, top)

    def _detect(self, images: Tensor, batch: int) -> list[Detections]:
        """Return the detections in at most `batch` images, in pixels of the file's input."""
        count = len(images)
        if count < batch:  # the file's batch size is fixed
            images = torch.cat((images, images.new_zeros(batch - count, *images.shape[1:])))
        out = self._run_file(images)
        out = torch.as_tensor(out[0] if isinstance(out, (list, tuple)) else out)[:count]
        out = out.to(images.device, torch.float32, copy=True)  # backends write the next result to the same memory
        nc = len(self.names)
        final = self._queries or self.backend.metadata.get("end2end")
        self.suppresses = bool(final) or out.shape[1:2] != (4 + nc,)
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

    def _run_file(self, images: Tensor) -> Any:
        """Return the file's output for a batch.

        Raises:
            KDError: If its runtime fails.
        """
        images = images.to(self.backend.device).contiguous()  # a format that runs on the CPU reads this memory
        if images.device.type == "cuda":  # and a runtime with a CUDA stream of its own does not wait for this one
            torch.cuda.current_stream(images.device).synchronize()
        try:
            return self.backend(images)
        except Exception as e:  # each format has its own runtime with its own errors
            if "out of memory" in str(e).lower():  # the trainer answers it with a smaller batch
                raise
            shape = tuple(images.shape)
            raise ModelError(self.path, f"failed for images of shape {shape}: {first_line(e)}") from e

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file, or of the files in a folder."""
        path, digest = Path(self.path), hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
        return digest.hexdigest()
