"""PaDiM (Defard et al., 2021): a Gaussian of normal tokens at every patch position.

Its paper uses convolutional features of a ResNet-18 or a WideResNet-50; here it gets the tokens of whatever backbone is
loaded, so its figures are not those of the paper. It compares positions: parts must lie alike in every image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from musc.features import Features
from musc.methods.base import USUAL_BLUR, Blur, Scores, need_references
from musc.methods.tokens import all_stages, finest_grid

BLOCK = 64 << 20  # bytes of covariances held at a time


def mahalanobis(
    x: Float[Tensor, "N M d"], normal: Float[Tensor, "R M d"], epsilon: float = 0.01
) -> Float[Tensor, "N M"]:
    """Distance of every token to the Gaussian of its position: sqrt((x - mu)^T Sigma^-1 (x - mu)), in float64.

    Eq. 1 and 2 there: mu is the mean of the R normal tokens at that position, Sigma = 1 / (R - 1) sum of
    (x_k - mu) (x_k - mu)^T + epsilon I.

    Example:
        >>> normal = torch.tensor([[[-1.0]], [[1.0]]])  # of variance 2
        >>> round(mahalanobis(torch.tensor([[[2.0]]]), normal, epsilon=0.0).item(), 4)
        1.4142
    """
    N, M, d = x.shape
    out = torch.empty(N, M, dtype=torch.float64)
    for part in torch.arange(M).split(max(1, BLOCK // (8 * d * d))):
        bank = normal[:, part].double().transpose(0, 1)  # [m, R, d]
        mean = bank.mean(dim=1, keepdim=True)
        centred = bank - mean
        covariance = centred.mT @ centred / (len(normal) - 1) + epsilon * torch.eye(d, dtype=torch.float64)
        away = x[:, part].double().transpose(0, 1) - mean  # [m, N, d]
        whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), away.mT, upper=False)  # [m, d, N]
        out[:, part] = whitened.square().sum(dim=1).sqrt().T
    return out


@dataclass(frozen=True)
class PaDiM:
    """PaDiM: the Mahalanobis distance to the normal tokens at the same place.

    channels: how many of the concatenated channels of all stages are kept, drawn by `seed`: 100 for the paper's
    ResNet-18, 550 for its WideResNet-50. epsilon: added to the diagonal of the covariances.
    """

    blur: ClassVar[Blur] = USUAL_BLUR
    corners: ClassVar[bool] = False
    channels: int = 100
    epsilon: float = 0.01
    seed: int = 0

    def rows(self, total: int) -> Tensor:
        """The channels that are kept."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(total, generator=generator)[: self.channels].sort().values

    def score(self, features: Features, references: Features | None = None) -> Scores:
        """Patch scores; the image score is the maximum of the blurred map, as in the paper.

        Stages are first normalised per image (joint LayerNorm), which the paper does not do (see
        `locally_aware_tokens`). Raises ConfigError with fewer than two references.
        """
        normal = all_stages(need_references("PaDiM", features, references, least=2))
        kept = self.rows(normal.shape[2])
        scores = mahalanobis(all_stages(features)[..., kept], normal[..., kept], self.epsilon)
        return Scores({finest_grid(features): scores.float()})
