"""`yolo-kd bench`: compares a student trained alone, with `distill_model` and distilled, over several seeds.

Files:
    plan: what a bench trains, from checked arguments.
    arms: the ways to train the student that it compares.
    run: trains every arm that has no record yet.
    jobs, worker: the trainings: where each leaves its record, and the process that runs it.
    ray_jobs, placement, node: the same on a Ray cluster: driver, what a training needs, and the other machine's part.
    scores: scores of a finished model.
    records: the JSON files that jobs leave.
    contents: hashes of models and data, by which changed ones are noticed.
    split: training images held out to choose settings on.
    table, text, plot: the results.
"""

from .plan import BENCH_ONLY
from .run import run_bench

__all__ = ("BENCH_ONLY", "run_bench")
