"""A threshold from a few images that somebody marked as good or bad, and how far it can be trusted."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from musc.datasets.words import kind
from musc.errors import ConfigError, DataError
from musc.results.thresholds import Threshold, f1_max_threshold
from musc.saving import regular_file, whole

NAME = "marked.csv"  # as the report saves it, and as a result's folder keeps it
METHODS = ("marks-f1", "marks-recall", "marks-false-alarms")
CONFIDENCE = 0.95
RESAMPLES = 200
SEPARATORS = ",;\t"


def read_marks(file: Path, paths: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """The marks in a CSV file, 0 (good) or 1 (bad) by the names in `paths`, and notes on what was left out.

    Columns path and label, in any case and with any of the usual separators. A label is 0 or 1, or a usual word (good,
    bad, ok, ng, ...); rows without one are passed over. A path is an image's name in the result; its end alone, such as
    the file's name, is enough where it fits one image only.

    Raises:
        DataError: the file cannot be read, lacks a column, holds another label or one image both ways, or names no
            image of the result.
    """
    try:
        with regular_file(file) as opened:
            lines = opened.read().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"{file} cannot be read ({why}): give the marked.csv that the report saved.") from error
    separator = max(SEPARATORS, key=(lines or [""])[0].count)
    rows = list(csv.reader(lines, delimiter=separator))
    header = [name.strip().casefold() for name in rows[0]] if rows else []
    if not {"path", "label"} <= set(header):
        raise DataError(f"{file} needs the columns path and label; its first line is {lines[0]!r}." if lines else
                        f"{file} is empty: it needs the columns path and label.")  # fmt: skip
    path_at, label_at = header.index("path"), header.index("label")
    known, found, strange = _Names(paths), dict[str, int](), list[str]()
    for number, row in enumerate(rows[1:], 2):
        if len(row) <= max(path_at, label_at) or not row[label_at].strip():
            continue
        value = _label(row[label_at].strip())
        if value is None:
            raise DataError(f"{file}, line {number}: the label {row[label_at]!r} is neither 0 or good nor 1 or bad.")
        name = known.find(row[path_at])
        if name is None:
            strange.append(row[path_at])
        elif found.setdefault(name, value) != value:
            raise DataError(f"{file}, line {number}: {name} is marked good and bad; leave one of the two.")
    if not found:
        example = f", such as {strange[0]!r}" if strange else ""
        raise DataError(f"{file} marks no image of this result{example}: names are those in scores.csv.")
    notes = [f"{len(strange)} marks are of no image of this result, such as {strange[0]}."] if strange else []
    return found, notes


def write_marks(marks: Mapping[str, int], folder: Path) -> None:
    """Keep the marks beside a result, where its report finds them. Raises OSError."""
    with (
        whole(folder / NAME) as path,
        path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows(marks.items())


def marks_beside(folder: Path, paths: Sequence[str]) -> dict[str, int]:
    """The marks that an earlier `musc threshold` left beside a result, as far as they are of these images."""
    try:
        return read_marks(folder / NAME, paths)[0]
    except DataError:  # none, or of other images
        return {}


def from_marks(
    scores: ArrayLike, labels: ArrayLike, *, recall: float | None = None, false_alarms: float | None = None
) -> Threshold:
    """A threshold from the scores of marked images: of the best F1, or the highest that finds the share `recall` of
    the bad ones, or the lowest that flags at most the share `false_alarms` of the good ones.

    It lies halfway between two neighbouring marked scores. Its note has the recall and the false alarms on the marked
    images with exact intervals (Clopper and Pearson, 95 %). With `recall` and `false_alarms` these hold although the
    threshold was chosen by the same images: at an order statistic of n scores, the share beyond it follows the Beta
    distribution they are made of. For F1, whose best value is too good on the images it was chosen by, the interval is
    that of resampled marks. All suppose that the marked images are a fair sample of the good and of the bad ones.

    scores: [n], finite, of the marked images. labels: [n], 0 good, 1 bad.

    Raises:
        ConfigError: a rate outside (0, 1], or no bad image (for recall), no good one (for false_alarms), not both (F1).

    Example:
        >>> t = from_marks([0.1, 0.2, 0.3, 0.6, 0.9], [0, 0, 0, 1, 1], recall=1)
        >>> round(t.value, 2), t.method
        (0.45, 'marks-recall')
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    if len(x) != len(y) or not np.isfinite(x).all():
        raise ConfigError("marks: one finite score per label is needed.")
    good, bad = np.sort(x[~y]), np.sort(x[y])
    if recall is not None and false_alarms is not None:
        raise ConfigError("give a recall or a rate of false alarms: one threshold cannot be set by both.")
    if recall is not None:
        value, method = _by_recall(x, bad, recall), METHODS[1]
    elif false_alarms is not None:
        value, method = _by_false_alarms(x, good, false_alarms), METHODS[2]
    else:
        if not len(good) or not len(bad):
            raise ConfigError(f"{len(bad)} bad and {len(good)} good marks: the best F1 needs both; or give --recall "
                              "(bad ones only) or --false-alarms (good ones only).")  # fmt: skip
        value, method = f1_max_threshold(y, x).value, METHODS[0]
    rate = float((good >= value).mean()) if len(good) else None
    return Threshold(value, method, rate, _note(x, y, value, method))


def exact_interval(count: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share of which `count` of n were seen.

    Example:
        >>> [round(v, 3) for v in exact_interval(4, 4)]
        [0.398, 1.0]
    """
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(count, n - count + 1, tail)) if count else 0.0
    high = float(special.betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return low, high


def _by_recall(x: NDArray[np.float64], bad: NDArray[np.float64], recall: float) -> float:
    _check_rate("recall", recall)
    if not len(bad):
        raise ConfigError("no image is marked bad: a recall needs some.")
    lowest = bad[math.floor(len(bad) * (1 - recall) + 1e-9)]  # the lowest that must be found
    lower = x[x < lowest]
    return _between(float(lower.max()), float(lowest)) if len(lower) else float(lowest)


def _by_false_alarms(x: NDArray[np.float64], good: NDArray[np.float64], rate: float) -> float:
    _check_rate("false alarms", rate)
    if not len(good):
        raise ConfigError("no image is marked good: a rate of false alarms needs some.")
    allowed = math.floor(len(good) * rate + 1e-9)
    if allowed == len(good):
        return float(x.min())
    highest = float(good[len(good) - 1 - allowed])  # the highest that must not be flagged
    higher = x[x > highest]
    above = float(np.nextafter(np.float32(highest), np.float32(np.inf)))
    return _between(highest, float(higher.min())) if len(higher) else above


def _between(low: float, high: float) -> float:
    """Halfway as float32, above `low` and at most `high`."""
    middle = float(np.float32((low + high) / 2))
    return middle if low < middle <= high else high


def _check_rate(name: str, rate: float) -> None:
    if not 0 < rate <= 1:
        raise ConfigError(f"{name} = {rate:g}: give a share above 0 and at most 1, such as 0.95.")


def _note(x: NDArray[np.float64], y: NDArray[np.bool_], value: float, method: str) -> str:
    flagged = x >= value
    parts = [f"from {len(y)} marked images ({y.sum()} bad, {(~y).sum()} good)"]
    for name, of in (("found", y), ("false alarms", ~y)):
        if of.any():
            seen = int((flagged & of).sum())
            low, high = exact_interval(seen, int(of.sum()))
            parts.append(f"{name} {seen} of {of.sum()} ({100 * low:.0f} to {100 * high:.0f} % with 95 % confidence)")
    if method == METHODS[0]:
        low, high = _resampled_f1(x, y)
        parts.append(f"F1 {_f1(flagged, y):.2f} ({low:.2f} to {high:.2f})")
    return "; ".join(parts) + "."


def _f1(flagged: NDArray[np.bool_], y: NDArray[np.bool_]) -> float:
    return float(2 * (flagged & y).sum() / (flagged.sum() + y.sum()))


def _resampled_f1(x: NDArray[np.float64], y: NDArray[np.bool_]) -> tuple[float, float]:
    """The interval of F1 on the images that a resample left out, at the threshold that the resample would choose."""
    g, values = np.random.default_rng(0), []
    good, bad = np.flatnonzero(~y), np.flatnonzero(y)
    for _ in range(RESAMPLES):
        drawn = np.concatenate([g.choice(good, len(good)), g.choice(bad, len(bad))])
        left = np.setdiff1d(np.arange(len(y)), drawn)
        if y[left].any():
            values.append(_f1(x[left] >= f1_max_threshold(y[drawn], x[drawn]).value, y[left]))
    if not values:
        return 0.0, 1.0
    tail = 50 * (1 - CONFIDENCE)
    return float(np.percentile(values, tail)), float(np.percentile(values, 100 - tail))


def _label(text: str) -> int | None:
    if text in ("0", "1", "0.0", "1.0"):
        return int(float(text))
    return {"good": 0, "bad": 1, None: None}[kind(text)]


class _Names:
    """The images of a result by their names, or by an end of their paths that fits only one."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = set(paths)
        ends = [(end, path) for path in paths for end in _ends(path)]
        count = Counter(end for end, _ in ends)
        self.by_end = {end: path for end, path in ends if count[end] == 1}

    def find(self, text: str) -> str | None:
        if text in self.paths:
            return text
        plain = text.strip().replace("\\", "/").removeprefix("./")
        if plain in self.paths:
            return plain
        # of a longer path than ours, the longest end that we know
        return next((self.by_end[end] for end in [plain, *_ends(plain)] if end in self.by_end), None)


def _ends(path: str) -> list[str]:
    parts = PurePosixPath(path).parts
    return ["/".join(parts[n:]) for n in range(1 if path.startswith("/") else 0, len(parts))]
