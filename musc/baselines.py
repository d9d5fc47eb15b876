"""PatchCore (Roth et al., 2022) and SPADE (Cohen and Hoshen, 2020) on our tokens: the two one-class methods of Tab. 11
that need no training of their own, and what RsCIN adds to them.

Both compare test images with normal training images. Their papers use convolutional features of a WideResNet-50; here
they get the tokens of whatever backbone is loaded, so their figures are not those of their papers. Maps come out at
patch resolution, without the Gaussian blur (sigma 4) of both papers: `pipeline.upsample` brings them to pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from musc import lnamd, metrics, rscin
from musc.errors import ConfigError, DataError
from musc.features import Features

if TYPE_CHECKING:
    import pandas as pd

    from musc.datasets.base import Category
    from musc.pipeline import MuSc

BLOCK = 1 << 24  # distances held at a time


def locally_aware_tokens(features: Features, stages: list[int], degree: int) -> Float[Tensor, "N M C"]:
    """The tokens of some stages side by side, each the mean over its degree x degree neighbourhood.

    PatchCore, Sec. 3.1: the mean runs over the neighbours that exist, and coarser stages are brought to the finest grid
    (bilinear). Each stage is first normalised per image (joint LayerNorm, as in our Sec. 3.1), which the papers do not
    do: the residual stream of a transformer grows with depth, and its last stage would drown the others.
    """
    H, W = max((features.grids[n] for n in stages), key=lambda grid: grid[0] * grid[1])
    parts = []
    for n in stages:
        h, w = features.grids[n]
        maps = rearrange(lnamd.layer_norm(features.patch_tokens[n].float()), "N (h w) C -> N C h w", h=h, w=w)
        maps = F.avg_pool2d(maps, degree, stride=1, padding=degree // 2, count_include_pad=False)
        if (h, w) != (H, W):
            maps = F.interpolate(maps, (H, W), mode="bilinear", align_corners=False)
        parts.append(rearrange(maps, "N C H W -> N (H W) C"))
    return torch.cat(parts, dim=2)


def greedy_coreset(
    tokens: Float[Tensor, "P C"], size: int, *, projected: int | None = 128, seed: int = 0
) -> Int[Tensor, "size"]:
    """Rows of a coreset by greedy k-center: each new row is the one farthest from all chosen so far.

    PatchCore, Sec. 3.2 and Alg. 1. Distances are measured after a random linear projection to `projected` dimensions
    (Johnson-Lindenstrauss; None: without). The paper does not say where the greedy search starts: here, at a random row
    of the seed. Raises ConfigError where size is not between 1 and P.
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

    memory: [P, C], the coreset M. stages: 0-based positions in Features.patch_tokens. neighbors: b of Eq. 7 there, how
    many patches of M around the nearest one tell how rare it is; below 2 the score is the plain distance.
    """

    memory: Float[Tensor, "P C"]
    stages: tuple[int, ...]
    degree: int
    neighbors: int

    @classmethod
    def fit(
        cls,
        train: Features,
        *,
        stages: tuple[int, ...] | None = None,
        degree: int = 3,
        fraction: float = 0.1,
        neighbors: int = 3,
        projected: int | None = 128,
        seed: int = 0,
    ) -> PatchCore:
        """The coreset of normal images. stages None: the middle half, as the paper's blocks 2 and 3 of four.

        fraction: share of all patches that the coreset keeps (1 to 25 % in the paper).
        """
        L = len(train.patch_tokens)
        stages = stages or tuple(range(L // 4, L - L // 4))
        bank = rearrange(locally_aware_tokens(train, list(stages), degree), "N M C -> (N M) C")
        rows = greedy_coreset(bank, max(1, round(fraction * len(bank))), projected=projected, seed=seed)
        return cls(bank[rows], stages, degree, neighbors)

    def score(self, test: Features) -> tuple[Float[Tensor, "N"], Float[Tensor, "N M"]]:
        """Image scores (Eq. 6 and 7 there) and patch scores, Euclidean distances; class tokens are not used.

        s = (1 - exp|m_test - m*| / sum over the b nearest m of m* in M, itself among them, of exp|m_test - m|) s*.
        """
        tokens = locally_aware_tokens(test, list(self.stages), self.degree)
        pairs = [_nearest(image, self.memory) for image in tokens]
        patch_scores, nearest = (torch.stack(found) for found in zip(*pairs, strict=True))  # [N, M] each
        image_scores, patch = patch_scores.max(dim=1)  # s*, of m_test: [N]
        b = min(self.neighbors, len(self.memory))
        if b < 2:
            return image_scores, patch_scores
        rows = torch.arange(len(tokens), device=tokens.device)
        candidate = tokens[rows, patch]  # m_test: [N, C]
        star = self.memory[nearest[rows, patch]]  # m*: [N, C]
        around = _distances(star, self.memory).topk(b, dim=1, largest=False).indices  # N_b(m*): [N, b]
        away = (candidate[:, None] - self.memory[around]).norm(dim=2)  # |m_test - m|: [N, b]
        rare = torch.exp(image_scores - away.logsumexp(dim=1))  # sums of exp overflow, their logarithms do not
        return (1 - rare) * image_scores, patch_scores


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
        return cls(_image_level(train), _all_stages(train), min(K, len(train)), kappa)

    def score(self, test: Features) -> tuple[Float[Tensor, "N"], Float[Tensor, "N M"]]:
        """Image scores, the mean squared distance to the K nearest images (Sec. 3.2 there), and patch scores, the
        mean squared distance to the kappa nearest patches of these images, wherever they lie (Sec. 3.3)."""
        away, nearest = _distances(_image_level(test), self.images).topk(self.K, dim=1, largest=False)  # [N, K]
        patch_scores = [
            _nearest_mean(image, self.patches[rows].flatten(0, 1), self.kappa)
            for image, rows in zip(_all_stages(test), nearest, strict=True)
        ]
        return away.square().mean(dim=1), torch.stack(patch_scores)


def rscin_gain(category: Category, musc: MuSc) -> pd.DataFrame:
    """Image metrics in percent of both baselines without and with RsCIN, by the windows of the configuration (Tab. 11).

    The memory is the category's normal training images. Columns as in the paper's table: dataset, category, method,
    setting, backbone, rscin ("without" or "with"), image_auroc, image_f1_max, image_ap. Raises DataError where the
    category has no training images, lacks labels, or the backbone has no class token.
    """
    import pandas as pd

    if not category.train:
        raise DataError(f"{category.name} has no normal training images, which PatchCore and SPADE need.")
    if not category.labeled:
        raise DataError(f"{category.name} has images without labels: the gain from RsCIN cannot be measured.")
    train, test = musc.features(category.train), musc.features(category.samples)
    if test.class_tokens is None:
        raise DataError(f"{musc.config.backbone} has no class token, which RsCIN needs: choose another backbone.")
    labels = torch.tensor([sample.label for sample in test.samples])
    rows = []
    for name, model in (("SPADE", Spade.fit(train)), ("PatchCore", PatchCore.fit(train, seed=musc.config.seed))):
        before, _ = model.score(test)
        windows = [k if k == math.inf else min(k, len(before)) for k in musc.config.windows]
        after = rscin.rescore(before, test.class_tokens.to(before), windows)
        about = {"dataset": category.dataset, "category": category.name, "method": name}
        about |= {"setting": f"{len(train)} normal images", "backbone": musc.config.backbone}
        for word, scores in (("without", before), ("with", after)):
            measured = metrics.image_metrics(labels, scores)
            rows.append(about | {"rscin": word} | {f"image_{m}": 100 * measured[m] for m in ("auroc", "f1_max", "ap")})
    return pd.DataFrame(rows)


def _all_stages(features: Features) -> Float[Tensor, "N M C"]:
    return locally_aware_tokens(features, list(range(len(features.patch_tokens))), 1)


def _image_level(features: Features) -> Float[Tensor, "N D"]:
    if features.class_tokens is not None:
        return features.class_tokens.float()
    return features.patch_tokens[-1].float().mean(dim=1)


def _distances(a: Float[Tensor, "A C"], b: Float[Tensor, "B C"]) -> Float[Tensor, "A B"]:
    """Euclidean, by one matrix product. Both are centred first: of small numbers less is lost in the difference."""
    centre = b.mean(dim=0)
    return torch.cdist(a - centre, b - centre, compute_mode="use_mm_for_euclid_dist")


def _nearest(a: Float[Tensor, "A C"], b: Float[Tensor, "B C"]) -> tuple[Float[Tensor, "A"], Int[Tensor, "A"]]:
    rows = [_distances(part, b).min(dim=1) for part in a.split(max(1, BLOCK // len(b)))]
    return torch.cat([r.values for r in rows]), torch.cat([r.indices for r in rows])


def _nearest_mean(a: Float[Tensor, "A C"], b: Float[Tensor, "B C"], kappa: int) -> Float[Tensor, "A"]:
    """Mean squared distance to the kappa nearest."""
    parts = a.split(max(1, BLOCK // len(b)))
    kappa = min(kappa, len(b))
    return torch.cat([_distances(p, b).topk(kappa, dim=1, largest=False).values.square().mean(dim=1) for p in parts])
