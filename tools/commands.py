"""The page of commands: every command, argument and option, read from the parsers at every build of the book."""

from __future__ import annotations

import argparse
import re
from functools import partial

from musc.cli import build_parser

WIDTH = 90
HIDDEN = (argparse._SubParsersAction, argparse._HelpAction)
MARK = "<!-- every command -->"
CODE = re.compile(r"`([^`]+)`|((?<![\w-])--[a-z][\w-]*(?:=\S+)?|\b\w+=\"[^\"]*\")")
SPECIAL = re.compile(r"([*_<>\[\]|$`{}~])")


def page() -> str:
    """Markdown with a section per command."""
    parser = build_parser()
    commands = commands_of(parser)
    listed = "\n".join(f"| {{ref}}`musc {name} <musc-{name}>` | {prose(text)} |" for name, text, _ in commands)
    parts = [f"| Command | |\n|:--|:--|\n{listed}\n", section(parser)]
    parts += [section(sub, f"{text[:1].upper()}{text[1:]}.") for _, text, sub in commands]
    return "\n".join(parts)


def commands_of(parser: argparse.ArgumentParser) -> list[tuple[str, str, argparse.ArgumentParser]]:
    """(name, help, parser) of each command."""
    (found,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [(choice.dest, choice.help or "", found.choices[choice.dest]) for choice in found._choices_actions]


def section(parser: argparse.ArgumentParser, summary: str = "") -> str:
    """One command: what it does (`summary` where its parser is silent), how it is called, its arguments and options by
    group, and its examples."""
    parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, width=WIDTH)
    lines = [f"({parser.prog.replace(' ', '-')})=", "", f"## {parser.prog}", ""]
    if parser.description or summary:
        lines += [prose(parser.description or summary), ""]
    lines += ["```text", usage(parser), "```", ""]
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if not isinstance(action, HIDDEN)]
        if shown:
            lines += [f"**{prose((group.title or '').capitalize())}**", ""]
            for action in shown:
                lines += [f"`{words(action)}`", f": {prose((action.help or '') % vars(action))}", ""]
    for paragraph in (parser.epilog or "").strip().split("\n\n"):
        lines += examples(paragraph) if paragraph.startswith("examples:") else [prose(paragraph), ""]
    return "\n".join(lines)


def usage(parser: argparse.ArgumentParser) -> str:
    """What must be given; the options follow below."""
    formatter = parser.formatter_class(parser.prog)
    formatter.add_usage(None, [a for a in parser._actions if a.required or not a.option_strings], [], "")
    return f"{formatter.format_help().strip()} [options]"


def examples(paragraph: str) -> list[str]:
    """Each command below what is said of it."""
    lines = []
    for line in paragraph.splitlines()[1:]:
        command, *said = re.split(r"\s{2,}", line.strip(), maxsplit=1)
        lines += [f"# {text}" for text in said] + [command]
    return ["```bash", *lines, "```", ""]


def words(action: argparse.Action) -> str:
    """An argument as one types it: `-v, --verbose`, `--out DIR`, `NAME`."""
    value = str(action.metavar or action.dest.upper())
    if not action.option_strings:
        return str(action.metavar or action.dest)
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {value}"


def prose(text: str) -> str:
    """Plain text as Markdown that shows it as it is; options and what stands between backticks as code."""
    parts, end = [], 0
    for match in CODE.finditer(text):
        parts += [SPECIAL.sub(r"\\\1", text[end : match.start()]), f"`{match[1] or match[2]}`"]
        end = match.end()
    return "".join([*parts, SPECIAL.sub(r"\\\1", text[end:])])
