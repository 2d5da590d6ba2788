"""The built site of the documentation, and the hook that generates a part of it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

from docs_blocks import ROOT

LOADED = {
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "embed": "src",
    "video": "src",
    "link": "href",
}
NOT_LOADED = {"canonical", "prev", "next", "edit", "alternate"}  # links for search engines
ASK_OTHERS = ('data-md-component="source"', 'class="mermaid"')  # for these the theme's own script asks other hosts


def load_hooks() -> ModuleType:
    """Return the hook of MkDocs."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """A page of the site.

    Attributes:
        links (list[str]): Where its links lead.
        loaded (list[str]): What a browser loads for it.
        ids (set[str]): Its anchors.
        text (str): Its text without spaces.
    """

    def __init__(self, file: Path):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.parts: list[str] = []
        self.html = file.read_text(encoding="utf-8")
        self.feed(self.html)
        self.text = "".join("".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        address = given.get(LOADED.get(tag, ""))
        if address and not (tag == "link" and NOT_LOADED & set(given.get("rel", "").split())):
            self.loaded.append(address)
        self.loaded += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        self.loaded += _addresses(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


class Site:
    """A built site.

    Attributes:
        folder (Path): Its folder.
        pages (dict[Path, Page]): Its pages by file.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.pages = {file: Page(file) for file in sorted(folder.rglob("*.html"))}

    def foreign(self) -> list[str]:
        """Return what pages and style sheets load from other hosts."""
        loaded = [(file, address) for file, page in self.pages.items() for address in page.loaded]
        loaded += [(file, each) for file, page in self.pages.items() for each in _addresses(_styles(page.html))]
        loaded += [(file, each) for file in self.folder.rglob("*.css") for each in _addresses(file.read_text("utf-8"))]
        found = [f"{file.relative_to(self.folder)}: {each}" for file, each in loaded if urlsplit(each).netloc]
        asking = [f"{file}: {part}" for file, page in self.pages.items() for part in ASK_OTHERS if part in page.html]
        return found + asking

    def dead(self) -> list[str]:
        """Return the links and files that lead to nothing in the site."""
        return [
            f"{file.relative_to(self.folder)}: {link}"
            for file, page in self.pages.items()
            if file.name != "404.html"  # its links are absolute
            for link in (*page.links, *page.loaded)
            if not self._found(file, link)
        ]

    def _found(self, file: Path, link: str) -> bool:
        """Return whether a link of a page leads somewhere; links to other hosts do."""
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            return True
        other = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        other = other / "index.html" if other.is_dir() else other
        if other not in self.pages or not parts.fragment:
            return other.exists()
        return unquote(parts.fragment) in self.pages[other].ids


def _styles(html: str) -> str:
    """Return the style sheets inside a page."""
    return "\n".join(re.findall(r"<style[^>]*>(.*?)</style>", html, re.DOTALL))


def _addresses(css: str) -> Iterator[str]:
    """Yield what a style sheet loads."""
    for quoted, bare in re.findall(r"""url\(\s*(?:["'](.*?)["']|([^)"']*))\s*\)""", css):
        if not (quoted or bare).startswith("data:"):
            yield quoted or bare
    yield from re.findall(r"""@import\s+["'](.*?)["']""", css)
