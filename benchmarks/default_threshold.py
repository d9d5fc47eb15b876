"""Which threshold without labels should be the default: measured on the scores of real runs, by N and by share.

    python -m benchmarks.default_threshold [--out FOLDER] [--data FOLDER] [--seeds 2]

A pool of images per category is compared once; batches of N of them with a share of anomalous ones are then drawn, and
scored as they would be alone (Eq. 1-3 with r = 3, the highest patch score). The categories are the synthetic ones with
the embedded backbone and with focus_vits14 where its weights are here, and --data, a folder in the layout of MVTec AD.
`default_threshold.csv` has a row per backbone, N and candidate, means over categories, shares and seeds, in percent.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.__main__ import HERE
from musc import MuSc, MuScConfig, lnamd, msm
from musc.datasets import load_category, synthetic
from musc.datasets.base import Category
from musc.results import thresholds

GOOD, BAD = 24, 12  # images of a pool
SIZES = (10, 14, 24)
SHARES = (0.0, 0.1, 0.3, 0.5)


def candidates(scores: NDArray) -> dict[str, float]:
    """The value of every candidate on the scores of a batch."""
    robust = {rate: thresholds.robust(scores, rate).value for rate in (0.01, 0.05, 0.1, 1 / len(scores))}
    mixture = thresholds.mixture(scores).value
    return {
        "robust, 1 %": robust[0.01],
        "robust, 5 %": robust[0.05],
        "robust, 10 %": robust[0.1],
        "robust, 1 image": robust[1 / len(scores)],
        "mixture": mixture,
        "lower of both": min(robust[0.01], mixture),
        "mean of both": float(np.sqrt(robust[0.01] * mixture)),
    }


def pool(category: Category, musc: MuSc) -> tuple[NDArray, NDArray]:
    """Distances per grid, stage and degree, [K, N, N, M] (of an image to itself NaN), and labels [N]."""
    normal = [s for s in category.samples if not s.label][:GOOD]
    bad = [s for s in category.samples if s.label]
    bad = bad[:: max(1, len(bad) // BAD)][:BAD]
    features = musc.features([*normal, *bad])
    found = []
    for stage, grid in zip(features.patch_tokens, features.grids, strict=True):
        for degree in musc.config.degrees:
            tokens = lnamd.aggregate(stage, degree) if degree > 1 else torch.nn.functional.normalize(stage, dim=-1)
            distances = msm.patch_to_image_distances(tokens)  # [N, N - 1, M]
            N, _, M = distances.shape
            full = torch.full((N, N, M), float("nan"))
            full[~torch.eye(N, dtype=torch.bool)] = distances.reshape(-1, M)
            found.append(full.numpy())
        assert grid == features.grids[0]
    return np.stack(found), np.r_[np.zeros(len(normal), int), np.ones(len(bad), int)]


def batch_scores(distances: NDArray, rows: NDArray, interval: tuple[float, float]) -> NDArray:
    """The image scores [n] of a batch by itself: Eq. 2-3 on its part of the distances, and the highest patch."""
    part = distances[:, rows[:, None], rows]  # [K, n, n, M]
    n = len(rows)
    part = part[:, ~np.eye(n, dtype=bool)].reshape(len(distances), n, n - 1, -1)
    low, high = msm.interval_bounds(n - 1, interval)
    return np.sort(part, axis=2)[:, :, low:high].mean(axis=(0, 2)).max(axis=-1)


def batches(labels: NDArray, seeds: int) -> Iterator[tuple[int, float, NDArray]]:
    for n in SIZES:
        for share in SHARES:
            k = round(share * n)
            for seed in range(seeds):
                g = np.random.default_rng(seed)
                yield (
                    n,
                    share,
                    np.r_[
                        g.choice(np.flatnonzero(labels == 0), n - k, replace=False),
                        g.choice(np.flatnonzero(labels == 1), k, replace=False),
                    ],
                )


def judged(scores: NDArray, labels: NDArray, value: float) -> tuple[float, float, float]:
    """Misses and false alarms as shares, and F1 (NaN without anomalous images)."""
    flagged, bad = scores >= value, labels == 1
    if not bad.any():
        return np.nan, float(flagged.mean()), np.nan
    f1 = 2 * (flagged & bad).sum() / (flagged.sum() + bad.sum())
    return float((~flagged)[bad].mean()), float(flagged[~bad].mean()), float(f1)


def measure(categories: list[Category], backbone: str, seeds: int) -> pd.DataFrame:
    musc, rows = MuSc(MuScConfig(backbone=backbone, degrees=(3,), device="cpu")), []
    for category in categories:
        distances, labels = pool(category, musc)
        for n, share, chosen in batches(labels, seeds):
            scores, truth = batch_scores(distances, chosen, musc.config.interval), labels[chosen]
            values = candidates(scores)
            if truth.any():
                values["best F1, by the labels"] = thresholds.f1_max_threshold(truth, scores).value
            for name, value in values.items():
                rows.append([f"{category.dataset}, {backbone}", n, share, name, *judged(scores, truth, value)])
        print(category.name, flush=True)
    return pd.DataFrame(rows, columns=["data", "images", "share", "threshold", "misses", "false alarms", "f1"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.default_threshold", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--backbones", default="procedural,focus_vits14")
    parser.add_argument("--categories", default=",".join(synthetic.CATEGORIES), help="of the synthetic data set")
    arguments = parser.parse_args(argv)
    drawn = [load_category("synthetic", name=name, good=GOOD, defects=BAD) for name in arguments.categories.split(",")]
    found = []
    for backbone in arguments.backbones.split(","):
        categories = [*drawn, *([load_category(None, arguments.data)] if arguments.data else [])]
        for category in categories:
            found.append(measure([category], backbone, arguments.seeds))
            names = ["misses", "false alarms", "f1"]
            means = pd.concat(found).groupby(["data", "images", "threshold"], sort=False)[names].mean()
            (100 * means).to_csv(arguments.out / "default_threshold.csv", float_format="%.1f", lineterminator="\n")


if __name__ == "__main__":
    main()
