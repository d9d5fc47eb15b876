"""The report that chapter 7 embeds: made with the chapter's photographs, and laid beside the book's pages.

python -m tools.report_page     writes book/_static/report, unless it is up to date
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from math import ceil
from pathlib import Path

from musc import MuSc, MuScConfig, datasets
from musc.results import regions, report
from tools import interactive
from tools.notebooks import ROOT

PLACE = ROOT / "book/_static/report"
CATEGORY, LIMIT = "capsule", 21  # as in the chapter
KEPT = ("report.html", "report", "scores.csv", "regions.csv", "regions.json")


def photographs() -> datasets.Category:
    """The images of the chapter's folder: numbers for names, no labels."""
    product = datasets.load_category("synthetic", name=CATEGORY)
    chosen = product.samples[:: ceil(len(product) / LIMIT)]
    samples = (datasets.Sample(f"part_{n:03d}.png", sample.image) for n, sample in enumerate(chosen))
    return datasets.Category("folder", "photographs", tuple(samples))


def write() -> None:
    """Make the report, unless nothing that it is made from has changed."""
    mark, key = PLACE / "stamp", interactive.stamp()
    if mark.is_file() and mark.read_text() == key:
        return
    category = photographs()
    result = replace(MuSc(MuScConfig(device="cpu")).run(category), root="")
    result.decide()
    shutil.rmtree(PLACE, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        folder = result.save(Path(place) / "results/folder/photographs")
        found = regions.save_regions(result, category.samples, folder)
        report.write_report(result, category.samples, folder, regions=found)
        PLACE.mkdir(parents=True)
        for name in KEPT:
            shutil.move(folder / name, PLACE / name)
    mark.write_text(key)


if __name__ == "__main__":
    write()
