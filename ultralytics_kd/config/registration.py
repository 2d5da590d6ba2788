"""The kd arguments in Ultralytics, in this process: they are known to its configuration, and no trainer ignores one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ultralytics.cfg as ul_cfg
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT

from ..compat import check_parts, check_ultralytics
from ..errors import KDError, KDTypeError
from .arguments import ARGUMENTS, has_teacher, help_text
from .checks import check_combination, check_values
from .recipes import check_merged

# What is patched here, beside the configuration
PATCHED = {"ultralytics.engine.trainer": ("BaseTrainer.check_resume(overrides)",)}


def register_arguments() -> None:
    """Make the kd arguments real Ultralytics arguments, as often as called.

    They then have defaults, are type- and range-checked by `get_cfg`, offered when an argument is misspelt, printed at
    start, and saved in `args.yaml` and checkpoints. `DEFAULT_CFG_DICT` is changed in place because every module of
    Ultralytics holds that very object.
    """
    if "teacher" in DEFAULT_CFG_DICT:
        return
    for name, argument in ARGUMENTS.items():
        DEFAULT_CFG_DICT[name] = argument.default
        setattr(DEFAULT_CFG, name, argument.default)
    ul_cfg.CFG_FLOAT_KEYS = ul_cfg.CFG_FLOAT_KEYS | {k for k, a in ARGUMENTS.items() if a.number}
    ul_cfg.CFG_BOOL_KEYS = ul_cfg.CFG_BOOL_KEYS | {k for k, a in ARGUMENTS.items() if a.type == "bool"}
    ul_cfg.CFG_STR_KEYS = ul_cfg.CFG_STR_KEYS | {k for k, a in ARGUMENTS.items() if a.choices}
    ul_cfg.CLI_HELP_MSG += help_text()
    # Sweeps over several data sets start `yolo` as a process, from this very list: theirs must know the arguments too
    ul_cfg._YOLO_CLI_COMMAND[:] = [sys.executable, "-m", "ultralytics_kd"]
    stock_check = ul_cfg.check_cfg

    @functools.wraps(stock_check)
    def check_cfg(cfg: dict, hard: bool = True) -> None:
        check_values(cfg)  # first: its errors are sentences for users
        _check_place(cfg)
        _simplify(cfg)
        try:
            stock_check(cfg, hard)
        except TypeError as e:  # Ultralytics' own sentences, as errors that the command line knows for sentences
            raise KDTypeError(str(e)) from e
        except ValueError as e:
            raise KDError(str(e)) from e

    ul_cfg.check_cfg = check_cfg


def _check_place(cfg: Mapping[str, Any]) -> None:
    """Raise if `ul cloud train` is to distil: Platform's machines lack this plugin, and cost as much without it."""
    if [Path(sys.argv[0]).stem, *sys.argv[1:2]] != ["ul", "cloud"]:
        return
    given = [k for k, a in ARGUMENTS.items() if cfg.get(k, a.default) != a.default]
    if given:
        raise KDError(
            f"'{given[0]}={cfg[given[0]]}' has no effect in the cloud: 'ul train project=USER/PROJECT ...' distils on "
            "this machine and is followed on Platform as well."
        )


def _simplify(cfg: dict) -> None:
    """Turn checked values into those that args.yaml can hold, in place."""
    classes = cfg.get("kd_classes")
    if isinstance(classes, Mapping):
        cfg["kd_classes"] = dict(classes)
    elif isinstance(classes, Path):
        cfg["kd_classes"] = str(classes)
    if isinstance(cfg.get("kd_cache"), Path):
        cfg["kd_cache"] = str(cfg["kd_cache"])
    cfg.update({k: float(cfg[k]) for k, a in ARGUMENTS.items() if a.number and cfg.get(k) is not None})


def register() -> None:
    """Make the kd arguments known to Ultralytics, and let no trainer pass over them in silence; repeatable."""
    register_arguments()
    check_parts(PATCHED)
    from ultralytics.engine.trainer import BaseTrainer

    stock = BaseTrainer.check_resume
    if getattr(stock, "kd", False):
        return

    @functools.wraps(stock)
    def check_resume(self: BaseTrainer, overrides: dict[str, Any]) -> None:
        check_merged(overrides)
        stock(self, overrides)
        check_combination(vars(self.args))
        if has_teacher(vars(self.args)):
            _check_distils(self)
            return
        for name in ARGUMENTS:  # a plain run is saved as Ultralytics would, and resumed by it alone
            vars(self.args).pop(name, None)

    setattr(check_resume, "kd", True)  # noqa: B010 (the wrapped type has no such attribute)
    BaseTrainer.check_resume = check_resume


def _check_distils(trainer: Any) -> None:
    """Raise if a trainer would ignore its teacher."""
    if not getattr(trainer, "distils", False):
        check_ultralytics()  # a missing part is why the trainers that distil could not take its place
        raise KDError(
            f"{type(trainer).__name__} does not distil, so that teacher={trainer.args.teacher} would be ignored: YOLO "
            "models do, through ultralytics_kd.YOLO or with a trainer of ultralytics_kd.trainer."
        )
