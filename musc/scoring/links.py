"""Which images are linked by a defect that they share: suspicious links, the graph that they make, its communities.

After CoDeGraph (Le-Gia et al., arXiv 2510.10456), whose constants are not published. A patch of a shared defect is near
to the images that share it and far from all others: its sorted distances (Eq. 1) stay low and then jump. The endurance
ratio of a link from a patch to an image is its distance, over the patch's distance at a rank beyond any minority's.
Links of small ratio are suspicious. Images in one pose are near to each other in every patch, which is no defect: the
ratio is divided by the usual one of that pair of images. A transformer spreads a large defect over all tokens of its
image, which looks the same; so there is a second graph without that division.

The constants were chosen on the pools of `benchmarks/consistent.py` with the embedded backbone, whose table says what
they reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RANK = 0.6  # of a patch's sorted distances, as a fraction: what tells how far the images are that share nothing with it
CONSPICUOUS = 0.9  # of the usual image's largest distance at that rank: what a patch needs to take part
ENDURANCE = 0.8  # largest ratio of a suspicious link
LARGEST = 0.7  # part of the images that a community may hold before it is refined
SMALLEST = 3  # images that make a group: two alike may be duplicates
GAIN = 1.02  # factor by which an image that comes or goes must raise a group's contrast
CONTRAST = 1.15  # least contrast of a group, over the square of what tells its ordinary patches apart
CLEAR = 2.2  # contrast that is enough in any case
STANDS_OUT = 0.95  # least distance at that rank of a group's patches, over the usual image's largest


@dataclass(frozen=True)
class Suspects:
    """The P conspicuous patches of N images, R references counted last among the images that they meet.

    image: [P], whose they are. distances: [P, N + R], to the nearest patch of each image, the own one 0. level: [P],
    at `RANK`. usual: the median image's largest level.
    """

    N: int
    image: Int[Tensor, "P"]
    distances: Float[Tensor, "P J"]
    level: Float[Tensor, "P"]
    usual: float

    def contrast(self, members: Bool[Tensor, "J"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "p"], Bool[Tensor, "P"]]:
        """How clearly a set of images is apart: distance to the nearest image outside / to the farthest inside.

        Returns its largest value among each image's patches (0 for an image without any, and outside), its values for
        the members' patches, and which those are.

        Example:
            >>> d = torch.tensor([[0.0, 0.1, 0.8], [0.2, 0.0, 0.8]])  # a patch of image 0, one of image 1
            >>> suspects = Suspects(3, torch.tensor([0, 1]), d, torch.tensor([0.8, 0.8]), 0.8)
            >>> suspects.contrast(torch.tensor([True, True, False]))[0]
            tensor([8., 4., 0.])
        """
        rows = members[self.image]
        near = self.distances[rows]
        inside = near.masked_fill(~members, 0).amax(dim=1).clamp(min=1e-3)
        values = near.masked_fill(members, torch.inf).amin(dim=1) / inside
        best = values.new_zeros(self.N).scatter_reduce(0, self.image[rows], values, "amax")
        return best, values, rows


def suspects(full: Float[Tensor, "N J M"]) -> tuple[Suspects, Float[Tensor, "N J"]]:
    """The conspicuous patches, and for every pair of images the median over patches of distance / level.

    full: distances to all N images, the own one 0, and then to R references.
    """
    N, J, _ = full.shape
    rank = min(J - 1, 2 + int(RANK * (J - 1)))  # the own image is the first
    level = torch.stack([d.kthvalue(rank, dim=0).values for d in full])  # [N, M]
    usual = float(level.amax(dim=1).median())
    image, patch = (level >= CONSPICUOUS * usual).nonzero(as_tuple=True)
    pairs = torch.stack([(d / s.clamp(min=1e-12)).median(dim=1).values for d, s in zip(full, level, strict=True)])
    return Suspects(N, image, full[image, :, patch], level[image, patch], usual), pairs


def graph(found: Suspects, pairs: Float[Tensor, "N J"]) -> Float[Tensor, "N N"]:
    """Weights of the links between images, symmetric: 1 where a patch is equal, 0 where nothing is suspicious.

    Of two images each one's strongest link to the other counts, and of these the weaker: they must agree.
    """
    N = found.N
    ratio = found.distances[:, :N] / found.level[:, None].clamp(min=1e-12) / pairs[found.image, :N].clamp(min=0.05)
    strength = (1 - ratio / ENDURANCE).clamp(min=0)
    weights = strength.new_zeros(N, N).scatter_reduce(0, found.image[:, None].expand(-1, N), strength, "amax")
    return torch.minimum(weights, weights.T).fill_diagonal_(0)


def communities(weights: Float[Tensor, "N N"]) -> list[list[int]]:
    """Communities of the graph, by Louvain's method, of `SMALLEST` images or more.

    Example:
        >>> weights = torch.zeros(6, 6)
        >>> weights[:3, :3] = 0.9
        >>> communities(weights.fill_diagonal_(0))
        [[0, 1, 2]]
    """
    import networkx as nx  # which takes its time

    net = nx.Graph()
    net.add_nodes_from(range(len(weights)))
    at = weights.triu().nonzero().tolist()
    net.add_weighted_edges_from((i, j, float(weights[i, j])) for i, j in at)
    found = nx.community.louvain_communities(net, seed=0)
    return sorted(sorted(c) for c in found if SMALLEST <= len(c) <= LARGEST * len(weights))


def refined(found: Suspects, images: Sequence[int]) -> Bool[Tensor, "J"] | None:
    """The set of images next to `images` whose median contrast is largest: one by one they leave and come.

    None where fewer than `SMALLEST` or more than half of the images remain, or none that stand apart.
    """
    members = torch.zeros(found.distances.shape[1], dtype=torch.bool, device=found.distances.device)
    members[list(images)] = True
    value = float(found.contrast(members)[0][members[: found.N]].median())
    while True:
        best, at = GAIN * value, -1
        for k in range(found.N):
            members[k] ^= True
            if SMALLEST <= int(members.sum()) <= found.N // 2:
                changed = float(found.contrast(members)[0][members[: found.N]].median())
                if changed > best:
                    best, at = changed, k
            members[k] ^= True
        if at < 0:
            break
        members[at] ^= True
        value = best
    members[: found.N] &= found.contrast(members)[0] >= 1
    return members if SMALLEST <= int(members.sum()) <= found.N // 2 else None


def is_defect(found: Suspects, full: Float[Tensor, "N J M"], members: Bool[Tensor, "J"]) -> bool:
    """Whether what these images share stands out, is clearly theirs alone, and is no pose or variant of all of them.

    Images in one pose are apart from the others in ordinary patches too, by some ratio: the contrast must be `CONTRAST`
    times its square.
    """
    rows = members[: found.N].nonzero().flatten()
    best, values, suspicious = found.contrast(members)
    owner = found.image[suspicious]
    telling = torch.where(values >= 0.9 * best[owner], found.level[suspicious], 0)
    highest = telling.new_zeros(found.N).scatter_reduce(0, owner, telling, "amax")[rows]
    if float(highest.median()) < STANDS_OUT * found.usual:
        return False
    medians = []
    for i in rows.tolist():  # of an ordinary patch: are the others farther than the members?
        inside = members.clone()
        inside[i] = False
        ratio = full[i, ~members].median(dim=0).values / full[i, inside].median(dim=0).values.clamp(min=1e-3)
        medians.append(float(ratio.median()))
    whole = float(torch.tensor(medians).median())
    return float(best[rows].median()) >= min(CONTRAST * max(1.0, whole) ** 2, CLEAR)


def linked(full: Float[Tensor, "N J M"]) -> list[tuple[tuple[int, ...], float]]:
    """Sets of images that share a defect, and the contrast of each, the clearest first.

    Of two that overlap by more than half of the smaller, or are the two halves of all images, the clearer one.

    Example:
        >>> full = torch.rand(12, 12, 9, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.3
        >>> full[:, :, 4] = 0.35  # at patch 4 the images are 0.35 apart
        >>> full[:4, :, 4] = 0.9  # but for four that have something else there
        >>> full[:4, :4, 4] = 0.1  # and share it
        >>> full[range(12), range(12)] = 0
        >>> [images for images, contrast in linked(full)]
        [(0, 1, 2, 3)]
    """
    if len(full) < 2 * SMALLEST:
        return []
    found, pairs = suspects(full)
    out: dict[tuple[int, ...], float] = {}
    together = communities(graph(found, pairs)) + communities(graph(found, torch.ones_like(pairs)))
    for community in together:
        members = refined(found, community)
        if members is not None and is_defect(found, full, members):
            rows = tuple(members.nonzero().flatten().tolist())
            out[rows] = float(found.contrast(members)[0][list(rows)].median())
    kept: list[tuple[tuple[int, ...], float]] = []
    for images, contrast in sorted(out.items(), key=lambda pair: (-pair[1], pair[0])):
        a, known = set(images), [set(other) for other, _ in kept]
        if not any(2 * len(a & b) > min(len(a), len(b)) or len(a | b) == len(full) for b in known):
            kept.append((images, contrast))
    return kept
