"""Training images at two sizes, with one augmentation: the student's, and larger ones for the teacher.

The student's images and labels are those of a training without a teacher, bit for bit. The larger images are the same
files, loaded at the teacher's size and augmented with the same random numbers. Crops and colours are drawn as shares of
an image, and mosaics are aligned, so both show the same scene. Only the perspective is drawn per pixel, and scaled.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from ultralytics.utils.patches import override_configs

from .same_images import repeat_images

LARGE = "kd_large"  # in a sample or batch: images at the teacher's size
LARGE_LABELS = "kd_large_labels"  # in a batch: a copy of "bboxes", to notice code that moves labels afterwards
OWN = {"small", "large", "ratio", "images"}  # attributes of a `TwoSizes` itself


class TwoSizes(Dataset):
    """A data set whose samples also hold their image at the teacher's size.

    All other attributes are those of the student's data set.

    Attributes:
        small (Dataset): The student's data set.
        large (Dataset): The same images and augmentation at the teacher's size.
        ratio (float): The student's image size divided by the teacher's.
        images (tuple[Noted, Repeated] | None): The images of a sample; None if there is one image in each.
    """

    def __init__(self, small: Any, large: Any, ratio: float):
        """Take the same data set, built at two image sizes, and the ratio of these."""
        self.small, self.large, self.ratio = small, large, ratio
        self.images = repeat_images(small, large)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.small)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the student's sample, with the larger image under "kd_large"."""
        before = _random_state()
        for each in self.images or ():
            each.start()
        sample = self.small[index]
        after = _random_state()
        _set_random_state(before)
        image = self.large[index]["img"]
        if not _same(after, _random_state()) or (self.images is not None and not self.images[1].same):
            # A transform drew once more or less, because an object was too small for it at one size only. Then the
            # images differ, and the teacher gets the student's pixels
            image = _resized(sample["img"], image.shape[-2:])
        _set_random_state(after)
        return {**sample, LARGE: image}

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the student's data set."""
        if name in OWN:  # while it is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.small, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of both data sets; Ultralytics switches mosaics off in this way."""
        if name in OWN:
            object.__setattr__(self, name, value)
            return
        for dataset in (self.small, self.large):
            setattr(dataset, name, value)

    def close_mosaic(self, hyp: Any) -> None:
        """Continue without mosaics.

        Args:
            hyp (Namespace): Augmentation arguments; both data sets change their own copy.
        """
        for dataset, ratio in ((self.small, 1.0), (self.large, self.ratio)):
            if hasattr(dataset, "close_mosaic"):  # classification has none
                own = copy(hyp)
                own.perspective = hyp.perspective * ratio
                dataset.close_mosaic(own)

    @property
    def collate_fn(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """The student's collate function, which also stacks the larger images."""
        return Collate(getattr(self.small, "collate_fn", None) or torch.utils.data.default_collate)


class Collate:
    """Collates samples with the larger images, for loaders that pickle their function."""

    def __init__(self, stock: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        """Take the function for the samples without larger images."""
        self.stock = stock

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch; the larger images, shape (B, C, H, W), are under "kd_large"."""
        large = torch.stack([sample[LARGE] for sample in samples])
        batch = self.stock([{k: v for k, v in sample.items() if k != LARGE} for sample in samples])
        labels = {LARGE_LABELS: batch["bboxes"].clone()} if "bboxes" in batch else {}
        return {**batch, LARGE: large, **labels}


def at_two_sizes(build: Callable[[], Any], args: Any, size: int) -> TwoSizes:
    """Build a data set at the student's and at the teacher's image size; the second leaves random streams as they are.

    Args:
        build (Callable): Returns a data set of images of `args.imgsz`.
        args (Namespace): Arguments of the training; `imgsz` is changed while the second is built.
        size (int): The teacher's image size in pixels.
    """
    from torchvision.transforms import RandomErasing  # scoped: slow to import

    small, state = build(), _random_state()
    ratio = args.imgsz / size
    try:
        with override_configs(args, {"imgsz": size, "perspective": args.perspective * ratio}):
            large = build()
    finally:
        _set_random_state(state)
    transforms = getattr(getattr(large, "torch_transforms", None), "transforms", [])
    transforms[:] = [DrawsOnly(t) if isinstance(t, RandomErasing) else t for t in transforms]
    return TwoSizes(small, large, ratio)


class DrawsOnly:
    """Draws the random numbers of a transform and leaves the image as it is.

    RandomErasing removes a rectangle from a classifier's images. Its place is not drawn as a share of the image, so the
    two sizes would lose different parts. The teacher sees the whole image.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor]):
        """Take the transform."""
        self.transform = transform

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image."""
        self.transform(image.clone())
        return image


def _resized(image: Tensor, shape: Any) -> Tensor:
    """Return an image (C, H, W) in another size, of the same type."""
    larger = F.interpolate(image[None].float(), tuple(shape), mode="bilinear", align_corners=False)[0]
    return larger.round().to(image.dtype) if image.dtype == torch.uint8 else larger.to(image.dtype)


def _random_state() -> tuple[Any, Any, Tensor]:
    """Return the state of the generators that augmentations draw from."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_random_state(state: tuple[Any, Any, Tensor]) -> None:
    """Restore the state of these generators."""
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def _same(one: tuple[Any, Any, Tensor], other: tuple[Any, Any, Tensor]) -> bool:
    """Return whether two states are the same."""
    arrays = bool(np.array_equal(one[1][1], other[1][1])) and one[1][2:] == other[1][2:]
    return one[0] == other[0] and arrays and torch.equal(one[2], other[2])
