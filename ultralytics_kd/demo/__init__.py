"""`yolo-kd demo`: the whole of distillation on a drawn data set, without a download."""

from .run import run_demo

__all__ = ("run_demo",)
