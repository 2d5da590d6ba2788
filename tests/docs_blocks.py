"""The code blocks of README.md and of the documentation's pages, with the marks that say which are not run, and why.

A comment directly above a block marks the whole block, or the commands that begin with a text in backticks:

    <!-- not run: needs two GPUs -->
    <!-- not run `pip install`: downloads from PyPI -->
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- not run(?: `([^`]+)`)?: (.+?) -->")
FENCE = re.compile(r"^( *)(```+)(.*)$")
COMMAND = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:yolo-kd|yolo|python|pytest) [^`\n]*[^`\n.])`")  # in the text or in a table


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        page (Path): The page.
        line (int): Line of its fence, the first line of a page being 1.
        language (str): What stands behind the fence.
        code (str): The code.
        marks (tuple[tuple[str, str], ...]): Beginning of the commands that are not run, "" for all, and the reason.
    """

    page: Path
    line: int
    language: str
    code: str
    marks: tuple[tuple[str, str], ...] = ()

    @property
    def place(self) -> str:
        """Where the block is, for errors."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a shell block, each as its words."""
        return commands_of(self.code)

    def reason(self, command: list[str] | None = None) -> str | None:
        """Return why a command is not run, or the whole block if none is given; None if it is run."""
        text = None if command is None else " ".join(command)
        return next((why for start, why in self.marks if not start or (text and text.startswith(start))), None)


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page."""
    lines, blocks, i = page.read_text(encoding="utf-8").splitlines(), [], 0
    while i < len(lines):
        fence = FENCE.match(lines[i])
        if fence:
            end = next(j for j in range(i + 1, len(lines)) if lines[j].strip() == fence[2])
            code = dedent("\n".join(lines[i + 1 : end]) + "\n")
            blocks.append(Block(page, i + 1, fence[3].strip(), code, _marks_above(lines, i)))
            i = end
        i += 1
    return blocks


def _marks_above(lines: list[str], i: int) -> tuple[tuple[str, str], ...]:
    """Return the marks that stand directly above a line."""
    marks: list[tuple[str, str]] = []
    while i and (mark := MARK.fullmatch(lines[i - 1].strip())):
        marks.insert(0, (mark[1] or "", mark[2]))
        i -= 1
    return tuple(marks)


def commands_of(code: str) -> list[list[str]]:
    """Return the commands of a shell, each as its words; a quote or a backslash may continue a line.

    Raises:
        ValueError: If there is something else than commands one after the other.
    """
    commands, text = [], ""
    for line in code.splitlines():
        text += line
        if text.endswith("\\"):
            text = text[:-1]
            continue
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # the quote is closed on a later line
            text += "\n"
            continue
        text = ""
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            commands.append(words[:end])
            words = words[end + 1 :]
    other = [word for words in commands for word in words if word in {"|", ";", ">", "<", "||", "&", "do", "then"}]
    if text or other:
        raise ValueError(f"only commands one after the other can be run, got {other or text!r}")
    return commands


def commands_in_text(page: Path) -> list[list[str]]:
    """Return the commands that the text and the tables of a page quote."""
    text = re.sub("<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in blocks_of(page):
        text = text.replace(block.code, "")
    return [words for quoted in COMMAND.findall(text) for words in commands_of(quoted.replace("\\|", "|"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, where GitHub and MkDocs agree on them."""
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):  # a comment in code is no heading
        text = text.replace(block.code, "")
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        on_github = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        if page.parent.name != "docs" or on_github == re.sub(r"-+", "-", on_github):  # MkDocs has no two dashes
            found.add(on_github)
    return found


def dead_links(page: Path) -> list[str]:
    """Return the links and images of a page that lead to no file, or to no heading, of the project."""
    links = re.findall(r"(?:\]\(|src=\")(?!https?:|mailto:)([^)\s\"]+)[)\"]", page.read_text(encoding="utf-8"))
    return [link for link in links if leads_nowhere(page, link)]


def leads_nowhere(page: Path, link: str) -> bool:
    """Return whether a link of a page leads to nothing."""
    file, _, anchor = link.partition("#")
    other = (page.parent / file).resolve() if file else page
    return not other.exists() or (bool(anchor) and anchor not in anchors(other))
