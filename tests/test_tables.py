import numpy as np
import pytest

from musc.config import MuScConfig
from musc.results import MuScResult
from musc.results.tables import metrics_table


def result(dataset, category, auroc):
    n = np.zeros(0, np.float32)
    metrics = {"image": {"auroc": auroc}, "pixel_clean": {"pro": auroc / 2}}
    return MuScResult(
        dataset, category, (), n, n, n.reshape(0, 1, 1), None, None, (), MuScConfig(), metrics
    )  # fmt: skip


def test_mean_in_percent_without_the_hard_categories():
    results = [result("synthetic", name, a) for name, a in (("grid", 0.8), ("screw_random", 0.1), ("tile", 0.9))]
    table = metrics_table(results)
    assert list(table.index) == ["grid", "tile", "mean", "screw_random (hard, apart)"]
    assert table.loc["mean", "image AUROC"] == pytest.approx(85)
    assert table.loc["mean", "PRO"] == pytest.approx(42.5)
    assert np.isnan(table.loc["grid", "image AP"])


def test_one_category_needs_no_mean():
    assert list(metrics_table([result("toy", "cup", 1.0)]).index) == ["cup"]
