"""What README and docs/ say can be followed: links lead somewhere, commands are ones that the parsers take."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import build_engines
from engine.cli import build
from engine.cli.__main__ import COMMANDS, make_parser
from engine.cli.command_line import CommandParser

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for place in ("", "docs", "models/miniature") for path in (ROOT / place).glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(^|\s)(sgl|build_engines\.py)\s")
BLOCK = re.compile(r"^```(?:sh|console|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of ours that a page shows, with the page's name."""
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if not COMMAND.search(line):
                    continue
                words = shlex.split(line, comments=True)
                starts = [place for place, word in enumerate(words) if word in ("sgl", "build_engines.py")]
                if starts and "…" not in words:
                    yield page.name, words[starts[0] :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            file = (page.parent / path) if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize(("page", "words"), list(commands()), ids=lambda value: " ".join(value)[:60])
def test_commands_are_taken(page: str, words: list[str]) -> None:
    parser = make_parser()
    if words[0] == "build_engines.py":
        parser = CommandParser(prog=build_engines.__name__)
        build.add_arguments(parser)
    assert parser.parse_args(words[1:])


def test_every_command_is_shown() -> None:
    assert {words[1] for _, words in commands() if words[0] == "sgl"} == COMMANDS.keys()
