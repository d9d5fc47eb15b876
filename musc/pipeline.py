"""MuSc from images to scores: the one module that wires the stages together."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from musc import msm
from musc.backbones import AUTO, Backbone, choose_backbone, load_backbone, resolve_device, resolve_devices
from musc.backbones.quantized import in_int8
from musc.config import MuScConfig
from musc.datasets import Images, as_category
from musc.datasets.base import Category, Sample
from musc.datasets.copies import copies, copies_note
from musc.datasets.images import content_key, frames_note
from musc.datasets.proportions import input_size
from musc.datasets.values import ValueRange, value_range
from musc.distributed import check_shared, devices
from musc.distributed.cluster import Cluster
from musc.engines import memory
from musc.errors import ConfigError, DataError
from musc.features import Features, check_references, extract, only_read
from musc.methods import registry
from musc.methods.base import image_scores, method_maps
from musc.results import MuScResult, environment
from musc.results.evaluation import evaluate, read_truth
from musc.scoring import roi, tiles
from musc.scoring.aggregation import SalientTokens
from musc.scoring.maps import Scorer, anomaly_maps, patch_scores, rescored
from musc.sizes import Size, scaled, short_side
from musc.sources import numerical_version

Rescore = Callable[[Tensor, Tensor | None], tuple[Tensor, list[str]]]


class MuSc:
    """Scores the unlabeled images of one product by each other (Sec. 3).

    config: every setting; backbone: a network that is loaded already (None: the configuration's, loaded when it is
    first needed); cache: a folder for extracted tokens (None: extract afresh); progress: bars on a terminal; scheduler:
    "local:N", the address of a Dask scheduler, or a Cluster, whose workers then do the mutual scoring.

    Example:
        >>> from musc.datasets import load_category
        >>> musc = MuSc(MuScConfig(weights="random", image_size=64, workers=0, device="cpu"))
        >>> result = musc.run(load_category("synthetic", name="tile", good=2, defects=1))
        >>> sorted(result.metrics)
        ['image', 'image_before_rscin', 'pixel_clean', 'pixel_official']
    """

    def __init__(
        self,
        config: MuScConfig | None = None,
        *,
        backbone: Backbone | None = None,
        cache: Path | str | None = None,
        progress: bool = False,
        scheduler: str | Cluster | None = None,
    ) -> None:
        self.config = MuScConfig() if config is None else _checked(config)
        if self.config.backbone == AUTO:  # the result says which network it was, and so does its fingerprint
            name = backbone.spec.name if backbone is not None else choose_backbone(self.config.weights)
            self.config = self.config.replace(backbone=name)
        self.given = backbone
        self.cache = Path(cache) if cache else None
        self.progress = progress
        self.device = resolve_device(self.config.device)
        self.scheduler = scheduler

    @property
    def elsewhere(self) -> bool:
        """Whether mutual scoring is done by several devices or by a cluster, which take tokens on the CPU."""
        return self.scheduler is not None or "," in self.config.device

    @cached_property
    def scorer(self) -> Scorer:
        """`msm.scores`, or what does the same by several devices or by a cluster, which is connected here.

        Raises ConfigError, ClusterError where that cannot work, before any work.
        """
        if self.elsewhere:
            check_shared(self.config)
        if isinstance(self.scheduler, str):  # kept, so that `close` finds it
            self.scheduler = Cluster(self.scheduler, cache=self.cache, device=self.config.device)
        if self.scheduler is not None:
            return self.scheduler.mutual_scores
        if self.elsewhere:
            return partial(devices.mutual_scores, devices=resolve_devices(self.config.device))
        return msm.scores

    def close(self) -> None:
        """Leaves the cluster, if there is one; workers that were started for it end."""
        if isinstance(self.scheduler, Cluster):
            self.scheduler.close()

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen network of the configuration, on its device; with "short:448" for squares, until `fitted`."""
        c = self.config
        size = short_side(c.image_size) if isinstance(c.image_size, str) else c.image_size
        found = self.given or load_backbone(
            c.backbone, weights=c.weights, image_size=size, stages=c.stages, device=self.device
        )
        return in_int8(found) if c.backbone_precision == "int8" else found

    @property
    def map_size(self) -> Size:
        """Side, or (rows, columns), in pixels of the anomaly maps."""
        c, size = self.config, self.backbone.image_size
        if c.map_size:
            return scaled(c.map_size, like=size)
        return tiles.map_size(size, c.tiles, c.tile_overlap) if c.tiles > 1 else size

    def fitted(self, samples: Sequence[Sample]) -> tuple[MuSc, list[str]]:
        """This pipeline, or for "short:448" one of the size that these images ask for; notes on other proportions."""
        config, notes = self._sized(samples)
        if config is self.config:
            return self, []
        size = config.image_size
        assert isinstance(size, int | tuple)
        return MuSc(
            config, backbone=self.backbone.resized(size), cache=self.cache, progress=self.progress,
            scheduler=self.scheduler,
        ), notes  # fmt: skip

    def _sized(self, samples: Sequence[Sample]) -> tuple[MuScConfig, list[str]]:
        if (side := short_side(self.config.image_size)) is None:
            return self.config, []
        size, notes = input_size(samples, side, self.backbone.spec.patch_size)
        return self.config.replace(image_size=size), notes

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
        registry.check(self.config, references is not None)
        if self.elsewhere:
            _ = self.scorer  # what cannot work is said before the work
        category, pool = as_category(images), as_category(references) if references is not None else None
        for given, what in ((category, "images"), (pool, "reference images")):
            if given is not None and not given.samples:
                where = f" in {given.name}" if given.name else ""
                raise DataError(given.skipped[0].reason if given.skipped else f"there are no {what}{where}.")
        musc, squashed = self.fitted(category.samples)
        if musc is not self:
            result = musc.run(category, pool)
            result.notes = (*squashed, *result.notes)
            return result
        timings: dict[str, float] = {}
        with _timed(timings, "extraction"):
            values = self.value_range(*category.samples, *(pool or ()))
            masks = self.masks(*category.samples, *(pool or ()))
            features = self.with_region(self.features(category.samples, values), masks)
            reference_features = self.with_region(self.features(pool.samples, values), masks) if pool else None
        if self.config.mutual and len(features) + (len(reference_features) if reference_features else 0) < 2:
            raise DataError(
                "one image alone cannot be scored: MuSc compares images of one product with each other. "
                "Add more images of it (from about ten on the scores mean something), or give normal reference images."
            )
        every = [features, *([reference_features] if reference_features else [])]
        images_read = [s for f in every for s in f.samples]
        summaries = [summary for f in every if (summary := f.summary()) is not None]
        keys = [k for f in every for k in f.keys]
        found = copies(images_read, keys, torch.cat(summaries) if summaries else None)
        paged = frames_note([*category.samples, *(pool or ())])
        copied = copies_note(images_read, found)
        notes = [*values.notes, *paged, *copied, *roi.notes(self.config.roi, features)]
        own: Tensor | None = None
        with _timed(timings, "mutual scoring" if self.config.mutual else self.config.method):
            if self.config.mutual:
                maps, tokens = self.maps_and_tokens(features, reference_features, notes)
            else:
                method = registry.build(self.config, self.backbone, category.name)
                scores = method.score(features, reference_features)
                maps, tokens = method_maps(method, scores, self.map_size), None
                own = image_scores(scores, maps)
        if reference_features:
            how = "alone" if self.config.references == 0 else "too"
            notes.append(f"{len(reference_features)} reference images scored {how}.")
        return self.assemble(
            category, features, maps, pool, reference_features,
            image_tokens=tokens, own_scores=own, values=values, notes=notes, timings=timings,
        )  # fmt: skip

    def assemble(
        self,
        category: Category,
        features: Features,
        maps: Float[Tensor, "N H W"],
        pool: Category | None = None,
        references: Features | None = None,
        *,
        image_tokens: Float[Tensor, "N D"] | None = None,
        own_scores: Float[Tensor, "N"] | None = None,
        rescore: Rescore | None = None,
        values: ValueRange | None = None,
        notes: Sequence[str] = (),
        timings: dict[str, float] | None = None,
    ) -> MuScResult:
        """The result that anomaly maps make: image scores, RsCIN (or `rescore` in its place), metrics, where from.

        pool, references: the reference images, if any, as a category and as tokens. image_tokens: what re-scoring
        compares (None: the class tokens). own_scores: image scores of another method, which are not re-scored. values:
        how those of more than 8 bits were read.
        """
        notes, timings = [*notes, *(f"{note.name}: {note.reason}" for note in category.notes)], timings or {}
        tokens = features.class_tokens if image_tokens is None else image_tokens
        # c_i = max of the map: [N]
        scores = raw_scores = maps.flatten(1).amax(dim=1) if own_scores is None else own_scores
        if own_scores is None:
            with _timed(timings, "re-scoring"):
                scores, said = (rescore or self.rescored)(raw_scores, tokens)
                notes += said
        with _timed(timings, "metrics"):
            truth = read_truth(category.dataset, features.samples, (maps.shape[1], maps.shape[2]))
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
            class_tokens=None if tokens is None else tokens.float().cpu().numpy(),
            labels=np.array([s.label for s in features.samples], dtype=np.int64) if known else None,
            defects=tuple(s.defect for s in features.samples),
            config=self.config.replace(full_scale=values.full_scale) if values else self.config,
            metrics=measured,
            weights=self.backbone.weights_id,
            environment=environment(self.device),
            timings={name: round(seconds, 4) for name, seconds in timings.items()},
            notes=tuple(notes),
            skipped=(*category.skipped, *features.skipped, *(references.skipped if references else ())),
            fingerprint=self.fingerprint(category, pool),
            keys=features.keys,
            reference_keys=references.keys if references else (),
            cache=str(self.cache.absolute()) if self.cache and features.patch_tokens else "",
            root=os.path.abspath(category.root) if category.root else "",
            region=None if features.region is None else features.region.numpy(),
        )

    def value_range(self, *samples: Sample) -> ValueRange:
        """What white is in those images that have more than 8 bits per channel, one for all of them."""
        return value_range(samples, self.config.full_scale, self.config.workers)

    def features(self, samples: Sequence[Sample], values: ValueRange | None = None) -> Features:
        """The tokens of `samples`, from the cache where they are there; values: decided for more than these images.

        WinCLIP runs windows of the images through the network itself: of them the images are read, and no more."""
        c, free = self.config, memory.free_bytes(torch.device("cpu"))
        samples = (values or self.value_range(*samples)).applied(samples)
        if c.method == "winclip":
            return only_read(samples, c.workers)
        return extract(
            samples,
            self.backbone,
            cache=self.cache,
            batch_size=c.batch_size,
            workers=c.workers,
            processes=c.decoding == "processes",
            half=c.backbone_precision == "float16",
            max_bytes=None if free is None else int(memory.SHARE * free),
            progress=self.progress,
        )

    def masks(self, *samples: Sample) -> dict[str, Tensor]:
        """The region of interest of each image, by name, where config.roi names files (`scoring.roi.read_masks`)."""
        given = self.config.roi
        return {} if given is None or given == roi.AUTO else roi.read_masks(given, samples, self.map_size)

    def with_region(self, features: Features, masks: Mapping[str, Tensor]) -> Features:
        """`features` with the region of interest that config.roi asks for; masks: from `masks`."""
        return roi.with_region(features, self.config, self.map_size, masks)

    def anomaly_maps(
        self, features: Features, references: Features | None = None, notes: list[str] | None = None
    ) -> Float[Tensor, "N H W"]:
        """Patch-level anomaly scores (Eq. 3) on the patch grid, upsampled to map_size (bilinear, corners aligned).

        With tiles the maps are those of `scoring.tiles.anomaly_maps`. notes receives warnings of consistent defects.
        Raises ConfigError where references and settings do not go together.
        """
        return self.maps_and_tokens(features, references, notes)[0]

    def maps_and_tokens(
        self, features: Features, references: Features | None = None, notes: list[str] | None = None
    ) -> tuple[Float[Tensor, "N H W"], Float[Tensor, "N D"] | None]:
        """`anomaly_maps`, and the token of each image that re-scoring compares: the class token, or with rescoring =
        "rscon" that of its most anomalous patch (`scoring.aggregation.SalientTokens`)."""
        self.config.check_mutual("maps of mutual scoring")
        if references:
            check_references(features, references)
        elif self.config.references == 0:
            raise ConfigError("references = 0 lets reference images score alone, and none are given: give some.")
        score = partial(
            patch_scores, config=self.config, device=torch.device("cpu") if self.elsewhere else self.device,
            notes=notes, progress=self.progress, scorer=self.scorer,
        )  # fmt: skip
        salient = SalientTokens(self.config) if self.config.rescoring == "rscon" else None
        if self.config.tiles > 1:
            maps = tiles.anomaly_maps(
                features, references, self.config, size=self.map_size, device=self.device,
                extract=self.features, score=score, salient=salient, notes=notes,
            )  # fmt: skip
        else:
            scores = score(features, references)
            maps = roi.blanked(anomaly_maps(roi.continued(scores, features), self.map_size), features)
            if salient:
                salient.add(features, scores)
        return maps, salient.tokens if salient else features.class_tokens

    def rescored(
        self, raw_scores: Float[Tensor, "N"], class_tokens: Float[Tensor, "N D"] | None
    ) -> tuple[Float[Tensor, "N"], list[str]]:
        """Image scores after RsCIN (Eq. 5) with the configured windows, and a note wherever it could not be done."""
        return rescored(raw_scores, class_tokens, self.config.windows)

    def fingerprint(self, category: Category, references: Category | None = None) -> str:
        """Digest of all that a result depends on: our code, settings, the kind of device, weights, and the images'
        names, labels and contents."""

        def key(sample: Sample) -> list[Any]:
            sources = [s for s in (sample.image, sample.mask) if s is not None]
            contents = []
            for source in sources:
                try:
                    contents.append(content_key(source))
                except DataError as error:
                    contents.append(str(error))
            return [sample.name, sample.label, sample.defect, *contents]

        settings = self._sized(category.samples)[0].to_dict()
        # these change no result, or say where something lies
        for name in ("weights", "device", "batch_size", "workers", "decoding", "block", "max_memory", "roi"):
            settings.pop(name)
        what: list[Any] = [numerical_version(), self.device.type, settings, self.backbone.weights_id]
        what.append([key(s) for s in category.samples])
        if references is not None:
            what.append([key(s) for s in references.samples])
        what += roi.contents(self.config.roi, [*category.samples, *(references or ())])
        return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()


def score_folder(folder: Path | str, config: MuScConfig | None = None, **settings: Any) -> MuScResult:
    """Score every image of a folder by the others: `MuSc(config).run(folder)` in one call.

    folder: images of one product, flat or in the MVTec AD layout of one category. config: without one, the backbone is
    the best whose weights are on this machine ("auto"; the result's config has its name). settings: fields of
    MuScConfig that replace those of `config`. Raises what `MuSc.run` raises.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for n in range(3):
        ...     Image.new("RGB", (64, 64), (0, 0, 50 * n)).save(folder / f"{n}.png")
        >>> result = score_folder(folder, weights="random", image_size=64, workers=0, device="cpu")
        >>> result.paths, result.anomaly_maps.shape
        (('0.png', '1.png', '2.png'), (3, 64, 64))
    """
    config = (MuScConfig(backbone=AUTO) if config is None else _checked(config)).replace(**settings)
    return MuSc(config).run(folder)


def _checked(config: Any) -> MuScConfig:
    if not isinstance(config, MuScConfig):
        raise ConfigError(f"config is a {type(config).__name__}: give a MuScConfig, such as MuScConfig(seed=1).")
    return config


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - start
