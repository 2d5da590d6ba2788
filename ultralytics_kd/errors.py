"""The error types that this package raises for what a user can put right."""

MOST = 2000  # characters of a message


class KDError(ValueError):
    """A distillation cannot run as asked; the message is one sentence that says why and what to do."""

    def __str__(self) -> str:
        """Return the message, whatever the values in it hold."""
        return printable(super().__str__())


class KDTypeError(KDError, TypeError):
    """An argument has the wrong type."""


def printable(text: str) -> str:
    """Return a text that a terminal can show in one line: control characters escaped, the middle of a long one cut out.

    Args:
        text (str): The text.
    """
    text = text if len(text) <= MOST else f"{text[: MOST // 2]} [...] {text[-MOST // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message as a sentence, without Ultralytics' error mark."""
    lines = str(error).replace("ERROR ❌️ ", "").strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
