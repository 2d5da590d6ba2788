"""The random generators of a training: saved in its checkpoints, restored when it is resumed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler


def random_state(device: torch.device, loaders: dict[str, Any]) -> dict[str, Any]:
    """Return the state of all random generators of a training, in types that a restricted loader reads.

    Args:
        device (torch.device): Device of the training.
        loaders (dict[str, DataLoader | None]): Loaders by name.
    """
    name, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *(float(x) for x in rest)),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    generators = {k: getattr(loader, "generator", None) for k, loader in loaders.items()}
    state["loaders"] = {k: generator.get_state() for k, generator in generators.items() if generator is not None}
    return state


@contextmanager
def streams_kept(device: torch.device) -> Iterator[None]:
    """Restore all random generators after a block, so that a training draws the same numbers with and without it.

    Args:
        device (torch.device): Device of the training.
    """
    state = random_state(device, {})
    try:
        yield
    finally:
        set_random_state(state, device, {})


def set_random_state(state: dict[str, Any], device: torch.device, loaders: dict[str, Any]) -> None:
    """Restore the state of all random generators of a training.

    Args:
        state (dict): As `random_state` returned it.
        device (torch.device): Device of the training.
        loaders (dict[str, DataLoader | None]): Loaders by name, before their first batch is read.
    """
    for name, loader in loaders.items():
        generator = getattr(loader, "generator", None)
        if generator is None or name not in state["loaders"]:
            continue
        if loader.num_workers == 0 and getattr(loader, "iterator", loader) is None:
            loader.iterator = loader._get_iterator()  # creating it draws a number, which the run had drawn already
        generator.set_state(state["loaders"][name])
        if isinstance(loader.sampler, RandomSampler):  # a pass makes its last draw when the next starts
            torch.randperm(len(loader.sampler.data_source), generator=generator)
    random.setstate(state["python"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
