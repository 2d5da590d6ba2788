"""The documentation is right: its commands and Python blocks run, its links lead somewhere, its tables are complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from docs_blocks import PAGES, ROOT, Block, blocks_of, commands_in_text, dead_links, leads_nowhere
from docs_commands import check, named_files, runnable
from docs_site import Site, load_hooks
from test_extending import BLOCKS as EXTENSIONS

from ultralytics_kd import config

DOCS = ROOT / "docs"
LINKED = [
    *PAGES,
    *sorted((ROOT / "examples").rglob("*.md")),
    *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CODE_OF_CONDUCT", "CONTRIBUTING", "SECURITY")),
]
RUN, SHOWN = {"bash", "python"}, {"diff", "text", "yaml", "json"}  # languages of blocks that are run, and of others
hooks = load_hooks()
each_page = pytest.mark.parametrize("page", PAGES, ids=attrgetter("stem"))


def extends(block: Block) -> bool:
    """Return whether a block is a file or a change of the package that test_extending.py makes and runs."""
    return any("/" in file and block.code == f"# {file}\n{code}" for _, file, code in EXTENSIONS)


def runs_of(page: Path) -> list[Block]:
    """Return the blocks of a page that are run, if need be but for some of their commands."""
    blocks = [block for block in blocks_of(page) if block.language in RUN and block.reason() is None]
    return [block for block in blocks if not extends(block)]


# Blocks ---------------------------------------------------------------------------------------------------------------
@each_page
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks_of(page):
        assert block.language in RUN | SHOWN, f"{block.place}: ```{block.language} is not checked"
        if block.language == "diff" or re.match(r"# \S+/\S+\.py\n", block.code):
            assert extends(block) or block.reason(), f"{block.place} is not run by tests/test_extending.py"
        if block.language == "bash" and block.reason() is None:
            unknown = [" ".join(c) for c in block.commands if block.reason(c) is None and not runnable(c)]
            assert unknown == [], f"{block.place} needs a mark `<!-- not run: REASON -->`"


@each_page
def test_marks_have_a_use_and_name_tests_that_exist(page):
    marks = [(block, start, why) for block in blocks_of(page) for start, why in block.marks]
    assert len(marks) == page.read_text(encoding="utf-8").count("<!-- not run"), "a mark is not above a block"
    for block, start, why in marks:
        assert not start or any(" ".join(words).startswith(start) for words in block.commands), (block.place, start)
        assert [file for file in named_files(why) if not file.exists()] == []


@each_page
def test_every_command_is_a_valid_one(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks_of(page):
        for command in block.commands if block.language == "bash" else ():
            try:
                check(command)
            except Exception as e:
                raise AssertionError(f"{block.place}: {' '.join(command)}") from e
        if block.language == "python":
            compile(block.code, block.place, "exec")
    for command in commands_in_text(page) if page.name != "extending.md" else ():  # it adds arguments of its own
        try:
            check(command)
        except Exception as e:
            raise AssertionError(f"{page.name}: {' '.join(command)}") from e


# Runs -----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """Make a folder with the files that the pages name."""
    from docs_runs import make_folder

    return make_folder(tmp_path_factory.mktemp("toy"))


@pytest.mark.nightly
@pytest.mark.parametrize("page", [page for page in PAGES if runs_of(page)], ids=attrgetter("stem"))
def test_what_a_page_shows_runs(page, toy, tmp_path):
    from docs_runs import Runner, traces_removed

    shutil.copytree(toy, tmp_path, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, traces_removed(tmp_path):
        runner = Runner(tmp_path, patch)
        for block in runs_of(page):
            runner.run(block)


# Links, names and the generated table ---------------------------------------------------------------------------------
@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    assert dead_links(page) == []


def test_table_of_arguments_has_each_once_with_its_default():
    assert (DOCS / "arguments.md").read_text(encoding="utf-8").count(hooks.MARK) == 1
    table = hooks.on_page_markdown(hooks.MARK)
    for name, argument in config.ARGUMENTS.items():
        rows = [row for row in table.splitlines() if re.match(rf"\| \[?`{name}`", row)]
        assert len(rows) == 1 and rows[0].endswith(f"| `{argument.default}` |") and argument.help[:20] in rows[0]
        assert f"| {argument.range.replace('|', chr(92) + '|')} |" in rows[0]
    assert len(re.findall(r"^\| \[?`\w+`", table, re.MULTILINE)) == len(config.ARGUMENTS)


def test_table_of_arguments_links_to_sections_that_exist():
    assert set(hooks.SECTIONS) <= set(config.ARGUMENTS)
    dead = {link for link in hooks.SECTIONS.values() if leads_nowhere(DOCS / "arguments.md", link)}
    assert dead == set()


def test_every_file_that_the_page_on_the_code_names_exists():
    text = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:\w+/)*\w+(?:\.py|/))`", text))
    assert len(names) > 30
    folders = (ROOT, ROOT / "ultralytics_kd")
    assert [name for name in names if not any((folder / name).exists() for folder in folders)] == []


def test_reliability_names_the_command_of_each_fault():
    """`test_every_command_is_a_valid_one` looks for the tests that they name."""
    commands = [words for words in commands_in_text(DOCS / "reliability.md") if "pytest" in words]
    assert len(commands) > 10
    assert all(any(word.startswith("tests/") for word in words) for words in commands)


# The built site -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    """Build the documentation's site and return its pages."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # of an inactive environment
    command, own = [ROOT / ".ci" / "docs", folder], {**os.environ, "PATH": path}
    built = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return Site(folder)


@pytest.mark.nightly
def test_site_has_a_page_for_each_source_with_all_its_code(site):
    for source in (page for page in PAGES if page.parent == DOCS):
        html = site.folder / ("index.html" if source.stem == "index" else f"{source.stem}/index.html")
        assert html.exists()
        shown = site.pages[html].text
        for block in blocks_of(source):
            assert "".join(block.code.split()) in shown, f"{block.place} is not shown as it is"
        assert "<!--" not in shown and "--8<--" not in shown


@pytest.mark.nightly
def test_site_loads_nothing_from_other_hosts(site):
    assert site.foreign() == []


@pytest.mark.nightly
def test_links_between_pages_of_the_site_lead_somewhere(site):
    assert site.dead() == []
