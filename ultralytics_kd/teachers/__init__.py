"""Teachers: whatever answers a batch of images, and where it comes from."""

from .base import Answer, Reads, Teacher
from .custom import CustomTeacher
from .ensemble import ensemble
from .grid import GridTeacher
from .opening import MOVING_AVERAGE, open_teacher
from .sets import QueryTeacher, SetTeacher

__all__ = (
    "MOVING_AVERAGE",
    "Answer",
    "CustomTeacher",
    "GridTeacher",
    "QueryTeacher",
    "Reads",
    "SetTeacher",
    "Teacher",
    "ensemble",
    "open_teacher",
)
