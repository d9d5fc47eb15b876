"""SubspaceAD (CVPR 2026, arXiv 2602.23013): how far a patch lies from the principal subspace of all patches.

Linear in the number of images: two passes, one for the mean and one for the covariance, and memory for one covariance.
Its paper takes DINOv2-giant with registers at 672 pixels and the mean over 7 middle blocks (the 12th to the 18th from
the end of 40); here it is the mean over the middle half of the stages that are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from musc.features import Features
from musc.methods.base import Blur, Scores, need_pool, need_references
from musc.methods.tokens import middle


class Subspace(NamedTuple):
    """The mean [C] of some tokens, and orthonormal directions [C, K] that explain most of their variance; float64."""

    mean: Float[Tensor, "C"]
    directions: Float[Tensor, "C K"]

    def residual(self, tokens: Float[Tensor, "n C"]) -> Float[Tensor, "n"]:
        """Squared distance of each token to the subspace: |x - mu|^2 - |V^T (x - mu)|^2, never negative."""
        centred = tokens.double() - self.mean
        return (centred - centred @ self.directions @ self.directions.T).square().sum(dim=1)


def fit(blocks: Callable[[], Iterable[Float[Tensor, "_ C"]]], explained: float = 0.99) -> Subspace:
    """PCA in float64 of tokens that come in blocks; `blocks()` is called twice and gives the same ones.

    As many components as explain the share `explained` of the variance. Raises ValueError where there is no token.

    Example:
        >>> line = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
        >>> space = fit(lambda: line.split(2))
        >>> space.directions.shape, space.residual(torch.tensor([[3.0, 3.0], [3.0, 1.0]])).round(decimals=6)
        (torch.Size([2, 1]), tensor([0., 2.], dtype=torch.float64))
    """
    count, total = 0, None
    for block in blocks():
        part = block.sum(dim=0, dtype=torch.float64)
        total = part if total is None else total + part
        count += len(block)
    if total is None or not count:
        raise ValueError("no tokens: give the patch tokens of at least one image.")
    mean = total / count
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for block in blocks():
        centred = block.double() - mean
        covariance.addmm_(centred.T, centred)
    values, vectors = torch.linalg.eigh(covariance / max(1, count - 1))  # ascending
    shares = values.flip(0).clamp(min=0).cumsum(0)
    K = int((shares < explained * shares[-1]).sum()) + 1
    return Subspace(mean, vectors.flip(1)[:, :K])


@dataclass(frozen=True)
class SubspaceAD:
    """SubspaceAD: the subspace of the references' patches, or without references of all images' own.

    explained: share of the variance. highest: share of the pixels that make the image score. stages: 0-based
    positions in Features.patch_tokens whose tokens are averaged; None: the middle half. In the paper's few-shot form
    the references are rotated copies too, which is not done here.
    """

    blur: ClassVar[Blur] = Blur(4.0, radius=1)  # 3 x 3, as published
    corners: ClassVar[bool] = False
    explained: float = 0.99
    highest: float = 0.01
    stages: tuple[int, ...] | None = None

    def blocks(self, features: Features) -> Iterator[Float[Tensor, "M C"]]:
        """The tokens of one image after the other: the mean over the stages."""
        chosen = self._chosen(features)
        for i in range(len(features)):
            yield torch.stack([features.patch_tokens[n][i].float() for n in chosen]).mean(dim=0)

    def score(self, features: Features, references: Features | None = None) -> Scores:
        """Patch scores, the squared residuals; the image score is the mean of the map's highest 1 % of pixels.

        Raises DataError for one image without references.
        """
        if references is None:
            need_pool("SubspaceAD", features)
            source = features
        else:
            source = need_references("SubspaceAD", features, references)
        space = fit(lambda: self.blocks(source), self.explained)
        scores = torch.stack([space.residual(tokens) for tokens in self.blocks(features)]).float()
        return Scores({features.grids[self._chosen(features)[-1]]: scores}, highest=self.highest)

    def _chosen(self, features: Features) -> list[int]:
        """The stages, of which those of the last one's grid: Swin's differ in width and grid."""
        chosen = middle(len(features.grids)) if self.stages is None else list(self.stages)
        return [n for n in chosen if features.grids[n] == features.grids[chosen[-1]]]
