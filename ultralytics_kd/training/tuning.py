"""Searches over kd arguments: a space means the same with and without Ray, and one that cannot be searched is said.

Ultralytics' own tuners do the searching. They know an argument by its name and bounds alone, and find out that a value
is impossible when an iteration fails; what is checked here is checked before the first one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import ultralytics.cfg as ul_cfg
from ultralytics.utils import DEFAULT_CFG_DICT

from .. import config
from ..cache.build import build_cache
from ..cache.options import CACHE_ONLY, check_options
from ..errors import KDError
from ..teachers import open_teacher

PLACES = ("teacher", "kd_unlabeled", "kd_cache", "kd_classes")  # arguments that may be files


def search_arguments(arguments: Mapping[str, Any], task: str, use_ray: bool) -> dict[str, Any]:
    """Return the arguments of a search, checked, as Ultralytics' tuner takes them.

    Args:
        arguments (Mapping): Arguments of `tune`: Ultralytics', `teacher`, the kd arguments and `space`, whose values
            are bounds `(low, high)`, `(low, high, gain)`, or with Ray also its own, as `ray.tune.choice`.
        task (str): The student's task.
        use_ray (bool): Whether Ray Tune searches; bounds become its `uniform`, or `randint` of a whole number.

    Raises:
        KDError: If an argument cannot be searched, or no value of it has an effect.
    """
    given = {k: _absolute(v) if k in PLACES else v for k, v in arguments.items()}
    space = dict(given.get("space") or {})
    ends = {name: _ends(name, value, use_ray) for name, value in space.items()}
    ours = {name: values for name, values in ends.items() if name in config.ARGUMENTS and values}
    if config.has_teacher(given):
        _check_effect(given, task, ours)
        trust = bool(given.get("kd_trust_teacher"))
        open_teacher(config.listed(given["teacher"]), task, given.get("kd_teacher_weights"), trust)  # or no run could
        if given.get("kd_cache") is True:
            given["kd_cache"] = _answers(given, task)  # once, and not in the folder of every iteration
    elif searched := [name for name in space if name in config.ARGUMENTS]:
        raise KDError(f"'{searched[0]}' in space= has no effect without a teacher: add teacher=PATH or drop it.")
    if use_ray:
        _check_given_once(given, space)
        space = {k: _domain(k, v) if _is_bounds(k, v) else v for k, v in space.items()}
    else:
        for name, (low, *_, high) in ours.items():  # a search without Ray begins with the value that is given
            if given.get(name, config.ARGUMENTS[name].default) is None:
                given[name] = (low + high) / 2
    return {**given, "space": space} if space else given


def _ends(name: str, value: Any, use_ray: bool) -> list[Any]:
    """Return the outermost values that a part of the space stands for, or all of a choice; none if Ray alone knows.

    Raises:
        KDError: If the argument is unknown, or there is nothing to search in it.
    """
    if name not in DEFAULT_CFG_DICT:
        near = get_close_matches(name, DEFAULT_CFG_DICT, n=1)
        raise KDError(f"'{name}' in space= is no argument{f' (did you mean {near[0]}?)' if near else ''}.")
    if name == "teacher":
        raise KDError("'teacher' in space= cannot be searched: give one teacher=PATH, and search again with another.")
    domain = not isinstance(value, (list, tuple))
    if domain and not use_ray:
        raise KDError(f"'{name}' in space= is {value!r}: give bounds (low, high), or use_ray=True for Ray's own kinds.")
    argument = config.ARGUMENTS.get(name)
    if not domain and argument is not None and not argument.number:
        values = ", ".join(argument.choices) or argument.type
        raise KDError(
            f"'{name}' in space= has no bounds, as it is no number ({values}): search it with use_ray=True and "
            f"ray.tune.choice([...])."
        )
    if _is_bounds(name, value):
        _check_bounds(name, value)
        ends = list(value[:2])
    else:
        ends = _ends_of_domain(value)
    for end in ends if argument is not None else ():
        config.check_values({name: end})
    return ends


def _is_bounds(name: str, value: Any) -> bool:
    """Return whether a part of the space is a pair of bounds: a list may also be one value of an argument."""
    numbers = ul_cfg.CFG_FLOAT_KEYS | ul_cfg.CFG_FRACTION_KEYS | ul_cfg.CFG_INT_KEYS | {"scale"}
    return isinstance(value, (list, tuple)) and name in numbers


def _check_bounds(name: str, value: Sequence[Any]) -> None:
    """Raise if bounds are none."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    if not numbers or len(value) not in {2, 3} or value[0] >= value[1]:
        raise KDError(f"'{name}' in space= is {value}: give (low, high) or (low, high, gain), low below high.")


def _ends_of_domain(domain: Any) -> list[Any]:
    """Return the values of a choice or grid of Ray's, the bounds of its numbers, or none."""
    grid = domain.get("grid_search") if isinstance(domain, Mapping) else None
    categories = grid or getattr(domain, "categories", None)
    if categories:
        return list(categories)
    bounds = [getattr(domain, end, None) for end in ("lower", "upper")]
    return [] if None in bounds else bounds


def _check_effect(given: Mapping[str, Any], task: str, ours: Mapping[str, list[Any]]) -> None:
    """Raise if values of the space exclude each other or the other arguments, or an argument changes nothing."""
    idle: dict[str, list[bool]] = {name: [] for name in ours}
    for i in range(max(map(len, ours.values()), default=1)):
        values = {name: ends[min(i, len(ends) - 1)] for name, ends in ours.items()}
        cfg = {**DEFAULT_CFG_DICT, **given, **values, "task": task}
        config.check_values(cfg)
        config.check_combination(cfg)
        without_effect = {each.argument for each in config.idle_arguments(cfg)}
        for name, value in values.items():
            if value != config.ARGUMENTS[name].default:
                idle[name].append(name in without_effect)
    for name, found in idle.items():
        if found and all(found):
            raise KDError(
                f"'{name}' in space= has no effect: for task '{task}' and the other arguments no value of it changes "
                "the training."
            )


def _check_given_once(given: Mapping[str, Any], space: Mapping[str, Any]) -> None:
    """Raise if Ray would search in vain: it lets a value that is given win over the space."""
    twice = [name for name in space if name in config.ARGUMENTS and name in given]
    if twice:
        raise KDError(f"'{twice[0]}={given[twice[0]]}' is given and in space= too, and Ray would keep it: drop one.")


def _domain(name: str, bounds: Sequence[float]) -> Any:
    """Return bounds as Ray's; the third number is how far the other tuner steps, and Ray has no steps."""
    from ray import tune  # Ultralytics looks whether it is installed and says how to

    low, high = bounds[:2]
    if name in ul_cfg.CFG_INT_KEYS:
        return tune.randint(math.ceil(low), math.floor(high) + 1)
    return tune.uniform(low, high)


def _absolute(value: Any) -> Any:
    """Return a place, or a list of them, so that it is found from the folder of any process."""
    value = config.listed(value)
    if isinstance(value, list):
        return [_absolute(each) for each in value]
    if isinstance(value, Path) or (isinstance(value, str) and value and Path(value).exists()):
        return str(Path(value).resolve())
    return value


def _answers(given: Mapping[str, Any], task: str) -> str:
    """Store the teacher's answers for all iterations, and return where."""
    plain = {k: v for k, v in given.items() if k in DEFAULT_CFG_DICT}
    args = ul_cfg.get_cfg(overrides={**plain, "task": task, "mode": "train"})
    sources = args.teacher if isinstance(args.teacher, list) else [args.teacher]
    return str(build_cache(args, sources, check_options(CACHE_ONLY)).folder)
