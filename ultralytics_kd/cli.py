"""The command line: `yolo-kd` is `yolo` with kd arguments and a few commands of its own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import ultralytics.cfg as ul_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from . import __version__, activation, config
from .config import recipes
from .config.input_errors import is_input_error, sentence
from .errors import KDError, KDTypeError
from .files import as_utf8

HELP_WORDS = {"help", "h"}
OWN_OUTPUT = {*("cfg", "version", "v", "checks", "check", "copy-cfg")}  # this package adds to their output
SPECIAL = {*HELP_WORDS, *("settings", "hub", "login", "logout", "solutions")}  # Ultralytics' other non-modes
LISTS = "'yolo-kd help' and 'yolo-kd cfg' list the arguments."
FOLDERS = ("kd_cache", "kd_unlabeled")  # arguments that name folders
READ_EARLY = ("mode", "model", "task")  # arguments that Ultralytics reads before it checks any

HELP = """
    yolo-kd is yolo with knowledge distillation: a large, trained teacher guides
    a small student while it trains. A first example:

        yolo-kd train model=yolo26n.pt data=coco8.yaml teacher=yolo26x.pt

    It has all commands of yolo, and these. 'yolo-kd demo help' and the like
    have more.

        demo      Try it offline: draw images, train a teacher, and compare a
                  student alone and distilled.
                  yolo-kd demo
        advise    Before a training: go or no-go for each of teacher=a.pt,b.pt.
                  yolo-kd advise data=coco8.yaml model=yolo26n.pt teacher=a.pt
        bench     Does it help? The student alone, with Ultralytics' own
                  distill_model, and distilled, over several seeds.
                  yolo-kd bench data=coco8.yaml model=yolo26n.pt teacher=a.pt
        cache     Store a teacher's answers once, and train without running it.
                  yolo-kd cache data=coco8.yaml teacher=a.pt
        report    Teacher and student side by side on one page: accuracy, cost,
                  agreement, pictures.
                  yolo-kd report data=coco8.yaml teacher=a.pt student=best.pt
        enable    Let the plain 'yolo' command understand kd arguments.
        disable   Undo that.

    Documentation: https://ultralytics-kd.github.io/ultralytics_kd/
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv (Sequence[str], optional): Arguments without the program's name; those of the process if None.

    Returns:
        (int): Exit status: 0, or 1 after an error of the user's input, which is printed as one sentence.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], None]] = {
        "advise": _advise,
        "bench": _bench,
        "cache": _cache,
        "demo": _demo,
        "report": _report,
        "enable": _enable,
        "disable": _disable,
    }
    try:
        with nullcontext() if _asks_for_help(args) else _short_errors():
            if args and args[0] in commands:
                commands[args[0]](args[1:])
            else:
                _check_first_word(args, list(commands))
                _yolo(args)
    except Exception as e:
        if not is_input_error(e, lambda: _values(args)):  # a fault in the code: its traceback must stay
            raise
        LOGGER.error(as_utf8(_without_help(sentence(e, _values(args)))))
        return 1
    return 0


@contextmanager
def _short_errors() -> Iterator[None]:
    """Within a block, print one line instead of Ultralytics' help: after a misspelt name it fills several screens."""

    def shorten(record: logging.LogRecord) -> bool:
        """Shorten the record of the help."""
        if record.msg == ul_cfg.CLI_HELP_MSG:
            record.msg = LISTS
        return True

    LOGGER.addFilter(shorten)
    try:
        yield
    finally:
        LOGGER.removeFilter(shorten)


def _without_help(message: str) -> str:
    """Return the message of an error without Ultralytics' help, which fills a screen and leaves the reason above it."""
    reason, its_help, _ = message.partition(ul_cfg.CLI_HELP_MSG)
    return f"{reason.strip()}\n{LISTS}" if its_help else message.strip()


def _values(args: list[str]) -> list[Any]:
    """Return the values of all arguments of a command line and of its recipes."""
    line = recipes.read_line(args, certain=False)
    return [*line.given.values(), *(value for recipe in line.recipes.values() for value in recipe.values())]


def _yolo(args: list[str]) -> None:
    """Run Ultralytics' own command line with the kd arguments and the distilling trainers."""
    from .install import install

    install()
    if _asks_for_help(args):  # before Ultralytics' own help, which names the kd arguments first
        LOGGER.info(HELP)
    _check_line(args)
    before = ul_cfg.ARGV[:]
    ul_cfg.ARGV[:] = ["yolo", *args]  # see `install.CHANGES`; 'yolo' tells Ultralytics that its CLI runs
    try:
        ul_cfg.entrypoint()
    finally:
        ul_cfg.ARGV[:] = before
    for command in (arg.lower().lstrip("-") for arg in args):
        if _add_to_special(command):  # Ultralytics runs the first one and no other
            return


def _asks_for_help(args: list[str]) -> bool:
    """Return whether Ultralytics will print its help, and no other command comes first."""
    first = next((word for word in (arg.lower().lstrip("-") for arg in args) if word in OWN_OUTPUT | SPECIAL), "")
    return not args or first in HELP_WORDS


def _check_first_word(args: list[str], commands: list[str]) -> None:
    """Name the command of this package that a misspelt first word means; Ultralytics would suggest its own words.

    Raises:
        KDError: If the first word is most like a command of this package.
    """
    word = args[0].lower().lstrip("-") if args else ""
    first_words = [*commands, *ul_cfg.MODES, *ul_cfg.TASKS]
    near = get_close_matches(word, first_words, n=1, cutoff=0.7)
    known = {*first_words, *DEFAULT_CFG_DICT, *OWN_OUTPUT, *SPECIAL}
    if near and near[0] in commands and word not in known:
        raise KDError(f"'{args[0]}' is not a command: did you mean 'yolo-kd {near[0]}'?")


def _check_line(args: list[str]) -> None:
    """Check a command line: its recipes, and what Ultralytics reads before it checks arguments.

    Raises:
        KDError: If `cfg` is not a YAML of arguments, a kd argument has no value, or a mode, task or model is not a
            text.
    """
    _merged(args)  # raises if nothing stands before an '='
    line = recipes.check_line(args)
    given: dict[str, Any] = {}
    config.check_own_command((*line.given, *(name for recipe in line.recipes.values() for name in recipe)))
    for name, text in line.given.items():
        if name in config.ARGUMENTS and not text:
            raise KDError(f"'{name}=' has no value: give one, or drop it.")
        if name in FOLDERS and len(text) > 1 and type(_parsed(name, text)) in {int, float}:
            raise KDError(f"'{name}={text}' is read as a number: write {name}=./{text} if it is a folder.")
    for recipe in line.recipes.values():  # of several recipes, the first one counts
        given = {**recipe, **given}
    typed = {name: text for name, text in line.given.items() if name in READ_EARLY and text}
    given |= {name: _parsed(name, text) for name, text in typed.items()}
    config.check_plain(given)
    for name in READ_EARLY:
        if not isinstance(given.get(name), (str, type(None))):
            raise KDTypeError(f"'{name}={given[name]}' is of invalid type {type(given[name]).__name__}: give a text.")


def _parsed(name: str, text: str) -> Any:
    """Return a value of the command line as Ultralytics reads it."""
    return ul_cfg.parse_key_value_pair(f"{name}={text}")[1]


def _merged(args: list[str]) -> list[str]:
    """Return the arguments; parts that the shell split at spaces are joined again.

    Raises:
        KDError: If nothing stands before an '='.
    """
    try:
        return ul_cfg.merge_equals_args(args)
    except IndexError as e:
        raise KDError("an '=' has no argument before it.") from e


def _add_to_special(command: str) -> bool:
    """Add to the output of one of Ultralytics' special commands; return whether the command is special."""
    if command == "cfg":
        LOGGER.info(config.cfg_text())
    elif command in {"version", "v"}:
        LOGGER.info(f"ultralytics_kd {__version__}")
    elif command in {"checks", "check"}:
        from .install import distilling_model

        distilling_model()  # raises if a part is missing
        state = "enabled" if activation.enabled() else "not enabled (yolo-kd enable)"
        LOGGER.info(f"ultralytics_kd {__version__}, kd arguments in the plain 'yolo' command: {state}")
    elif command == "copy-cfg":
        with open(Path.cwd() / ul_cfg.DEFAULT_CFG_PATH.name.replace(".yaml", "_copy.yaml"), "a", encoding="utf-8") as f:
            f.write(f"\n{config.cfg_text()}")
    else:
        return command in SPECIAL
    return True


def _demo(args: list[str]) -> None:
    """Run the demonstration."""
    from .demo import DEMO_ONLY, run_demo

    given = _key_values("demo", args, DEMO_ONLY)
    if given is not None:
        run_demo(given)


def _advise(args: list[str]) -> None:
    """Say whether a distillation will pay."""
    from .advice import ADVICE_ONLY, run_advice

    given = _key_values("advise", args, ADVICE_ONLY)
    if given is not None:
        run_advice(given)


def _bench(args: list[str]) -> None:
    """Compare arms."""
    from .bench import BENCH_ONLY, run_bench

    given = _key_values("bench", args, BENCH_ONLY)
    if given is not None:
        run_bench(given)


def _cache(args: list[str]) -> None:
    """Compute and store a teacher's answers."""
    from .cache import CACHE_ONLY, USED, make_cache

    given = _key_values("cache", args, CACHE_ONLY, USED)
    if given is not None:
        make_cache(given)


def _report(args: list[str]) -> None:
    """Write a report."""
    from .report import REPORT_ONLY, USED, run_report

    given = _key_values("report", args, REPORT_ONLY, USED)
    if given is not None:
        run_report(given)


def _key_values(
    command: str, args: list[str], own: Mapping[str, Any], shared: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Return the `key=value` arguments of a command of this package, or print its help and return None.

    Args:
        command (str): The command.
        args (list[str]): Its arguments as they were typed.
        own (Mapping): Defaults of the arguments that only this command has, for the help.
        shared (Sequence[str]): Names of the other arguments that it takes, if they are few, for the help.

    Raises:
        KDError: If an argument is not `key=value`.
    """
    args = [arg.lstrip("-") for arg in _merged(args)]
    if {"help", "h"} & set(args):
        LOGGER.info(config.command_help(command, own, shared))
        return None
    for arg in args:
        if "=" not in arg or not arg.split("=", 1)[1].strip():
            raise KDError(f"'{arg}' is not a 'key=value' argument of 'yolo-kd {command}'.")
    return dict(ul_cfg.parse_key_value_pair(arg) for arg in args)


def _enable(args: list[str]) -> None:
    """Enable the kd arguments in the plain `yolo` command."""
    if _no_arguments("enable", args):
        return
    LOGGER.info(f"Enabled: 'yolo' in this environment now understands kd arguments ({activation.enable()}).")


def _disable(args: list[str]) -> None:
    """Disable the kd arguments in the plain `yolo` command."""
    if _no_arguments("disable", args):
        return
    LOGGER.info(activation.disabled())


def _no_arguments(command: str, args: list[str]) -> bool:
    """Print the help of a command that takes no arguments, and return whether it was asked for.

    Raises:
        KDError: If there are arguments.
    """
    if HELP_WORDS & {arg.lstrip("-") for arg in args}:
        LOGGER.info(config.command_help(command, {}))
        return True
    if args:
        raise KDError(f"'yolo-kd {command}' takes no arguments, got '{args[0]}'.")
    return False
