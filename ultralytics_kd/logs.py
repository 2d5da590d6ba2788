"""What Ultralytics logs, made less where it would be said twice or is of no use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ultralytics.utils import LOGGER


@contextmanager
def quietly() -> Iterator[None]:
    """Let Ultralytics log warnings alone within a block."""
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
