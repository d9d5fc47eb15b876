"""What the settings `aggregation` and `rescoring` make of patch tokens: what is compared, and an image's token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from musc import lnamd, rscin, snamd
from musc.config import MuScConfig
from musc.features import Features


def prepared(
    tokens: Float[Tensor, "*P M C"], config: MuScConfig, grid: tuple[int, int], degrees: Sequence[int] | None = None
) -> tuple[Tensor, tuple[int, ...]]:
    """Tokens and degrees for `musc.msm`, where LNAMD happens: raw tokens as they are, or those of SNAMD and degree 1.

    tokens: of one stage, of images or of one. degrees: None for the configuration's.

    Example:
        >>> stage = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
        >>> prepared(stage, MuScConfig(), (3, 3))[1], prepared(stage, MuScConfig(aggregation="snamd"), (3, 3))[1]
        ((1, 3, 5), (1,))
    """
    degrees = tuple(degrees or config.degrees)
    if config.aggregation == "lnamd":
        return tokens, degrees
    images = tokens if tokens.ndim == 3 else tokens[None]
    wide = images if images.dtype == torch.float64 else images.float()
    found = snamd.as_raw(snamd.aggregate(wide, degrees, grid=grid))
    return found if tokens.ndim == 3 else found[0], (1,)


def aggregated(
    tokens: Float[Tensor, "N M C"], config: MuScConfig, grid: tuple[int, int], degrees: Sequence[int] | None = None
) -> Float[Tensor, "N M C"]:
    """One token per patch: SNAMD's, or the mean of LNAMD's over its degrees (MuSc-V2 has no other than SNAMD)."""
    degrees = tuple(degrees or config.degrees)
    if config.aggregation == "snamd":
        return snamd.aggregate(tokens.float(), degrees, grid=grid)
    return torch.stack([lnamd.aggregate(tokens.float(), r, grid=grid) for r in degrees]).mean(dim=0)


class SalientTokens:
    """RsCon's token of each image, from patch scores as they are computed: at once, or tile by tile.

    tokens: [N, C], of the second-to-last stage, at the patch whose score (Eq. 3) is the largest so far.
    """

    def __init__(self, config: MuScConfig, degrees: Sequence[int] | None = None) -> None:
        self.config, self.degrees = config, degrees
        self.values: Tensor | None = None
        self.tokens: Tensor | None = None

    def add(self, features: Features, scores: Mapping[tuple[int, int], Float[Tensor, "N _"]]) -> Tensor:
        """Take in patch scores by grid of these tokens (of a tile: of the same images' tiles); returns `tokens`.

        With several grids (Swin) scores are brought to the stage's own, as maps are to pixels.
        """
        n = max(0, len(features.grids) - 2)
        (H, W), own = features.grids[n], features.patch_tokens[n]
        parts = [
            s.cpu() if grid == (H, W) else F.interpolate(
                s.cpu().reshape(len(s), 1, *grid), (H, W), mode="bilinear", align_corners=True
            ).flatten(1)
            for grid, s in scores.items()
        ]  # fmt: skip
        joint = torch.stack(parts).sum(dim=0)  # [N, M]
        values = joint.amax(dim=1)
        # image by image: aggregated tokens of all would double what is held
        found = [
            rscin.salient_tokens(
                joint[i : i + 1], aggregated(own[i : i + 1, :].cpu(), self.config, (H, W), self.degrees)
            )
            for i in range(len(joint))
        ]
        tokens = torch.cat(found)
        if self.values is None or self.tokens is None:
            self.values, self.tokens = values, tokens
        else:
            better = values > self.values
            self.values = torch.where(better, values, self.values)
            self.tokens = torch.where(better[:, None], tokens, self.tokens)
        return self.tokens
