"""The CPU engine's preparation of one image: integer panels, unit tokens, and margins for what rounding leaves out."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from musc.engines.cpu import kernels, products
from musc.engines.cpu.boxes import LANES
from musc.engines.cpu.layout import NOTHING, Buffers, Grid, Images, Layout

ROUNDING = 2.0**-24  # relative, of one float32 operation
SUMMED = 1e-6  # of a cosine, by float32 box filters
LIKELY = 2.0  # standard deviations of the rounding error that margins cover where distances have a tolerance
CLIP = 4.6  # standard deviations of 8-bit values that their range holds
DIRECTIONS = 64  # whose products take 16 bits
TINY = np.float32(1e-20)


def prepare(tokens: Tensor, layout: Layout, images: Images, s: int, buffers: Buffers) -> None:
    """Makes one image's tokens [M, C] the s-th of the images; they are centred and rotated in the buffers.

    LayerNorm over the whole map is a shift and a scale per image, and the scale goes in the L2 norm: only the shift is
    done. What rounding leaves out of a token is measured, and summed over neighbourhoods as the tokens are. By Cauchy
    and Schwarz it changes a cosine by no more than its share of the aggregated token's length (README.md).
    """
    (raw, high, low), grid, eight = buffers[:3], layout.grid, layout.rotation is not None
    given = tokens.float().numpy()
    np.subtract(given, np.float32(given.mean(dtype=np.float64)), out=raw)
    if layout.rotation is None:
        high = raw
    else:
        kernels.rotate(raw, *layout.rotation, high, low)
    length, size = kernels.lengths(raw), sums(raw, grid, images.unit[s])
    scales, top = choose_scales(length, high, low, layout)
    panels = images.rows[s], images.columns[s], images.offset[s]
    error = kernels.pack(low, high, scales, top, LANES * grid.vectors, grid.W, *panels)
    images.ratio[s] = scales[1] / scales[0]
    inverse = 1 / np.maximum(size, TINY)  # [D, M]
    met = sums(length[:, None], grid) * inverse  # lengths that meet in a neighbourhood
    lost = sums(error[:, None], grid) * inverse  # and of those the parts that 16 bits leave out
    slack = SUMMED + layout.C * ROUNDING
    # products of a rounding error are with tokens of length 1
    margin = slack * met**2 / 2 + lost * likely(layout, layout.K) + lost**2 / 2
    if eight:
        beyond = np.sqrt(np.maximum(1 - (sums(high, grid) * inverse) ** 2, 0)) + slack * met  # what takes 8 bits
        if layout.tolerance:  # independent errors of r^2 tokens add up to r of them
            left = sums(kernels.lengths(low)[:, None], grid) / (2 * grid.halves[:, None] + 1)
        else:
            left = sums(low, grid)
        margin += margins8(left * inverse, beyond, top, likely(layout, layout.C - layout.K))
    margin = np.minimum(margin, 2).astype(np.float32)
    first = np.stack([first_of_equals(*found) for found in zip(size, images.unit[s], strict=True)])
    own, there = first == np.arange(len(raw)), grid.place >= 0
    inverse /= scales[1]
    images.first[s], images.row_scale[s], images.row_margin[s] = first, inverse, margin
    images.column_scale[s], images.column_margin[s] = 0, NOTHING
    images.column_scale[s][:, there] = np.where(own, inverse, 0)
    images.column_margin[s][:, there] = np.where(own, margin, NOTHING)


def sums(values: np.ndarray, grid: Grid, out: np.ndarray | None = None) -> np.ndarray:
    """Lengths [D, M] of sums of values [M, C] over neighbourhoods; out: [D, M, C], receives them in unit length."""
    length, alone = np.empty((len(grid.halves), len(values)), np.float32), np.empty((1, values.shape[1]), np.float32)
    for d, h in enumerate(grid.halves):
        kernels.box(values, grid.H, grid.W, h, alone if out is None else out[d], length[d])
    return length


def choose_scales(length: np.ndarray, high: np.ndarray, low: np.ndarray, layout: Layout) -> tuple[np.ndarray, int]:
    """Scales [2] of 8-bit and 16-bit integers, and the largest 8-bit one. length: [M], of tokens."""
    top, scale8 = products.TOP8_WIDE if layout.wide else products.TOP8, 1.0
    if layout.rotation is not None:
        lanes = kernels.lengths(low.reshape(-1, 2 * products.SPAN))  # of what meets in a 16-bit sum
        deviation = np.sqrt(np.square(lanes, dtype=np.float64).sum() / len(low) / (layout.C - layout.K))
        scale8 = top / max(CLIP * deviation, 1e-18)
        if not layout.wide:
            scale8 = min(scale8, products.LANE / max(float(lanes.max()), 1e-18))
    # sums below 2^31, elements below 2^15
    scale16 = min(46000 / max(float(length.max()), 1e-18), 32000 / max(float(np.abs(high).max()), 1e-18))
    return np.array([scale8, scale16], np.float32), top


def likely(layout: Layout, coordinates: int) -> float:
    """The part of the largest possible effect of a rounding error that margins cover."""
    return min(1, LIKELY / np.sqrt(coordinates)) if layout.tolerance else 1


def margins8(lost: np.ndarray, beyond: np.ndarray, top: int, likely: float) -> np.ndarray:
    """[D, M], for 8-bit rounding errors of relative length `lost`; `beyond`: length of what was rounded.

    They enter a cosine as lost_a beyond_b + beyond_a lost_b + lost_a lost_b, and x y <= (x^2 / t + t y^2) / 2 for any t
    makes that a sum of two tokens' margins.
    """
    t = CLIP / top / np.sqrt(12)
    # nearly equal tokens are rounded alike: that lost_a lost_b is as large as it can be
    return (lost**2 / t + t * beyond**2) / 2 * likely + lost**2 / 2


def first_of_equals(size: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """[M]: for every aggregated token the first one that equals it in all channels. size: [M], their lengths."""
    first, order = np.arange(len(size)), np.argsort(size, kind="stable")  # brings equal ones together
    for k in np.flatnonzero(np.diff(size[order]) == 0):
        if (unit[order[k]] == unit[order[k + 1]]).all():
            first[order[k + 1]] = first[order[k]]
    return first
