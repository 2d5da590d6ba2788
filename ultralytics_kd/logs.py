"""Silence Ultralytics' log where its messages are repetitions or of no use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ultralytics.utils import LOGGER


@contextmanager
def quietly(least: int = logging.WARNING) -> Iterator[None]:
    """Let Ultralytics log only warnings and errors within a block; a block within one for errors logs these only.

    Args:
        least (int): Least level that is logged.
    """
    level = LOGGER.level
    LOGGER.setLevel(max(level, least))
    try:
        yield
    finally:
        LOGGER.setLevel(level)
