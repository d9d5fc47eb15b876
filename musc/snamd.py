"""SNAMD: similarity-weighted neighborhood aggregation with multiple degrees, MuSc-V2's in place of LNAMD.

Li et al., MuSc-V2 (arXiv 2511.10047), its 2-D part. LNAMD (Sec. 3.1) gives every degree a token of its own, and mutual
scoring one pass per stage and degree. SNAMD weighs neighbours by how like the patch they are, and averages the degrees
before scoring: one pass per stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from musc.lnamd import check_degree, square_grid

Span = tuple[slice, slice]  # rows and columns of the patch grid


def aggregate(
    patch_tokens: Float[Tensor, "N M C"],
    degrees: Sequence[int] = (1, 3, 5),
    *,
    temperature: float | None = None,
    grid: tuple[int, int] | None = None,
    normalize: bool = True,
) -> Float[Tensor, "N M C"]:
    """Replace every patch token by the mean, over the degrees, of its similarity-weighted neighbourhoods.

    w_pq = exp(-|F_q - F_p|) on the raw tokens (no LayerNorm), F_p^r = sum of w_pq F_q / sum of w_pq over the r x r
    neighbourhood of patch p, and Z_p = mean over r of F_p^r, of unit length. Beyond the border lie zero vectors, whose
    weight exp(-|F_p|) counts in the denominator, as published.

    Args:
        patch_tokens: [N, M, C], raw tokens of one stage, patches row by row.
        degrees: the r, odd.
        temperature: None is as published. A number divides the distances, those to the padding too, by that many
            medians of the distances of all these images' patches to their neighbours in the largest neighbourhood
            (an extension: with tokens of length 10, exp(-distance) is nearly 0 and hardly anything is aggregated).
        grid: (rows, columns) of the patch grid; square where not given.
        normalize: False leaves out the L2 norm.

    Returns:
        [N, M, C], unit vectors, in the input's dtype and on its device.

    Raises:
        ValueError: no degree, an even one, a temperature that is not positive, or a grid that does not hold M patches.

    Differs from the released code, which averages the degrees in float16: here in float32 (float64 for such input).

    Example:
        >>> tokens = torch.full((1, 9, 4), 2.0)
        >>> tokens[0, 4] = -9.0  # one patch unlike its neighbours
        >>> aggregate(tokens, normalize=False)[0, 3:5, 0]  # it changes nothing of them, nor they of it
        tensor([ 1.9692, -9.0000])
    """
    N, M, C = patch_tokens.shape
    H, W = square_grid(M, grid)
    if not degrees:
        raise ValueError("no degrees: give at least one, such as 1.")
    if temperature is not None and not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}: give a positive number of medians, or None as published.")
    halves = [check_degree(r) // 2 for r in degrees]
    wide = patch_tokens if patch_tokens.dtype == torch.float64 else patch_tokens.float()
    images = wide.reshape(N, H, W, C)
    scale = 1.0
    if temperature is not None:
        every = torch.cat([d for image in images for *_, d in _pairs(image, max(halves))] or [wide.new_zeros(1)])
        scale = temperature * max(float(every.median()), torch.finfo(wide.dtype).tiny)
    out = torch.empty_like(images)
    for n, image in enumerate(images):
        out[n] = _aggregate(image, halves, scale)
    out = out.reshape(N, M, C)
    return (F.normalize(out, dim=-1) if normalize else out).to(patch_tokens.dtype)


def as_raw(unit_tokens: Float[Tensor, "N M C"]) -> Float[Tensor, "N M D"]:
    """Tokens that LNAMD of degree 1 leaves as they are, with all distances of `unit_tokens`: D = C + 1 channels.

    Mutual scoring (`musc.msm`) takes raw tokens and gives them the LayerNorm of Sec. 3.1 and unit length. A zero
    channel is added and all channels are reflected so that the channels of every token sum to 0; then the LayerNorm
    subtracts nothing, and the norm takes back what it divides by.

    Example:
        >>> from musc import lnamd
        >>> tokens = aggregate(torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)))
        >>> again = lnamd.aggregate(as_raw(tokens), 1)
        >>> torch.cdist(again[0], again[1]).allclose(torch.cdist(tokens[0], tokens[1]), atol=1e-5)
        True
    """
    C = unit_tokens.shape[-1]
    mirror = unit_tokens.new_full((C + 1,), 1 / math.sqrt(C + 1))
    mirror[-1] -= 1
    mirror /= mirror.norm()  # of the reflection that exchanges the mean's direction and the added channel
    along = unit_tokens @ mirror[:-1]  # [N, M]
    out = F.pad(unit_tokens, (0, 1))
    out.view(-1, C + 1).addr_(along.flatten(), mirror, alpha=-2)  # in place: fresh memory takes longer than the sums
    return out


def _aggregate(image: Float[Tensor, "H W C"], halves: list[int], scale: float) -> Float[Tensor, "H W C"]:
    """Z of one image: the weights first, then one sum with the weights of all degrees."""
    H, W, _ = image.shape
    h = max(halves)
    beyond = torch.exp(-torch.linalg.vector_norm(image, dim=-1) / scale)  # the weight of a zero vector: [H, W]
    weights = beyond.expand(2 * h + 1, 2 * h + 1, H, W).clone()  # of the neighbour at each offset
    weights[h, h] = 1
    for a, b, own, other, distance in _pairs(image, h):
        w = torch.exp(-distance / scale).reshape(weights[h + a, h + b][own].shape)
        weights[h + a, h + b][own] = w
        weights[h - a, h - b][other] = w
    share = torch.zeros_like(weights)
    for half in halves:
        within = slice(h - half, h + half + 1)
        total = weights[within, within].sum(dim=(0, 1))  # [H, W]
        share[within, within] += weights[within, within] / total / len(halves)
    out = share[h, h, :, :, None] * image
    for a, b, own, other in _offsets(H, W, h):  # the padding adds nothing
        out[own].addcmul_(share[h + a, h + b][own][..., None], image[other])
        out[other].addcmul_(share[h - a, h - b][other][..., None], image[own])
    return out


def _pairs(image: Float[Tensor, "H W C"], half: int) -> Iterator[tuple[int, int, Span, Span, Tensor]]:
    """Every pair of neighbours once, by offset: (rows down, columns right, patches, their neighbours, distances)."""
    H, W, _ = image.shape
    for a, b, own, other in _offsets(H, W, half):
        yield a, b, own, other, torch.linalg.vector_norm(image[other] - image[own], dim=-1).flatten()


def _offsets(H: int, W: int, half: int) -> Iterator[tuple[int, int, Span, Span]]:
    """Half of the offsets (the others are their negatives), with the patches that have such a neighbour, and those."""
    for a in range(min(half, H - 1) + 1):
        for b in range(-min(half, W - 1), min(half, W - 1) + 1):
            if (a, b) > (0, 0):
                own = slice(0, H - a), slice(max(0, -b), W - max(0, b))
                yield a, b, own, (slice(a, H), slice(max(0, b), W + min(0, b)))
