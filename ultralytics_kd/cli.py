"""The command line: `yolo-kd` is `yolo` with kd arguments and a few commands of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ultralytics.cfg as ul_cfg
from ultralytics.utils import LOGGER

from . import __version__, activation, config
from .errors import KDError

HELP = """
    yolo-kd is yolo with knowledge distillation. Besides everything that yolo does:

        yolo-kd train model=yolo26n.pt data=coco8.yaml teacher=yolo26x.pt   distil a teacher into a student
        yolo-kd demo                        draw a data set, train a teacher, compare a student alone and distilled
        yolo-kd enable | disable            let the plain 'yolo' command here understand kd arguments, or undo it
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv (Sequence[str], optional): Arguments without the program's name; those of the process if None.

    Returns:
        (int): Exit status: 0, or 1 after an error that one sentence explains.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    own: dict[str, Callable[[list[str]], None]] = {"demo": _demo, "enable": _enable, "disable": _disable}
    try:
        if args and args[0] in own:
            own[args[0]](args[1:])
        else:
            _yolo(args)
    except (KDError, SyntaxError) as e:  # SyntaxError: what Ultralytics says of arguments that it does not know
        LOGGER.error(str(e).strip())
        return 1
    return 0


def _yolo(args: list[str]) -> None:
    """Run Ultralytics' own command line with the kd arguments known and the distilling trainers in place."""
    from .model import install

    install()
    if not args:
        LOGGER.info(HELP)
    before = ul_cfg.ARGV[:]
    ul_cfg.ARGV[:] = ["yolo", *args]  # in place and by that name: it is how Ultralytics tells its CLI from Python
    try:
        ul_cfg.entrypoint()
    finally:
        ul_cfg.ARGV[:] = before
    for arg in args:
        _add_to_special(arg.lower().lstrip("-"))


def _add_to_special(command: str) -> None:
    """Add what is ours to the output of one of Ultralytics' special commands, in any of its spellings."""
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


def _demo(args: list[str]) -> None:
    """Run the demonstration with `key=value` arguments over its defaults."""
    from .demo import run_demo

    for arg in args:
        if "=" not in arg:
            raise KDError(f"'{arg}' is no 'key=value' argument of 'yolo-kd demo'.")
    run_demo(dict(ul_cfg.parse_key_value_pair(arg) for arg in args))


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


def entrypoint() -> None:
    """Run the console script."""
    sys.exit(main())
