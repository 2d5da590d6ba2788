"""The command line: `yolo-kd` is `yolo` with kd arguments and a few commands of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ultralytics.cfg as ul_cfg
from ultralytics.utils import LOGGER

from . import __version__, activation, config
from .config.recipes import check_line
from .errors import KDError, KDTypeError
from .files import load_yaml

HELP = """
    yolo-kd is yolo with knowledge distillation. Besides everything that yolo does:

        yolo-kd train model=yolo26n.pt data=coco8.yaml teacher=yolo26x.pt   distil a teacher into a student
        yolo-kd demo                        draw a data set, train a teacher, compare a student alone and distilled
        yolo-kd bench data=coco8.yaml model=yolo26n.yaml teacher=yolo26x.pt seeds=3
                                            the student alone, with distill_model and distilled, in one honest table
        yolo-kd cache data=coco8.yaml teacher=yolo26x.pt
                                            store a teacher's answers once, to train with kd_cache=PATH without it
        yolo-kd report teacher=yolo26x.pt student=best.pt baseline=alone.pt data=coco8.yaml
                                            models side by side on one page: accuracy, cost, agreement, pictures
        yolo-kd enable | disable            let the plain 'yolo' command here understand kd arguments, or undo it
"""


# How Ultralytics' errors begin that are the user's to put right: data that cannot be read, a mode or task that is none,
# values of arguments that have another name now
SENTENCES = ("Dataset ", "Invalid '", "Deprecated '")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv (Sequence[str], optional): Arguments without the program's name; those of the process if None.

    Returns:
        (int): Exit status: 0, or 1 after an error that one sentence explains.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    own: dict[str, Callable[[list[str]], None]] = {
        "bench": _bench,
        "cache": _cache,
        "demo": _demo,
        "report": _report,
        "enable": _enable,
        "disable": _disable,
    }
    try:
        if args and args[0] in own:
            own[args[0]](args[1:])
        else:
            _yolo(args)
    # SyntaxError is what Ultralytics says of arguments that it does not know, FileNotFoundError of files
    except (KDError, SyntaxError, FileNotFoundError) as e:
        return _say(e)
    except (RuntimeError, TypeError, ValueError) as e:
        if not str(e).startswith(SENTENCES):
            raise
        return _say(e)
    return 0


def _say(error: Exception) -> int:
    """Print an error's message and return the exit status."""
    LOGGER.error(str(error).strip().encode(errors="backslashreplace").decode())  # file names may hold any bytes
    return 1


def _yolo(args: list[str]) -> None:
    """Run Ultralytics' own command line with the kd arguments known and the distilling trainers in place."""
    from .install import install

    install()
    if not args:
        LOGGER.info(HELP)
    _check_line(args)
    _warn_of_idle(args)
    before = ul_cfg.ARGV[:]
    ul_cfg.ARGV[:] = ["yolo", *args]  # in place and by that name: it is how Ultralytics tells its CLI from Python
    try:
        ul_cfg.entrypoint()
    finally:
        ul_cfg.ARGV[:] = before
    special = (arg.lower().lstrip("-") for arg in args)
    for command in special:
        if _add_to_special(command):  # Ultralytics runs the first one and no other
            return


def _check_line(args: list[str]) -> None:
    """Raise if what Ultralytics reads before it checks arguments is not what it takes it for.

    Raises:
        KDError: If `cfg` is no YAML of arguments, or a mode, task or model no text.
    """
    given: dict[str, Any] = {}
    for arg in _merged(args):
        key, _, value = arg.lstrip("-").rstrip(",").partition("=")
        if key.strip() in {"cfg", "mode", "model", "task"} and value.strip():
            given |= [ul_cfg.parse_key_value_pair(f"{key}={value}")]
    if given.get("cfg") is not None:
        given = {**load_yaml(given["cfg"]), **given}
    config.check_plain(given)
    check_line(args)
    for name in ("mode", "model", "task"):
        if not isinstance(given.get(name), (str, type(None))):
            raise KDTypeError(f"'{name}={given[name]}' is of invalid type {type(given[name]).__name__}: give a text.")


def _merged(args: list[str]) -> list[str]:
    """Return arguments that were parted at spaces put together.

    Raises:
        KDError: If nothing stands before an '='.
    """
    try:
        return ul_cfg.merge_equals_args(args)
    except IndexError as e:
        raise KDError("an '=' has no argument before it.") from e


def _warn_of_idle(args: list[str]) -> None:
    """Warn of kd arguments in a mode that has no use for them."""
    idle = [arg for arg in args if arg.lstrip("-").split("=")[0].strip() in config.ARGUMENTS]
    if idle and "train" not in args and any(mode in args for mode in ul_cfg.MODES):
        LOGGER.warning(f"'{idle[0]}' has no effect: only 'train' distils.")


def _add_to_special(command: str) -> bool:
    """Add what is ours to the output of one of Ultralytics' special commands, and return whether it was one."""
    if command in {"help", "h"}:
        LOGGER.info(HELP)
    elif command == "cfg":
        LOGGER.info(config.cfg_text())
    elif command in {"version", "v"}:
        LOGGER.info(f"ultralytics_kd {__version__}")
    elif command in {"checks", "check"}:
        state = "enabled" if activation.enabled() else "not enabled (yolo-kd enable)"
        LOGGER.info(f"ultralytics_kd {__version__}, kd arguments in the plain 'yolo' command: {state}")
    elif command == "copy-cfg":
        with open(Path.cwd() / ul_cfg.DEFAULT_CFG_PATH.name.replace(".yaml", "_copy.yaml"), "a", encoding="utf-8") as f:
            f.write(f"\n{config.cfg_text()}")
    else:
        return command in {"settings", "hub", "login", "logout", "solutions"}
    return True


def _demo(args: list[str]) -> None:
    """Run the demonstration with `key=value` arguments over its defaults."""
    from .demo import DEMO_ONLY, run_demo

    given = _key_values("demo", args, DEMO_ONLY, "any argument of 'yolo-kd train' but its data and teacher")
    if given is not None:
        run_demo(given)


def _bench(args: list[str]) -> None:
    """Compare arms with `key=value` arguments."""
    from .bench import BENCH_ONLY, run_bench

    given = _key_values("bench", args, BENCH_ONLY, "any argument of 'yolo-kd train' but its seed")
    if given is not None:
        run_bench(given)


def _cache(args: list[str]) -> None:
    """Compute and store a teacher's answers with `key=value` arguments."""
    from .cache import CACHE_ONLY, USED, make_cache

    given = _key_values("cache", args, CACHE_ONLY, f"{', '.join(USED)} as in 'yolo-kd train'")
    if given is not None:
        make_cache(given)


def _report(args: list[str]) -> None:
    """Write a report with `key=value` arguments."""
    from .report import REPORT_ONLY, USED, run_report

    given = _key_values("report", args, REPORT_ONLY, f"{', '.join(USED)} as in 'yolo val'")
    if given is not None:
        run_report(given)


def _key_values(command: str, args: list[str], own: Mapping[str, Any], others: str) -> dict[str, Any] | None:
    """Return the arguments of one of our commands, or print its help and return None.

    Raises:
        KDError: If an argument is no `key=value`.
    """
    args = [arg.lstrip("-") for arg in _merged(args)]
    if {"help", "h"} & set(args):
        said = ", ".join(f"{name}={'' if value is None else value}" for name, value in own.items())
        LOGGER.info(f"yolo-kd {command} [{said}] and {others}")
        return None
    for arg in args:
        if "=" not in arg or not arg.split("=", 1)[1].strip():
            raise KDError(f"'{arg}' is no 'key=value' argument of 'yolo-kd {command}'.")
    return dict(ul_cfg.parse_key_value_pair(arg) for arg in args)


def _enable(args: list[str]) -> None:
    """Enable the kd arguments in the plain `yolo` command."""
    _no_arguments("enable", args)
    LOGGER.info(f"Enabled: 'yolo' in this environment now understands kd arguments ({activation.enable()}).")


def _disable(args: list[str]) -> None:
    """Disable them."""
    _no_arguments("disable", args)
    LOGGER.info(f"Disabled: 'yolo' is Ultralytics' own again ({activation.disable()} is gone).")


def _no_arguments(command: str, args: list[str]) -> None:
    """Raise if a command that takes no arguments was given some."""
    if args:
        raise KDError(f"'yolo-kd {command}' takes no arguments, got '{args[0]}'.")
