"""What a distillation brought: teacher, baseline and student side by side."""

from .options import REPORT_ONLY, USED
from .run import run_report

__all__ = ("REPORT_ONLY", "USED", "run_report")
