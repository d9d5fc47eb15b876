"""Few-shot MuSc and MuSc+ (App. A.6): what some normal reference images of the product are worth.

A.6.1, k-shot MuSc: k reference images join the pool that scores every test image; `MuSc.run(images, references=...)`.
A.6.2, MuSc+: the references alone score, by the smallest distance to any of them; the same with the settings of `plus`.
`sweep` measures both for many k and many draws (Tab. 15 and 16) from one pass over the distances.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from musc import msm
from musc.config import MuScConfig
from musc.datasets.base import Category
from musc.errors import ConfigError, DataError
from musc.features import Features, check_references
from musc.pipeline import MuSc
from musc.results.evaluation import evaluate, read_truth
from musc.saving import whole
from musc.scoring.aggregation import SalientTokens, prepared
from musc.scoring.maps import PatchScores, anomaly_maps

METHODS = ("MuSc", "MuSc+")
SHOTS: tuple[int | None, ...] = (0, 1, 2, 4, 8, 16, 32, None)  # rows of Tab. 15 and 16; None: all references


def reference_scores(
    stages: Sequence[Float[Tensor, "N M _"]],
    references: Sequence[Float[Tensor, "R M _"]],
    degrees: Sequence[int] = (1, 3, 5),
    *,
    grid: tuple[int, int] | None = None,
    precision: str = "float32",
    block: int | None = None,
) -> Float[Tensor, "N M"]:
    """Anomaly score of every patch: its distance to the nearest patch of any reference image (MuSc+, App. A.6.2).

    Eq. 9-11: a_i^m = 1/L sum over stages, 1/D sum over degrees, of min over references j, min over patches n, of
    || p_i^m - p_j^n ||_2. The test images do not score each other.

    Args:
        stages, references: [N, M, C] and [R, M, C] raw patch tokens per stage (LNAMD happens here).
        degrees, grid, precision, block: as in `msm.mutual_scores`.

    Returns:
        [N, M], unitless, in [0, 2].

    Raises:
        ValueError: no reference, unequal stages, or a setting that does not exist.

    Example:
        >>> images = torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(0))
        >>> reference_scores([images[:2]], [images[1:]]).amax(dim=1) > 0.1  # image 1 is among the references
        tensor([ True, False])
    """
    return msm.mutual_scores(
        stages, degrees, (0.0, 1.0), "min", references=references, pool=0, grid=grid, precision=precision, block=block
    )


def plus(config: MuScConfig) -> MuScConfig:
    """The settings that make `MuSc.run(images, references=...)` compute MuSc+ (Eq. 9-11, then RsCIN as ever).

    Example:
        >>> config = plus(MuScConfig())
        >>> config.references, config.interval, config.reduction
        (0, (0.0, 1.0), 'min')
    """
    return config.replace(references=0, interval=(0.0, 1.0), reduction="min")


def draw(R: int, k: int, seed: int) -> tuple[int, ...]:
    """k of R references, drawn by `seed`; the draws of one seed are nested, so that k alone differs along a curve.

    Raises ConfigError where there are fewer than k.

    Example:
        >>> set(draw(10, 2, seed=0)) < set(draw(10, 4, seed=0)), len(draw(10, 4, seed=0))
        (True, 4)
    """
    if not 1 <= k <= R:
        raise ConfigError(f"{k} shots of {R} normal reference images: give a number from 1 to {R}.")
    return tuple(np.random.default_rng(seed).permutation(R)[:k].tolist())


def reference_category(category: Category, k: int | None = None, seed: int = 0) -> Category:
    """k of the category's normal training images (None: all) as a category of their own, drawn by `seed`.

    Raises DataError where it has none, ConfigError where it has fewer than k.

    Example:
        >>> from musc.datasets import load_category
        >>> product = load_category("synthetic", name="tile", good=2, defects=1, train=4)
        >>> len(reference_category(product)), len(reference_category(product, k=2))
        (4, 2)
    """
    if not category.train:
        raise DataError(
            f"{category.name} has no normal training images (train/good in the MVTec AD layout): "
            "name a folder of reference images, or run without."
        )
    rows = range(len(category.train)) if k is None else draw(len(category.train), k, seed)
    return replace(category, samples=tuple(category.train[i] for i in rows), train=(), skipped=(), notes=())


@dataclass(frozen=True)
class Draw:
    """One cell of Tab. 15 or 16 for one draw: which references score, and whether the test images do too (MuSc)."""

    method: str
    setting: str
    seed: int
    rows: tuple[int, ...]


def plan_draws(
    R: int, shots: Sequence[int | None] = SHOTS, seeds: int = 5, methods: Sequence[str] = METHODS
) -> list[Draw]:
    """Every draw of a sweep over R references: `seeds` draws of each k < R, one of all of them (None), and of none (0).

    A k that is not below R is left out: it would be all of them, or cannot be. MuSc+ has no 0-shot row.
    Raises ConfigError on a method that does not exist, a negative k, or where nothing is left.

    Example:
        >>> [(d.method, d.setting, len(d.rows)) for d in plan_draws(R=3, shots=(0, 1, None), seeds=1)][:3]
        [('MuSc', '0-shot', 0), ('MuSc', '1-shot', 1), ('MuSc', 'full-shot', 3)]
    """
    if unknown := set(methods) - set(METHODS):
        raise ConfigError(f"method {sorted(unknown)[0]!r}: choose from {', '.join(METHODS)}.")
    if any(k is not None and k < 0 for k in shots):
        raise ConfigError(f"shots = {tuple(shots)}: give whole numbers from 0, or None for all references.")
    draws = []
    for method in methods:
        for k in shots:
            if k is None and R:
                draws.append(Draw(method, "full-shot", 0, tuple(range(R))))
            elif k == 0 and method == "MuSc":
                draws.append(Draw(method, "0-shot", 0, ()))
            elif k and k < R:
                draws += [Draw(method, f"{k}-shot", seed, draw(R, k, seed)) for seed in range(seeds)]
    if not draws:
        raise ConfigError(f"shots = {tuple(shots)} of {R} references leaves nothing to measure.")
    return draws


def draw_scores(
    mutual: Float[Tensor, "D N J M"],
    reference: Float[Tensor, "D N R M"],
    draws: Sequence[Draw],
    interval: tuple[float, float] = (0.0, 0.3),
    reduction: str = "mean",
) -> dict[Draw, Float[Tensor, "N M"]]:
    """Patch scores of one stage for every draw, averaged over degrees: distances are computed once and reduced often.

    mutual: Eq. 1 among the test images; reference: Eq. 9. "MuSc" takes the interval average (Eq. 2) over both the
    other test images and the drawn references, "MuSc+" the minimum over the drawn references (Eq. 10).

    Example:
        >>> mutual = torch.tensor([2.0, 4.0]).reshape(1, 1, 2, 1)  # one degree, image and patch; two other images
        >>> reference = torch.tensor([1.0, 3.0]).reshape(1, 1, 2, 1)  # two references
        >>> draws = [Draw("MuSc", "1-shot", 0, (1,)), Draw("MuSc+", "full-shot", 0, (0, 1))]
        >>> [scores.item() for scores in draw_scores(mutual, reference, draws, interval=(0.0, 1.0)).values()]
        [3.0, 1.0]
    """
    _, N, J, M = mutual.shape
    out = {d: mutual.new_empty(N, M) for d in draws}
    # what no draw's interval can reach is dropped first: the kept ranks are the smallest ones
    pools = {d: J + len(d.rows) for d in draws if d.method == "MuSc"}
    reach = max((msm.interval_bounds(n, interval)[1] for n in pools.values()), default=1)
    for i in range(N):
        near = mutual[:, i].topk(min(reach, J), dim=1, largest=False).values if pools and J else mutual[:, i]
        for d in draws:
            chosen = reference[:, i, list(d.rows)]  # [D, k, M]
            if d.method == "MuSc":
                low, high = msm.interval_bounds(pools[d], interval)
                kept = torch.cat([near, chosen], dim=1).sort(dim=1).values[:, low:high]
                reduced = {"mean": kept.mean(dim=1), "min": kept[:, 0], "max": kept[:, -1]}[reduction]
            else:
                reduced = chosen.amin(dim=1)
            out[d][i] = reduced.mean(dim=0)  # [D, M] -> [M]
    return out


def draw_maps(features: Features, references: Features, draws: Sequence[Draw], musc: MuSc) -> dict[Draw, Tensor]:
    """Anomaly maps [N, H, W] of every draw (Eq. 3 and 11, then the upsampling), stage by stage.

    Memory holds one stage's distances, 4 D N (N - 1 + R) M bytes, and 4 N H W per draw.

    Example:
        >>> from musc.datasets import load_category
        >>> tile = load_category("synthetic", name="tile", good=2, defects=1, train=2, size=64)
        >>> musc = MuSc(MuScConfig(weights="random", image_size=64, workers=0, device="cpu"))
        >>> features, normal = musc.features(tile.samples), musc.features(tile.train)
        >>> maps = draw_maps(features, normal, plan_draws(R=2, shots=(0, None)), musc)
        >>> [(d.method, d.setting, tuple(m.shape)) for d, m in maps.items()][1:]
        [('MuSc', 'full-shot', (3, 64, 64)), ('MuSc+', 'full-shot', (3, 64, 64))]
    """
    size = musc.map_size
    found = draw_patch_scores(features, references, draws, musc)
    return {d: anomaly_maps(scores, size) for d, scores in found.items()}


def draw_patch_scores(
    features: Features, references: Features, draws: Sequence[Draw], musc: MuSc
) -> dict[Draw, PatchScores]:
    """Patch scores of every draw before the upsampling, by patch grid: `draw_maps` makes maps of them.

    Example:
        >>> from musc.datasets import load_category
        >>> tile = load_category("synthetic", name="tile", good=2, defects=1, train=2, size=64)
        >>> musc = MuSc(MuScConfig(weights="random", image_size=64, workers=0, device="cpu"))
        >>> features, normal = musc.features(tile.samples), musc.features(tile.train)
        >>> (scores,) = draw_patch_scores(features, normal, plan_draws(R=2, shots=(0,)), musc).values()
        >>> [(grid, len(values)) for grid, values in scores.items()] == [(features.grids[0], 3)]
        True
    """
    check_references(features, references)
    musc.config.check_mutual("sweeps")
    musc.config.check_unused(("references", "subsets", "tiles", "consistency", "roi"), "sweeps")
    c, L = musc.config, len(features.grids)
    total: dict[Draw, PatchScores] = {d: {} for d in draws}
    stages = zip(features.patch_tokens, references.patch_tokens, features.grids, strict=True)
    for tokens, other, grid in tqdm(stages, total=L, desc="stages", disable=None if musc.progress else True):
        tokens, degrees = prepared(tokens.to(musc.device), c, grid)
        other, _ = prepared(other.to(musc.device), c, grid)
        distances = partial(
            msm.stage_distances,
            tokens,
            degrees,
            grid=grid,
            precision=c.precision,
            block=c.block,
            position_window=c.position_window,
        )
        reference = distances(references=other, pool=0)
        D, N, _, M = reference.shape
        needed = N > 1 and any(d.method == "MuSc" for d in draws)
        mutual = distances() if needed else reference.new_empty(D, N, 0, M)
        for d, scores in draw_scores(mutual, reference, draws, c.interval, c.reduction).items():
            total[d][grid] = total[d].get(grid, 0) + scores.cpu() / L
    return total


def sweep(
    category: Category,
    musc: MuSc,
    folder: Path | None = None,
    *,
    references: Category | None = None,
    shots: Sequence[int | None] = SHOTS,
    seeds: int = 5,
    methods: Sequence[str] = METHODS,
    pixels: bool = True,
) -> pd.DataFrame:
    """Measure k-shot MuSc and MuSc+ on one category (Tab. 15 and 16); a finished sweep in `folder` is reused.

    Args:
        category: labeled test images.
        musc: the pipeline; its cache serves the tokens, its settings all but MuSc+'s reduction.
        folder: where the table is kept, under a digest of all that it depends on. None: nowhere.
        references: normal images to draw from; None: the category's training images.
        shots: the k to measure, 0 for none and None for all.
        seeds: draws of each k.
        pixels: False measures the image metrics only, which is much faster.

    Returns:
        A tidy frame: method, setting ("0-shot", ..., "full-shot", as the paper's tables print it), shots, seed,
        dataset, category, group ("image", "image_before_rscin", "pixel_clean", "pixel_official"), metric, value (a
        fraction). `summary` takes mean and spread.

    Raises:
        DataError: images without labels, no references, or an image in both; and what `MuSc.run` raises.

    Example:
        >>> from musc.datasets import load_category
        >>> tile = load_category("synthetic", name="tile", good=2, defects=1, train=2, size=64)
        >>> musc = MuSc(MuScConfig(weights="random", image_size=64, workers=0, device="cpu"))
        >>> frame = sweep(tile, musc, shots=(0, 1), seeds=2, pixels=False)
        >>> frame.groupby(["method", "setting"])["seed"].nunique().to_dict()
        {('MuSc', '0-shot'): 1, ('MuSc', '1-shot'): 2, ('MuSc+', '1-shot'): 2}
    """
    if not category.labeled:
        raise DataError(f"{category.name} has images without labels: a sweep measures, and needs them.")
    pool = references or reference_category(category)
    musc, _ = musc.fitted(category.samples)
    plan = {"shots": list(shots), "seeds": seeds, "methods": list(methods), "pixels": pixels}
    digest = hashlib.blake2b(f"{musc.fingerprint(category, pool)}{json.dumps(plan)}".encode(), digest_size=8)
    finished = folder / f"fewshot-{category.name}-{digest.hexdigest()}.csv" if folder else None
    if finished and finished.exists():
        return pd.read_csv(finished, dtype={"category": str})

    values = musc.value_range(*category.samples, *pool.samples)
    features, normal = (musc.features(given.samples, values) for given in (category, pool))
    draws = plan_draws(len(normal), shots, seeds, methods)
    rows = _measure(category, musc, features, draw_patch_scores(features, normal, draws, musc), pixels)
    frame = pd.DataFrame(rows)
    if finished:
        with whole(finished) as path:
            frame.to_csv(path, index=False)
    return frame


def _measure(
    category: Category, musc: MuSc, features: Features, scores: Mapping[Draw, PatchScores], pixels: bool
) -> list[dict]:
    size = musc.map_size
    truth, rows = read_truth(category.dataset, features.samples, size if pixels else None), []
    for d, patch_scores in scores.items():
        drawn = anomaly_maps(patch_scores, size)
        raw = drawn.flatten(1).amax(dim=1)  # c_i: [N]
        rscon = musc.config.rescoring == "rscon"
        tokens = SalientTokens(musc.config).add(features, patch_scores) if rscon else features.class_tokens
        final, _ = musc.rescored(raw, tokens)
        measured = evaluate(truth, final, raw, drawn if pixels else None)
        for group, metrics in measured.items():
            for metric, value in metrics.items():
                rows.append(
                    {"method": d.method, "setting": d.setting, "shots": len(d.rows), "seed": d.seed,
                     "dataset": category.dataset, "category": category.name,
                     "group": group, "metric": metric, "value": value}
                )  # fmt: skip
    return rows


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over categories of each draw, then mean and spread (standard deviation) over the draws.

    Columns method, setting, dataset, group, metric, mean, spread (NaN for a single draw), draws; `sweep`'s row order.

    Example:
        >>> row = {"method": "MuSc", "setting": "1-shot", "dataset": "visa", "group": "image", "metric": "auroc"}
        >>> frame = pd.DataFrame([row | {"seed": seed, "value": value} for seed, value in ((0, 0.9), (1, 0.7))])
        >>> summary(frame)[["mean", "draws"]].round(2).to_dict("records")
        [{'mean': 0.8, 'draws': 2}]
    """
    keys = ["method", "setting", "dataset", "group", "metric"]
    per_draw = frame.groupby([*keys, "seed"], sort=False)["value"].mean()
    return per_draw.groupby(level=keys, sort=False).agg(mean="mean", spread="std", draws="count").reset_index()
