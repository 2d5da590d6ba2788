"""Finding image files as Ultralytics finds them, and the images of `kd_unlabeled`."""

from __future__ import annotations

import os
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from ultralytics.data.base import BaseDataset
from ultralytics.data.utils import IMG_FORMATS, get_split_fraction, verify_image
from ultralytics.utils import LOGGER, NUM_THREADS, TQDM, colorstr

from .errors import KDError
from .files import reason_of

PREFIX = colorstr("unlabeled: ")


class _Files(BaseDataset):
    """A data set that only lists files, as Ultralytics does for `train:`: folders, lists of files, or several."""

    def __init__(self) -> None:
        self.fraction, self.prefix = 1.0, ""


def image_files(source: Any) -> list[str]:
    """Return the images that Ultralytics reads from an entry such as `train:`: folders, lists of files, or several.

    Args:
        source (str | Path | list): The entry of a data.yaml, with absolute paths.
    """
    return list(dict.fromkeys(str(Path(f).absolute()) for f in _Files().get_img_files(source)))


def find_unlabeled(source: Any) -> list[str]:
    """Return the images that `kd_unlabeled` names.

    Args:
        source (str | Path | list): Folder with images, file with a list of them, or several.

    Raises:
        KDError: If there are no images, or a source is an image itself or cannot be read.
    """
    files = [str(s) for s in (source if isinstance(source, (list, tuple)) else [source])]
    for file in files:
        _check_folder(file)
        if file.rpartition(".")[2].lower() in IMG_FORMATS and Path(file).is_file():
            raise KDError(f"kd_unlabeled={file} is an image: give its folder, or a file with a list of images.")
    try:
        return image_files([str(s) for s in source] if isinstance(source, (list, tuple)) else str(source))
    except FileNotFoundError as e:
        reason = " ".join(str(e.__cause__ or e).split()).partition(" Supported formats")[0].rstrip(".")
        advice = "give a folder of images, or a file with a list of them"
        raise KDError(f"kd_unlabeled={source} has no images ({reason}): {advice}.") from e


def _check_folder(folder: str) -> None:
    """Raise if a folder cannot be read, or contains a link to one of its parents, which would be searched for ever."""
    try:
        os.stat(folder)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as e:  # no permission, a name that is too long or has null bytes
        raise KDError(f"kd_unlabeled={folder} cannot be read: {reason_of(e)}") from e
    for parent, inner, _ in os.walk(folder, followlinks=True):
        for name in inner:
            path = Path(parent, name)
            if path.is_symlink() and path.resolve() in {p.resolve() for p in path.parents}:
                raise KDError(f"kd_unlabeled={folder} contains {path}, a link to one of its parents: remove it.")


def readable(files: list[str]) -> list[str]:
    """Return the images that can be read, and log those that cannot.

    Args:
        files (list[str]): Image files.

    Raises:
        KDError: If none can be read.
    """
    with ThreadPool(NUM_THREADS) as pool:
        results = pool.imap(verify_image, zip(((f, 0) for f in files), [PREFIX] * len(files)))
        checked = list(TQDM(results, total=len(files), desc=f"{PREFIX}Checking images"))
    for _, _, _, message in checked:
        if message:
            LOGGER.info(message)
    good = [file for (file, _), readable_files, _, _ in checked if readable_files]
    if not good:
        raise KDError(f"kd_unlabeled: none of its {len(files)} images can be read: give others.")
    return good


def training_share(files: list[str], fraction: Any) -> list[str]:
    """Return the first of the images, as many as `fraction` takes for training.

    Args:
        files (list[str]): Image files.
        fraction (float | int | list): The argument `fraction`: a share, a number of images, or one for each split.
    """
    share = get_split_fraction(fraction, "train")
    return files[: share if isinstance(share, int) else max(round(len(files) * share), 1)]  # as Ultralytics does
