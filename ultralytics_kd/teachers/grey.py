"""Teachers trained on colour images for students of grey images."""

from __future__ import annotations

from ultralytics.nn.tasks import BaseModel

from .. import outputs
from ..errors import ModelError
from .backbone import BackboneTeacher
from .base import Teacher
from .custom import CustomTeacher


def match_channels(teacher: Teacher, channels: int) -> None:
    """Let a teacher read images with the student's number of channels, in place.

    A teacher trained on colour images reads a grey image as three equal channels, as Ultralytics loads grey files in
    colour.

    Args:
        teacher (Teacher): The teacher, or several.
        channels (int): Channels of the data set's images.

    Raises:
        KDError: If a teacher reads images with another number of channels.
    """
    for member in teacher.members:
        if (member.channels, channels) == (3, 1):
            _read_grey(member)
        if member.channels != channels:
            raise ModelError(
                member.source,
                f"reads images of {member.channels} channel(s), and those of the data have {channels}: give a "
                f"teacher of {channels}, or set channels: {member.channels} in the YAML of data=.",
            )
    teacher.channels = teacher.predictor.channels = channels


def _read_grey(teacher: Teacher) -> None:
    """Let one teacher read grey images, if it can."""
    if isinstance(teacher, (CustomTeacher, BackboneTeacher)):
        teacher.reads_grey = True
    elif isinstance(teacher.original, BaseModel):
        teacher.fingerprint()  # stored now, so that it stays the fingerprint of the given weights
        outputs.read_grey(teacher.original)
    else:
        return
    teacher.channels = 1
