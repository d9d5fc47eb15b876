"""The paper's ablations: one pass over a category's distances, reduced many ways.

Tables 3, 4, 5, 7, 9, 10 and Figures 4, 7, 8, 10 all start from the same distances of Eq. 1. They are computed once per
category, at every aggregation degree that a table asks for, kept in memory-mapped files, and reduced to one anomaly map
per distinct variant.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from musc import msm
from musc.config import MuScConfig
from musc.datasets.base import Category
from musc.errors import ConfigError, DataError
from musc.features import Features
from musc.pipeline import MuSc
from musc.results.evaluation import evaluate, read_truth
from musc.saving import whole
from musc.scoring.aggregation import SalientTokens, prepared
from musc.scoring.maps import PatchScores, anomaly_maps, rescored, split_subsets
from musc.sources import numerical_version

DEGREES = (1, 3, 5, 7, 9, 13)  # all that any table asks for
CHUNK_BYTES = 256 << 20  # distances sorted at a time
# Settings that a variant sets itself, or that no distance of Eq. 1 among all images can show.
IGNORED = ("degrees", "interval", "reduction", "subsets", "references", "position_window", "tiles", "consistency",
           "roi")  # fmt: skip
THREADS = 4  # at most, each of which holds a category's maps and their sort


@dataclass(frozen=True)
class Variant:
    """What one row of an ablation changes; the defaults are the method itself (windows None: the configuration's)."""

    degrees: tuple[int, ...] = (1, 3, 5)
    interval: tuple[float, float] = (0.0, 0.3)
    reduction: str = "mean"
    subsets: int = 1
    windows: tuple[float, ...] | None = None

    @property
    def scoring(self) -> tuple[tuple[float, float], str, int]:
        """How distances become patch scores: variants that differ only in degrees and windows share it."""
        return self.interval, self.reduction, self.subsets


def _sets(*degrees: tuple[int, ...]) -> dict[str, Variant]:
    return {"{" + ", ".join(map(str, d)) + "}": Variant(degrees=d) for d in degrees}


# Rows are named as the paper prints them.
GRIDS: dict[str, dict[str, Variant]] = {
    "table_3": _sets((1,), (3,), (5,), (1, 3), (3, 5), (1, 3, 5)),
    "table_4": {
        "(a) min": Variant(interval=(0, 1), reduction="min"),
        "(b) max": Variant(interval=(0, 1), reduction="max"),
        "(c) mean": Variant(interval=(0, 1)),
        "(d) 30% + min": Variant(reduction="min"),
        "(e) 30% + max": Variant(reduction="max"),
        "(f) 30% + mean": Variant(),
    },
    "table_5": {"w/o": Variant(windows=()), "w": Variant()},
    "table_7": {str(s): Variant(subsets=s) for s in (1, 2, 3)},
    "table_9": _sets(*(DEGREES[:n] for n in range(1, 7))),
    "table_10": {f"{y}% ~ 30%": Variant(interval=(y / 100, 0.3)) for y in (0, 2, 4, 6, 8, 10)},
    "figure_7": {f"{x}%": Variant(interval=(0.0, x / 100)) for x in range(10, 101, 10)},
    "figure_8": {
        **{str(k): Variant(windows=(k,)) for k in range(2, 10)},
        "inf": Variant(windows=(math.inf,)),
        "{2, 3}": Variant(windows=(2, 3)),
        "{8, 9}": Variant(windows=(8, 9)),
    },
}


Pass = int | tuple[int, ...]  # what one set of distances is of: a degree, or with SNAMD the degrees that it averages


def passes_of(variant: Variant, aggregation: str) -> tuple[Pass, ...]:
    """The sets of distances whose scores a variant averages (Eq. 3).

    Example:
        >>> passes_of(Variant(degrees=(1, 3)), "lnamd"), passes_of(Variant(degrees=(1, 3)), "snamd")
        ((1, 3), ((1, 3),))
    """
    return variant.degrees if aggregation == "lnamd" else (variant.degrees,)


class Distances:
    """Distances of Eq. 1 on disk: one memory-mapped file per stage, [D, N, J, M], J = N - 1 in the images' order.

    With aggregation = "snamd" the D are sets of degrees, each of which is a pass of its own. float32 where that fits
    into `max_bytes`, else float16 (distances are at most 2, so it rounds by less than 0.001).
    """

    def __init__(self, folder: Path, degrees: tuple[Pass, ...], grids: tuple[tuple[int, int], ...]) -> None:
        self.folder, self.degrees, self.grids = folder, degrees, grids
        self.files: list[Path] = []

    @classmethod
    def compute(
        cls,
        features: Features,
        folder: Path,
        degrees: tuple[Pass, ...] = DEGREES,
        *,
        config: MuScConfig | None = None,
        device: torch.device | str = "cpu",
        max_bytes: int = 16 << 30,
        progress: bool = False,
    ) -> Distances:
        """Compute and store the distances of every stage, or open what a finished run left in `folder` of the same
        tokens, degrees and precision.

        Raises ConfigError, before anything is computed, where the files would be larger than `max_bytes` or the disk.
        """
        config = config or MuScConfig()
        store = cls(folder, degrees, features.grids)
        N, per_value = len(features), store._bytes_per_value(len(features), max_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        stages = list(zip(features.patch_tokens, features.grids, strict=True))
        for n, (tokens, grid) in enumerate(tqdm(stages, desc="stages", disable=None if progress else True)):
            recipe = f"{numerical_version()} {degrees} {grid} {config.precision} {per_value} {tuple(tokens.shape)}"
            digest = hashlib.blake2b(recipe.encode(), digest_size=8)
            digest.update(tokens.contiguous().numpy().data)
            path = folder / f"stage{n}-{digest.hexdigest()}.npy"
            store.files.append(path)
            if path.exists():
                continue
            shape = (len(degrees), N, N - 1, math.prod(grid))
            with whole(path) as partial:
                array = open_memmap(partial, mode="w+", dtype=np.float32 if per_value == 4 else np.float16, shape=shape)
                _reserve(partial)
                out = torch.from_numpy(array)
                for slots, wanted in _joint(degrees):
                    given, asked = prepared(tokens.to(device), config, grid, wanted)
                    msm.stage_distances(
                        given, asked, grid=grid, precision=config.precision, block=config.block, out=out[slots]
                    )
                array.flush()
        return store

    def _bytes_per_value(self, N: int, max_bytes: int) -> int:
        M = sum(H * W for H, W in self.grids)
        values = len(self.degrees) * N * (N - 1) * M
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        finished = sum(file.stat().st_size for file in self.folder.glob("*.npy"))
        room = shutil.disk_usage(self.folder.parent).free + finished
        for size in (4, 2):
            if values * size <= min(max_bytes, room):
                return size
        if room < max_bytes:
            raise ConfigError(
                f"{self.folder.parent}: distances need {values * 2 / 2**30:.2f} GiB, and {room / 2**30:.2f} GiB are "
                "free: free some space, or choose another folder."
            )
        raise ConfigError(
            f"the distances take D x N x (N-1) x sum of M = {len(self.degrees)} x {N} x {N - 1} x {M} values, "
            f"{values * 2 / 2**30:.1f} GiB in float16, and {max_bytes / 2**30:.1f} GiB are allowed: "
            "use fewer images or degrees, a smaller image size, or raise the bound."
        )

    def __getitem__(self, index: tuple[int, Pass]) -> np.ndarray:
        """[N, J, M] of one stage (counted from 0) and one aggregation degree (by its value), read from disk; with
        SNAMD of one set of degrees."""
        stage, degree = index
        return np.load(self.files[stage], mmap_mode="r")[self.degrees.index(degree)]

    def patch_scores(
        self, scorings: Iterable[tuple[tuple[float, float], str, int]], defects: list[str], seed: int
    ) -> dict[tuple[int, Pass, tuple[tuple[float, float], str, int]], Float[Tensor, "N M"]]:
        """Eq. 2 for every (stage, degree, scoring): read once, sorted once per number of subsets."""
        scores = {}
        scorings = list(dict.fromkeys(scorings))
        for stage in range(len(self.grids)):
            for degree in self.degrees:
                D = self[stage, degree]
                N, _, M = D.shape
                for s in dict.fromkeys(subsets for _, _, subsets in scorings):
                    wanted = [scoring for scoring in scorings if scoring[2] == s]
                    out = {scoring: torch.empty(N, M) for scoring in wanted}
                    for rows in split_subsets(defects, s, seed):
                        for part in rows.split(max(1, CHUNK_BYTES // (4 * D[0].size))):
                            ordered = _others(D, part, rows).sort(dim=1).values
                            for scoring in wanted:
                                out[scoring][part] = reduce_sorted(ordered, *scoring[:2])
                    scores.update({(stage, degree, scoring): value for scoring, value in out.items()})
        return scores


def _joint(degrees: tuple[Pass, ...]) -> list[tuple[slice, tuple[int, ...]]]:
    """Which of `degrees` one call computes: all of LNAMD's, which share their products, or one set of SNAMD's."""
    if all(isinstance(r, int) for r in degrees):
        return [(slice(None), tuple(r for r in degrees if isinstance(r, int)))]
    return [(slice(k, k + 1), r) for k, r in enumerate(degrees) if isinstance(r, tuple)]


def _others(D: np.ndarray, part: Tensor, members: Tensor) -> Float[Tensor, "n J M"]:
    """Distances of the images `part` to the other `members` of their subset."""
    if len(members) == len(D):
        return torch.from_numpy(np.array(D[part[0] : part[-1] + 1])).float()
    slots = [[int(j) - int(j > i) for j in members if j != i] for i in part]  # row i leaves itself out
    return torch.stack([torch.from_numpy(D[int(i), slot]) for i, slot in zip(part, slots, strict=True)]).float()


def reduce_sorted(
    ordered: Float[Tensor, "N J M"], interval: tuple[float, float], reduction: str
) -> Float[Tensor, "N M"]:
    """`msm.interval_average` of distances that are sorted along J already."""
    low, high = msm.interval_bounds(ordered.shape[1], interval)
    if reduction == "mean":
        return ordered[:, low:high].mean(dim=1)
    return ordered[:, low if reduction == "min" else high - 1]


def _reserve(path: Path) -> None:
    """A mapped file has its room on the disk before it is filled: a full disk is an OSError here, and later a crash."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def ablate(
    category: Category,
    musc: MuSc,
    folder: Path,
    grids: Mapping[str, Mapping[str, Variant]] = GRIDS,
    *,
    keep_distances: bool = False,
    max_bytes: int = 16 << 30,
) -> pd.DataFrame:
    """Measure every row of every grid on one category; finished work in `folder` is reused.

    Returns a tidy frame with columns experiment, row, dataset, category, group ("image", "image_before_rscin",
    "pixel_clean", "pixel_official"), metric, value (a fraction). keep_distances leaves the distances on disk, as
    Figures 4 and 10 need them. Raises what `MuSc.run` and `Distances.compute` raise.
    """
    if not category.labeled:
        raise DataError(f"{category.name} has images without labels: an ablation measures, and needs them.")
    musc.config.check_mutual("ablations")
    musc.config.check_unused(IGNORED, "ablations")
    variants = {(name, row): v for name, rows in grids.items() for row, v in rows.items()}
    digest = hashlib.blake2b(f"{musc.fingerprint(category)}{variants}".encode(), digest_size=8).hexdigest()
    finished = folder / f"ablations-{digest}.csv"
    if finished.exists() and not keep_distances:
        return pd.read_csv(finished, dtype={"row": str, "category": str})

    features = musc.features(category.samples)
    aggregation = musc.config.aggregation
    degrees: tuple[Pass, ...] = tuple(sorted({r for v in variants.values() for r in passes_of(v, aggregation)}))  # type: ignore[type-var]
    place = folder / f"distances-{digest}"
    distances = Distances.compute(
        features,
        place,
        degrees,
        config=musc.config,
        device=musc.device,
        max_bytes=max_bytes,
        progress=musc.progress,
    )
    defects = [s.defect for s in features.samples]
    scores = distances.patch_scores((v.scoring for v in variants.values()), defects, musc.config.seed)
    rows = _measure(category, musc, features, variants, scores)
    frame = pd.DataFrame(rows)
    with whole(folder / f"ablations-{digest}.json") as path:
        path.write_text(json.dumps(musc.config.to_dict(), indent=1) + "\n", encoding="utf-8")
    with whole(finished) as path:  # appears last: where it is, the rows are finished, and nothing else is left
        frame.to_csv(path, index=False)
        if not keep_distances:
            shutil.rmtree(place)
    return frame


def _measure(category: Category, musc: MuSc, features: Features, variants: dict, scores: dict) -> list[dict]:
    """The rows of `ablate`. Variants that share their maps share what is measured of pixels; threads share the maps."""
    size = musc.map_size
    truth = read_truth(category.dataset, features.samples, size)
    same_maps: dict[tuple, list[tuple[str, str]]] = {}
    for name, v in variants.items():
        same_maps.setdefault((v.degrees, v.scoring), []).append(name)

    def measured(names: list[tuple[str, str]]) -> list[dict]:
        v = variants[names[0]]
        patch_scores = _patch_scores(features, v, scores, musc.config.aggregation)
        maps, tokens = anomaly_maps(patch_scores, size), features.class_tokens
        if musc.config.rescoring == "rscon":
            tokens = SalientTokens(musc.config, v.degrees).add(features, patch_scores)
        raw = maps.flatten(1).amax(dim=1)
        rows: list[dict] = []
        pixel: dict[str, dict[str, float]] = {}
        for experiment, row in names:
            windows = variants[experiment, row].windows
            final, _ = rescored(raw, tokens, musc.config.windows if windows is None else windows)
            found = evaluate(truth, final, raw, None if pixel else maps)
            pixel = pixel or {name: m for name, m in found.items() if name.startswith("pixel")}
            for group, metrics in {**found, **pixel}.items():
                for metric, value in metrics.items():
                    rows.append(
                        {"experiment": experiment, "row": row, "dataset": category.dataset, "category": category.name,
                         "group": group, "metric": metric, "value": value}
                    )  # fmt: skip
        return rows

    order = {key: n for n, key in enumerate(variants)}
    rows: list[dict] = []
    with (
        ThreadPoolExecutor(min(THREADS, torch.get_num_threads())) as pool,
        tqdm(total=len(variants), desc="variants", disable=None if musc.progress else True) as bar,
    ):
        for names, found in zip(same_maps.values(), pool.map(measured, same_maps.values()), strict=True):
            rows += found
            bar.update(len(names))
    return sorted(rows, key=lambda r: order[r["experiment"], r["row"]])


def _patch_scores(features: Features, v: Variant, scores: dict, aggregation: str) -> PatchScores:
    """Eq. 3 by grid, from the patch scores of every stage and degree."""
    total: PatchScores = {}
    for grid in dict.fromkeys(features.grids):
        stages = [n for n, g in enumerate(features.grids) if g == grid]
        chosen = torch.stack([scores[n, r, v.scoring] for n in stages for r in passes_of(v, aggregation)])
        total[grid] = len(stages) / len(features.grids) * chosen.mean(dim=0)
    return total
