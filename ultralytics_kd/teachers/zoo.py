"""Pretrained classifiers of other libraries, by name."""

from __future__ import annotations

from typing import Any

from ..config.user_code import names_library_model
from ..errors import KDError, ModelError, first_line
from .backbone import LIBRARY, load_timm


def zoo_model(source: str) -> Any | None:
    """Return the classifier of `torchvision:NAME` or `timm:NAME`, with `names`, `mean` and `std`; else None.

    The library downloads the weights, unless they are in its cache.

    Args:
        source (str): A `teacher` argument.

    Raises:
        KDError: If the library is not installed or has no such classifier, or the download fails.
    """
    if not names_library_model(source):
        return None
    library, _, name = source.strip().partition(":")
    try:
        model = (_torchvision if library == "torchvision" else _timm)(name)
    except KDError:
        raise
    except ImportError as e:
        raise ModelError(source, f"needs {library}, which is not installed: pip install {library}.") from e
    except Exception as e:  # each library has errors of its own, for names and for downloads
        raise ModelError(source, f"could not be loaded from {library}: {first_line(e)}") from e
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
    """Return a pretrained classifier of timm; its `pretrained_cfg` holds how images are normalised."""
    model = load_timm(f"{LIBRARY}{name}")
    from timm.data import ImageNetInfo

    names = model.pretrained_cfg.get("label_names")
    imagenet = ImageNetInfo()
    if names is None and model.num_classes == imagenet.num_classes():
        names = [imagenet.index_to_description(i).partition(",")[0] for i in range(model.num_classes)]  # no synonyms
    model.names = dict(enumerate(names or ()))
    return model
