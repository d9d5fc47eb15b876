"""Tables of results as pandas DataFrames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from musc.datasets.synthetic import HARD
from musc.results import MuScResult

MARKS = {"best": ("<b>{}</b>", "{}*"), "second": ("<u>{}</u>", "{}'"), "": ("{}", "{}")}  # on a page, in plain text
# the order of the paper's Tab. 1, 17 and 18
COLUMNS = {
    "image AUROC before RsCIN": ("image_before_rscin", "auroc"),
    "image AUROC": ("image", "auroc"),
    "image F1-max": ("image", "f1_max"),
    "image AP": ("image", "ap"),
    "pixel AUROC": ("pixel", "auroc"),
    "pixel F1-max": ("pixel", "f1_max"),
    "pixel AP": ("pixel", "ap"),
    "PRO": ("pixel", "pro"),
    "PRO (official)": ("pixel", "pro_official"),
}


def metrics_table(results: Sequence[MuScResult], mask_protocol: str = "clean") -> pd.DataFrame:
    """The seven metrics in percent, a row per category and their mean; empty where a metric was not measurable.

    The synthetic data set's hard categories stand below the mean and are not part of it.
    Image AUROC stands there before and after RsCIN, PRO in both its definitions (see `metrics.pixel_metrics`).
    """
    rows = {}
    for result in results:
        groups = {**result.metrics, "pixel": result.metrics.get(f"pixel_{mask_protocol}", {})}
        rows[result.category] = {
            column: 100 * groups.get(group, {}).get(metric, float("nan")) for column, (group, metric) in COLUMNS.items()
        }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS))
    table.index.name = "category"
    hard = [name for r, name in zip(results, table.index, strict=True) if r.dataset == "synthetic" and name in HARD]
    usual = table.drop(index=hard)
    if len(usual) > 1:
        usual.loc["mean"] = usual.mean()
    return pd.concat([usual, table.loc[hard].rename(index="{} (hard, apart)".format)]) if hard else usual


@dataclass(frozen=True)
class MarkedTable:
    """A table of texts, the best of which are marked: bold on a page and * in plain text, the second best underlined
    and '.

    texts: the cells. marks: the same rows and columns, each "best", "second" or "".

    Example:
        >>> cells = pd.DataFrame({"AUROC": ["97.8", "91.8"]}, index=["MuSc", "WinCLIP"])
        >>> MarkedTable(cells, pd.DataFrame({"AUROC": ["best", "second"]}, index=cells.index))
                 AUROC
        MuSc     97.8*
        WinCLIP  91.8'
    """

    texts: pd.DataFrame
    marks: pd.DataFrame

    @classmethod
    def plain(cls, frame: pd.DataFrame) -> MarkedTable:
        """A frame without marks: numbers to three digits below 1, to one above; empty where there is none."""
        return cls(frame.map(_plain), frame.map(lambda _: ""))

    def _marked(self, place: int) -> pd.DataFrame:
        rows = zip(self.texts.to_numpy(), self.marks.to_numpy(), strict=True)
        cells = [[MARKS[m][place].format(t) for t, m in zip(texts, marks, strict=True)] for texts, marks in rows]
        return pd.DataFrame(cells, index=self.texts.index, columns=self.texts.columns)

    def __repr__(self) -> str:
        return self._marked(1).to_string()

    def _repr_html_(self) -> str:
        return self._marked(0).to_html(escape=False)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}"
    return str(value)
