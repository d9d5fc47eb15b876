"""SPADE (Cohen and Hoshen, 2020): the nearest normal images, and distances to their patches (Tab. 11).

Its paper uses convolutional features of a WideResNet-50; here it gets the tokens of whatever backbone is loaded, so its
figures are not those of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from musc.errors import ConfigError
from musc.features import Features
from musc.methods.base import USUAL_BLUR, Blur, Scores, need_references
from musc.methods.tokens import all_stages, distances, finest_grid, image_level, nearest_mean


@dataclass(frozen=True)
class Spade:
    """SPADE: the K nearest normal images of each test image, and its patches' distances to theirs.

    K and kappa as in the paper; K is at most the number of normal images. The image-level feature is the class token;
    where there is none, the mean of the last stage's tokens, which is nearer to the pooled features of the paper. A
    patch is described by the tokens of all stages side by side.
    """

    blur: ClassVar[Blur] = USUAL_BLUR
    corners: ClassVar[bool] = False
    K: int = 50
    kappa: int = 1

    def __post_init__(self) -> None:
        if self.K < 1 or self.kappa < 1:
            raise ConfigError(f"SPADE with K = {self.K}, kappa = {self.kappa}: both count neighbours, from 1.")

    def score(self, features: Features, references: Features | None = None) -> Scores:
        """Image scores, the mean squared distance to the K nearest images (Sec. 3.2 there), and patch scores, the
        mean squared distance to the kappa nearest patches of these images, wherever they lie (Sec. 3.3).

        Raises ConfigError without references.
        """
        normal = need_references("SPADE", features, references)
        patches, K = all_stages(normal), min(self.K, len(normal))
        away, nearest = distances(image_level(features), image_level(normal)).topk(K, dim=1, largest=False)  # [N, K]
        patch_scores = [
            nearest_mean(image, patches[rows].flatten(0, 1), self.kappa)
            for image, rows in zip(all_stages(features), nearest, strict=True)
        ]
        return Scores({finest_grid(features): torch.stack(patch_scores)}, away.square().mean(dim=1))
