"""What `book/plugin.md` says of decisions and of RsCIN after other methods, measured.

    python -m benchmarks.decisions [--out FOLDER] [false_alarms gain]

`decisions_false_alarms.csv`: thresholds without labels on drawn scores whose normal part is known.
`decisions_gain.csv`: PatchCore and SPADE on the synthetic data set, without and with RsCIN.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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


def false_alarms() -> list[dict[str, Any]]:
    """Means over seeds, in percent: normal images at or above the threshold, and anomalies below it."""
    rows = []
    for name, normal in NORMAL.items():
        for n in IMAGES:
            for method in METHODS:
                for share in SHARES:
                    alarms, misses = [], []
                    for seed in range(SEEDS):
                        scores, labels, more = drawn(normal, n, share, seed)
                        threshold = choose(method, scores)
                        assert threshold is not None
                        alarms.append((more >= threshold.value).mean())
                        misses.append((scores[labels == 1] < threshold.value).mean() if share else np.nan)
                    row = {"normal scores": name, "images": n, "method": method, "share": share}
                    row |= {"false alarms": 100 * np.mean(alarms), "spread": 100 * np.std(alarms)}
                    rows.append(row | {"missed": 100 * np.mean(misses)})
    return rows


def gain() -> list[dict[str, Any]]:
    """Image AUROC in percent of the baselines on every synthetic category, without and with RsCIN."""
    from musc import MuSc, MuScConfig
    from musc.datasets import load_category, synthetic
    from musc.reproduce.plugged_in import rscin_gain

    musc = MuSc(MuScConfig(backbone="procedural"))
    rows = []
    for name in synthetic.CATEGORIES:
        category = load_category("synthetic", name=name, good=GOOD, defects=DEFECTS, train=TRAIN)
        rows += rscin_gain(category, musc).to_dict("records")
        print(name, flush=True)
    return rows


MEASURED = {"false_alarms": false_alarms, "gain": gain}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(MEASURED))
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        rows = MEASURED[name]()
        with (arguments.out / f"decisions_{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({k: f"{v:.2f}" if isinstance(v, float) and k != "share" else v for k, v in row.items()})


if __name__ == "__main__":
    main()
