"""Detectors from elsewhere: any object with `names` and `teach`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import KDError, first_line
from ..outputs import FeatureLayout
from .class_map import class_names
from .detections import Detections, Sieve, surest
from .sets import SetTeacher

DETECTION_KEYS = ("boxes", "probs", "scores", "labels")


class CustomTeacher(SetTeacher):
    """Any object with `names` and `teach(images)`: a detector from elsewhere.

    `teach` is given images of shape (B, C, H, W), float32 in [0, 1], RGB, on the training's device, and returns

    - a list with a dict for each image: "boxes" of shape (n, 4) as x1, y1, x2, y2 in pixels, and either "probs", class
      probabilities of shape (n, nc), or "scores" and "labels", each of shape (n,), as torchvision's detectors do; or
    - a dict with such a list as "detections", and as "features" a list of maps, each of shape (B, C, H, W), of the
      `strides` and `channels` that the object names. One of the two is enough.

    `names` are the class names, by index or as a list. An object that has them is also asked for `to(device)` and
    `eval()` before the first batch, and for `input_channels` (3).
    """

    waits = True  # what a stranger says is looked at in every batch
    own_precision = True

    def __init__(self, model: Any, source: str):
        """Take note of an object with `names` and `teach`.

        Raises:
            KDError: If its names are no names of classes, or it cannot be asked.
        """
        names = class_names(model)
        if not names:
            raise KDError(f"teacher={source} needs `names`: those of its classes, in the order of their numbers.")
        if not callable(model.teach):
            raise KDError(f"teacher={source} needs `teach(images)`, and its `teach` cannot be called.")
        super().__init__(model, source, getattr(model, "task", "detect"), names)
        self.channels = getattr(model, "input_channels", 3)
        self.portable = False
        self._seen_boxes = False

    def inspect(self) -> None:
        """Take note of the feature maps that the object offers.

        Raises:
            KDError: If their strides and channels do not go together.
        """
        try:
            strides, channels = (tuple(map(int, getattr(self.original, name, ()))) for name in ("strides", "channels"))
        except (TypeError, ValueError) as e:
            raise KDError(f"teacher={self.source} needs `strides` and `channels` to be lists of whole numbers.") from e
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
        """Return what the object says, as a dict of tensors."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            said = self.original.teach(images.to(torch.float32, copy=True))  # it may change them, as many do
        whole = said if isinstance(said, Mapping) else {"detections": said}
        found = whole.get("detections")
        if found is None and not self.maps:
            raise KDError(f"teacher={self.source} returns no detections: teach() must return a dict for each image.")
        if found is None:
            none = images.new_zeros(0)
            found = [{"boxes": none, "probs": none}] * len(images)
        try:
            found = [self._tensors(each, images.device) for each in found]
            features = [torch.as_tensor(f, device=images.device) for f in self._given(whole.get("features"))]
        except (TypeError, ValueError, RuntimeError) as e:
            if isinstance(e, KDError):
                raise
            raise KDError(f"teacher={self.source} answers with what is no array of numbers: {first_line(e)}") from e
        self._check_shapes(features, found, len(images))
        return {"detections": found, "features": features}

    @staticmethod
    def _given(features: Any) -> list[Any]:
        """Return feature maps as a list, if it is one that was given."""
        if isinstance(features, Tensor):
            raise TypeError("features are a list of maps, one for each stride, and not one tensor")
        return [] if features is None else list(features)

    def _tensors(self, said: Any, device: torch.device) -> dict[str, Tensor]:
        """Return what the object says about an image as tensors, boxes of shape (n, 4).

        Raises:
            KDError: If it is no dict of the keys that are needed, or their lengths do not go together.
        """
        keys = set(said) if isinstance(said, Mapping) else set()
        if not ({"boxes", "probs"} <= keys or {"boxes", "scores", "labels"} <= keys):
            raise KDError(
                f"teacher={self.source} answers an image with {type(said).__name__ if not keys else sorted(keys)}: a "
                "dict with 'boxes' and 'probs', or 'boxes', 'scores' and 'labels', is needed, empty ones included."
            )
        found = {k: torch.as_tensor(said[k], device=device).detach() for k in DETECTION_KEYS if k in keys}
        count = len(found["boxes"]) if found["boxes"].numel() else 0
        needed = {"boxes": (count, 4), "probs": (count, len(self.names)), "scores": (count,), "labels": (count,)}
        for key, values in found.items():
            if not values.numel() and not count:
                found[key] = values.new_zeros(needed[key])
            elif values.shape != needed[key]:
                raise KDError(
                    f"teacher={self.source} answers an image with {count} boxes and '{key}' of shape "
                    f"{tuple(values.shape)}, where {needed[key]} is needed."
                )
        return found

    def _check_shapes(self, features: list[Tensor], found: list[dict[str, Tensor]], count: int) -> None:
        """Raise if there is not an answer for each image, or a map for each stride that the object names."""
        if len(found) != count:
            raise KDError(f"teacher={self.source} was given {count} images and answers {len(found)}.")
        named = [(count, c) for maps in self.maps for c in maps.channels]
        shapes = [tuple(f.shape) for f in features]
        if self._reads.features and ([s[:2] for s in shapes] != named or any(len(s) != 4 for s in shapes)):
            raise KDError(
                f"teacher={self.source} returns features of shape {shapes}, where (images, channels, height, width) "
                f"with images and channels {named} is needed."
            )

    @staticmethod
    def _numbers(answer: dict[str, Any]) -> list[Tensor]:
        """Return all tensors of an answer that are no indices."""
        found = [d[k].float() for d in answer["detections"] for k in ("boxes", "probs", "scores") if k in d]
        return [*found, *answer["features"]]

    def answer(self, images: Tensor, sieve: Sieve) -> tuple[list[Detections], list[list[Tensor]]]:
        """Return what the object says, checked."""
        said = self._run_checked(images)
        found = said["detections"]
        features = [self._wanted(said["features"], maps.strides) for maps in self.maps]
        self._check_values([d[k].flatten() for d in found for k in ("probs", "scores") if k in d])
        if not self._seen_boxes:
            self._check_boxes(torch.cat([d["boxes"] for d in found]).float(), images)
        return [self._detections(d, sieve) for d in found], features

    def _check_values(self, values: list[Tensor]) -> None:
        """Raise if a probability is none: logits, in whatever batch."""
        given = torch.cat(values) if values else torch.zeros(0)
        if len(given) and not bool(((given >= 0) & (given <= 1 + 1e-3)).all()):
            raise KDError(f"teacher={self.source} answers with probabilities that are not between 0 and 1.")

    def _check_boxes(self, boxes: Tensor, images: Tensor) -> None:
        """Raise if none of the first boxes covers a pixel: they are in another unit or order than was asked for."""
        if not len(boxes):
            return
        height, width = images.shape[-2:]
        corners = boxes.clamp(min=0).minimum(boxes.new_tensor((width, height, width, height)))
        if not bool(((corners[:, 2:] - corners[:, :2]).amin(1) > 1).any()):
            raise KDError(
                f"teacher={self.source}: none of the first {len(boxes)} boxes covers a pixel of its image; boxes are "
                "x1, y1, x2, y2 in pixels of the images that teach() was given."
            )
        self._seen_boxes = True

    def _detections(self, said: Mapping[str, Tensor], sieve: Sieve) -> Detections:
        """Return an image's detections, most confident first."""
        boxes = said["boxes"].float()
        if "probs" in said:
            return surest(boxes, said["probs"].float(), sieve)
        probs, known = boxes.new_zeros(len(boxes), len(self.names)), said["labels"].long()
        if len(known) and not 0 <= int(known.min()) <= int(known.max()) < len(self.names):
            raise KDError(
                f"teacher={self.source} answers with labels from {int(known.min())} to {int(known.max())} and "
                f"names {len(self.names)} classes."
            )
        probs[torch.arange(len(boxes), device=boxes.device), known] = said["scores"].float()
        return surest(boxes, probs, sieve)

    def fingerprint(self) -> str:
        """Return the object's own `fingerprint()`.

        Raises:
            KDError: If it has none.
        """
        own: Callable[[], str] | None = getattr(self.original, "fingerprint", None)
        if not callable(own):
            raise KDError(
                f"teacher={self.source} has no `fingerprint()`, a text that changes with its weights, by which stored "
                "answers know whose they are: add one, or train without kd_cache."
            )
        return hashlib.sha256(str(own()).encode()).hexdigest()
