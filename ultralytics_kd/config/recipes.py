"""Files of arguments, which may be a stranger's: they name no code and do not say that they are trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ultralytics.cfg as ul_cfg

from ..errors import KDError
from ..files import load_yaml
from .arguments import has_teacher, listed
from .user_code import names_object

TRUST = "kd_trust_teacher"
CODE = ("teacher", "kd_feat_loss")  # arguments that may name code


def check_recipe(file: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments in a file that is given as `cfg`, checked.

    Args:
        file (str | Path): The YAML.
        said (Mapping): Arguments that the command or call itself gives.

    Raises:
        KDError: If it is none, or has what it must not.
    """
    recipe = load_yaml(file)
    check_arguments(recipe, f"cfg={file}", said)
    return recipe


def check_arguments(recipe: Mapping[str, Any], place: str, said: Mapping[str, Any]) -> None:
    """Raise if arguments from a file make code run that the command does not name itself, or trust it.

    Args:
        recipe (Mapping): The arguments.
        place (str): Where they stand, for errors.
        said (Mapping): Arguments that the command or call itself gives.

    Raises:
        KDError: If they do.
    """
    if recipe.get(TRUST) and TRUST not in said:
        raise KDError(
            f"{place} sets {TRUST}, which no file can say of itself: drop it there, and if you trust the file give "
            f"{TRUST}=True in the command."
        )
    if str(said.get(TRUST)).lower() == "true":
        return
    for name in CODE:
        values = listed(recipe.get(name))
        code = [v for v in (values if isinstance(values, list) else [values]) if names_object(v)]
        if code and name not in said:
            raise KDError(
                f"{place} has {name}={code[0]}, which would run code of that name: give it in the command itself, or "
                f"{TRUST}=True if you trust the file."
            )


def check_call(arguments: Mapping[str, Any]) -> None:
    """Check the recipes of a call of `train` or `tune`, and of the command line that it may have come from.

    Args:
        arguments (Mapping): Arguments of the call.

    Raises:
        KDError: As `check_recipe` does.
    """
    if arguments.get("cfg"):
        check_recipe(arguments["cfg"], {k: v for k, v in arguments.items() if k != "cfg"})
    check_line(ul_cfg.ARGV[1:], ours=False)


def check_line(line: list[str], ours: bool = True) -> None:
    """Check every recipe of a command line: Ultralytics merges them all, and hands on what comes out without a word.

    Args:
        line (list[str]): Arguments of the command.
        ours (bool): Whether it is surely a command line of Ultralytics: that of another program may mean anything.

    Raises:
        KDError: As `check_recipe` does.
    """
    try:
        pairs = [arg.lstrip("-").rstrip(",").partition("=") for arg in ul_cfg.merge_equals_args(list(line))]
    except IndexError:  # an '=' with nothing before it, of which others speak
        return
    given = [(name.strip(), value.strip()) for name, equals, value in pairs if equals]
    said = {name: value for name, value in given if name != "cfg"}
    for file in (value for name, value in given if name == "cfg" and value):
        try:
            recipe = load_yaml(file)
        except (KDError, FileNotFoundError):
            if ours:
                raise
            continue
        check_arguments(recipe, f"cfg={file}", said)


def check_merged(arguments: Mapping[str, Any]) -> None:
    """Check the recipe of a trainer that was given arguments and those of a file as one.

    Args:
        arguments (Mapping): The arguments; `cfg` is among them if there was a file.

    Raises:
        KDError: As `check_recipe` does; of what is the same in both, the file said it.
    """
    if arguments.get("cfg"):
        recipe = load_yaml(arguments["cfg"])
        said = {k: v for k, v in arguments.items() if k != "cfg" and v != recipe.get(k)}
        check_arguments(recipe, f"cfg={arguments['cfg']}", said)


def check_unfinished(model: Any, arguments: Mapping[str, Any]) -> None:
    """Raise if a finished run with a teacher is to be resumed: Ultralytics would begin another, on data of its own.

    Args:
        model (YOLO): The model of the run's checkpoint.
        arguments (Mapping): Those of `train`.

    Raises:
        KDError: If there is nothing to resume.
    """
    ckpt = model.ckpt or {}
    taught = has_teacher(ckpt.get("train_args") or {})
    if arguments.get("resume") is True and taught and not ckpt.get("optimizer"):
        raise KDError(
            f"{model.ckpt_path} is of a run that is finished: there is nothing to resume. To train it further, start a "
            "new run with data= and teacher=, and without resume."
        )
