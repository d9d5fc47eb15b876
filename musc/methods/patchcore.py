"""PatchCore (Roth et al., 2022): the distance of patches to a coreset of normal ones (Tab. 11).

Its paper uses convolutional features of a WideResNet-50; here it gets the tokens of whatever backbone is loaded, so its
figures are not those of the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from musc.errors import ConfigError
from musc.features import Features
from musc.methods.base import USUAL_BLUR, Blur, Scores, need_references
from musc.methods.tokens import distances, finest_grid, locally_aware_tokens, middle, nearest


def greedy_coreset(
    tokens: Float[Tensor, "P C"], size: int, *, projected: int | None = 128, seed: int = 0
) -> Int[Tensor, "size"]:
    """Rows of a coreset by greedy k-center: each new row is the one farthest from all chosen so far.

    PatchCore, Sec. 3.2 and Alg. 1. Distances are measured after a random linear projection to `projected` dimensions
    (Johnson-Lindenstrauss; None: without). The paper does not say where the greedy search starts: here, at a random row
    of the seed. Raises ConfigError where size is not between 1 and P.

    Example:
        >>> tokens = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.1, 0.0]])
        >>> sorted(greedy_coreset(tokens, 2) // 2)  # one row of each pair
        [tensor(0), tensor(1)]
    """
    P, C = tokens.shape
    if not 1 <= size <= P:
        raise ConfigError(f"coreset of {size} among {P} patch tokens: choose a size from 1 to {P}.")
    generator = torch.Generator().manual_seed(seed)
    start = int(torch.randint(P, (1,), generator=generator))
    if projected is not None and projected < C:
        projection = torch.randn(C, projected, generator=generator, dtype=torch.float64) / math.sqrt(projected)
        tokens = tokens @ projection.to(tokens)
    squares = tokens.square().sum(dim=1)
    chosen = torch.empty(size, dtype=torch.long)
    nearest = torch.full((P,), math.inf, dtype=tokens.dtype, device=tokens.device)  # squared, to the chosen
    row = start
    for n in range(size):
        chosen[n] = row
        torch.minimum(nearest, squares + squares[row] - 2 * (tokens @ tokens[row]), out=nearest)
        nearest[row] = -math.inf  # rounding must not choose a row twice
        row = int(nearest.argmax())
    return chosen.to(tokens.device)


@dataclass(frozen=True)
class PatchCore:
    """PatchCore: the distance of a test image's patches to a coreset of normal patches.

    stages: 0-based positions in Features.patch_tokens; None: the middle half, as the paper's blocks 2 and 3 of four.
    degree: of the neighbourhood's mean. fraction: share of all normal patches that the coreset keeps (1 to 25 % in the
    paper). neighbors: b of Eq. 7 there, how many patches of the coreset around the nearest one tell how rare it is;
    below 2 the image score is the plain distance. projected, seed: see `greedy_coreset`.
    """

    blur: ClassVar[Blur] = USUAL_BLUR
    corners: ClassVar[bool] = False
    stages: tuple[int, ...] | None = None
    degree: int = 3
    fraction: float = 0.1
    neighbors: int = 3
    projected: int | None = 128
    seed: int = 0

    def memory(self, references: Features) -> Float[Tensor, "P C"]:
        """The coreset M of the patches of normal images."""
        bank = rearrange(self._tokens(references), "N M C -> (N M) C")
        rows = greedy_coreset(bank, max(1, round(self.fraction * len(bank))), projected=self.projected, seed=self.seed)
        return bank[rows]

    def score(self, features: Features, references: Features | None = None) -> Scores:
        """Image scores (Eq. 6 and 7 there) and patch scores, Euclidean distances; class tokens are not used.

        s = (1 - exp|m_test - m*| / sum over the b nearest m of m* in M, itself among them, of exp|m_test - m|) s*.
        Raises ConfigError without references.
        """
        memory = self.memory(need_references("PatchCore", features, references))
        tokens = self._tokens(features)
        pairs = [nearest(image, memory) for image in tokens]
        patch_scores, rows_of = (torch.stack(found) for found in zip(*pairs, strict=True))  # [N, M] each
        image_scores, patch = patch_scores.max(dim=1)  # s*, of m_test: [N]
        patches = {finest_grid(features, self._stages(features)): patch_scores}
        b = min(self.neighbors, len(memory))
        if b < 2:
            return Scores(patches, image_scores)
        rows = torch.arange(len(tokens), device=tokens.device)
        candidate = tokens[rows, patch]  # m_test: [N, C]
        star = memory[rows_of[rows, patch]]  # m*: [N, C]
        around = distances(star, memory).topk(b, dim=1, largest=False).indices  # N_b(m*): [N, b]
        away = (candidate[:, None] - memory[around]).norm(dim=2)  # |m_test - m|: [N, b]
        rare = torch.exp(image_scores - away.logsumexp(dim=1))  # sums of exp overflow, their logarithms do not
        return Scores(patches, (1 - rare) * image_scores)

    def _stages(self, features: Features) -> list[int]:
        return middle(len(features.patch_tokens)) if self.stages is None else list(self.stages)

    def _tokens(self, features: Features) -> Float[Tensor, "N M C"]:
        return locally_aware_tokens(features, self._stages(features), self.degree)
