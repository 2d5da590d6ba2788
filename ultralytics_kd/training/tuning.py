"""Searches over kd arguments: a space means the same with and without Ray, and is checked before the first training.

Ultralytics' own tuners search. They know the name and the bounds of an argument and nothing else, so that without these
checks an impossible value would fail in the middle of a search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import Any

import ultralytics.cfg as ul_cfg
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import DEFAULT_CFG_DICT

from .. import config
from ..cache.build import build_cache
from ..cache.options import CACHE_ONLY, check_options
from ..config.named_files import FILES, absolute
from ..errors import KDError
from ..files import output_folder
from ..teachers import open_teacher
from .keeping import Keeping
from .run.teacher_source import TeacherSource

ASKED = ("imgsz", "kd_teacher_imgsz", "kd_precision", "kd_classes")  # what stored answers depend on


def search_arguments(
    arguments: Mapping[str, Any], task: str, use_ray: bool, own: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Check the arguments of a search and return them as Ultralytics' tuner takes them.

    Args:
        arguments (Mapping): Arguments of `tune`: Ultralytics', `teacher`, the kd arguments and `space`. Values of
            `space` are bounds `(low, high)` or `(low, high, gain)`; for Ray also its domains, e.g. `ray.tune.choice`.
        task (str): The student's task.
        use_ray (bool): Whether Ray Tune searches; bounds become its `uniform`, or its `randint` for whole numbers.
        own (Mapping, optional): The student's own arguments, such as `model`, `data` and `imgsz`, which Ultralytics
            takes where the search gives none.

    Raises:
        KDError: If an argument cannot be searched, or no value of it has an effect.
    """
    given = {k: absolute(v) if k in FILES else v for k, v in arguments.items()}
    space = dict(given.get("space") or {})
    extremes = {name: _extremes(name, value, use_ray) for name, value in space.items()}
    searched = {name: values for name, values in extremes.items() if name in config.ARGUMENTS and values}
    if config.has_teacher(given):
        complete = {"data": ul_cfg.TASK2DATA[task], **{k: v for k, v in (own or {}).items() if v is not None}, **given}
        _check_effect(complete, task, searched)
        trust = bool(given.get("kd_trust_teacher"))
        open_teacher(config.as_list(given["teacher"]), task, given.get("kd_teacher_weights"), trust)  # it may raise
        if given.get("resume"):  # the folder of a resumed search holds its best student
            TeacherSource(given["teacher"]).check_place(_folder(given, task))
        if given.get("kd_cache") is True and isinstance(given.get("data"), (list, tuple)):
            raise KDError(
                "'kd_cache=True' stores the answers to one data set, and data= names several: store those to each with "
                "'yolo-kd cache' in one folder, and give kd_cache=FOLDER."
            )
        if given.get("kd_cache") is True:
            _check_stored_once(space)
            given["kd_cache"] = _store_answers(complete, task)  # once, and not in the folder of each iteration
    elif names := [name for name in space if name in config.ARGUMENTS]:
        raise KDError(f"'{names[0]}' in space= has no effect without a teacher: add teacher=PATH or drop it.")
    if use_ray:
        _check_given_once(given, space)
        space = {k: _domain(k, v) if _is_bounds(k, v) else v for k, v in space.items()}
    else:
        for name, (low, *_, high) in searched.items():  # a search without Ray starts from the value that is given
            if given.get(name, config.ARGUMENTS[name].default) is None:
                given[name] = (low + high) / 2
    return {**given, "space": space} if space else given


def _extremes(name: str, value: Any, use_ray: bool) -> list[Any]:
    """Return the values of one argument in the space to check: its lowest and highest, or all values of a choice.

    Returns:
        (list): The values; empty if a domain of Ray's does not expose them.

    Raises:
        KDError: If the argument is unknown or cannot be searched.
    """
    if name not in DEFAULT_CFG_DICT:
        near = get_close_matches(name, DEFAULT_CFG_DICT, n=1)
        raise KDError(f"'{name}' in space= is not an argument{f' (did you mean {near[0]}?)' if near else ''}.")
    if name == "teacher":
        raise KDError("'teacher' in space= cannot be searched: give one teacher=PATH, and search again with another.")
    domain = not isinstance(value, (list, tuple))
    if domain and not use_ray:
        raise KDError(f"'{name}' in space= is {value!r}: give bounds (low, high), or use_ray=True for Ray's domains.")
    argument = config.ARGUMENTS.get(name)
    if not domain and argument is not None and not argument.number:
        values = ", ".join(argument.choices) or argument.type
        raise KDError(
            f"'{name}' in space= cannot have bounds, as it is not a number ({values}): search it with use_ray=True and "
            f"ray.tune.choice([...])."
        )
    if _is_bounds(name, value):
        _check_bounds(name, value)
        extremes = list(value[:2])
    else:
        extremes = _extremes_of_domain(value)
    for each in extremes if argument is not None else ():
        config.check_values({name: each})
    return extremes


def _is_bounds(name: str, value: Any) -> bool:
    """Return whether a value in the space is a pair of bounds; other arguments may take a list as one value."""
    numbers = ul_cfg.CFG_FLOAT_KEYS | ul_cfg.CFG_FRACTION_KEYS | ul_cfg.CFG_INT_KEYS | {"scale"}
    return isinstance(value, (list, tuple)) and name in numbers


def _check_bounds(name: str, value: Sequence[Any]) -> None:
    """Raise if bounds are not two finite numbers, the lower one first, with an optional gain; equal ones are fine."""
    numbers = all(isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    if not numbers or len(value) not in {2, 3} or value[0] > value[1]:
        raise KDError(f"'{name}' in space= is {value}: give (low, high) or (low, high, gain), low not above high.")


def _extremes_of_domain(domain: Any) -> list[Any]:
    """Return the values of a Ray choice or grid, or the bounds of a Ray number domain; empty for other domains."""
    grid = domain.get("grid_search") if isinstance(domain, Mapping) else None
    categories = grid or getattr(domain, "categories", None)
    if categories:
        return list(categories)
    bounds = [getattr(domain, name, None) for name in ("lower", "upper")]
    return [] if None in bounds else bounds


def _check_effect(given: Mapping[str, Any], task: str, searched: Mapping[str, list[Any]]) -> None:
    """Raise if values of the space conflict with each other or with other arguments, or an argument has no effect.

    Args:
        given (Mapping): Arguments of the search.
        task (str): The student's task.
        searched (Mapping): Values to check of each kd argument in the space.
    """
    idle: dict[str, list[bool]] = {name: [] for name in searched}
    for i in range(max(map(len, searched.values()), default=1)):
        values = {name: extremes[min(i, len(extremes) - 1)] for name, extremes in searched.items()}
        cfg = {**DEFAULT_CFG_DICT, **given, **values, "task": task}
        config.check_values(cfg)
        config.check_combination(cfg)
        without_effect = {each.argument for each in config.idle_arguments(cfg)}
        for name, value in values.items():
            if value != config.ARGUMENTS[name].default:
                idle[name].append(name in without_effect)
    for name, without_effect_at in idle.items():
        if without_effect_at and all(without_effect_at):
            raise KDError(
                f"'{name}' in space= has no effect: for task '{task}' and the other arguments no value of it changes "
                "the training."
            )


def _check_given_once(given: Mapping[str, Any], space: Mapping[str, Any]) -> None:
    """Raise if an argument is given and searched: Ray would use the given value in every training."""
    twice = [name for name in space if name in config.ARGUMENTS and name in given]
    if twice:
        raise KDError(f"'{twice[0]}={given[twice[0]]}' is also in space=, where Ray would not vary it: drop one.")


def _domain(name: str, bounds: Sequence[float]) -> Any:
    """Return bounds as a Ray domain; a third number, the gain, is for Ultralytics' own tuner and is dropped."""
    from ray import tune  # Ultralytics checks that it is installed

    low, high = bounds[:2]
    if name in ul_cfg.CFG_INT_KEYS:
        return tune.randint(math.ceil(low), math.floor(high) + 1)
    return tune.uniform(low, high)


def _folder(given: Mapping[str, Any], task: str) -> Path:
    """Return the folder of a search that is resumed."""
    names = {"project", "name", "save_dir"}
    args = ul_cfg.get_cfg(overrides={**{k: v for k, v in given.items() if k in names}, "task": task, "exist_ok": True})
    args.name = args.name or "tune"  # as Ultralytics' tuner
    return output_folder(args)


def _check_stored_once(space: Mapping[str, Any]) -> None:
    """Raise if the space changes what the teacher is asked, as its answers are stored once for all iterations."""
    changing = [name for name in space if name in ASKED]
    if changing:
        raise KDError(
            f"'{changing[0]}' in space= changes the teacher's answers, and kd_cache=True stores them once: drop one."
        )


def _store_answers(given: Mapping[str, Any], task: str) -> str:
    """Store the teacher's answers for all iterations and return the folder."""
    plain = {k: v for k, v in given.items() if k in DEFAULT_CFG_DICT}
    args = ul_cfg.get_cfg(overrides={**plain, "task": task, "mode": "train"})
    names = None
    if args.kd_keep:  # a prompted teacher looks for all classes of the student
        names = Keeping(args, check_det_dataset(args.data)).names
    return str(build_cache(args, config.as_list(args.teacher), check_options(CACHE_ONLY), names=names).folder)
