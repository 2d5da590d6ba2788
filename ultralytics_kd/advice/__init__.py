"""Advice before a distillation: will it pay? `yolo-kd advise` measures and says so within minutes.

Files:
    options: the arguments, and what is refused.
    run: the advice, from models and data to the files that it leaves.
    sample: a part of a data set that is too large to look at as a whole.
    scores: the scores of teachers and student, and where a teacher is better.
    contradictions: training images on which teacher and labels contradict each other.
    steps: trainings without a teacher, with one, and with its stored answers.
    trial: trainers that take a few steps, and a short training of the student alone.
    gradients: whether labels and terms pull in the same direction.
    costs: time and memory of a step, with and without teacher.
    verdict: the rule that says go or no-go.
    commands: the command to run next.
    table, folder, page: the advice in the terminal, and as files: figures, list, pictures, page.
"""

from .options import ADVICE_ONLY
from .run import run_advice

__all__ = ("ADVICE_ONLY", "run_advice")
