"""The kd arguments as text: for `yolo-kd help`, and in the format of Ultralytics' default.yaml."""

from __future__ import annotations

from ..screen import row
from .arguments import GROUPS, Argument


def help_text() -> str:
    """Return the kd arguments in their groups, for the command line's help."""
    lines = ["", "    Arguments of a distillation, for 'train':"]
    for group in GROUPS:
        lines += ["", f"    {group.title}{' (for experts)' if group.expert else ''}"]
        for name, argument in group.arguments.items():
            lines += row(f"{name}={_default(argument)}", _sentence(argument), column=30, indent=6)
    return "\n".join(lines) + "\n"


def cfg_text() -> str:
    """Return the kd arguments in the format of Ultralytics' default.yaml."""
    title = "# Distillation settings (ultralytics_kd) "
    lines = [f"{title}{'-' * (120 - len(title))}"]
    for group in GROUPS:
        lines += ["", f"# {group.title}"]
        for name, argument in group.arguments.items():
            lines.append(f"{name}: {_default(argument)} # ({argument.type}) {_sentence(argument)}")
    return "\n".join(lines) + "\n"


def _default(argument: Argument) -> str:
    """Return the default of an argument as it is written in a YAML or on a command line."""
    return "" if argument.default is None else str(argument.default)


def _sentence(argument: Argument) -> str:
    """Return help and accepted values in one line; plain numbers and switches need no accepted values."""
    plain = not (argument.values or argument.choices or argument.bounds)
    return argument.help if plain else f"{argument.help} [{argument.range}]"
