"""The options that say where results go, checked before the work, and what is written and shown of a result."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musc.cli.options import Kind, Read
from musc.errors import ConfigError

if TYPE_CHECKING:
    from musc.results import MuScResult

RESULTS = Path("results")


def add_output_options(sub: argparse.ArgumentParser) -> None:
    """--out and --no-overlays."""
    sub.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="folder of results (default: results)")
    sub.add_argument("--no-overlays", action="store_true", help="write no pictures")


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
    alarms = "" if t.false_alarm_rate is None else f"; about {100 * t.false_alarm_rate:.2g} % of normal images reach it"
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
