"""The figure pack: every labelled figure of the notebooks as SVG and PDF, with its source and licence.

The committed notebooks hold pictures of pixels. Here each is run once more, with its own parameters, and the figures
are taken as vectors; what did not change since the last time is kept. Photographs and heat maps stay pixels.
"""

from __future__ import annotations

import base64
import csv
import hashlib
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


def draw(script: Path, out: Path) -> bool:
    """Write LABEL.svg and LABEL.pdf of one notebook below out/NN; False where they were made from the same notebook."""
    from nbformat import v4

    folder = out / script.stem[:2]
    stamp = hashlib.sha256(script.with_suffix(".ipynb").read_bytes()).hexdigest()
    mark = folder / "stamp"
    if mark.is_file() and mark.read_text() == stamp:
        return False
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
    mark.write_text(stamp)
    return True


def index(out: Path) -> list[dict[str, str]]:
    """A row for each figure of the book."""
    rows = []
    for script in notebooks.scripts():
        for name, cell in labelled(notebooks.as_notebook(script)).items():
            settings = cell.metadata["mystnb"]
            words = (settings["figure"]["caption"], settings["image"]["alt"])
            rows.append(dict(zip(COLUMNS, (name, *words, f"notebooks/{script.name}", LICENCE), strict=True)))
    return rows


def build(out: Path) -> Path:
    """All figures below `out`, a table of them, and all in one archive."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:  # each runs a kernel of its own
        longest = sorted(notebooks.scripts(), key=lambda path: -path.with_suffix(".ipynb").stat().st_size)
        drawn = list(pool.map(partial(draw, out=out), longest))
    rows = index(out)
    for row in rows:
        for kind in ("svg", "pdf"):
            if not (out / row["notebook"].split("/")[1][:2] / f"{row['figure']}.{kind}").is_file():
                raise RuntimeError(f"{row['notebook']} drew no {kind} of {row['figure']}.")
    with open(out / "figures.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(
        f"{len(rows)} figures, from {sum(drawn)} notebooks that were run and {len(drawn) - sum(drawn)} that were kept"
    )
    return Path(shutil.make_archive(str(out), "zip", out))
