"""The CSV files of this folder as DataFrames."""

from __future__ import annotations

from functools import cache
from importlib import resources

import pandas as pd

from musc.errors import DataError

METRICS = ("image_auroc", "image_f1_max", "image_ap", "pixel_auroc", "pixel_f1_max", "pixel_ap", "pro")
_NUMBERS = ("value", "spread", "gain")
_WHOLE = ("number", "interval_low", "interval_high", "subsets", "image_size")


@cache
def _read(name: str) -> pd.DataFrame:
    source = resources.files(__package__) / f"{name}.csv"
    with source.open(encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    for column in frame.columns.intersection([*_NUMBERS, *_WHOLE]):
        numbers = pd.to_numeric(frame[column].where(frame[column] != ""))
        frame[column] = numbers.astype("float64" if column in _NUMBERS else "Int64")
    return frame


def table(number: int) -> pd.DataFrame:
    """Table `number` of the paper in long form, a row per printed number (columns: see the module's text).

    Text columns are strings, empty where not applicable; value, spread and gain are float64, NaN where not printed;
    interval_low, interval_high and subsets are nullable integers. Each call returns a copy.
    Raises DataError where the paper has no such table.
    """
    if number not in TABLES:
        raise DataError(f"the paper has no table {number}: give a number from 1 to {max(TABLES)}.")
    return _read(f"table_{number:02d}").copy()


def tables() -> pd.DataFrame:
    """Number, section, kind and caption of each table, and what of it our copy of the paper left illegible."""
    return _read("tables").copy()


def figures() -> pd.DataFrame:
    """Number, section, kind and caption of each figure, what it shows, and the numbers that the text gives of it."""
    return _read("figures").copy()


def captions() -> dict[str, str]:
    """Every caption: {"Table 1": ..., "Figure 1": ...}."""
    return {f"Table {n}": text for n, text in TABLES.items()} | {f"Figure {n}": text for n, text in FIGURES.items()}


def released_code() -> pd.DataFrame:
    """What the authors' released code itself reports, with ViT-L-14-336 at 518 px, in the columns of `table`."""
    return _read("released_code").copy()


TABLES: dict[int, str] = {int(n): text for n, text in zip(tables()["number"], tables()["caption"], strict=True)}
FIGURES: dict[int, str] = {int(n): text for n, text in zip(figures()["number"], figures()["caption"], strict=True)}
