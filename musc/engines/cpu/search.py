"""The CPU engine's search: the nearest tokens of two images out of their Gram matrix, for all degrees at once.

Of all tokens whose cosine may be the largest, given both margins (README.md), the distance is computed in float32: so
the rounding of the Gram matrix decides nothing. a: the image whose tokens are taken one by one; b: the columns.
"""

import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros

from musc.engines.cpu.boxes import LANES, score, sum_rows
from musc.engines.cpu.compiling import FAST, kernel
from musc.engines.cpu.layout import CHUNK, KEPT, NOTHING
from musc.engines.cpu.products import ROWS, multiply

HALF, ONE, TWO = np.float32(0.5), np.float32(1), np.float32(2)  # a whole number would make float64 of float32
EQUAL = np.float32(5e-14)  # squared distance of tokens that are equal but for float32's last digits
EXACT = np.float32(1e-6)  # of a cosine found from a distance in float32
SOON = 8  # rivals after which those that were overtaken are looked for: a divisor of KEPT
FURTHEST = np.float32(8)  # more than any squared distance


@kernel(fastmath=FAST, _nrt=False)
def squared_distance(unit, a, m, b, n, d):
    """|| a_m - b_n ||^2 of two aggregated tokens at the d-th degree, out of `Images.unit`."""
    total = np.float32(0)
    for c in range(unit.shape[3]):
        difference = unit[a, d, m, c] - unit[b, d, n, c]
        total += difference * difference
    return total


@kernel(_nrt=False)
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


@kernel(forceinline=True, _nrt=False)
def nearest(images, a, m, b, d, which, upper, count, tolerance, best):
    """The smallest squared distance of a_m to `count` tokens of b, most promising first, which, and how many it took.

    which, upper: [KEPT], those tokens and bounds of their cosines; what cannot beat the distance found so far (`best`
    at first) is left out. Where margins move a distance by no more than `tolerance`, it is taken from its cosine, and
    -1 returned.
    """
    if count > KEPT:
        best, at = nearest_of_all(images, a, m, b, d)
        return best, at, images.unit.shape[2]
    at, done = -1, 0
    for _ in range(count):
        k = 0
        for t in range(1, count):
            if upper[t] > upper[k]:
                k = t
        if upper[k] < ONE - HALF * best - EXACT:
            break
        if tolerance > 0:
            error = images.row_margin[a, d, m] + images.row_margin[b, d, which[k]]
            square = TWO - TWO * (upper[k] - error)
            if square > 0 and error <= tolerance * np.sqrt(square):
                return min(best, square), -1, done
        upper[k] = NOTHING
        found = squared_distance(images.unit, a, m, b, which[k], d)
        done += 1
        if found < best:
            best, at = found, which[k]
    return best, at, done


@kernel(forceinline=True, _nrt=False)
def row_candidates(buffers, margin, own, grid):
    """Columns that may hold the row's largest cosine, given the margins of error; their number (KEPT + 1: too many).

    Their tokens are in `Buffers.candidates`, and bounds of their cosines in `Buffers.bounds`.
    """
    upper, tops, across = buffers.upper, buffers.tops, LANES * grid.vectors
    floor, count = NOTHING, 0
    for k in range(across, across + LANES):
        floor = max(floor, tops[k] - own - own)  # of the bounds of those that may win
    for x in range(across):
        if tops[x] >= floor:
            for i in range(x, len(upper), across):
                if upper[i] >= floor:
                    if count == KEPT:
                        return KEPT + 1
                    buffers.candidates[count], buffers.bounds[count] = grid.place[i], upper[i] + own
                    count += 1
    return count


@kernel(forceinline=True, _nrt=False)
def note_rival(buffers, margin, d, m, own):
    """Puts token m on the lists of the columns that it may be the nearest of, and raises their `best`."""
    best, counts, upper, marks = buffers.best[d], buffers.rival_counts[d], buffers.upper, buffers.marks
    for chunk in range(len(marks)):
        bits = np.uint64(marks[chunk])
        while bits:
            i = chunk * CHUNK + np.int64(trailing_zeros(bits))  # type: ignore[call-arg]
            bits &= bits - np.uint64(1)
            count = counts[i]
            if count > KEPT:
                continue
            best[i] = max(best[i], upper[i] - own - margin[i] - margin[i])
            rivals, bounds = buffers.rivals[d, i], buffers.rival_bounds[d, i]
            if count % SOON == 0:  # what has been overtaken makes room
                kept = 0
                for t in range(count):
                    if bounds[t] >= best[i]:
                        rivals[kept], bounds[kept] = rivals[t], bounds[t]
                        kept += 1
                count = kept
            if count < KEPT:
                rivals[count], bounds[count] = m, upper[i] + own
            counts[i] = count + 1


@kernel(forceinline=True, _nrt=False)
def sums_of(f, grid):
    """Where the sums of the f-th eight columns lie in a row of `Buffers.sums`, in bytes."""
    return 4 * (LANES + f // grid.vectors * grid.pitch + f % grid.vectors * LANES)


@kernel(_nrt=False)
def sum_neighbourhoods(y, grid, buffers):
    """`Buffers.sums`: sums of Gram rows over the neighbourhoods of a's tokens (y, 0) to (y, W - 1)."""
    W, w, gram, sums, rows = grid.W, grid.widest, buffers.gram, buffers.sums, buffers.rows
    R, step, part = gram.shape[1], gram.strides[1], gram.shape[2] // LANES
    for f in range(0, grid.H * grid.vectors, 2):  # 16 columns of b; of the last ones eight may be beyond, and zeros
        for t in range(-w, w + 1):
            inside, start = 0 <= y + t < grid.H, (y + t) * W % R
            place = gram.ctypes.data + f // part * gram.strides[0] + start * step + f % part * 4 * LANES
            rows[t + w] = place if inside else buffers.zeros.ctypes.data
        for d in range(len(grid.halves)):
            h = grid.halves[d]
            out = sums[d, w - h].ctypes.data  # of the token h places before the first one, met by one x alone
            around = rows[w - h :].ctypes.data
            sum_rows(h, around, step, W, out + sums_of(f, grid), out + sums_of(f + 1, grid), sums.strides[1])


@kernel(_nrt=False)
def score_rows(images, a, b, start, stop, grid, buffers, tolerance, to_b):
    """Squared distances of the tokens of the patch rows start..stop of a; what the columns may be nearest to is noted.

    Their Gram rows, and those of the patch rows around them, are in `buffers.gram`.
    """
    w, sums, gram, arrays, done = grid.widest, buffers.sums, buffers.gram, buffers.arrays, 0
    for y in range(start, stop):
        if w > 0:
            sum_neighbourhoods(y, grid, buffers)
        for d in range(len(grid.halves)):
            margin = images.column_margin[b, d]
            arrays[0], arrays[1] = images.column_scale[b, d].ctypes.data, margin.ctypes.data
            arrays[2], arrays[3] = buffers.best[d].ctypes.data, buffers.upper.ctypes.data
            arrays[4], arrays[5] = buffers.marks.ctypes.data, buffers.tops.ctypes.data
            for x in range(grid.W):
                m = y * grid.W + x
                if m >= to_b.shape[1]:
                    break
                if images.first[a, d, m] != m:  # as the equal token
                    continue
                row = sums.ctypes.data + d * sums.strides[0] + (w + x) * sums.strides[1] + 4 * LANES
                stride = 4 * grid.pitch
                if w == 0:  # a panel is a row of the grid, and there is nothing to be summed
                    row, stride = gram.ctypes.data + m % gram.shape[1] * gram.strides[1], gram.strides[0]
                factor, own = images.row_scale[a, d, m], images.row_margin[a, d, m]
                score(grid.halves[d], row, grid.H, grid.vectors, stride, arrays.ctypes.data, factor, own)
                note_rival(buffers, margin, d, m, own)
                count = row_candidates(buffers, margin, own, grid)
                which, upper = buffers.candidates, buffers.bounds
                found = nearest(images, a, m, b, d, which, upper, count, tolerance, FURTHEST)
                to_b[d, m], buffers.winner[d, m] = found[0], found[1]
                done += found[2]
    return done


@kernel(_nrt=False)
def resolve_columns(images, a, b, grid, buffers, tolerance, to_b, to_a):
    """Squared distances [D, M] of b's tokens, after `score_rows` has seen all of a; the number that it took."""
    done = 0
    for d in range(len(grid.halves)):
        first_a, first_b, winner = images.first[a, d], images.first[b, d], buffers.winner[d]
        for m in range(len(first_a)):
            to_b[d, m], winner[m] = to_b[d, first_a[m]], winner[first_a[m]]
        for i in range(len(grid.place)):
            m, count = grid.place[i], buffers.rival_counts[d, i]
            if m < 0 or first_b[m] != m:
                continue
            rivals, bounds, best, kept = buffers.rivals[d, i], buffers.rival_bounds[d, i], FURTHEST, 0
            for t in range(count if count <= KEPT else 0):
                if bounds[t] < buffers.best[d, i]:  # overtaken since it was noted
                    continue
                if winner[rivals[t]] == m:  # its nearest is this token, and the distance known
                    best = min(best, to_b[d, rivals[t]])
                else:
                    rivals[kept], bounds[kept] = rivals[t], bounds[t]
                    kept += 1
            count = count if count > KEPT else kept
            found = nearest(images, b, m, a, d, rivals, bounds, count, tolerance, best)
            to_a[d, m] = found[0]
            done += found[2]
        for m in range(len(first_b)):
            to_a[d, m] = to_a[d, first_b[m]]
    return done


@kernel(_nrt=False)
def compare(images, a, others, grid, buffers, tolerance, to_others, to_a):
    """Distances of image a's tokens to their nearest in each of k others, and of theirs: [k, D, M] each.

    tolerance: of a distance that may be taken from its cosine. Returns the number of distances that were computed.
    """
    H, W, gram, last = grid.H, grid.W, buffers.gram, images.rows.shape[1]
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
        for y in range(0, H, grid.stripe):
            known = min(H, y + grid.stripe)
            panels = y * W // ROWS, min(last, -(-known * W // ROWS))
            multiply(images.rows[a], images.columns[b], images.offset[b], ratio, gram, panels[0], panels[1])
            stop = np.int64(H if known == H else max(start, known - grid.widest))
            done += score_rows(images, a, b, start, stop, grid, buffers, tolerance, to_others[k])
            start = stop
        done += resolve_columns(images, a, b, grid, buffers, tolerance, to_others[k], to_a[k])
        for d in range(len(grid.halves)):
            for m in range(to_a.shape[2]):
                to_others[k, d, m] = np.sqrt(to_others[k, d, m])
                to_a[k, d, m] = np.sqrt(to_a[k, d, m])
    return done
