"""Mutual scoring against one torch.cdist per degree and ordered pair; its time over N and M, and its peak memory.

`run(quick)` returns rows for `python -m benchmarks`. The plain way aggregates the tokens once per degree, then takes
torch.cdist and its row minimum for every image against every other. Aggregation is inside both timings. Features are
drawn: a smooth map per image plus noise, so that neighbours and images are correlated.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.metrics import peak_memory, resident_memory
from musc import lnamd, msm, snamd

DEGREES = (1, 3, 5)
PRECISIONS = ("float32", "bfloat16")
GIB = 1 << 30


CASES = (  # N, side of the grid, channels, tokens
    (10, 37, 1024, "smooth"),
    (10, 37, 1024, "independent"),
    (100, 14, 192, "smooth"),
    (60, 14, 768, "smooth"),
    (12, 32, 96, "smooth"),
)


def run(quick: bool, most: int = 400) -> list[dict[str, Any]]:
    """The plain way and ours, the first call, the exponents over N (up to `most`) and M, and the peak memory."""
    cases = ((4, 12, 192, "smooth"),) if quick else CASES
    pairs = [row for case in cases for row in _pair_rows(*case, repeats=2 if quick else 3)]
    N_small = (4, 8, 16) if quick else [N for N in (10, 25, 50, 100, 200, 400) if most >= N]
    over_N = _exponent_row("N", [(N, 6 if quick else 14, 384, None) for N in N_small])
    # with fewer images a pool of 20 is nearly all the others
    N_pool = N_small[1:] if quick else (50, 100, 200)
    over_pool = _exponent_row("N", [(N, 6 if quick else 14, 384, 3 if quick else 20) for N in N_pool])
    sides = (6, 9, 12) if quick else (14, 20, 28, 37)
    over_M = _exponent_row("M", [(4 if quick else 6, side, cases[0][2], None) for side in sides])
    memory = _memory_row(4 if quick else 20, cases[0][1], cases[0][2], stages=2)
    first = [] if quick else [_first_call_row(20, 32, 96)]
    share = _snamd_row(*((4, 12, 192) if quick else (40, 37, 384)), repeats=2 if quick else 3)
    return [*pairs, share, *first, over_N, over_pool, over_M, memory]


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


def beyond_features(N: int, side: int, C: int, block: int | None = None) -> dict[str, int]:
    """Bytes that `msm.mutual_scores` needs beyond the features, on the CPU; stages follow each other and add nothing.

    distances: 4 D N (N - 1) M, one stage's. images: 2 block of them, each with its unit tokens (4 D M C) and its
    products' operands. buffers: per thread, Gram rows and the like, and the float tokens of an image in preparation.
    scores: what each image's reductions leave, twice, and the pairs.
    """
    from musc.engines import cpu
    from musc.engines.cpu import compiled
    from musc.engines.cpu.layout import Buffers, Images, Layout, memory_of

    D, M = len(DEGREES), side * side
    layout = Layout(side, side, C, DEGREES, cpu.has_wide_products())
    each = memory_of(Images, layout.sizes(1))
    block = block or max(8, compiled.HELD // each // 2)
    return {
        "distances": 4 * D * N * (N - 1) * M,
        "images": min(2 * block, N) * each,
        "buffers": torch.get_num_threads() * memory_of(Buffers, layout.sizes(0)),
        "scores": 4 * 2 * D * N * M + 200 * N * N,
    }


def _ways() -> list[tuple[str, str]]:
    """Every (precision, instructions) that this processor has."""
    from musc.engines import cpu

    if not cpu.has_integer_products():
        return [(precision, "no AVX2") for precision in PRECISIONS]
    kinds = ["AVX2", "AVX-512"] if cpu.has_wide_products() else ["AVX2"]
    return [(precision, kind) for kind in kinds for precision in PRECISIONS]


def _scores(tokens: torch.Tensor, precision: str, instructions: str) -> torch.Tensor:
    """`msm.mutual_scores`, restricted to some of the processor's instructions."""
    from musc.engines import cpu

    with mock.patch.object(cpu, "has_wide_products", return_value=instructions == "AVX-512"):
        return msm.mutual_scores([tokens], DEGREES, precision=precision)


def _pair_rows(N: int, side: int, C: int, kind: str, repeats: int) -> list[dict[str, Any]]:
    """Every way against the plain one, in turns; the ratio is the median of the turns' ratios."""
    smooth = kind == "smooth"
    tokens = (
        draw_tokens(N, side, C) if smooth else torch.randn(N, side**2, C, generator=torch.Generator().manual_seed(0))
    )
    ours = _ways()
    for precision, instructions in ours:
        _scores(tokens[:2], precision, instructions)  # loads kernels
    times: dict[Any, list[float]] = {way: [] for way in ours}
    plain: dict[str, list[float]] = {instructions: [] for _, instructions in ours}
    scores = {}

    def timed(work: Callable[..., torch.Tensor], *arguments: str) -> tuple[float, torch.Tensor]:
        start = time.perf_counter()
        found = work(tokens, *arguments)
        return time.perf_counter() - start, found

    # One kind of instructions after the other: what was asked for by another kind, as no user's run does, is too much
    # to be kept.
    for instructions, taken in plain.items():
        for _ in range(repeats):
            seconds, scores["plain"] = timed(plain_scores)
            taken.append(seconds)
            for way in (way for way in ours if way[1] == instructions):
                seconds, scores[way] = timed(_scores, *way)
                times[way].append(seconds)
    exact = msm.mutual_scores([tokens.double()], DEGREES)
    off = {way: (score - exact).abs().max().item() for way, score in scores.items()}
    rows = []
    for way in ours:
        precision, instructions = way
        allowed = 1e-6 if precision == "float32" else 1e-3
        apart = (scores[way] - scores["plain"]).abs().max().item()
        if off[way] > allowed:
            raise AssertionError(f"{precision} scores are {off[way]:.1e} off float64's, more than {allowed}")
        ratios = [p / o for p, o in zip(plain[instructions], times[way], strict=True)]
        rows.append(
            {
                "benchmark": "mutual scoring",
                "ours": f"{precision}, {instructions}",
                "plain": "torch.cdist per degree and ordered pair",
                "ours_s": median(times[way]),
                "plain_s": median(plain[instructions]),
                "ratio": median(ratios),
                "size": f"N = {N}, {side} x {side} x {C}, {kind} tokens, one stage, degrees 1, 3, 5",
                "note": f"largest difference from plain {apart:.0e}; from float64: ours {off[way]:.0e}, plain "
                f"{off['plain']:.0e}; {repeats} turns, ratios {min(ratios):.1f} to {max(ratios):.1f}",
                "ours_all_s": times[way],
                "plain_all_s": plain[instructions],
                "difference": apart,
            }
        )
    return rows


def snamd_scores(tokens: torch.Tensor) -> torch.Tensor:
    """MuSc-V2's way, [N, M, C] -> [N, M]: the degrees averaged first, then one pass."""
    return msm.mutual_scores([snamd.as_raw(snamd.aggregate(tokens, DEGREES))], (1,))


def _snamd_row(N: int, side: int, C: int, repeats: int) -> dict[str, Any]:
    """SNAMD and its one pass against the default with its three degrees, in turns, aggregation inside of both."""
    tokens = draw_tokens(N, side, C)
    ways = {"plain": lambda t: msm.mutual_scores([t], DEGREES), "ours": snamd_scores}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for score in ways.values():
        score(tokens[:2])  # loads kernels
    for _ in range(repeats):
        for way, score in ways.items():
            start = time.perf_counter()
            score(tokens)
            times[way].append(time.perf_counter() - start)
    ratios = [o / p for p, o in zip(times["plain"], times["ours"], strict=True)]
    return {
        "benchmark": "aggregation by SNAMD instead of LNAMD",
        "ours": "snamd, float32",
        "plain": "lnamd, float32, degrees 1, 3, 5",
        "ours_s": median(times["ours"]),
        "plain_s": median(times["plain"]),
        "ratio": median(p / o for p, o in zip(times["plain"], times["ours"], strict=True)),
        "size": f"N = {N}, {side} x {side} x {C}, smooth tokens, one stage",
        "note": f"{median(ratios):.2f} of the time ({min(ratios):.2f} to {max(ratios):.2f}, {repeats} turns)",
        "share": median(ratios),
    }


def _first_call_row(N: int, side: int, C: int) -> dict[str, Any]:
    """The first call in a process of its own, where no kernel has been compiled yet, and the one after it."""
    with tempfile.TemporaryDirectory() as empty:
        found = _in_child(f"_first_call({N}, {side}, {C})", XDG_CACHE_HOME=empty)
    return {
        "benchmark": "mutual scoring, first call with an empty cache",
        "ours": "float32",
        "plain": "–",
        "ours_s": found["first"],
        "plain_s": None,
        "ratio": None,
        "size": f"N = {N}, {side} x {side} x {C}, one stage, degrees 1, 3, 5",
        "note": f"beyond imports; the second call {found['second']:.2f} s",
    }


def _first_call(N: int, side: int, C: int) -> dict[str, float]:
    tokens = draw_tokens(N, side, C)
    ends = [time.perf_counter()]
    for _ in range(2):
        msm.mutual_scores([tokens], DEGREES)
        ends.append(time.perf_counter())
    from musc.engines.cpu import compiling

    while not compiling.ready() and time.perf_counter() < ends[-1] + 300:  # the folder is to stay until then
        time.sleep(0.2)
    return {"first": ends[1] - ends[0], "second": ends[2] - ends[1]}


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


def _in_child(call: str, **environment: str) -> dict[str, float]:
    """What a function of this module returns in a process of its own."""
    command = [sys.executable, "-c", f"import json; from benchmarks import msm; print(json.dumps(msm.{call}))"]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | environment,
    )
    return json.loads(done.stdout)


def peak_in_child(N: int, side: int, C: int, stages: int) -> dict[str, float]:
    """Peak resident bytes of `msm.mutual_scores` beyond its features, in a process of its own."""
    return _in_child(f"_peak_of_scoring({N}, {side}, {C}, {stages})")


def _peak_of_scoring(N: int, side: int, C: int, stages: int) -> dict[str, float]:
    for width in (32, 512):  # loads what products of either kind need
        msm.mutual_scores([draw_tokens(2, 12, width)], DEGREES)
    features = [draw_tokens(N, side, C, seed) for seed in range(stages)]
    before, peak_before = resident_memory(), peak_memory()
    start = time.perf_counter()
    msm.mutual_scores(features, DEGREES)
    seconds = time.perf_counter() - start
    # where drawing the features took more than scoring them, the peak is not scoring's
    peak = max(peak_memory() - before, 0) if peak_memory() > peak_before else 0
    return {"peak": peak, "features": sum(f.nbytes for f in features), "seconds": seconds}
