"""Image metrics (AUROC, F1-max, AP) and pixel metrics (the same and PRO), exact, from one sort of the scores.

Every metric here depends only on how many normal pixels score above, and how many as high as, each anomalous pixel.
So all scores are sorted once, without their labels, in as many parts as there are threads, and the few anomalous
scores are looked up in the parts: no grid of thresholds, no pass over the maps per threshold. Equal scores share one
threshold. Counts are int64, sums float64. `pixel_metrics` works on CUDA where the maps lie there, else on the CPU.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from scipy import ndimage
from torch import Tensor

Vector = Shaped[Tensor, "_"] | Shaped[np.ndarray, "_"] | Sequence[Any]
Stack = Shaped[Tensor, "_ _ _"] | Shaped[np.ndarray, "_ _ _"] | Sequence[Tensor] | Sequence[np.ndarray]

PRO_PROTOCOLS = ("exact", "official")
OFFICIAL_STEPS = 200
_PART = 1 << 20  # scores: a smaller part is not worth a thread
_CUDA_PART = 1 << 24  # scores: torch.sort also makes int64 indices, 12 bytes per score in all
_BLOCK = 1 << 19  # anomalous scores looked up at once


def image_metrics(labels: Vector, scores: Vector) -> dict[str, float]:
    """AUROC, F1-max and AP of image scores, as scikit-learn defines them.

    labels: [N], 0 or False = normal, 1 or True = anomalous. scores: [N], higher = more anomalous, any finite numbers.
    F1-max is the best F1 over every threshold "score >= t". Equal scores are one threshold.

    Returns {"auroc", "f1_max", "ap"}, each in [0, 1]. Raises ValueError where the lengths differ, a label is neither 0
    nor 1, a score is NaN or infinite, or one of the two classes is missing: none of the three is defined then.
    Paper: Sec. 4.1, "Evaluation metrics".

    Example:
        >>> {name: round(value, 3) for name, value in image_metrics([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.8]).items()}
        {'auroc': 0.75, 'f1_max': 0.8, 'ap': 0.833}
    """
    anomalous, values = _as_mask(labels, "labels"), _as_scores(scores)
    if anomalous.ndim != 1 or tuple(values.shape) != anomalous.shape:
        raise ValueError(
            f"labels {list(anomalous.shape)} and scores {list(values.shape)} differ: give one of each per image"
        )
    _need_both_classes(int(anomalous.sum()), anomalous.size, "image")
    ranked = Ranked(values)
    if not ranked.finite:
        raise ValueError("scores hold NaN or infinite values: leave such images out, or mend their scores")
    found = _summarise(np.sort(_take(values, np.flatnonzero(anomalous))), ranked)
    return {"auroc": found.auroc, "f1_max": found.f1_max, "ap": found.ap}


def rank(maps: Stack) -> "Ranked":
    """The sort that `pixel_metrics` needs, for maps that several sets of masks judge.

    Example:
        >>> ranked = rank(np.array([[[0.0, 1.0], [2.0, 2.0]]]))
        >>> [int(n[0]) for n in ranked.count(np.array([2.0]))]  # pixels above 2, and at 2 or above
        [0, 2]
    """
    return Ranked(_scores_of(maps))


def pixel_metrics(
    masks: Stack,
    maps: Stack,
    pro: str | Sequence[str] = "exact",
    max_fpr: float = 0.3,
    ranked: "Ranked | None" = None,
) -> dict[str, float]:
    """AUROC, F1-max and AP over the pixels of all images, and PRO, the mean overlap with the anomalous regions.

    masks: [N, H, W], bool or 0/1, 1 = anomalous. maps: [N, H, W], higher = more anomalous. Either may be a sequence of
    [H, W] arrays of different sizes. float32 and float64 maps are used as they are, halves and integers are widened.

    A region is an 8-connected component of one mask. Recall of a region is the share of its pixels that are found, FPR
    the share of all normal pixels that are found, whichever image they lie in.

    - `pro="exact"`: the curve of (FPR, mean recall over regions) has a point for every distinct score t (found: score
      >= t) and starts at (0, 0). It is integrated by trapezoids from FPR 0 to `max_fpr`, its end point interpolated,
      and divided by `max_fpr`.
    - `pro="official"`: as the authors' released code does. Thresholds t_k = min + k (max - min) / 200 for k = 0 .. 199,
      from the scores of all maps, rounded to their dtype; found: score > t_k (not >=). Points with FPR < `max_fpr` are
      kept (no end point interpolated, none added at FPR 0), their FPR is stretched to [0, 1] by min-max, and the curve
      is integrated by trapezoids. Where all kept points have one FPR there is nothing to stretch (the released code
      gives NaN): the value is then the highest kept recall, and 0 where no point is kept.

    Returns {"auroc", "f1_max", "ap", "pro"}, each in [0, 1]. With several protocols, as in `pro=("exact", "official")`,
    "pro" is the first's and "pro_official" (or "pro_exact") the other's; the sort is shared. ranked: `rank(maps)`,
    where the maps are judged more than once. Raises ValueError where shapes differ, a mask is not 0/1, a score is NaN
    or infinite, or no pixel, or every pixel, is anomalous.
    Paper: Sec. 4.1, "Evaluation metrics"; PRO: Bergmann et al. 2020.

    Example:
        >>> masks = np.zeros((2, 8, 8), dtype=bool)
        >>> masks[0, 2:4, 2:4] = True
        >>> maps = np.random.default_rng(0).random((2, 8, 8)) + masks  # every anomalous pixel above every normal one
        >>> pixel_metrics(masks, maps)
        {'auroc': 1.0, 'f1_max': 1.0, 'ap': 1.0, 'pro': 1.0}
    """
    protocols = (pro,) if isinstance(pro, str) else tuple(pro)
    if not protocols or any(name not in PRO_PROTOCOLS for name in protocols):
        raise ValueError(f"pro={pro!r}: choose from {', '.join(PRO_PROTOCOLS)}")
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr={max_fpr}: choose a false positive rate above 0 and up to 1")

    truth, scores = _flatten(masks, maps)
    positions = _positions(truth)
    _need_both_classes(len(positions), len(scores), "pixel")
    ranked = ranked or Ranked(scores)
    if not ranked.finite:
        raise ValueError(f"{_first_bad_map(truth, scores)} holds NaN or infinite scores: recompute or leave it out")

    positives = _take(scores, positions)
    del positions
    regions, areas = _regions(truth)
    order = np.argsort(positives)
    positives, regions = positives[order], regions[order]
    del order
    found = _summarise(positives, ranked, regions, areas, max_fpr)
    result = {"auroc": found.auroc, "f1_max": found.f1_max, "ap": found.ap}
    for name in protocols:
        value = found.pro if name == "exact" else _official_pro(positives, ranked, regions, areas, max_fpr)
        result["pro" if name == protocols[0] else f"pro_{name}"] = value
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Counting scores above thresholds


class Ranked:
    """All scores, sorted in parts: counts how many lie above, and how many at or above, given thresholds."""

    def __init__(self, scores: np.ndarray | Tensor):
        self.size = len(scores)
        self._threads = max(1, min(torch.get_num_threads(), self.size // _PART))
        if isinstance(scores, Tensor):
            self._parts = [torch.sort(part).values for part in scores.split(_CUDA_PART)]
        else:
            self._parts = self._each(np.sort, np.array_split(scores, self._threads))
        self.low = min(float(part[0]) for part in self._parts)
        self.high = max(float(part[-1]) for part in self._parts)
        # NaN sorts last, so the ends of the parts tell of every bad value.
        self.finite = all(np.isfinite([float(part[0]), float(part[-1])]).all() for part in self._parts)

    def count(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """thresholds: [T] of the scores' dtype -> number of scores > t, number of scores >= t, int64 [T] each."""
        if isinstance(self._parts[0], Tensor):
            queries = torch.from_numpy(thresholds).to(self._parts[0].device)
            at_most = sum(torch.searchsorted(part, queries, right=True) for part in self._parts)
            below = sum(torch.searchsorted(part, queries) for part in self._parts)
            return self.size - at_most.cpu().numpy(), self.size - below.cpu().numpy()  # type: ignore[union-attr]
        at_most = sum(self._each(lambda part: part.searchsorted(thresholds, "right"), self._parts))
        below = sum(self._each(lambda part: part.searchsorted(thresholds, "left"), self._parts))
        return self.size - at_most, self.size - below

    def _each(self, function, parts: list) -> list:
        if self._threads == 1:
            return [function(part) for part in parts]
        with ThreadPoolExecutor(self._threads) as pool:  # NumPy's sort and searchsorted release the GIL
            return list(pool.map(function, parts))


class _Summary(NamedTuple):
    auroc: float
    f1_max: float
    ap: float
    pro: float  # exact; 0 where no regions are given


def _summarise(
    positives: np.ndarray,
    ranked: Ranked,
    regions: np.ndarray | None = None,
    areas: np.ndarray | None = None,
    max_fpr: float = 0.3,
) -> _Summary:
    """All metrics from the anomalous scores [P], ascending, the region [P] of each, and the area [R] of each region.

    A group is a set of equal anomalous scores. `tp` and `fp` count what is found at its threshold, `fp_above` the
    normal pixels above it. Each metric is a sum (F1-max: a maximum) over groups, so blocks of groups bound the memory:
    thresholds at normal scores alone change no precision-recall term and only prolong the ROC and PRO curves flatly.
    """
    n_pos, n_neg = len(positives), ranked.size - len(positives)
    limit = max_fpr * n_neg  # counts, not rates: exact as long as they are integers
    half_pairs, f1_max, ap, pro = 0, 0.0, 0.0, 0.0
    for low, high in _blocks(positives):
        scores = positives[low:high]
        starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
        size = np.diff(starts, append=high - low)
        above, found = ranked.count(scores[starts])
        tp = n_pos - (low + starts)
        fp, fp_above = found - tp, above - (tp - size)
        half_pairs += int((size * (2 * n_neg - fp - fp_above)).sum())  # a normal pixel below counts 2, an equal one 1
        f1_max = max(f1_max, float((2 * tp / (n_pos + found)).max()))  # 2 TP / (2 TP + FP + FN)
        ap += float((size * (tp / found)).sum())
        if regions is not None and areas is not None:
            recall = np.add.reduceat(1 / areas[regions[low:high]], starts)
            pro += float((recall * _width_after_ramp(fp_above, fp, limit)).sum())
    n_regions = 1 if areas is None else len(areas)
    return _Summary(half_pairs / (2 * n_pos * n_neg), f1_max, ap / n_pos, pro / (limit * n_regions))


def _width_after_ramp(start: np.ndarray, end: np.ndarray, limit: float) -> np.ndarray:
    """Area from 0 to `limit` under a step of height 1 that rises linearly from `start` to `end`, each [G]."""
    cut = np.clip(limit - start, 0, None) ** 2 / (2 * np.maximum(end - start, 1))
    return np.where(end <= limit, limit - (start + end) / 2, cut)


def _blocks(ascending: np.ndarray) -> Iterator[tuple[int, int]]:
    """Bounds of blocks of about _BLOCK scores that split no group of equal ones."""
    low = 0
    while low < len(ascending):
        high = min(low + _BLOCK, len(ascending))
        high = int(ascending.searchsorted(ascending[high - 1], "right"))
        yield low, high
        low = high


def _official_pro(
    positives: np.ndarray, ranked: Ranked, regions: np.ndarray, areas: np.ndarray, max_fpr: float
) -> float:
    """PRO over 200 equally spaced thresholds, see `pixel_metrics`; arguments as of `_summarise`."""
    n_pos, n_neg = len(positives), ranked.size - len(positives)
    steps = ranked.low + np.arange(OFFICIAL_STEPS) * ((ranked.high - ranked.low) / OFFICIAL_STEPS)
    thresholds = steps.astype(positives.dtype)
    first = positives.searchsorted(thresholds, "right")  # of the anomalous pixels above each threshold
    fpr = (ranked.count(thresholds)[0] - (n_pos - first)) / n_neg
    between = [(1 / areas[regions[low:high]]).sum() for low, high in pairwise([*first, n_pos])]
    recall = np.cumsum(between[::-1])[::-1] / len(areas)

    kept = fpr < max_fpr
    fpr, recall = fpr[kept], recall[kept]
    if not kept.any() or fpr[0] == fpr[-1]:
        return float(recall.max(initial=0.0))
    fpr = (fpr - fpr[-1]) / (fpr[0] - fpr[-1])  # thresholds ascend, so FPR descends
    return float(((fpr[:-1] - fpr[1:]) * (recall[:-1] + recall[1:])).sum() / 2)


# ---------------------------------------------------------------------------------------------------------------------
# Masks and maps to flat arrays


def _regions(masks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Region of every anomalous pixel, int32 [P], counted on from image to image; pixels of every region, [R]."""
    ids, count = [], 0
    for mask in masks:
        rows = np.flatnonzero(mask.any(axis=1))
        if not len(rows):
            continue
        columns = np.flatnonzero(mask.any(axis=0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        labels, n = ndimage.label(box, structure=np.ones((3, 3)))  # 8-connected
        ids.append(labels[box] - 1 + count)
        count += n
    regions = np.concatenate(ids).astype(np.int32, copy=False)
    return regions, np.bincount(regions, minlength=count)


def _flatten(masks: Stack, maps: Stack) -> tuple[list[np.ndarray], np.ndarray | Tensor]:
    """Masks as bool [H, W] arrays on the CPU; all scores as one vector, where the maps lie."""
    if len(masks) == 0 or len(maps) != len(masks):
        raise ValueError(f"{len(masks)} masks for {len(maps)} maps: give one of each per image, at least one")
    for i, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
        if tuple(mask.shape) != tuple(scores.shape) or mask.ndim != 2:
            raise ValueError(
                f"masks[{i}] is {list(mask.shape)}, maps[{i}] is {list(scores.shape)}: resize one to the other, [H, W]"
            )
    if isinstance(masks, Tensor | np.ndarray):
        return list(_as_mask(masks, "masks")), _scores_of(maps)
    return [_as_mask(mask, f"masks[{i}]") for i, mask in enumerate(masks)], _scores_of(maps)


def _scores_of(maps: Stack) -> np.ndarray | Tensor:
    """All scores of the maps as one vector."""
    if isinstance(maps, Tensor | np.ndarray):
        return _as_scores(maps).reshape(-1)
    parts: list[Any] = [_as_scores(scores).reshape(-1) for scores in maps]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def _positions(masks: list[np.ndarray]) -> np.ndarray:
    """Places of the anomalous pixels in the flat scores: int64 [P]."""
    starts = np.cumsum([0] + [mask.size for mask in masks])
    return np.concatenate([np.flatnonzero(mask) + start for mask, start in zip(masks, starts, strict=False)])


def _as_scores(values: Any) -> np.ndarray | Tensor:
    """float32 or float64; stays a tensor on CUDA only."""
    if isinstance(values, Tensor):
        values = values.detach() if values.is_cuda else values.detach().cpu()
        if values.dtype not in (torch.float32, torch.float64):
            values = values.float() if values.dtype.itemsize <= 2 else values.double()
        if values.is_cuda:
            return values
    values = np.asarray(values)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    return values


def _as_mask(values: Any, name: str) -> np.ndarray:
    """bool array on the CPU, from bool or 0/1 of any type."""
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if values.dtype == bool:
        return values
    if values.size and (values.max() > 1 or values.min() < 0 or (values != values.astype(bool)).any()):
        raise ValueError(f"{name} hold values other than 0 and 1: binarise them first, for example {name} > 0")
    return values.astype(bool)


def _take(scores: np.ndarray | Tensor, positions: np.ndarray) -> np.ndarray:
    if isinstance(scores, Tensor):
        return scores[torch.from_numpy(positions).to(scores.device)].cpu().numpy()
    return scores[positions]


def _need_both_classes(n_anomalous: int, total: int, unit: str) -> None:
    if n_anomalous in (0, total):
        which = "no" if n_anomalous == 0 else "every"
        raise ValueError(
            f"{which} {unit} of {total} is anomalous: AUROC, AP, F1 and PRO compare the two classes; check the "
            f"{'labels' if unit == 'image' else 'masks'}, or leave these metrics out"
        )


def _first_bad_map(masks: list[np.ndarray], scores: np.ndarray | Tensor) -> str:
    start = 0
    for i, mask in enumerate(masks):
        if not torch.isfinite(torch.as_tensor(scores[start : start + mask.size])).all():
            return f"maps[{i}]"
        start += mask.size
    return "maps"
