"""SPADE (Cohen and Hoshen, 2020): the nearest normal images, and distances to their patches (Tab. 11).

Its paper uses convolutional features of a WideResNet-50; here it gets the tokens of whatever backbone is loaded, so its
figures are not those of the paper. Maps come out at patch resolution, without the paper's Gaussian blur (sigma 4):
`scoring.maps.upsample` brings them to pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from musc.errors import ConfigError
from musc.features import Features
from musc.methods.tokens import all_stages, distances, image_level, nearest_mean


@dataclass(frozen=True)
class Spade:
    """SPADE: the K nearest normal images of each test image, and its patches' distances to theirs.

    images: [R, D] image-level features of the normal images; patches: [R, M, C] their patch tokens, all stages side
    by side. The image-level feature is the class token; where there is none, the mean of the last stage's tokens,
    which is nearer to the pooled features of the paper.
    """

    images: Float[Tensor, "R D"]
    patches: Float[Tensor, "R M C"]
    K: int
    kappa: int

    @classmethod
    def fit(cls, train: Features, *, K: int = 50, kappa: int = 1) -> Spade:
        """Keep the normal images. K and kappa as in the paper; K is at most the number of normal images."""
        if K < 1 or kappa < 1:
            raise ConfigError(f"SPADE with K = {K}, kappa = {kappa}: both count neighbours, from 1.")
        return cls(image_level(train), all_stages(train), min(K, len(train)), kappa)

    def score(self, test: Features) -> tuple[Float[Tensor, "N"], Float[Tensor, "N M"]]:
        """Image scores, the mean squared distance to the K nearest images (Sec. 3.2 there), and patch scores, the
        mean squared distance to the kappa nearest patches of these images, wherever they lie (Sec. 3.3)."""
        away, nearest = distances(image_level(test), self.images).topk(self.K, dim=1, largest=False)  # [N, K]
        patch_scores = [
            nearest_mean(image, self.patches[rows].flatten(0, 1), self.kappa)
            for image, rows in zip(all_stages(test), nearest, strict=True)
        ]
        return away.square().mean(dim=1), torch.stack(patch_scores)
