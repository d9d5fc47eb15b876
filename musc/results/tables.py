"""Tables of results as pandas DataFrames."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from musc.datasets.synthetic import HARD
from musc.results import MuScResult

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
