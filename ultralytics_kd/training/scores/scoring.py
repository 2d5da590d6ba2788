"""Validations after training: an error loses scores, and not the student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ultralytics.utils import LOGGER

from ...errors import KDError, first_line
from .. import distributed


def validated(
    trainer: Any, prepare: Callable[[], Callable[[], Any] | None], sentence: Callable[[Exception], str]
) -> Any:
    """Prepare a validation and run it; an error is only logged, because the finished student must not be lost.

    With several ranks, all validate together. They first agree that each of them can; a later error ends the run,
    because the other ranks would wait for ever.

    Args:
        trainer (BaseTrainer): The trainer.
        prepare (Callable): Returns the validation, or None if there is nothing to validate.
        sentence (Callable): Returns the warning for an error.

    Returns:
        (Any): What the validation returns; None if there is no validation, and after an error.
    """
    error: Exception | None = None
    validate: Callable[[], Any] | None = None
    result = None
    try:
        validate = prepare()
    except Exception as e:  # whatever it is, the student stays
        error = e
    if not distributed.any_rank(error is not None) and validate is not None:
        try:
            result = validate()
        except Exception as e:
            if trainer.world_size > 1:
                raise
            error = e
    if error is not None:
        LOGGER.warning(sentence(error))
    return result


def reason(error: Exception) -> str:
    """Return why scores are missing; the kind of an error that is not this package's tells more than its text.

    Args:
        error (Exception): The error.
    """
    return str(error) if isinstance(error, KDError) else f"{type(error).__name__}: {first_line(error)}"
