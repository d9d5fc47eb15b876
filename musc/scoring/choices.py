"""Many sets of images out of one: the distances of Eq. 1 are computed once, and a set is a choice of rows and columns.

For questions such as "what if half of the images were defective?", which would else cost a pass each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from musc import msm
from musc.features import Features
from musc.scoring import consistency


def all_distances(features: Features, degrees: Sequence[int] = (1, 3), **options: Any) -> Float[Tensor, "K N N M"]:
    """Eq. 1 among all images at every stage and degree, K of them in all; an image's distance to itself is 0.

    features: of N images whose stages share one grid of M patches. options: of `msm.stage_distances`, such as
    position_window. Memory: 4 K N² M bytes.

    Example:
        >>> tokens = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> all_distances(Features([tokens], None, ((2, 2),), (), ()), degrees=(1,)).shape
        torch.Size([1, 3, 3, 4])
    """
    N = len(features.patch_tokens[0])
    others = ~torch.eye(N, dtype=torch.bool)
    stages = []
    for tokens, grid in zip(features.patch_tokens, features.grids, strict=True):
        d = msm.stage_distances(tokens, degrees, grid=grid, **options)  # [D, N, N - 1, M]
        full = d.new_zeros(len(d), N, N, d.shape[-1])
        full[:, others] = d.flatten(1, 2)
        stages.append(full)
    return torch.cat(stages)


def among(full: Float[Tensor, "K N N M"], rows: Sequence[int]) -> Float[Tensor, "K n n-1 M"]:
    """The distances among the images `rows` only, own image left out.

    Example:
        >>> full = torch.arange(9.0).reshape(1, 3, 3, 1)
        >>> among(full, [0, 2])[0, :, :, 0]
        tensor([[2.],
                [6.]])
    """
    n = len(rows)
    chosen = full[:, rows][:, :, rows]
    return chosen[:, ~torch.eye(n, dtype=torch.bool)].reshape(len(full), n, n - 1, -1)


def patch_scores(full: Float[Tensor, "K N N M"], rows: Sequence[int]) -> Float[Tensor, "n M"]:
    """What `msm.mutual_scores` gives if the images `rows` are all there are (Eq. 2 and 3).

    Example:
        >>> full = torch.arange(9.0).reshape(1, 3, 3, 1)
        >>> patch_scores(full, [0, 2]).flatten()
        tensor([2., 6.])
    """
    return torch.stack([msm.interval_average(d) for d in among(full, rows)]).mean(dim=0)


def corrected_scores(
    full: Float[Tensor, "K N N M"], rows: Sequence[int]
) -> tuple[Float[Tensor, "n M"], Float[Tensor, "n M"], list[consistency.Group]]:
    """`patch_scores`, the same corrected for consistent defects, and the groups that were found.

    Example:
        >>> full = torch.full((1, 8, 8, 1), 0.3)  # eight images of one patch, all 0.3 apart
        >>> full[0, :3, :3] = 0.05  # but for three that share something
        >>> full[0, :3, 3:] = full[0, 3:, :3] = 1.0
        >>> plain, corrected, groups = corrected_scores(full, range(8))
        >>> plain[0].item(), corrected[0].item(), groups[0].images
        (0.05000000074505806, 1.0, (0, 1, 2))
    """
    plain = patch_scores(full, rows)
    mean = among(full, rows).mean(dim=0)
    groups = consistency.find(mean)
    return plain, consistency.corrected(plain, mean, groups), groups
