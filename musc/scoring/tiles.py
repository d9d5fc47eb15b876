"""Large images in overlapping tiles, whose anomaly maps are stitched without seams.

Squashed to the network's input, a large image loses its small defects. Cut into T x T tiles, each of which fills the
input, it keeps them. A tile is compared with the tiles at the same place in the other images (every place is then a
product of its own, and alignment matters), or with all their tiles (T x T times the cost, and nothing need be aligned).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from musc import msm
from musc.config import MuScConfig
from musc.datasets.base import Sample, Source
from musc.datasets.images import content_key, read_image
from musc.errors import ConfigError
from musc.features import Features
from musc.scoring import consistency, roi
from musc.scoring.aggregation import SalientTokens
from musc.sizes import Size, rows_columns

Span = tuple[float, float]  # where a tile begins and ends along one axis, the image being (0, 1)


def spans(tiles: int, overlap: float) -> list[Span]:
    """The `tiles` equal spans that cover (0, 1), each sharing `overlap` of its length with the next.

    Example:
        >>> [(round(low, 3), round(high, 3)) for low, high in spans(2, overlap=0.25)]
        [(0.0, 0.571), (0.429, 1.0)]
    """
    length = 1 / (tiles - (tiles - 1) * overlap)
    return [(k * length * (1 - overlap), min(1.0, k * length * (1 - overlap) + length)) for k in range(tiles)]


def pixel_spans(tiles: int, overlap: float, size: int) -> list[tuple[int, int]]:
    """`spans` in whole pixels of an axis `size` long: [first, last) each.

    Example:
        >>> pixel_spans(2, overlap=0.25, size=700)
        [(0, 400), (300, 700)]
    """
    return [(round(low * size), round(high * size)) for low, high in spans(tiles, overlap)]


@dataclass(frozen=True)
class Tile:
    """One tile of a picture, cut out whenever it is called for; it is 1/length times finer than the whole."""

    source: Source
    across: Span
    down: Span

    @property
    def key(self) -> str:
        return f"{content_key(self.source)}/tile {self.across} {self.down}"

    def __call__(self) -> Image.Image:
        image = read_image(self.source)
        width, height = image.size
        left, right = (round(x * width) for x in self.across)
        top, bottom = (round(y * height) for y in self.down)
        return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def cut(sample: Sample, tiles: int, overlap: float) -> list[Sample]:
    """The tiles x tiles tiles of an image, row by row, as samples of their own (without masks).

    Example:
        >>> from musc.datasets import load_category
        >>> sample, *_ = load_category("synthetic", name="tile", good=1, defects=1)
        >>> [tile.name for tile in cut(sample, tiles=2, overlap=0.25)]
        ['test/chip/000.png#0', 'test/chip/000.png#1', 'test/chip/000.png#2', 'test/chip/000.png#3']
    """
    cuts = spans(tiles, overlap)
    places = [(down, across) for down in cuts for across in cuts]
    return [
        replace(sample, name=f"{sample.name}#{t}", image=Tile(sample.image, across, down), mask=None)
        for t, (down, across) in enumerate(places)
    ]


def ramps(places: Sequence[tuple[int, int]], size: int) -> Float[Tensor, "T size"]:
    """Weights of T overlapping pixel spans along one axis: smooth, zero outside the span, and of sum 1 at every pixel.

    Over the pixels that a span shares with its neighbour the weight falls as the cosine does; a pixel that three spans
    share is divided among them in proportion.

    Example:
        >>> weights = ramps([(0, 4), (2, 6)], size=6)
        >>> weights[0, 0].item(), weights[0, -1].item(), weights.sum(dim=0).allclose(torch.ones(6).double())
        (1.0, 0.0, True)
    """
    weights = torch.zeros(len(places), size, dtype=torch.float64)
    for k, (first, last) in enumerate(places):
        at = torch.arange(first, last, dtype=torch.float64) + 0.5
        rise, fall = torch.ones_like(at), torch.ones_like(at)
        if k and (shared := places[k - 1][1] - first) > 0:
            rise = ((at - first) / shared).clamp(max=1)
        if k + 1 < len(places) and (shared := last - places[k + 1][0]) > 0:
            fall = ((last - at) / shared).clamp(max=1)
        weights[k, first:last] = (0.5 - 0.5 * torch.cos(math.pi * rise)) * (0.5 - 0.5 * torch.cos(math.pi * fall))
    return weights / weights.sum(dim=0)


class Stitcher:
    """Adds tile maps up to whole maps [N, H, W] of `size` pixels, one tile position after the other."""

    def __init__(self, N: int, size: Size, tiles: int, overlap: float) -> None:
        rows, columns = rows_columns(size)
        self.down, self.across = (pixel_spans(tiles, overlap, side) for side in (rows, columns))
        self.tiles = tiles
        self.weights_down, self.weights_across = (
            ramps(places, side).float() for places, side in ((self.down, rows), (self.across, columns))
        )
        self.maps = torch.zeros(N, rows, columns)

    def shape(self, t: int) -> tuple[int, int]:
        """(rows, columns) in pixels of tile t, counted row by row."""
        (top, bottom), (left, right) = self.down[t // self.tiles], self.across[t % self.tiles]
        return bottom - top, right - left

    def add(self, t: int, tile_maps: Float[Tensor, "N h w"]) -> None:
        """Blend the maps of tile t in; they have `shape(t)`."""
        row, column = divmod(t, self.tiles)
        (top, bottom), (left, right) = self.down[row], self.across[column]
        weight = self.weights_down[row, top:bottom, None] * self.weights_across[column, None, left:right]
        self.maps[:, top:bottom, left:right] += weight * tile_maps


def map_size(size: Size, tiles: int, overlap: float) -> Size:
    """Size of a whole map on which every tile has `size` pixels.

    Example:
        >>> map_size(400, tiles=2, overlap=0.25), map_size((400, 800), tiles=2, overlap=0.25)
        (700, (700, 1400))
    """
    low, high = spans(tiles, overlap)[0]
    rows, columns = (round(side / (high - low)) for side in rows_columns(size))
    return rows if rows == columns else (rows, columns)


def anomaly_maps(
    features: Features,
    references: Features | None,
    config: MuScConfig,
    *,
    size: Size,
    device: torch.device,
    extract: Callable[[Sequence[Sample]], Features],
    score: Callable[[Features, Features | None], dict[tuple[int, int], Tensor]],
    salient: SalientTokens | None = None,
    notes: list[str] | None = None,
) -> Float[Tensor, "N H W"]:
    """Anomaly maps (Eq. 3) of the images of `features` by way of their tiles, stitched (`MuScConfig.tiles`).

    Only the samples of `features` and `references` are used: tiles are extracted here, and those of one position at a
    time are held with `tile_pool` = "position", all with "all". Patch scores stand at their patches' centres
    (the whole-image method's corner-aligned stretching would shift the same place differently in two tiles).

    size: of the maps in pixels. extract: samples to tokens. score: tokens of one tile position,
    and those of the references there, to patch scores by grid (`maps.patch_scores`). salient: takes in the scores of
    every tile. notes: receives warnings of consistent defects.
    """
    c, N = config, len(features)
    T = c.tiles**2
    stitcher = Stitcher(N, size, c.tiles, c.tile_overlap)
    cuts = [cut(s, c.tiles, c.tile_overlap) for s in features.samples]
    extra = [cut(s, c.tiles, c.tile_overlap) for s in references.samples] if references else []

    def extracted(rows: Sequence[list[Sample]], t: int) -> Features:
        found = extract([row[t] for row in rows])
        if found.skipped:  # the image was whole a moment ago
            raise ConfigError(f"{found.skipped[0].name} cannot be read any more: {found.skipped[0].reason}")
        return found

    def marked(tile: Features, t: int, of: Features) -> Features:
        if of.region is None:
            return tile
        down, across = (spans(c.tiles, c.tile_overlap)[k] for k in divmod(t, c.tiles))
        return replace(tile, region=roi.cut(of.region, across, down))

    joint = replace(features, region=roi.joined(features, references))
    every = [marked(extracted([*cuts, *extra], t), t, joint) for t in range(T)] if c.tile_pool == "all" else []
    roi.check_tiles(every)
    for t in range(T):
        tile = every[t].take(range(N)) if every else marked(extracted(cuts, t), t, features)
        if every:
            patch_scores = _scores_among_all(every, t, N, c, device, notes)
        else:
            normal = marked(extracted(extra, t), t, references) if references else None
            patch_scores = roi.scores_of_those_inside(score, tile, normal)
        if salient:
            salient.add(tile, patch_scores)
        for grid, scores in roi.continued(patch_scores, tile).items():
            H, W = grid
            whole = F.interpolate(scores.cpu().reshape(N, 1, H, W), stitcher.shape(t), mode="bilinear")[:, 0]
            stitcher.add(t, whole)
    return roi.blanked(stitcher.maps, features)


def _scores_among_all(
    every: Sequence[Features], t: int, N: int, config: MuScConfig, device: torch.device, notes: list[str] | None
) -> dict[tuple[int, int], Tensor]:
    """Eq. 1-3 of tile t of the N images, where an image's nearest patch may lie in any of its tiles, by grid."""
    c, tile = config, every[t]
    P = len(tile)
    others = ~torch.eye(P, dtype=torch.bool)[:N]  # [N, P]: an image does not score itself
    others[:, :N] &= c.references != 0  # references alone score
    total: dict[tuple[int, int], Tensor] = {}
    means = {grid: consistency.MeanDistances(tile.grids.count(grid)) for grid in tile.grids}
    for n, grid in enumerate(tile.grids):
        K = roi.most_inside(every, grid)  # M where there is no region
        own = roi.compared(tile.take(range(N)), [n], c, device, K)
        found: Tensor | None = None
        for other in every:
            parts = [
                msm.stage_distances(
                    mine, own.degrees, references=theirs, pool=0, grid=own.grid, precision=c.precision, block=c.block
                )
                for mine, theirs in zip(own.tokens, roi.compared(other, [n], c, device, K).tokens, strict=True)
            ]
            d = torch.cat(parts)  # [D, N, P, K]
            d[:, :, ~roi.inside(other, grid).any(dim=1)] = math.inf  # tiles that have no patch inside
            found = d if found is None else torch.minimum(found, d)
        assert found is not None
        scores = [msm.interval_average(found[:, i, others[i]], c.interval, c.reduction) for i in range(N)]
        share = torch.stack(scores).mean(dim=1) / len(tile.grids)  # [N, D, K] -> [N, K]
        if tile.region is not None:
            share = roi.placed(share, roi.inside(tile, grid)[:N], c)
        total[grid] = total.get(grid, 0) + share
        if c.consistency != "off":
            means[grid].add(torch.stack([found[:, i, others[i]] for i in range(N)], dim=1))
    for grid, mean in means.items() if c.consistency != "off" else ():
        weight = mean.stages / len(tile.grids)
        right, groups = mean.judged(total[grid] / weight, c.interval, c.reduction, c.consistency == "correct")
        total[grid] = weight * right
        if notes is not None:
            notes += consistency.describe(groups, [sample.name for sample in tile.samples[:N]])
    return total
