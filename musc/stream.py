"""A new image, or a stream of them: scored by images that came before, without comparing those again.

`score_against` scores new images by the pool of an earlier result. `Stream` takes images one at a time, keeps at most
`capacity` of them, and updates the scores of those it keeps; where it drops none it ends with the batch's scores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from musc.config import MuScConfig
from musc.datasets import Images, as_category, located
from musc.datasets.base import Category, Sample, Skipped
from musc.datasets.proportions import sizes_of, squashed
from musc.datasets.values import value_range
from musc.errors import ConfigError, DataError
from musc.features import Features, check_references, stored
from musc.pipeline import MuSc
from musc.results import MuScResult
from musc.scoring import roi
from musc.scoring.aggregation import SalientTokens
from musc.scoring.maps import PatchScores, anomaly_maps
from musc.scoring.pool import MutualPool
from musc.sizes import Size, fitted, most_common

LOOKED_AT = 20  # earlier images, for their proportions


@dataclass(frozen=True)
class Scored:
    """A new image's scores when it came: raw_score (the maximum of its map) and score (after RsCIN among the images
    then held), NaN with no map for an image that nothing could score yet."""

    name: str
    raw_score: float
    score: float
    anomaly_map: Float[Tensor, "H W"] | None


class Stream:
    """Images of one product, scored as they come by at most `capacity` that came before.

    The cost of an image is one forward pass and as many comparisons as the pool holds: constant once it is full.
    `result` gives up-to-date scores of all images held; with capacity None these are the scores of `MuSc.run` on all.

    Args:
        musc: the pipeline. capacity, keep: see `MutualPool`. references: normal images that score from the start.

    Example:
        >>> from musc.datasets import load_category
        >>> musc = MuSc(MuScConfig(weights="random", image_size=64, workers=0, device="cpu"))
        >>> stream = Stream(musc, capacity=2)
        >>> scored = [stream.push(image) for image in load_category("synthetic", name="tile", good=2, defects=1)]
        >>> scored[0].anomaly_map is None, len(stream.result())  # nothing could score the first
        (True, 2)
    """

    def __init__(
        self, musc: MuSc, *, capacity: int | None = None, keep: str = "recent", references: Images | None = None
    ) -> None:
        self.musc, c = musc, _streamable(musc.config)
        if c.references is not None:
            raise ConfigError(f"references = {c.references} is for whole batches: bound a stream by its capacity.")
        normal_images = as_category(references).samples if references is not None else ()
        self.values = musc.value_range(*normal_images)
        normal = self._features(normal_images) if normal_images else None
        self.references = normal
        stages = self._compared(normal) if normal else None
        self.grids = musc.backbone.grids  # of what the pool compares, by its stages
        if c.roi is not None:
            per_stage = 1 if c.aggregation == "snamd" else len(c.degrees)
            self.grids = tuple(grid for grid in self.grids for _ in range(per_stage))
            c = c.replace(roi=None, aggregation="lnamd", degrees=(1,))
        self.pool = MutualPool(c, self.grids, capacity=capacity, keep=keep, seed=c.seed, references=stages)
        # held images by name: their tokens; raw score and token for re-scoring when last seen
        self.known: dict[str, tuple[Features, float, Tensor | None]] = {}

    def push(self, image: Sample | Path | str) -> Scored:
        """Score one image, perhaps keep it. Raises DataError (unreadable, or in the pool already); the pool stays.

        Where images have more than 8 bits and config.full_scale is not given, the first of them decides what white is.
        """
        sample = image if isinstance(image, Sample) else Sample(Path(image).as_posix(), Path(image))
        before, self.values = self.values, value_range([sample], self.values.full_scale)
        try:
            features = self._features([sample])
        except DataError:
            self.values = before
            raise
        twin = next((name for name, (f, *_) in self.known.items() if f.keys == features.keys), None)
        if twin is not None:
            raise DataError(f"{sample.name} is in the pool already as {twin}: it would score itself, and look normal.")
        if self.references:
            check_references(features, self.references)
        scores = self.pool.push(sample.name, [t[0] for t in self._compared(features)])
        map_ = None if scores is None else self._map(features, scores)
        raw = math.nan if map_ is None else float(map_.max())
        self.known[sample.name] = (features, raw, self._token(features, scores))
        score = self._rescored(sample.name, raw)
        names = {image.name for image in self.pool.held.values()}
        self.known = {name: kept for name, kept in self.known.items() if name in names}
        return Scored(sample.name, raw, score, map_)

    def result(self) -> MuScResult:
        """Scores of every image held, each by all the others held, as `MuSc.run` on just those would give them."""
        scores = self.pool.scores()
        parts = [self.known[name][0] for name in scores]
        features = _stack(parts)
        maps = torch.stack([self._map(f, stages) for f, stages in zip(parts, scores.values(), strict=True)])
        tokens = [self._token(f, stages) for f, stages in zip(parts, scores.values(), strict=True)]
        for name, drawn, token in zip(scores, maps, tokens, strict=True):
            self.known[name] = (self.known[name][0], float(drawn.max()), token)
        given = _joined(tokens)
        category = Category("stream", "pool", features.samples)
        note = f"{len(features)} of {self.pool.seen} images of the stream are held"
        pool = Category("stream", "references", self.references.samples) if self.references else None
        return self.musc.assemble(
            category, features, maps, pool, self.references, image_tokens=given, values=self.values, notes=[note]
        )

    def _features(self, samples: Sequence[Sample]) -> Features:
        found = self.musc.features(samples, self.values)
        return self.musc.with_region(found, self.musc.masks(*found.samples))

    def _compared(self, features: Features) -> list[Tensor]:
        """What the pool compares, [n, M, _] per stage: raw tokens; with a region, aggregated ones of the patches
        inside, per stage and degree."""
        c, device = self.musc.config, self.musc.device
        if features.region is None:
            return [t.to(device) for t in features.patch_tokens]
        stages = enumerate(features.grids)
        return [t for n, (H, W) in stages for t in roi.compared(features, [n], c, device, H * W).tokens]

    def _by_grid(self, features: Features, scores: Sequence[Tensor]) -> PatchScores:
        """Eq. 3 of one image, by patch grid: the mean over stages of the pool's scores."""
        found: PatchScores = {}
        for grid, s in zip(self.grids, scores, strict=True):
            row = s[None].cpu()
            row = row if features.region is None else roi.placed(row, roi.inside(features, grid), self.musc.config)
            found[grid] = found.get(grid, 0) + row / len(scores)
        return found

    def _map(self, features: Features, scores: Sequence[Tensor]) -> Tensor:
        by_grid = roi.continued(self._by_grid(features, scores), features)
        return roi.blanked(anomaly_maps(by_grid, self.musc.map_size), features)[0]

    def _token(self, features: Features, scores: Sequence[Tensor] | None) -> Tensor | None:
        """[1, D], what re-scoring compares of one image: see `MuSc.maps_and_tokens`."""
        if self.musc.config.rescoring == "rscin" or scores is None:
            return features.class_tokens
        return SalientTokens(self.musc.config).add(features, self._by_grid(features, scores))

    def _rescored(self, name: str, raw: float) -> float:
        """RsCIN among the images held and this one, with the raw scores that were last computed of each."""
        scored = {n: (r, token) for n, (_, r, token) in self.known.items() if not math.isnan(r)}
        if name not in scored:
            return math.nan
        tokens = _joined([token for _, token in scored.values()])
        final, _ = self.musc.rescored(torch.tensor([r for r, _ in scored.values()]), tokens)
        return float(final[list(scored).index(name)])


class Against:
    """The pool of an earlier result, loaded once, to score new images by: see `score_against`.

    earlier, cache, device, progress: as there.

    Example:
        >>> import tempfile
        >>> from musc.datasets import load_category
        >>> tile = load_category("synthetic", name="tile", good=3, defects=1)
        >>> config = MuScConfig(weights="random", image_size=64, workers=0, device="cpu")
        >>> earlier = MuSc(config, cache=tempfile.mkdtemp()).run(replace(tile, samples=tile.samples[1:]))
        >>> Against(earlier, device="cpu").score(replace(tile, samples=tile.samples[:1])).paths
        ('test/chip/000.png',)
    """

    def __init__(
        self, earlier: MuScResult, *, cache: Path | str | None = None, device: str = "auto", progress: bool = False
    ) -> None:
        place = Path(cache) if cache else Path(earlier.cache) if earlier.cache else None
        plus = earlier.config.references == 0  # MuSc+: its pool are the references alone
        names = [] if plus else list(earlier.paths)
        keys = [*([] if plus else earlier.keys), *earlier.reference_keys]
        names += [f"reference {j}" for j in range(len(earlier.reference_keys))]
        if len(keys) != len(names):
            raise DataError(f"the result of {earlier.category} does not say what its images hold: run it again.")
        warned = earlier.config.consistency == "warn"  # which changes no score
        config = earlier.config.replace(consistency="off") if warned else earlier.config
        tiles = config.tiles  # which `musc.run` has cut too; a stream holds whole images
        config = config.replace(subsets=1, tiles=1, references=0, neighbours="exact", device=device)
        config = _streamable(config).replace(tiles=tiles)
        self.earlier, self.musc = earlier, MuSc(config, cache=place, progress=progress)
        if self.musc.backbone.weights_id != earlier.weights:
            raise ConfigError(
                f"the result was made with the weights {earlier.weights}, and here {config.backbone} has "
                f"{self.musc.backbone.weights_id}: use the same weights, or run the earlier images again."
            )
        self.pool = _pool(earlier, keys, names, self.musc)
        if config.roi is not None:
            self.pool = _with_its_region(self.pool, earlier, self.musc)

    def score(self, images: Images) -> MuScResult:
        """Score new images. Raises DataError where none is new and readable."""
        musc, pool, earlier = self.musc, self.pool, self.earlier
        category = as_category(images)
        if not category.samples:
            raise DataError(category.skipped[0].reason if category.skipped else f"{category.name} holds no images.")
        values = musc.value_range(*category.samples)  # by the earlier result's full_scale, where it has one
        features = _new_ones(musc.features(category.samples, values), pool)
        if musc.config.roi is not None:
            features = musc.with_region(features, _masks(features, earlier, musc))
        maps, image_tokens = musc.maps_and_tokens(features, pool)
        result = musc.assemble(
            category, features, maps, None, pool, image_tokens=image_tokens, rescore=self._rescored, values=values,
            notes=[
                f"scored against {len(pool)} images of {earlier.dataset} {earlier.category}.",
                *self.squashed(sizes_of(features.samples)),
            ],
        )  # fmt: skip
        result.category = f"{category.name}_against_{earlier.category}"
        result.threshold = earlier.threshold
        digest = hashlib.blake2b("".join([result.fingerprint, *pool.keys]).encode(), digest_size=16)
        result.fingerprint = digest.hexdigest()
        return result

    @cached_property
    def proportions(self) -> Size | None:
        """The input size in the proportions of the pool's images: its own where that is a rectangle; of a square, to
        which they may have been squashed, what those ask for that are still there; None where none is."""
        size, earlier = self.musc.backbone.image_size, self.earlier
        if not isinstance(size, int):
            return size
        files = (Path(earlier.root, name) for name in earlier.paths[:LOOKED_AT])
        sizes = sizes_of([Sample(str(file), file) for file in files if file.is_file()])
        patch = self.musc.backbone.spec.patch_size
        return most_common(fitted(size, *own, patch) for own in sizes.values()) if sizes else None

    def squashed(self, sizes: Mapping[str, tuple[int, int]]) -> list[str]:
        """A note on new images of other proportions than the pool's (`proportions.squashed`)."""
        to = self.proportions
        return [] if to is None else squashed(sizes, to, self.musc.backbone.spec.patch_size)

    def _rescored(self, raw: Tensor, class_tokens: Tensor | None) -> tuple[Tensor, list[str]]:
        """RsCIN of each new image among the pool's raw scores, as they were, and its own."""
        earlier, scores, notes = self.earlier, torch.empty_like(raw), list[str]()
        for i in range(len(raw)):
            joint = torch.cat([torch.from_numpy(earlier.raw_image_scores), raw[i : i + 1]])
            tokens = None
            if class_tokens is not None and earlier.class_tokens is not None:
                if class_tokens.shape[1] != earlier.class_tokens.shape[1]:
                    raise DataError(f"class_tokens.npy of {earlier.category} is of another network: run it again.")
                tokens = torch.cat([torch.from_numpy(earlier.class_tokens), class_tokens[i : i + 1].float()])
            final, notes = self.musc.rescored(joint, tokens)
            scores[i] = final[-1]
        return scores, notes


def score_against(
    images: Images,
    earlier: MuScResult,
    *,
    cache: Path | str | None = None,
    device: str = "auto",
    progress: bool = False,
) -> MuScResult:
    """Score new images by the images of an earlier result, which are neither compared nor extracted again.

    Each new image is scored by all N images of the pool (and its references, if it had some), and by no other new
    one: its raw score is that of a batch of the N and itself. RsCIN runs among the pool's raw scores, as they were, and
    this one. The earlier result's threshold is taken over.

    Args:
        images: new images of the same product, as for `MuSc.run`. An image that is in the pool already is skipped.
        earlier: a result whose tokens are in its cache, or whose images are where they were. Its settings are used.
        cache: where the tokens are now, if not where the result says.

    Raises:
        DataError: neither the pool's tokens nor its images are there, or no image is new and readable.
        ConfigError: other weights.
    """
    return Against(earlier, cache=cache, device=device, progress=progress).score(images)


def _pool(earlier: MuScResult, keys: list[str], names: list[str], musc: MuSc) -> Features:
    """The tokens of the earlier result's pool: from the cache, or from its images where these are what they were."""
    half, tiled = musc.config.backbone_precision == "float16", musc.config.tiles > 1
    if tiled and earlier.reference_keys:
        raise ConfigError(
            f"tiles = {musc.config.tiles}: they are cut out of the images, and of the reference images of "
            f"{earlier.category} no file is known; run it with these among the images, or without tiles."
        )
    missing = DataError(f"the result of {earlier.category} was made without a cache of tokens.")
    if tiled:
        missing = DataError(f"tiles = {musc.config.tiles}: they are cut out of the images.")
    elif musc.cache is not None:
        try:
            return stored(keys, names, musc.backbone, musc.cache, half)
        except DataError as error:
            missing = error
    again = located(names, earlier.dataset, earlier.root) if earlier.root else {}
    if len(again) < len(names):
        remedy = ": " if tiled else " either: give --cache, or "
        raise DataError(
            f"{missing} Its images are not where they were{remedy}run them again with --force."
        ) from missing
    found = musc.features([again[name] for name in names])
    if list(found.keys) != keys:
        changed = next(n for n, k in zip(names, keys, strict=True) if k not in found.keys)
        raise DataError(f"{changed} has changed since {earlier.category} was scored: run that again.")
    return found


def _with_its_region(pool: Features, earlier: MuScResult, musc: MuSc) -> Features:
    """The pool with the region that the earlier result was scored in."""
    if musc.config.roi == roi.AUTO:
        return musc.with_region(pool, {})
    saved = earlier.region
    if saved is None or (len(saved) > 1 and earlier.reference_keys):
        raise ConfigError(
            f"roi = {musc.config.roi}: of the reference images of {earlier.category} the regions are not kept; give "
            "one mask for all images."
        )
    return roi.marked(pool, torch.from_numpy(np.array(saved)))


def _masks(features: Features, earlier: MuScResult, musc: MuSc) -> dict[str, Tensor]:
    """The regions of new images; of one mask for all images that is gone, what the earlier result keeps."""
    saved, given = earlier.region, musc.config.roi or ""
    if given != roi.AUTO and not Path(given).exists() and saved is not None and len(saved) == 1:
        return dict.fromkeys((s.name for s in features.samples), torch.from_numpy(np.array(saved[0])))
    return musc.masks(*features.samples)


def _new_ones(features: Features, pool: Features) -> Features:
    """`features` without the images that are in the pool already, which are named as skipped."""
    where = dict(zip(pool.keys, pool.samples, strict=True))
    twins = {i: where[key].name for i, key in enumerate(features.keys) if key in where}
    said = tuple(
        Skipped(
            features.samples[i].name,
            f"{features.samples[i].name} is in the pool already as {name}: its score is there.",
        )
        for i, name in twins.items()
    )
    if len(twins) == len(features):
        raise DataError(f"no image is new: {said[0].reason}")
    return replace(
        features.take([i for i in range(len(features)) if i not in twins]), skipped=(*features.skipped, *said)
    )


def _stack(parts: Sequence[Features]) -> Features:
    """Features of single images as one."""
    return Features(
        [torch.cat(stage) for stage in zip(*(p.patch_tokens for p in parts), strict=True)],
        _joined([p.class_tokens for p in parts]),
        parts[0].grids,
        tuple(p.samples[0] for p in parts),
        keys=tuple(p.keys[0] for p in parts),
        region=_joined([p.region for p in parts]),
    )


def _joined(tokens: Sequence[Tensor | None]) -> Tensor | None:
    return None if any(t is None for t in tokens) else torch.cat([t for t in tokens if t is not None])


def _streamable(config: MuScConfig) -> MuScConfig:
    """`config`, checked. Raises ConfigError on settings that need the whole batch at once."""
    config.check_mutual("new images and streams")
    if isinstance(config.image_size, str):
        raise ConfigError(
            f"image_size = {config.image_size!r} looks at all images at once: give (rows, columns), such as (448, 896)."
        )
    config.check_unused(("subsets", "tiles", "neighbours", "consistency"), "streams: it needs all images at once")
    return config
