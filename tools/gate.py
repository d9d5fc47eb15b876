"""The gate before publishing: every page of the built book in a browser, on a desktop, in the dark and on a phone.

    python -m tools.gate           build the book if it is old, then name every fault by its page; exit status 1 if any
    python -m tools.gate 03 faq    only the pages whose name holds one of these

What counts as a fault stands in FAULTS. gate.js looks at a page that is open; dead links are read from the files.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

import yaml

from tools import book, browser
from tools.notebooks import ROOT

HTML = ROOT / "_build" / "html"
SCRIPT = Path(__file__).with_suffix(".js")
LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {"width": 1280, "height": 900},
    "dark": {"width": 1280, "height": 900, "dark": True},
    "phone": {"width": 400, "height": 850},
}
FAULTS = {
    "console": "an error in the browser's console",
    "network": "something fetched from elsewhere: the book must open without a network",
    "dead link": "a page or an anchor of the book that is not there",
    "placeholder": "a word that waits to be replaced: OWNER, TODO, SOME_TABLE, {{ }}, an unread {role}`",
    "raw formula": "TeX that is not shown as a formula",
    "no equation number": "a displayed equation without a number",
    "dead equation": "an equation that is named and cannot be followed",
    "two numbers": "a caption with a second number after its own",
    "long cell": "a visible cell of more than 30 lines",
    "wide code": "code of more than 90 columns",
    "no alt text": "a picture without a text in its place",
    "missing picture": "a picture that cannot be shown",
    "dimmed picture": "a picture darkened in dark mode: a heat map then shows other values",
    "unnumbered chapter": "a chapter whose heading or sidebar entry lacks its number",
    "page scrolls sideways": "a page wider than the window",
    "clipped": "a formula, a table or a text that its box cuts off",
    "split word": "a word or an identifier broken in its middle",
    "small text": "letters below 11 px",
    "thin text": "letters thinner than the regular weight",
    "weak contrast": "text against its ground below 4.5 to 1 (WCAG AA)",
}


@dataclass(frozen=True, order=True)
class Fault:
    """One fault: the page, the kind (a key of FAULTS), how the page was looked at, and where on it."""

    page: str
    kind: str
    look: str
    where: str

    def __str__(self) -> str:
        return f"{self.page}: {self.kind} ({self.look}): {self.where}"


def pages(node: Any = None) -> list[str]:
    """Every page of the table of contents, by its path without suffix."""
    node = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")) if node is None else node
    if isinstance(node, list):
        return [page for item in node for page in pages(item)]
    found = [node[key] for key in ("root", "file") if key in node]
    return found + [p for key in ("parts", "chapters", "sections") for p in pages(node.get(key, []))]


def look(page: browser.Page, file: Path, name: str) -> list[Fault]:
    """The faults of the built page `file`, called `name`, in all its looks; `page` is any open tab."""
    script = SCRIPT.read_text(encoding="utf-8")
    page.errors.clear()
    page.requests.clear()
    page.look(**LOOKS["desktop"])
    page.go(file.resolve().as_uri())
    page.evaluate("Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode().catch(() => 0))))")
    found: set[Fault] = set()
    for title, size in LOOKS.items():
        if title != "desktop":
            page.look(**size)
        if title == "dark":
            page.wait("document.documentElement.dataset.theme != 'light'")
        options = json.dumps({"width": size["width"], "phone": title == "phone", "dark": title == "dark"})
        found |= {Fault(name, kind, title, where) for kind, where in page.evaluate(f"({script})({options})")}
    found |= {Fault(name, "console", "any", error) for error in page.errors}
    away = {url for url in page.requests if urlparse(url).scheme not in ("file", "data", "blob", "about")}
    found |= {Fault(name, "network", "any", url) for url in away}
    return sorted(found)


class Links(HTMLParser):
    """Every address and every anchor of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := values.get(key))}
        self.links |= {value for key in ("href", "src") if (value := values.get(key))}


def dead_links(folder: Path) -> list[Fault]:
    """The links of all pages below a folder that lead to no file or no anchor there."""
    files = [path for path in folder.rglob("*.html") if "_static" not in path.relative_to(folder).parts]
    parsed = {path.resolve(): Links(path.read_text(encoding="utf-8")) for path in files}
    dead = []
    for page, found in parsed.items():
        for link in found.links:
            address, anchor = urldefrag(link)
            if urlparse(address).scheme or address.startswith("//"):
                continue
            target = (page.parent / unquote(address).split("?")[0]).resolve() if address else page
            target = target / "index.html" if target.is_dir() else target
            known = parsed.get(target)
            if not target.exists() or (anchor and known and unquote(anchor) not in known.anchors):
                name = page.relative_to(folder.resolve()).with_suffix("").as_posix()
                dead.append(Fault(name, "dead link", "any", link))
    return sorted(dead)


def main(argv: list[str] | None = None) -> int:
    wanted = sys.argv[1:] if argv is None else argv
    if browser.find() is None:
        print("the gate needs a browser: apt-get install chromium, or set CHROMIUM to its path", file=sys.stderr)
        return 2
    if book.build(execute=False):
        return 2
    chosen = [page for page in pages() if not wanted or any(part in page for part in wanted)]
    faults = [fault for fault in dead_links(HTML) if not wanted or fault.page in chosen]
    with browser.Browser() as running:
        page = running.open("about:blank")
        for name in chosen:
            faults += look(page, HTML / f"{name}.html", name)
    for fault in faults:
        print(fault)
    print(f"{len(chosen)} pages, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
