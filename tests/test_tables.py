import numpy as np
import pandas as pd
import pytest

from musc.config import MuScConfig
from musc.results import MuScResult
from musc.results.tables import MarkedTable, metrics_table


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


def test_marks_are_bold_and_underlined_on_a_page():
    cells = pd.DataFrame({"AUROC": ["97.8", "91.8", "86.1"]}, index=["a", "b", "c"])
    marks = pd.DataFrame({"AUROC": ["best", "second", ""]}, index=cells.index)
    page = MarkedTable(cells, marks)._repr_html_()
    assert "<td><b>97.8</b></td>" in page
    assert "<td><u>91.8</u></td>" in page
    assert "<td>86.1</td>" in page
    assert repr(MarkedTable(cells, marks)).split() == ["AUROC", "a", "97.8*", "b", "91.8'", "c", "86.1"]


def test_plain_numbers_have_three_digits_below_one():
    frame = pd.DataFrame({"x": [0.12345, 87.654, np.nan, 3, "yes"]}, dtype=object)
    assert list(MarkedTable.plain(frame).texts["x"]) == ["0.123", "87.7", "", "3", "yes"]
