"""Teachers as models that Ultralytics' validators score on the student's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from ultralytics.utils.ops import xyxy2xywh

from .. import outputs
from ..errors import ModelError
from ..outputs import ONE2MANY
from ..outputs.output_channels import keypoint_names
from .answers import Answer, SetAnswer
from .base import Teacher

CONF, TOPK = 0.001, 300  # lowest confidence and number of detections in Ultralytics' mAP


def check_keypoints(teacher: Teacher, names: Sequence[str] | None) -> None:
    """Check the order of a pose teacher's keypoints: `kd_kpt` compares them by their positions in the list.

    Args:
        teacher (Teacher): The teacher.
        names (Sequence[str] | None): Names of the data's keypoints; None if they have none.

    Raises:
        ModelError: If a keypoint of the data has another position among the teacher's.
    """
    theirs = keypoint_names(getattr(teacher.original, "kpt_names", None))
    for place, name in enumerate(names or ()):
        if theirs is not None and name in theirs and theirs.index(name) != place:
            raise ModelError(
                teacher.source,
                f"has the keypoint '{name}' in place {theirs.index(name)}, the data in place {place}, and kd_kpt "
                "compares them by their order: give a teacher of the same order, or set kd_kpt=0.",
            )


def check_scorable(teacher: Teacher, data: Mapping[str, Any]) -> None:
    """Raise if Ultralytics' validator cannot compare a teacher's predictions with the labels of a data set.

    Args:
        teacher (Teacher): The teacher, inspected.
        data (Mapping): Ultralytics' description of the data set.

    Raises:
        KDError: If the teacher predicts other keypoints than the data set has.
    """
    own, needed = teacher.layout.kpt_shape if teacher.layout else None, data.get("kpt_shape")
    if own and needed and tuple(own) != tuple(needed):
        raise ModelError(
            teacher.source,
            f"predicts keypoints of kpt_shape {list(own)} and the data has {list(needed)}: it cannot be scored on it.",
        )


class ValidationModel(nn.Module):
    """Base of models that a validator can score."""

    def __init__(self, teacher: Teacher, stride: Tensor, nc: int, names: Mapping[int, str]):
        """Take a teacher's task and channels.

        Args:
            teacher (Teacher): The teacher, its classes matched with the student's.
            stride (Tensor): Its strides; the sides of images are multiples of the coarsest.
            nc (int): The student's number of classes.
            names (Mapping[int, str]): Their names.
        """
        super().__init__()
        self.names, self.task, self.stride = dict(names), teacher.task, stride
        self.yaml = {"nc": nc, "channels": teacher.channels}

    def fuse(self, verbose: bool = False, **_: Any) -> ValidationModel:
        """Return itself; a subclass fuses the model inside, if it can be fused."""
        return self


class PaddedModel(ValidationModel):
    """A YOLO model with a coarser stride than val images are padded for; it pads them to its own stride."""

    def __init__(self, teacher: Teacher, model: nn.Module, nc: int, names: Mapping[int, str]):
        """Wrap a copy of a teacher's model that predicts the student's classes.

        Args:
            teacher (Teacher): The teacher.
            model (nn.Module): The copy.
            nc (int): The student's number of classes.
            names (Mapping[int, str]): Their names.
        """
        super().__init__(teacher, torch.tensor([32.0]), nc, names)
        assert teacher.layout is not None
        self.inner: Any = model
        self.coarsest = max(teacher.layout.strides)

    def fuse(self, verbose: bool = False, **_: Any) -> ValidationModel:
        """Fuse the model inside."""
        self.inner.fuse(verbose=False)
        return self

    @property
    def end2end(self) -> bool:
        """Whether the NMS-free head predicts; the validator sets it."""
        return self.inner.end2end

    @end2end.setter
    def end2end(self, value: bool) -> None:
        """Choose the head that predicts."""
        self.inner.end2end = value

    def forward(self, images: Tensor, *_: Any, **__: Any) -> Any:
        """Pad the images, and return the predictions; maps are cropped to the size of the given images."""
        padded = outputs.pad(images, self.coarsest)
        return self._crop(self.inner(padded), images.shape, padded.shape)

    def _crop(self, preds: Any, shape: Sequence[int], padded: Sequence[int]) -> Any:
        """Return predictions whose maps do not cover the padding."""
        if isinstance(preds, (list, tuple)):
            return type(preds)(self._crop(each, shape, padded) for each in preds)
        if not isinstance(preds, Tensor) or preds.ndim != 4:
            return preds
        height, width = (preds.shape[d] * shape[d] // padded[d] for d in (-2, -1))
        return preds[..., :height, :width].contiguous()


class DetectorModel(ValidationModel):
    """A teacher that predicts sets of detections, or an average over grids, as a model.

    The first batch prepares the teacher in float32 and with all outputs; in training the terms may read only some.
    """

    def __init__(self, teacher: Teacher, nc: int, names: Mapping[int, str]):
        """Take an unprepared teacher.

        Args:
            teacher (Teacher): An unprepared copy of a detector, its classes matched with the student's.
            nc (int): The student's number of classes.
            names (Mapping[int, str]): Their names.
        """
        strides = teacher.layout.strides if teacher.layout else (32,)
        super().__init__(teacher, torch.tensor(strides, dtype=torch.float32), nc, names)
        self._teacher = teacher

    def forward(self, images: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return detections in the form that validators take, in pixels.

        Args:
            images (Tensor): Images of shape (B, C, H, W) in [0, 1].

        Returns:
            (Tensor): For a grid, boxes as x, y, w, h and a probability for each class, shape (B, 4 + nc, anchor
                points), which still need suppression. For a set, the detections of each image as x1, y1, x2, y2,
                confidence and class, shape (B, most detections, 6), which need none.
        """
        assert self._teacher.classes is not None
        if not self._teacher.ready:
            self._teacher.prepare(images.device)
        answer: Any = self._teacher(images.float())
        taught = torch.tensor(self._teacher.classes.student, device=images.device)
        return self._rows(answer, taught, images) if isinstance(answer, SetAnswer) else self._grid(answer, taught)

    def _grid(self, answer: Answer, taught: Tensor) -> Tensor:
        """Return the predictions at every anchor point."""
        assert self._teacher.layout is not None
        branch = answer.branches[ONE2MANY]
        boxes = xyxy2xywh(outputs.pixels(branch, self._teacher.layout))
        probs = boxes.new_zeros((*boxes.shape[:2], self.yaml["nc"]))
        probs[..., taught] = branch.scores.float().sigmoid()
        return torch.cat((boxes, probs), -1).transpose(1, 2)

    @staticmethod
    def _rows(answer: SetAnswer, taught: Tensor, images: Tensor) -> Tensor:
        """Return each image's rows, most confident first: one for each instance and class above `CONF`."""
        instances = answer.instances((images.shape[-2], images.shape[-1]))
        instance, column = (answer.probs > CONF).nonzero(as_tuple=True)
        conf = answer.probs[instance, column]
        rows = torch.cat((instances.boxes[instance], conf[:, None], taught[column][:, None].to(conf)), 1)
        order = conf.argsort(descending=True)
        rows, image = rows[order], instances.image[instance][order]
        return pad_sequence([rows[image == i] for i in range(len(images))], batch_first=True)
