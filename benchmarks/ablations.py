"""Tables 3, 4, 5, 9, 10 and Figures 7, 8 of one category in one pass, against the default run alone; and RsCIN.

`run(quick)` returns rows for `python -m benchmarks`. Both ways start from the images: extraction, scoring, metrics.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from musc import MuSc, MuScConfig, datasets
from musc.reproduce.experiments import GRIDS, ablate
from musc.rscin import rescore

NAMES = ("table_3", "table_4", "table_5", "table_9", "table_10", "figure_7", "figure_8")


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows for the ablations, with the embedded backbone and with the paper's, and one for RsCIN."""
    small = MuScConfig(image_size=224)
    if quick:
        return [_ablation_row(2, 1, small, repeats=1), _rescore_row(50)]
    paper = MuScConfig(backbone="ViT-L-14-336", image_size=518, weights="random")  # time does not ask for trained ones
    rows = [_ablation_row(12, 2, small, repeats=3), _ablation_row(8, 2, paper, repeats=1)]
    return [*rows, _rescore_row(400)]


def _ablation_row(good: int, defects: int, config: MuScConfig, repeats: int) -> dict[str, Any]:
    category = datasets.load_category("synthetic", None, "wood", good=good, defects=defects)
    musc = MuSc(config)
    grids = {key: GRIDS[key] for key in NAMES}
    variants = sum(map(len, grids.values()))
    musc.run(replace(category, samples=category.samples[-2:]))  # loads and compiles
    default, whole = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        musc.run(category)
        default.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            frame = ablate(category, musc, Path(folder), grids)
            whole.append(time.perf_counter() - start)
    rows = frame.groupby(["experiment", "row"]).ngroups
    if rows != variants:
        raise AssertionError(f"{rows} rows measured of {variants}")
    times = [w / d for w, d in zip(whole, default, strict=True)]
    return {
        "benchmark": "ablations in one pass",
        "ours": f"{variants} rows of tables 3, 4, 5, 9, 10 and figures 7, 8",
        "plain": "the default run, once per row",
        "ours_s": median(whole),
        "plain_s": median(default) * variants,
        "ratio": median(variants / t for t in times),
        "size": f"synthetic wood, {len(category.samples)} images of {config.image_size} x {config.image_size}, "
        + (f"{config.backbone} (random weights)" if config.weights == "random" else "embedded backbone"),
        "note": f"plain is {variants} times the measured default run ({median(default):.3g} s); all rows take "
        f"{median(times):.1f} times one default run; {repeats} turns",
        "times_default": median(times),
    }


def _rescore_row(N: int, D: int = 768, repeats: int = 20) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(N, D, generator=g), dim=1)
    scores = torch.rand(N, generator=g)
    ours, plain = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        got = rescore(scores, tokens)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        expected = _plain_rescore(scores, tokens)
        plain.append(time.perf_counter() - start)
    apart = (got - expected).abs().max().item()
    if apart > 1e-5:
        raise AssertionError(f"RsCIN is {apart:.1e} off its loop")
    return {
        "benchmark": "RsCIN",
        "ours": "rescore",
        "plain": "a loop over images",
        "ours_s": median(ours),
        "plain_s": median(plain),
        "ratio": median(p / o for p, o in zip(plain, ours, strict=True)),
        "size": f"N = {N}, class tokens of {D}, windows 2, 3",
        "note": f"largest difference {apart:.0e}; {repeats} turns",
    }


def _plain_rescore(scores: torch.Tensor, tokens: torch.Tensor, windows: tuple[int, ...] = (2, 3)) -> torch.Tensor:
    """Eq. 4-5, image by image."""
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    out = []
    for i, token in enumerate(tokens):
        similar = tokens @ token
        total = scores[i]
        for k in windows:
            near = similar.topk(k).indices
            total = total + (similar[near] * scores[near]).sum() / similar[near].sum()
        out.append(total / (len(windows) + 1))
    return torch.stack(out)
