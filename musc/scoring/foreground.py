"""The product in front of a plain background, from an image's own tokens: the region of interest "auto"."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from musc.features import Features
from musc.sizes import Size, rows_columns

DIRT = 0.1  # of the largest part of the foreground: what is smaller is none of the product
BORDER, APART = 0.6, 0.3  # least share of background in the border; by how much more than in the middle


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
