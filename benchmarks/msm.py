"""Mutual scoring against one torch.cdist per degree and ordered pair; its time over N and M, and its peak memory.

`run(quick)` returns rows for `python -m benchmarks`. The plain way aggregates the tokens once per degree, then takes
torch.cdist and its row minimum for every image against every other. Aggregation is inside both timings. Features are
drawn: a smooth map per image plus noise, so that neighbours and images are correlated.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.metrics import _peak, _resident
from musc import lnamd, msm

DEGREES = (1, 3, 5)
GIB = 1 << 30


def run(quick: bool, most: int = 400) -> list[dict[str, Any]]:
    """The pair of the plain way and ours, the exponents over N (up to `most`) and M, and the peak memory."""
    side, C = (12, 192) if quick else (37, 1024)
    pair = _pair_rows(4 if quick else 10, side, C, repeats=2 if quick else 3)
    N_small = (4, 8, 16) if quick else [N for N in (10, 25, 50, 100, 200, 400) if most >= N]
    over_N = _exponent_row("N", [(N, 6 if quick else 14, 384, None) for N in N_small])
    # with fewer images a pool of 20 is nearly all the others
    N_pool = N_small[1:] if quick else (50, 100, 200)
    over_pool = _exponent_row("N", [(N, 6 if quick else 14, 384, 3 if quick else 20) for N in N_pool])
    sides = (6, 9, 12) if quick else (14, 20, 28, 37)
    over_M = _exponent_row("M", [(4 if quick else 6, side, C, None) for side in sides])
    return [*pair, over_N, over_pool, over_M, _memory_row(4 if quick else 20, side, C, stages=2)]


def draw_tokens(N: int, side: int, C: int, seed: int = 0) -> torch.Tensor:
    """Raw patch tokens [N, side^2, C]: a smooth map per image in 64 directions, and noise of half its size."""
    g = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.randn(N, 64, 6, 6, generator=g), (side, side), mode="bicubic")
    tokens = coarse.flatten(2).transpose(1, 2) @ torch.randn(64, C, generator=g) / 8
    return tokens.add_(torch.randn(N, side * side, C, generator=g), alpha=0.5)


def plain_scores(tokens: torch.Tensor) -> torch.Tensor:
    """The plain way, [N, M, C] -> [N, M]: per degree, per ordered pair."""
    parts = []
    for degree in DEGREES:
        features = lnamd.aggregate(tokens, degree)
        for_images = []
        for i, image in enumerate(features):
            others = [torch.cdist(image, other).min(dim=1).values for j, other in enumerate(features) if j != i]
            for_images.append(torch.stack(others))
        parts.append(msm.interval_average(torch.stack(for_images)))
    return torch.stack(parts).mean(dim=0)


def beyond_features(N: int, side: int, C: int, block: int = 8) -> dict[str, int]:
    """Bytes that `msm.mutual_scores` needs beyond the features, on the CPU; stages follow each other and add nothing.

    distances: 4 D N (N - 1) M, one stage's. images: 2 block of them, each with its unit tokens (4 D M C) and its
    products' operands. buffers: per thread, Gram rows and the like, and the float tokens of an image in preparation.
    scores: what each image's reductions leave, twice, and the pairs.
    """
    from musc.engines import cpu
    from musc.engines.cpu.layout import Layout

    D, M = len(DEGREES), side * side
    layout = Layout(side, side, C, DEGREES, cpu.has_wide_products())
    return {
        "distances": 4 * D * N * (N - 1) * M,
        "images": min(2 * block, N) * layout.bytes_per_image(),
        "buffers": torch.get_num_threads() * layout.bytes_per_thread(),
        "scores": 4 * 2 * D * N * M + 200 * N * N,
    }


def _pair_rows(N: int, side: int, C: int, repeats: int) -> list[dict[str, Any]]:
    """float32 and bfloat16 against the plain way, in turns; the ratio is the median of the turns' ratios."""
    tokens = draw_tokens(N, side, C)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "plain": lambda: plain_scores(tokens),
        "float32": lambda: msm.mutual_scores([tokens], DEGREES),
        "bfloat16": lambda: msm.mutual_scores([tokens], DEGREES, precision="bfloat16"),
    }
    msm.mutual_scores([tokens[:2]], DEGREES)  # compiles
    times: dict[str, list[float]] = {name: [] for name in ways}
    scores = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            scores[name] = way()
            times[name].append(time.perf_counter() - start)
    exact = msm.mutual_scores([tokens.double()], DEGREES)
    off = {name: (score - exact).abs().max().item() for name, score in scores.items()}
    rows = []
    for name, allowed in (("float32", 1e-6), ("bfloat16", 1e-3)):
        apart = (scores[name] - scores["plain"]).abs().max().item()
        if off[name] > allowed:
            raise AssertionError(f"{name} scores are {off[name]:.1e} off float64's, more than {allowed}")
        ratios = [p / o for p, o in zip(times["plain"], times[name], strict=True)]
        rows.append(
            {
                "benchmark": "mutual scoring",
                "ours": name,
                "plain": "torch.cdist per degree and ordered pair",
                "ours_s": median(times[name]),
                "plain_s": median(times["plain"]),
                "ratio": median(ratios),
                "size": f"N = {N}, {side} x {side} x {C}, one stage, degrees 1, 3, 5",
                "note": f"largest difference from plain {apart:.0e}; from float64: ours {off[name]:.0e}, plain "
                f"{off['plain']:.0e}; {repeats} turns, ratios {min(ratios):.1f} to {max(ratios):.1f}",
                "ours_all_s": times[name],
                "plain_all_s": times["plain"],
                "difference": apart,
            }
        )
    return rows


def _exponent_row(axis: str, cases: list[tuple[int, int, int, int | None]]) -> dict[str, Any]:
    """Time over N or over M, and the exponent of the line fitted to its logarithms."""
    sizes, seconds = [], []
    for N, side, C, pool in cases:
        tokens = draw_tokens(N, side, C)
        msm.mutual_scores([tokens[:2]], DEGREES)
        start = time.perf_counter()
        msm.mutual_scores([tokens], DEGREES, pool=pool)
        seconds.append(time.perf_counter() - start)
        sizes.append(N if axis == "N" else side * side)
    N, side, C, pool = cases[0]
    # the small sizes are mostly overhead: the exponent is that of the larger half
    half = len(sizes) // 2
    exponent = float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])
    size = f"{side} x {side} x {C}" if axis == "N" else f"N = {N}, C = {C}"
    points = ", ".join(f"{s}: {t:.3g} s" for s, t in zip(sizes, seconds, strict=True))
    return {
        "benchmark": f"time over {axis}" + (f", {pool} images score each" if pool else ""),
        "ours": "float32",
        "plain": "–",
        "ours_s": seconds[-1],
        "plain_s": None,
        "ratio": None,
        "size": f"{size}, {axis} = {sizes[0]} to {sizes[-1]}",
        "note": f"{axis}^{exponent:.2f} from {axis} = {sizes[half]} on; {points}",
        "exponent": exponent,
        "over": axis,
        "sizes": sizes,
        "all_s": seconds,
    }


def _memory_row(N: int, side: int, C: int, stages: int) -> dict[str, Any]:
    """The peak beyond the features in a process of its own, against the formula, and the formula at N = 200."""
    found = peak_in_child(N, side, C, stages)
    expected = sum(beyond_features(N, side, C).values())
    at_200 = beyond_features(200, 37, 1024)
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in at_200.items())
    return {
        "benchmark": "mutual scoring, peak memory",
        "ours": "float32",
        "plain": "–",
        "ours_s": found["seconds"],
        "plain_s": None,
        "ratio": None,
        "size": f"N = {N}, {side} x {side} x {C}, {stages} stages",
        "note": f"beyond {found['features'] / GIB:.2f} GiB of features: {found['peak'] / GIB:.3f} GiB, formula "
        f"{expected / GIB:.3f}; formula at N = 200, 37 x 37 x 1024, any number of stages: "
        f"{sum(at_200.values()) / GIB:.2f} GiB ({parts})",
        "ours_bytes": found["peak"],
        "formula_bytes": expected,
        "formula_bytes_at_200": sum(at_200.values()),
    }


def peak_in_child(N: int, side: int, C: int, stages: int) -> dict[str, float]:
    """Peak resident bytes of `msm.mutual_scores` beyond its features, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.msm", *map(str, (N, side, C, stages))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout)


def _child(N: int, side: int, C: int, stages: int) -> None:
    for width in (32, 256):  # compiles, and loads what products of either kind need
        msm.mutual_scores([draw_tokens(2, 12, width)], DEGREES)
    features = [draw_tokens(N, side, C, seed) for seed in range(stages)]
    before, peak_before = _resident(), _peak()
    start = time.perf_counter()
    msm.mutual_scores(features, DEGREES)
    seconds = time.perf_counter() - start
    # where drawing the features took more than scoring them, the peak is not scoring's
    peak = max(_peak() - before, 0) if _peak() > peak_before else 0
    print(json.dumps({"peak": peak, "features": sum(f.nbytes for f in features), "seconds": seconds}))


if __name__ == "__main__":
    _child(*map(int, sys.argv[1:]))
