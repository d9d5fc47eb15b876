"""Region of interest: patches outside of it neither score nor are scored, and the anomaly map is 0 there.

A region is kept at the size of the anomaly maps ([N, H, W], or [1, H, W] for all images: `Features.region`). A patch
belongs to it where at least half of its area does. Tokens are aggregated with all of their neighbours (Sec. 3.1), as
the network itself sees the whole picture; then the patches outside are left out, on both sides of Eq. 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from musc.errors import ConfigError, DataError
from musc.features import Features
from musc.sizes import Size, rows_columns

AUTO = "auto"
SHARE = 0.5  # of a patch's area that must lie in the region
DIRT = 0.1  # of the largest part of the foreground: what is smaller is none of the product
PROPORTIONS = 0.02  # by so much a mask's may differ from its image's
BORDER, APART = 0.6, 0.3  # least share of background in the border; by how much more than in the middle


def mask_files(roi: str, samples: Sequence[Sample]) -> dict[str, Path]:
    """The file that holds the region of each image, by its name: `roi` itself, or one of the folder `roi`.

    In a folder a mask has its image's relative path, with any suffix, or its bare name. Raises ConfigError where there
    is no such file or folder, or an image has no mask in it.
    """
    place = Path(roi)
    if place.is_file():
        return dict.fromkeys((s.name for s in samples), place)
    if not place.is_dir():
        raise ConfigError(f'roi = {roi}: there is no such file or folder; name a mask, a folder of masks, or "auto".')
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


def foregrounds(features: Features, size: Size) -> Bool[Tensor, "N H W"]:
    """The foreground of each image at `size` pixels, from its own tokens: see `foreground`."""
    grid = features.grids[-1]
    found = [foreground(tokens, grid) for tokens in features.patch_tokens[-1]]
    parts = torch.stack(found).reshape(len(found), 1, *grid).float()
    return F.interpolate(parts, rows_columns(size), mode="nearest-exact")[:, 0] > 0.5


def foreground(tokens: Float[Tensor, "M C"], grid: tuple[int, int]) -> Bool[Tensor, "M"]:
    """Which patches of one image show the product: its first principal component, parted in two.

    AnomalyDINO (Damm et al., WACV 2025) masks so, by a fixed threshold and the side that fills the middle. Here Otsu's
    threshold parts the component of the unit tokens, and the side that holds more of the border than of the middle is
    the background. Parts smaller than a tenth of the largest are dirt on it. The mask is then closed and widened by a
    patch, as there. Where the border is no background (less than 60 % of it, or less than 30 points more than of the
    middle) the product fills the picture: all is foreground.

    Example:
        >>> tokens = torch.ones(25, 2) * torch.tensor([1.0, 0.0])
        >>> tokens[12] = torch.tensor([0.0, 1.0])  # the product, in the middle of 5 x 5 patches
        >>> foreground(tokens, (5, 5)).reshape(5, 5).int()[1]  # it and its neighbours
        tensor([0, 1, 1, 1, 0], dtype=torch.int32)
        >>> foreground(torch.ones(25, 2), (5, 5)).all()  # nothing is apart
        tensor(True)
    """
    H, W = grid
    unit = F.normalize(tokens.double(), dim=-1)
    centred = unit - unit.mean(dim=0)
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    if spread[0] < 1e-6:
        return torch.ones(H * W, dtype=torch.bool)
    side = (centred @ axes[0] > otsu(centred @ axes[0])).reshape(H, W)
    margin_h, margin_w = max(1, H // 10), max(1, W // 10)
    border = torch.ones(H, W, dtype=torch.bool)
    border[margin_h : H - margin_h, margin_w : W - margin_w] = False
    middle = torch.zeros(H, W, dtype=torch.bool)
    middle[H // 4 : H - H // 4, W // 4 : W - W // 4] = True
    share = [(float(s[border].double().mean()), float(s[middle].double().mean())) for s in (side, ~side)]
    back = max((0, 1), key=lambda n: share[n][0] - share[n][1])
    if share[back][0] < BORDER or share[back][0] - share[back][1] < APART:
        return torch.ones(H * W, dtype=torch.bool)
    product = (~(side, ~side)[back]).numpy()
    square = np.ones((3, 3))
    part, count = ndimage.label(product, square)
    areas = ndimage.sum_labels(product, part, range(1, count + 1))
    large = [n for n, area in enumerate(areas, 1) if area >= DIRT * areas.max()]
    wide = ndimage.binary_dilation(np.isin(part, large), square)
    closed = ndimage.binary_erosion(ndimage.binary_dilation(wide, square), square, border_value=1)
    return torch.from_numpy(closed).flatten()


def otsu(values: Float[Tensor, "M"]) -> float:
    """The threshold that parts values best: of the largest variance between the two sides."""
    ordered = values.sort().values
    n = len(ordered)
    left = torch.arange(1, n, dtype=ordered.dtype)
    sums = ordered.cumsum(dim=0)[:-1]
    between = (sums / left - (ordered.sum() - sums) / (n - left)).square() * left * (n - left)
    best = int(between.argmax())
    return float(ordered[best] + ordered[best + 1]) / 2


def kept(
    features: Features, stage: int, config: MuScConfig, device: torch.device, K: int, degrees: Sequence[int] = ()
) -> list[Float[Tensor, "N K c"]]:
    """The aggregated tokens of a stage's patches inside, for mutual scoring at degree 1: one tensor per degree.

    [N, K, C + 1] each. An image with fewer than K patches inside repeats its first one, which changes no nearest
    distance. With SNAMD there is one tensor for all degrees. degrees: none for the configuration's.
    """
    grid, tokens = features.grids[stage], features.patch_tokens[stage]
    degrees = tuple(degrees or config.degrees)
    index = places(inside(features, grid), K).to(device)  # [N, K]

    def chosen(unit: Tensor) -> Tensor:
        return snamd.as_raw(unit.gather(1, index[..., None].expand(-1, -1, unit.shape[-1])))

    wide = tokens.to(device)
    wide = wide if wide.dtype == torch.float64 else wide.float()
    if config.aggregation == "snamd":
        return [chosen(snamd.aggregate(wide, degrees, grid=grid))]
    return [chosen(lnamd.aggregate(wide, r, grid=grid)) for r in degrees]


def most_inside(features: Features, references: Features | None, grid: tuple[int, int]) -> int:
    """The largest number of patches inside of any image."""
    every = [features, *([references] if references else [])]
    return max(int(inside(f, grid).sum(dim=1).max()) for f in every)


def places(patches: Bool[Tensor, "N M"], K: int) -> Int[Tensor, "N K"]:
    """The patches inside of each image, the first one repeated until there are K.

    Example:
        >>> places(torch.tensor([[False, True, True], [False, False, True]]), K=2)
        tensor([[1, 2],
                [2, 2]])
    """
    N, M = patches.shape
    order = torch.arange(M).expand(N, M).masked_fill(~patches, M).sort(dim=1).values[:, :K]
    return torch.where(order == M, order[:, :1], order)


def spread(scores: Float[Tensor, "N K"], patches: Bool[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """Scores of the patches inside, in the order of `places`, at their places; 0 outside."""
    out = scores.new_zeros(patches.shape)
    return out.scatter_(1, places(patches, scores.shape[1]).to(scores.device), scores)


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


def blanked(maps: Float[Tensor, "N H W"], features: Features) -> Float[Tensor, "N H W"]:
    """Anomaly maps, 0 outside of the region."""
    return maps if features.region is None else maps * features.region


def cut(region: Bool[Tensor, "n H W"], across: tuple[float, float], down: tuple[float, float]) -> Bool[Tensor, "n h w"]:
    """The part of a region that a tile covers; spans are shares of its width and height."""
    _, H, W = region.shape
    top, bottom = math.floor(down[0] * H + 1e-6), math.ceil(down[1] * H - 1e-6)
    left, right = math.floor(across[0] * W + 1e-6), math.ceil(across[1] * W - 1e-6)
    return region[:, top:bottom, left:right]
