"""Images without labels as data sets, augmented as the training images are."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils.patches import imread

from ...cache.dataset import AnsweredDataset
from ...errors import KDError
from ...image_files import PREFIX


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


class AnsweredUnlabeledImages(AnsweredDataset, UnlabeledImages):
    """Images without labels that carry a teacher's stored answers."""

    plain = UnlabeledImages


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
