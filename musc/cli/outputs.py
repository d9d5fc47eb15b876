"""The options that say where results go, checked before the work, and what is written and shown of a result."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musc.cli.options import COUNT, Kind, Read, place
from musc.errors import ConfigError, ResultError, cannot_write
from musc.saving import alone

if TYPE_CHECKING:
    from musc.datasets import Sample
    from musc.results import MuScResult

RESULTS = Path("results")


def add_output_options(sub: argparse.ArgumentParser, *, views: bool = True) -> None:
    """--out and --no-overlays; with `views`, --no-report and the settings of regions."""
    sub.add_argument("--out", type=place, default=RESULTS, metavar="DIR", help="folder of results (default: results)")
    sub.add_argument("--no-overlays", action="store_true", help="write no pictures, and no report.html")
    if views:
        sub.add_argument("--no-report", action="store_true", help="write no report.html")
        add_region_options(sub)


def add_region_options(sub: argparse.ArgumentParser) -> None:
    """--min-region and --merge-regions."""
    sub.add_argument("--min-region", action=Read, kind=COUNT, default=1, metavar="PX", help="regions.csv, regions.json:"
                     " leave regions of fewer pixels out (default: 1)")  # fmt: skip
    sub.add_argument("--merge-regions", action=Read, kind=Kind(_distance, "give a distance in pixels from 0."),
                     default=0.0, metavar="PX", help="regions.csv, regions.json: regions that come so near to each "
                     "other are one (default: 0)")  # fmt: skip


def _distance(text: str) -> float:
    if not 0 <= (distance := float(text)) < math.inf:
        raise ValueError(text)
    return distance


def write_result(
    result: MuScResult, samples: Sequence[Sample], folder: Path, args: argparse.Namespace, *, save: bool = True
) -> None:
    """Save a result (where it is not, as it is, there already) and write what it looks like, while nobody else does."""
    pictures = not args.no_overlays
    with writing(folder):
        if save:
            result.save(folder)
        write_views(result, samples, folder, args, pictures=pictures, page=pictures and not args.no_report)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """`saving.alone` with the results of the folder above, which is where one is saved as a whole.

    A result is saved first, and what it looks like (pictures, regions, report) is written into its folder after: two
    processes would take that away from under each other. Raises ResultError where that folder cannot be used.
    """
    try:
        with alone(folder.parent):
            yield
    except OSError as error:
        raise ResultError(cannot_write(folder, error)) from error


def write_views(
    result: MuScResult, samples: Sequence[Sample], folder: Path, args: argparse.Namespace, *, pictures: bool, page: bool
) -> None:
    """Write what a result looks like beside it: overlays and masks, regions, and the report; what is not asked for and
    would be of an earlier result goes."""
    from musc.results import marks, regions, report
    from musc.results.pictures import save_pictures

    if pictures:
        save_pictures(result, samples, folder)
    sizes = report.picture_sizes(result, samples, folder) if page else None
    found = None
    if result.threshold is not None:
        settings = {"smallest": args.min_region, "merge": args.merge_regions}
        found = regions.save_regions(result, samples, folder, sizes=sizes, **settings)
    else:
        for name in regions.FILES:
            (folder / name).unlink(missing_ok=True)
    if page:
        kept = marks.marks_beside(folder, result.paths)
        report.write_report(result, samples, folder, regions=found, marks=kept)
    else:
        (folder / report.PAGE).unlink(missing_ok=True)
        shutil.rmtree(folder / report.FOLDER, ignore_errors=True)


def print_views(folder: Path, args: argparse.Namespace) -> None:
    """Where to look."""
    if not args.no_overlays:
        print(f"  pictures: {folder / 'overlays'}")
        if not args.no_report:
            print(f"  report: {folder / 'report.html'}")


def add_threshold_option(sub: argparse.ArgumentParser, *, default: str | None, unset: str) -> None:
    """--threshold; unset: what is taken where it is not given."""
    sub.add_argument("--threshold", action=Read, kind=Kind(_threshold, ""), default=default, metavar="T", help="for "
                     "decisions and masks: robust or mixture (from the scores alone), f1-max (from labels), a number "
                     f"on the scale of raw_score, or none (default: {unset})")  # fmt: skip


def _threshold(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text  # a method by name


def check_folder(path: Path, option: str) -> None:
    """Raises ConfigError where no file can be written below `path`; nothing is left there."""
    place = path.absolute()
    while not place.exists() and not place.is_symlink():
        place = place.parent
    if not place.is_dir():
        below = "" if place == path.absolute() else ", and nothing can lie below it"
        raise ConfigError(f"{option} {path}: {place} is no folder{below}. Name another one.")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: {place} cannot be written ({error.strerror}). Name another one."
        ) from error


def print_network(result: MuScResult) -> None:
    """Which network it was, with which weights."""
    print(f"  network: {result.config.backbone} ({result.weights})")


def print_scores(result: MuScResult, rows: Iterable[Any]) -> None:
    """Both scores, the decision and the name of some images: the threshold stands on the scale of the raw score."""
    print("  score  raw score")
    said = {None: "", 0: "normal", 1: "anomalous"}
    decisions = [None] * len(result) if result.decisions is None else result.decisions.tolist()
    for i in rows:
        scores = f"{result.image_scores[i]:7.3f}  {result.raw_image_scores[i]:9.4f}"
        print(f"{scores}  {said[decisions[i]]:9}  {result.paths[i]}")


def print_threshold(result: MuScResult) -> None:
    """How many images are anomalous, by which threshold."""
    t, decisions = result.threshold, result.decisions
    if t is None or decisions is None:
        return
    rate = None if t.method.startswith("marks-") else t.false_alarm_rate  # of marks, the note has it with its interval
    alarms = "" if rate is None else f"; about {100 * rate:.2g} % of normal images reach it"
    print(f"  anomalous: {decisions.sum()} of {len(result)}, raw score >= {t.value:.4g} ({t.method}{alarms})")
    if t.note:
        print(f"  {t.note}")


def print_notes(result: MuScResult, *, verbose: bool) -> None:
    """What was left out and what is odd about a result, on stderr."""
    for skipped in result.skipped:
        print(f"skipped: {skipped.reason}", file=sys.stderr)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if verbose:
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in result.timings.items())
        print(f"{result.category}: {seconds}", file=sys.stderr)
