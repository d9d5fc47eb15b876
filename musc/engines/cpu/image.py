"""The CPU engine's preparation of one image: integer panels, unit tokens, and margins for what rounding leaves out."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from musc.engines.cpu import kernels, products
from musc.engines.cpu.boxes import LANES
from musc.engines.cpu.layout import NOTHING, Images, Layout

ROUNDING = 2.0**-24  # relative, of one float32 operation
SUMMED = 1e-6  # of a cosine, by float32 box filters
LIKELY = 2.0  # standard deviations of the rounding error that margins cover where distances have a tolerance
CLIP = 4.6  # standard deviations of 8-bit values that their range holds
DIRECTIONS = 64  # whose products take 16 bits
TINY = np.float32(1e-20)
Room = tuple[np.ndarray, np.ndarray]  # for one image in preparation: [M, C] and [M, 64 spans], at first zeros


def room(layout: Layout) -> Room:
    M = layout.H * layout.W
    return np.empty((M, layout.C), np.float32), np.zeros((M, 4 * products.SPAN * layout.spans), np.float32)


def rotate(tokens: Tensor, layout: Layout, room: Room) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image's tokens [M, C], centred; of those the coordinates that take 16 bits, and the others [M, 64 spans].

    LayerNorm over the whole map is a shift and a scale per image, and the scale goes in the L2 norm: only the shift is
    done.
    """
    raw, low = room
    given = tokens.float().numpy()
    np.subtract(given, np.float32(given.mean(dtype=np.float64)), out=raw)
    if layout.rotation is None:
        return raw, raw, low
    A, V = layout.rotation
    high = np.empty((len(raw), layout.K), np.float32)
    kernels.rotate(raw, A, V, high, low)
    return raw, high, low


def prepare(rotated: tuple[np.ndarray, np.ndarray, np.ndarray], layout: Layout, images: Images, s: int) -> None:
    """Makes what `rotate` returned the s-th of the images.

    What rounding leaves out of a token is measured, and summed over neighbourhoods as the tokens are. By Cauchy and
    Schwarz it changes a cosine by no more than its share of the aggregated token's length (`margins8`, `margins16`).
    """
    raw, high, low = rotated
    (M, C), D, grid = raw.shape, len(layout.degrees), layout.grid
    size, along, spread = np.empty((D, M), np.float32), np.empty((D, M), np.float32), np.empty((D, M), np.float32)
    length, error, left = np.empty(M, np.float32), np.empty(M, np.float32), np.empty(M, np.float32)
    kernels.lengths(raw, length)
    _boxes(raw, grid, images.unit[s], size)
    kernels.lengths(low, left)
    if layout.rotation is not None:
        _boxes(high, grid, None, along)
    scales, top = _scales(length, left, high, low, layout)
    panels = images.rows[s], images.columns[s], images.offset[s]
    kernels.pack(low, high, scales, top, LANES * grid.vectors, grid.W, *panels, error)
    images.ratio[s] = scales[1] / scales[0]
    if layout.rotation is not None and layout.tolerance:
        kernels.lengths(low, left)  # independent errors of r^2 tokens add up to r of them
        spread = neighbourhoods(left, grid.H, grid.W, grid.halves) / (2 * grid.halves[:, None] + 1)
    elif layout.rotation is not None:
        _boxes(low, grid, None, spread)  # of what is left out
    inverse = 1 / np.maximum(size, TINY)  # [D, M]
    met = neighbourhoods(length, grid.H, grid.W, grid.halves) * inverse  # lengths that meet in a neighbourhood
    lost = neighbourhoods(error, grid.H, grid.W, grid.halves) * inverse  # and of those the parts left out
    slack = SUMMED + C * ROUNDING
    margin = slack * met**2 / 2 + margins16(lost, layout)
    if layout.rotation is not None:
        beyond = np.sqrt(np.maximum(1 - (along * inverse) ** 2, 0)) + slack * met  # length of what takes 8 bits
        margin += margins8(spread * inverse, beyond, top, layout)
    margin = np.minimum(margin, 2).astype(np.float32)
    first = np.stack([first_of_equals(size[d], images.unit[s, d]) for d in range(D)])
    own, there = first == np.arange(M), grid.place >= 0
    inverse /= scales[1]
    images.first[s], images.row_scale[s], images.row_margin[s] = first, inverse, margin
    images.column_scale[s], images.column_margin[s] = 0, NOTHING
    images.column_scale[s][:, there] = np.where(own, inverse, 0)
    images.column_margin[s][:, there] = np.where(own, margin, NOTHING)


def _boxes(tokens, grid, out: np.ndarray | None, size: np.ndarray) -> None:
    """Lengths [D, M] of the tokens' sums over neighbourhoods, and those in unit length [D, M, C]."""
    line, alone = np.empty((grid.W, tokens.shape[1]), np.float32), np.empty((1, tokens.shape[1]), np.float32)
    for d, h in enumerate(grid.halves):
        kernels.box(tokens, grid.H, grid.W, h, line, alone if out is None else out[d], size[d])


def _scales(length, left, high, low, layout: Layout) -> tuple[np.ndarray, int]:
    """Scales [2] of 8-bit and 16-bit integers, and the largest 8-bit one. length, left: [M], of tokens and of `low`."""
    top, scale8 = products.TOP8_WIDE if layout.wide else products.TOP8, 1.0
    if layout.rotation is not None:
        deviation = np.sqrt(np.square(left, dtype=np.float64).mean() / (layout.C - layout.K))
        scale8 = top / max(CLIP * deviation, 1e-18)
        if not layout.wide:
            scale8 = min(scale8, products.LANE / max(float(kernels.longest_lane(low)), 1e-18))
    # sums below 2^31, elements below 2^15
    scale16 = min(46000 / max(float(length.max()), 1e-18), 32000 / max(float(np.abs(high).max()), 1e-18))
    return np.array([scale8, scale16], np.float32), top


def margins16(lost: np.ndarray, layout: Layout) -> np.ndarray:
    """[D, M], for 16-bit rounding errors of relative length `lost`: their products are with tokens of length 1."""
    likely = min(1, LIKELY / np.sqrt(layout.K)) if layout.tolerance else 1
    return lost * likely + lost**2 / 2


def margins8(lost: np.ndarray, beyond: np.ndarray, top: int, layout: Layout) -> np.ndarray:
    """[D, M], for 8-bit rounding errors of relative length `lost`; `beyond`: length of what was rounded.

    They enter a cosine as lost_a beyond_b + beyond_a lost_b + lost_a lost_b, and x y <= (x^2 / t + t y^2) / 2 for any t
    makes that a sum of two tokens' margins.
    """
    t = CLIP / top / np.sqrt(12)
    likely = min(1, LIKELY / np.sqrt(layout.C - layout.K)) if layout.tolerance else 1
    # nearly equal tokens are rounded alike: that lost_a lost_b is as large as it can be
    return (lost**2 / t + t * beyond**2) / 2 * likely + lost**2 / 2


def neighbourhoods(values: np.ndarray, H: int, W: int, halves: np.ndarray) -> np.ndarray:
    """Sums [D, M] of values [M] over (2h + 1)^2 neighbourhoods of the patch grid, by a table of running sums."""
    w = int(halves.max())
    table = np.zeros((H + 2 * w + 1, W + 2 * w + 1))
    table[1:, 1:] = np.pad(values.reshape(H, W).astype(np.float64), w).cumsum(0).cumsum(1)
    out = []
    for h in halves:
        low, high = w - h, w + h + 1
        ys, xs = (slice(low, low + H), slice(high, high + H)), (slice(low, low + W), slice(high, high + W))
        out.append(table[ys[1], xs[1]] - table[ys[0], xs[1]] - table[ys[1], xs[0]] + table[ys[0], xs[0]])
    return np.stack(out).reshape(len(halves), H * W).clip(min=0)


def first_of_equals(size: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """[M]: for every aggregated token the first one that equals it in all channels. size: [M], their lengths."""
    first = np.arange(len(size))
    if (np.diff(np.sort(size)) > 0).all():  # most tokens differ in length
        return first
    _, index, inverse, counts = np.unique(size, return_index=True, return_inverse=True, return_counts=True)
    for group in np.flatnonzero(counts > 1):
        members = np.flatnonzero(inverse == group)
        equal = (unit[members] == unit[members[0]]).all(axis=1)
        first[members[equal]] = index[group]
    return first
