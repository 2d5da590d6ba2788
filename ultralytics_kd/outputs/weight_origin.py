"""Which of a model's weights are trained, judged by the weights themselves.

The arguments do not tell: `pretrained=` may fit nothing, a file may hold a model that was saved before it was trained,
and a user's own trainer may build models in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def never_trained(model: Any) -> bool:
    """Return whether a model still has its initial random weights.

    Args:
        model (nn.Module): Ultralytics model. One without norm layers, such as a fused model, counts as trained.

    Examples:
        >>> never_trained(DetectionModel("yolo26n.yaml"))
        True
    """
    return not any(trained for _, trained in trained_parameters(model))


def trained_parameters(model: Any) -> Iterator[tuple[Tensor, bool]]:
    """Yield every parameter of a model with whether it is trained.

    A norm layer is trained if its statistics, weight or bias differ from those of a new one. A layer beside a norm
    layer, as in Ultralytics' `Conv`, is as trained as the norm, with one exception. From some files only the norms fit
    a model. Then a norm has learned weights, but the weights of its convolution are still in the range of random ones,
    which other convolutions have left. Layers without a norm, such as the last layers of a head, are untrained if
    their bias is a constant, as Ultralytics sets it. Otherwise they are as trained as most norm layers around them.

    Args:
        model (nn.Module): The model. Without norm layers, all of it counts as trained.
    """
    modules = dict(model.named_modules())
    norms = {name: is_trained(module) for name, module in modules.items() if _is_norm(module)}
    convs = [m for m in modules.values() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]  # without DFL's
    some_left = not all(_in_initial_range(conv) for conv in convs)
    for name, module in modules.items():
        parameters = [p for p in module.parameters(recurse=False)]
        if not parameters:
            continue
        bias = getattr(module, "bias", None)
        beside = [norms[n] for n in _siblings(modules, name) if n in norms]
        if name in norms:
            trained = norms[name]
        elif beside or not norms:
            learned = [n for n in _siblings(modules, name) if n in norms and _learned(modules[n])]
            alone = some_left and learned and isinstance(module, nn.Conv2d) and _in_initial_range(module)
            trained = (any(beside) or not norms) and not alone
        elif isinstance(bias, Tensor) and bias.numel() > 1 and bool((bias == bias[0]).all()):
            trained = False
        else:
            trained = _most_around(norms, name)
        yield from ((p, trained) for p in parameters)


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm layer that tells whether it was trained."""
    return isinstance(module, (_BatchNorm, nn.LayerNorm, nn.GroupNorm)) and module.weight is not None


def is_trained(norm: Any) -> bool:
    """Return whether a norm layer differs from a new one."""
    if getattr(norm, "running_mean", None) is not None and (norm.running_mean.any() or (norm.running_var != 1).any()):
        return True
    return bool((norm.weight != 1).any() or norm.bias.any())


def _learned(norm: Any) -> bool:
    """Return whether training moved a norm layer's weights so far that it also moved those of its convolution."""
    weight = norm.weight.detach().float()
    return bool((weight - weight.median()).abs().median() > 0.02)


def _in_initial_range(conv: nn.Conv2d) -> bool:
    """Return whether a convolution's weights, rounded to half precision, are in PyTorch's range of random ones."""
    return bool(conv.weight.detach().abs().max() <= 1.001 * conv.weight[0].numel() ** -0.5)


def _siblings(modules: dict[str, nn.Module], name: str) -> list[str]:
    """Return the names of the children of a module's parent; none if the parent is a list or sequence."""
    parent = name.rpartition(".")[0]
    if name == parent or isinstance(modules[parent], (nn.Sequential, nn.ModuleList)):
        return []
    prefix = f"{parent}." if parent else ""
    return [f"{prefix}{child}" for child, _ in modules[parent].named_children()]


def _most_around(norms: dict[str, bool], name: str) -> bool:
    """Return whether most norm layers in the smallest surrounding part that has any are trained."""
    while name:
        name = name.rpartition(".")[0]
        around = [trained for norm, trained in norms.items() if norm.startswith(f"{name}." if name else "")]
        if around:
            return 2 * sum(around) > len(around)
    return False
