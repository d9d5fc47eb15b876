"""The CPU engine's search: the nearest tokens of two images out of their Gram matrix, for all degrees at once.

The Gram matrix of raw tokens holds inner products, slightly rounded; box sums of it over both tokens' neighbourhoods,
divided by both norms, are cosines of aggregated tokens. Every token has a margin (README.md). Of all whose cosine may
be the largest, given both margins, the distance is computed in float32 from the aggregated tokens themselves: so the
rounding of the Gram matrix decides nothing. a: the image whose tokens are taken one by one; b: the columns.
"""

from __future__ import annotations

import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros

from musc.engines.cpu.boxes import CHUNK, box_sums, score
from musc.engines.cpu.compiling import kernel
from musc.engines.cpu.layout import KEPT, NOTHING
from musc.engines.cpu.products import ROWS, multiply

EQUAL = np.float32(5e-14)  # squared distance of tokens that are equal but for float32's last digits
EXACT = np.float32(1e-6)  # of a cosine found from a distance in float32
FURTHEST = np.float32(8)  # more than any squared distance
FAST = {"reassoc", "contract", "arcp", "nsz"}  # sums in any order; NaN and infinity stay what they are


@kernel(fastmath=FAST)
def squared_distance(unit, a, m, b, n, d):
    """|| a_m - b_n ||^2 of two aggregated tokens at the d-th degree, out of `Images.unit`."""
    total = np.float32(0)
    for c in range(unit.shape[3]):
        difference = unit[a, d, m, c] - unit[b, d, n, c]
        total += difference * difference
    return total


@kernel
def nearest_of_all(images, a, m, b, d):
    """The smallest squared distance of a_m to all tokens of b but repeated ones, and which it is."""
    unit, first = images.unit, images.first
    best, at = FURTHEST, 0
    for n in range(unit.shape[2]):
        if first[b, d, n] == n:
            found = squared_distance(unit, a, m, b, n, d)
            if found < best:
                best, at = found, n
                if best < EQUAL:
                    break
    return best, at


@kernel(forceinline=True)
def nearest_of_candidates(unit, a, m, b, d, which, upper, count, best):
    """The smallest squared distance of a_m to `count` tokens of b, most promising first, which, and how many it took.

    upper: bounds of their cosines; what cannot beat the distance found so far (`best` at first) is left out.
    """
    at, done = -1, 0
    for _ in range(count):
        k = 0
        for t in range(1, count):
            if upper[t] > upper[k]:
                k = t
        if upper[k] < np.float32(1) - best / 2 - EXACT:
            break
        upper[k] = NOTHING
        found = squared_distance(unit, a, m, b, which[k], d)
        done += 1
        if found < best:
            best, at = found, which[k]
    return best, at, done


@kernel(forceinline=True)
def row_candidates(buffers, margin, b, d, own):
    """Columns that may hold the row's largest cosine, given the margins of error; their number (KEPT + 1: too many)."""
    upper, tops, candidates, bounds = buffers.upper, buffers.tops, buffers.candidates, buffers.bounds
    top = NOTHING
    for k in range(len(tops) - 8, len(tops)):
        top = max(top, tops[k])
    floor, count = NOTHING, 0  # the largest cosine is at least floor
    for t in range(len(tops) - 8):
        if tops[t] == top:
            for i in range(t // 8 * CHUNK + t % 8, (t // 8 + 1) * CHUNK, 8):
                if upper[i] == top:  # never where there is no token
                    floor = max(floor, upper[i] - 2 * margin[b, d, i] - own)
            break
    for t in range(len(tops) - 8):
        if tops[t] + own >= floor:
            for i in range(t // 8 * CHUNK + t % 8, (t // 8 + 1) * CHUNK, 8):
                if upper[i] + own >= floor:
                    if count == KEPT:
                        return KEPT + 1
                    candidates[count], bounds[count] = i, upper[i] + own
                    count += 1
    return count


@kernel(forceinline=True)
def pair_place(t):
    """Where the row t places from the middle one stands in a table of addresses: 0, -1, 1, -2, 2, ..."""
    return 2 * t if t >= 0 else -2 * t - 1


@kernel(forceinline=True)
def note_rival(buffers, margin, b, d, m, own):
    """Puts token m on the lists of the columns that it may be the nearest of, and raises their `best`."""
    best, counts, upper, marks = buffers.best, buffers.rival_counts, buffers.upper, buffers.marks
    rivals, bounds = buffers.rivals, buffers.rival_bounds
    for chunk in range(len(marks)):
        bits = np.uint64(marks[chunk])
        while bits:
            i = chunk * CHUNK + np.int64(trailing_zeros(bits))  # type: ignore[call-arg]
            bits &= bits - np.uint64(1)
            count = counts[d, i]
            if count > KEPT:
                continue
            best[d, i] = max(best[d, i], upper[i] - own - 2 * margin[b, d, i])
            if count == KEPT:  # what has been overtaken makes room
                count = 0
                for t in range(KEPT):
                    if bounds[d, i, t] >= best[d, i]:
                        rivals[d, i, count], bounds[d, i, count] = rivals[d, i, t], bounds[d, i, t]
                        count += 1
            if count < KEPT:
                rivals[d, i, count], bounds[d, i, count] = m, upper[i] + own
            counts[d, i] = count + 1


@kernel(forceinline=True)
def resolve_row(images, a, b, d, m, grid, buffers, tolerance, to_b):
    """The squared distance of token m of image a to its nearest in b; the number of distances that it took."""
    own, margin, upper = images.row_margin[a, d, m], images.column_margin, buffers.upper
    candidates, bounds, winner = buffers.candidates, buffers.bounds, buffers.winner
    count = row_candidates(buffers, margin, b, d, own)
    if count > KEPT:
        to_b[d, m], winner[d, m] = nearest_of_all(images, a, m, b, d)
        return grid.H * grid.W
    if tolerance > 0:
        k = 0
        for t in range(1, count):
            if bounds[t] > bounds[k]:
                k = t
        i = candidates[k]
        square = 2 - 2 * (upper[i] - margin[b, d, i])
        if square > 0 and own + margin[b, d, i] <= tolerance * np.sqrt(square):
            to_b[d, m], winner[d, m] = square, -1
            return 0
    for k in range(count):
        candidates[k] = grid.place[candidates[k]]
    found = nearest_of_candidates(images.unit, a, m, b, d, candidates, bounds, count, FURTHEST)
    to_b[d, m], winner[d, m] = found[0], found[1]
    return found[2]


@kernel
def score_rows(images, a, b, start, stop, grid, buffers, tolerance, to_b):
    """Squared distances of the tokens of the patch rows start..stop of a; what the columns may be nearest to is noted.

    Their Gram rows, and those of the patch rows around them, are in `buffers.gram`. Every box sum is a sum of rows,
    whose addresses are gathered first: of the middle one, then of pairs around it.
    """
    H, W, w, halves, n = grid.H, grid.W, grid.widest, grid.halves, len(grid.place)
    first, scale, margins = images.first, images.row_scale, images.row_margin
    D, R, around = len(halves), len(buffers.gram), buffers.over_y.shape[1]
    gram, row, nothing = buffers.gram.ctypes.data, 4 * n, buffers.zeros.ctypes.data
    over_y, guard = buffers.over_y.ctypes.data, 4 * w * (grid.pitch + 1)
    over_x, over_columns = buffers.over_x.ctypes.data + guard, buffers.over_columns.ctypes.data + guard
    # address tables: of rows to be added, of sums to be made, and of what `score` reads and makes
    table = np.zeros((6 + 3 * D, max(6, 2 * w + 1)), np.int64)
    at, size = table.ctypes.data, table.strides[0]
    rows, base, step, outs, more, one = table[0], table[1], table[2], table[3], table[4], table[5]
    for k in range(len(grid.wider)):
        more[k] = halves[grid.wider[k]] - (halves[grid.wider[k - 1]] if k else 0)
    one[1], one[2] = over_x, over_columns
    for d in range(D):
        for t in range(-halves[d], halves[d] + 1):
            table[6 + d, pair_place(t)], table[6 + D + d, pair_place(t)] = (
                over_x + 4 * t,
                over_columns + 4 * grid.pitch * t,
            )
        arrays = table[6 + 2 * D + d]
        arrays[0], arrays[1] = images.column_scale[b, d].ctypes.data, images.column_margin[b, d].ctypes.data
        arrays[2], arrays[3] = buffers.best[d].ctypes.data, buffers.upper.ctypes.data
        arrays[4], arrays[5] = buffers.marks.ctypes.data, buffers.tops.ctypes.data
    done = 0
    for y in range(start, stop):
        for t in range(-w, w + 1):  # Gram rows of the tokens (y + t, 0), and from one token to the next
            k, inside = pair_place(t), 0 <= y + t < H
            base[k] = gram + (y + t) * W % R * row if inside else nothing
            step[k] = row if inside else 0
        for x in range(-w, W):
            ahead = x + w  # the token (y, ahead) is needed from now on
            if w and ahead < W:
                for k in range(2 * w + 1):
                    rows[k] = base[k] + ahead * step[k]
                for k in range(len(grid.wider)):
                    outs[k] = over_y + (grid.wider[k] * around + ahead % around) * row
                box_sums(n, at, at + 4 * size, at + 3 * size, len(grid.wider))
            if x < 0:
                continue
            m = y * W + x
            for d in range(D):
                if first[a, d, m] != m:  # as the equal token
                    continue
                h, own, last = halves[d], margins[a, d, m], at
                if h:
                    for t in range(-h, h + 1):
                        inside = 0 <= x + t < W
                        rows[pair_place(t)] = over_y + (d * around + (x + t) % around) * row if inside else nothing
                    one[0] = h
                    box_sums(n, at, at + 5 * size, at + 5 * size + 8, 1)
                    box_sums(n, at + (6 + d) * size, at + 5 * size, at + 5 * size + 16, 1)
                    last = at + (6 + D + d) * size
                else:
                    rows[0] = base[0] + x * step[0]
                score(n, last, h, at + (6 + 2 * D + d) * size, scale[a, d, m], own)
                note_rival(buffers, images.column_margin, b, d, m, own)
                done += resolve_row(images, a, b, d, m, grid, buffers, tolerance, to_b)
    return done


@kernel
def resolve_columns(images, a, b, grid, buffers, tolerance, to_b, to_a):
    """Squared distances [D, M] of b's tokens, after `score_rows` has seen all of a; the number that it took."""
    done = 0
    for d in range(len(grid.halves)):
        first_a, first_b = images.first[a, d], images.first[b, d]
        for m in range(len(first_a)):
            if first_a[m] != m:
                to_b[d, m], buffers.winner[d, m] = to_b[d, first_a[m]], buffers.winner[d, first_a[m]]
        for i in range(len(grid.place)):
            m = grid.place[i]
            if m < 0 or first_b[m] != m:
                continue
            count, margin = buffers.rival_counts[d, i], images.column_margin[b, d, i]
            rivals, bounds = buffers.rivals[d, i], buffers.rival_bounds[d, i]
            if count > KEPT:
                to_a[d, m], _ = nearest_of_all(images, b, m, a, d)
                done += len(first_a)
                continue
            found, kept, largest, error = FURTHEST, 0, NOTHING, np.float32(0)
            for t in range(count):
                row, own = rivals[t], images.row_margin[a, d, rivals[t]]
                if bounds[t] - own > largest:
                    largest, error = bounds[t] - own, own + margin
                if bounds[t] < buffers.best[d, i]:  # overtaken since it was noted
                    continue
                if buffers.winner[d, row] == m:  # its nearest is this token, and the distance known
                    found = min(found, to_b[d, row])
                else:
                    rivals[kept], bounds[kept] = row, bounds[t]
                    kept += 1
            square = 2 - 2 * (largest - margin)
            if tolerance > 0 and square > 0 and error <= tolerance * np.sqrt(square):
                to_a[d, m] = square
                continue
            nearest = nearest_of_candidates(images.unit, b, m, a, d, rivals, bounds, kept, found)
            to_a[d, m] = nearest[0]
            done += nearest[2]
        for m in range(len(first_b)):
            if first_b[m] != m:
                to_a[d, m] = to_a[d, first_b[m]]
    return done


@kernel
def compare(images, a, others, grid, buffers, tolerance, to_others, to_a):
    """Distances of image a's tokens to their nearest in each of k others, and of theirs: [k, D, M] each.

    tolerance: of a distance that may be taken from its cosine. Returns the number of distances that were computed.
    """
    H, W, gram = grid.H, grid.W, buffers.gram
    done = 0
    for k in range(len(others)):
        b = others[k]
        ratio = images.ratio[a] * images.ratio[b]
        for d in range(len(grid.halves)):
            for i in range(len(grid.place)):
                empty = images.column_margin[b, d, i] == NOTHING
                buffers.best[d, i] = -NOTHING if empty else NOTHING
                buffers.rival_counts[d, i] = 0
        start = np.int64(0)
        for y in range(0, H, ROWS):  # a stripe: six patch rows, W panels of six tokens
            known = min(H, y + ROWS)
            panels = y // ROWS * W, -(-known * W // ROWS)
            multiply(images.rows[a], images.columns[b], images.offset[b], ratio, gram, panels[0], panels[1])
            stop = np.int64(H if known == H else max(start, known - grid.widest))
            done += score_rows(images, a, b, start, stop, grid, buffers, tolerance, to_others[k])
            start = stop
        done += resolve_columns(images, a, b, grid, buffers, tolerance, to_others[k], to_a[k])
        for d in range(len(grid.halves)):
            for m in range(H * W):
                to_others[k, d, m] = np.sqrt(to_others[k, d, m])
                to_a[k, d, m] = np.sqrt(to_a[k, d, m])
    return done
