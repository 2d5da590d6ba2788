"""What a training needs of a machine of a Ray cluster: GPUs where there are some, else CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import KDError

MOST_CPUS = 8  # Ultralytics trains with at most this many threads on a CPU


@dataclass(frozen=True)
class Need:
    """What a training needs of one machine.

    Attributes:
        gpus (int): GPUs.
        cpus (int): CPUs.
        fits (bool): Whether a machine of the cluster has as many.
    """

    gpus: int
    cpus: int
    fits: bool = True

    @property
    def device(self) -> str:
        """The `device` argument there: Ray shows a process its own GPUs alone, numbered from 0."""
        return ",".join(map(str, range(self.gpus))) or "cpu"

    def __str__(self) -> str:
        """Return it as text."""
        count, kind = (self.gpus, "GPU") if self.gpus else (self.cpus, "CPU")
        return f"{count} {kind}{'s' if count > 1 else ''}"


def gpus_of(device: Any) -> int | None:
    """Return the number of GPUs that a `device` argument asks for; None if it leaves the choice open.

    Args:
        device (Any): The argument as Ultralytics takes it. Which GPUs it names does not count, as Ray chooses them.

    Raises:
        KDError: If it names a kind of device that Ray cannot place trainings on.
    """
    text = "".join(c for c in str(device).lower().replace("cuda:", "") if c not in "()[]' ")
    if text in ("", "none"):
        return None
    if text in ("cpu", "cuda"):
        return int(text == "cuda")
    named = text.split(",")
    if not all(each.removeprefix("-").isdecimal() for each in named):
        raise KDError(f"'device={device}' and 'ray' exclude each other: with Ray, trainings run on GPUs or CPUs.")
    return len(named)


def need_of(device: Any, machines: list[Mapping[str, float]]) -> Need:
    """Return what each training needs: GPUs where the cluster has some, else the CPUs for its threads.

    Args:
        device (Any): The `device` argument.
        machines (list[Mapping[str, float]]): Resources of each machine, by Ray's names.

    Raises:
        KDError: If no machine has the GPUs that `device` asks for.
    """
    most = int(max((m.get("GPU", 0) for m in machines), default=0))
    gpus = gpus_of(device)
    gpus = min(most, 1) if gpus is None else gpus
    if gpus > most:
        raise KDError(
            f"'device={device}' asks for {Need(gpus, 1)}, and a machine of the Ray cluster has {most} at most: "
            "add machines, or give another device."
        )
    if gpus:
        return Need(gpus, 1)
    cpus = int(max((m.get("CPU", 0) for m in machines), default=0))
    return Need(0, min(MOST_CPUS, max(1, cpus - 1)), fits=cpus > 0)  # as many as Ultralytics has threads there
