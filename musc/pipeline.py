"""MuSc from images to scores: the one module that wires the stages together."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from musc import consistency, msm, rscin, tiles
from musc.backbones import Backbone, load_backbone
from musc.config import MuScConfig
from musc.datasets import load_category
from musc.datasets.base import Category, Sample
from musc.errors import ConfigError, DataError
from musc.evaluation import evaluate, read_truth
from musc.features import Features, check_references, extract
from musc.results import MuScResult, environment
from musc.transforms import content_key

Rescore = Callable[[Tensor, Tensor | None], tuple[Tensor, list[str]]]
Images = Category | Path | str | Iterable[Path | str]


class MuSc:
    """Scores the unlabeled images of one product by each other (Sec. 3).

    config: every setting; cache: a folder for extracted tokens (None: extract afresh); progress: bars on a terminal.
    The backbone is loaded once and shared by all runs.
    """

    def __init__(
        self, config: MuScConfig | None = None, *, cache: Path | str | None = None, progress: bool = False
    ) -> None:
        self.config = config or MuScConfig()
        self.cache = Path(cache) if cache else None
        self.progress = progress
        self.device = resolve_device(self.config.device)

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen network of the configuration, on its device."""
        c = self.config
        return load_backbone(
            c.backbone, weights=c.weights, image_size=c.image_size, stages=c.stages, device=self.device
        )

    def run(self, images: Images, references: Images | None = None) -> MuScResult:
        """Score every image of `images` by the others; with `references`, normal images join the scoring pool.

        Args:
            images: a Category, a folder, or paths of images of one product: at least two, or one and references.
            references: normal images of the same product (App. A.6.1). They score, and are not scored themselves; with
                config.references = 0 they score alone (MuSc+ is `fewshot.plus`).

        Returns:
            MuScResult; metrics where the category has labels, pixel metrics where it has masks.

        Raises:
            DataError: no readable image, a single one without references, or an image given twice.
            ConfigError, WeightsError: a setting or the weights do not work.
        """
        category, pool = as_category(images), as_category(references) if references is not None else None
        for given, what in ((category, "images"), (pool, "reference images")):
            if given is not None and not given.samples:
                raise DataError(given.skipped[0].reason if given.skipped else f"{given.name} holds no {what}.")
        timings: dict[str, float] = {}
        with _timed(timings, "extraction"):
            features = self.features(category.samples)
            reference_features = self.features(pool.samples) if pool else None
        if len(features) + (len(reference_features) if reference_features else 0) < 2:
            raise DataError(
                "one image alone cannot be scored: MuSc compares images of one product with each other. "
                "Add more images of it (from about 5 on the scores mean something), or give normal reference images."
            )
        notes: list[str] = []
        with _timed(timings, "mutual scoring"):
            maps = self.anomaly_maps(features, reference_features, notes)
        if reference_features:
            how = "alone" if self.config.references == 0 else "too"
            notes.append(f"{len(reference_features)} reference images scored {how}.")
        return self.assemble(category, features, maps, pool, reference_features, notes=notes, timings=timings)

    def assemble(
        self,
        category: Category,
        features: Features,
        maps: Float[Tensor, "N H W"],
        pool: Category | None = None,
        references: Features | None = None,
        *,
        rescore: Rescore | None = None,
        notes: Sequence[str] = (),
        timings: dict[str, float] | None = None,
    ) -> MuScResult:
        """The result that anomaly maps make: image scores, RsCIN (or `rescore` in its place), metrics, where from.

        pool, references: the reference images, if any, as a category and as tokens.
        """
        notes, timings = [*notes, *(f"{note.name}: {note.reason}" for note in category.notes)], timings or {}
        raw_scores = maps.flatten(1).amax(dim=1)  # c_i = max of the map: [N]
        with _timed(timings, "re-scoring"):
            scores, said = (rescore or self.rescored)(raw_scores, features.class_tokens)
            notes += said
        with _timed(timings, "metrics"):
            truth = read_truth(category.dataset, features.samples, maps.shape[1])
            measured = evaluate(truth, scores, raw_scores, maps)
            notes += truth.notes
        known = all(s.label is not None for s in features.samples)
        return MuScResult(
            dataset=category.dataset,
            category=category.name,
            paths=tuple(s.name for s in features.samples),
            image_scores=scores.float().cpu().numpy(),
            raw_image_scores=raw_scores.float().cpu().numpy(),
            anomaly_maps=maps.float().cpu().numpy(),
            class_tokens=None if features.class_tokens is None else features.class_tokens.float().cpu().numpy(),
            labels=np.array([s.label for s in features.samples], dtype=np.int64) if known else None,
            defects=tuple(s.defect for s in features.samples),
            config=self.config,
            metrics=measured,
            weights=self.backbone.weights_id,
            environment=environment(self.device),
            timings={name: round(seconds, 4) for name, seconds in timings.items()},
            notes=tuple(notes),
            skipped=(*category.skipped, *features.skipped, *(references.skipped if references else ())),
            fingerprint=self.fingerprint(category, pool),
            keys=features.keys,
            reference_keys=references.keys if references else (),
            cache=str(self.cache.absolute()) if self.cache else "",
        )

    def features(self, samples: Sequence[Sample]) -> Features:
        """The tokens of `samples`, from the cache where they are there."""
        c = self.config
        return extract(
            samples,
            self.backbone,
            cache=self.cache,
            batch_size=c.batch_size,
            workers=c.workers,
            half=c.precision != "float32",
            progress=self.progress,
        )

    def anomaly_maps(
        self, features: Features, references: Features | None = None, notes: list[str] | None = None
    ) -> Float[Tensor, "N H W"]:
        """Patch-level anomaly scores (Eq. 3) on the patch grid, upsampled to map_size (bilinear, corners aligned).

        With subsets = s the images are split into s parts, stratified by defect where it is known, and each part is
        scored by itself (Sec. 4.2, Tab. 6-7). Stages of unequal grids (Swin) are upsampled before they are averaged.
        With tiles the maps are those of `tiles.anomaly_maps`. notes receives warnings of consistent defects.
        """
        if references:
            check_references(features, references)
        elif self.config.references == 0:
            raise ConfigError("references = 0 lets reference images score alone, and none are given: give some.")
        if self.config.tiles > 1:
            return tiles.anomaly_maps(self, features, references, notes)
        size = self.config.map_size or self.backbone.image_size
        maps = torch.zeros(len(features), size, size)
        for grid, scores in self.patch_scores(features, references, notes).items():
            maps += upsample(scores, grid, size)
        return maps

    def patch_scores(
        self, features: Features, references: Features | None = None, notes: list[str] | None = None
    ) -> dict[tuple[int, int], Float[Tensor, "N _"]]:
        """Eq. 3 before upsampling, by patch grid: one grid, except for Swin, whose scores then add up to Eq. 3's."""
        R = len(references) if references else 0
        total = {grid: torch.zeros(len(features), math.prod(grid)) for grid in dict.fromkeys(features.grids)}
        for rows in split_subsets([s.defect for s in features.samples], self.config.subsets, self.config.seed):
            if len(rows) + R < 2:
                raise ConfigError(
                    f"subsets = {self.config.subsets} leaves {len(rows)} of {len(features)} images in a part, and an "
                    "image needs another one to be scored: use fewer subsets."
                )
            for grid, scores in total.items():
                where = [n for n, g in enumerate(features.grids) if g == grid]
                share = len(where) / len(features.grids)
                found = self._mutual_scores(features, references, rows, where, grid, notes)
                scores[rows] = share * found.cpu().float()
        return total

    def _mutual_scores(
        self,
        features: Features,
        references: Features | None,
        rows: Tensor,
        where: list[int],
        grid: tuple[int, int],
        notes: list[str] | None,
    ) -> Float[Tensor, "n M"]:
        """Eq. 1-3 of the images `rows`, over the stages `where`, which share one grid."""
        c = self.config
        whole = len(rows) == len(features)
        chosen = [features.patch_tokens[n] if whole else features.patch_tokens[n][rows] for n in where]
        extra = [references.patch_tokens[n].to(self.device) for n in where] if references else None
        if c.consistency != "off":
            if references:
                raise ConfigError('consistency works without reference images: leave one of the two out ("off").')
            scores, groups = consistency.mutual_scores(
                [stage.to(self.device) for stage in chosen],
                c.degrees,
                c.interval,
                c.reduction,
                correct=c.consistency == "correct",
                grid=grid,
                precision=c.precision,
                block=c.block,
                position_window=c.position_window,
                progress=self.progress,
            )
            if notes is not None:
                notes += consistency.describe(groups, [features.samples[i].name for i in rows.tolist()])
            return scores
        return msm.mutual_scores(
            [stage.to(self.device) for stage in chosen],
            c.degrees,
            c.interval,
            c.reduction,
            references=extra,
            pool=c.references,
            seed=c.seed,
            grid=grid,
            precision=c.precision,
            block=c.block,
            position_window=c.position_window,
            progress=self.progress,
        )

    def rescored(
        self, raw_scores: Float[Tensor, "N"], class_tokens: Float[Tensor, "N D"] | None
    ) -> tuple[Float[Tensor, "N"], list[str]]:
        """Image scores after RsCIN (Eq. 5), and a note wherever it could not be done as configured."""
        N = len(raw_scores)
        if class_tokens is None:
            return rscin.minmax(raw_scores), ["RsCIN skipped: this backbone has no class token."]
        wide = [k for k in self.config.windows if k != math.inf and k > N]
        windows = [min(k, N) if k != math.inf else k for k in self.config.windows]
        notes = [f"RsCIN windows {wide} are larger than the {N} images: all {N} were used there."] if wide else []
        try:
            return rscin.rescore(raw_scores, class_tokens.to(raw_scores.device, raw_scores.dtype), windows), notes
        except ValueError as error:  # tokens of an odd network: the scores themselves still stand
            return rscin.minmax(raw_scores), [f"RsCIN skipped: {error}"]

    def fingerprint(self, category: Category, references: Category | None = None) -> str:
        """Digest of all that a result depends on: settings, weights, names, labels and contents of the images."""

        def key(sample: Sample) -> list[Any]:
            sources = [s for s in (sample.image, sample.mask) if s is not None]
            contents = []
            for source in sources:
                try:
                    contents.append(content_key(source))
                except DataError as error:
                    contents.append(str(error))
            return [sample.name, sample.label, sample.defect, *contents]

        settings = self.config.to_dict()
        for name in ("weights", "device", "batch_size", "workers", "block"):  # change no result
            settings.pop(name)
        what = [settings, self.backbone.weights_id, [key(s) for s in category.samples]]
        if references is not None:
            what.append([key(s) for s in references.samples])
        return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()


def score_folder(folder: Path | str, config: MuScConfig | None = None, **settings: Any) -> MuScResult:
    """Score every image of a folder by the others: `MuSc(config).run(folder)` in one call.

    folder: images of one product, flat or in the MVTec AD layout of one category. settings: fields of MuScConfig that
    replace those of `config`. Raises what `MuSc.run` raises.
    """
    config = (config or MuScConfig()).replace(**settings)
    return MuSc(config).run(folder)


def as_category(images: Images) -> Category:
    """A Category as it is; a folder, listed by its layout; or paths, taken as unlabeled images in the given order."""
    if isinstance(images, Category):
        return images
    if isinstance(images, str | Path):
        return load_category(None, Path(images))
    paths = [Path(p) for p in images]
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise DataError(f"{twice[0]} is given {paths.count(twice[0])} times: name every image once.")
    return Category("paths", "", tuple(Sample(p.as_posix(), p) for p in paths))


def resolve_device(name: str) -> torch.device:
    """The device that `name` means: "auto" is the GPU where there is one. Raises ConfigError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device = {name!r} cannot be used here ({str(error).splitlines()[0]}): try auto or cpu."
        ) from error
    return device


def split_subsets(defects: Sequence[str], subsets: int, seed: int) -> list[Tensor]:
    """Rows of each of `subsets` parts of equal size, stratified by defect with a seeded shuffle (Tab. 6, 7, 13)."""
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


def upsample(scores: Float[Tensor, "N M"], grid: tuple[int, int], size: int) -> Float[Tensor, "N size size"]:
    """Patch scores [N, M] on their grid as anomaly maps [N, size, size]: bilinear, corners aligned.

    Corners aligned is the released code's choice; the paper says only "upsample". No pixel exceeds the largest patch.
    """
    N, _ = scores.shape
    maps = F.interpolate(scores.reshape(N, 1, *grid), (size, size), mode="bilinear", align_corners=True)
    return maps[:, 0]


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - start
