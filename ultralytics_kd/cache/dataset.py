"""A data set that adds the stored answers to its images and labels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils.instance import Instances

from ..errors import KDError
from .answers import StoredAnswers
from .augmentation import ANSWERS, BOXES, IMAGES, LABELS, ROWS, carry_answers


class AnsweredDataset(YOLODataset):
    """A YOLO data set that adds a teacher's stored answer to every sample.

    Attributes:
        plain (type): Class of the same data set without answers.
        adopted (type): Class that `adopt` gave the data set; user code may change it.
        answers (StoredAnswers): Boxes and rows of every image.
    """

    plain: ClassVar[type[YOLODataset]] = YOLODataset
    adopted: type[YOLODataset]
    answers: StoredAnswers

    @classmethod
    def adopt(cls, dataset: YOLODataset, answers: StoredAnswers) -> None:
        """Turn a data set into one with answers, in place, because its transforms hold a reference to it.

        Args:
            dataset (YOLODataset): Data set of a detection training.
            answers (StoredAnswers): Answers to its images.

        Raises:
            KDError: If the class of the data set or one of its augmentations is not supported.
        """
        cls.check(dataset)
        dataset.__class__ = dataset.adopted = cls
        dataset.answers = answers
        carry_answers(dataset.transforms, answers.sided)

    @classmethod
    def check(cls, dataset: Any) -> None:
        """Raise if a data set is not of the known class; another may change images in ways that boxes can't follow.

        Args:
            dataset (Dataset): The data set.

        Raises:
            KDError: If its class is not supported.
        """
        if type(dataset) is not cls.plain:
            raise KDError(
                f"kd_cache does not support the data set class '{type(dataset).__name__}': build_dataset must return "
                "Ultralytics' own YOLODataset, or train without kd_cache."
            )

    def check_intact(self) -> None:
        """Raise if user code has changed the data set since `adopt`.

        Raises:
            KDError: If a transform is unknown, or if a method or the class was replaced.
        """
        replaced = [name for name in ("get_image_and_label", "build_transforms", "__getitem__") if name in vars(self)]
        if replaced or type(self) is not self.adopted:
            raise KDError(
                f"kd_cache does not support a data set whose {', '.join(replaced) or 'class'} was replaced: the stored "
                "boxes would stay where they are. Train without kd_cache."
            )
        carry_answers(self.transforms, self.answers.sided)

    def build_transforms(self, hyp: Any = None) -> Any:
        """Build transforms that carry the stored answers.

        Args:
            hyp (Namespace): Augmentation arguments.
        """
        transforms = super().build_transforms(hyp)
        carry_answers(transforms, self.answers.sided)
        return transforms

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Return image, labels and stored answer.

        Args:
            index (int): Index of the image.
        """
        labels = super().get_image_and_label(index)
        self.answers.check_shape(labels["im_file"], labels["ori_shape"])
        boxes, rows = self.answers[labels["im_file"]]
        labels[ANSWERS] = {"cls": rows, "instances": Instances(boxes, bbox_format="xywh", normalized=True)}
        return labels

    @staticmethod
    def collate_fn(batch: list[dict]) -> dict:
        """Collate samples; concatenate the stored instances of all images, with the index of each one's image.

        Args:
            batch (list[dict]): Samples.

        Returns:
            (dict): Ultralytics' batch, with `BOXES` of shape (M, 4), `ROWS` of shape (M, ...) and `IMAGES` of shape
                (M,). `LABELS` is a copy of "bboxes", to notice code that moves labels afterwards.
        """
        answers: list[tuple[Tensor, Tensor]] = [(sample.pop(BOXES), sample.pop(ROWS)) for sample in batch]
        collated = YOLODataset.collate_fn(batch)
        collated[LABELS] = collated["bboxes"].clone()
        counts = torch.tensor([len(boxes) for boxes, _ in answers])
        collated[BOXES] = torch.cat([boxes for boxes, _ in answers])
        collated[ROWS] = torch.cat([rows for _, rows in answers])
        collated[IMAGES] = torch.arange(len(answers), dtype=torch.float32).repeat_interleave(counts)
        return collated
