"""`yolo-kd bench`: compares a student trained alone, with `distill_model` and distilled, over several seeds."""

from .plan import BENCH_ONLY
from .run import run_bench

__all__ = ("BENCH_ONLY", "run_bench")
