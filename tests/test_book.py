"""The book's sources: settings, notebooks and their outputs, cross-references, and the tools that make them."""

import importlib
import io
import json
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import v4

from tools import book, book_sphinx, gate, notebooks
from tools.notebooks import ROOT

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = notebooks.scripts()
TUTORIAL = [s for s in SCRIPTS if s.stem.startswith("0")]


def name_of(path):
    return path.stem


def texts():
    """All prose: the pages' and the notebooks' Markdown, by file name."""
    found = {p.name: p.read_text(encoding="utf-8") for p in (ROOT / "book").rglob("*.md")}
    for script in SCRIPTS:
        cells = notebooks.as_notebook(script).cells
        found[script.name] = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    return found


# --- settings


def test_every_page_is_in_the_contents_once():
    listed = gate.pages()
    assert len(listed) == len(set(listed))
    files = [p.relative_to(ROOT).with_suffix("").as_posix() for p in (ROOT / "book").rglob("*.md")]
    files += [s.relative_to(ROOT).with_suffix("").as_posix() for s in SCRIPTS]
    assert sorted(listed) == sorted(files)


def test_whatever_a_page_shows_is_an_input_of_the_build():
    """Else a change of it leaves the page as it was."""
    inputs = {path for pattern in book.INPUTS for path in ROOT.glob(pattern)}
    shown = {
        (page.parent / name).resolve()
        for page in (ROOT / "book").rglob("*.md")
        for name in re.findall(r"^(?:```\{(?:literal)?include\}|:file:) (\S+)", page.read_text(encoding="utf-8"), re.M)
    }
    assert len(shown) > 3
    assert shown <= inputs


def test_settings_need_no_network():
    assert CONFIG["execute"]["execute_notebooks"] == "off"  # unquoted, YAML reads False, and that means "auto"
    assert CONFIG["launch_buttons"]["thebe"] is False
    static = ROOT / CONFIG["sphinx"]["config"]["html_static_path"][0]
    script = static / CONFIG["sphinx"]["config"]["mathjax_path"]
    assert script.stat().st_size > 1_000_000
    fonts = list((script.parent / "output/chtml/fonts/woff-v2").glob("*.woff"))
    assert len(fonts) == 23
    assert (script.parent / "LICENSE").read_text().lstrip().startswith("Apache License")
    for name in CONFIG["sphinx"]["config"]["html_css_files"]:
        assert "url(http" not in (static / name).read_text()


def test_buttons_appear_where_the_repository_is_known():
    def found(known, address):
        config = book.settings({**CONFIG, "repository": {**CONFIG["repository"], "url": known}}, address)
        launch = set(config["launch_buttons"]) & {"colab_url", "binderhub_url"}
        return launch, config["html"].get("use_repository_button", False), config["repository"]["url"]

    here, fork = "https://example.org/here", "https://example.org/fork"
    assert found("", "") == (set(), False, "")
    assert found(here, here) == ({"colab_url", "binderhub_url"}, True, here)
    assert found(here, fork) == ({"colab_url", "binderhub_url"}, True, fork)
    assert found("", fork) == ({"binderhub_url"}, True, fork)  # the notebooks would not know what to install on Colab


def test_the_first_cell_installs_from_the_known_repository(workplace):
    assert "git+https://example.org/musc" in notebooks.as_notebook(workplace).cells[1].source
    (notebooks.ROOT / "_config.yml").write_text('repository: {url: ""}\n')
    cell = notebooks.as_notebook(workplace).cells[1].source
    assert "git+" not in cell
    assert "pip install ." in cell


def test_environment():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = environment["dependencies"]
    assert "-e .[all]" in pip["pip"]
    python = next(p for p in packages if p.startswith("python="))
    major, minor = map(int, python.removeprefix("python=").split("."))
    bounds = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"])
    assert major == 3
    assert int(bounds[1]) <= minor < int(bounds[2])


def test_versions_stand_in_one_place():
    """environment.yml names Python alone; what constraints-cpu.txt pins, pyproject.toml does not."""
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert re.findall(r"^\s*- .*[<>=]=?\s*\d.*$", environment, re.M) == ["  - python=3.11"]
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints-cpu.txt").read_text(), re.M)
    extras = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    listed = PROJECT["dependencies"] + extras
    assert pinned
    for name in pinned:
        assert not [line for line in listed if re.match(rf"{name}\s*==", line)]
    assert next(line for line in listed if line.startswith("jupyter-book")).endswith("<2")


def test_bibliography():
    text = (ROOT / "book/references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@(\w+)\{([^,]+),(.*?)^\}", text, re.M | re.S)
    keys = [key for _, key, _ in entries]
    assert len(keys) == len(set(keys)) >= 36
    for kind, key, body in entries:
        fields = set(re.findall(r"^\s*(\w+)\s*=", body, re.M))
        assert {"title", "author", "year", "booktitle" if kind == "inproceedings" else "journal"} <= fields, key
        assert body.count("{") == body.count("}"), key
    for name, page in texts().items():
        cited = {k.strip() for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page) for k in group.split(",")}
        assert cited <= set(keys), name


# --- cross-references


def named_objects(page):
    return re.findall(r"\{py:(?:func|meth|class|mod|attr)\}`([^`]+)`", page)


def resolve(name):
    """The object behind a dotted name. Raises ImportError or AttributeError."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def test_paper_to_code_names_what_exists():
    page = (ROOT / "book/paper_to_code.md").read_text(encoding="utf-8")
    assert len(named_objects(page)) > 20
    missing = []
    for name in named_objects(page):
        try:
            resolve(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing


def test_paper_to_code_covers_every_equation():
    page = (ROOT / "book/paper_to_code.md").read_text(encoding="utf-8")
    covered = set()
    for first, last in re.findall(r"^\| (\d+)(?:–(\d+))? \|", page, re.M):
        covered |= set(range(int(first), int(last or first) + 1))
    assert covered == set(range(1, 12))


def test_links_to_the_package_name_what_exists():
    for name, page in texts().items():
        for target in named_objects(page):
            assert resolve(target) is not None, (name, target)


def test_every_public_module_has_an_api_page():
    documented = re.findall(
        r"^\.\. automodule:: (\S+)$", "\n".join(p.read_text() for p in (ROOT / "book/api").glob("*.md")), re.M
    )
    assert len(documented) == len(set(documented))
    modules = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in (ROOT / "musc").rglob("*.py")
        if not any(part.startswith("_") and part != "__init__.py" for part in p.relative_to(ROOT).parts)
    }
    # Shown through the package that gathers them, or not an interface.
    inner = {m for m in modules if any(m.startswith(f"{d}.") for d in book.GATHERED)}
    inner |= {"musc", "musc.methods", "musc.scoring"}  # which name nothing themselves
    assert modules - inner - set(documented) == set(), "add an automodule to a page below book/api"
    assert set(documented) <= modules


# --- notebooks


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_notebook_is_up_to_date(script):
    assert notebooks.stale(script, elsewhere=True) is None, f"run: python -m tools.notebooks execute {script.stem}"


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_pair_agrees(script):
    """The executed notebook has the script's cells: sources, kinds, tags and figure settings."""
    done = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    source = notebooks.as_notebook(script)
    assert [(c.cell_type, c.source, c.metadata, c.id) for c in done.cells] == [
        (c.cell_type, c.source, c.metadata, c.id) for c in source.cells
    ]
    nbformat.validate(done)


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_outputs_are_fit_to_publish(script):
    done = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    code = [c for c in done.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
        if "figure" in cell.metadata.get("mystnb", {}):  # a caption names one picture
            shown = [o for o in cell.outputs if o.output_type != "stream"]
            assert [o.data.get("image/png") is not None for o in shown] == [True]
    assert "papermill" not in done.metadata
    assert script.with_suffix(".ipynb").stat().st_size < 5_000_000
    recorded = json.loads(notebooks.RECORD.read_text(encoding="utf-8"))
    assert recorded[script.stem]["seconds"] > 0


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_smoke_parameters_are_other_values_of_known_parameters(script):
    source = notebooks.as_notebook(script)
    tagged = [c for c in source.cells if "parameters" in c.metadata.get("tags", [])]
    smoke = source.metadata.musc["smoke"]
    if not tagged:  # a page that computes nothing: it shows what a benchmark wrote
        assert smoke == {}
        return
    assert len(tagged) == 1
    defaults: dict = {}
    exec(tagged[0].source, defaults)
    assert smoke
    for name, value in smoke.items():
        assert name in defaults
        assert defaults[name] != value


@pytest.mark.parametrize("script", TUTORIAL, ids=name_of)
def test_chapter_has_objectives_exercises_and_summary(script):
    cells = notebooks.as_notebook(script).cells
    prose = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert prose.startswith("# ")
    assert "In this chapter" in prose
    assert "**Time**" in prose
    assert re.search(r"^## Summary$", prose, re.M)
    exercises = re.findall(r"\{exercise\}[^\n]*\n:label: (\S+)", prose)
    assert len(exercises) >= 3
    assert re.findall(r"\{solution-start\} (\S+)", prose) == exercises
    # Every solution runs: between its start and its end stands a code cell tagged `solution`, and none elsewhere.
    inside, ran = None, []
    for cell in cells:
        if cell.cell_type == "code":
            assert ("solution" in cell.metadata.get("tags", [])) == (inside is not None), cell.source
            if inside:
                ran.append(inside)
        for kind, label in re.findall(r"\{solution-(start|end)\} ?(\S*)", cell.source):
            inside = label if kind == "start" else None
    assert list(dict.fromkeys(ran)) == exercises


# --- tools


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A root of its own with one small notebook, whose module it imports."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "_config.yml").write_text("repository: {url: https://example.org/musc}\n")
    (folder / "helper.py").write_text("VALUE = 3\n")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "FOLDER", folder)
    monkeypatch.setattr(notebooks, "RECORD", folder / "execution.json")
    monkeypatch.setattr(
        notebooks, "SETUP", "import sys\nsys.path.insert(0, '.')  # {remedy}"
    )  # the kernel starts in the notebooks' folder
    script = folder / "00_small.py"
    script.write_text(
        '# %% [markdown]\n# # Small\n\n# %% tags=["parameters"]\nfactor = 2\n\n'
        "# %%\nimport helper\n\nprint(factor * helper.VALUE)\n"
    )
    return script


def test_execution_is_reproducible_and_goes_stale_with_its_sources(workplace, capsys):
    assert notebooks.stale(workplace) == "not executed yet"
    assert notebooks.main(["execute"]) == 0
    target = workplace.with_suffix(".ipynb")
    first = target.read_bytes()
    done = nbformat.reads(first.decode(), as_version=4)
    assert done.cells[-1].outputs[0].text == "6\n"
    assert done.metadata.musc.execution.sources == ["notebooks/helper.py"]
    assert notebooks.stale(workplace) is None
    assert notebooks.main(["check"]) == 0

    (workplace.parent / "helper.py").write_text("VALUE = 4\n")
    assert notebooks.stale(workplace) == "code or data that it uses has changed"
    assert notebooks.main(["check"]) == 1
    (workplace.parent / "helper.py").write_text("VALUE = 3\n")
    assert notebooks.main(["execute", "--force"]) == 0
    assert target.read_bytes() == first  # to the byte

    done.cells[-1].source = "print(7)"  # edited by hand
    target.write_text(nbformat.writes(done))
    assert notebooks.stale(workplace) == "its script has changed"
    target.write_text("{")
    assert notebooks.stale(workplace).startswith("unreadable")
    capsys.readouterr()


def test_a_notebook_goes_stale_with_the_data_that_it_reads(workplace):
    """However it reads them; not with what a run wrote, with line ends, or with the layout of JSON."""
    root = workplace.parents[1]
    for folder in ("data", "results"):
        (root / folder).mkdir()
    table, settings = root / "data" / "table.csv", root / "data" / "settings.json"
    table.write_text("a,b\n1,2\n")
    settings.write_text('{"x": 1}')
    (root / "data" / "unread.csv").write_text("1\n")
    with workplace.open("a") as file:
        file.write(
            "\n# %%\nimport json, os\nimport pandas as pd\nfrom pathlib import Path\n"
            "print(pd.read_csv('../data/table.csv').shape, json.loads(Path('../data/settings.json').read_text()))\n"
            "Path('../results/own.csv').write_text('1')\nPath('../results/own.csv').read_text()\n"
        )
    assert notebooks.main(["execute"]) == 0
    done = nbformat.read(workplace.with_suffix(".ipynb"), as_version=4)
    assert done.metadata.musc.execution.sources == ["data/settings.json", "data/table.csv", "notebooks/helper.py"]
    (root / "results" / "own.csv").write_text("2")
    (root / "data" / "unread.csv").write_text("2\n")
    table.write_bytes(b"a,b\r\n1,2\r\n")
    settings.write_text('{\n "x": 1\n}')
    assert notebooks.stale(workplace) is None
    for path, changed in ((table, "a,b\n1,3\n"), (settings, '{"x": 2}')):
        before = path.read_text()
        path.write_text(changed)
        assert notebooks.stale(workplace) == "code or data that it uses has changed"
        path.write_text(before)
    assert notebooks.stale(workplace) is None
    table.unlink()
    assert notebooks.stale(workplace) == "code or data that it uses has changed"


def test_failing_cell_is_shown_and_the_old_outputs_stay(workplace, capsys):
    target = workplace.with_suffix(".ipynb")
    target.write_text("the outputs of an earlier run")
    with workplace.open("a") as file:
        file.write("\n# %%\nbroken = 1 / 0\n")
    assert notebooks.main(["execute"]) == 1
    said = capsys.readouterr().err
    assert "    | broken = 1 / 0" in said
    assert "ZeroDivisionError: division by zero" in said
    assert target.read_text() == "the outputs of an earlier run"
    assert not notebooks.RECORD.exists()


def test_other_parameters_go_to_another_folder(workplace, tmp_path, capsys):
    out = tmp_path / "out"
    assert notebooks.main(["execute", "00", "--to", str(out), "-p", "factor=5"]) == 0
    assert nbformat.read(out / "00_small.ipynb", as_version=4).cells[-1].outputs[0].text == "15\n"
    assert not workplace.with_suffix(".ipynb").exists()
    assert notebooks.main(["execute", "00", "-p", "factor=5"]) == 1
    assert "--to" in capsys.readouterr().err
    assert notebooks.main(["smoke"]) == 1  # the script's header gives no parameters
    assert notebooks.main(["check", "99"]) == 1
    assert "no notebook 99: there are 00_small" in capsys.readouterr().err


def test_warnings_and_local_paths_are_refused(tmp_path):
    for output, why in (
        (v4.new_output("stream", name="stderr", text="FutureWarning"), "stderr"),
        (v4.new_output("stream", text=f"{ROOT}/musc"), "path of this machine"),
    ):
        with pytest.raises(notebooks.NotebookError, match=why):
            notebooks._refuse(v4.new_code_cell("x", outputs=[output]))


def test_streams_are_joined():
    def stream(text, name="stdout"):
        return v4.new_output("stream", name=name, text=text)

    joined = notebooks._tidy([stream("a"), stream("b"), stream("c", "stderr"), stream("d")])
    assert [(o.name, o.text) for o in joined] == [("stdout", "ab"), ("stderr", "c"), ("stdout", "d")]


def test_students_get_no_solution():
    page = "a\n```{solution} x\nsecret\n```\nb\n````{solution-start} y\n````\nsecret\n````{solution-end}\n````\nc\n"
    assert book.without_solutions(page) == ("a\nb\nc\n", False)
    cells = [
        {"cell_type": "markdown", "id": "1", "source": "task\n```{solution-start} x\n```\nsecret\n"},
        {"cell_type": "code", "id": "2", "source": "secret"},
        {"cell_type": "markdown", "id": "3", "source": "secret\n```{solution-end}\n```\nmore\n"},
        {"cell_type": "code", "id": "4", "source": "public"},
        {"cell_type": "markdown", "id": "5", "source": "```{solution-start} y\n```\n"},
        {"cell_type": "markdown", "id": "6", "source": "```{solution-end}\n```\nand\n```{solution-start} z\n```\n"},
        {"cell_type": "markdown", "id": "7", "source": "secret\n```{solution-end}\n```\n"},
    ]
    kept = book.without_solution_cells(cells)
    assert ["".join(c["source"]) for c in kept] == [
        *("task\n", book.YOURS, "more\n", "public"),
        *(book.YOURS, "and\n", book.YOURS),
    ]


@pytest.mark.parametrize("script", TUTORIAL, ids=name_of)
def test_chapters_for_students_keep_exercises_and_lose_solutions(script):
    cells = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    kept = book.without_solution_cells(cells)
    assert not [c for c in kept if "solution" in c["metadata"].get("tags", [])]
    prose = "".join("".join(c["source"]) for c in kept)
    assert "{solution" not in prose
    assert prose.count("{exercise}") == prose.count(book.YOURS) >= 3
    assert "## Summary" in prose


def test_long_names_may_break_after_their_parts_and_nothing_else():
    page = "<p>msm.interval_average(x), 0.5 of a_1</p><pre>a.b_c</pre><a href='a_b.html'>$x_i$</a>"
    page += r'<span class="math">\(a_i\)</span>'
    context = {"body": page}
    book_sphinx.breakable(None, "page", "", context, None)
    assert context["body"] == page.replace("msm.interval_average(x)", "msm.<wbr>interval_<wbr>average(<wbr>x)")
    context = {"body": r'<p><em><span class="math">\(k\)</span>.</em> <span class="math">\(j\)</span>’s a</p>'}
    book_sphinx.breakable(None, "page", "", context, None)
    assert r'<em><span class="whole"><span class="math">\(k\)</span>.</span></em>' in context["body"]
    assert "</span>’s</span> a</p>" in context["body"]
    context = {"body": "<code>musc run --max-memory 2</code><p>Solution to<a href='#e'> Exercise 3</a></p>"}
    book_sphinx.breakable(None, "page", "", context, None)
    assert '<code>musc run <span class="whole">--max-memory</span> 2</code>' in context["body"]
    assert "Solution to <a href='#e'>Exercise 3</a>" in context["body"]


def test_a_named_equation_is_a_link_and_one_that_no_page_has_fails_the_build(tmp_path):
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    def build(text):
        (tmp_path / "index.md").write_text("# Start\n\n```{toctree}\nother\n```\n\n" + text)
        (tmp_path / "other.md").write_text("# Eq. 2 in a heading\n\n$$a \\tag{2}$$\n\n$$b \\tag{2.1}$$\n")
        warnings, out = io.StringIO(), tmp_path / "out"
        extensions = {
            "extensions": ["sphinx.ext.autodoc", "myst_parser", "tools.book_sphinx"],
            "myst_enable_extensions": ["dollarmath"],
        }
        with docutils_namespace():
            Sphinx(tmp_path, None, out, tmp_path / "trees", "html", extensions, io.StringIO(), warnings).build()
        return (out / "index.html").read_text(), (out / "other.html").read_text(), warnings.getvalue()

    index, other, said = build("By Eq. 2 and 2.1, `Eq. 2`.")
    assert said == ""
    for number, shown in (("2", "Eq. 2"), ("2-1", "2.1")):
        assert re.search(rf'<a [^>]*href="other.html#equation-{number}"[^>]*><span[^>]*>{shown}</span></a>', index)
        assert f'id="equation-{number}"' in other
    assert index.count('#equation-2"') == 1  # not in code
    assert "undefined label: 'equation-7'" in build("By Eq. 7.")[2]


def test_docstrings_show_as_written():
    assert book_sphinx.prose("||a - b|| of `C_` * W_") == r"\|\|a - b\|\| of ``C_`` \* W\_"
    assert book_sphinx.prose("`Sample`s, ``code`` and :func:`name`") == r"``Sample``\ s, ``code`` and :func:`name`"


def test_docstrings_on_a_page(tmp_path, monkeypatch):
    """Examples stay as they are; nothing before a colon becomes a type; signatures are what somebody would write."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    (tmp_path / "conf.py").write_text("")
    (tmp_path / "documented.py").write_text(DOCUMENTED)
    (tmp_path / "index.rst").write_text("Title\n=====\n\n.. automodule:: documented\n   :members:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {
        "extensions": ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "tools.book_sphinx"],
        "autodoc_inherit_docstrings": False,
        "autodoc_typehints_format": "short",
        "python_use_unqualified_type_names": True,
    }
    warnings = io.StringIO()
    with docutils_namespace():
        Sphinx(tmp_path, None, tmp_path / "out", tmp_path / "trees", "text", settings, io.StringIO(), warnings).build()
    page = (tmp_path / "out/index.txt").read_text()
    assert warnings.getvalue() == ""
    assert "class documented.Held(found: dict[int, Path] = ..., maps: NDArray[float32] = ...)" in " ".join(page.split())
    assert ">>> 2 * 3 | 0, [1_0 * n_ for n_ in [1]]" in page
    assert "Equal keys: equal pixels." in page
    assert "[N]: as many as images" in page
    assert "Type:" not in page
    assert page.count("Overridden by all.") == 1  # where it was written
    for word in ("Alias for", "_secret", "factory"):
        assert word not in page


DOCUMENTED = '''
from __future__ import annotations
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
import numpy as np
from numpy.typing import NDArray

@dataclass
class Held:
    """What is held."""

    found: dict[int, Path] = field(default_factory=dict)
    maps: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1))
    _secret: dict[int, Path] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Equal keys: equal pixels."""

class Base:
    """A module."""

    def forward(self):
        """Overridden by all."""

class Ours(Base):
    """Ours."""

    def forward(self):
        pass

class Pair(NamedTuple):
    """Two."""

    first: int

def scores(n):
    """Scores.

    Returns:
        [N]: as many as images

    Example:
        >>> 2 * 3 | 0, [1_0 * n_ for n_ in [1]]
        (6, [10])
    """
'''


def test_build_does_nothing_when_nothing_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(book, "ROOT", tmp_path)
    calls, written = [], []
    monkeypatch.setattr(book.interactive, "write", lambda: written.append("data.js"))
    monkeypatch.setattr(book.report_page, "write", lambda: None)

    def pretend(tree: Path, *options: str) -> int:
        calls.append(options)
        (tmp_path / "_build/html").mkdir(parents=True)
        (tmp_path / "_build/html/index.html").touch()
        return 0

    monkeypatch.setattr(book, "jupyter_book", pretend)
    (tmp_path / "_toc.yml").write_text("1")
    assert book.build(execute=False) == 0
    assert book.build(execute=False) == 0
    assert len(calls) == 1
    (tmp_path / "_toc.yml").write_text("2")
    assert book.build(execute=False) == 0
    assert len(calls) == 2
    assert "-W" in calls[0]
    assert len(written) == 3  # it looks by itself whether its sources changed
    capsys.readouterr()
