"""The Ray cluster that commands use: the connected one, the one that `RAY_ADDRESS` names, or one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ultralytics.utils.checks import check_requirements

from .errors import KDError, first_line


@contextmanager
def connected(requirement: str) -> Iterator[Any]:
    """Connect to a Ray cluster, and disconnect at the end, unless the process was connected before.

    Args:
        requirement (str): The release of Ray that is needed, as pip takes it.

    Yields:
        (ModuleType): Ray's module.

    Raises:
        KDError: If Ray is missing, or the cluster does not answer.
    """
    check_requirements(requirement)
    try:
        import ray
    except ImportError as e:
        raise KDError(f"'ray' needs Ray: run pip install '{requirement}', or drop the argument.") from e
    connected_here = not ray.is_initialized()
    if connected_here:
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as e:
            address = os.environ.get("RAY_ADDRESS")
            where = f"to RAY_ADDRESS={address}" if address else "or started"
            raise KDError(f"a Ray cluster could not be connected {where}: {first_line(e)}") from e
    try:
        yield ray
    finally:
        if connected_here:
            ray.shutdown()
