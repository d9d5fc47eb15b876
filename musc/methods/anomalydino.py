"""AnomalyDINO (Damm et al., WACV 2025): cosine distances of patches, to references or to all other images.

Its paper uses DINOv2 ViT-S/14 at a short side of 448 or 672 pixels, the tokens of the last block after the final norm.
Here it gets those of the last stage that is loaded, which pass the final norm for DINO and DINOv2 alone. Its optional
foreground mask, from the first principal component of the tokens, is left out (MuSc has one like it in
`scoring.foreground`), and images keep one orientation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from musc.features import Features
from musc.methods.base import USUAL_BLUR, Blur, Scores, mean_of_highest, need_pool, need_references

BLOCK = 1 << 24  # distances held at a time


def mean_below_quantile(distances: Float[Tensor, "P n"], quantile: float) -> Float[Tensor, "P"]:
    """Mean of each row's values strictly below its quantile (linear between order statistics).

    Where no value is strictly below it, as among equal ones, the smallest is taken.

    Example:
        >>> mean_below_quantile(torch.tensor([[4.0, 1.0, 2.0, 3.0]]), 0.5)  # the median is 2.5
        tensor([1.5000])
    """
    n = distances.shape[1]
    place = quantile * (n - 1)
    k = math.floor(place)
    near = distances.topk(min(n, k + 2), dim=1, largest=False).values  # sorted
    bound = near[:, k].lerp(near[:, min(k + 1, n - 1)], place - k)[:, None]
    below = near < bound
    mean = (near * below).sum(dim=1) / below.sum(dim=1).clamp(min=1)
    return torch.where(below.any(dim=1), mean, near[:, 0])


@dataclass(frozen=True)
class AnomalyDINO:
    """AnomalyDINO: few-shot with references, batched zero-shot without.

    quantile: of the batched form. highest: share of the patches that make the image score. stage: 0-based position in
    Features.patch_tokens.
    """

    blur: ClassVar[Blur] = USUAL_BLUR
    corners: ClassVar[bool] = False
    quantile: float = 0.001
    highest: float = 0.01
    stage: int = -1

    def score(self, features: Features, references: Features | None = None) -> Scores:
        """Patch scores; the image score is the mean of the highest 1 % of them.

        Few-shot: d = |a - b|^2 / 2 = 1 - <a, b> of unit tokens, to the nearest patch b of any reference. Batched: the
        mean of those distances, to all patches of all other images, that are strictly below their 0.1 % quantile (no
        minimum per image). Raises DataError for one image without references.
        """
        tokens = F.normalize(features.patch_tokens[self.stage].float(), dim=-1)  # [N, M, C]
        if references is None:
            need_pool("AnomalyDINO", features)
            scores = self._batched(tokens)
        else:
            other = need_references("AnomalyDINO", features, references).patch_tokens[self.stage].float()
            scores = few_shot(tokens, F.normalize(other, dim=-1).flatten(0, 1))
        return Scores({features.grids[self.stage]: scores}, mean_of_highest(scores, self.highest))

    def _batched(self, tokens: Float[Tensor, "N M C"]) -> Float[Tensor, "N M"]:
        N, M, _ = tokens.shape
        out = tokens.new_empty(N, M)
        for i in range(N):
            others = torch.cat([tokens[:i], tokens[i + 1 :]]).flatten(0, 1)
            parts = tokens[i].split(max(1, BLOCK // len(others)))
            out[i] = torch.cat([mean_below_quantile(1 - part @ others.T, self.quantile) for part in parts])
        return out


def few_shot(tokens: Float[Tensor, "N M C"], bank: Float[Tensor, "B C"]) -> Float[Tensor, "N M"]:
    """1 - cosine of every patch to its nearest of `bank`; all are unit vectors.

    Example:
        >>> few_shot(torch.tensor([[[0.6, 0.8]]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[0.2000]])
    """
    rows = max(1, BLOCK // len(bank))
    parts = [1 - (part @ bank.T).amax(dim=1) for part in tokens.flatten(0, 1).split(rows)]
    return torch.cat(parts).reshape(tokens.shape[:2])
