"""Teachers: models that answer batches of images, and how they are opened.

Files:
    opening: from the `teacher` argument to a teacher.
    checkpoint_files: from a file to the model in it.
    base: the steps from images to an answer, which all teachers share.
    grid, sets, dense, ensemble, ema: kinds of teachers.
    backbone, beside: foundation models whose features teach, alone or beside others.
    prompted: teachers whose classes are text prompts.
    custom, exported, zoo: teachers from other libraries.
    answers: what teachers return.
    class_map, plurals: which teacher class teaches which student class.
    detections: suppression and fusion.
    inference: fast copies of frozen models.
    finite: the check for NaN and Inf.
    grey: teachers trained on colour images for students of grey images.
    validation: teachers as models that a validator scores.
    sizes: the image size that a teacher was trained at, compared with the size that it sees.
"""

from .answers import Answer, DenseAnswer, Instances, Reads, SetAnswer
from .base import Teacher
from .custom import CustomTeacher
from .ensemble import ensemble
from .grey import match_channels
from .grid import GridTeacher
from .opening import MOVING_AVERAGE, open_teacher
from .sets import QueryTeacher, SetTeacher

__all__ = (
    "MOVING_AVERAGE",
    "Answer",
    "CustomTeacher",
    "DenseAnswer",
    "GridTeacher",
    "Instances",
    "QueryTeacher",
    "Reads",
    "SetAnswer",
    "SetTeacher",
    "Teacher",
    "ensemble",
    "match_channels",
    "open_teacher",
)
