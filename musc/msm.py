"""MSM: the mutual scoring mechanism of the unlabeled images (Sec. 3.2, App. A.1.1, Eq. 1-3).

Every function follows its input's device: the CPU, the GPU and the any-device engines give the same scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from musc import engines, lnamd
from musc.engines import blocked, memory
from musc.engines.pairs import Plan, plan_pool
from musc.engines.rows import all_others, completed, few, planned
from musc.engines.settings import PLAIN, Settings

__all__ = [
    "interval_average",
    "interval_bounds",
    "mutual_scores",
    "newcomer_distances",
    "patch_to_image_distances",
    "scores",
    "stage_distances",
    "stage_rows",
]


def patch_to_image_distances(
    features: Float[Tensor, "N M C"], references: Float[Tensor, "R m C"] | None = None
) -> Float[Tensor, "N J M"]:
    """Distance of every patch to the nearest patch of each other image.

    Eq. 1: a(I_j) = min over n of || p_i^m - p_j^n ||_2, for tokens that are already aggregated (`lnamd.aggregate`).

    Args:
        features: [N, M, C].
        references: [R, m, C], images that score instead of the N themselves.

    Returns:
        [N, N-1, M], the image itself left out and the order of the others kept; with references [N, R, M]. Euclidean,
        in the input's dtype (products of half-precision input are taken in float32).

    Raises:
        ValueError: one image and no references: nothing to compare it with.

    Example:
        >>> images = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[0.0, 1.0], [3.0, 3.0]], [[9.0, 4.0], [9.0, 0.0]]])
        >>> patch_to_image_distances(images)[0]  # of image 0's two patches: to image 1, to image 2
        tensor([[1., 1.],
                [9., 6.]])
    """
    lnamd.check_tokens(features)
    N, M, _ = features.shape
    wide = features if features.dtype == torch.float64 else features.float()
    if references is not None:
        R = len(references)
        other = references.to(wide.dtype)
        out = wide.new_empty(N, R, M)
        for i in range(N):
            for j in range(R):
                out[i, j], _ = blocked.nearest(wide[i], other[j])
        return out.to(features.dtype)
    plan = plan_pool(N)
    out = wide.new_empty(N, plan.J, M)
    for i, j in plan.pairs():
        out[i, plan.slot[i, j]], out[j, plan.slot[j, i]] = blocked.nearest(wide[i], wide[j])
    return out.to(features.dtype)


def interval_bounds(J: int, interval: tuple[float, float] = (0.0, 0.3)) -> tuple[int, int]:
    """Ranks [low, high) of J sorted distances that `interval` keeps: floor(Y J) and floor(X J), at least one of them.

    The released code's floor leaves nothing for N <= 4 (NaN scores); here one distance always stays.

    Example:
        >>> interval_bounds(10), interval_bounds(10, (0.1, 0.5)), interval_bounds(2)
        ((0, 3), (1, 5), (0, 1))
    """
    Y, X = interval if len(interval) == 2 else (math.nan, math.nan)
    if not 0 <= Y < X <= 1:
        raise ValueError(f"interval {interval}: give two fractions, 0 <= low < high <= 1; the paper's is (0, 0.3).")
    if J < 1:
        raise ValueError("no distances to average: an image needs at least one other image to be scored by.")
    # 0.3 * 10 and 0.29 * 100 are just below a whole number in binary: a hair is added before the floor.
    low, high = (math.floor(x * J + 1e-9 * J) for x in (Y, X))
    low = min(low, J - 1)
    return low, max(high, low + 1)


def interval_average(
    distances: Float[Tensor, "N J M"], interval: tuple[float, float] = (0.0, 0.3), reduction: str = "mean"
) -> Float[Tensor, "N M"]:
    """Average the smallest share of each patch's distances to the other images.

    Eq. 2 with K = floor(0.3 J): a_bar = (1/K) sum of the K smallest distances. An interval (Y, X) first drops the
    floor(Y J) smallest (Tab. 10); `reduction` takes their mean, minimum or maximum (Tab. 4).

    Args:
        distances: [N, J, M], of each patch to the nearest patch of each of J images.
        interval: (Y, X), fractions of J.
        reduction: "mean", "min" or "max" over the kept distances.

    Returns:
        [N, M], in the unit of the distances.

    Raises:
        ValueError: an interval or a reduction that does not exist, or J = 0.

    Differs from the released code where floor(0.3 J) = 0 (N <= 4): there it averages nothing and gives NaN, here it
    takes the smallest distance.

    Example:
        >>> distances = torch.arange(1.0, 11.0).flip(0).reshape(1, 10, 1)  # 10, 9, ..., 1: of one patch
        >>> interval_average(distances)  # of 1, 2 and 3
        tensor([[2.]])
    """
    J = distances.shape[1]
    low, high = interval_bounds(J, interval)
    lnamd.check_tokens(distances, "N J M", "distances")
    if reduction not in ("mean", "min", "max"):
        raise ValueError(f"reduction {reduction!r}: choose mean, min or max.")
    if J == 1:
        return distances[:, 0].clone()
    if reduction == "min":
        return distances.kthvalue(low + 1, dim=1).values if low else distances.amin(dim=1)
    if reduction == "max":
        return distances.kthvalue(high, dim=1).values if high < J else distances.amax(dim=1)
    if low == 0 and high == J:
        return distances.mean(dim=1)
    if distances.device.type == "cpu" and distances.dtype != torch.bfloat16 and not distances.requires_grad:
        # half the time of topk, and it wakes no threads for a few numbers
        kept = torch.from_numpy(np.partition(distances.numpy(), sorted({low, high - 1}), axis=1)[:, low:high])
    else:
        kept = torch.topk(distances, high, dim=1, largest=False, sorted=low > 0).values[:, low:]
    return kept.mean(dim=1)  # of [N, high - low, M]


def mutual_scores(
    stages: Sequence[Float[Tensor, "N M _"]],
    degrees: Sequence[int] = (1, 3, 5),
    interval: tuple[float, float] = (0.0, 0.3),
    reduction: str = "mean",
    *,
    references: Sequence[Float[Tensor, "R M _"]] | None = None,
    pool: int | Int[Tensor, "N J"] | None = None,
    seed: int = 0,
    grid: tuple[int, int] | None = None,
    precision: str = "float32",
    block: int | None = None,
    position_window: float = math.inf,
    max_bytes: int | None = None,
    scratch: Path | str | None = None,
    progress: bool = False,
) -> Float[Tensor, "N M"]:
    """Anomaly score of every patch: its smallest distances to the other images, averaged over degrees and stages.

    Eq. 1-3: a_i^m = 1/L sum over stages, 1/D sum over degrees, of the interval average of the patch's distances.

    Args:
        stages: [N, M, C] raw patch tokens per stage (LNAMD happens here); C may differ between stages, M may not.
        degrees: r of LNAMD, odd.
        interval, reduction: see `interval_average`.
        references: [R, M, C] raw tokens per stage of reference images that join the scoring pool of every image
            (few-shot, App. A.6.1). They score and are not scored.
        pool: score each image by this many of the others, drawn by `seed` (cost linear in N); or [N, J], the indices
            of the others to use. None: all. References score in any case; with pool = 0 they score alone.
        grid: (rows, columns) of the patch grid; square where not given.
        precision: "float32" is exact. "bfloat16" and "float16" allow a distance to be off by about 1e-3 where that is
            faster, on a CPU; on a GPU with Triton the products are of half precision in any case, and every patch that
            could be the nearest is measured in float32.
        block: images held at a time (twice), in aggregated form; changes time and memory, never a score.
        position_window: compare a patch only with those at most this many rows and columns from its own place on the
            grid, for parts that lie alike in every image. Infinity: the paper. Finite ones are exact in any precision.
        max_bytes: memory that may be taken beyond the features, of the device that holds them (None: half of what is
            free). It changes the time and no score: see `engines.rows`. Stages may be `np.memmap`s made tensors.
        scratch: folder for distances that memory does not hold, so that no pair need be compared twice.
        progress: show a bar on a terminal.

    Returns:
        [N, M] on the input's device, float32 (float64 for float64 input); unitless, in [0, 2].

    Raises:
        ValueError: nothing to compare an image with, unequal stages, or a setting that does not exist.
        ConfigError: max_bytes is too small for one image's distances and one pair, or `scratch` has too little room.

    Differs from the released code for fewer than five images, which it scores NaN (see `interval_average`). Stages are
    done one after the other: beyond the features, memory holds one stage's distances, 4 D N (N - 1) M bytes, or what
    `max_bytes` allows.

    Example:
        >>> stage = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0)).repeat(6, 1, 1)  # six equal images
        >>> stage[5, 4] *= -1  # but for one patch of the last
        >>> scores = mutual_scores([stage], degrees=(1,))
        >>> divmod(int(scores.argmax()), 9)  # (image, patch)
        (5, 4)
    """
    engines.check_settings(degrees, precision, block)
    settings = Settings(
        tuple(degrees), interval, reduction, grid, precision, position_window, seed, block, max_bytes, scratch, progress
    )
    return scores(stages, settings, references=references, pool=pool)


def scores(
    stages: Sequence[Float[Tensor, "N M _"]],
    settings: Settings = PLAIN,
    *,
    references: Sequence[Float[Tensor, "R M _"]] | None = None,
    pool: int | Int[Tensor, "N J"] | None = None,
) -> Float[Tensor, "N M"]:
    """`mutual_scores` with its settings in one record.

    Example:
        >>> stage = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0))
        >>> scores([stage], Settings(degrees=(1,))).equal(mutual_scores([stage], degrees=(1,)))
        True
    """
    engines.check_stages(stages, references)
    interval_average(stages[0].new_zeros(1, 1, 1), settings.interval, settings.reduction)  # raises before the work
    total = torch.zeros(stages[0].shape[:2], dtype=_wide(stages[0].dtype), device=stages[0].device)
    for n, tokens in enumerate(stages):
        extra = None if references is None else references[n]
        for images, distances in stage_rows(tokens, settings, references=extra, pool=pool):
            # few images at a time, so that sorting needs no second array of this size
            for some, part in few(images, distances):
                found = interval_average(part.flatten(0, 1), settings.interval, settings.reduction)
                total[some] += found.unflatten(0, part.shape[:2]).mean(dim=0)  # [D, b, M] -> [b, M]
    return total / len(stages)


def stage_rows(
    tokens: Float[Tensor, "N M C"],
    settings: Settings = PLAIN,
    *,
    references: Float[Tensor, "R M C"] | None = None,
    pool: int | Int[Tensor, "N J"] | None = None,
) -> Iterator[tuple[Sequence[int], Float[Tensor, "D B J M"]]]:
    """`stage_distances` of some images after the others, below a bound of memory: reduce what comes before the next.

    Arguments as in `mutual_scores`. Yields the images, in the order of a drawn pool's seats where there is one, and
    their distances in memory that the next ones overwrite.

    Example:
        >>> stage = torch.randn(40, 9, 8, generator=torch.Generator().manual_seed(0))
        >>> whole = stage_distances(stage)
        >>> all(part.equal(whole[:, i]) for i, part in stage_rows(stage, Settings(max_bytes=500 << 20)))
        True
    """
    s = settings
    engines.check_stage(tokens, s.degrees, references, s.precision, s.position_window, s.block)
    (N, M, C), R = tokens.shape, 0 if references is None else len(references)
    plan = None if pool is None and N + R > 1 else plan_pool(N, R, pool, s.seed)
    shape, J = lnamd.square_grid(M, s.grid), plan.J if plan else N - 1 + R
    problem = memory.Problem(tokens.device, tokens.dtype, N, N + R, J, shape, C, s.degrees)
    cut = memory.cut(problem, s.max_bytes, s.block, on_disk=s.scratch is not None)
    engines.check_all(_images(tokens, references), N + R, N)
    plan, order = (plan.seated(), plan.seats) if plan else (None, list(range(N + R)))
    image = _images(tokens, references, order)

    def compare(local: Callable[[int], Tensor], part: Plan, out: Tensor, progress: bool = False) -> None:
        size, window = cut.block if cut else s.block, s.position_window
        engines.compare(local, part, s.degrees, shape, out, s.precision, size, window, progress, new=0)

    if cut is None or (cut.group >= N and cut.band >= N):
        rows = torch.empty(len(s.degrees), N, J, M, dtype=_wide(tokens.dtype), device=tokens.device)
        compare(image, plan or plan_pool(N, R), rows, s.progress)
        yield order[:N], rows
        return
    slots, folder = all_others(N) if plan is None else planned(plan), None if s.scratch is None else Path(s.scratch)
    with tqdm(total=N, desc="images", unit="image", disable=None if s.progress else True) as bar:
        for images, rows in completed(image, problem, slots, cut, compare, folder):
            yield order[images.start : images.stop], rows
            bar.update(len(images))


def stage_distances(
    tokens: Float[Tensor, "N M C"],
    degrees: Sequence[int] = (1, 3, 5),
    *,
    references: Float[Tensor, "R M C"] | None = None,
    pool: int | Int[Tensor, "N J"] | None = None,
    seed: int = 0,
    grid: tuple[int, int] | None = None,
    precision: str = "float32",
    block: int | None = None,
    position_window: float = math.inf,
    out: Float[Tensor, "D N J M"] | None = None,
    progress: bool = False,
) -> Float[Tensor, "D N J M"]:
    """Distance of every patch to the nearest patch of each other image, at every degree, from raw patch tokens.

    Eq. 1 after Sec. 3.1, for one stage. One pass serves every ablation: intervals, reductions and choices of degrees
    and stages are reductions of these arrays (`interval_average`).

    Args:
        out: [D, N, J, M], where to write, on any device and of any floating type (on disk: `engines.memory_map`). All
            others are as in `mutual_scores`.

    Returns:
        [D, N, J, M], Euclidean, in [0, 2], float32 (float64 for float64 input): `out` where given. J = N - 1 + R, or
        what `pool` leaves; the image itself is left out and the order of the others kept, references last.

    Raises:
        ValueError: as `mutual_scores`.

    Example:
        >>> stage = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0))
        >>> distances = stage_distances(stage, degrees=(1, 3))
        >>> distances.shape  # degrees, images, other images, patches
        torch.Size([2, 4, 3, 9])
        >>> scores = interval_average(distances.flatten(0, 1), (0.0, 0.3)).reshape(2, 4, 9).mean(dim=0)  # Eq. 2, 3
        >>> scores.allclose(mutual_scores([stage], (1, 3)))
        True
    """
    engines.check_stage(tokens, degrees, references, precision, position_window, block)
    N, M, _ = tokens.shape
    plan = plan_pool(N, 0 if references is None else len(references), pool, seed)
    if out is None:
        out = torch.empty(len(degrees), N, plan.J, M, dtype=_wide(tokens.dtype), device=tokens.device)
    image = _images(tokens, references)
    engines.compare(image, plan, degrees, grid, out, precision, block, position_window, progress)
    return out


def newcomer_distances(
    tokens: Float[Tensor, "M C"],
    pool: Sequence[Float[Tensor, "_ _"]],
    degrees: Sequence[int] = (1, 3, 5),
    *,
    grid: tuple[int, int] | None = None,
    precision: str = "float32",
    block: int | None = None,
    position_window: float = math.inf,
    checked: bool = False,
) -> tuple[Float[Tensor, "D P M"], Float[Tensor, "D P M"]]:
    """Distances between one new image and every image of a pool, both ways: P comparisons.

    Args:
        tokens, pool: raw patch tokens of one stage, [M, C] each. The others are as in `stage_distances`.
        checked: the pool's tokens are known to be finite, as an earlier call has seen: only the new image's are read.

    Returns:
        [D, P, M], Eq. 1 of the new image's patches in each pool image, and the reverse, of each pool image's patches in
        the new one; equal to what `stage_distances` of all P + 1 images holds there.

    Raises:
        ValueError: an empty pool, tokens of another shape, or a setting that does not exist.

    Example:
        >>> stage = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0))
        >>> to_pool, from_pool = newcomer_distances(stage[0], list(stage[1:]))
        >>> to_pool.shape  # degrees, images of the pool, patches
        torch.Size([3, 3, 9])
        >>> to_pool.allclose(stage_distances(stage)[:, 0], atol=1e-5)
        True
    """
    lnamd.check_tokens(tokens, "M C")
    engines.check_settings(degrees, precision, block)
    P, (M, _) = len(pool), tokens.shape
    if not P:
        raise ValueError("the pool is empty: a new image needs at least one other image to be compared with.")
    if odd := [tuple(other.shape) for other in pool if other.shape != tokens.shape]:
        raise ValueError(f"pool images of {odd[0]} but patch tokens {tuple(tokens.shape)}: same patches and channels.")
    slot = torch.full((P + 1, P + 1), -1)
    slot[0, 1:] = torch.arange(P)
    slot[1:, 0] = P
    found = torch.empty(len(degrees), 2 * P + 1, M, dtype=_wide(tokens.dtype), device=tokens.device)
    # (i, slot) lies at i + slot of `found`: the new image's row at 0..P-1, column P of the pool's rows at P+1..2P
    out = found.as_strided((len(degrees), P + 1, P + 1, M), (found.stride(0), M, M, 1))

    def image(p: int) -> Tensor:
        return (pool[p - 1] if p else tokens).detach()

    engines.compare(
        image, Plan(slot, P + 1), degrees, grid, out, precision, block, position_window, False, 1 if checked else None
    )
    return found[:, :P], found[:, P + 1 :]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _images(tokens: Tensor, references: Tensor | None, order: Sequence[int] = ()) -> Callable[[int], Tensor]:
    N = len(tokens)

    def image(p: int) -> Tensor:
        p = order[p] if order else p
        return (tokens[p] if references is None or p < N else references[p - N]).detach()

    return image
