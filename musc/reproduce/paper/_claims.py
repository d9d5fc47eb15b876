"""What the paper's text says of its tables, each claim computed again from the printed cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from musc.reproduce.paper._tables import METRICS, table

CLS, SEG, AP, PRO = "image_auroc", "pixel_auroc", "pixel_ap", "pro"
MVTEC, VISA, BTAD = "mvtec_ad", "visa", "btad"
ROUNDING = 0.05  # of one number that is printed with one decimal


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper: it says that `found`, computed from `tables`, is =, < or > (`relation`) `stated`."""

    section: str
    quote: str
    tables: tuple[int, ...]
    relation: str
    stated: float
    found: Callable[[], float]
    reading: str  # what `found` is


def cell(number: int, metric: str, **where: object) -> float:
    """The one printed value of a table where the named columns have the given values."""
    frame = table(number)
    for column, value in ({"metric": metric} | where).items():
        frame = frame[frame[column] == value]
    [value] = frame["value"]
    return float(value)


def gain(dataset: str, metric: str) -> float:
    """MuSc minus the best other zero-shot method of Tab. 1."""
    block = table(1).query("block == '0-shot' and dataset == @dataset and metric == @metric")
    ours = block["method"] == "MuSc"
    return float(block["value"][ours].item() - block["value"][~ours].max())


def over(number: int, others: list[tuple[str, str]], dataset: str, metrics: tuple[str, ...]) -> float:
    """MuSc's smallest lead over the (method, setting) pairs of a table, in any of the metrics."""
    return min(
        cell(number, m, dataset=dataset, method="MuSc", setting="0-shot")
        - cell(number, m, dataset=dataset, method=method, setting=setting)
        for m in metrics
        for method, setting in others
    )


def subsets_cost(number: int, metric: str, **where: object) -> float:
    """The largest loss of s = 2, 3 against s = 1."""
    return max(cell(number, metric, subsets=1, **where) - cell(number, metric, subsets=s, **where) for s in (2, 3))


def rscin_gain(metric: str, **where: object) -> float:
    number = 11 if "method" in where else 5
    return cell(number, metric, rscin="with", **where) - cell(number, metric, rscin="without", **where)


def all_degrees_lead() -> float:
    """Tab. 3: mean of AC and AS of both data sets with {1, 3, 5}, minus the best other row's mean."""
    means = table(3).groupby("degrees")["value"].mean()
    return float(means["1,3,5"] - means.drop("1,3,5").max())


def largest_rise(number: int, columns: list[str], metrics: tuple[str, ...], start: int = 0) -> float:
    """The largest step upward from one printed row to the next, in any column of numbers, from row `start` on."""
    frame = table(number).query("metric in @metrics")
    wide = frame.pivot_table(index=columns, columns=["dataset", "metric"], values="value", sort=False)
    return float(wide.iloc[start:].diff().max(axis=None))


def rise_over_first(number: int, metrics: tuple[str, ...], column: str) -> float:
    """The largest excess of any later row over the first one."""
    frame = table(number).query("metric in @metrics")
    wide = frame.pivot_table(index=column, columns=["dataset", "metric"], values="value", sort=False)
    return float((wide.iloc[1:] - wide.iloc[0]).max(axis=None))


def lead_in_table_12(metric: str) -> float:
    five = table(12).query("category == 'mean of these 5' and metric == @metric").set_index("method")["value"]
    return float(five["MuSc"] - five.drop("MuSc").max())


VIT_L, VIT_B = {"backbone": "ViT-L-14-336", "method": "MuSc"}, {"backbone": "ViT-B-16-plus-240", "method": "MuSc"}
RSCIN_NAMED = [("SPADE", "full-shot"), ("DRAEM", "full-shot"), *(("RegAD", f"{k}-shot") for k in (2, 4, 8))]

CLAIMS = (
    Claim("Abstract", "a 21.1% PRO absolute gain on MVTec AD", (1,), "=", 21.1, lambda: gain(MVTEC, PRO), "gain"),
    Claim("Abstract", "a 19.4% pixel-AP gain on VisA", (1,), "=", 19.4, lambda: gain(VISA, AP), "gain"),
    Claim("Abstract", "a 14.7% pixel-AUROC gain on VisA", (1,), "=", 14.7, lambda: gain(VISA, SEG), "pixel-AUROC gain"),
    Claim("1", "+6.0% AUROC classification on MVTec AD", (1,), "=", 6.0, lambda: gain(MVTEC, CLS), "gain"),
    Claim("1", "+14.7% [AUROC classification] on VisA", (1,), "=", 14.7, lambda: gain(VISA, CLS), "gain"),
    Claim("1", "+21.9% AP [segmentation] on MVTec AD", (1,), "=", 21.9, lambda: gain(MVTEC, AP), "gain"),
    Claim(
        "4.1",
        "on VisA, in classification and segmentation, more than 10% improvement compared with the second-best method",
        (1,),
        ">",
        10.0,
        lambda: min(gain(VISA, m) for m in METRICS),
        "smallest gain of the seven metrics",
    ),
    Claim(
        "4.1",
        "outperforms RegAD with 32-shot",
        (2,),
        ">",
        0.0,
        lambda: over(2, [("RegAD", "32-shot")], MVTEC, (CLS, SEG)),
        "smaller lead of AC and AS",
    ),
    Claim(
        "4.2",
        "all three degrees are better than other cases in the comprehensive results of AC and AS",
        (3,),
        ">",
        0.0,
        all_degrees_lead,
        "lead of {1, 3, 5} over {1, 3} in the plain mean of the row's four numbers",
    ),
    Claim(
        "4.2",
        "RsCIN brings 0.9% F1-max on MVTec AD",
        (5,),
        "=",
        0.9,
        lambda: rscin_gain("image_f1_max", dataset=MVTEC),
        "gain",
    ),
    Claim("4.2", "RsCIN brings 2.8% AUROC on VisA", (5,), "=", 2.8, lambda: rscin_gain(CLS, dataset=VISA), "gain"),
    Claim(
        "4.2",
        "as the subset size decreases, AC decreases by less than 1.1%",
        (7,),
        "<",
        1.1,
        lambda: max(subsets_cost(7, CLS, dataset=d) for d in (MVTEC, VISA)),
        "largest loss",
    ),
    Claim(
        "4.2",
        "as the subset size decreases, AS decreases by less than 0.2%",
        (7,),
        "<",
        0.2,
        lambda: max(subsets_cost(7, SEG, dataset=d) for d in (MVTEC, VISA)),
        "largest loss",
    ),
    Claim(
        "A.1.1",
        "the lowest 30% improve image-AUROC on MVTec AD by 2.8%",
        (4,),
        "=",
        2.8,
        lambda: cell(4, CLS, dataset=MVTEC, row="f") - cell(4, CLS, dataset=MVTEC, row="c"),
        "row (f) minus row (c)",
    ),
    Claim(
        "A.1.1",
        "the lowest 30% improve pixel-AUROC on MVTec AD by 0.5%",
        (4,),
        "=",
        0.5,
        lambda: cell(4, SEG, dataset=MVTEC, row="f") - cell(4, SEG, dataset=MVTEC, row="c"),
        "row (f) minus row (c)",
    ),
    Claim(
        "A.2.2",
        "with larger aggregation degrees, classification continued to decline",
        (9,),
        "<",
        0.0,
        lambda: largest_rise(9, ["degrees"], (CLS,), start=2),
        "largest step from {1, 3, 5} on",
    ),
    Claim(
        "A.2.3",
        "as the minimum Y% are removed, the classification and segmentation results get worse",
        (10,),
        "<",
        0.0,
        lambda: rise_over_first(10, (CLS, SEG), "interval_low"),
        "largest change against Y = 0",
    ),
    Claim(
        "A.2.4",
        "RsCIN significantly improves SPADE, DRAEM, RegAD",
        (11,),
        ">",
        0.0,
        lambda: min(rscin_gain(CLS, dataset=MVTEC, method=m, setting=s) for m, s in RSCIN_NAMED),
        "smallest change of AUROC among them",
    ),
    Claim("A.3", "MuSc still outperforms (AC)", (12,), ">", 0.0, lambda: lead_in_table_12(CLS), "lead of the mean"),
    Claim("A.3", "MuSc still outperforms (AS)", (12,), ">", 0.0, lambda: lead_in_table_12(SEG), "lead of the mean"),
    Claim(
        "A.4",
        "with ViT-B-16-plus-240 and s = 3, 150.7 ms less than WinCLIP",
        (13,),
        "=",
        150.7,
        lambda: cell(13, "time_ms", method="WinCLIP") - cell(13, "time_ms", subsets=3, **VIT_B),
        "difference in ms",
    ),
    Claim(
        "A.4",
        "with ViT-L-14-336 and s = 3, half the time consumed when using the entire unlabeled set",
        (13,),
        "=",
        0.5,
        lambda: cell(13, "time_ms", subsets=3, **VIT_L) / cell(13, "time_ms", subsets=1, **VIT_L),
        "ratio of the times",
    ),
    Claim(
        "A.4",
        "with ViT-L-14-336, segmentation reduces by less than 0.1%",
        (13,),
        "<",
        0.1,
        lambda: subsets_cost(13, PRO, **VIT_L),
        "largest loss of PRO",
    ),
    Claim(
        "A.4",
        "with ViT-L-14-336, classification decreases by 1.1%",
        (13,),
        "=",
        1.1,
        lambda: subsets_cost(13, CLS, **VIT_L),
        "largest loss",
    ),
    Claim(
        "A.4",
        "with ViT-B-16-plus-240, segmentation reduces by less than 0.5%",
        (13,),
        "<",
        0.5,
        lambda: subsets_cost(13, PRO, **VIT_B),
        "largest loss of PRO",
    ),
    Claim(
        "A.4",
        "with ViT-B-16-plus-240, classification decreases by 0.2%",
        (13,),
        "=",
        0.2,
        lambda: subsets_cost(13, CLS, **VIT_B),
        "largest loss",
    ),
    Claim(
        "A.5",
        "a 22.5% image-AUROC gain over APRIL-GAN on BTAD",
        (14,),
        "=",
        22.5,
        lambda: over(14, [("APRIL-GAN", "0-shot")], BTAD, (CLS,)),
        "lead",
    ),
    Claim(
        "A.5",
        "a 7.7% pixel-AUROC gain over APRIL-GAN on BTAD",
        (14,),
        "=",
        7.7,
        lambda: over(14, [("APRIL-GAN", "0-shot")], BTAD, (SEG,)),
        "lead",
    ),
    Claim(
        "A.5",
        "MuSc even outperforms RegAD and PatchCore in 4-shot setting on BTAD",
        (14,),
        ">",
        0.0,
        lambda: over(14, [("RegAD", "4-shot"), ("PatchCore", "4-shot")], BTAD, (CLS, SEG)),
        "smallest lead in AC and AS",
    ),
)


def claims() -> pd.DataFrame:
    """The paper's own sentences about its tables, each with the number that the printed cells give.

    Columns: section, quote (shortened), tables (tuple of numbers), relation and stated (what the sentence says of
    found), found, reading (what was computed), holds, and within_rounding: the sentence could still be true of the
    unrounded numbers, each of which may lie up to 0.05 from what is printed.
    """
    rows = []
    for claim in CLAIMS:
        found = round(claim.found(), 3)
        miss = abs(found - claim.stated)
        # a difference of two printed numbers: its sign and size are known to 2 * 0.05
        holds = {"=": miss < ROUNDING, "<": found < claim.stated, ">": found > claim.stated}[claim.relation]
        rows.append(
            {
                "section": claim.section,
                "quote": claim.quote,
                "tables": claim.tables,
                "relation": claim.relation,
                "stated": claim.stated,
                "found": found,
                "reading": claim.reading,
                "holds": holds,
                "within_rounding": holds or miss <= 2 * ROUNDING + 1e-9,
            }
        )
    return pd.DataFrame(rows)
