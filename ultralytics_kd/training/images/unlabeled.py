"""Images without labels in a run: a stream of batches beside the labelled ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.data.build import build_dataloader
from ultralytics.utils import LOCAL_RANK, LOGGER, RANK
from ultralytics.utils.torch_utils import torch_distributed_zero_first, unwrap_model

from ...cache.augmentation import BOXES, IMAGES, ROWS
from ...config import as_list, parse_list
from ...distillation.loss import LABELED
from ...errors import KDError
from ...image_files import find_unlabeled, image_files, readable
from .. import distributed
from .two_sizes import LARGE, TwoSizes
from .unlabeled_images import UnlabeledImages, UnlabeledSamples

IMAGE_KEYS = ("img", LARGE)  # entries of a batch with one part for each image
SEED_OFFSET = 1_000_003  # between the random streams of images with and without labels
ANSWER_KEYS = (BOXES, ROWS, IMAGES)  # entries with one part for each stored instance


class UnlabeledStream:
    """Endless batches of images without labels.

    Attributes:
        dataset (Dataset): The images.
        ratio (float): Images for each labelled one.
        loader (DataLoader): Reads them.
        passes (int): Passes over the images that have begun. Several processes shuffle each pass by its number.
    """

    def __init__(self, dataset: Any, ratio: float, batch: int, workers: int, rank: int, device: torch.device):
        """Open the stream.

        Args:
            dataset (Dataset): The images.
            ratio (float): Images for each labelled one.
            batch (int): Labelled images in a batch.
            workers (int): Processes that read images.
            rank (int): Rank of this process, -1 for a single process.
            device (torch.device): Where batches go.
        """
        self.dataset, self.ratio = dataset, ratio
        size = max(round(ratio * batch), 1)
        self.loader = build_dataloader(dataset, size, workers, shuffle=True, rank=rank, device=device)
        # Ultralytics gives all loaders one seed, and workers would augment both parts of a batch alike
        generator = self.loader.generator
        generator.manual_seed((generator.initial_seed() + SEED_OFFSET) % 2**63)
        self._batches = self._endless()
        self.passes = 0

    def _endless(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches of images, one pass over the data set after the other."""
        while True:
            if hasattr(self.loader.sampler, "set_epoch"):
                self.loader.sampler.set_epoch(self.passes)
            self.passes += 1
            for batch in self.loader:
                yield {key: batch[key] for key in (*IMAGE_KEYS, *ANSWER_KEYS) if key in batch}

    def take(self, labeled: int) -> dict[str, Tensor]:
        """Return the images that go with a number of labelled ones, as the loader returns them.

        Args:
            labeled (int): Number of labelled images.

        Returns:
            (dict[str, Tensor]): Images (n, C, H, W) under "img" and, if the teacher sees larger ones, "kd_large"; its
                stored answers, if there are any, as `AnsweredDataset` collates them.
        """
        count = max(round(self.ratio * labeled), 1)
        parts: list[dict[str, Tensor]] = []
        taken = 0
        while taken < count:
            parts.append(_first_images(next(self._batches), count - taken))
            taken += len(parts[-1]["img"])
        return _joined(parts)

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
        alone (bool): Whether they are the only training images.
    """

    alone = False

    def __init__(self, args: Any):
        """Find the images, and make their paths in the arguments absolute, so that `resume` works from any folder.

        Args:
            args (Namespace): Arguments of the training.

        Raises:
            KDError: If there are no images, or if `rect` is on, which gives every batch another shape.
        """
        if args.rect:
            raise KDError("'kd_unlabeled' and 'rect' exclude each other: with rect, batches differ in shape.")
        source = parse_list(args.kd_unlabeled)
        self.args, self.files = args, find_unlabeled(source)
        self.stream: UnlabeledStream | None = None
        places = [os.path.abspath(each) for each in as_list(source)]  # links stay: files may be named relative to them
        args.kd_unlabeled = places if isinstance(source, (list, tuple)) else places[0]

    def data_file(self, data: Any, folder: Path) -> str:
        """Return the data.yaml in a form that Ultralytics reads; with labelled images it needs no change.

        Args:
            data (str | Path): The argument.
            folder (Path): Folder of the run.
        """
        return str(data)

    def __len__(self) -> int:
        """Return the number of images that can be read; 0 before the stream is open."""
        return len(self.stream.dataset) if self.stream else 0

    def open(self, trainer: Any) -> None:
        """Open the stream beside the trainer's loaders, and again when the batch was halved for lack of memory.

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
        self._warn_of_val_images(files, trainer)
        large = trainer.distillation.large_images
        if self.args.task == "classify":
            labeled = trainer.train_loader.dataset
            if large is None or not isinstance(labeled, TwoSizes):  # if images are missing, `add_answer` raises
                return UnlabeledSamples(files, labeled)
            small, large = (UnlabeledSamples(files, each) for each in (labeled.small, labeled.large))
            return TwoSizes(small, large, labeled.ratio)
        stride = max(int(unwrap_model(trainer.model).stride.max()), 32)

        def build() -> UnlabeledImages:
            """Return the images at the current size."""
            return UnlabeledImages(files, self.args, trainer.data, stride)

        with torch_distributed_zero_first(LOCAL_RANK):  # cache=disk writes files
            dataset = build() if large is None else large.data_set(build, self.args)
        if trainer.distillation.cached is not None:
            trainer.distillation.cached.adopt(dataset, self.args.imgsz, trainer.save_dir)
        return dataset

    def _warn_of_val_images(self, files: list[str], trainer: Any) -> None:
        """Warn if some of the images are val images, of the data or of `kd_keep_data`."""
        validation, keeping = trainer.test_loader.dataset, trainer.distillation.keeping
        im_files = [s[0] for s in validation.samples] if self.args.task == "classify" else validation.im_files
        scored = {"val images": im_files}
        if keeping is not None and keeping.old is not None:
            old = keeping.old.data
            scored["val images of kd_keep_data"] = image_files(old.get(self.args.split) or old["val"])
        for name, others in scored.items():
            val_files = {str(Path(file).resolve()) for file in others}
            shared = sum(str(Path(file).resolve()) in val_files for file in files)
            if shared and RANK in {-1, 0}:
                LOGGER.warning(f"{shared} of kd_unlabeled's images are {name}: the student's scores will be too high.")

    @property
    def ready(self) -> bool:
        """Whether batches can get images."""
        return self.stream is not None

    def add_to(self, batch: dict[str, Any]) -> None:
        """Add images without labels to a batch as it comes from the loader, behind those with labels.

        Args:
            batch (dict): Images under "img", larger ones under "kd_large", stored answers under `ANSWER_KEYS`; the
                number of images goes to "kd_labeled".
        """
        assert self.stream is not None
        batch[LABELED] = len(batch["img"])
        added = self.stream.take(batch[LABELED])
        assert all(key in added for key in ANSWER_KEYS if key in batch), "images without answers would be background"
        keys = [key for key in added if key in batch]  # if one is missing, `add_answer` raises
        batch.update(_joined([{key: part[key] for key in keys} for part in (batch, added)]))

    def close_mosaic(self) -> None:
        """Continue without mosaics."""
        if self.stream:
            self.stream.close_mosaic(self.args)

    def close(self) -> None:
        """Close the stream, if it is open."""
        if self.stream:
            self.stream.close()


def _first_images(batch: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return the first images of a batch, and the stored answers to them."""
    part = {key: batch[key][:count] for key in IMAGE_KEYS if key in batch}
    if IMAGES in batch:
        part |= {key: batch[key][batch[IMAGES] < count] for key in ANSWER_KEYS}
    return part


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return several batches as one; image indices continue from one batch to the next."""
    before, counted = 0, []
    for part in parts:
        counted.append({**part, IMAGES: part[IMAGES] + before} if IMAGES in part else part)
        before += len(part["img"])
    return {key: torch.cat([part[key] for part in counted]) for key in parts[0]}
