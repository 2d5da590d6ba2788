"""Text for a terminal: rows, tables and commands of at most 80 columns, so that no line of a table is wrapped."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH = 80  # columns; a word that is longer, such as a path, stays whole
INDENT = 4
LONGEST_NAME = 24  # of a row of a table
MINUTE, HOUR = 60, 3600  # seconds
UNIT = re.compile(r"(?<=\d) (?=(?:px|ms|s|min|h|[GMk]i?B|GFLOPs)\b)")  # the space before a unit, where no line ends
JOINED = "\xa0"  # in place of that space
KB, MB, GB = 10**3, 10**6, 10**9  # bytes


def row(title: str, text: str, column: int = 13, indent: int = INDENT) -> list[str]:
    r"""Return a title and its text in lines; the text is wrapped beside the title.

    Args:
        title (str): The title.
        text (str): The text.
        column (int): Column at which the text begins; if the title reaches it, below the title.
        indent (int): Spaces before the title.

    Examples:
        >>> print("\n".join(row("student", "yolo26n.pt, 2.6 million parameters", column=14)))
            student   yolo26n.pt, 2.6 million parameters
    """
    head, rest = " " * indent + title, " " * column
    above = [head] if len(head) >= column else []
    first = rest if above else head.ljust(column)
    lines = textwrap.wrap(
        UNIT.sub(JOINED, text), WIDTH, initial_indent=first, subsequent_indent=rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return above + [line.replace(JOINED, " ") for line in lines]


def paragraph(text: str, indent: int = INDENT) -> list[str]:
    """Return sentences in lines.

    Args:
        text (str): The sentences.
        indent (int): Spaces before each line.
    """
    return row("", text, column=indent, indent=0) if indent else textwrap.wrap(text, WIDTH)


def command(line: str, title: str = "next", column: int = 13, indent: int = INDENT) -> list[str]:
    r"""Return a command in lines that a shell joins again, beside a title.

    Args:
        line (str): The command, as a shell reads it.
        title (str): The title.
        column (int): Column at which the command begins.
        indent (int): Spaces before the title.

    Examples:
        >>> print("\n".join(command("yolo-kd demo", indent=0, column=6)))
        next  yolo-kd demo
    """
    lines = [""]
    for word in map(shlex.quote, shlex.split(line)):  # a quoted word with spaces stays whole
        if lines[-1] and column + len(lines[-1]) + len(word) + 3 > WIDTH:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    head, rest = (" " * indent + title).ljust(column), " " * column
    return [(rest if i else head) + part + (" \\" if i < len(lines) - 1 else "") for i, part in enumerate(lines)]


def _quoted(value: Any) -> str:
    """Return a value of a list as the command line parses it: a path may hold commas and brackets."""
    return repr(str(value) if isinstance(value, Path) else value)


def command_line(name: str, given: Mapping[str, Any]) -> str:
    """Return the command line of a command of `yolo-kd` with these arguments.

    Args:
        name (str): The command.
        given (Mapping): Its arguments.
    """

    def text(value: Any) -> str:
        """Return a value in the form that the command line parses, without spaces."""
        if isinstance(value, (list, tuple)):
            plain = not any(set("[],'\"") & set(str(each)) for each in value)
            return f"[{','.join(map(str if plain else _quoted, value))}]"
        return json.dumps(value, separators=(",", ":")) if isinstance(value, dict) else str(value)

    return shlex.join(["yolo-kd", name, *(f"{k}={text(v)}" for k, v in given.items())])


def table(lines: Sequence[Sequence[str]], indent: int = INDENT) -> list[str]:
    r"""Return a table in lines: names to the left, figures to the right.

    Columns that do not fit beside the others follow below, after a second column of names. Rows without figures are
    left out.

    Args:
        lines (Sequence[Sequence[str]]): Cells, the header first. The first cell of each is its name.
        indent (int): Spaces before each line.

    Examples:
        >>> print("\n".join(table([["", "mAP50", "time"], ["alone", "0.31", "9 s"], ["distilled", "0.352", "12 s"]])))
                       mAP50  time
            alone       0.31   9 s
            distilled  0.352  12 s
    """
    names = [shortened(line[0]) for line in lines]
    first = max(map(len, names))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    blocks: list[list[int]] = [[]]
    for i in range(1, len(widths)):
        if blocks[-1] and indent + first + sum(widths[j] + 2 for j in (*blocks[-1], i)) > WIDTH:
            blocks.append([])
        blocks[-1].append(i)
    return [
        (" " * indent + name.ljust(first) + "".join(f"  {line[i]:>{widths[i]}}" for i in block)).rstrip()
        for block in blocks
        for name, line in zip(names, lines)
        if any(line[i] for i in block)
    ]


def shortened(name: str) -> str:
    """Return a name without its middle if it is too long for a table.

    Args:
        name (str): The name.

    Examples:
        >>> shortened("a-very-long-name-of-an-arm-of-a-bench")
        'a-very-long-…-of-a-bench'
    """
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"


def near(path: str | Path) -> str:
    """Return a path as short as it can be typed here: relative if it lies below the current folder.

    Args:
        path (str | Path): The path.

    Examples:
        >>> near(Path.cwd() / "runs" / "best.pt"), near("/other/best.pt")
        ('runs/best.pt', '/other/best.pt')
    """
    place, here = Path(path), Path.cwd()
    return str(place.relative_to(here)) if place.is_absolute() and place.is_relative_to(here) else str(path)


def counted(number: int, noun: str) -> str:
    """Return a number of things as text.

    Args:
        number (int): The number.
        noun (str): The noun, in singular.

    Examples:
        >>> counted(1, "epoch"), counted(2000, "epoch")
        ('1 epoch', '2,000 epochs')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def file_size(number: int) -> str:
    """Return a number of bytes with its unit.

    Args:
        number (int): The number.

    Examples:
        >>> file_size(812), file_size(24_300), file_size(800_000), file_size(3_456_000_000)
        ('812 bytes', '24 kB', '0.8 MB', '3.5 GB')
    """
    if number < KB:
        return f"{number} bytes"
    if number < MB / 10:
        return f"{number / KB:.0f} kB"
    return f"{number / MB:.1f} MB" if number < GB else f"{number / GB:.1f} GB"


def duration(seconds: float) -> str:
    """Return a time with its unit.

    Args:
        seconds (float): The time.

    Examples:
        >>> duration(3.21), duration(283), duration(20000)
        ('3.2 s', '4.7 min', '5.6 h')
    """
    if seconds < MINUTE:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.1f} min" if seconds < HOUR else f"{seconds / HOUR:.1f} h"


def near_value(value: Any) -> Any:
    """Return the value of an argument with paths as short as they can be typed here.

    Args:
        value (Any): A path or another text, a list of them, or anything else, which stays as it is.
    """
    if isinstance(value, list):
        return [near_value(each) for each in value]
    return near(value) if isinstance(value, (str, Path)) else value
