"""The error types that this package raises for what a user can put right."""


class KDError(ValueError):
    """A distillation cannot run as asked; the message is one sentence that says why and what to do."""


class KDTypeError(KDError, TypeError):
    """An argument has the wrong type."""
