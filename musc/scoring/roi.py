"""Region of interest: patches outside of it neither score nor are scored, and the anomaly map is 0 there.

A region is kept at the size of the anomaly maps ([N, H, W], or [1, H, W] for all images: `Features.region`). A patch
belongs to it where at least half of its area does. Tokens are aggregated with all of their neighbours (Sec. 3.1), as
the network itself sees the whole picture; then the patches outside are left out, on both sides of Eq. 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from musc import lnamd, snamd
from musc.config import MuScConfig
from musc.datasets.base import Sample
from musc.datasets.decode import content_key, describe
from musc.datasets.images import image_size, read_mask
from musc.datasets.listing import entries
from musc.errors import ConfigError, DataError
from musc.features import Features
from musc.scoring.aggregation import prepared
from musc.scoring.foreground import foregrounds
from musc.sizes import Size, rows_columns

AUTO = "auto"
SHARE = 0.5  # of a patch's area that must lie in the region
PROPORTIONS = 0.02  # by so much a mask's may differ from its image's
SHRINK = math.sqrt(0.7)  # of the distances inside where patches outside are put far away (`compared`)


def mask_files(roi: str, samples: Sequence[Sample]) -> dict[str, Path]:
    """The file that holds the region of each image, by its name: `roi` itself, or one of the folder `roi`.

    In a folder a mask has its image's relative path, with any suffix, or its bare name. Raises ConfigError where there
    is no such file or folder, or an image has no mask in it, DataError where it may not be listed.
    """
    place = Path(roi)
    if place.is_file():
        return dict.fromkeys((s.name for s in samples), place)
    if not place.is_dir():
        raise ConfigError(f'roi = {roi}: there is no such file or folder; name a mask, a folder of masks, or "auto".')
    entries(place)  # says so where it may not be listed
    files = sorted(p for p in place.rglob("*") if p.is_file() and not p.name.startswith("."))
    by_path = {p.relative_to(place).with_suffix("").as_posix(): p for p in files}
    bare = [p.stem.removesuffix("_mask") for p in files]
    by_name = {name: p for name, p in zip(bare, files, strict=True) if bare.count(name) == 1}
    found = {}
    for sample in samples:
        path = Path(sample.name).with_suffix("").as_posix()
        if (mask := by_path.get(path) or by_name.get(Path(path).name)) is None:
            raise ConfigError(f"roi = {roi}: no mask for {sample.name}; put {path}.png there, white where it counts.")
        found[sample.name] = mask
    return found


def contents(roi: str | None, samples: Sequence[Sample]) -> list[str]:
    """Digests of the masks of these images: what a result depends on."""
    if roi is None or roi == AUTO:
        return [roi] if roi else []
    try:
        files = mask_files(roi, samples)
        keys = {path: content_key(path) for path in set(files.values())}
    except (ConfigError, DataError) as error:  # said when they are read
        return [str(error)]
    return [keys[path] for path in files.values()]


def read_masks(roi: str, samples: Sequence[Sample], size: Size) -> dict[str, Tensor]:
    """The region of each image at `size` pixels, True inside, by name; images that share a file share a tensor.

    A mask is white where it counts, and may be of another size than its image, but not of other proportions. Raises
    DataError where one is unreadable, has other proportions than its image, or is black all over.
    """
    found: dict[Path, Tensor] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    files = mask_files(roi, samples)
    for sample in samples:
        path = files[sample.name]
        if path not in found:
            grey = read_mask(path)
            sizes[path] = grey.shape[1], grey.shape[0]
            if not (grey > 127).any():
                raise DataError(f"the region {describe(path)} is black all over: paint white what is to be scored.")
            found[path] = torch.from_numpy(_resized(grey > 127, size) >= SHARE)
        try:
            width, height = image_size(sample.image)
        except DataError:  # said when it is extracted
            continue
        w, h = sizes[path]
        if abs(w * height / (h * width) - 1) > PROPORTIONS:
            raise DataError(
                f"the region {describe(path)} is {w} x {h} pixels and {sample.name} {width} x {height}: draw it on an "
                "image of these proportions."
            )
    return {sample.name: found[files[sample.name]] for sample in samples}


def _resized(mask: NDArray[np.bool_], size: Size) -> NDArray[np.float32]:
    """Share of each pixel of `size` that lies in the mask: of a finer mask the mean, of a coarser one its pixel."""
    picture = Image.fromarray(mask.astype(np.float32))
    return np.asarray(picture.resize(rows_columns(size)[::-1], Image.Resampling.BOX))


def with_region(features: Features, config: MuScConfig, size: Size, masks: Mapping[str, Tensor]) -> Features:
    """`features` with the region that `config.roi` names, at `size` pixels; as they are without one.

    masks: from `read_masks`, unless it is "auto". Raises DataError where an image has no patch inside.
    """
    if config.roi is None:
        return features
    if config.roi == AUTO:
        region = foregrounds(features, size)
    else:
        each = [masks[s.name] for s in features.samples]
        region = each[0][None] if all(m is each[0] for m in each) else torch.stack(each)
    return marked(features, region)


def marked(features: Features, region: Bool[Tensor, "n H W"]) -> Features:
    """`features` with a region. Raises DataError where a stage of an image has no patch inside."""
    out = replace(features, region=region)
    for grid in dict.fromkeys(features.grids):
        empty = (~inside(out, grid).any(dim=1)).nonzero()[:, 0].tolist()
        if empty:
            raise DataError(
                f"{features.samples[empty[0]].name}: no patch of the {grid[0]} x {grid[1]} lies at least half in its "
                "region. Draw a larger one, or take a larger image_size."
            )
    return out


def notes(roi: str | None, features: Features) -> list[str]:
    """How much lies inside; and, of "auto", the images whose background was not found."""
    if roi is None or features.region is None:
        return []
    share = float(features.region.float().mean())
    said = [f"region of interest ({roi}): {100 * share:.0f} % of the pixels are inside; maps are 0 outside."]
    if roi == AUTO:
        whole = [s.name for s, r in zip(features.samples, features.region, strict=True) if bool(r.all())]
        if whole:
            named = ", ".join(whole[:5]) + (", ..." if len(whole) > 5 else "")
            said.append(f"roi = auto found no background in {len(whole)} of {len(features)} images ({named}).")
    return said


def inside(features: Features, grid: tuple[int, int]) -> Bool[Tensor, "N M"]:
    """Which patches of a grid lie in the region: those of which at least half do; all where there is none."""
    N = len(features)
    if features.region is None:
        return torch.ones(N, grid[0] * grid[1], dtype=torch.bool)
    rows = [torch.from_numpy(_resized(r.numpy(), grid) >= SHARE).flatten() for r in features.region]
    return torch.stack(rows).expand(N, -1)


@dataclass(frozen=True)
class Compared:
    """What mutual scoring compares of some images: tensors of tokens [N, K, c], their degrees, and the grid of K."""

    tokens: list[Tensor]
    degrees: tuple[int, ...]
    grid: tuple[int, int]


def compared(features: Features, stages: Sequence[int], config: MuScConfig, device: torch.device, K: int) -> Compared:
    """What mutual scoring compares of `stages`, which share one grid.

    Without a region all patches; with one, at degree 1, tokens that are aggregated already, per stage and degree: of
    the K patches inside (`kept`), or, with a position window, of all patches at their places (`far_outside`).

    Raises ConfigError where a position window meets regions of several images' own: there may be no patch inside near
    a place.
    """
    grid = features.grids[stages[0]]
    if features.region is None:
        found = [prepared(features.patch_tokens[n].to(device), config, grid) for n in stages]
        return Compared([tokens for tokens, _ in found], found[0][1], grid)
    if config.position_window == math.inf:
        return Compared([t for n in stages for t in kept(features, n, config, device, K)], (1,), (1, K))
    if len(features.region) > 1:
        raise ConfigError(
            f"roi = {config.roi}: a position_window compares near the same place, which must lie inside for every "
            "image: give one mask for all images, or leave position_window at inf."
        )
    outside = ~inside(features, grid).to(device)
    tokens = [far_outside(unit, outside) for n in stages for unit in _aggregated(features, n, config, device)]
    return Compared(tokens, (1,), grid)


def far_outside(unit: Float[Tensor, "N M C"], outside: Bool[Tensor, "N M"]) -> Float[Tensor, "N M c"]:
    """Unit tokens for mutual scoring at degree 1: distances inside are SHRINK times what they were, and every patch
    outside is farther from every one inside than those are from each other.

    With one more channel, a patch inside is (a u, b), one outside (0, -1): cosines inside are b^2 - a^2 = -0.4 at the
    least, and -b = -0.55 to the outside.

    Example:
        >>> from musc import lnamd
        >>> unit = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]])  # two that are opposite, as far as can be
        >>> tokens = lnamd.aggregate(far_outside(unit, torch.tensor([[False, False, True]])), 1, grid=(1, 3))
        >>> (torch.cdist(tokens, tokens)[0, 0] / SHRINK).round(decimals=2)  # the last one is outside
        tensor([0.0000, 2.0000, 2.1000])
    """
    wide = F.pad(SHRINK * unit, (0, 1), value=math.sqrt(1 - SHRINK**2))
    away = wide.new_zeros(wide.shape[-1])
    away[-1] = -1
    return snamd.as_raw(torch.where(outside[..., None], away, wide))


def muted(features: Features, stage: int) -> Float[Tensor, "N M C"]:
    """Raw tokens where every patch outside has the mean of its image's patches inside: what tells images apart by
    them sees nothing of the outside."""
    tokens = features.patch_tokens[stage].float()
    if features.region is None:
        return tokens
    weight = inside(features, features.grids[stage]).to(tokens)[..., None]  # [N, M, 1]
    mean = (weight * tokens).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
    return torch.where(weight > 0, tokens, mean)


def kept(
    features: Features, stage: int, config: MuScConfig, device: torch.device, K: int
) -> list[Float[Tensor, "N K c"]]:
    """The aggregated tokens of a stage's patches inside, for mutual scoring at degree 1: one tensor per degree.

    [N, K, C + 1] each. An image with fewer than K patches inside repeats its first one, which changes no nearest
    distance. With SNAMD there is one tensor for all degrees.
    """
    index = places(inside(features, features.grids[stage]), K).to(device)[..., None]  # [N, K, 1]
    every = _aggregated(features, stage, config, device)
    return [snamd.as_raw(unit.gather(1, index.expand(-1, -1, unit.shape[-1]))) for unit in every]


def _aggregated(
    features: Features, stage: int, config: MuScConfig, device: torch.device
) -> Iterator[Float[Tensor, "N M C"]]:
    grid, wide = features.grids[stage], features.patch_tokens[stage].to(device)
    wide = wide if wide.dtype == torch.float64 else wide.float()
    if config.aggregation == "snamd":
        yield snamd.aggregate(wide, config.degrees, grid=grid)
    else:
        yield from (lnamd.aggregate(wide, r, grid=grid) for r in config.degrees)


def most_inside(every: Iterable[Features | None], grid: tuple[int, int]) -> int:
    """The largest number of patches inside of any image."""
    return max(int(inside(f, grid).sum(dim=1).max()) for f in every if f)


def places(patches: Bool[Tensor, "N M"], K: int) -> Int[Tensor, "N K"]:
    """The patches inside of each image, the first one repeated until there are K.

    Example:
        >>> places(torch.tensor([[False, True, True], [False, False, True]]), K=2)
        tensor([[1, 2],
                [2, 2]])
    """
    N, M = patches.shape
    order = torch.arange(M).expand(N, M).masked_fill(~patches, M).sort(dim=1).values[:, :K]
    return torch.where(order == M, order[:, :1], order).clamp(max=M - 1)  # of an image with none inside, any


def placed(scores: Float[Tensor, "N K"], patches: Bool[Tensor, "N M"], config: MuScConfig) -> Float[Tensor, "N M"]:
    """Scores of what was `compared`, as distances of the tokens and at the patches' places; 0 outside."""
    if config.position_window != math.inf:
        return scores / SHRINK * patches.to(scores.device)
    out = scores.new_zeros(patches.shape)
    out.scatter_(1, places(patches, scores.shape[1]).to(scores.device), scores)
    return out * patches.to(scores.device)


def scores_of_those_inside(
    score: Callable[[Features, Features | None], dict[tuple[int, int], Tensor]],
    tile: Features,
    references: Features | None,
) -> dict[tuple[int, int], Float[Tensor, "N M"]]:
    """`score` of those tiles that have a patch inside, by those that have one; the others, and one alone, get 0."""
    if tile.region is None:
        return score(tile, references)
    rows, normal = _with_patches(tile), _with_patches(references) if references else []
    out = {grid: torch.zeros(len(tile), grid[0] * grid[1]) for grid in dict.fromkeys(tile.grids)}
    if rows and len(rows) + len(normal) > 1:
        found = score(tile.take(rows), references.take(normal) if references and normal else None)
        for grid, scores in found.items():
            out[grid][rows] = scores.cpu()
    return out


def _with_patches(features: Features) -> list[int]:
    every = [inside(features, grid).any(dim=1) for grid in dict.fromkeys(features.grids)]
    return torch.stack(every).all(dim=0).nonzero()[:, 0].tolist()


def continued(
    scores: Mapping[tuple[int, int], Float[Tensor, "N M"]], features: Features
) -> dict[tuple[int, int], Float[Tensor, "N M"]]:
    """Patch scores by grid, each patch outside with the score of the nearest one inside: before maps are interpolated,
    so that the zeros outside do not pull the region's border down. An image without a patch inside keeps its zeros."""
    if features.region is None:
        return dict(scores)
    out = {}
    for grid, values in scores.items():
        filled = values.cpu().clone()
        for row, mine in enumerate(inside(features, grid).numpy()):
            if mine.any():
                nearest = ndimage.distance_transform_edt(
                    ~mine.reshape(grid), return_distances=False, return_indices=True
                )
                filled[row] = filled[row][torch.from_numpy(np.ravel_multi_index(tuple(nearest), grid).ravel())]
        out[grid] = filled
    return out


def joined(features: Features, references: Features | None) -> Bool[Tensor, "n H W"] | None:
    """The region of images and references together."""
    if features.region is None or not references or references.region is None:
        return features.region
    return torch.cat([f.region.expand(len(f), -1, -1) for f in (features, references) if f.region is not None])


def check_tiles(every: Sequence[Features]) -> None:
    """Raises DataError where no tile of an image has a patch inside."""
    for grid in dict.fromkeys(every[0].grids) if every else ():
        there = torch.stack([inside(tile, grid).any(dim=1) for tile in every]).any(dim=0)
        if not there.all():
            name = every[0].samples[int(there.int().argmin())].name.rpartition("#")[0]
            raise DataError(
                f"{name}: no patch of any of its tiles lies at least half in its region: draw a larger one."
            )


def blanked(maps: Float[Tensor, "N H W"], features: Features) -> Float[Tensor, "N H W"]:
    """Anomaly maps, 0 outside of the region."""
    return maps if features.region is None else maps * features.region


def cut(region: Bool[Tensor, "n H W"], across: tuple[float, float], down: tuple[float, float]) -> Bool[Tensor, "n h w"]:
    """The part of a region that a tile covers; spans are shares of its width and height."""
    _, H, W = region.shape
    top, bottom = math.floor(down[0] * H + 1e-6), math.ceil(down[1] * H - 1e-6)
    left, right = math.floor(across[0] * W + 1e-6), math.ceil(across[1] * W - 1e-6)
    return region[:, top:bottom, left:right]
