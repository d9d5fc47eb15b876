"""What our book asks of Sphinx beyond its settings.

Docstrings are prose: `name` means code, and a lone * or | or trailing_ means itself. Google-style sections (Args,
Returns, Raises) stay with napoleon; this only keeps reStructuredText from reading markup into formulas such as
||a - b|| or M_k * W, and napoleon from reading a type into what an attribute is or a function returns. Examples stay as
they are. Signatures are shown as somebody would write them.

A chapter has the number of its file: notebooks/09_few_shot is chapter 9, and its figures are 9.1, 9.2 and so on.

Long names break after a dot, an underscore or a bracket, never inside of a word; options (--max-memory) stay whole.

An equation has the paper's number, or its chapter's and its own, by \\tag: Eq. 3, Eq. 2.1. Wherever prose names one, it
leads there; a number that no page has fails the build.
"""

from __future__ import annotations

import re
from typing import Any

CODE = re.compile(r"(?<![:`])(`{1,2})(?!`)([^`\n]+?)\1(?!`)")
CHAPTER = re.compile(r"notebooks/(\d\d)_")
# What stays as it is: blocks of code, scripts and TeX; then, every text between two tags.
BETWEEN = re.compile(
    r"<(?P<tag>pre|script|style|textarea)\b.*?</(?P=tag)>"
    r"|<(?P<maths>span|div) class=\"math.*?</(?P=maths)>"
    r"|>(?P<text>[^<$\\]+)",
    re.S,
)
JOINT = re.compile(r"(?<=[^\W_])([._/=:,]|\()(?=[^\W\d])")
TAG = re.compile(r"\\tag\{([\d.]+)\}")
NUMBER = r"\d+(?:\.\d+)?"
EQUATION = re.compile(rf"(?P<first>Eq\. ?(?P<number>{NUMBER}))(?:(?P<to>-|–| to | and )(?P<last>{NUMBER})\b)?")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
MATHS = re.compile(r'(<span class="math[^"]*">[^<]*</span>)([.,;:)\u2019!?]+(?:s\b)?)')
SOLUTION = re.compile(r"(?<=>Solution to)(<a [^>]*>) ")
COLON = "\ue000"  # stands for a colon where napoleon would take what precedes it for a type
WRITTEN = [  # how Python shows a signature, and how one writes it
    (re.compile(r"<factory>"), "..."),
    (re.compile(r"<function (\w+)>"), r"\1"),
    (re.compile(r"PosixPath\("), "Path("),
    (re.compile(r"~?_thread\.allocate_lock"), "~threading.Lock"),
    (
        re.compile(r"~?numpy\.ndarray\[tuple\[~?typing\.Any, \.\.\.\], ~?numpy\.dtype\[(~?[\w.]+)\]\]"),
        r"~numpy.typing.NDArray[\1]",
    ),
    (re.compile(r", _\w+: [^=]* = \.\.\."), ""),
]
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
    example = returned = False
    for n, line in enumerate(lines):
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        returned = line == "Returns:" or (returned and line[:1].strip() == "")
        if not example:
            line = prose(line)
        if what in ("attribute", "data", "property") or (returned and line != "Returns:"):
            line = line.replace(":", COLON)
        lines[n] = line


def with_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace(COLON, ":") for line in lines]


def left_out(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """What a named tuple says of its fields says nothing."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def written(app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returned: str) -> Any:
    for shown, meant in WRITTEN:
        signature = shown.sub(meant, signature or "")
    return signature or None, returned


def numbered(app: Any, env: Any) -> list[str]:
    """Sphinx counts chapters from 1 and every page with them; here a chapter's number is the one of its file."""
    from sphinx.environment.collectors.toctree import TocTreeCollector

    for name, sections in env.toc_secnumbers.items():
        chapter = CHAPTER.match(name)
        number = (int(chapter[1]),) if chapter else None
        for anchor in sections:
            sections[anchor] = number if anchor == "" else None
        for reference in env.tocs[name].findall(lambda node: "secnumber" in getattr(node, "attributes", {})):
            reference["secnumber"] = number if reference["anchorname"] == "" else None
        env.titles[name]["secnumber"] = number
    TocTreeCollector().assign_figure_numbers(env)
    return sorted(env.found_docs)


def equations(app: Any, doctree: Any) -> None:
    """Every equation is an anchor, and every mention a link to it. Docstrings name those of other papers, too."""
    from docutils import nodes
    from sphinx import addnodes

    docname = app.env.docname
    if app.builder.format != "html" or docname.startswith("book/api/"):
        return
    for block in doctree.findall(nodes.math_block):
        for number in TAG.findall(block.astext()):
            block["ids"].append(anchor(number))
            app.env.get_domain("std").anonlabels[anchor(number)] = (docname, anchor(number))

    def link(text: str, number: str) -> Any:
        settings = {"refdomain": "std", "reftype": "ref", "reftarget": anchor(number), "refdoc": docname}
        shown = nodes.inline("", text, classes=["std", "std-ref"])
        return addnodes.pending_xref("", shown, refexplicit=True, refwarn=True, **settings)

    leave = (nodes.literal, nodes.FixedTextElement, nodes.reference, nodes.title, nodes.math, addnodes.pending_xref)
    for text in [t for t in doctree.findall(nodes.Text) if EQUATION.search(t)]:
        around, node = [], text
        while node.parent is not None:
            around.append(node := node.parent)
        if any(isinstance(node, leave) for node in around):
            continue
        parts, end = [], 0
        for match in EQUATION.finditer(text):
            parts += [nodes.Text(text[end : match.start()]), link(match["first"], match["number"])]
            if match["last"]:
                parts += [nodes.Text(match["to"]), link(match["last"], match["last"])]
            end = match.end()
        text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def anchor(number: str) -> str:
    return f"equation-{number.replace('.', '-')}"


def breakable(app: Any, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Allow long names in the text to go on in the next line, after each of their parts."""

    def mark(match: re.Match[str]) -> str:
        if match["text"] is None:
            return match[0]
        return ">" + OPTION.sub(r'<span class="whole">\g<0></span>', JOINT.sub(r"\1<wbr>", match["text"]))

    if "body" in context:
        body = SOLUTION.sub(r" \1", context["body"])  # a link that begins with a space underlines it
        body = BETWEEN.sub(mark, body)
        context["body"] = MATHS.sub(r'<span class="whole">\1\2</span>', body)  # no line begins with a full stop


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
    app.connect("autodoc-process-docstring", with_colons, priority=900)
    app.connect("autodoc-skip-member", left_out)
    app.connect("autodoc-process-signature", written)
    app.connect("env-get-updated", numbered, priority=900)  # after Sphinx's own numbers
    app.connect("source-read", with_status)
    app.connect("doctree-read", equations)
    app.connect("html-page-context", without_thebe, priority=900)
    app.connect("html-page-context", breakable)
    from tools import course_quiz

    course_quiz.connect(app)
    return {"version": "1", "parallel_read_safe": True}
