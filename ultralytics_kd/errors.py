"""The error types that this package raises for what a user can put right."""


class KDError(ValueError):
    """A distillation cannot run as asked; the message is one sentence that says why and what to do."""


class KDTypeError(KDError, TypeError):
    """An argument has the wrong type."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message as a sentence, without Ultralytics' error mark."""
    lines = str(error).replace("ERROR ❌️ ", "").strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
