"""Detectors from other libraries: any object with `names` and `teach`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import KDError, ModelError, first_line
from ..outputs import FeatureLayout
from .answers import Reads
from .class_map import class_names
from .detections import Detections, Thresholds, most_confident
from .sets import SetTeacher

DETECTION_KEYS = ("boxes", "probs", "scores", "labels")


class CustomTeacher(SetTeacher):
    """Any object with `names` and `teach(images)`: a detector from another library.

    `teach` is given images of shape (B, C, H, W), float32 in [0, 1], RGB, on the training's device. It returns

    - a list with a dict for each image: "boxes" of shape (n, 4) as x1, y1, x2, y2 in pixels, and either "probs", class
      probabilities of shape (n, nc), or "scores" and "labels", each of shape (n,), as torchvision's detectors do; or
    - a dict with that list as "detections" and a list of feature maps as "features". One of the two is enough. The maps
      have shape (B, C, H, W) and follow the object's `strides` and `channels`.

    `names` are the class names, by index or as a list. If the object has `to(device)` and `eval()`, they are called
    before the first batch. `input_channels` is optional (3).

    Attributes:
        reads_grey (bool): Whether `teach` reads colour images and is given grey ones, as three equal channels.
    """

    reads_grey = False

    checks_at_once = True  # the user's code is checked in every batch
    own_precision = True
    float32_advice = "make teach() return finite values"

    def __init__(self, model: Any, source: str):
        """Hold an object with `names` and `teach`.

        Raises:
            KDError: If its names are not class names, or its `teach` is not callable.
        """
        names = class_names(model)
        if not names:
            raise ModelError(source, "needs `names`: its class names, in the order of their indices.")
        if not callable(model.teach):
            raise ModelError(source, "needs a method `teach(images)`, and its `teach` is not callable.")
        super().__init__(model, source, getattr(model, "task", "detect"), names)
        self.channels = getattr(model, "input_channels", 3)
        self.portable = False
        self._boxes_checked = False

    def inspect(self) -> None:
        """Read which feature maps the object offers.

        Raises:
            KDError: If its strides and channels do not match.
        """
        try:
            strides, channels = (tuple(map(int, getattr(self.original, name, ()))) for name in ("strides", "channels"))
        except (TypeError, ValueError) as e:
            raise ModelError(self.source, "needs `strides` and `channels` to be lists of whole numbers.") from e
        if len(strides) != len(channels):
            raise ModelError(self.source, f"has {len(strides)} strides and {len(channels)} channels.")
        self.maps = [FeatureLayout(strides, channels)] if strides else []

    def _prepare(self, device: torch.device, reads: Reads, dtype: torch.dtype, compile: bool | str) -> None:
        """Move the object to the device, if it has `to`; it chooses its own precision."""
        if callable(getattr(self.original, "to", None)):
            self.original.to(device)
        if callable(getattr(self.original, "eval", None)):
            self.original.eval()

    def _run(self, images: Tensor) -> dict[str, Any]:
        """Call `teach`, and return its result as a dict of tensors."""
        images = images.expand(-1, 3, -1, -1) if self.reads_grey else images
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            returned = self.original.teach(images.to(torch.float32, copy=True))  # many detectors normalise in place
        output = returned if isinstance(returned, Mapping) else {"detections": returned}
        detections = output.get("detections")
        if detections is None and not self.maps:
            raise ModelError(self.source, "returns no detections: teach() must return a dict for each image.")
        if detections is None:
            empty = images.new_zeros(0)
            detections = [{"boxes": empty, "probs": empty}] * len(images)
        try:
            detections = [self._image_tensors(each, images.device) for each in detections]
            features = [torch.as_tensor(f, device=images.device) for f in self._feature_list(output.get("features"))]
        except (TypeError, ValueError, RuntimeError) as e:
            if isinstance(e, KDError):
                raise
            raise ModelError(self.source, f"returned values that are not numbers: {first_line(e)}") from e
        self._check_shapes(features, detections, len(images))
        return {"detections": detections, "features": features}

    @staticmethod
    def _feature_list(features: Any) -> list[Any]:
        """Return feature maps as a list; an empty one for None."""
        if isinstance(features, Tensor):
            raise TypeError("features must be a list of maps, one for each stride, not one tensor")
        return [] if features is None else list(features)

    def _image_tensors(self, output: Any, device: torch.device) -> dict[str, Tensor]:
        """Return the detections of one image as tensors, boxes of shape (n, 4).

        Raises:
            KDError: If it is not a dict with the needed keys, or their lengths differ.
        """
        keys = set(output) if isinstance(output, Mapping) else set()
        if not ({"boxes", "probs"} <= keys or {"boxes", "scores", "labels"} <= keys):
            raise ModelError(
                self.source,
                f"returned {type(output).__name__ if not keys else sorted(keys)} for an image: "
                "return a dict with 'boxes' and 'probs', or with 'boxes', 'scores' and 'labels'; they may be empty.",
            )
        tensors = {k: torch.as_tensor(output[k], device=device).detach() for k in DETECTION_KEYS if k in keys}
        count = len(tensors["boxes"]) if tensors["boxes"].numel() else 0
        needed = {"boxes": (count, 4), "probs": (count, len(self.names)), "scores": (count,), "labels": (count,)}
        for key, values in tensors.items():
            if not values.numel() and not count:
                tensors[key] = values.new_zeros(needed[key])
            elif values.shape != needed[key]:
                raise ModelError(
                    self.source,
                    f"returned {count} boxes and '{key}' of shape {tuple(values.shape)} for an "
                    f"image; '{key}' needs shape {needed[key]}.",
                )
        return tensors

    def _check_shapes(self, features: list[Tensor], detections: list[dict[str, Tensor]], count: int) -> None:
        """Raise unless there are detections for each image, and a map for each stride of the object."""
        if len(detections) != count:
            raise ModelError(self.source, f"was given {count} images and returned {len(detections)} answers.")
        expected = [(count, c) for maps in self.maps for c in maps.channels]
        shapes = [tuple(f.shape) for f in features]
        if self._reads.features and ([s[:2] for s in shapes] != expected or any(len(s) != 4 for s in shapes)):
            raise ModelError(
                self.source,
                f"returned features of shape {shapes}; they need shape (images, channels, height,"
                f" width) with images and channels {expected}.",
            )

    def _tensors(self, raw: dict[str, Any]) -> list[Tensor]:
        """Return all outputs except class indices."""
        values = [d[k].float() for d in raw["detections"] for k in ("boxes", "probs", "scores") if k in d]
        return [*values, *raw["features"]]

    def _detections(
        self, raw: dict[str, Any], images: Tensor, thresholds: Thresholds
    ) -> tuple[list[Detections], list[list[Tensor]]]:
        """Return the object's detections, checked, and the feature maps that are read."""
        detections = raw["detections"]
        self._check_scores([d[k].flatten() for d in detections for k in ("probs", "scores") if k in d])
        if not self._boxes_checked:
            found = [d["boxes"][_confidence(d) > thresholds.conf] for d in detections]  # others may be padding
            self._check_boxes(torch.cat(found).float(), images)
        features = [self._read_maps(raw["features"], maps.strides) for maps in self.maps]
        return [self._image_detections(d, thresholds) for d in detections], features

    def _check_scores(self, scores: list[Tensor]) -> None:
        """Raise if scores lie outside [0, 1]; checked in every batch."""
        values = torch.cat(scores) if scores else torch.zeros(0)
        if len(values) and not bool(((values >= 0) & (values <= 1 + 1e-3)).all()):
            raise ModelError(
                self.source, "returned probabilities outside [0, 1]: apply a sigmoid or softmax in teach()."
            )

    def _check_boxes(self, boxes: Tensor, images: Tensor) -> None:
        """Raise if none of the first boxes covers a pixel: their unit or the order of their corners is wrong."""
        if not len(boxes):
            return
        height, width = images.shape[-2:]
        corners = boxes.clamp(min=0).minimum(boxes.new_tensor((width, height, width, height)))
        if not bool(((corners[:, 2:] - corners[:, :2]).amin(1) > 1).any()):
            raise KDError(
                f"teacher={self.source}: none of the first {len(boxes)} boxes covers a pixel of its image; return boxes"
                " as x1, y1, x2, y2 in pixels of the images that teach() was given."
            )
        self._boxes_checked = True

    def _image_detections(self, output: Mapping[str, Tensor], thresholds: Thresholds) -> Detections:
        """Return an image's detections, most confident first."""
        boxes = output["boxes"].float()
        if "probs" in output:
            return most_confident(boxes[None], output["probs"].float()[None], thresholds)[0]
        probs, labels = boxes.new_zeros(len(boxes), len(self.names)), output["labels"].long()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.names):
            raise ModelError(
                self.source,
                f"returned labels from {int(labels.min())} to {int(labels.max())} and has "
                f"`names` for {len(self.names)} classes.",
            )
        probs[torch.arange(len(boxes), device=boxes.device), labels] = output["scores"].float()
        return most_confident(boxes[None], probs[None], thresholds)[0]

    def fingerprint(self) -> str:
        """Return a hash of the text that the object's `fingerprint()` returns.

        Raises:
            KDError: If the object has no `fingerprint()`.
        """
        fingerprint: Callable[[], str] | None = getattr(self.original, "fingerprint", None)
        if not callable(fingerprint):
            raise ModelError(
                self.source,
                "has no `fingerprint()`, which identifies stored answers: add one whose text changes "
                "with the weights, or train without kd_cache.",
            )
        return hashlib.sha256(str(fingerprint()).encode()).hexdigest()


def _confidence(output: Mapping[str, Tensor]) -> Tensor:
    """Return the confidence of each detection of an image, shape (n,)."""
    return output["scores"] if "scores" in output else output["probs"].amax(1)
