"""`yolo-kd demo`: a complete distillation on a drawn data set, without a download."""

from .run import DEMO_ONLY, run_demo

__all__ = ("DEMO_ONLY", "run_demo")
