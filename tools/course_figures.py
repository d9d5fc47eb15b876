"""The figure pack: every labelled figure of the notebooks, with its source and licence.

The committed notebooks hold pictures of pixels: these are packed as they are. `draw_all` runs the cells once more, with
their own parameters, and takes the figures as SVG and PDF; they are kept while the notebooks stay the same.
Photographs and heat maps inside of a figure stay pixels.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any
from unittest import mock

from tools import book, kernels, notebooks

BEGIN = """\
%matplotlib inline
%config InlineBackend.figure_formats = ['svg', 'pdf']
import matplotlib as _m
_m.rcParams |= {'svg.hashsalt': 'musc', 'path.simplify_threshold': 1.0}
"""
PRELOADED = [*kernels.PRELOADED, "musc.pipeline", "musc.reproduce"]
LICENCE = "MIT, as the package; the photographs in it are those of scikit-image (brick, gravel, grass: CC0)"
COLUMNS = ("figure", "caption", "alt text", "notebook", "licence")


def labelled(notebook: Any) -> dict[str, Any]:
    """The cells of a notebook that make a figure, by its label."""
    found = {cell.metadata.get("mystnb", {}).get("figure", {}).get("name"): cell for cell in notebook.cells}
    return {name: cell for name, cell in found.items() if name}


def stamp(script: Path) -> str:
    return hashlib.sha256(script.with_suffix(".ipynb").read_bytes()).hexdigest()


def current(script: Path, vectors: Path) -> bool:
    """Whether the vectors of a notebook were drawn from it as it is now."""
    mark = vectors / script.stem[:2] / "stamp"
    return mark.is_file() and mark.read_text() == stamp(script)


def draw(script: Path, vectors: Path) -> float:
    """Write LABEL.svg and LABEL.pdf of one notebook below vectors/NN; the processor seconds, 0 where they are there.

    The cells run in this process, up to the last figure and without the solutions: what a kernel does first, to start
    and to import torch, would take as long as the figures. Raises RuntimeError naming the cell or the figure.
    """
    from IPython.core.displayhook import DisplayHook
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets import Type

    class Published(DisplayHook):
        def write_format_data(self, format_dict: dict[str, Any], md_dict: Any = None) -> None:
            """A cell's value is an output like the others, and drawn once."""
            self.shell.display_pub.publish(format_dict, md_dict)

    class Shell(InteractiveShell):
        displayhook_class = Type(Published)

        def enable_gui(self, gui: str | None = None) -> None:
            """Nothing to do: figures are shown inline."""

    if current(script, vectors):
        return 0.0
    folder = vectors / script.stem[:2]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cells = [c for c in book.without_solution_cells(notebooks.as_notebook(script).cells) if c["cell_type"] == "code"]
    names = [cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") for cell in cells]
    os.chdir(script.parent)
    shell = Shell.instance()
    shell.run_cell(BEGIN).raise_error()
    last = max((n for n, name in enumerate(names) if name), default=-1)
    for cell, name in zip(cells[: last + 1], names, strict=False):
        with capture_output() as captured:
            result = shell.run_cell("".join(cell["source"]))
        if not result.success:
            why = result.error_in_exec or result.error_before_exec
            raise RuntimeError(f"{script.name}: {why!r}, in\n{cell['source']}")
        made = {kind: data for output in captured.outputs for kind, data in output.data.items()}
        if name and not made.keys() >= {"image/svg+xml", "application/pdf"}:
            raise RuntimeError(f"{script.name} drew no vectors of {name}.")
        if name:
            (folder / f"{name}.svg").write_text(made["image/svg+xml"], encoding="utf-8")
            (folder / f"{name}.pdf").write_bytes(base64.b64decode(made["application/pdf"]))
    (folder / "stamp").write_text(stamp(script))
    return time.process_time()


def draw_all(vectors: Path) -> None:
    """The vectors of all notebooks that have changed; as many at a time as there are cores, a process for each."""
    recorded = json.loads(notebooks.RECORD.read_text(encoding="utf-8"))
    longest = sorted(notebooks.scripts(), key=lambda path: -recorded[path.stem]["seconds"])
    # A server that has imported what takes long to import, and forks: not to be had on Windows.
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    with (
        mock.patch.dict(os.environ, {**notebooks.ENVIRONMENT, "OMP_NUM_THREADS": "1"}),
        ProcessPoolExecutor(os.cpu_count(), context, max_tasks_per_child=1) as pool,
    ):
        seconds = list(pool.map(partial(draw, vectors=vectors), longest))
    print(f"{sum(map(bool, seconds))} notebooks were drawn in {sum(seconds):.0f} s of a core, the others kept")


def index() -> list[dict[str, str]]:
    """A row for each figure of the book."""
    rows = []
    for script in notebooks.scripts():
        for name, cell in labelled(notebooks.as_notebook(script)).items():
            settings = cell.metadata["mystnb"]
            words = (settings["figure"]["caption"], settings["image"]["alt"])
            rows.append(dict(zip(COLUMNS, (name, *words, f"notebooks/{script.name}", LICENCE), strict=True)))
    return rows


def build(out: Path, vectors: Path) -> Path:
    """All figures below `out`, as in the notebooks and as vectors where these are current; a table; an archive."""
    import nbformat

    shutil.rmtree(out, ignore_errors=True)
    count = 0
    for script in notebooks.scripts():
        folder = out / script.stem[:2]
        folder.mkdir(parents=True)
        for name, cell in labelled(nbformat.read(script.with_suffix(".ipynb"), as_version=4)).items():
            (picture,) = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
            (folder / f"{name}.png").write_bytes(base64.b64decode(picture))
        if current(script, vectors):
            shutil.copytree(vectors / folder.name, folder, ignore=shutil.ignore_patterns("stamp"), dirs_exist_ok=True)
            count += 1
    rows = index()
    with open(out / "figures.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} figures; those of {count} notebooks of {len(notebooks.scripts())} as SVG and PDF too")
    return Path(shutil.make_archive(str(out), "zip", out))
