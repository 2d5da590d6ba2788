"""Reports: teacher, baseline and student side by side, as metrics, pictures and a page."""

from .options import REPORT_ONLY, USED
from .run import run_report

__all__ = ("REPORT_ONLY", "USED", "run_report")
