"""Patch scores (Eq. 1-3), the anomaly maps that they make, and image scores after RsCIN (Eq. 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from musc import msm, rscin
from musc.config import MuScConfig
from musc.engines.settings import Settings
from musc.errors import ConfigError
from musc.features import Features
from musc.scoring import consistency, neighbours, roi
from musc.sizes import Size, rows_columns

PatchScores = dict[tuple[int, int], Tensor]  # by patch grid (rows, columns): [N, M]
Scorer = Callable[..., Tensor]  # does what `msm.scores` does, with the same arguments


def anomaly_maps(scores: PatchScores, size: Size) -> Float[Tensor, "N H W"]:
    """Anomaly maps of patch scores: those of every grid upsampled to `size` pixels, and added up.

    Example:
        >>> anomaly_maps({(2, 2): torch.tensor([[0.0, 1.0, 2.0, 3.0]]), (1, 1): torch.tensor([[10.0]])}, size=2)
        tensor([[[10., 11.],
                 [12., 13.]]])
    """
    first, *others = (upsample(values, grid, size) for grid, values in scores.items())
    for maps in others:
        first += maps
    return first


def patch_scores(
    features: Features,
    references: Features | None,
    config: MuScConfig,
    *,
    device: torch.device,
    notes: list[str] | None = None,
    progress: bool = False,
    scorer: Scorer = msm.scores,
) -> PatchScores:
    """Eq. 3 before upsampling, by patch grid: one grid, except for Swin, whose scores then add up to Eq. 3's.

    With subsets = s the images are split into s parts, stratified by defect where it is known, and each part is
    scored by itself (Sec. 4.2, Tab. 6-7). `references` join the pool of every part. notes receives warnings of
    consistent defects. scorer: by several devices or a cluster, for instance; device: where it wants the tokens.

    Raises ConfigError where a part is left with a single image and no reference.
    """
    R = len(references) if references else 0
    total = {grid: torch.zeros(len(features), math.prod(grid)) for grid in dict.fromkeys(features.grids)}
    for rows in split_subsets([s.defect for s in features.samples], config.subsets, config.seed):
        if len(rows) + R < 2:
            raise ConfigError(
                f"subsets = {config.subsets} leaves {len(rows)} of {len(features)} images in a part, and an "
                "image needs another one to be scored: use fewer subsets."
            )
        part = features if len(rows) == len(features) else features.take(rows.tolist())
        for grid, scores in total.items():
            stages = [n for n, g in enumerate(features.grids) if g == grid]
            found = _mutual_scores(
                part, references, config, stages, device=device, notes=notes, progress=progress, scorer=scorer
            )
            scores[rows] = len(stages) / len(features.grids) * found.cpu().float()
    return total


def _mutual_scores(
    features: Features,
    references: Features | None,
    config: MuScConfig,
    stages: list[int],
    *,
    device: torch.device,
    notes: list[str] | None,
    progress: bool,
    scorer: Scorer,
) -> Float[Tensor, "N M"]:
    """Eq. 1-3 over `stages`, which share one grid; with `consistency`, corrected for defects that images share.

    With a region, of the patches inside alone; those outside have 0."""
    c, grid = config, features.grids[stages[0]]
    patches, K = roi.inside(features, grid), roi.most_inside((features, references), grid)
    own = roi.compared(features, stages, c, device, K)
    extra = roi.compared(references, stages, c, device, K).tokens if references else None
    if c.consistency == "off":
        pool, interval = _pool(features, references, c, device)
        settings = Settings(
            own.degrees, interval, c.reduction, own.grid, c.precision, c.position_window, c.seed, c.block, c.max_memory,
            progress=progress,
        )  # fmt: skip
        found = scorer(own.tokens, settings, references=extra, pool=pool)
        return found if features.region is None else roi.placed(found, patches, c)
    scores, groups = consistency.mutual_scores(
        own.tokens, own.degrees, c.interval, c.reduction, correct=c.consistency == "correct", references=extra,
        grid=own.grid, precision=c.precision, block=c.block, position_window=c.position_window, progress=progress,
    )  # fmt: skip
    if notes is not None:
        notes += consistency.describe(groups, [sample.name for sample in features.samples])
    return scores if features.region is None else roi.placed(scores, patches, c)


def _pool(
    features: Features, references: Features | None, config: MuScConfig, device: torch.device
) -> tuple[int | Tensor | None, tuple[float, float]]:
    """Which images score which (`msm.mutual_scores`), and the interval that is left of the configuration's."""
    c = config
    last = features.patch_tokens[-1] if features.region is None else roi.muted(features, -1)
    pool = neighbours.chosen(c.neighbours, last.to(device), features.grids[-1])
    if pool is None:
        return c.references, c.interval
    R = len(references) if references else 0
    if isinstance(c.neighbours, str):  # a coreset stands for all images, a shortlist for the nearest
        return pool, c.interval
    return pool, neighbours.interval_of_shortlist(c.interval, pool.shape[1] + R, len(features) - 1 + R)


def split_subsets(defects: Sequence[str], subsets: int, seed: int) -> list[Tensor]:
    """Rows of each of `subsets` parts of equal size, stratified by defect with a seeded shuffle (Tab. 6, 7, 13).

    Example:
        >>> parts = split_subsets(["good", "good", "good", "good", "hole", "hole"], subsets=2, seed=0)
        >>> [len(rows) for rows in parts], [int((rows >= 4).sum()) for rows in parts]  # images, and those with a hole
        ([3, 3], [1, 1])
    """
    if subsets == 1:
        return [torch.arange(len(defects))]
    if subsets > len(defects):
        raise ConfigError(f"subsets = {subsets} of {len(defects)} images leaves empty parts: use fewer subsets.")
    generator = np.random.default_rng(seed)
    dealt: list[int] = []
    for defect in sorted(set(defects)):
        dealt += generator.permutation([i for i, d in enumerate(defects) if d == defect]).tolist()
    # dealing the shuffled strata out like cards keeps both the parts and the strata within them even
    return [torch.tensor(sorted(dealt[part::subsets])) for part in range(subsets)]


def upsample(scores: Float[Tensor, "N M"], grid: tuple[int, int], size: Size) -> Float[Tensor, "N H W"]:
    """Patch scores [N, M] on their grid as anomaly maps of `size` pixels, a side or (rows, columns): bilinear, corners
    aligned.

    Corners aligned is the released code's choice; the paper says only "upsample". No pixel exceeds the largest patch.

    Example:
        >>> upsample(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), (2, 2), 3)[0]
        tensor([[0.0000, 0.5000, 1.0000],
                [1.0000, 1.5000, 2.0000],
                [2.0000, 2.5000, 3.0000]])
    """
    N, _ = scores.shape
    maps = F.interpolate(scores.reshape(N, 1, *grid), rows_columns(size), mode="bilinear", align_corners=True)
    return maps[:, 0]


def rescored(
    raw_scores: Float[Tensor, "N"], class_tokens: Float[Tensor, "N D"] | None, windows: Sequence[float]
) -> tuple[Float[Tensor, "N"], list[str]]:
    """Image scores after RsCIN (Eq. 5), and a note wherever it could not be done with these `windows`.

    Example:
        >>> rescored(torch.tensor([1.0, 3.0]), None, windows=(2, 3))
        (tensor([0., 1.]), ['RsCIN skipped: this backbone has no class token.'])
    """
    N = len(raw_scores)
    if class_tokens is None:
        return rscin.minmax(raw_scores), ["RsCIN skipped: this backbone has no class token."]
    wide = [k for k in windows if k != math.inf and k > N]
    notes = [f"RsCIN windows {wide} are larger than the {N} images: all {N} were used there."] if wide else []
    fitting = [k if k == math.inf else min(k, N) for k in windows]
    try:
        return rscin.rescore(raw_scores, class_tokens.to(raw_scores.device, raw_scores.dtype), fitting), notes
    except ValueError as error:  # tokens of an odd network: the scores themselves still stand
        return rscin.minmax(raw_scores), [f"RsCIN skipped: {error}"]
