"""Extra images without labels: find and check them, augment them as the training images are, add them to batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import copy
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from ultralytics.data.base import BaseDataset
from ultralytics.data.build import build_dataloader
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import IMG_FORMATS, verify_image
from ultralytics.utils import LOCAL_RANK, LOGGER, NUM_THREADS, RANK, TQDM, colorstr
from ultralytics.utils.patches import imread
from ultralytics.utils.torch_utils import torch_distributed_zero_first, unwrap_model

from ..config import as_list, parse_list
from ..distillation.loss import LABELED
from ..errors import KDError
from ..files import reason_of
from . import distributed

PREFIX = colorstr("unlabeled: ")


class _Files(BaseDataset):
    """Gives access to how Ultralytics reads `train:`: folders, lists of files, or several of them."""

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
        reason = e.__cause__ or e
        raise KDError(f"kd_unlabeled={source} has no images: {' '.join(str(reason).split())}") from e


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
        raise KDError(f"kd_unlabeled: none of its {len(files)} images can be read.")
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
        """Build the augmentation; that of depth never combines images, as their scale carries the depth."""
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
            raise KDError(f"image {self.files[i]} of kd_unlabeled cannot be read.")
        return {"img": self.transforms(Image.fromarray(np.ascontiguousarray(image[..., ::-1])))}


class UnlabeledStream:
    """Endless batches of images without labels.

    Attributes:
        dataset (Dataset): The images.
        ratio (float): Images for each labelled one.
        loader (DataLoader): Reads them.
    """

    def __init__(self, dataset: Any, ratio: float, batch: int, workers: int, rank: int, device: torch.device):
        """Open the stream.

        Args:
            dataset (Dataset): The images.
            ratio (float): Images for each labelled one.
            batch (int): Labelled images in a batch.
            workers (int): Processes that read images.
            rank (int): Rank of this process, -1 without others.
            device (torch.device): Where batches go.
        """
        self.dataset, self.ratio = dataset, ratio
        size = max(round(ratio * batch), 1)
        self.loader = build_dataloader(dataset, size, workers, shuffle=True, rank=rank, device=device)
        self._batches = self._endless()
        self._epoch = 0

    def _endless(self) -> Iterator[Tensor]:
        """Yield batches of images, one pass over the data set after the other."""
        while True:
            if hasattr(self.loader.sampler, "set_epoch"):
                self.loader.sampler.set_epoch(self._epoch)
            self._epoch += 1
            for batch in self.loader:
                yield batch["img"]

    def take(self, labeled: int) -> Tensor:
        """Return the images that go with a number of labelled ones, shape (n, C, H, W), as the loader returns them."""
        count = max(round(self.ratio * labeled), 1)
        parts, taken = [], 0
        while taken < count:
            parts.append(next(self._batches)[: count - taken])
            taken += len(parts[-1])
        return torch.cat(parts)

    def close_mosaic(self, args: Any) -> None:
        """Continue without mosaics, as the labelled images do in the last epochs."""
        if hasattr(self.dataset, "close_mosaic"):
            self.dataset.close_mosaic(hyp=copy(args))
            self.loader.reset()
            self._batches = self._endless()

    def close(self) -> None:
        """Stop the processes that read images."""
        if hasattr(self.loader, "close"):
            self.loader.close()


class UnlabeledPart:
    """The images of `kd_unlabeled` in a run: their files, and the stream that adds them to batches.

    Attributes:
        args (Namespace): Arguments of the training.
        files (list[str]): Image files.
        stream (UnlabeledStream | None): The stream, as soon as data loaders are built.
    """

    def __init__(self, args: Any):
        """Find the images, and make their places in the arguments absolute, so that `resume` finds them from anywhere.

        Args:
            args (Namespace): Arguments of the training.

        Raises:
            KDError: If there are no images, or batches have shapes of their own.
        """
        if args.rect:
            raise KDError("'kd_unlabeled' and 'rect' exclude each other: with rect, batches differ in shape.")
        source = parse_list(args.kd_unlabeled)
        self.args, self.files = args, find_unlabeled(source)
        self.stream: UnlabeledStream | None = None
        places = [str(Path(each).resolve()) for each in as_list(source)]
        args.kd_unlabeled = places if isinstance(source, (list, tuple)) else places[0]

    def __len__(self) -> int:
        """Return the number of images that can be read; 0 before the stream is open."""
        return len(self.stream.dataset) if self.stream else 0

    def open(self, trainer: Any) -> None:
        """Open the stream beside the trainer's loaders; anew when memory ran out and the batch was halved.

        Args:
            trainer (BaseTrainer): The trainer, its data loaders built.
        """
        dataset = self.stream.dataset if self.stream else self._dataset(trainer)
        self.close()
        batch = max(trainer.batch_size // max(trainer.world_size, 1), 1)
        ratio, workers = self.args.kd_unlabeled_ratio, self.args.workers
        self.stream = UnlabeledStream(dataset, ratio, batch, workers, LOCAL_RANK, trainer.device)

    def _dataset(self, trainer: Any) -> Any:
        """Return the images that can be read, with the augmentation of the training."""
        files = distributed.from_first(lambda: readable(self.files))
        self._warn_of_val_images(files, trainer.test_loader.dataset)
        if self.args.task == "classify":
            return UnlabeledSamples(files, trainer.train_loader.dataset)
        stride = max(int(unwrap_model(trainer.model).stride.max()), 32)
        with torch_distributed_zero_first(LOCAL_RANK):  # cache=disk writes files
            return UnlabeledImages(files, self.args, trainer.data, stride)

    def _warn_of_val_images(self, files: list[str], validation: Any) -> None:
        """Warn if some of the images are val images."""
        listed_files = [s[0] for s in validation.samples] if self.args.task == "classify" else validation.im_files
        validated = {str(Path(file).resolve()) for file in listed_files}
        shared = sum(str(Path(file).resolve()) in validated for file in files)
        if shared and RANK in {-1, 0}:
            LOGGER.warning(f"{shared} of kd_unlabeled's images are val images: the scores will flatter the student.")

    def add_to(self, batch: dict[str, Any]) -> None:
        """Add images without labels to a batch as it comes from the loader, behind those with labels.

        Args:
            batch (dict): Images under "img"; their number goes to "kd_labeled".
        """
        assert self.stream is not None
        batch[LABELED] = len(batch["img"])
        batch["img"] = torch.cat((batch["img"], self.stream.take(len(batch["img"]))))

    def close_mosaic(self) -> None:
        """Continue without mosaics."""
        if self.stream:
            self.stream.close_mosaic(self.args)

    def close(self) -> None:
        """Close the stream, if it is open."""
        if self.stream:
            self.stream.close()
