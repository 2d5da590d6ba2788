"""Teachers in files that Ultralytics exported, or anybody in the same form."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.autobackend import AutoBackend, check_class_names
from ultralytics.utils.ops import xywh2xyxy

from ..errors import KDError, first_line
from .custom import CustomTeacher
from .detections import Detections, Sieve, suppress_boxes


class ExportedTeacher(CustomTeacher):
    """A detector in a file that Ultralytics' AutoBackend runs: ONNX, OpenVINO, TorchScript and others."""

    def __init__(self, path: str):
        """Open the file on the CPU; `prepare` opens it where it runs.

        Raises:
            KDError: If it cannot be run, or is no detector.
        """
        self.path = path
        model = _Exported(path, torch.device("cpu"))
        super().__init__(model, path)
        self.portable = True

    def _build(self, dtype: torch.dtype) -> None:
        """Open the file on the device."""
        if self._device.type != "cpu":
            self.original = _Exported(self.path, self._device)
        super()._build(dtype)


class _Exported:
    """An exported model that answers as `CustomTeacher` asks for."""

    def __init__(self, path: str, device: torch.device):
        """Open a file.

        Raises:
            KDError: If it cannot be run, or is no detector.
        """
        try:
            self.backend: Any = AutoBackend(model=path, device=device, verbose=False)
        except Exception as e:  # every format has a runtime of its own, with errors of its own
            raise KDError(f"teacher={path} cannot be run here: {first_line(e)}") from e
        self.path, self.device = path, device
        self.names = check_class_names(self.backend.names)
        self.task = getattr(self.backend, "task", None) or "detect"
        self.input_channels = int(getattr(self.backend, "channels", 3) or 3)

    def teach(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return the detections in images, which are resized and portioned as the file wants them."""
        height, width = images.shape[-2:]
        fixed = not getattr(self.backend, "dynamic", False)
        size = tuple(self.backend.imgsz) if fixed and getattr(self.backend, "imgsz", None) else (height, width)
        if size != (height, width):
            images = torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
        batch = int(self.backend.metadata.get("batch", 1)) if fixed else len(images)
        scale = images.new_tensor((width / size[1], height / size[0]) * 2)
        return [
            {"boxes": d.boxes * scale, "probs": d.probs} for part in images.split(batch) for d in self._ask(part, batch)
        ]

    def _ask(self, images: Tensor, batch: int) -> list[Detections]:
        """Return the detections in at most `batch` images, in pixels of what the file sees."""
        count = len(images)
        if count < batch:  # its batch size is fixed
            images = torch.cat((images, images.new_zeros(batch - count, *images.shape[1:])))
        out = self.backend(images)
        out = torch.as_tensor(out[0] if isinstance(out, (list, tuple)) else out)[:count].float().to(images.device)
        nc = len(self.names)
        if out.shape[1:2] == (4 + nc,):  # (B, 4 + nc, A): before suppression
            out = out.transpose(1, 2)
            return suppress_boxes(xywh2xyxy(out[..., :4]), out[..., 4:], Sieve())
        if out.shape[-1:] != (6,):
            raise KDError(f"teacher={self.path} returns an array of shape {tuple(out.shape)}, which is no detector's.")
        found = []
        for image in out:  # (B, n, 6): box, score and class of those that are left
            probs = image.new_zeros(len(image), nc)
            probs[torch.arange(len(image)), image[:, 5].long().clamp(0, nc - 1)] = image[:, 4]
            found.append(Detections(image[:, :4], probs))
        return found

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file, or of the files in a folder."""
        path, digest = Path(self.path), hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
        return digest.hexdigest()
