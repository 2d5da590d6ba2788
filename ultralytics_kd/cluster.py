"""The Ray cluster that commands use: the connected one, the one that `RAY_ADDRESS` names, or one on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ultralytics.utils.checks import check_requirements

from .errors import KDError, first_line

SECONDS = 10  # to wait for the address of a cluster


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
        _check_address(os.environ.get("RAY_ADDRESS", ""))
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as e:
            raise KDError(f"'ray' found no Ray cluster and could not start one: {first_line(e)}") from e
    try:
        yield ray
    finally:
        if connected_here:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raise if nothing answers at an address: Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # no port, or "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
    except (OSError, OverflowError) as e:
        raise KDError(f"no Ray cluster answers at RAY_ADDRESS={address}: start it there, or unset RAY_ADDRESS.") from e
