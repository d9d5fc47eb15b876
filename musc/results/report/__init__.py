"""A result as one page to look at: report.html in its folder, and index.html over several results.

The page is a view of what is in the result: images by falling score with their maps, the threshold to move, images to
mark as good or bad. It needs no server and no network; its pictures lie beside it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from musc.datasets.base import Sample
from musc.errors import ResultError, cannot_write
from musc.results import MuScResult
from musc.results.regions import Region
from musc.results.report.content import facts, page_data
from musc.results.report.images import FOLDER, Shown, save_images
from musc.saving import whole

PAGE, INDEX = "report.html", "index.html"
HERE = Path(__file__).parent
SIGN = "<!-- index of musc results -->"  # an index without it is somebody else's
TOP = 4  # thumbnails of each result in the index

__all__ = ["FOLDER", "INDEX", "PAGE", "picture_sizes", "write_index", "write_page", "write_report"]


def write_report(
    result: MuScResult,
    samples: Sequence[Sample],
    folder: Path,
    *,
    regions: Sequence[Sequence[Region]] | None = None,
    marks: Mapping[str, int] | None = None,
) -> Path:
    """Write report.html and its pictures into the folder of a result, and return its path.

    Pictures of an earlier report of the same scores are kept: a new threshold costs a new page only.

    Args:
        result: any result; labels, masks and a threshold are shown where there are some.
        samples: its images, by name; of those that are missing a grey field is shown, or the earlier report's pictures.
        regions: as `regions.save_regions` returns them, for the list beside an image.
        marks: what was marked, 0 (good) or 1 (bad) by path: the page begins with it.

    Raises:
        ResultError: the folder cannot be written.
    """
    shown = _pictures(result, samples, folder)
    return write_page(result, shown, folder, regions=regions, marks=marks, command=folder.name)


def write_page(
    result: MuScResult,
    shown: Shown,
    folder: Path,
    *,
    regions: Sequence[Sequence[Region]] | None = None,
    marks: Mapping[str, int] | None = None,
    command: str = "",
) -> Path:
    """Write report.html alone, for pictures that are there (`shown`), and return its path.

    Of the result no map is read. command: what `musc threshold` calls the result; "" where it knows none. The others
    are as in `write_report`, which raises the same.
    """
    try:
        text = _environment().get_template("report.html.jinja").render(
            title=f"{result.category or result.dataset}",
            dataset=result.dataset,
            result=result,
            flagged=None if result.decisions is None else int(result.decisions.sum()),
            defects=sorted({d for d in result.defects if d}),
            data=_script_json(page_data(result, shown, regions, marks or {})),
            facts=facts(result),
            has_truth=any(shown.truths),
            command=command,
        )  # fmt: skip
        with whole(folder / PAGE) as path:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ResultError(cannot_write(f"the report in {folder}", error)) from error
    return folder / PAGE


def picture_sizes(result: MuScResult, samples: Sequence[Sample], folder: Path) -> list[tuple[int, int]]:
    """(width, height) of every image, after writing the report's pictures, for which they are read anyway. Raises
    ResultError where the folder cannot be written."""
    return _pictures(result, samples, folder).sizes


def _pictures(result: MuScResult, samples: Sequence[Sample], folder: Path) -> Shown:
    try:
        return save_images(result, samples, folder)
    except OSError as error:
        raise ResultError(cannot_write(f"the report in {folder}", error)) from error


def write_index(out: Path) -> Path | None:
    """Write index.html over all results below `out` that have a report, and over folders that `musc watch` filled; None
    where there is none, or where an index.html lies there that is not ours. Raises ResultError where it cannot be
    written."""
    path = out / INDEX
    try:
        if path.exists() and SIGN not in path.read_text(encoding="utf-8", errors="replace")[:200]:
            return None
        pages = sorted(p for pattern in (PAGE, f"*/{PAGE}", f"*/*/{PAGE}") for p in out.glob(pattern))
        pages = [page for page in pages if not page.parent.name.startswith(".")]  # of a result that is being replaced
        rows = [row for page in pages if (row := _row(page.parent, out)) is not None]
        watched = [row for page in pages if (row := _watched(page.parent, out)) is not None]
        if not rows and not watched:
            path.unlink(missing_ok=True)  # all that it leads to is gone
            return None
        text = _environment().get_template("index.html.jinja").render(rows=rows, watched=watched, sign=Markup(SIGN))
        with whole(path) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ResultError(cannot_write(path, error)) from error
    return path


def _row(folder: Path, out: Path) -> dict[str, Any] | None:
    try:
        result = MuScResult.load(folder)
        shown = json.loads((folder / "report/pictures.json").read_text(encoding="utf-8"))["shown"]
        order = (-result.raw_image_scores).argsort(kind="stable")[:TOP].tolist()
        thumbnails = [shown["thumbnails"][i] for i in order]
    except (ResultError, OSError, ValueError, KeyError, IndexError):
        return None  # being written, or damaged: not in this index
    where = folder.relative_to(out).as_posix()
    return {
        "result": result,
        "page": quote(f"{where}/{PAGE}"),
        "flagged": None if result.decisions is None else int(result.decisions.sum()),
        "top": [{"picture": quote(f"{where}/{t}"), "name": result.paths[i], "score": result.raw_image_scores[i]}
                for t, i in zip(thumbnails, order, strict=True)],
    }  # fmt: skip


def _watched(folder: Path, out: Path) -> dict[str, Any] | None:
    """What `musc watch` wrote, of which there is no result: its page and how many images have a score."""
    try:
        name = Path(json.loads((folder / "watch.json").read_text(encoding="utf-8"))["folder"]).name
        with (folder / "scores.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as table:
            images = sum(1 for _ in csv.DictReader(table))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {"name": name, "images": images, "page": quote(f"{folder.relative_to(out).as_posix()}/{PAGE}")}


def _script_json(data: Any) -> Markup:
    """JSON that may stand in a script element: no text in it can end the element, or begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@cache
def _environment() -> Environment:
    found = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    found.globals["style"] = Markup((HERE / "report.css").read_text(encoding="utf-8"))
    scripts = (HERE / name for name in ("state.js", "grid.js", "viewer.js"))
    found.globals["script"] = Markup("\n".join(path.read_text(encoding="utf-8") for path in scripts))
    return found
