"""The page of commands: every command, argument and option, read from the parsers at every build of the book."""

from __future__ import annotations

import argparse
import re

from musc.cli import build_parser

MARK = "<!-- every command -->"
SPECIAL = re.compile(r"([*_<>\[\]|$`{}~])")


def page() -> str:
    """Markdown with a section per command."""
    parser = build_parser()
    commands = commands_of(parser)
    listed = "\n".join(f"| [`musc {name}`](#musc-{name}) | {prose(text)} |" for name, text, _ in commands)
    parts = [f"| Command | |\n|:--|:--|\n{listed}\n", section(parser), *(section(sub) for _, _, sub in commands)]
    return "\n".join(parts)


def commands_of(parser: argparse.ArgumentParser) -> list[tuple[str, str, argparse.ArgumentParser]]:
    """(name, help, parser) of each command."""
    (found,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [(choice.dest, choice.help or "", found.choices[choice.dest]) for choice in found._choices_actions]


def section(parser: argparse.ArgumentParser) -> str:
    """One command: what it does, how it is called, its arguments and options by group, and its examples."""
    lines = [f"## {parser.prog}", ""]
    if parser.description:
        lines += [prose(parser.description), ""]
    lines += ["```text", " ".join(parser.format_usage().split()).removeprefix("usage: "), "```", ""]
    for group in parser._action_groups:
        shown = [
            a for a in group._group_actions if not isinstance(a, argparse._SubParsersAction | argparse._HelpAction)
        ]
        if shown:
            lines += [f"**{prose((group.title or '').capitalize())}**", ""]
            for action in shown:
                lines += [f"`{words(action)}`", f": {prose((action.help or '').replace('%%', '%'))}", ""]
    if parser.epilog:
        lines += ["```text", parser.epilog.strip(), "```", ""]
    return "\n".join(lines)


def words(action: argparse.Action) -> str:
    """An argument as one types it: `-v, --verbose`, `--out DIR`, `NAME`."""
    value = str(action.metavar or action.dest.upper())
    if not action.option_strings:
        return str(action.metavar or action.dest)
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {value}"


def prose(text: str) -> str:
    """Plain text as Markdown that shows it as it is."""
    return SPECIAL.sub(r"\\\1", text)
