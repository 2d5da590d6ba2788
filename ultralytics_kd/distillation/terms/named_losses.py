"""Find a loss by its name: a function of `losses`, or the user's own as `module:name`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...config.user_code import load_loss, names_object
from ...errors import KDError

Loss = Callable[..., Tensor]


def named_loss(argument: str, name: str, table: Mapping[str, Loss], tau: float | None = None) -> Loss:
    """Return the loss that an argument names.

    Args:
        argument (str): The argument, e.g. "kd_box_loss".
        name (str): Its value: a name in the table, or "module:name" of the user's own function.
        table (Mapping[str, Callable]): Losses by name.
        tau (float | None): Temperature, for a loss of the table with a parameter `tau`; None for the loss's default.

    Raises:
        KDError: If the user's function cannot be imported.
    """
    if names_object(name):
        return checked(argument, name, load_loss(argument, name))
    return at_temperature(table[name], tau)


def at_temperature(loss: Loss, tau: float | None) -> Loss:
    """Return a loss with its temperature set; the loss itself if it takes none, or if `tau` is None."""
    if tau is None or "tau" not in inspect.signature(loss).parameters:
        return loss
    return functools.partial(loss, tau=tau)


def checked(argument: str, name: str, loss: Callable[..., Any]) -> Loss:
    """Return the user's loss with a check that it returns a scalar.

    Args:
        argument (str): The argument that names it, for errors.
        name (str): Its name, for errors.
        loss (Callable): The user's function or module.
    """

    def checked_loss(*inputs: Any) -> Tensor:
        """Return what the user's loss returns, as a float32 scalar."""
        try:
            value = loss(*inputs)
        except TypeError as e:
            if e.__traceback__ is None or e.__traceback__.tb_next is not None:  # raised inside the user's code
                raise
            raise KDError(f"{argument}={name} does not take the {len(inputs)} arguments that it is given: {e}.") from e
        if not isinstance(value, Tensor) or value.numel() != 1:
            kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise KDError(f"{argument}={name} returns {kind}: it must return a scalar tensor.")
        return value.float().reshape(())

    return checked_loss
