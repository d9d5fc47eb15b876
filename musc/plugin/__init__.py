"""RsCIN for the scores of any other method (App. A.2.4, Tab. 11): read, join by path, re-score, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from musc import metrics, rscin
from musc.errors import ConfigError, DataError, ResultError
from musc.plugin.class_tokens import ClassTokens, pick, read_class_tokens, unique_paths
from musc.plugin.score_table import PLAIN, RAW, read_score_table
from musc.saving import whole


@dataclass(frozen=True)
class Rescored:
    """What `rescore_file` gives back.

    table: the rows of the CSV file in their order, with `score` (after RsCIN), `rank` (1 = most anomalous) and
    `raw_score` (before) in front of all its other columns. metrics: image metrics before and after in percent, a row
    per category, empty without labels. notes: what was left out or could not be measured.
    """

    table: pd.DataFrame
    metrics: pd.DataFrame
    notes: tuple[str, ...]

    def write(self, path: Path | str) -> Path:
        """Write the table as CSV, all or nothing. Raises ResultError where that is not possible."""
        path = Path(path)
        try:
            with whole(path) as partial:
                self.table.to_csv(partial, index=False, encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise ResultError(f"{path} cannot be written ({error.strerror or error}): choose another --out.") from error
        return path


def rescore_file(
    scores: Path | str,
    class_tokens: Path | str,
    windows: Sequence[float] = (2, 3),
    *,
    categories: Sequence[str] | None = None,
    column: str | None = None,
    by_order: bool = False,
) -> Rescored:
    """Re-score the image scores of any method by RsCIN (Eq. 5), each category by itself.

    Args:
        scores: predictions of anomalib or FiftyOne (see `predictions`), or a CSV file with the columns `path` and
            `score`; `label` (0 normal, 1 anomalous, or words) and `category` may be there too. Where it has `raw_score`
            as well, as our own scores.csv does, that one is re-scored: its `score` has been through RsCIN already.
        class_tokens: see `class_tokens.read_class_tokens`. Rows are joined by relative path; slashes are normalised.
        windows: k of each window, counting the image itself; (2, 3) on MVTec AD and BTAD, (8, 9) on VisA.
        categories: only these, by the column `category`; or, without that column, the one array to take from a file of
            several.
        column: the column that is re-scored, where it is neither of the two above.
        by_order: join row by row instead. The tokens' file has no paths (the published ones have none), and the
            caller vouches that the rows of both stand in the same order.

    Raises:
        DataError: a file cannot be read; a path is missing, named twice, or has no class token; a score is not finite.
        ConfigError: windows larger than the category, an unknown category or column, an order that is not vouched for.
    """
    table, column, notes = read_score_table(Path(scores), column)
    notes = [*notes, f"re-scored the column {column!r} of {scores}."]
    before = table[column].to_numpy(dtype=np.float64)
    after = np.empty_like(before)
    rows_of = _categories(table, categories, Path(scores))
    found, measured = read_class_tokens(class_tokens), {}
    for name, rows in rows_of.items():
        tokens = pick(found, name, class_tokens)
        order = _match(table["path"].iloc[rows], tokens, Path(scores), by_order)
        if (spare := len(tokens.tokens) - len(order)) and len(rows_of) == 1:
            notes.append(f"{spare} class tokens of {tokens.source} have no score: left out.")
        try:
            smoothed = rscin.rescore(
                torch.from_numpy(before[rows]), torch.from_numpy(tokens.tokens[order].astype(np.float64)), windows
            )
        except ValueError as error:
            raise ConfigError(f"{scores} with {tokens.source}: {error}") from error
        after[rows] = smoothed.numpy()
        if "label" in table:
            labels = table["label"].to_numpy()[rows]
            if 0 < labels.sum() < len(labels):
                measured[name or Path(scores).stem] = _before_after(labels, before[rows], after[rows])
            else:
                notes.append(f"{name or scores}: no metrics, since all labels are equal.")
    kept = np.sort(np.concatenate(list(rows_of.values())))
    front = {"path": table["path"], PLAIN: after, "rank": _ranks(after, rows_of), RAW: before}
    rest = table.drop(columns=[c for c in {*front, column} if c in table])
    out = pd.DataFrame(front).join(rest).iloc[kept].reset_index(drop=True)
    return Rescored(out, _metrics_table(measured), tuple(notes))


def _categories(table: pd.DataFrame, chosen: Sequence[str] | None, path: Path) -> dict[str | None, NDArray[np.intp]]:
    """Rows of each category; one of no name where the table does not tell them apart."""
    if "category" in table and (table["category"] != "").any():
        groups = {str(name): np.flatnonzero(table["category"] == name) for name in table["category"].unique()}
        if unknown := sorted(set(chosen or ()) - set(groups)):
            raise ConfigError(f"{path} has no category {', '.join(unknown)}; it has {', '.join(groups)}.")
        return {name: rows for name, rows in groups.items() if not chosen or name in chosen}
    if chosen and len(chosen) > 1:
        raise ConfigError(f"{path} has no column `category`: name one category, or add the column.")
    return {chosen[0] if chosen else None: np.arange(len(table))}


def _match(paths: pd.Series, tokens: ClassTokens, source: Path, by_order: bool) -> NDArray[np.intp]:
    """The row of the class tokens of every path."""
    wanted = unique_paths(tuple(paths), source)
    if by_order:
        if len(wanted) != len(tokens.tokens):
            raise DataError(
                f"{source} has {len(wanted)} scores but {tokens.source} has {len(tokens.tokens)} class tokens: "
                "--by-order needs equally many."
            )
        return np.arange(len(wanted))
    if tokens.paths is None:
        raise ConfigError(
            f"{tokens.source} names no paths, so its rows cannot be matched with those of {source}. If both are in "
            "the same order (the published files: sorted by defect folder, then file name), say --by-order."
        )
    row_of = {path: row for row, path in enumerate(tokens.paths)}
    wanted = tuple(_ending(path, row_of) for path in wanted)
    if missing := [path for path in wanted if path not in row_of]:
        own = repr(tokens.paths[0]) if tokens.paths else "nothing"
        raise DataError(
            f"{len(missing)} of {len(wanted)} paths of {source} have no class token in {tokens.source}, such as "
            f"{missing[0]!r}; it has {own}. Make both relative to the same folder."
        )
    if twice := [path for path in wanted if wanted.count(path) > 1]:
        raise DataError(f"two paths of {source} end in {twice[0]!r} of {tokens.source}: name both by relative paths.")
    return np.array([row_of[path] for path in wanted])


def _ending(path: str, known: Mapping[str, int]) -> str:
    """The known path that a longer one, such as an absolute one of another program, ends in; else the path itself."""
    parts = path.split("/")
    return next((end for n in range(len(parts)) if (end := "/".join(parts[n:])) in known), path)


def _ranks(scores: NDArray[np.float64], rows_of: dict[str | None, NDArray[np.intp]]) -> NDArray[np.int64]:
    ranks = np.zeros(len(scores), dtype=np.int64)
    for rows in rows_of.values():
        ranks[rows[np.argsort(-scores[rows], kind="stable")]] = np.arange(1, len(rows) + 1)
    return ranks


def _before_after(labels: NDArray[Any], before: NDArray[Any], after: NDArray[Any]) -> dict[str, float]:
    without, with_ = metrics.image_metrics(labels, before), metrics.image_metrics(labels, after)
    names = (("auroc", "AUROC"), ("f1_max", "F1-max"), ("ap", "AP"))
    return {f"{t} {w}": 100 * m[n] for n, t in names for w, m in (("w/o", without), ("w", with_))}


def _metrics_table(measured: dict[str, dict[str, float]]) -> pd.DataFrame:
    table = pd.DataFrame.from_dict(measured, orient="index")
    table.index.name = "category"
    if len(table) > 1:
        table.loc["mean"] = table.mean()
    return table
