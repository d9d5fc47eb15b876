"""Image scores of any method from a CSV file, whatever its separator; what is odd about it is named by its line.

Predictions of anomalib and FiftyOne are read too (`predictions`).
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from musc.datasets.words import kind
from musc.errors import DataError
from musc.plugin.predictions import FIELDS, is_predictions, read_predictions
from musc.saving import regular_file

RAW, PLAIN = "raw_score", "score"  # columns that are scores, the first found counts
SEPARATORS = ",;\t|"
LABELS = {"0": 0, "0.0": 0, "false": 0, "negative": 0, "1": 1, "1.0": 1, "true": 1, "positive": 1}  # besides `words`


def read_score_table(path: Path, column: str | None = None) -> tuple[pd.DataFrame, str, list[str]]:
    """The table, the name of its column of scores, and notes on how it was read.

    The columns path and score, and perhaps label and category, are found in any case; labels may be words (LABELS,
    `musc.datasets.words`). A separator at the end of every line is no column.

    Raises:
        DataError: no such file, no text, a line with more or fewer cells than the header, a column that is missing, a
            score that is no finite number, or a label that is none while others are.
    """
    notes: list[str] = []
    if is_predictions(path):
        table, column = read_predictions(path, column), PLAIN
    else:
        table, notes = _read(path)
        table = table.rename(columns={theirs: ours for theirs, ours in FIELDS.items() if ours not in table})
    known = {name.lower(): name for name in reversed(table.columns)}
    table = table.rename(columns={known[name]: name for name in ("path", "label", "category") if name in known})
    if column is None:
        column = next((known[name] for name in (RAW, PLAIN) if name in known), PLAIN)
    if column in ("path", "label", "category"):
        raise DataError(f"{path}: the column {column} holds no scores; name another one of {', '.join(table.columns)}.")
    if "path" not in table or column not in table:
        raise DataError(f"{path} needs the columns path and {column}; it has {', '.join(table.columns)}.")
    if table.empty:
        raise DataError(f"{path} has no rows: there is nothing to re-score.")
    table[column] = _numbers(table, column, path)
    if "label" in table:
        labels = table["label"].str.strip().str.lower()
        kinds = {"good": 0, "bad": 1}
        table["label"] = labels.map({word: LABELS.get(word, kinds.get(kind(word) or "")) for word in set(labels)})
        if (unknown := table["label"].isna()).all():
            if (said := sorted(set(labels) - {""})) != []:
                notes.append(f"labels such as {said[0]!r} say neither normal nor anomalous: no metrics.")
            table = table.drop(columns="label")
        elif unknown.any():
            row = int(np.flatnonzero(unknown)[0])
            raise DataError(
                f"{path}: the label of {table['path'].iloc[row]!r} is {labels.iloc[row]!r}: give 0 (normal) or 1 "
                "(anomalous)."
            )
        else:
            table["label"] = table["label"].astype(int)
    return table, column, notes


def _read(path: Path) -> tuple[pd.DataFrame, list[str]]:
    try:
        with regular_file(path) as start:
            if (kind := _no_text(start.read(4096))) is not None:
                raise DataError(f"{path} is {kind}, not a table of text: save it as CSV (UTF-8).")
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            first = file.readline()
            separator = max(SEPARATORS, key=first.count) if first.strip() else ","
            file.seek(0)
            rows = [row for row in csv.reader(file, delimiter=separator, skipinitialspace=True) if any(row)]
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there: name the CSV file of the scores.") from error
    except (OSError, csv.Error, ValueError) as error:
        raise DataError(f"{path} cannot be read as a CSV file ({error}).") from error
    if not rows:
        raise DataError(f"{path} is empty: it needs a line with the columns path and score, and a line per image.")
    header, *lines = rows
    ends = header[-1].strip() == ""
    names = [name.strip() for name in (header[:-1] if ends else header)]
    if len(set(names)) < len(names):
        raise DataError(f"{path} names the column {next(n for n in names if names.count(n) > 1)!r} twice.")
    for number, line in enumerate(lines, 2):
        if len(line) == len(names) + 1 and line[-1].strip() == "":
            line.pop()
        if len(line) != len(names):
            raise DataError(
                f"{path}: line {number} has {len(line)} cells and the header {len(names)} (between them stands "
                f"{separator!r}): put names that hold one in quotes."
            )
    notes = [] if separator == "," else [f"{path} was read with {separator!r} between its columns."]
    return pd.DataFrame(lines, columns=names, dtype=str), notes


def _no_text(start: bytes) -> str | None:
    """What a file is that is no text in UTF-8 or in an encoding of single bytes."""
    if start.startswith(b"PK"):
        return "an Excel workbook, or another archive"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "in UTF-16"
    return "binary" if b"\0" in start else None


def _numbers(table: pd.DataFrame, column: str, path: Path) -> np.ndarray:
    numbers = pd.to_numeric(table[column], errors="coerce")
    if numbers.isna().all():  # decimal commas, where the columns stand between semicolons
        if table[column].str.fullmatch(r"[1-9]\d{0,2}(,\d{3})+").all():
            raise DataError(
                f"{path}: the {column} {table[column].iloc[0]!r} may be a thousand or a decimal: write 1234."
            )
        numbers = pd.to_numeric(table[column].str.replace(",", ".", regex=False), errors="coerce")
    values = numbers.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(
            f"{path}: the {column} of {str(table['path'].iloc[row])!r} is {str(table[column].iloc[row])!r}, not a "
            "finite number: mend it, or leave that row out."
        )
    if np.abs(values).max() > 1e300:  # their differences would overflow
        raise DataError(f"{path}: the {column} runs from {values.min():g} to {values.max():g}, which no float64 spans.")
    return values
