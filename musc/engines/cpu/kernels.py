"""The CPU engine's preparation of an image, compiled by numba."""

from __future__ import annotations

import numpy as np

from musc.engines.cpu.compiling import kernel
from musc.engines.cpu.products import ROWS, SPAN

FAST = {"reassoc", "contract", "arcp", "nsz"}  # sums in any order; NaN and infinity stay what they are


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


@kernel
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


@kernel
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
            wide = first + second if cols == 64 else (first & 0xFFFF) | ((second & 0xFFFF) << 16)
            offset[panel, s, column] = np.int32(wide)
    return error
