"""Paper, released code and this run beside each other, and the synthetic stand-in apart from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from musc.reproduce.experiments import GRIDS
from musc.reproduce.measure import KEYS
from musc.reproduce.paper import released_code, table
from musc.reproduce.profiles import SYNTHETIC
from musc.results.tables import MarkedTable

OURS = ("MuSc", "MuSc+")
NAMES = {
    "mvtec_ad": "MVTec AD",
    "visa": "VisA",
    "btad": "BTAD",
    "mvtec_ad+visa": "MVTec AD and VisA",
    SYNTHETIC: "synthetic",
    "image_auroc": "image AUROC",
    "image_f1_max": "image F1-max",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_f1_max": "pixel F1-max",
    "pixel_ap": "pixel AP",
    "pro": "PRO",
    "time_ms": "time [ms per image]",
    "gpu_mb": "GPU memory [MB]",
    "0-shot block": "0-shot",
    "4-shot block": "4-shot",
    "subset_images_min": "least images",
    "subset_images_max": "most images",
    "": "",
}
# Where a number comes from: columns of a comparison, and how a reader finds them named.
SOURCES = {"paper": "paper", "elsewhere": "paper, Tab. 13", "released": "released code", "here": "here"}
HEADINGS = {"dataset": "data set", "row": "case"}  # of columns that name rows, where others than in the frame
LOW = ("time_ms", "gpu_mb")  # the less, the better
UNMARKED = ("subset_images_min", "subset_images_max")
DEFAULT: dict[int, str | None] = {
    3: "{1, 3, 5}",
    4: "(f) 30% + mean",
    5: "w",
    6: "s = 1",
    7: "1",
    8: "CLIP ViT-L-14-336",
    9: "{1, 3, 5}",
}
DEFAULT |= {10: "0% ~ 30%", 11: None, 13: "ViT-L-14-336, s = 1"}  # the rows that are the method as released


def printed(number: int) -> pd.DataFrame:
    """A table of the paper with its own columns gathered in `row`, named as `experiments.GRIDS` names them.

    `elsewhere` is what Tab. 13 prints for a row of Tab. 6, whose own numbers our copy of the paper lacks.
    """
    frame = table(number)
    frame["row"] = [_row(number, line) for line in frame.to_dict("records")]
    frame = frame.rename(columns={"value": "paper"})
    frame["elsewhere"] = np.nan
    if number == 6:
        nearby = printed(13).query("method == 'MuSc'").set_index(["row", "metric"])["paper"]
        frame["elsewhere"] = [nearby[f"ViT-L-14-336, {row}", m] for row, m in frame[["row", "metric"]].to_numpy()]
    columns = [*KEYS, "paper", "spread", "elsewhere", "note"]
    return frame.drop_duplicates([*KEYS, "paper"])[columns].reset_index(drop=True)


def _row(number: int, line: dict) -> str:
    match number:
        case 1:
            return line["block"] + " block"
        case 3 | 9:
            return "{" + line["degrees"].replace(",", ", ") + "}"
        case 4:
            return next(name for name in GRIDS["table_4"] if name.startswith(f"({line['row']})"))
        case 5 | 11:
            return {"without": "w/o", "with": "w"}[line["rscin"]]
        case 6:
            return f"s = {line['subsets']}"
        case 7:
            return str(line["subsets"])
        case 8:
            return f"{line['pretraining']} {line['backbone']}".strip()
        case 10:
            return f"{line['interval_low']}% ~ {line['interval_high']}%"
        case 13:
            subsets = line["subsets"]
            return line["backbone"] + ("" if pd.isna(subsets) else f", s = {subsets}")
    return ""


def compare(number: int, here: pd.DataFrame, run_here: Sequence[str] = OURS) -> pd.DataFrame:
    """The tidy comparison of one table: dataset, category, method, setting, row, metric, paper, spread, elsewhere,
    released, here, status, note.

    here: tidy rows of `measure`. run_here: the methods that this package can run. status: "measured"; "not run" (it
    could be, and was not); "quoted" (the paper's number of another method). Empty cells are NaN. What was measured on a
    data set that the paper has not (the synthetic one) comes in rows of its own, below, without the paper's number.
    """
    left = printed(number)
    metrics = list(dict.fromkeys(left["metric"]))
    here = here[here["metric"].isin(metrics)].rename(columns={"value": "here"})
    frame = left.merge(here, how="outer", on=KEYS, sort=False, indicator=True)
    order = {key: n for n, key in enumerate(map(tuple, left[KEYS].to_numpy()))}
    late = {key: len(order) + n for n, key in enumerate(map(tuple, here[KEYS].to_numpy()))}
    frame = frame.sort_values(
        "metric", key=lambda _: [(late | order)[key] for key in map(tuple, frame[KEYS].to_numpy())]
    )
    frame["released"] = _released(number, frame)
    quoted = ~frame["method"].isin(run_here)
    frame["status"] = np.where(frame["here"].notna(), "measured", np.where(quoted, "quoted", "not run"))
    frame["note"] = frame["note"].fillna("")
    return frame[[*KEYS, *("paper", "spread", "elsewhere", "released", "here", "status", "note")]].reset_index(
        drop=True
    )


def _released(number: int, frame: pd.DataFrame) -> list[float]:
    known: dict[tuple, float] = released_code().set_index(["dataset", "category", "metric"])["value"].to_dict()
    known |= {("", "mean", "time_ms"): known["", "", "time_ms"]}
    usual = (frame["method"] == "MuSc") & (frame["setting"] == "0-shot")
    if number in DEFAULT:
        usual &= frame["row"] == DEFAULT[number]
    keys = zip(frame["dataset"], frame["category"], frame["metric"], strict=True)
    return [known.get(key, np.nan) if u else np.nan for key, u in zip(keys, usual, strict=True)]


def on_real_data(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a comparison that the paper has: its data sets."""
    return frame[frame["dataset"] != SYNTHETIC]


def stand_in(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a comparison that were measured on the synthetic data set."""
    return frame[frame["dataset"] == SYNTHETIC]


class Numbers(dict[object, float]):
    """Numbers by what tells them apart; NaN for what was not printed or not measured."""

    def __missing__(self, key: object) -> float:
        return math.nan


def numbers(frame: pd.DataFrame, source: str = "paper", **where: str) -> Numbers:
    """The numbers of one source (paper, released, here) in the rows of a comparison in which columns have given values.

    They are keyed by the other columns of `KEYS` that differ among them: by a value, or a tuple where several do.

    Example:
        >>> AC = numbers(compare(9, pd.DataFrame(columns=[*KEYS, "value"])), dataset="visa", metric="image_auroc")
        >>> AC["{1, 3}"], AC["{1, 3, 5}"], AC["{1, 3, 5, 7}"], AC["{7}"]
        (93.7, 92.8, 90.8, nan)
    """
    for column, value in where.items():
        frame = frame[frame[column] == value]
    frame = frame.dropna(subset=source)
    keys = [k for k in KEYS if k not in where and frame[k].nunique() > 1] or ["row"]
    names = frame[keys[0]] if len(keys) == 1 else zip(*(frame[k] for k in keys), strict=True)
    return Numbers(zip(names, map(float, frame[source]), strict=True))


def side_by_side(
    frame: pd.DataFrame, rows: Sequence[str], across: Sequence[str], best: Sequence[str] | None = None
) -> MarkedTable:
    """A comparison as a reader wants it: below each other paper, released code and here, each where there is a number.

    rows, across: columns of the comparison that become rows and columns. best: columns within which the best of the
    paper's numbers is marked, and among more than three the second best; None marks none. A deviation stands behind its
    number; a dash is the paper's own.
    """
    text, mark = [], []
    marks = _marks(frame, best)
    for line, marked in zip(frame.to_dict("records"), marks, strict=True):
        shared = {c: NAMES.get(line[c], line[c]) for c in (*rows, *across)}
        for source, name in SOURCES.items():
            dash = source == "paper" and pd.isna(line["paper"]) and line["status"] == "quoted"
            if pd.notna(line[source]) or dash:
                text.append(shared | {"source": name, "text": "–" if dash else _written(line, source)})
                mark.append(shared | {"source": name, "text": marked if source == "paper" else ""})
    return MarkedTable(*(_wide(pd.DataFrame(long), [*rows, "source"], list(across)) for long in (text, mark)))


def _wide(long: pd.DataFrame, rows: list[str], across: list[str]) -> pd.DataFrame:
    """The column `text` by rows and columns, both in the order in which they come."""
    cells = long.drop_duplicates([*rows, *across]).set_index([*rows, *across])["text"].unstack(across).fillna("")
    order = long[rows].drop_duplicates(), long[across].drop_duplicates()
    down, along = (pd.MultiIndex.from_frame(frame) for frame in order)
    cells = cells.reindex(index=down, columns=along if len(across) > 1 else along.get_level_values(0))
    return cells.rename_axis(columns=[None] * cells.columns.nlevels).rename_axis(index=HEADINGS)


def _written(line: dict, source: str) -> str:
    value, metric = line[source], line["metric"]
    if metric in LOW or metric in UNMARKED:
        return f"{value:.1f}".removesuffix(".0")
    spread = f"±{line['spread']:.1f}" if source == "paper" and pd.notna(line["spread"]) else ""
    return f"{value:.1f}{spread}"


def _marks(frame: pd.DataFrame, within: Sequence[str] | None) -> list[str]:
    """ "best", "second" or "" for every printed number, among those that share the metric and the columns `within`."""
    if within is None:
        return [""] * len(frame)
    sign = np.where(frame["metric"].isin(LOW), -1.0, 1.0)
    worth = (sign * frame["paper"]).where(~frame["metric"].isin(UNMARKED))
    place = worth.groupby([frame[c] for c in (*within, "metric")]).rank(ascending=False, method="dense")
    rivals = worth.groupby([frame[c] for c in (*within, "metric")]).transform("count")
    best, second = (place == 1) & (rivals > 1), (place == 2) & (rivals > 3)
    return list(np.select([best, second], ["best", "second"], default=""))
