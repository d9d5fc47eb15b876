"""Which threshold without labels should be the default: measured on the scores of real runs, by N and by share.

    python -m benchmarks.default_threshold [--network NAME] [--categories tile,...] [--work FOLDER] [--scores-only]

A pool of images per category (NETWORKS) is compared once; batches of N of them with a share of anomalous ones are then
drawn, and scored as they would be alone (Eq. 1-3 with r = 3, the highest patch score). The scores of a category are
kept in FOLDER: a run that was interrupted goes on, and another candidate costs no comparison. The tables are made of
all that is there.

`default_threshold.csv` has a row per network, N and candidate: means over categories, shares and draws, in percent; of
misses and F1 over the batches with anomalous images, of "all normal" over those without one.
`default_threshold_f1.csv` and `default_threshold_alarms.csv` have F1 and false alarms of the same by N.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks.__main__ import HERE
from musc import MuSc, MuScConfig, msm
from musc.datasets import load_category, synthetic
from musc.results import thresholds
from musc.saving import whole

DRAWS = {10: 8, 20: 8, 50: 6, 100: 4, 200: 3, 400: 2}  # batches by N, of every share that the pool has images for
SHARES = (0.0, 0.1, 0.3, 0.5)
# Backbone, input size in pixels, and normal and anomalous images of a pool.
NETWORKS = {
    "procedural": ("procedural", 128, 360, 120),
    "procedural, 256 px": ("procedural", 256, 24, 12),
    "focus_vits14": ("focus_vits14", 168, 100, 50),
}
DEGREE = 3


def candidates(x: NDArray) -> dict[str, float]:
    """The value of every candidate on the scores of a batch, in the order of the tables."""
    least, mixture = 1 / len(x), thresholds.mixture(x).value
    robust = {rate: thresholds.robust(x, max(rate, least)).value for rate in (0.01, 0.05)}
    return {
        "robust, 1 %": thresholds.robust(x, 0.01).value,
        "robust, 1 image": robust[0.01],
        "robust, 5 %": robust[0.05],
        "robust, trimmed": trimmed(x, robust[0.01], max(0.01, least)),
        "mixture": mixture,
        "lower of both": min(robust[0.01], mixture),
        "mean of both": float(np.sqrt(robust[0.01] * mixture)),
    }


def trimmed(x: NDArray, start: float, rate: float) -> float:
    """`robust`, and then mean and spread of all that lies below the threshold, on both sides of the mode, until it
    stays: the spread is corrected for the tail that was cut off."""
    v, cut = np.log(x.astype(np.float64)), float(np.log(start))
    z = stats.norm.isf(rate)
    tail = stats.norm.pdf(z) / (1 - rate)
    left = 1 - z * tail - tail**2  # of a normal variance, when its upper `rate` is cut off
    for _ in range(20):
        below = v[v < cut]
        if len(below) < thresholds.FEWEST:
            break
        n = len(below)
        width = stats.t.isf(rate, n - 1) * np.sqrt((1 + 1 / n) * below.var(ddof=1) / left)
        cut, before = float(below.mean() + width), cut
        if abs(cut - before) < 1e-6:
            break
    return float(np.exp(cut))


BEST = "best F1, by the labels"


def batches(labels: NDArray) -> Iterator[tuple[int, float, int, NDArray]]:
    """N, share, number of the draw, and rows of the pool."""
    for n, draws in DRAWS.items():
        for share in SHARES:
            k = round(share * n)
            good, bad = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
            if n - k <= len(good) and k <= len(bad):
                for draw in range(draws):
                    g = np.random.default_rng([n, k, draw])
                    chosen = np.r_[g.choice(good, n - k, replace=False), g.choice(bad, k, replace=False)]
                    yield n, share, draw, chosen


def batch_scores(distances: NDArray, rows: NDArray, interval: tuple[float, float]) -> NDArray:
    """Patch scores [n, M] of a batch by itself: Eq. 2 on its part of one stage's distances [P, P - 1, M]."""
    low, high = msm.interval_bounds(len(rows) - 1, interval)
    found = np.empty((len(rows), distances.shape[-1]), dtype=np.float32)
    for k, i in enumerate(rows):
        others = np.delete(rows, k)
        part = distances[i, others - (others > i)]  # [n - 1, M]: the image itself is left out
        found[k] = np.partition(part, sorted({low, high - 1}), axis=0)[low:high].mean(axis=0)
    return found


def scored(name: str, network: str) -> dict[str, NDArray]:
    """Image scores of every batch of a category, by N, share and draw; and the pool's labels."""
    backbone, size, good, bad = NETWORKS[network]
    category = load_category("synthetic", name=name, good=good, defects=bad)
    musc = MuSc(MuScConfig(backbone=backbone, image_size=size, device="cpu", workers=0))
    features = musc.features(category.samples)
    labels = np.array([s.label for s in features.samples])
    drawn = list(batches(labels))
    patches: list[NDArray | float] = [0.0] * len(drawn)
    for stage, grid in zip(features.patch_tokens, features.grids, strict=True):
        (distances,) = msm.stage_distances(stage, (DEGREE,), grid=grid).numpy()
        for b, (_, _, _, rows) in enumerate(drawn):
            patches[b] = patches[b] + batch_scores(distances, rows, musc.config.interval) / len(features.grids)
    return {
        f"{n} {share} {draw}": np.c_[labels[rows], np.max(patch, axis=1)]  # [n, 2]
        for (n, share, draw, rows), patch in zip(drawn, patches, strict=True)
    }


def judged(scores: NDArray, labels: NDArray, value: float) -> tuple[float, float, float, float]:
    """Misses and F1 (NaN without anomalous images), false alarms, and those where no image is anomalous (else NaN)."""
    flagged, bad = scores >= value, labels == 1
    alarms = float(flagged[~bad].mean())
    if not bad.any():
        return np.nan, np.nan, alarms, alarms
    f1 = 2 * (flagged & bad).sum() / (flagged.sum() + bad.sum())
    return float((~flagged)[bad].mean()), float(f1), alarms, np.nan


def judged_files(work: Path) -> pd.DataFrame:
    """A row per batch and candidate, of all categories in the folder."""
    rows = []
    for file in sorted(work.glob("*.npz")):
        network, _, category = file.stem.rpartition(" ")
        with np.load(file) as batch:
            for key in batch.files:
                n, share, _ = key.split(" ")
                labels, scores = batch[key].T
                values = candidates(scores)
                if labels.any():
                    values[BEST] = thresholds.f1_max_threshold(labels, scores).value
                for name, value in values.items():
                    rows.append([network, category, int(n), float(share), name, *judged(scores, labels, value)])
    names = ["network", "category", "images", "share", "threshold", "misses", "f1", "false alarms", "all normal"]
    return pd.DataFrame(rows, columns=names)


def tables(work: Path, out: Path) -> None:
    """Writes the three tables of what is in the folder."""
    found = judged_files(work)
    found["network"] = pd.Categorical(found["network"], list(NETWORKS))
    keys, values = ["network", "images", "threshold"], ["misses", "false alarms", "f1", "all normal"]
    grouped = found.groupby(keys, sort=False, observed=True)
    long = 100 * grouped[values].mean()
    long["categories"] = grouped["category"].nunique()
    long = long.sort_index(level=["network", "images"], sort_remaining=False, kind="stable")
    long.to_csv(out / "default_threshold.csv", float_format="%.1f", lineterminator="\n")
    for name, file in (("f1", "f1"), ("false alarms", "alarms")):
        wide = long[name].unstack("images").reindex(list(found["threshold"].unique()), level="threshold")
        wide.to_csv(out / f"default_threshold_{file}.csv", float_format="%.1f", lineterminator="\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.default_threshold", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--work", type=Path, default=Path("default_threshold"), help="scores, a file per category")
    parser.add_argument("--network", choices=list(NETWORKS), default="procedural")
    parser.add_argument("--categories", default=",".join(synthetic.CATEGORIES), help="of the synthetic data set")
    parser.add_argument("--scores-only", action="store_true", help="write no tables yet")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in filter(None, arguments.categories.split(",")):
        file = arguments.work / f"{arguments.network} {name}.npz"
        if not file.exists():
            start = time.process_time()
            found = scored(name, arguments.network)
            with whole(file) as path, path.open("wb") as opened:
                np.savez_compressed(opened, **found)
            print(f"{file.stem}: {time.process_time() - start:.0f} s of CPU", flush=True)
    if not arguments.scores_only:
        tables(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
