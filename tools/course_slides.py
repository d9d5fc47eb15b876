"""The decks: course/slides/session_N.md, with figures, tables, sentences and code of the executed notebooks.

Slides are parted by ---, and what follows `Note:` is for the speaker. A line that begins with :: takes something from a
notebook, named by its number, so that no result is typed a second time:

    :: figure 03 fig-msm-maps            a figure by its label; as a vector where the figure pack was made
    :: say 03 With the interval          the one sentence of the outputs that holds these words
    :: table 03 30 to 100 %              the one printed table that holds these words
    :: code 03 by_hand = torch           the lines around these words, up to the next blank ones
    :: source musc.lnamd.aggregate       the body of a function of the package
    ?? Which of the two?                 a question to the class

The decks open without a network and without a server. course/slides/reveal is reveal.js 5.1.0 (MIT), as published;
MathJax is the book's.
"""

from __future__ import annotations

import base64
import html
import importlib
import inspect
import json
import re
import shutil
from ast import get_docstring, parse
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

from jinja2 import Template
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from tools.notebooks import FOLDER as NOTEBOOKS
from tools.notebooks import ROOT

FOLDER = ROOT / "course" / "slides"
MATHJAX = ROOT / "book" / "_static" / "mathjax"
DIRECTIVE = re.compile(r":: (\w+) (\S+) ?(.*)")
LARGEST = 2_000_000  # bytes of a vector: beyond, a browser draws pixels faster
END = re.compile(r"(?<=[.!?:]) (?=[A-Z*`\"“])")  # of a sentence


class SlideError(Exception):
    """A slide that cannot be made; the text names the line."""


@cache
def cells(number: str) -> list[dict[str, Any]]:
    """The cells of the executed notebook with this number."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found]


def outputs(cell: dict[str, Any], kind: str) -> list[str]:
    """What a cell shows of one MIME type."""
    return ["".join(o["data"][kind]) for o in cell.get("outputs", []) if kind in o.get("data", {})]


def one(found: list[Any], what: str) -> Any:
    if len(found) != 1:
        raise SlideError(f"{what} is found {len(found)} times: name it so that it is found once.")
    return found[0]


def plain(text: str) -> str:
    """Markdown of a notebook for a slide: links lead nowhere there, roles of Sphinx and quotes are not known."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\{[\w:]+\}`([^`]+)`", r"\1", text)
    return re.sub(r"^[>\s-]+", "", re.sub(r"\s+", " ", text))


def code(number: str, words: str) -> str:
    """The block of code lines of a notebook that holds `words`."""
    blocks = [part for cell in cells(number) if cell["cell_type"] == "code" for part in cell["source"].split("\n\n")]
    return one([block for block in blocks if words in block], f"{words!r} in the code of notebook {number}")


def figure(number: str, label: str, out: Path, vectors: Path) -> tuple[str, str]:
    """A figure as an img element, and its caption; the file goes below `out`."""
    known = {c["metadata"].get("mystnb", {}).get("figure", {}).get("name"): c for c in cells(number)}
    if label not in known:
        raise SlideError(f"notebook {number} has no figure {label!r}.")
    cell = known[label]
    settings = cell["metadata"]["mystnb"]
    vector = vectors / f"{label}.svg"
    usable = vector.is_file() and vector.stat().st_size < LARGEST
    name = f"{label}.svg" if usable else f"{label}.png"
    (out / "figures").mkdir(parents=True, exist_ok=True)
    if usable:
        shutil.copy(vector, out / "figures" / name)
    else:
        (out / "figures" / name).write_bytes(base64.b64decode(one(outputs(cell, "image/png"), label)))
    alt = html.escape(settings["image"]["alt"])
    return f'<img class="r-stretch" src="figures/{name}" alt="{alt}">', settings["figure"]["caption"]


def sentence(number: str, words: str) -> str:
    """The one sentence of a notebook's outputs that holds `words`."""
    texts = [text for cell in cells(number) for text in outputs(cell, "text/markdown")]
    every = [part for text in texts for line in text.split("\n") for part in END.split(line) if words in part]
    return plain(one(every, f"{words!r} in what notebook {number} says"))


def table(number: str, words: str) -> str:
    """The one table of a notebook that holds `words`, without its style."""
    every = [text for cell in cells(number) for text in outputs(cell, "text/html")]
    text = one(
        [text for text in every if words in html.unescape(text)], f"{words!r} in the tables of notebook {number}"
    )
    text = re.sub(r"<style.*?</style>|</?div[^>]*>|<p>.*?</p>", "", text, flags=re.S)
    return re.sub(r"\n\s*", "", re.sub(r"<table[^>]*>", '<table class="numbers">', text))


def source(name: str) -> str:
    """The body of a function of the package, without its docstring."""
    module, _, function = name.rpartition(".")
    text = dedent(inspect.getsource(getattr(importlib.import_module(module), function)))
    node: Any = parse(text).body[0]
    first = node.body[1] if get_docstring(node) else node.body[0]
    return dedent("\n".join(text.splitlines()[first.lineno - 1 :]))


def highlighted(text: str) -> str:
    return f"<pre><code>{html.escape(text.strip())}</code></pre>"


def maths(text: str, options: dict[str, Any]) -> str:
    left, right = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
    return f"{left}{html.escape(text)}{right}"


def markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable("table").use(dollarmath_plugin, renderer=maths)


def slide(text: str, out: Path, vectors: Path) -> str:
    """One slide in HTML."""
    body, _, note = text.partition("\nNote:")
    lines, used, said = [], [], [note.strip()]
    for line in body.strip().splitlines():
        match = DIRECTIVE.fullmatch(line.strip())
        if line.startswith("?? "):
            lines += ["", f'<p class="ask">{markdown().renderInline(line[3:])}</p>', ""]
        elif not match:
            lines.append(line)
        if not match:
            continue
        kind, where, words = match.groups()
        used.append(where)
        if kind == "figure":
            image, caption = figure(where, words, out, vectors / where)
            lines += ["", image, ""]
            said.append(f"Figure: {plain(caption)}")
        elif kind == "say":
            lines += ["", sentence(where, words), ""]
        elif kind == "table":
            lines += ["", table(where, words), ""]
        elif kind == "code":
            lines += ["", highlighted(code(where, words)), ""]
        elif kind == "source":
            lines += ["", highlighted(source(where)), ""]
        else:
            raise SlideError(f"unknown directive: {line}")
    chapters = sorted({w for w in used if w.isdigit()})
    if chapters:
        lines += ["", f'<p class="from">From chapter {", ".join(str(int(w)) for w in chapters)}</p>']
    notes = "\n\n".join(part for part in said if part)
    shown = markdown().render("\n".join(lines))
    return shown + (f'<aside class="notes">{markdown().render(notes)}</aside>' if notes else "")


def slides(path: Path) -> list[str]:
    """The sources of a deck's slides."""
    return re.split(r"^---$", path.read_text(encoding="utf-8"), flags=re.M)


def deck(path: Path, out: Path, vectors: Path = Path()) -> Path:
    """One deck below `out`. Raises SlideError naming the slide."""
    made = []
    for n, text in enumerate(slides(path), 1):
        try:
            made.append(slide(text, out, vectors))
        except (SlideError, AttributeError, ValueError) as error:
            raise SlideError(f"{path.name}, slide {n}: {error}") from None
    title = slides(path)[0].strip().splitlines()[0].lstrip("# ")
    template = Template((FOLDER / "deck.html").read_text(encoding="utf-8"))
    page = out / f"{path.stem}.html"
    page.write_text(template.render(title=html.escape(title), slides=made), encoding="utf-8")
    return page


def build(out: Path, vectors: Path) -> list[Path]:
    """All decks, with what they need beside them."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copytree(FOLDER / "reveal", out / "reveal")
    shutil.copytree(MATHJAX, out / "mathjax")
    shutil.copy(FOLDER / "deck.css", out)
    return [deck(path, out, vectors) for path in sorted(FOLDER.glob("session_*.md"))]


def look(page: Any, file: Path) -> list[str]:
    """The faults of a deck that is shown in a browser's tab at 1280 x 720, each with its slide."""
    page.look(width=1280, height=720)
    page.go(file.resolve().as_uri())
    page.wait("'ready' in document.documentElement.dataset")
    script = (Path(__file__).with_suffix(".js")).read_text(encoding="utf-8")
    faults = [f"{file.stem}, slide {n}: {fault}" for n, fault in page.evaluate(f"({script})()")]
    away = [url for url in page.requests if not url.startswith(("file:", "data:", "blob:", "about:"))]
    return faults + [f"{file.stem}: {text}" for text in (*page.errors, *away)]


def pdf(page: Any, file: Path) -> Path:
    """The deck as a PDF, a page for each slide, printed by the browser."""
    page.go(f"{file.resolve().as_uri()}?print-pdf")
    page.wait("'ready' in document.documentElement.dataset && !!document.querySelector('.pdf-page')")
    printed = page.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
    to = file.with_suffix(".pdf")
    to.write_bytes(base64.b64decode(printed["data"]))
    return to
