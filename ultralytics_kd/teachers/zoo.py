"""Pretrained classifiers of other libraries, by name."""

from __future__ import annotations

from typing import Any

from ..errors import KDError, first_line

LIBRARIES = ("torchvision", "timm")


def zoo_model(source: str) -> Any | None:
    """Return the classifier behind `torchvision:NAME` or `timm:NAME`, with `names`, `mean` and `std`; None for others.

    Weights are downloaded by the library, if they are not there yet.

    Args:
        source (str): A `teacher` argument.

    Raises:
        KDError: If the library is not installed, or has no such classifier, or the weights cannot be had.
    """
    library, colon, name = source.strip().partition(":")
    if not colon or library not in LIBRARIES:
        return None
    try:
        model = (_torchvision if library == "torchvision" else _timm)(name)
    except ImportError as e:
        raise KDError(f"teacher={source} needs {library}, which is not installed: pip install {library}.") from e
    except Exception as e:  # each library has errors of its own, for names and for downloads
        raise KDError(f"teacher={source} could not be had from {library}: {first_line(e)}") from e
    model.task = "classify"
    return model


def _torchvision(name: str) -> Any:
    """Return a classifier of torchvision with its best weights."""
    from torchvision.models import get_model, get_model_weights

    weights = get_model_weights(name).DEFAULT
    model: Any = get_model(name, weights=weights)
    images: Any = weights.transforms()
    model.names = dict(enumerate(weights.meta["categories"]))
    model.mean, model.std = tuple(images.mean), tuple(images.std)
    return model


def _timm(name: str) -> Any:
    """Return a pretrained classifier of timm; `pretrained_cfg` says how its images are normalised."""
    import timm
    from timm.data import ImageNetInfo

    model: Any = timm.create_model(name, pretrained=True)
    described = model.pretrained_cfg.get("label_names")
    imagenet = ImageNetInfo()
    if described is None and model.num_classes == imagenet.num_classes():
        described = [imagenet.index_to_description(i) for i in range(model.num_classes)]
    model.names = dict(enumerate(described or ()))
    return model
