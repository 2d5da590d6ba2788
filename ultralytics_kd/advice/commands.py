"""The command to run next, after a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.arguments import ARGUMENTS
from ..screen import command_line
from .verdict import GO, UNCERTAIN

SEEDS = 3


def next_command(verdict: str, training: Mapping[str, Any], teacher: str, stored: bool = False) -> str:
    """Return the command line that follows from a verdict.

    GO trains with the teacher. UNCERTAIN compares the student alone and distilled, with several seeds. NO GO trains
    the student alone.

    Args:
        verdict (str): The verdict.
        training (Mapping): Arguments of the training that was asked about, without its teacher.
        teacher (str): The teacher.
        stored (bool): Whether its answers are to be stored.
    """
    taught = {"teacher": teacher, **({"kd_cache": True} if stored else {})}
    if verdict == GO:
        return command_line("train", {**_ordered(training), **taught})
    if verdict == UNCERTAIN:
        given = {k: v for k, v in _ordered(training).items() if k not in {"seed", "split"}}
        return command_line("bench", {**given, **taught, "arms": "kd", "seeds": SEEDS})
    return command_line("train", alone(_ordered(training)))


def alone(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a training without those of a distillation."""
    return {name: value for name, value in training.items() if name not in ARGUMENTS}


def _ordered(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with data and model first."""
    first = ("data", "model")
    return {**{name: training[name] for name in first}, **{k: v for k, v in training.items() if k not in first}}
