"""Teachers whose answer is a set of detections: RT-DETR, exported files, and detectors from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.autobackend import AutoBackend, check_class_names
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywhn

from .. import predictions
from ..assignment import SetAnswer
from ..detections import Detections, Sieve, suppress_boxes, surest
from ..errors import KDError, first_line
from ..lean import fused_copy, placed
from ..predictions import FeatureLayout
from .base import Teacher
from .scored import CONF, TOPK, ScoredDetector

DETECTION_KEYS = ("boxes", "probs", "scores", "labels")
QUERIES = Sieve(iou=1.0, topk=300)  # a set needs no suppression


class SetTeacher(Teacher):
    """A detector that answers with detections, whatever made them."""

    sieve: Sieve = Sieve()

    def __call__(self, images: Tensor) -> SetAnswer:
        """Return the detections in the student's classes."""
        assert self.classes is not None
        found, features = self.answer(images, self.sieve)
        return as_set(found, features, self.classes, self.sieve.conf, images)

    def validator_model(self, nc: int, names: Mapping[int, str]) -> Any:
        """Return a model that answers with the detections, and from now on with those that it is hardly sure of too."""
        self.sieve = replace(self.sieve, conf=CONF, topk=TOPK)
        return ScoredDetector(self, nc, names)


def as_set(
    found: list[Detections], features: list[list[Tensor]], classes: Any, conf: float, images: Tensor
) -> SetAnswer:
    """Return detections as an answer in the student's classes; those of other classes are left out.

    Args:
        found (list[Detections]): Detections per image, in pixels.
        features (list[list[Tensor]]): Feature maps of every model behind them.
        classes (ClassMap): Match of the detections' classes to the student's.
        conf (float): Least confidence of a taught class.
        images (Tensor): The images, shape (B, C, H, W).
    """
    height, width = images.shape[-2:]
    boxes = torch.cat([d.boxes for d in found]).float()
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor((width, height, width, height)))  # as labels end at the border
    probs = classes.map_scores(torch.cat([d.probs for d in found]).float())
    counts = torch.tensor([len(d.boxes) for d in found], device=boxes.device)
    index = torch.arange(len(found), device=boxes.device, dtype=torch.float32).repeat_interleave(counts)
    there = (boxes[:, 2:] - boxes[:, :2]).amin(1) > 0 if len(boxes) else index.bool()
    kept = ((probs.amax(1) > conf) & there).nonzero().flatten() if len(probs) else index.long()
    shares = xyxy2xywhn(boxes[kept], w=width, h=height)
    return SetAnswer(shares, probs[kept], index[kept], classes.taught(images.device), features)


class QueryTeacher(SetTeacher):
    """RT-DETR: its queries are a set of soft targets.

    Attributes:
        model (nn.Module | None): What runs.
    """

    sieve = QUERIES
    model: Any = None

    def inspect(self) -> None:
        """Look at the decoder and its inputs.

        Raises:
            KDError: If there is not a name for each class.
        """
        if self.maps:
            return
        self.channels = predictions.first_conv(self.original).in_channels
        self._check_names(predictions.find_head(self.original).nc)
        self.maps = [predictions.query_features(self.original, self.channels)]

    def _build(self, dtype: torch.dtype) -> None:
        """Make the model that runs, in a precision."""
        self.model = fused_copy(self.original)
        predictions.read_queries(self.model)
        self.model = placed(self.model, self._device, dtype, self._compile)
        super()._build(dtype)

    def _run(self, images: Tensor) -> dict[str, Any]:
        """Return queries and maps, in the model's own precision whatever autocast says."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.model(images.to(self.dtype))

    @staticmethod
    def _numbers(answer: dict[str, Any]) -> list[Tensor]:
        """Return all tensors of an answer."""
        return [answer["boxes"], answer["scores"], *answer["feats"]]

    def answer(self, images: Tensor, sieve: Sieve) -> tuple[list[Detections], list[list[Tensor]]]:
        """Return the queries that are confident of something, in pixels."""
        out = self._run_checked(images)
        height, width = images.shape[-2:]
        scale = images.new_tensor((width, height, width, height), dtype=torch.float32)
        boxes, probs = xywh2xyxy(out["boxes"].float()) * scale, out["scores"].float().sigmoid()
        found = [surest(b, p, sieve) for b, p in zip(boxes, probs)]
        return found, [self._wanted(out["feats"], self.maps[0].strides)]

    def _let_go(self) -> None:
        """Drop what `prepare` made."""
        self.model = None


class CustomTeacher(SetTeacher):
    """Any object with `names` and `teach(images)`: a detector from elsewhere.

    `teach` is given images of shape (B, C, H, W), float32 in [0, 1], RGB, on the training's device, and returns

    - a list with a dict for each image: "boxes" of shape (n, 4) as x1, y1, x2, y2 in pixels, and either "probs", class
      probabilities of shape (n, nc), or "scores" and "labels", each of shape (n,), as torchvision's detectors do; or
    - a dict with such a list as "detections", and as "features" a list of maps, each of shape (B, C, H, W), of the
      `strides` and `channels` that the object names. One of the two is enough.

    `names` are the class names, by index or as a list. An object that has them is also asked for `to(device)` before
    the first batch, and for `input_channels` (3).
    """

    def __init__(self, model: Any, source: str):
        """Take note of an object with `names` and `teach`.

        Raises:
            KDError: If its names are no names of classes.
        """
        names = class_names(model)
        if not names:
            raise KDError(f"teacher={source} needs `names`: those of its classes, in the order of their numbers.")
        super().__init__(model, source, getattr(model, "task", "detect"), names)
        self.channels = getattr(model, "input_channels", 3)
        self.portable = False

    def inspect(self) -> None:
        """Take note of the feature maps that the object offers.

        Raises:
            KDError: If their strides and channels do not go together.
        """
        strides, channels = (tuple(getattr(self.original, name, ())) for name in ("strides", "channels"))
        if len(strides) != len(channels):
            raise KDError(f"teacher={self.source} names {len(strides)} strides and {len(channels)} channels.")
        self.maps = [FeatureLayout(strides, channels)] if strides else []

    def _build(self, dtype: torch.dtype) -> None:
        """Move the object to the device, if it can be; its precision is its own affair."""
        if callable(getattr(self.original, "to", None)):
            self.original.to(self._device)
        if callable(getattr(self.original, "eval", None)):
            self.original.eval()
        super()._build(torch.float32)

    def _run(self, images: Tensor) -> dict[str, Any]:
        """Return what the object says, as a dict."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            said = self.original.teach(images.float())
        whole = said if isinstance(said, Mapping) else {"detections": said}
        found, features = whole.get("detections"), list(whole.get("features") or ())
        if found is None and not self.maps:
            raise KDError(f"teacher={self.source} returns no detections: teach() must return a dict for each image.")
        if found is not None:
            found = [self._tensors(each, images.device) for each in found]
        return {"detections": found, "features": features}

    def _tensors(self, said: Any, device: torch.device) -> dict[str, Tensor]:
        """Return what the object says about an image as tensors.

        Raises:
            KDError: If it is no dict of the keys that are needed.
        """
        keys = set(said) if isinstance(said, Mapping) else set()
        if not ({"boxes", "probs"} <= keys or {"boxes", "scores", "labels"} <= keys):
            raise KDError(
                f"teacher={self.source} answers an image with {type(said).__name__ if not keys else sorted(keys)}: a "
                "dict with 'boxes' and 'probs', or 'boxes', 'scores' and 'labels', is needed, empty ones included."
            )
        return {k: torch.as_tensor(v, device=device).detach() for k, v in said.items() if k in DETECTION_KEYS}

    @staticmethod
    def _numbers(answer: dict[str, Any]) -> list[Tensor]:
        """Return all tensors of an answer that are no indices."""
        found = [d[k].float() for d in answer["detections"] or () for k in ("boxes", "probs", "scores") if k in d]
        return [*found, *answer["features"]]

    def answer(self, images: Tensor, sieve: Sieve) -> tuple[list[Detections], list[list[Tensor]]]:
        """Return what the object says, checked."""
        said = self._run_checked(images)
        found = said["detections"]
        if found is None:
            found = [{"boxes": images.new_zeros(0, 4), "probs": images.new_zeros(0, len(self.names))} for _ in images]
        if len(found) != len(images):
            raise KDError(f"teacher={self.source} was given {len(images)} images and answers {len(found)}.")
        shapes = [(f.shape[0], f.shape[1]) for f in said["features"]]
        named = [(len(images), c) for maps in self.maps for c in maps.channels]
        if shapes != named and self._reads.features:
            raise KDError(f"teacher={self.source} returns features of (images, channels) {shapes}, not {named}.")
        features = [self._wanted(said["features"], maps.strides) for maps in self.maps]
        self._check_values([d[k].flatten() for d in found for k in ("probs", "scores") if k in d])
        return [self._detections(d, sieve) for d in found], features

    def _check_values(self, values: list[Tensor]) -> None:
        """Raise if a probability is none: logits, or no number, in whatever batch."""
        given = torch.cat(values) if values else torch.zeros(0)
        if len(given) and not bool(((given >= 0) & (given <= 1 + 1e-3)).all()):
            raise KDError(f"teacher={self.source} answers with probabilities that are not between 0 and 1.")

    def _detections(self, said: Mapping[str, Tensor], sieve: Sieve) -> Detections:
        """Return an image's detections, most confident first."""
        boxes = said["boxes"].float().reshape(-1, 4)
        if "probs" in said:
            probs = said["probs"].float() if len(boxes) else boxes.new_zeros(0, len(self.names))
        else:
            probs = boxes.new_zeros(len(boxes), len(self.names))
            known = said["labels"].long()
            if len(known) and not 0 <= int(known.min()) <= int(known.max()) < len(self.names):
                raise KDError(
                    f"teacher={self.source} answers with labels from {int(known.min())} to {int(known.max())} and "
                    f"names {len(self.names)} classes."
                )
            probs[torch.arange(len(boxes), device=boxes.device), known] = said["scores"].float()
        if probs.shape != (len(boxes), len(self.names)):
            raise KDError(
                f"teacher={self.source} answers with {len(boxes)} boxes and probabilities of shape "
                f"{tuple(probs.shape)}, where {(len(boxes), len(self.names))} is needed."
            )
        return surest(boxes, probs, sieve)

    def fingerprint(self) -> str:
        """Return the object's own `fingerprint()`.

        Raises:
            KDError: If it has none.
        """
        own: Callable[[], str] | None = getattr(self.original, "fingerprint", None)
        if own is None:
            raise KDError(
                f"teacher={self.source} has no `fingerprint()`, a text that changes with its weights, by which stored "
                "answers know whose they are: add one, or train without kd_cache."
            )
        return hashlib.sha256(str(own()).encode()).hexdigest()


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


def class_names(model: Any) -> dict[int, str]:
    """Return a model's class names by index, from whatever form they have; none if there are none."""
    names = getattr(model, "names", None) or {}
    if isinstance(names, Sequence) and not isinstance(names, str):
        names = dict(enumerate(names))
    try:
        return check_class_names(names)
    except (KeyError, ValueError, TypeError):  # no names, or indices with gaps: `inspect` counts them
        return {}
