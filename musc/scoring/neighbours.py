"""Which images are worth comparing: a shortlist of look-alikes for each image, or a coreset of images for all of them.

Eq. 2 averages the K = floor(0.3 (N - 1)) smallest distances of a patch, so images that are among its farthest 70 % need
not be compared with it. Which they are cannot be known without comparing; but images that differ as a whole are rarely
near in a patch. Coarse tokens, the means of a 4 x 4 grid of cells, tell how much two images differ at less than a
hundredth of the cost. A shortlist of S images then stands for the K that Eq. 2 keeps: the K lowest of it are averaged,
or all of it where it is shorter.

It is an approximation, and not the same for all images: an image of a rare kind finds its own kind on its shortlist and
scores lower than by all images, and so does one whose defect others share and coarse tokens see. A coreset of R images
treats all alike, as R randomly drawn ones do (`MuScConfig.references`), and leaves no kind of image out: each next one
is that which differs most from those before it. Neither is in the paper.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from musc import msm

CORESET = "coreset:"  # begins the setting, and a number follows
CELLS, DIRECTIONS = 4, 64  # of a sketch: cells per side, and channels that are left
AT_ONCE = 1 << 22  # products held at a time (16 MiB in float32)


def count(neighbours: str | float, N: int) -> int | None:
    """Images that score each image by the setting `neighbours`, at least one; None: all N - 1 others.

    Example:
        >>> count(0.1, 400), count(40, 400), count("coreset:40", 400), count("exact", 400), count(40, 20)
        (40, 40, 40, None, None)
    """
    if neighbours == "exact":
        return None
    if isinstance(neighbours, str):
        S = int(neighbours.removeprefix(CORESET))
    else:
        S = int(neighbours) if isinstance(neighbours, int) else math.ceil(neighbours * (N - 1) - 1e-9)
    return None if S >= N - 1 else max(1, S)


def sketches(
    tokens: Float[Tensor, "N M C"], grid: tuple[int, int], cells: int = CELLS, directions: int = DIRECTIONS
) -> Float[Tensor, "N G c"]:
    """Coarse tokens: means of `cells` x `cells` parts of the image, centred over all images, in their main directions.

    [N, G, c] of unit length; G = cells^2 or less, where the grid is smaller; c = min(C, directions).

    Example:
        >>> sketches(torch.randn(5, 36, 8, generator=torch.Generator().manual_seed(0)), (6, 6)).shape
        torch.Size([5, 16, 8])
    """
    H, W = grid
    shape = min(cells, H), min(cells, W)
    # image by image, since tokens may lie on disk; on a GPU more, to keep it busy
    parts = (t.float().mT.reshape(len(t), -1, H, W) for t in tokens.split(1 if tokens.device.type == "cpu" else 64))
    found = torch.cat([F.adaptive_avg_pool2d(t, shape).flatten(2).mT for t in parts])  # [N, G, C]
    found = found - found.mean(dim=(0, 1))
    flat = found.flatten(0, 1)
    if found.shape[-1] > directions:
        _, axes = torch.linalg.eigh(flat.T @ flat)  # eigenvalues ascend
        found = found @ axes[:, -directions:]
    return F.normalize(found, dim=-1)


def differences(sketched: Float[Tensor, "N G c"]) -> Float[Tensor, "N N"]:
    """How much image i differs from image j: the distance of i's coarse tokens to the nearest of j's, on average.

    Example:
        >>> sketched = F.normalize(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]), dim=-1)
        >>> differences(sketched)[0]
        tensor([0.0000, 0.0000, 1.4142])
    """
    N, G, _ = sketched.shape
    flat = sketched.flatten(0, 1).T  # [c, N G]
    step = max(1, AT_ONCE // (N * G * G))
    rows = []
    for some in sketched.split(step):
        cosine = (some.flatten(0, 1) @ flat).view(len(some), G, N, G).amax(dim=3)  # [s, G, N]
        rows.append((2 - 2 * cosine).clamp(min=0).sqrt().mean(dim=1))
    return torch.cat(rows)


def chosen(neighbours: str | float, tokens: Float[Tensor, "N M C"], grid: tuple[int, int]) -> Int[Tensor, "N S"] | None:
    """The images that score each image, as a `pool` of `msm.mutual_scores`; None: all others.

    neighbours: as in MuScConfig. tokens: raw ones of one stage.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> kinds = torch.randn(2, 9, 8, generator=g)
        >>> tokens = kinds[[0, 1, 0, 1]] + 0.1 * torch.randn(4, 9, 8, generator=g)  # two images of either kind
        >>> chosen(1, tokens, (3, 3)).flatten()
        tensor([2, 3, 0, 1])
    """
    S = count(neighbours, len(tokens))
    if S is None:
        return None
    apart = differences(sketches(tokens, grid))
    return coreset(apart.cpu(), S) if isinstance(neighbours, str) else shortlists(apart, S).cpu()


def shortlists(apart: Float[Tensor, "N N"], S: int) -> Int[Tensor, "N S"]:
    """The S look-alikes of every image among the others, the most alike first; equal ones come in their order.

    Example:
        >>> shortlists(torch.tensor([[0.0, 2.0, 1.0], [2.0, 0.0, 3.0], [1.0, 3.0, 0.0]]), S=1).flatten()
        tensor([2, 0, 0])
    """
    return apart.clone().fill_diagonal_(math.inf).argsort(dim=1, stable=True)[:, :S]


def coreset(apart: Float[Tensor, "N N"], R: int) -> Int[Tensor, "N R"]:
    """R images that differ (greedy k-centre), the same for all; an image among them is scored by one more in its place.

    Example:
        >>> places = torch.tensor([0.0, 1.0, 2.0, 9.0])
        >>> coreset((places[:, None] - places).abs(), R=2)  # the middle one first, then the farthest
        tensor([[1, 3],
                [3, 0],
                [1, 3],
                [1, 0]])
    """
    centres = [int(apart.sum(dim=0).argmin())]
    nearest = apart[:, centres[0]].clone()
    while len(centres) <= R:
        centres.append(int(nearest.index_fill(0, torch.tensor(centres), -1.0).argmax()))
        nearest = torch.minimum(nearest, apart[:, centres[-1]])
    return torch.tensor([[c for c in centres if c != i][:R] for i in range(len(apart))])


def interval_of_shortlist(interval: tuple[float, float], J: int, full: int) -> tuple[float, float]:
    """The interval of J distances that takes as many of the smallest as `interval` takes of all `full` (Eq. 2).

    Example:
        >>> interval_of_shortlist((0.0, 0.3), J=40, full=100), interval_of_shortlist((0.0, 0.3), J=20, full=100)
        ((0.0, 0.75), (0.0, 1.0))
    """
    low, high = msm.interval_bounds(full, interval)
    low = min(low, J - 1)
    return low / J, max(min(high, J), low + 1) / J
