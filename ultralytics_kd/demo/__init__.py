"""`yolo-kd demo`: a complete distillation on a drawn data set, without a download.

Files:
    run: trains a teacher, then the same student alone and distilled.
    shapes: draws the detection data set.
    tasks: draws data sets for the other tasks.
    comparison: draws predictions side by side.
    threads: lets torch use idle CPU cores.
"""

from .run import DEMO_ONLY, run_demo

__all__ = ("DEMO_ONLY", "run_demo")
