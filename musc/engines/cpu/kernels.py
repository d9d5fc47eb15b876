"""The CPU engine's preparation of an image, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import njit

from musc.engines.cpu.products import ROWS, SPAN

FAST = {"reassoc", "contract", "arcp", "nsz"}  # sums in any order; NaN and infinity stay what they are


@njit(nogil=True, cache=True, fastmath=FAST)
def add1(a, out):
    for i in range(out.shape[0]):
        out[i] = a[i]


@njit(nogil=True, cache=True, fastmath=FAST)
def add2(a, b, out):
    for i in range(out.shape[0]):
        out[i] = a[i] + b[i]


@njit(nogil=True, cache=True, fastmath=FAST)
def add3(a, b, c, out):
    for i in range(out.shape[0]):
        out[i] = a[i] + b[i] + c[i]


@njit(nogil=True, cache=True, fastmath=FAST)
def add5(a, b, c, d, e, out):
    for i in range(out.shape[0]):
        out[i] = a[i] + b[i] + c[i] + d[i] + e[i]


@njit(nogil=True, cache=True, fastmath=FAST)
def add_rows(rows, first, step, count, out):
    """out = sum of `count` of the rows, from `first` in steps of `step`, counted around their end."""
    R = rows.shape[0]
    a, b, c = rows[first % R], rows[(first + step) % R], rows[(first + 2 * step) % R]
    if count == 1:
        add1(a, out)
    elif count == 2:
        add2(a, b, out)
    elif count == 3:
        add3(a, b, c, out)
    elif count == 5:
        add5(a, b, c, rows[(first + 3 * step) % R], rows[(first + 4 * step) % R], out)
    else:
        add3(a, b, c, out)
        for t in range(3, count):
            add2(out, rows[(first + t * step) % R], out)


@njit(nogil=True, cache=True, fastmath=FAST)
def _squares(row):
    total = np.float32(0)
    for c in range(row.shape[0]):
        total += row[c] * row[c]
    return total


@njit(nogil=True, cache=True, fastmath=FAST)
def _scale(row, factor):
    for c in range(row.shape[0]):
        row[c] *= factor


@njit(nogil=True, cache=True, fastmath=FAST)
def center(tokens, out):
    """out = tokens minus the mean of all their elements."""
    total = 0.0
    for m in range(tokens.shape[0]):
        row = tokens[m]
        for c in range(row.shape[0]):
            total += np.float64(row[c])
    mean = np.float32(total / tokens.size)
    for m in range(tokens.shape[0]):
        row, into = tokens[m], out[m]
        for c in range(row.shape[0]):
            into[c] = row[c] - mean


@njit(nogil=True, cache=True)
def box(tokens, H, W, h, out, length):
    """Sums of tokens over (2h + 1)^2 neighbourhoods, zeros beyond the border: the sums' lengths, and in unit length.

    tokens: [M, C]; out: [M, C], or empty where only the lengths [M] are wanted.
    """
    line = np.empty((W, tokens.shape[1]), np.float32)
    one = np.empty((1, tokens.shape[1]), np.float32)
    for y in range(H):
        top, bottom = max(0, y - h), min(H, y + h + 1)
        for x in range(W * (h > 0)):
            add_rows(tokens, top * W + x, W, bottom - top, line[x])
        for x in range(W):
            left, right = max(0, x - h), min(W, x + h + 1)
            sums = out[y * W + x] if len(out) else one[0]
            if h:
                add_rows(line, left, 1, right - left, sums)
            else:
                sums[:] = tokens[y * W + x]
            size = np.sqrt(_squares(sums))
            length[y * W + x] = size
            if len(out):
                _scale(sums, 1 / max(size, np.float32(1e-20)))


@njit(nogil=True, cache=True)
def lengths(rows, out):
    """out[m] = length of the row."""
    for m in range(rows.shape[0]):
        out[m] = np.sqrt(_squares(rows[m]))


@njit(nogil=True, cache=True, fastmath=FAST)
def longest_lane(rows):
    """The largest length of what one 16-bit sum holds of a row: per SPAN, the first or second two of every four."""
    span, most = 4 * SPAN, np.float32(0)
    for m in range(rows.shape[0]):
        for start in range(0, rows.shape[1], span):
            part = rows[m, start : start + span]
            first, second = np.float32(0), np.float32(0)
            for c in range(0, span, 4):
                first += part[c] * part[c] + part[c + 1] * part[c + 1]
                second += part[c + 2] * part[c + 2] + part[c + 3] * part[c + 3]
            most = max(most, first, second)
    return np.sqrt(most)


@njit(nogil=True, cache=True, fastmath=FAST)
def round8(row, scale, top, small, raised):
    """small = row times scale as integers of at most top, which is added in `raised`; what is left out stays in row."""
    most, back = np.float32(top), np.float32(1) / scale
    for c in range(row.shape[0]):
        value = row[c] * scale
        whole = np.rint(min(max(value, -most), most))
        small[c] = np.int8(whole)
        raised[c] = np.uint8(whole + most)
        row[c] = (value - whole) * back


@njit(nogil=True, cache=True, fastmath=FAST)
def round16(row, scale, wide):
    """wide = row times scale as 16-bit integers; returns the squared length of what that leaves out."""
    total = np.float32(0)
    for c in range(row.shape[0]):
        value = row[c] * scale
        whole = np.rint(value)
        wide[c] = np.int16(whole)
        total += (value - whole) * (value - whole)
    return total / (scale * scale)


@njit(nogil=True, cache=True)
def pack(low, scale8, high, scale16, top, wide, W, pitch, a, b, offset, error):
    """Tokens rounded to integers and laid out for `products`: low [M, C] to 8 bits, high [M, K] to 16 bits.

    a: [P, steps, 6] int32, b: [Q, steps, 16 or 64], offset: [Q, spans, 16 or 64]. What rounding leaves out of `low`
    stays in it; `error`: [M], receives the length of what it leaves out of `high`. As rows (a) tokens follow each
    other; as columns (b) a patch row takes `pitch` >= W places, the rest staying zero, so that a shift of the flat
    index never runs from one patch row into the next.
    """
    M, C = low.shape
    K = high.shape[1]
    steps8 = C // 4
    small, shorts = np.zeros(C, np.int8), np.zeros(2 * (a.shape[1] - steps8), np.int16)
    raised = np.zeros(C, np.uint8)
    fours, raised_fours, pairs = small.view(np.int32), raised.view(np.int32), shorts.view(np.int32)
    for m in range(M):
        if C:
            round8(low[m], scale8, top, small, raised)
        if K:
            error[m] = np.sqrt(round16(high[m], scale16, shorts[:K]))
        n = m // W * pitch + m % W
        cols = b.shape[2]
        into_a, into_b = a[m // ROWS, :, m % ROWS], b[n // cols, :, n % cols]
        for k in range(steps8):
            into_a[k] = raised_fours[k]
            into_b[k] = fours[k]
        for k in range(pairs.shape[0]):
            into_a[steps8 + k] = pairs[k]
            into_b[steps8 + k] = pairs[k]
        for s in range(offset.shape[1]):
            first, second = 0, 0
            for c in range(4 * SPAN * s, 4 * SPAN * (s + 1), 4):
                first += np.int64(small[c]) + small[c + 1]
                second += np.int64(small[c + 2]) + small[c + 3]
            into = offset[n // cols, s]
            into[n % cols] = -top * (first + second) if wide else _two(-top * first, -top * second)


@njit(nogil=True, cache=True)
def _two(first, second):
    """Two 16-bit integers, wrapped around, in one of 32 bits."""
    return np.int32(np.uint32(np.uint16(first & 0xFFFF)) | (np.uint32(np.uint16(second & 0xFFFF)) << np.uint32(16)))
