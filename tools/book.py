"""The book: execute what is stale, build it, and do nothing where nothing has changed.

    python -m tools.book build            the HTML book in _build/html (--force: even if nothing changed)
    python -m tools.book build --student  the same without solutions and lecturers' pages, in _build/student/_build/html
    python -m tools.book pdf              _build/latex/musc.pdf (needs XeLaTeX: the error names the packages)

The launch, source and issue buttons lead to the repository whose address _config.yml names, or, for one build,
MUSC_REPOSITORY=https://github.com/NAME/musc. Where neither does, there are none. Colab asks for the one in _config.yml,
because the notebooks' first cell installs the package from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tools import interactive, notebooks, report_page
from tools.notebooks import ROOT

BUILD = ROOT / "_build"
STUDENT = BUILD / "student"
TOOLS = ("jupyter-book", "sphinx", "sphinx-book-theme", "myst-nb", "sphinx-design", "sphinx-exercise", "sphinx-proof")
INPUTS = (
    "_config.yml",
    "_toc.yml",
    "book/**/*",
    "notebooks/*.ipynb",
    "notebooks/execution.json",
    "musc/**/*.py",
    "musc/results/report/*",
    "pretraining/*.md",
    "pretraining/*.csv",
    "tools/*.py",
    "course/quizzes/*.md",
    "benchmarks/results/**/*",
)
# Packages of musc whose parts the API pages show as one.
GATHERED = (
    "musc.backbones",
    "musc.cli",
    "musc.datasets",
    "musc.datasets.synthetic",
    "musc.distributed",
    "musc.engines",
    "musc.methods",
    "musc.results",
    "musc.scoring",
    "musc.reproduce.paper",
    "musc.reproduce",
)
COLAB = "https://colab.research.google.com"
BINDER = "https://mybinder.org"
LATEX = "texlive-xetex texlive-latex-extra texlive-fonts-recommended tex-gyre latexmk fonts-freefont-otf xindy"
FENCE = r"^(?P<fence>`{3,}|~{3,}|:{3,})"
# A whole solution in one block; the start and the end of one that spans several blocks or cells.
BLOCK = re.compile(FENCE + r"\{solution\}.*?^(?P=fence)[ \t]*\n?", re.M | re.S)
START = re.compile(FENCE + r"\{solution-start\}.*?^(?P=fence)[ \t]*\n?", re.M | re.S)
END = re.compile(FENCE + r"\{solution-end\}.*?^(?P=fence)[ \t]*\n?", re.M | re.S)
YOURS = "# Your solution\n"
LECTURERS = "---\naudience: lecturer\n---\n"  # how a page begins that the student build leaves out


def stamp() -> str:
    """SHA-256 over everything that the pages are made from."""
    digest = hashlib.sha256(notebooks.repository().encode())
    digest.update(json.dumps({name: version(name) for name in TOOLS}).encode())
    for pattern in INPUTS:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def build(force: bool = False, student: bool = False, execute: bool = True) -> int:
    """Execute stale notebooks, then build the HTML book unless the last build had the same inputs."""
    if execute and (status := notebooks.command_execute(notebooks.scripts(), force=False)):
        return status
    interactive.write()
    report_page.write()
    tree = student_tree() if student else ROOT
    output = tree / "_build"
    mark, key = output / "html.stamp", stamp()
    page = output / "html" / "index.html"
    if not force and page.is_file() and mark.is_file() and mark.read_text() == key:
        print(f"nothing changed: {page}")
        return 0
    mark.unlink(missing_ok=True)
    shutil.rmtree(output / "html", ignore_errors=True)  # a page that is gone from the sources must go from the book
    status = jupyter_book(tree, "--all", "-W", "--keep-going")
    if status == 0:
        mark.write_text(key)
        print(f"built: open {page} in a browser (no network needed)")
    return status


def pdf() -> int:
    """The whole book as one PDF, by XeLaTeX."""
    if not (shutil.which("xelatex") and shutil.which("latexmk")):
        print(f"the PDF needs XeLaTeX. On Debian or Ubuntu: apt-get install {LATEX}", file=sys.stderr)
        return 1
    shutil.rmtree(BUILD / "latex", ignore_errors=True)  # latexmk would remember an earlier failure
    # Our stand-ins first, then TeX's own places; and never wait for an answer at a prompt.
    os.environ["TEXINPUTS"] = f"{ROOT / 'tools' / 'latex'}:{os.environ.get('TEXINPUTS', '')}"
    os.environ["LATEXMKOPTS"] = "-interaction=nonstopmode"
    status = jupyter_book(ROOT, "--all", "--builder", "pdflatex")
    if status == 0:
        print(f"built: {BUILD / 'latex' / 'musc.pdf'}")
    return status


def jupyter_book(tree: Path, *options: str) -> int:
    """Run jupyter-book on a source tree, with the settings of `settings`."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config = settings(config, notebooks.repository())
    file = tree / "_build" / "config.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
    where = ["--config", str(file), "--path-output", str(tree)]
    program = "from jupyter_book.cli.main import main; main()"  # the one beside this interpreter
    command = [sys.executable, "-c", program, "build", str(tree), *where, *options]
    return subprocess.run(command, cwd=ROOT).returncode


def settings(config: dict[str, Any], address: str) -> dict[str, Any]:
    """The settings in _config.yml as jupyter-book gets them: with buttons where the repository's address is known."""
    known = config["repository"]["url"]
    html, launch = dict(config["html"]), dict(config["launch_buttons"])
    if address:
        html |= {"use_repository_button": True, "use_issues_button": True}
        launch |= {"binderhub_url": BINDER} | ({"colab_url": COLAB} if known else {})
    sphinx = dict(config["sphinx"])
    sphinx["local_extensions"] = {name: str(ROOT / folder) for name, folder in sphinx["local_extensions"].items()}
    repository = {**config["repository"], "url": address}
    return {**config, "repository": repository, "html": html, "launch_buttons": launch, "sphinx": sphinx}


def student_tree() -> Path:
    """A copy of the book's sources without any solution; what a class downloads has none either."""
    for name in ("book", "notebooks"):
        shutil.rmtree(STUDENT / name, ignore_errors=True)
        shutil.copytree(ROOT / name, STUDENT / name, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, STUDENT / name)
    for name in ("benchmarks/results", "pretraining"):  # tables and texts that pages include
        shutil.rmtree(STUDENT / name, ignore_errors=True)
        shutil.copytree(ROOT / name, STUDENT / name, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for page in (STUDENT / "book").rglob("*.md"):
        page.write_text(without_solutions(page.read_text(encoding="utf-8"))[0], encoding="utf-8")
    for path in (STUDENT / "notebooks").glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"] = without_solution_cells(notebook["cells"])
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    leave_out_lecturers(STUDENT)
    return STUDENT


def leave_out_lecturers(tree: Path) -> None:
    """Remove the pages for lecturers, their lines in the contents, and links to them."""
    for page in [p for p in (tree / "book").rglob("*.md") if p.read_text(encoding="utf-8").startswith(LECTURERS)]:
        page.unlink()
        toc, name = tree / "_toc.yml", page.relative_to(tree).with_suffix("").as_posix()
        toc.write_text(toc.read_text(encoding="utf-8").replace(f"          - file: {name}\n", ""), encoding="utf-8")
        for other in (tree / "book").rglob("*.md"):
            text = other.read_text(encoding="utf-8")
            other.write_text(re.sub(rf"\[([^\]]+)\]\([^)\s]*{page.name}\)", r"\1", text), encoding="utf-8")
    toc = tree / "_toc.yml"
    text = toc.read_text(encoding="utf-8")
    toc.write_text(re.sub(r"^        sections:\n(?!          - )", "", text, flags=re.M), encoding="utf-8")


def without_solutions(text: str, inside: bool = False) -> tuple[str, bool]:
    """A Markdown text without its solutions. `inside`: it begins within one; returned: it ends within one."""
    text = BLOCK.sub("", text)
    kept = []
    while text:
        border = (END if inside else START).search(text)
        if not inside:
            kept.append(text[: border.start()] if border else text)
        text = text[border.end() :] if border else ""
        inside = inside != bool(border)
    return "".join(kept), inside


def without_solution_cells(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Notebook cells without solutions; where one began, an empty code cell waits for the reader's own."""
    kept: list[dict[str, Any]] = []
    inside = False
    for cell in cells:
        if cell["cell_type"] != "markdown":
            if not inside:
                kept.append(cell)
            continue
        source = "".join(cell["source"])
        text, inside = without_solutions(source, inside)
        if text.strip():
            kept.append({**cell, "source": text.splitlines(keepends=True)})
        if inside and START.search(source):
            yours = {"cell_type": "code", "execution_count": None, "metadata": {"tags": ["remove-cell"]}}
            kept.append({**yours, "id": f"{cell['id']}-yours", "outputs": [], "source": [YOURS]})
    return kept


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.book", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("build")
    sub.add_argument("--force", action="store_true", help="build even if nothing changed")
    sub.add_argument("--student", action="store_true", help="leave the solutions out")
    sub.add_argument("--no-execute", action="store_true", help="take the executed notebooks as they are")
    commands.add_parser("pdf")
    args = parser.parse_args(argv)
    try:
        return pdf() if args.command == "pdf" else build(args.force, args.student, not args.no_execute)
    except (notebooks.NotebookError, KeyboardInterrupt) as error:
        print(error or "interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
