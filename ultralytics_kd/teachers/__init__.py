"""Teachers: whatever answers a batch of images, and where it comes from."""

from .answers import Answer, DenseAnswer, Instances, Reads, SetAnswer
from .base import Teacher
from .custom import CustomTeacher
from .ensemble import ensemble
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
    "open_teacher",
)
