"""The figure pack: every labelled figure of the notebooks, with its source and licence.

The committed notebooks hold pictures of pixels: these are packed at once. `draw_all` runs the notebooks once more, with
their own parameters, and takes the figures as SVG and PDF; they join the pack while the notebooks stay the same.
Photographs and heat maps inside of a figure stay pixels.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tools import notebooks

CELL = """\
%config InlineBackend.figure_formats = ['svg', 'pdf']
import matplotlib as _m
_m.rcParams |= {'svg.hashsalt': 'musc', 'path.simplify_threshold': 1.0}
"""
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


def draw(script: Path, vectors: Path) -> bool:
    """Write LABEL.svg and LABEL.pdf of one notebook below vectors/NN; False where they are there already."""
    from nbformat import v4

    if current(script, vectors):
        return False
    folder = vectors / script.stem[:2]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    notebook = notebooks.as_notebook(script)
    last = max(
        (n for n, cell in enumerate(notebook.cells) if cell.metadata.get("mystnb", {}).get("figure")), default=-1
    )
    notebook.cells = notebook.cells[: last + 1]  # what comes after the last figure draws none
    inline = next((n for n, cell in enumerate(notebook.cells) if "%matplotlib inline" in cell.source), 0)
    notebook.cells.insert(inline + 1, v4.new_code_cell(CELL))
    done = notebooks.run(notebook, None, cwd=script.parent)
    for name, cell in labelled(done).items():
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/svg+xml" in data:
                (folder / f"{name}.svg").write_text(data["image/svg+xml"], encoding="utf-8")
            if "application/pdf" in data:
                (folder / f"{name}.pdf").write_bytes(base64.b64decode(data["application/pdf"]))
    for name in labelled(done):
        for kind in ("svg", "pdf"):
            if not (folder / f"{name}.{kind}").is_file():
                raise RuntimeError(f"{script.name} drew no {kind} of {name}.")
    (folder / "stamp").write_text(stamp(script))
    return True


def draw_all(vectors: Path) -> None:
    """The vectors of all notebooks that have changed; a kernel for each, as many at a time as there are cores."""
    seconds = json.loads(notebooks.RECORD.read_text(encoding="utf-8"))
    longest = sorted(notebooks.scripts(), key=lambda path: -seconds[path.stem]["seconds"])
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        drawn = list(pool.map(partial(draw, vectors=vectors), longest))
    print(f"{sum(drawn)} notebooks were run, {len(drawn) - sum(drawn)} kept")


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
