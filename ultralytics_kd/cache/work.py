"""The work of filling a cache, in this process or in the actors of a Ray cluster: read, answer and write portions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import torch
from torch.utils.data import DataLoader, Dataset
from ultralytics.data.augment import LetterBox
from ultralytics.utils.patches import imread

from ..errors import KDError
from ..teachers import Teacher
from ..teachers.prompted import Words
from .answering import Answerer
from .keys import hash_images
from .manifest import Manifest
from .shards import Row
from .store import Store


@dataclass(frozen=True)
class Portion:
    """The images of one shard.

    Attributes:
        files (list[str]): Image files.
        keys (list[str]): Their keys.
    """

    files: list[str]
    keys: list[str]


@dataclass(frozen=True)
class Work:
    """What a worker needs to answer portions, on this machine or another.

    Attributes:
        folder (str): Cache folder.
        sources (list[Any]): Teachers, as paths or models.
        manifest (Manifest): Teachers and settings of the answers.
        batch (int): Images per batch.
        workers (int): Processes that read images.
        trust (bool): Whether files of teachers may run code when they are opened.
        words (Words | None): What prompted teachers look for.
    """

    folder: str
    sources: list[Any]
    manifest: Manifest
    batch: int
    workers: int
    trust: bool = False
    words: Words | None = None


class Executor(Protocol):
    """Hashes and answers images, in this process or on a cluster."""

    def hash(self, files: list[str]) -> Iterator[tuple[str, str]]:
        """Yield path and key of each image."""

    def answer(self, work: Work, portions: list[Portion], progress: Callable[[int], Any]) -> None:
        """Answer portions and write a shard for each; call `progress` with the number of images just answered."""


class LocalExecutor:
    """Hashes and answers images in this process."""

    def __init__(self, teachers: list[Teacher], manifest: Manifest, device: torch.device):
        """Store the arguments; the teachers are prepared only if there are images to answer.

        Args:
            teachers (list[Teacher]): Opened teachers.
            manifest (Manifest): Teachers and settings of the answers.
            device (torch.device): Device on which the teachers run.
        """
        self.teachers, self.manifest, self.device = teachers, manifest, device

    def hash(self, files: list[str]) -> Iterator[tuple[str, str]]:
        """Yield path and key of each image."""
        return hash_images(files)

    def answer(self, work: Work, portions: list[Portion], progress: Callable[[int], Any]) -> None:
        """Answer portions and write a shard for each.

        Args:
            work (Work): Folder, settings and how images are read.
            portions (list[Portion]): Images to answer.
            progress (Callable): Called with the number of images of each batch.
        """
        answerer, store = Answerer(self.teachers, self.manifest, self.device), Store(work.folder)
        for portion in portions:
            store.write(list(answer_portion(answerer, portion, work, progress)))


def answer_portion(
    answerer: Answerer, portion: Portion, work: Work, progress: Callable[[int], Any] | None = None
) -> Iterator[Row]:
    """Yield the rows of a portion, in order.

    Args:
        answerer (Answerer): The teachers.
        portion (Portion): Images to answer.
        work (Work): Settings, batch size and number of processes that read images.
        progress (Callable, optional): Called with the number of images of each batch.
    """
    images = LetterboxedImages(portion.files, work.manifest.imgsz, work.manifest.channels)
    loader = DataLoader(images, batch_size=work.batch, num_workers=min(work.workers, len(images) // work.batch))
    first = 0
    for batch, heights, widths in loader:
        keys = portion.keys[first : first + len(batch)]
        yield from answerer(batch, list(zip(heights.tolist(), widths.tolist())), keys)
        first += len(batch)
        if progress is not None:
            progress(len(batch))


class LetterboxedImages(Dataset):
    """Images scaled and padded to one square size, as Ultralytics does before prediction."""

    def __init__(self, files: list[str], imgsz: int, channels: int):
        """Store the files without reading them.

        Args:
            files (list[str]): Image files.
            imgsz (int): Side of the square in pixels.
            channels (int): Channels of the images.
        """
        self.files, self.letterbox = files, LetterBox(imgsz, auto=False)
        self.flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, int]:
        """Return an RGB image of shape (C, imgsz, imgsz), uint8, and the height and width of its file in pixels.

        Raises:
            KDError: If the image cannot be read.
        """
        image = imread(self.files[i], flags=self.flag)
        if image is None:
            raise KDError(f"image {self.files[i]} cannot be read: replace or remove it.")
        height, width = image.shape[:2]
        square = self.letterbox(image=image if image.ndim == 3 else image[..., None])
        square = square[..., ::-1] if square.shape[-1] == 3 else square  # BGR to RGB
        return torch.from_numpy(square.transpose(2, 0, 1).copy()), height, width
