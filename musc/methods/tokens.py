"""What one-class methods make of our tokens: descriptors of patches and of whole images, and distances among them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from musc import lnamd
from musc.features import Features

BLOCK = 1 << 24  # distances held at a time


def locally_aware_tokens(features: Features, stages: list[int], degree: int) -> Float[Tensor, "N M C"]:
    """The tokens of some stages side by side, each the mean over its degree x degree neighbourhood.

    PatchCore, Sec. 3.1: the mean runs over the neighbours that exist, and coarser stages are brought to the finest grid
    (bilinear). Each stage is first normalised per image (joint LayerNorm, as in our Sec. 3.1), which the papers do not
    do: the residual stream of a transformer grows with depth, and its last stage would drown the others.
    """
    H, W = finest_grid(features, stages)
    parts = []
    for n in stages:
        h, w = features.grids[n]
        maps = rearrange(lnamd.layer_norm(features.patch_tokens[n].float()), "N (h w) C -> N C h w", h=h, w=w)
        maps = F.avg_pool2d(maps, degree, stride=1, padding=degree // 2, count_include_pad=False)
        if (h, w) != (H, W):
            maps = F.interpolate(maps, (H, W), mode="bilinear", align_corners=False)
        parts.append(rearrange(maps, "N C H W -> N (H W) C"))
    return torch.cat(parts, dim=2)


def finest_grid(features: Features, stages: list[int] | None = None) -> tuple[int, int]:
    """The grid of `locally_aware_tokens`."""
    grids = [features.grids[n] for n in (range(len(features.grids)) if stages is None else stages)]
    return max(grids, key=lambda grid: grid[0] * grid[1])


def middle(stages: int) -> list[int]:
    """The middle half of so many stages, as PatchCore's blocks 2 and 3 of four: positions, from 0.

    Example:
        >>> middle(4), middle(1), middle(3)
        ([1, 2], [0], [0, 1, 2])
    """
    return list(range(stages // 4, stages - stages // 4))


def all_stages(features: Features) -> Float[Tensor, "N M C"]:
    """The patch tokens of all stages side by side."""
    return locally_aware_tokens(features, list(range(len(features.patch_tokens))), 1)


def image_level(features: Features) -> Float[Tensor, "N D"]:
    """Class tokens; where there are none, the mean of the last stage's patch tokens."""
    if features.class_tokens is not None:
        return features.class_tokens.float()
    return features.patch_tokens[-1].float().mean(dim=1)


def distances(a: Float[Tensor, "A C"], b: Float[Tensor, "B C"]) -> Float[Tensor, "A B"]:
    """Euclidean, by one matrix product. Both are centred first: of small numbers less is lost in the difference."""
    centre = b.mean(dim=0)
    return torch.cdist(a - centre, b - centre, compute_mode="use_mm_for_euclid_dist")


def nearest(a: Float[Tensor, "A C"], b: Float[Tensor, "B C"]) -> tuple[Float[Tensor, "A"], Int[Tensor, "A"]]:
    """Distance of every row of a to its nearest row of b, and which one that is.

    Example:
        >>> nearest(torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0]]))
        (tensor([1.]), tensor([2]))
    """
    rows = [distances(part, b).min(dim=1) for part in a.split(max(1, BLOCK // len(b)))]
    return torch.cat([r.values for r in rows]), torch.cat([r.indices for r in rows])


def nearest_mean(a: Float[Tensor, "A C"], b: Float[Tensor, "B C"], kappa: int) -> Float[Tensor, "A"]:
    """Mean squared distance to the kappa nearest.

    Example:
        >>> nearest_mean(torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0]]), kappa=2)
        tensor([5.])
    """
    parts = a.split(max(1, BLOCK // len(b)))
    kappa = min(kappa, len(b))
    return torch.cat([distances(p, b).topk(kappa, dim=1, largest=False).values.square().mean(dim=1) for p in parts])
