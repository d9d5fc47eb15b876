"""What `book/plugin.md` says of decisions and of RsCIN after other methods, measured.

    python -m benchmarks.decisions [--out FOLDER] [drawn_scores gain]

`decisions_false_alarms.csv`, `decisions_misses.csv`: thresholds without labels on drawn scores whose normal part is
known. `decisions_gain.csv`: PatchCore and SPADE on the synthetic data set, without and with RsCIN.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.__main__ import HERE
from musc.results.thresholds import choose

SEEDS = 200
IMAGES = (40, 150)
SHARES = (0.0, 0.1, 0.3, 0.5)  # of anomalous images
METHODS = ("robust", "mixture")
GOOD, DEFECTS, TRAIN = 24, 16, 16

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
NORMAL: dict[str, Draw] = {
    "log-normal, spread 0.15": lambda g, n: np.exp(g.normal(-1, 0.15, n)),
    "gamma of shape 30": lambda g, n: g.gamma(30, 0.01, n),
    "log-Gumbel, spread 0.15": lambda g, n: np.exp(g.gumbel(-1, 0.15 * np.sqrt(6) / np.pi, n)),
}


def drawn(normal: Draw, n: int, share: float, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Scores of n images, their labels, and 4000 more normal scores, which tell the true rate of false alarms.

    Anomalies lie 2.5 to 9 standard deviations above the normal mean, evenly.
    """
    g = np.random.default_rng(seed)
    k = round(share * n)
    more = normal(g, 4000)
    anomalous = more.mean() + more.std() * g.uniform(2.5, 9, k)
    return np.r_[normal(g, n - k), anomalous], np.r_[np.zeros(n - k, int), np.ones(k, int)], more


def rates(normal: str, n: int, method: str, share: float) -> tuple[float, float]:
    """Means over seeds, in percent: normal images at or above the threshold, and anomalies below it."""
    alarms, misses = [], []
    for seed in range(SEEDS):
        scores, labels, more = drawn(NORMAL[normal], n, share, seed)
        threshold = choose(method, scores)
        assert threshold is not None
        alarms.append((more >= threshold.value).mean())
        misses.append((scores[labels == 1] < threshold.value).mean() if share else np.nan)
    return float(100 * np.mean(alarms)), float(100 * np.mean(misses))


def drawn_scores() -> dict[str, pd.DataFrame]:
    """False alarms and misses of each threshold, one column per share of anomalous images."""
    found = {
        (name, n, method, share): rates(name, n, method, share)
        for name in NORMAL
        for n in IMAGES
        for method in METHODS
        for share in SHARES
    }
    index = ["normal scores", "images", "threshold", "share"]
    columns = ["false_alarms", "misses"]
    long = pd.DataFrame(found, index=columns).T.rename_axis(index).rename(index=percent, level="share")
    return {name: long[name].unstack(sort=False).dropna(axis=1) for name in columns}


def percent(share: float) -> str:
    return f"{100 * share:.0f} % anomalous" if share else "all normal"


def gain() -> dict[str, pd.DataFrame]:
    """Image AUROC in percent of the baselines on every synthetic category, without and with RsCIN."""
    from musc import MuSc, MuScConfig
    from musc.datasets import load_category, synthetic
    from musc.reproduce.plugged_in import rscin_gain

    musc = MuSc(MuScConfig(backbone="procedural"))
    rows = []
    for name in synthetic.CATEGORIES:
        category = load_category("synthetic", name=name, good=GOOD, defects=DEFECTS, train=TRAIN)
        rows.append(rscin_gain(category, musc))
    long = pd.concat(rows)
    long["column"] = long["method"] + " " + long["rscin"]
    table = long.set_index(["category", "column"])["image_auroc"].unstack(sort=False)
    table.loc["mean"] = table.mean()
    return {"gain": table}


MEASURED = {"drawn_scores": drawn_scores, "gain": gain}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(MEASURED))
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        for what, table in MEASURED[name]().items():
            table.to_csv(arguments.out / f"decisions_{what}.csv", float_format="%.1f", lineterminator="\n")


if __name__ == "__main__":
    main()
