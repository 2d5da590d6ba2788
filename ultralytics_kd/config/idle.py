"""Arguments that were set and change nothing in a training with a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .arguments import ARGUMENTS, CLASS_LOSSES, TASK_WEIGHTS, TEMPERED, WEIGHTS
from .label_free import lacks_training_images


@dataclass(frozen=True)
class Idle:
    """An argument that changes nothing.

    Attributes:
        argument (str): Its name.
        value (Any): Its value.
        reason (str): Why it changes nothing.
    """

    argument: str
    value: Any
    reason: str

    @property
    def sentence(self) -> str:
        """The argument and the reason as a warning."""
        return f"'{self.argument}={self.value}' has no effect: {self.reason}."


def idle_arguments(cfg: Mapping[str, Any], own_precision: bool = False) -> list[Idle]:
    """Return the kd arguments that were set and change nothing in a training with a teacher.

    Args:
        cfg (Mapping): All arguments of the training.
        own_precision (bool): Whether the teacher chooses its own precision.
    """
    return [*_weights_and_losses(cfg), *_unlabeled(cfg), *_precision(cfg, own_precision), *_temperatures(cfg)]


def _set(cfg: Mapping[str, Any], name: str) -> bool:
    """Return whether an argument differs from its default."""
    return bool(cfg[name] != ARGUMENTS[name].default)


def _weights_and_losses(cfg: Mapping[str, Any]) -> Iterator[Idle]:
    """Yield weights of terms that the task lacks, and losses of terms that are off."""
    used = TASK_WEIGHTS[cfg["task"]]
    for weight in WEIGHTS:
        loss = f"{weight}_loss"
        if weight not in used and _set(cfg, weight):
            yield Idle(weight, f"{cfg[weight]:g}", f"task '{cfg['task']}' has the terms {', '.join(used)}")
        if loss in cfg and _set(cfg, loss) and (weight not in used or not cfg[weight]):
            yield Idle(loss, cfg[loss], _off(cfg, weight))


def _off(cfg: Mapping[str, Any], weight: str) -> str:
    """Return why a term is off."""
    used = TASK_WEIGHTS[cfg["task"]]
    return f"the term is off, as {weight}=0" if weight in used else f"task '{cfg['task']}' has no term {weight}"


def _unlabeled(cfg: Mapping[str, Any]) -> Iterator[Idle]:
    """Yield `kd_unlabeled_ratio` if images without labels, or training images with labels, are missing."""
    alone = lacks_training_images(cfg.get("data"), cfg["task"])
    if (alone or not cfg["kd_unlabeled"]) and _set(cfg, "kd_unlabeled_ratio"):
        reason = "data= has no training images with labels" if cfg["kd_unlabeled"] else "kd_unlabeled is not set"
        yield Idle("kd_unlabeled_ratio", f"{cfg['kd_unlabeled_ratio']:g}", reason)


def _precision(cfg: Mapping[str, Any], own_precision: bool) -> Iterator[Idle]:
    """Yield `kd_precision` and `kd_compile`, if no teacher runs or it chooses its own precision."""
    if not cfg["kd_cache"] and not own_precision:
        return
    reason = "this teacher chooses its own precision"
    if cfg["kd_cache"]:
        reason = "with kd_cache no teacher runs while the student trains"
    for name in ("kd_precision", "kd_compile"):
        stored_now = name == "kd_precision" and cfg["kd_cache"] is True  # the cache is first made in this precision
        if _set(cfg, name) and not stored_now:
            yield Idle(name, cfg[name], reason)


def _temperatures(cfg: Mapping[str, Any]) -> Iterator[Idle]:
    """Yield temperatures that soften no loss."""
    softened = []
    for weight, losses in TEMPERED.items():
        name, loss = f"{weight}_tau", _loss(cfg, weight)
        if loss in losses:
            softened.append(weight)
        elif cfg.get(name) is not None:
            reason = _off(cfg, weight) if loss is None else f"{loss} is not softened, only {', '.join(losses)}"
            yield Idle(name, cfg[name], reason)
    if cfg.get("kd_tau") is None:
        return
    if not softened:
        every = dict.fromkeys(loss for losses in TEMPERED.values() for loss in losses)
        yield Idle("kd_tau", cfg["kd_tau"], f"only the losses {', '.join(every)} are softened")
    elif all(cfg.get(f"{weight}_tau") is not None for weight in softened):
        yield Idle("kd_tau", cfg["kd_tau"], f"{', '.join(f'{weight}_tau' for weight in softened)} take its place")


def _loss(cfg: Mapping[str, Any], weight: str) -> str | None:
    """Return the loss of a term; None if the term is off."""
    if weight not in TASK_WEIGHTS[cfg["task"]] or not cfg[weight]:
        return None
    loss = cfg[f"{weight}_loss"]
    return CLASS_LOSSES[cfg["task"]][0] if loss == "auto" else loss
