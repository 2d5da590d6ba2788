"""Register the kd arguments in this process: Ultralytics accepts them, and no trainer ignores a teacher."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ultralytics.utils import DEFAULT_CFG_DICT

from ..compat import advice, check_parts, check_ultralytics, installed_release
from ..errors import KDError, KDTypeError
from .arguments import ARGUMENTS, has_teacher
from .changes import Change, in_force, make
from .checks import check_combination, check_values
from .help import help_text
from .recipes import check_merged, noting_its_line


# Replacements ---------------------------------------------------------------------------------------------------------
def _with_defaults(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the defaults of the kd arguments."""
    return {**cfg, **{name: argument.default for name, argument in ARGUMENTS.items()}}


def _with_names(names: Any, chosen: Callable[[Any], Any]) -> Any:
    """Return Ultralytics' set of names of one type, with the kd arguments of that type."""
    return names | {name for name, argument in ARGUMENTS.items() if chosen(argument)}


def _checking_kd_arguments(check_stock: Callable[..., None]) -> Callable[..., None]:
    """Return a `check_cfg` that first checks the kd arguments, with errors for users."""

    @functools.wraps(check_stock)
    def check_cfg(cfg: dict, hard: bool = True) -> None:
        check_values(cfg)
        _check_not_in_cloud(cfg)
        _simplify(cfg)
        try:
            check_stock(cfg, hard)
        except TypeError as e:  # as errors of this package, which the command line prints in one line
            raise KDTypeError(str(e)) from e
        except ValueError as e:
            raise KDError(str(e)) from e

    return check_cfg


def _refusing_to_ignore_a_teacher(check_stock: Callable[..., None]) -> Callable[..., None]:
    """Return a `BaseTrainer.check_resume` that also checks the teacher; it is the first step of every trainer."""

    @functools.wraps(check_stock)
    def check_resume(self: Any, overrides: dict[str, Any]) -> None:
        check_merged(overrides)
        check_stock(self, overrides)
        check_combination(vars(self.args))
        if has_teacher(vars(self.args)):
            _check_distils(self)
            return
        for name in ARGUMENTS:  # Ultralytics alone must be able to resume a plain run
            vars(self.args).pop(name, None)

    return check_resume


# The changes; `install.CHANGES` is the whole list ---------------------------------------------------------------------
ARGUMENT_CHANGES = (
    Change(
        "ultralytics.utils",
        "DEFAULT_CFG_DICT",
        "The kd arguments have defaults. Ultralytics then suggests them for a misspelt name, prints them at the start "
        "of a run, and saves them in args.yaml and checkpoints.",
        _with_defaults,
        in_place=True,  # every module of Ultralytics holds this object
    ),
    Change("ultralytics.utils", "DEFAULT_CFG", "The same defaults, as attributes.", _with_defaults, in_place=True),
    Change(
        "ultralytics.cfg",
        "CFG_FLOAT_KEYS",
        "Ultralytics checks that these arguments are numbers, and can search them within bounds.",
        lambda names: _with_names(names, lambda argument: argument.number),
    ),
    Change(
        "ultralytics.cfg",
        "CFG_BOOL_KEYS",
        "Ultralytics checks that these arguments are True or False.",
        lambda names: _with_names(names, lambda argument: argument.type == "bool"),
    ),
    Change(
        "ultralytics.cfg",
        "CFG_STR_KEYS",
        "Ultralytics checks that these arguments, such as names of losses, are texts.",
        lambda names: _with_names(names, lambda argument: argument.choices),
    ),
    Change("ultralytics.cfg", "CLI_HELP_MSG", "The help lists the kd arguments.", lambda text: help_text() + text),
    Change(
        "ultralytics.cfg",
        "_YOLO_CLI_COMMAND",
        "A sweep over several data sets starts a process for each: it must know the kd arguments too.",
        lambda command: [sys.executable, "-m", "ultralytics_kd"],
        in_place=True,  # the trainer module holds this object
    ),
    Change(
        "ultralytics.cfg",
        "check_cfg(cfg)",
        "`get_cfg` checks the kd arguments. The command line prints a bad value of any argument in one sentence.",
        _checking_kd_arguments,
    ),
    Change(
        "ultralytics.cfg",
        "entrypoint(debug)",
        "Recipes of a `yolo` command are checked as those of `yolo-kd`; other programs' command lines are not read.",
        noting_its_line,
    ),
)
TRAINER_CHANGES = (
    Change(
        "ultralytics.engine.trainer",
        "BaseTrainer.check_resume(overrides)",
        "A trainer that does not distil refuses a teacher, and a plain run is saved without kd arguments.",
        _refusing_to_ignore_a_teacher,
    ),
)


def register_arguments() -> None:
    """Add the kd arguments to those of Ultralytics; calling it again changes nothing.

    Raises:
        KDError: If this release of Ultralytics has an argument of the same name.
    """
    if in_force(ARGUMENT_CHANGES[0]):
        return
    taken = [name for name in ARGUMENTS if name in DEFAULT_CFG_DICT]
    if taken:
        release = installed_release()
        raise KDError(
            f"ultralytics {release} has an argument '{taken[0]}' of its own, which means something else in "
            f"ultralytics_kd: {advice(release)}."
        )
    make(ARGUMENT_CHANGES)


def register() -> None:
    """Make the kd arguments known to Ultralytics, and let no trainer ignore them; calling it again changes nothing.

    Raises:
        KDError: If this release of Ultralytics has an argument of the same name, or lacks a part that is changed.
    """
    register_arguments()
    check_parts(parts_of(TRAINER_CHANGES))
    make(TRAINER_CHANGES)


def parts_of(changes: tuple[Change, ...]) -> dict[str, tuple[str, ...]]:
    """Return the parts that changes replace, by module, in the format of `compat.check_parts`.

    Args:
        changes (tuple[Change, ...]): The changes.
    """
    return {c.module: tuple(other.part for other in changes if other.module == c.module) for c in changes}


# Checks ---------------------------------------------------------------------------------------------------------------
def _check_not_in_cloud(cfg: Mapping[str, Any]) -> None:
    """Raise if `ul cloud train` has kd arguments: Platform's machines lack this plugin and would ignore them."""
    if [Path(sys.argv[0]).name.removesuffix(".exe"), *sys.argv[1:2]] != ["ul", "cloud"]:
        return
    changed = [k for k, a in ARGUMENTS.items() if cfg.get(k, a.default) != a.default]
    if changed:
        raise KDError(
            f"'{changed[0]}={cfg[changed[0]]}' has no effect in the cloud: 'ul train project=USER/PROJECT ...' distils "
            "on this machine, and Platform shows the run too."
        )


def _simplify(cfg: dict) -> None:
    """Turn checked values into values that args.yaml can hold, in place."""
    classes = cfg.get("kd_classes")
    if isinstance(classes, Mapping):
        cfg["kd_classes"] = dict(classes)
    elif isinstance(classes, Path):
        cfg["kd_classes"] = str(classes)
    for name in ("kd_cache", "kd_keep_data"):
        if isinstance(cfg.get(name), Path):
            cfg[name] = str(cfg[name])
    cfg.update({k: float(cfg[k]) for k, a in ARGUMENTS.items() if a.number and cfg.get(k) is not None})


def _check_distils(trainer: Any) -> None:
    """Raise if a trainer would ignore its teacher."""
    if not getattr(trainer, "distils", False):
        check_ultralytics()  # if Ultralytics lacks a part, no distilling trainer could take its place
        raise KDError(
            f"{type(trainer).__name__} does not distil and would ignore teacher={trainer.args.teacher}: train a YOLO "
            "model, through ultralytics_kd.YOLO or with a trainer of ultralytics_kd.trainer."
        )
