"""The CPU engine's preparation of one image: integer panels, lengths, and margins for what rounding leaves out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musc.engines.cpu import kernels, products, search
from musc.engines.cpu.layout import SPARE, Layout, arrays

ROUNDING = 2.0**-24  # relative, of one float32 operation
SUMMED = 1e-6  # of a cosine, by float32 box filters
LIKELY = 2.0  # standard deviations of the rounding error that margins cover where precision is not "float32"


@dataclass(frozen=True)
class Raw:
    """One image's raw tokens [M, C], some of which are aggregated where a distance is wanted in full."""

    tokens: np.ndarray
    layout: Layout

    @cached_property
    def mean(self) -> np.float32:
        return np.float32(self.tokens.mean(dtype=np.float64))

    def aggregated(self, d: int, chosen: np.ndarray) -> np.ndarray:
        """The chosen tokens [k, C], aggregated to the d-th degree and of unit length."""
        h, grid = int(self.layout.halves[d]), self.tokens.reshape(self.layout.H, self.layout.W, -1)
        sums = np.empty((len(chosen), grid.shape[2]), np.float32)
        for total, y, x in zip(sums, *np.divmod(chosen, self.layout.W), strict=True):
            total[:] = (grid[max(0, y - h) : y + h + 1, max(0, x - h) : x + h + 1] - self.mean).sum(axis=(0, 1))
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.float32(1e-20))

    def nearest(self, d: int, wanted: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        """Squared distances [k] of aggregated tokens `wanted` [k, C] to the nearest of all here at the d-th degree.

        inverse: [M], 1 / lengths of the aggregated tokens here. Products with a neighbourhood's sum are sums of
        products; only the nearest token itself is aggregated.
        """
        centred = torch.from_numpy(self.tokens - self.mean)
        products = torch.from_numpy(wanted) @ centred.T  # not by numpy, which would start threads of its own
        sums = _neighbourhood(products.numpy(), self.layout.H, self.layout.W, int(self.layout.halves[d]))
        found = self.aggregated(d, (sums * inverse).argmax(axis=1))
        return np.square(wanted - found).sum(axis=1)


@dataclass(frozen=True)
class Image:
    """One image ready to be compared: raw tokens for the search, aggregated unit tokens for distances.

    rows, columns: raw centred tokens, as integer panels (with `offset` and the two `scales`) or as float32 [M, C] and
    [n, C]. unit: [D, M, C]; where margins are not sure it is empty, and `raw` serves the few distances that are wanted.
    as_rows, as_columns: factors that turn products into cosines, margins of error of those, per degree and token, and
    of each token the first that equals it.
    """

    rows: Any
    columns: Any
    offset: np.ndarray
    scales: tuple[float, float]
    unit: np.ndarray
    raw: Raw | None
    as_rows: tuple[np.ndarray, ...]
    as_columns: tuple[np.ndarray, ...]


def prepare(tokens: Tensor, layout: Layout, workspace: tuple[np.ndarray, ...] | None = None) -> Image:
    """One image's raw tokens [M, C] as an Image.

    LayerNorm over the whole map is a shift and a scale per image, and the scale goes in the L2 norm: only the shift is
    done. What rounding leaves out of a token is measured, and summed over neighbourhoods as the tokens are. By
    Cauchy and Schwarz it changes a cosine by no more than its share of the aggregated token's length (`_bound`).
    """
    M, C = tokens.shape
    D, H, W, n = len(layout.degrees), layout.H, layout.W, layout.n
    workspace = workspace or layout.workspace(C)
    raw, given = workspace[0], tokens.float().contiguous().numpy()
    kernels.center(given, raw)
    rows, columns, offset = arrays(*layout.operands(C))
    if layout.sure:
        unit, few = SPARE.take(4 * D * M * C).view(np.float32).reshape(D, M, C), None
    else:
        unit, few = np.empty((D, 0, C), np.float32), Raw(given, layout)
    length, error = np.empty(M, np.float32), np.zeros(M, np.float32)
    size, within = np.empty((D, M), np.float32), np.zeros((D, M), np.float32)
    halves, none = layout.halves.tolist(), np.empty((0, 0), np.float32)
    kernels.lengths(raw, length)
    for d, h in enumerate(halves):
        if h or layout.sure:
            kernels.box(raw, H, W, h, unit[d], size[d])
        else:
            size[d] = length
    inverse = 1 / np.maximum(size, np.float32(1e-20))
    valid, scales = layout.place >= 0, (1.0, 1.0)
    sides: tuple[Any, Any] = rows, columns
    if layout.integer:
        scales, along, left = _integers(workspace, length, layout, rows, columns, offset, error)
    else:
        padded = np.zeros((n, C), np.float32)
        padded[valid] = raw
        sides = torch.from_numpy(raw.copy()), torch.from_numpy(padded)
    # relative to the aggregated tokens: lengths that meet in a neighbourhood, and of those the parts left out
    met = np.stack([_neighbourhood(length, H, W, h) for h in halves]) * inverse
    lost = np.stack([_neighbourhood(error, H, W, h) for h in halves]) * inverse
    spread = np.empty(M, np.float32)
    if layout.turn is not None:
        kernels.lengths(left, error)
        for d, h in enumerate(halves):
            kernels.box(along, H, W, h, none, within[d])
            if layout.sure and h:
                kernels.box(left, H, W, h, none, spread)
            else:  # independent errors of r^2 tokens add up to r of them
                spread = _neighbourhood(error, H, W, h) / (2 * h + 1)
            lost[d] += spread * inverse[d]
        within *= inverse
    slack = SUMMED + C * ROUNDING
    beyond = np.sqrt(np.maximum(1 - within**2, 0)) + slack * met  # length of what takes 8 bits
    margin = _bound(lost, beyond, C, layout) + slack * met**2 / 2
    margin = np.minimum(margin, 2).astype(np.float32)
    pick = few.aggregated if few else lambda d, chosen: unit[d][chosen]
    first = np.stack([_first_of_equals(size[d], partial(pick, d)) for d in range(D)])
    inverse /= scales[1]
    column_scale, column_margin = np.zeros((D, n), np.float32), np.full((D, n), search.NOTHING, np.float32)
    own = first == np.arange(M)
    column_scale[:, valid] = np.where(own, inverse, 0)
    column_margin[:, valid] = np.where(own, margin, search.NOTHING)
    return Image(*sides, offset, scales, unit, few, (inverse, margin, first), (column_scale, column_margin, first))


def in_full(image: Image, other: Image, d: int, doubtful: np.ndarray, squares: np.ndarray) -> None:
    """Squared distances [M] to the nearest tokens of `other`: those of `doubtful` ones and their equals, in float32."""
    assert image.raw is not None
    assert other.raw is not None
    chosen = np.flatnonzero(doubtful)
    if len(chosen):
        inverse = other.as_rows[0][d] * np.float32(other.scales[1])
        squares[chosen] = other.raw.nearest(d, image.raw.aggregated(d, chosen), inverse)
        squares[:] = squares[image.as_rows[2][d]]


def _integers(
    workspace: tuple[np.ndarray, ...], length: np.ndarray, layout: Layout, *out: np.ndarray
) -> tuple[tuple[float, float], np.ndarray, np.ndarray]:
    """A workspace's raw tokens as panels for `products.products`, and the scales of the 8-bit and the 16-bit integers.

    out: rows, columns, offset, error, which receives the length of what 16 bits leave out of every token. Last come the
    tokens' coordinates that take 16 bits, and what 8 bits leave out of the others.
    """
    raw, scale8 = workspace[0], 1.0
    M, C = raw.shape
    if layout.turn is None:
        low, high = np.zeros((M, 0), np.float32), raw
    else:
        A, V = (torch.from_numpy(matrix) for matrix in layout.turn)
        K = A.shape[1]
        width = -(-(C - K) // (4 * products.SPAN)) * 4 * products.SPAN  # zeros fill the last span
        low, high, inner = (
            room.reshape(-1)[: M * n].reshape(M, n) for room, n in zip(workspace[1:], (width, K, K), strict=True)
        )
        low[:, C - K :] = 0
        tokens, product = torch.from_numpy(raw), torch.from_numpy(inner)
        torch.mm(tokens, A, out=product)
        torch.addmm(tokens[:, :K], product, V[:K].T, alpha=-1, out=torch.from_numpy(high))
        torch.addmm(tokens[:, K:], product, V[K:].T, alpha=-1, out=torch.from_numpy(low)[:, : C - K])
        left = np.empty(M, np.float32)
        kernels.lengths(low, left)
        scale8 = layout.top8 / max(layout.clip * np.sqrt(np.square(left).sum() / (M * (C - K))), 1e-18)
        if not layout.wide:
            scale8 = min(scale8, products.LANE / max(float(kernels.longest_lane(low)), 1e-18))
    most = float(max(high.max(), -high.min()))
    # sums below 2^31, elements below 2^15
    scale16 = min(46000 / max(float(length.max()), 1e-18), 32000 / max(most, 1e-18))
    scales = np.float32(scale8), np.float32(scale16)
    kernels.pack(low, scales[0], high, scales[1], layout.top8, layout.wide, layout.W, layout.pitch, *out)
    return (float(scales[0]), float(scales[1])), high, low


def _bound(lost: np.ndarray, beyond: np.ndarray, C: int, layout: Layout) -> np.ndarray:
    """Margins [D, M] such that the sum of two tokens' margins bounds what rounding does to their cosine.

    lost: length of rounding errors; beyond: of what was rounded; both relative. They enter a cosine as
    lost_a beyond_b + beyond_a lost_b + lost_a lost_b, and x y <= (x^2 / t + t y^2) / 2 for any t makes that a sum.
    """
    if layout.turn is None:
        return lost + lost**2 / 2
    t = layout.clip / layout.top8 / np.sqrt(12)
    likely = 1 if layout.sure else LIKELY / np.sqrt(C)
    # nearly equal tokens are rounded alike: that lost_a lost_b is as large as it can be
    return (lost**2 / t + t * beyond**2) / 2 * likely + lost**2 / 2


def _neighbourhood(values: np.ndarray, H: int, W: int, h: int) -> np.ndarray:
    """Sums of values [..., M] over (2h + 1)^2 neighbourhoods of the patch grid."""
    cells = np.pad(values.reshape(-1, H, W), ((0, 0), (h, h), (h, h)))
    rows = np.sum([cells[:, v : v + H] for v in range(2 * h + 1)], axis=0)
    return np.sum([rows[:, :, u : u + W] for u in range(2 * h + 1)], axis=0).reshape(values.shape)


def _first_of_equals(size: np.ndarray, pick: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """[M]: for every aggregated token the first one that equals it in all channels; size: [M], their lengths; pick:
    chosen ones, [k, C]."""
    first = np.arange(len(size))
    if (np.diff(np.sort(size)) > 0).all():
        return first
    _, index, inverse, counts = np.unique(size, return_index=True, return_inverse=True, return_counts=True)
    for group in np.flatnonzero(counts > 1):  # most tokens differ in length
        members = np.flatnonzero(inverse == group)
        found = pick(members)
        equal = (found == found[0]).all(axis=1)
        first[members[equal]] = index[group]
    return first
