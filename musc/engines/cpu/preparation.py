"""The CPU engine's preparation of one image: integer panels, unit tokens, and margins for what rounding leaves out."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from musc.engines.cpu.boxes import LANES
from musc.engines.cpu.compiling import FAST, kernel
from musc.engines.cpu.layout import NOTHING, Buffers, Grid, Images, Layout
from musc.engines.cpu.products import COLS_WIDE, LANE, ROWS, SPAN, TOP8, TOP8_WIDE

ROUNDING = 2.0**-24  # relative, of one float32 operation
SUMMED = 1e-6  # of a cosine, by float32 box filters
LIKELY = 2.0  # standard deviations of the rounding error that margins cover where distances have a tolerance
CLIP = 4.6  # standard deviations of 8-bit values that their range holds
DIRECTIONS = 64  # whose products take 16 bits
TINY = np.float32(1e-20)


def prepare(tokens: Tensor, layout: Layout, images: Images, s: int, buffers: Buffers) -> None:
    """Makes one image's tokens [M, C] the s-th of the images; they are centred and rotated in the buffers.

    LayerNorm over the whole map is a shift and a scale per image, and the scale goes in the L2 norm: only the shift is
    done. What rounding leaves out of a token is measured, and summed over neighbourhoods as the tokens are (README.md).
    """
    (raw, high, low), grid = buffers[:3], layout.grid
    given = tokens.float().numpy()
    np.subtract(given, np.float32(given.mean(dtype=np.float64)), out=raw)
    if layout.rotation is None:
        high = raw
    else:
        rotate(raw, *layout.rotation, high, low)
    length, size = lengths(raw), sums(raw, grid, images.unit[s])
    scales, top = choose_scales(length, high, low, layout)
    panels = images.rows[s], images.columns[s], images.offset[s]
    error = pack(low, high, scales, top, LANES * grid.vectors, grid.W, *panels)
    images.ratio[s] = scales[1] / scales[0]
    inverse = 1 / np.maximum(size, TINY)  # [D, M]
    met = sums(length[:, None], grid) * inverse  # lengths that meet in a neighbourhood
    lost = sums(error[:, None], grid) * inverse  # and of those the parts that 16 bits leave out
    slack, covered = SUMMED + layout.C * ROUNDING, LIKELY if layout.tolerance else np.inf
    # products of a 16-bit rounding error are with tokens of length 1
    margin = slack * met**2 / 2 + lost * min(1, covered / np.sqrt(layout.K)) + lost**2 / 2
    if layout.rotation is not None:
        beyond = np.sqrt(np.maximum(1 - (sums(high, grid) * inverse) ** 2, 0)) + slack * met  # what takes 8 bits
        if layout.tolerance:  # independent errors of r^2 tokens add up to r of them
            left = sums(lengths(low)[:, None], grid) / (2 * grid.halves[:, None] + 1) * inverse
        else:
            left = sums(low, grid) * inverse
        t = CLIP / top / np.sqrt(12)  # 2 x y <= x^2 / t + t y^2 makes a sum of two tokens' margins, for any t
        part = min(1, covered / np.sqrt(layout.C - layout.K))
        # nearly equal tokens are rounded alike: that one's error meets the other's is as bad as it can be
        margin += (left**2 / t + t * beyond**2) / 2 * part + left**2 / 2
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
    H, W = (grid.H, grid.W) if grid.widest else (len(values), 1)
    for d, h in enumerate(grid.halves):
        box(values, H, W, h, alone if out is None else out[d], length[d])
    return length


def choose_scales(length: np.ndarray, high: np.ndarray, low: np.ndarray, layout: Layout) -> tuple[np.ndarray, int]:
    """Scales [2] of 8-bit and 16-bit integers, and the largest 8-bit one. length: [M], of tokens."""
    top, scale8 = (TOP8_WIDE if layout.wide else TOP8), 1.0
    if layout.rotation is not None:
        lanes = lengths(low.reshape(-1, 2 * SPAN))  # of what meets in a 16-bit sum
        deviation = np.sqrt(np.square(lanes, dtype=np.float64).sum() / len(low) / (layout.C - layout.K))
        scale8 = top / max(CLIP * deviation, 1e-18)
        if not layout.wide:
            scale8 = min(scale8, LANE / max(float(lanes.max()), 1e-18))
    # sums below 2^31, elements below 2^15
    scale16 = min(46000 / max(float(length.max()), 1e-18), 32000 / max(float(np.abs(high).max()), 1e-18))
    return np.array([scale8, scale16], np.float32), top


def first_of_equals(size: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """[M]: for every aggregated token the first one that equals it in all channels. size: [M], their lengths."""
    first, order = np.arange(len(size)), np.argsort(size, kind="stable")  # brings equal ones together
    for k in np.flatnonzero(np.diff(size[order]) == 0):
        if (unit[order[k]] == unit[order[k + 1]]).all():
            first[order[k + 1]] = first[order[k]]
    return first


@kernel(fastmath=FAST)
def rotate(raw, A, V, high, low):
    """The tokens x - (x A) V^T of raw [M, C]: the first K coordinates in high [M, K], the others in low [M, >= C - K].

    A: [C, K], V: [K, C], transposed. Not by a library's product, which would wake threads beside those that work here.
    """
    (M, C), K = raw.shape, A.shape[1]
    inner, token = np.empty(K, np.float32), np.empty(C, np.float32)
    for m in range(M):
        inner[:] = 0
        for c in range(C):
            token[c] = raw[m, c]
            for k in range(K):
                inner[k] += raw[m, c] * A[c, k]
        for k in range(0, K - K % 4, 4):  # four at a time: the token is read and written a quarter as often
            for c in range(C):
                first, second = inner[k] * V[k, c] + inner[k + 1] * V[k + 1, c], inner[k + 2] * V[k + 2, c]
                token[c] -= first + second + inner[k + 3] * V[k + 3, c]
        for k in range(K - K % 4, K):
            for c in range(C):
                token[c] -= inner[k] * V[k, c]
        high[m] = token[:K]
        low[m, : C - K] = token[K:]


@kernel(fastmath=FAST)
def length_of(row):
    total = np.float32(0)
    for c in range(row.shape[0]):
        total += row[c] * row[c]
    return np.sqrt(total)


@kernel()
def lengths(rows):
    """Of every row."""
    out = np.empty(rows.shape[0], np.float32)
    for m in range(rows.shape[0]):
        out[m] = length_of(rows[m])
    return out


@kernel(fastmath=FAST)
def add_rows(rows, first, last, step, out):
    """out [C] = sum of the rows [R, C] from `first` to the one before `last`, in steps of `step`."""
    for c in range(out.shape[0]):
        out[c] = rows[first, c]
    for m in range(first + step, last, step):
        for c in range(out.shape[0]):
            out[c] += rows[m, c]


@kernel(fastmath=FAST)
def box(tokens, H, W, h, out, length):
    """Sums of tokens [M, C] over (2h + 1)^2 neighbourhoods, zeros beyond the border: their lengths [M], and in unit
    length [M, C]; with an `out` of one row only the lengths."""
    line = np.empty((W, tokens.shape[1]), np.float32)
    for y in range(H):
        for x in range(W):
            add_rows(tokens, max(0, y - h) * W + x, min(H, y + h + 1) * W, W, line[x])
        for x in range(W):
            sums, m = out[min(y * W + x, len(out) - 1)], y * W + x
            add_rows(line, max(0, x - h), min(W, x + h + 1), 1, sums)
            length[m] = length_of(sums)
            scale = 1 / max(length[m], np.float32(1e-20))
            for c in range(sums.shape[0]):
                sums[c] *= scale


@kernel(fastmath=FAST)
def round8(row, scale, top, small, raised):
    """small = row times scale as integers of at most top, which is added in `raised`; what is left out stays in row."""
    most, back = np.float32(top), np.float32(1) / scale
    for c in range(row.shape[0]):
        value = row[c] * scale
        whole = np.rint(min(max(value, -most), most))
        small[c] = np.int8(whole)
        raised[c] = np.uint8(whole + most)
        row[c] = (value - whole) * back


@kernel(fastmath=FAST)
def round16(row, scale, wide):
    """wide = row times scale as 16-bit integers; returns the length of what that leaves out."""
    total = np.float32(0)
    for c in range(row.shape[0]):
        value = row[c] * scale
        whole = np.rint(value)
        wide[c] = np.int16(whole)
        total += (value - whole) * (value - whole)
    return np.sqrt(total) / scale


@kernel()
def pack(low, high, scales, top, pitch, W, a, b, offset):
    """Tokens rounded to integers and laid out for `products`: low [M, C] to 8 bits, high [M, K] to 16 bits.

    a: [panels, steps, 6] int32, b: [panels, steps, 16 or 64], offset: [panels, spans, 16 or 64]; scales: of both kinds.
    What rounding leaves out of `low` stays in it; returned are the lengths [M] of what it leaves out of `high`. As rows
    (a) tokens follow each other; as columns (b) a patch row takes `pitch` places, the rest staying zero.
    """
    steps8, cols, spans = low.shape[1] // 4, b.shape[2], offset.shape[1]
    small, raised = np.zeros(low.shape[1], np.int8), np.zeros(low.shape[1], np.uint8)
    shorts, error = np.zeros(2 * (a.shape[1] - steps8), np.int16), np.empty(low.shape[0], np.float32)
    twos, raised_twos, pairs = small.view(np.uint16), raised.view(np.uint16), shorts.view(np.int32)
    for m in range(low.shape[0]):
        round8(low[m], scales[0], top, small, raised)
        error[m] = round16(high[m], scales[1], shorts)
        n = m // W * pitch + m % W
        row_panel, row, panel, column = m // ROWS, m % ROWS, n // cols, n % cols
        for k in range(steps8):  # a span's first 32 values meet in one 16-bit sum of AVX2, the others in another
            one = k + k // SPAN * SPAN
            a[row_panel, k, row] = raised_twos[one] | raised_twos[one + SPAN] << 16
            b[panel, k, column] = twos[one] | twos[one + SPAN] << 16
        for k in range(pairs.shape[0]):
            a[row_panel, steps8 + k, row] = pairs[k]
            b[panel, steps8 + k, column] = pairs[k]
        for s in range(spans):
            half = small[4 * SPAN * s :]
            first, second = -top * half[: 2 * SPAN].sum(), -top * half[2 * SPAN : 4 * SPAN].sum()
            # two 16-bit sums, wrapped around, where AVX2 adds up in 16 bits
            wide = first + second if cols == COLS_WIDE else (first & 0xFFFF) | ((second & 0xFFFF) << 16)
            offset[panel, s, column] = np.int32(wide)
    return error
