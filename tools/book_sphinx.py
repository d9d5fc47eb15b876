"""What our book asks of Sphinx beyond its settings.

Docstrings are prose: `name` means code, and a lone * or | or trailing_ means itself.

Google-style sections (Args, Returns, Raises) stay with napoleon; this only keeps reStructuredText from reading
markup into formulas such as ||a - b|| or M_k * W.
"""

from __future__ import annotations

import re
from typing import Any

CODE = re.compile(r"(?<![:`])(`{1,2})(?!`)([^`\n]+?)\1(?!`)")
SPECIAL = re.compile(r"[*|]|(?<=\w)_(?!\w)")


def prose(line: str) -> str:
    """One line of reStructuredText that shows the line as it was written."""
    parts: list[str] = []
    end = 0
    for match in CODE.finditer(line):
        parts += [SPECIAL.sub(r"\\\g<0>", line[end : match.start()]), f"``{match[2]}``"]
        if line[match.end() : match.end() + 1].isalnum():  # `Sample`s: markup must end at a word's end
            parts.append("\\ ")
        end = match.end()
    return "".join([*parts, SPECIAL.sub(r"\\\g<0>", line[end:])])


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [prose(line) for line in lines]


def without_thebe(app: Any, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Jupyter Book always loads sphinx-thebe, which declares its constants twice: an error in every page's console."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe" not in str(getattr(script, "filename", script)).lower()
        and "THEBE" not in (getattr(script, "attributes", None) or {}).get("body", "")
    ]


def with_status(app: Any, docname: str, content: list[str]) -> None:
    """The pages of status and commands hold a mark; what stands there is read from the executed notebooks, and from
    the parsers, at every build."""
    if docname == "book/status":
        from tools import status

        content[0] = content[0].replace(status.MARK, status.page())
    if docname == "book/api/cli":
        from tools import commands

        content[0] = content[0].replace(commands.MARK, commands.page())


def setup(app: Any) -> dict[str, Any]:
    # Before napoleon (500), which adds markup of its own.
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("source-read", with_status)
    app.connect("html-page-context", without_thebe, priority=900)
    return {"version": "1", "parallel_read_safe": True}
