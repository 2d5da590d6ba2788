"""The errors that this package raises for problems that the user can solve."""

from __future__ import annotations

from typing import Any

MAX_MESSAGE = 2000  # characters


class KDError(ValueError):
    """A distillation cannot run as asked; the message is one sentence with the reason and what to do."""

    def __str__(self) -> str:
        """Return the message as one printable line, whatever values it contains."""
        return printable(super().__str__())


class KDTypeError(KDError, TypeError):
    """An argument has the wrong type."""


TRAINED_HERE = ("baseline", "student")  # arguments that name models which nobody can download
NOT_FOUND = "was not found: give the path of trained weights (.pt)."


class ModelError(KDError):
    """A model that an argument names cannot be used.

    Attributes:
        source (Any): The model, as it was given.
        reason (str): Why it cannot be used, and what to do: the message without "ARGUMENT=SOURCE".
        argument (str): The argument that names it.
    """

    def __init__(self, source: Any, reason: str, argument: str = "teacher"):
        super().__init__(source, reason, argument)  # copies and other processes rebuild the error from these
        self.source, self.reason, self.argument = source, reason, argument

    def __str__(self) -> str:
        """Return the message as one sentence."""
        return printable(f"{self.argument}={self.source} {self.reason}")

    def for_argument(self, argument: str) -> ModelError:
        """Return the same error about a model that another argument names."""
        missing = argument in TRAINED_HERE and isinstance(self.__cause__, FileNotFoundError)
        return ModelError(self.source, NOT_FOUND if missing else self.reason, argument)


class NoSharedClassError(KDError):
    """A model and the data have no class in common."""


def printable(text: str) -> str:
    """Return a text as one line for a terminal: control characters are escaped, and the middle of a long text is cut.

    Args:
        text (str): The text.
    """
    text = text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE // 2]} [...] {text[-MAX_MESSAGE // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message as a sentence, and the next one if it only announces that.

    Ultralytics' error mark is left out.

    Args:
        error (Exception): The error.
    """
    lines = str(error).replace("ERROR ❌️ ", "").strip().splitlines() or [type(error).__name__]
    first, following = lines[0].rstrip(), lines[1].strip() if len(lines) > 1 else ""
    text = f"{first} {following}" if first.endswith(":") and following else first
    return text.rstrip(".:") + "."
