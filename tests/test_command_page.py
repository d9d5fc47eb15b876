"""The page of commands, made from the parsers: nothing is missing, and nothing is lost on its way through Markdown."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from musc import cli
from tools import commands

ROOT = Path(__file__).parents[1]
PAGE = commands.page()


def sections():
    """{command: its section}."""
    parts = re.split(r"^## musc ?", PAGE, flags=re.M)[1:]
    return {part.split("\n", 1)[0]: part for part in parts}


def parsers():
    (found,) = [a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return found.choices


def test_every_command_has_a_section():
    assert list(sections()) == ["", *parsers()]
    assert set(parsers()) == {path.stem for path in (ROOT / "musc" / "cli").glob("*.py")} & set(parsers())
    assert "weights" in sections()


@pytest.mark.parametrize("name", parsers())
def test_every_argument_stands_there_with_its_help(name):
    section = sections()[name]
    plain = re.sub(r"\\(.)|`", r"\1", section)  # as it is read, without what marks code
    for action in parsers()[name]._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        for option in action.option_strings:
            assert re.search(rf"^`[^`\n]*{option}\b[^`\n]*`$", section, re.M), option
        if not action.option_strings:
            assert f"`{action.metavar or action.dest}`\n" in section
        assert ((action.help or "") % vars(action)).replace("`", "") in plain
    for line in (parsers()[name].epilog or "").strip().splitlines():
        for part in re.split(r"\s{2,}", line.strip()):
            assert part.replace("`", "") in plain or part == "examples:"
    blocks = re.findall(r"```\w+\n(.*?)```", section, re.S)
    assert all(len(line) <= commands.WIDTH for block in blocks for line in block.splitlines())


def test_the_words_of_help_itself_are_all_there():
    """What argparse prints is the independent list: each of its options."""
    for name in ("run", "weights"):
        words = [sys.executable, "-m", "musc", name, "--help"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", done.stdout)) - {"--help"}
        assert len(options) > 2
        assert all(option in sections()[name] for option in options)


def test_options_and_names_are_code_and_the_rest_stays_as_it_is():
    assert (
        commands.prose("as `musc run` with --seed=3 (a*b), x-y--z") == r"as `musc run` with `--seed=3` (a\*b), x-y--z"
    )
    assert "%(" not in PAGE


def test_the_page_has_the_mark_once():
    assert (ROOT / "book/api/cli.md").read_text(encoding="utf-8").count(commands.MARK) == 1


def test_commands_for_weights_on_the_pages_are_understood():
    found = []
    for page in [ROOT / "README.md", *(ROOT / "book").rglob("*.md")]:
        found += re.findall(r"`(musc\s+weights\b[^`]*)`", page.read_text(encoding="utf-8"))
    found += re.findall(r"^musc weights .*$", PAGE, re.M)
    assert len(found) > 5
    for line in found:
        args = cli.build_parser().parse_args(shlex.split(line)[1:])
        assert args.command.__name__ == "weights"
