"""Recipes are files of arguments that may come from a stranger, so they must not name code or grant trust."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import ultralytics.cfg as ul_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from ..errors import KDError
from ..files import load_yaml
from .arguments import ARGUMENTS, has_teacher
from .checks import check_own_command, check_teacher_given
from .user_code import names_library_model, names_object

TRUST = "kd_trust_teacher"
OF_A_RUN = ("cfg", "mode", "model", "task", "save_dir", "resume")  # entries of args.yaml that no search takes
DROPPED = " \t\r\n'\"[]()"  # around a value
CODE = ("teacher", *(name for name, argument in ARGUMENTS.items() if argument.user_code))  # they may name code


@dataclass(frozen=True)
class CommandLine:
    """The arguments of a command line of Ultralytics.

    Attributes:
        given (dict[str, str]): Arguments of the line itself as they were typed, without `cfg`.
        recipes (dict[str, dict[str, Any]]): Arguments of each `cfg` file, by its name.
    """

    given: dict[str, str] = field(default_factory=dict)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)


_running: CommandLine | None = None  # the command line that Ultralytics runs at the moment
_called: ContextVar[Any] = ContextVar("_called", default=None)  # the checked recipe of the call that runs


def check_recipe(file: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments in a file that is given as `cfg`, checked.

    Args:
        file (str | Path): The YAML.
        given (Mapping): Arguments that the command or call itself gives.

    Raises:
        KDError: If it is not valid YAML, or if it names code or trusts itself.
    """
    recipe = load_yaml(file)
    check_arguments(recipe, f"cfg={file}", given)
    return recipe


def check_arguments(recipe: Mapping[str, Any], place: str, given: Mapping[str, Any]) -> None:
    """Raise if arguments from a file run code that the command does not name itself, or grant trust.

    Args:
        recipe (Mapping): The arguments.
        place (str): Where they stand, for errors.
        given (Mapping): Arguments that the command or call itself gives.

    Raises:
        KDError: If they name such code or grant trust.
    """
    recipe = {str(name).strip(): value for name, value in recipe.items()}  # as a command line reads it
    if recipe.get(TRUST) and TRUST not in given:
        raise KDError(
            f"{place} sets {TRUST}, which only the command can set: drop it there, and if you trust the file give "
            f"{TRUST}=True in the command."
        )
    if str(given.get(TRUST)).lower() == "true":
        return
    for name in CODE:
        code = [text for text in _readings(recipe.get(name)) if _names_code(name, text)]
        if code and name not in given:
            raise KDError(
                f"{place} has {name}={code[0]}, which would run code of that name: give it in the command itself, or "
                f"{TRUST}=True if you trust the file."
            )


def _readings(value: Any) -> Iterator[str]:
    """Yield all texts that a later reader may make of a value: readers drop quotes and spaces, or split at commas."""
    if isinstance(value, (list, tuple, set)):
        for each in value:
            yield from _readings(each)
    elif isinstance(value, str):
        yield from (part.strip(DROPPED) for part in (value, *value.split(",")))
        parsed = ul_cfg.smart_value(value.strip())  # what a command line makes of it
        if parsed != value:
            yield from _readings(parsed)


def _names_code(argument: str, value: Any) -> bool:
    """Return whether a value names code; a pretrained model of a known library is a teacher and not code."""
    return names_object(value) and not (argument == "teacher" and names_library_model(value))


def check_call(arguments: Mapping[str, Any]) -> None:
    """Check a call of `train` or `tune`: its recipe, the recipes of Ultralytics' command line, and its teacher.

    Ultralytics' command line makes such a call too. The command lines of other programs are not checked.

    Args:
        arguments (Mapping): Arguments of the call.

    Raises:
        KDError: As `check_recipe` does, or if the call gives a kd argument and there is no teacher.
    """
    given = {name: value for name, value in arguments.items() if name != "cfg"}
    recipe = check_recipe(arguments["cfg"], given) if arguments.get("cfg") else {}
    merged: set[str] = set()
    if _running is not None:  # Ultralytics has merged the recipes of its command line into the call
        for file, each in _running.recipes.items():
            check_arguments(each, f"cfg={file}", _running.given)
            merged |= each.keys() - _running.given.keys()
    check_own_command((*recipe, *given))
    check_teacher_given(given.keys() - merged, {**recipe, **given})


def call_with_recipe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check a call of `tune`, and return its arguments with those of its recipe, which Ultralytics' tuners drop.

    Args:
        arguments (Mapping): Arguments of the call.

    Raises:
        KDError: As `check_call` does.
    """
    check_call(arguments)
    given = dict(arguments)
    file = given.pop("cfg", None)
    recipe = load_yaml(file) if file else {}
    return {**{k: v for k, v in recipe.items() if v is not None and k not in OF_A_RUN}, **given}


@contextmanager
def calling(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Check a call of `train`, whose recipe counts as checked within the block.

    Args:
        arguments (Mapping): Arguments of the call.

    Raises:
        KDError: As `check_call` does.
    """
    check_call(arguments)
    token = _called.set(arguments.get("cfg"))
    try:
        yield
    finally:
        _called.reset(token)


def check_line(line: list[str]) -> CommandLine:
    """Read a command line and check its recipes before Ultralytics merges them, which hides where a value came from.

    Args:
        line (list[str]): Arguments of the command.

    Raises:
        KDError: As `check_recipe` does.
        FileNotFoundError: If a recipe does not exist.
    """
    read = read_line(line)
    for file, recipe in read.recipes.items():
        check_arguments(recipe, f"cfg={file}", read.given)
    return read


def read_line(line: list[str], certain: bool = True) -> CommandLine:
    """Read a command line of Ultralytics.

    Args:
        line (list[str]): Arguments of the command.
        certain (bool): Whether a recipe that cannot be read is an error; if not, Ultralytics reports it.

    Raises:
        KDError: If a recipe is not valid YAML.
        FileNotFoundError: If a recipe does not exist.
    """
    try:
        pairs = [arg.lstrip("-").rstrip(",").partition("=") for arg in ul_cfg.merge_equals_args(list(line))]
    except (IndexError, SyntaxError):  # an '=' with nothing before it, or an open bracket; Ultralytics reports it
        return CommandLine()
    typed = [(name.strip(), value.strip()) for name, equals, value in pairs if equals]
    flags = [name for name, equals, _ in pairs if not equals and isinstance(DEFAULT_CFG_DICT.get(name), bool)]
    typed += [(name, "True") for name in flags]
    read = CommandLine({name: value for name, value in typed if name != "cfg"})
    for file in (value for name, value in typed if name == "cfg" and value):
        path = ul_cfg.parse_key_value_pair(f"cfg={file}")[1]
        try:
            recipe = {} if path is None else load_yaml(path)
        except (KDError, FileNotFoundError):
            if certain:
                raise
            continue
        read.recipes[file] = recipe
    return read


def noting_its_line(stock: Callable[..., None]) -> Callable[..., None]:
    """Return Ultralytics' `entrypoint`, which notes its command line for `check_call`.

    Args:
        stock (Callable): Ultralytics' own.
    """

    @functools.wraps(stock)
    def entrypoint(debug: str = "") -> None:
        global _running
        line = (debug.split(" ") if debug else ul_cfg.ARGV)[1:]
        before, _running = _running, read_line(line, certain=False)
        mode = _running.given.get("mode") or next((word for word in line if word in ul_cfg.MODES), "")
        warn_of_idle(mode, _running.given)
        try:
            stock(debug)
        finally:
            _running = before

    return entrypoint


def warn_of_idle(mode: str, given: Mapping[str, Any]) -> None:
    """Warn of kd arguments in a mode that ignores them.

    Args:
        mode (str): The mode; empty for a command that has none.
        given (Mapping): Arguments of the command or call.
    """
    idle = [name for name in given if name in ARGUMENTS]
    if idle and mode and mode != "train":
        LOGGER.warning(f"'{idle[0]}={given[idle[0]]}' has no effect on '{mode}': only 'train' distils.")


def check_merged(arguments: Mapping[str, Any]) -> None:
    """Check the recipe of a trainer whose arguments and recipe are merged already, unless the call was checked.

    Args:
        arguments (Mapping): The arguments; `cfg` is among them if there was a file.

    Raises:
        KDError: As `check_recipe` does. A value that is equal in both counts as a value of the file.
    """
    if arguments.get("cfg") and arguments["cfg"] != _called.get():
        recipe = load_yaml(arguments["cfg"])
        given = {k: v for k, v in arguments.items() if k != "cfg" and v != recipe.get(k)}
        check_arguments(recipe, f"cfg={arguments['cfg']}", given)


def check_unfinished(model: Any, arguments: Mapping[str, Any]) -> None:
    """Raise if a finished run with a teacher is to be resumed: Ultralytics would start a new run on its default data.

    Args:
        model (YOLO): The model of the run's checkpoint.
        arguments (Mapping): Arguments of `train`.

    Raises:
        KDError: If there is nothing to resume.
    """
    ckpt = model.ckpt or {}
    taught = has_teacher(ckpt.get("train_args") or {})
    if arguments.get("resume") is True and taught and not ckpt.get("optimizer"):
        raise KDError(
            f"{model.ckpt_path} belongs to a run that is finished: there is nothing to resume. To train it further, "
            "start a new run with data= and teacher=, and without resume."
        )
