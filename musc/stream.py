"""A new image, or a stream of them: scored by images that came before, without comparing those again.

`score_against` scores new images by the pool of an earlier result. `Stream` takes images one at a time, keeps at most
`capacity` of them, and updates the scores of those it keeps; where it drops none it ends with the batch's scores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from musc import msm
from musc.config import MuScConfig
from musc.datasets import Images, as_category
from musc.datasets.base import Category, Sample, Skipped
from musc.datasets.values import value_range
from musc.errors import ConfigError, DataError
from musc.features import Features, check_references, stored
from musc.pipeline import MuSc
from musc.results import MuScResult
from musc.scoring.maps import upsample

KEEP = ("recent", "reservoir")


@dataclass
class Held:
    """An image of the pool: its raw tokens per stage, and its patches' distances [D, M] per stage to each other one,
    by that one's number. Distances, not scores: an interval average cannot be updated from itself."""

    name: str
    stages: Sequence[Tensor]
    distances: dict[int, list[Tensor]] = field(default_factory=dict)


class MutualPool:
    """Mutual scores (Eq. 1-3) of a growing or bounded pool, kept up to date: one comparison per pair of images, ever.

    Memory: the tokens of P images and 4 D P^2 M bytes of distances per stage. `comparisons` counts pairs of images.

    Args:
        config: degrees, interval, reduction, precision, block and position_window of mutual scoring.
        grids: patch grid (rows, columns) of each stage.
        capacity: images held at most (None: all). keep: "recent" drops the oldest; "reservoir" keeps a uniform random
            sample of all that came, drawn by `seed`.
        references: raw tokens per stage [R, M, C] of normal images that score every image, and are never dropped.
    """

    def __init__(
        self,
        config: MuScConfig,
        grids: Sequence[tuple[int, int]],
        *,
        capacity: int | None = None,
        keep: str = "recent",
        seed: int = 0,
        references: Sequence[Float[Tensor, "R M _"]] | None = None,
    ) -> None:
        if capacity is not None and capacity < 1:
            raise ConfigError(f"capacity = {capacity}: a pool holds at least one image; give None for no bound.")
        if keep not in KEEP:
            raise ConfigError(f"keep = {keep!r}: choose one of {', '.join(KEEP)}.")
        self.config, self.grids, self.capacity, self.keep = config, tuple(grids), capacity, keep
        self.rng = np.random.default_rng(seed)
        R = len(references[0]) if references else 0
        self.references = [Held(f"reference {j}", [stage[j] for stage in references or ()]) for j in range(R)]
        self.held: dict[int, Held] = {}  # by number of arrival, oldest first
        self.seen = self.comparisons = 0

    def __len__(self) -> int:
        return len(self.held)

    def push(self, name: str, stages: Sequence[Float[Tensor, "M _"]]) -> list[Float[Tensor, "M"]] | None:
        """Score a new image by the pool, let the pool's scores know of it, and keep it if there is room for it.

        Returns its patch scores per stage, averaged over degrees (Eq. 2); None for the very first image, which nothing
        can score yet. Raises DataError where `name` is in the pool already or its tokens do not fit: the pool stays as
        it was.
        """
        self._check(name, stages)
        others: dict[int, Held] = {-1 - j: ref for j, ref in enumerate(self.references)} | self.held
        new, number = Held(name, list(stages)), self.seen
        back: dict[int, list[Tensor]] = {p: [] for p in others}
        there: dict[int, list[Tensor]] = {p: [] for p in others}
        c = self.config
        for n, tokens in enumerate(stages if others else ()):
            to_pool, from_pool = msm.newcomer_distances(
                tokens,
                [other.stages[n] for other in others.values()],
                c.degrees,
                grid=self.grids[n],
                precision=c.precision,
                block=c.block,
                position_window=c.position_window,
            )
            for slot, p in enumerate(others):
                there[p].append(to_pool[:, slot].clone())  # a copy each: dropping an image frees its memory
                back[p].append(from_pool[:, slot].clone())
        # nothing of the pool changes before all that can fail is done
        new.distances = there
        scores = self._reduce(new) if others else None
        self.comparisons += len(others)
        self.seen += 1
        admitted = self._make_room()
        if admitted:
            for p, other in self.held.items():
                other.distances[number] = back[p]
            new.distances = {p: d for p, d in there.items() if p < 0 or p in self.held}
            self.held[number] = new
        return scores

    def scores(self) -> dict[str, list[Float[Tensor, "M"]]]:
        """Patch scores per stage of every image held, by all the others held and the references; no new comparison.

        Raises DataError where the pool holds nothing that could score.
        """
        if len(self.held) + len(self.references) < 2 or not self.held:
            raise DataError(
                f"the pool holds {len(self.held)} images and {len(self.references)} references: push at least two."
            )
        return {image.name: self._reduce(image) for image in self.held.values()}

    def _reduce(self, image: Held) -> list[Tensor]:
        c, scores = self.config, []
        for n in range(len(self.grids)):
            distances = torch.stack([stages[n] for stages in image.distances.values()], dim=1)  # [D, J, M]
            scores.append(msm.interval_average(distances, c.interval, c.reduction).mean(dim=0))
        return scores

    def _make_room(self) -> bool:
        """Drop an image where the pool is full; whether the new one may come in."""
        if self.capacity is None or len(self.held) < self.capacity:
            return True
        numbers = list(self.held)
        place = 0 if self.keep == "recent" else int(self.rng.integers(self.seen))  # `seen` counts the new one
        if place >= self.capacity:
            return False
        gone = numbers[place]
        del self.held[gone]
        for other in self.held.values():
            other.distances.pop(gone, None)
        return True

    def _check(self, name: str, stages: Sequence[Tensor]) -> None:
        if any(image.name == name for image in self.held.values()):
            raise DataError(f"{name} is in the pool already: an image that scores itself always looks normal.")
        shapes = [tuple(tokens.shape) for tokens in stages]
        if any(not torch.isfinite(tokens).all() for tokens in stages):
            raise DataError(f"{name}: its tokens hold NaN or infinity; leave the image out.")
        first = next(iter((*self.references, *self.held.values())), None)
        known = [tuple(tokens.shape) for tokens in first.stages] if first else shapes
        fits = len(shapes) == len(self.grids) and all(
            s[0] == H * W for s, (H, W) in zip(shapes, self.grids, strict=True)
        )
        if shapes != known or not fits:
            raise DataError(
                f"{name} has tokens of {shapes}, the pool of {known} on grids {list(self.grids)}: "
                "extract all with the same backbone, image size and stages."
            )


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
        normal = musc.features(normal_images, self.values) if normal_images else None
        self.references = normal
        stages = [t.to(musc.device) for t in normal.patch_tokens] if normal else None
        grids = musc.backbone.grids
        self.pool = MutualPool(c, grids, capacity=capacity, keep=keep, seed=c.seed, references=stages)
        self.known: dict[
            str, tuple[Features, float]
        ] = {}  # held images by name: their tokens, raw score when last seen

    def push(self, image: Sample | Path | str) -> Scored:
        """Score one image, perhaps keep it. Raises DataError (unreadable, or in the pool already); the pool stays.

        Where images have more than 8 bits and config.full_scale is not given, the first of them decides what white is.
        """
        sample = image if isinstance(image, Sample) else Sample(Path(image).as_posix(), Path(image))
        values = value_range([sample], self.values.full_scale)
        features = self.musc.features([sample], values)
        self.values = values
        twin = next((name for name, (f, _) in self.known.items() if f.keys == features.keys), None)
        if twin is not None:
            raise DataError(f"{sample.name} is in the pool already as {twin}: it would score itself, and look normal.")
        if self.references:
            check_references(features, self.references)
        scores = self.pool.push(sample.name, [t[0].to(self.musc.device) for t in features.patch_tokens])
        map_ = None if scores is None else self._map(scores)
        raw = math.nan if map_ is None else float(map_.max())
        self.known[sample.name] = (features, raw)
        score = self._rescored(sample.name, raw)
        names = {image.name for image in self.pool.held.values()}
        self.known = {name: kept for name, kept in self.known.items() if name in names}
        return Scored(sample.name, raw, score, map_)

    def result(self) -> MuScResult:
        """Scores of every image held, each by all the others held, as `MuSc.run` on just those would give them."""
        scores = self.pool.scores()
        parts = [self.known[name][0] for name in scores]
        features = _stack(parts)
        maps = torch.stack([self._map(stages) for stages in scores.values()])
        for name, drawn in zip(scores, maps, strict=True):
            self.known[name] = (self.known[name][0], float(drawn.max()))
        category = Category("stream", "pool", features.samples)
        note = f"{len(features)} of {self.pool.seen} images of the stream are held"
        pool = Category("stream", "references", self.references.samples) if self.references else None
        return self.musc.assemble(category, features, maps, pool, self.references, values=self.values, notes=[note])

    def _map(self, scores: Sequence[Tensor]) -> Tensor:
        size = self.musc.config.map_size or self.musc.backbone.image_size
        maps = [upsample(s[None].cpu(), grid, size)[0] for s, grid in zip(scores, self.pool.grids, strict=True)]
        return torch.stack(maps).mean(dim=0)

    def _rescored(self, name: str, raw: float) -> float:
        """RsCIN among the images held and this one, with the raw scores that were last computed of each."""
        scored = {n: (f, r) for n, (f, r) in self.known.items() if not math.isnan(r)}
        if name not in scored:
            return math.nan
        tokens = [f.class_tokens for f, _ in scored.values()]
        both = None if any(t is None for t in tokens) else torch.cat([t for t in tokens if t is not None])
        final, _ = self.musc.rescored(torch.tensor([r for _, r in scored.values()]), both)
        return float(final[list(scored).index(name)])


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
    place = Path(cache) if cache else Path(earlier.cache) if earlier.cache else None
    plus = earlier.config.references == 0  # MuSc+: its pool are the references alone
    names = [] if plus else list(earlier.paths)
    keys = [*([] if plus else earlier.keys), *earlier.reference_keys]
    names += [f"reference {j}" for j in range(len(earlier.reference_keys))]
    warned = earlier.config.consistency == "warn"  # which changes no score
    config = earlier.config.replace(consistency="off") if warned else earlier.config
    config = _streamable(config.replace(subsets=1, references=0, device=device))
    musc = MuSc(config, cache=place, progress=progress)
    if musc.backbone.weights_id != earlier.weights:
        raise ConfigError(
            f"the result was made with the weights {earlier.weights}, and here {config.backbone} has "
            f"{musc.backbone.weights_id}: use the same weights, or run the earlier images again."
        )
    pool = _pool(earlier, keys, names, musc)
    category = as_category(images)
    if not category.samples:
        raise DataError(category.skipped[0].reason if category.skipped else f"{category.name} holds no images.")
    values = musc.value_range(*category.samples)  # by the earlier result's full_scale, where it has one
    features = _new_ones(musc.features(category.samples, values), pool)
    maps = musc.anomaly_maps(features, pool)

    def rescore(raw: Tensor, class_tokens: Tensor | None) -> tuple[Tensor, list[str]]:
        scores, notes = torch.empty_like(raw), list[str]()
        for i in range(len(raw)):
            joint = torch.cat([torch.from_numpy(earlier.raw_image_scores), raw[i : i + 1]])
            tokens = None
            if class_tokens is not None and earlier.class_tokens is not None:
                tokens = torch.cat([torch.from_numpy(earlier.class_tokens), class_tokens[i : i + 1].float()])
            final, notes = musc.rescored(joint, tokens)
            scores[i] = final[-1]
        return scores, notes

    note = f"scored against {len(pool)} images of {earlier.dataset} {earlier.category}."
    result = musc.assemble(category, features, maps, None, pool, rescore=rescore, values=values, notes=[note])
    result.category = f"{category.name}_against_{earlier.category}"
    result.threshold = earlier.threshold
    result.fingerprint = hashlib.blake2b("".join([result.fingerprint, *pool.keys]).encode(), digest_size=16).hexdigest()
    return result


def _pool(earlier: MuScResult, keys: list[str], names: list[str], musc: MuSc) -> Features:
    """The tokens of the earlier result's pool: from the cache, or from its images where these are what they were."""
    half = musc.config.backbone_precision == "float16"
    try:
        if musc.cache is None:
            raise DataError(f"the result of {earlier.category} was made without a cache of tokens.")
        return stored(keys, names, musc.backbone, musc.cache, half)
    except DataError as error:
        files = [Path(earlier.root, name) for name in names]
        if not earlier.root or not all(file.is_file() for file in files):
            said = f"{error} Its images are not where they were either: give --cache, or run them again with --force."
            raise DataError(said) from error
        found = musc.features([Sample(name, file) for name, file in zip(names, files, strict=True)])
        if list(found.keys) != keys:
            changed = next(n for n, k in zip(names, keys, strict=True) if k not in found.keys)
            raise DataError(f"{changed} has changed since {earlier.category} was scored: run that again.") from error
        return found


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
    first = parts[0]
    tokens = [p.class_tokens for p in parts]
    return Features(
        [torch.cat(stage) for stage in zip(*(p.patch_tokens for p in parts), strict=True)],
        None if first.class_tokens is None else torch.cat([t for t in tokens if t is not None]),
        first.grids,
        tuple(p.samples[0] for p in parts),
        keys=tuple(p.keys[0] for p in parts),
    )


def _streamable(config: MuScConfig) -> MuScConfig:
    """`config`, checked. Raises ConfigError on settings that need the whole batch at once."""
    if config.subsets > 1 or config.tiles > 1 or config.consistency != "off":
        raise ConfigError(
            f"subsets = {config.subsets}, tiles = {config.tiles}, consistency = {config.consistency!r}: they need all "
            'images at once. New images and streams want 1, 1 and "off".'
        )
    return config
