"""Finding, checking and augmenting images without labels."""

from __future__ import annotations

import os
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from ultralytics.data.base import BaseDataset
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import IMG_FORMATS, verify_image
from ultralytics.utils import LOGGER, NUM_THREADS, TQDM, colorstr
from ultralytics.utils.patches import imread

from ...errors import KDError
from ...files import reason_of

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
        KDError: If there are none.
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


class UnlabeledImages(YOLODataset):
    """Images without labels, augmented as the training images are; label files beside them are ignored.

    Attributes:
        student_task (str): Task whose augmentation is used; all but depth and semantic segmentation share one.
    """

    def __init__(self, files: list[str], args: Any, data: dict[str, Any], stride: int):
        """Take the files.

        Args:
            files (list[str]): Image files.
            args (Namespace): Arguments of the training.
            data (dict): Description of its data set.
            stride (int): Largest stride of the student.
        """
        self._files, self.student_task = files, args.task
        plain = {k: v for k, v in data.items() if k in {"names", "nc", "channels"}}
        super().__init__(
            img_path=files,
            imgsz=args.imgsz,
            cache=args.cache or None,
            augment=True,
            hyp=args,
            prefix=PREFIX,
            stride=stride,
            data=plain,
            task="detect",
        )

    def get_img_files(self, img_path: Any) -> list[str]:
        """Return the given files."""
        return list(self._files)

    def load_image(self, i: int, rect_mode: bool = True) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """Read an image, scaled by its long side, or by its short side as semantic segmentation does."""
        return super().load_image(i, rect_mode=rect_mode, resize_short=self.student_task == "semantic")

    def build_transforms(self, hyp: Any = None) -> Any:
        """Build the augmentation; for depth it never combines images, because scaling an image changes its depth."""
        if self.student_task == "depth":
            hyp.mosaic = hyp.mixup = hyp.cutmix = hyp.copy_paste = 0.0
        return super().build_transforms(hyp)

    def get_labels(self) -> list[dict[str, Any]]:
        """Return empty labels."""
        return [
            {
                "im_file": file,
                "shape": None,
                "cls": np.zeros((0, 1), dtype=np.float32),
                "bboxes": np.zeros((0, 4), dtype=np.float32),
                "segments": [],
                "keypoints": None,
                "normalized": True,
                "bbox_format": "xywh",
            }
            for file in self._files
        ]


class UnlabeledSamples(Dataset):
    """Images without labels for a classifier, augmented as its training images are."""

    def __init__(self, files: list[str], labeled: Any):
        """Take the files, and the transforms of the labelled images.

        Args:
            files (list[str]): Image files.
            labeled (ClassificationDataset): The training's data set.
        """
        self.files, self.transforms = files, labeled.torch_transforms

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Return an augmented image."""
        image = imread(self.files[i])
        if image is None:
            raise KDError(f"image {self.files[i]} of kd_unlabeled cannot be read: restore it, or remove it.")
        return {"img": self.transforms(Image.fromarray(np.ascontiguousarray(image[..., ::-1])))}
