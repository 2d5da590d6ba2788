"""Silence Ultralytics' log where its messages are repetitions or of no use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ultralytics.utils import LOGGER


@contextmanager
def quietly() -> Iterator[None]:
    """Let Ultralytics log only warnings and errors within a block."""
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
