"""The CPU engine's search: the nearest tokens of an image pair out of its Gram matrix, for all degrees at once.

The Gram matrix G of raw tokens holds <f_a, f_b>, slightly rounded. An r x r neighbourhood sum is linear, so the inner
products of aggregated tokens are box sums of G over both tokens' neighbourhoods; divided by both norms they are
cosines, and the largest cosine is the smallest distance. Every token has a margin, a bound of the error that rounding
it puts on any of its cosines; every candidate within the margins of the winner has its distance computed in float32
from the aggregated tokens themselves, so that the rounding of G decides nothing.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.cpython.unsafe.numbers import trailing_zeros

from musc.msm.kernels import add3, add5, add_rows, judge, largest

CHUNK = 64  # columns per word of marks, and per eight tops, of `judge`
KEPT = 48  # candidates per token; with more the token is compared with all
EQUAL = np.float32(5e-14)  # squared distance of tokens that are equal but for float32's last digits
EXACT = np.float32(1e-6)  # of a cosine found from a distance in float32
NOTHING = np.float32(-8)
FAST = {"reassoc", "contract", "arcp", "nsz"}


@njit(nogil=True, cache=True, fastmath=FAST)
def _add_3_and_5(a, b, c, d, e, three, five):
    for i in range(three.shape[0]):
        inner = b[i] + c[i] + d[i]
        three[i] = inner
        five[i] = inner + (a[i] + e[i])


@njit(nogil=True, cache=True)
def _add_patch_rows(ring, y, x, H, W, halves, sums):
    """sums[d, x % its length] = sum of the Gram rows of the tokens (v, x), v in y - h..y + h, for every degree's h."""
    at = x % sums.shape[1]
    for d in range(halves.shape[0]):
        h = halves[d]
        top, bottom = max(0, y - h), min(H, y + h + 1)
        if h == 1 and d + 1 < halves.shape[0] and halves[d + 1] == 2 and y >= 2 and y + 2 < H:
            R = ring.shape[0]
            m = y * W + x
            _add_3_and_5(
                ring[(m - 2 * W) % R], ring[(m - W) % R], ring[m % R], ring[(m + W) % R], ring[(m + 2 * W) % R],
                sums[d, at], sums[d + 1, at],
            )  # fmt: skip
        elif not (h == 2 and d > 0 and halves[d - 1] == 1 and y >= 2 and y + 2 < H) and h:
            add_rows(ring, top * W + x, W, bottom - top, sums[d, at])


@njit(nogil=True, cache=True, fastmath=FAST)
def _add_shifts(line, start, step, h, out):
    """out[i] = sum of line[start + i + t * step] over t = -h..h."""
    a, b, c = line[start - step :], line[start:], line[start + step :]
    if h == 1:
        add3(a, b, c, out)
    elif h == 2:
        add5(line[start - 2 * step :], a, b, c, line[start + 2 * step :], out)
    else:
        out[:] = 0
        for t in range(-h, h + 1):
            out += line[start + t * step : start + t * step + out.shape[0]]


@njit(nogil=True, cache=True, fastmath=FAST)
def _square(a, b):
    """|| a - b ||^2"""
    total = np.float32(0)
    for c in range(a.shape[0]):
        total += (a[c] - b[c]) * (a[c] - b[c])
    return total


@njit(nogil=True, cache=True)
def _scan(token, others, first):
    """The smallest squared distance of a token to all `others` that are `first` of their kind, and which it is."""
    best, at = np.float32(8), 0
    for j in range(others.shape[0]):
        if first[j] == j:
            found = _square(token, others[j])
            if found < best:
                best, at = found, j
                if best < EQUAL:
                    break
    return best, at


@njit(nogil=True, cache=True, fastmath=FAST)
def _top(tops):
    top = NOTHING
    for j in range(tops.shape[0]):
        top = max(top, tops[j])
    return top


@njit(nogil=True, cache=True)
def _candidates(values, margin, own, tops, found, upper):
    """Columns that may hold the row's largest cosine, given the margins of error; their number (KEPT + 1: too many).

    tops: the largest of values + margin over eight columns that lie eight apart, then eight of the largest of those,
    as `judge` leaves them.
    """
    tops, last = tops[:-8], tops[-8:]
    top = _top(last)
    floor = NOTHING  # the largest cosine is at least this
    for j in range(tops.shape[0]):
        if tops[j] == top:
            first = j // 8 * CHUNK + j % 8
            for i in range(first, first + CHUNK, 8):
                if values[i] + margin[i] == top:
                    floor = max(floor, values[i] - margin[i] - own)
    count = 0
    for j in range(tops.shape[0]):
        if tops[j] + own >= floor:
            first = j // 8 * CHUNK + j % 8
            for i in range(first, first + CHUNK, 8):
                if values[i] + margin[i] + own >= floor:
                    if count == KEPT:
                        return KEPT + 1
                    found[count] = i
                    upper[count] = values[i] + margin[i] + own
                    count += 1
    return count


@njit(nogil=True, cache=True)
def _nearest(token, others, which, upper, count, best):
    """The smallest squared distance to `count` candidates, most promising first, which it is, and how many it took.

    `upper` bounds their cosines: what cannot beat the distance found so far (`best` at first) is left out.
    """
    at, done = which[0], 0
    for _ in range(count):
        k = 0
        for t in range(1, count):
            if upper[t] > upper[k]:
                k = t
        if upper[k] < np.float32(1) - best / 2 - EXACT:
            break
        upper[k] = NOTHING
        found = _square(token, others[which[k]])
        done += 1
        if found < best:
            best, at = found, which[k]
    return best, at, done


@njit(nogil=True, cache=True)
def _note(marks, values, own, m, margin, best, listed, bounds, counts, d):
    """Puts row m on the lists of the columns that it may be the nearest of, and raises their `best`."""
    found, upper, count = listed[d], bounds[d], counts[d]
    for chunk in range(marks.shape[0]):
        bits = np.uint64(marks[chunk])
        while bits:
            i = chunk * CHUNK + np.int64(trailing_zeros(bits))  # type: ignore[call-arg]
            bits &= bits - np.uint64(1)
            w = values[i] + own
            if count[i] <= KEPT:
                best[i] = max(best[i], values[i] - own - 2 * margin[i])
                if count[i] == KEPT:
                    count[i] = _drop(found[i], upper[i], best[i])
                if count[i] < KEPT:
                    found[i, count[i]], upper[i, count[i]] = m, w
                    count[i] += 1


@njit(nogil=True, cache=True)
def _drop(found, upper, best):
    """Takes from a full list what cannot win any more; what is left, or KEPT + 1 if nothing could be taken."""
    kept = 0
    for t in range(KEPT):
        if upper[t] >= best:
            found[kept], upper[kept] = found[t], upper[t]
            kept += 1
    return kept if kept < KEPT else KEPT + 1


@njit(nogil=True, cache=True)
def rows(ring, start, stop, grid, halves, a, b, place, buffers, candidates, rough, cosines):
    """Lists what the tokens of the patch rows start..stop of image a, and all of b, may be nearest to.

    ring: [rows, n], the Gram rows of the patch rows start - h..stop + h, modulo its length. grid: (H, W, pitch).
    halves: h = (degree - 1) / 2 of each degree. a, b: (scale, margin, unit tokens, first of equal tokens) per degree;
    the columns of b lie `pitch` apart per patch row. place: the token of every column, or -1. candidates: for `settle`.
    rough: only find largest cosines, `cosines` of rows and the columns' in candidates[0].
    """
    H, W, pitch = grid
    scale_a, margin_a, _, first_a = a
    scale_b, margin_b, _, _ = b
    sums, across, along, boxed, values, marks, tops = buffers
    best, for_rows, for_columns = candidates
    found, upper, count = for_rows
    listed, bounds, counts = for_columns
    n = values.shape[0]
    widest = halves.max()
    guard = widest * pitch + widest
    for y in range(start, stop):
        for x in range(min(widest, W)):
            _add_patch_rows(ring, y, x, H, W, halves, sums)
        for x in range(W):
            m = y * W + x
            if x + widest < W:
                _add_patch_rows(ring, y, x + widest, H, W, halves, sums)
            for d in range(halves.shape[0]):
                if first_a[d, m] != m:  # as the equal token
                    continue
                h = halves[d]
                if h:
                    left = max(0, x - h)
                    add_rows(sums[d], left, 1, min(W, x + h + 1) - left, across[guard : guard + n])
                    _add_shifts(across, guard, 1, h, along[guard : guard + n])
                    _add_shifts(along, guard, pitch, h, boxed)
                    line = boxed
                else:
                    line = ring[m % ring.shape[0]]
                if rough:
                    cosines[d, m] = largest(line, scale_b[d], scale_a[d, m], best[d], values)
                    continue
                own = margin_a[d, m]
                judge(line, scale_b[d], margin_b[d], best[d], scale_a[d, m], own, values, marks, tops)
                _note(marks, values, own, m, margin_b[d], best[d], listed, bounds, counts, d)
                count[d, m] = _candidates(values, margin_b[d], own, tops, found[d, m], upper[d, m])
                for k in range(min(count[d, m], KEPT)):
                    found[d, m, k] = place[found[d, m, k]]


@njit(nogil=True, cache=True)
def settle(a, b, place, candidates, to_b, winner, to_a):
    """Squared distances [D, M] of the tokens of a to their nearest in b, and of b to a, after `rows` has seen all of a.

    winner: [D, M], receives which tokens of b those of a are nearest to. Returns the number of distances computed.
    """
    _, _, unit_a, first_a = a
    _, margin_b, unit_b, first_b = b
    _, (found, upper, count), (listed, bounds, counts) = candidates
    M = unit_a.shape[1]
    done = 0
    for d in range(to_b.shape[0]):
        for m in range(M):
            if first_a[d, m] != m:
                to_b[d, m], winner[d, m] = to_b[d, first_a[d, m]], winner[d, first_a[d, m]]
            elif count[d, m] > KEPT:
                to_b[d, m], winner[d, m] = _scan(unit_a[d, m], unit_b[d], first_b[d])
                done += M
            else:
                nearest = _nearest(unit_a[d, m], unit_b[d], found[d, m], upper[d, m], count[d, m], np.float32(8))
                to_b[d, m], winner[d, m] = nearest[0], nearest[1]
                done += nearest[2]
        for i in range(place.shape[0]):
            m = place[i]
            if m < 0:
                continue
            if first_b[d, m] != m:
                to_a[d, m] = to_a[d, first_b[d, m]]
                continue
            number = counts[d, i]
            if number > KEPT:
                to_a[d, m], _ = _scan(unit_b[d, m], unit_a[d], first_a[d])
                done += M
                continue
            known = np.float32(8)
            for t in range(number):  # the distance is known where the row's nearest is this token
                bounds[d, i, t] += margin_b[d, i]
                if winner[d, listed[d, i, t]] == m:
                    known = min(known, to_b[d, listed[d, i, t]])
                    bounds[d, i, t] = NOTHING
            nearest = _nearest(unit_b[d, m], unit_a[d], listed[d, i], bounds[d, i], number, known)
            to_a[d, m] = nearest[0]
            done += nearest[2]
    return done


@njit(nogil=True, cache=True)
def settle_rough(a, b, place, column_cosines, row_cosines, tolerance, to_b, to_a):
    """As `settle`, from largest cosines; compares all where margins may move a distance by more than `tolerance`."""
    _, margin_a, unit_a, first_a = a
    _, margin_b, unit_b, first_b = b
    M = unit_a.shape[1]
    done = 0
    for d in range(to_b.shape[0]):
        for m in range(M):
            if first_a[d, m] != m:
                to_b[d, m] = to_b[d, first_a[d, m]]
                continue
            to_b[d, m] = 2 - 2 * row_cosines[d, m]
            if 2 * margin_a[d, m] > tolerance * np.sqrt(max(to_b[d, m], np.float32(0))):
                to_b[d, m], _ = _scan(unit_a[d, m], unit_b[d], first_b[d])
                done += M
        for i in range(place.shape[0]):
            m = place[i]
            if m < 0:
                continue
            if first_b[d, m] != m:
                to_a[d, m] = to_a[d, first_b[d, m]]
                continue
            to_a[d, m] = 2 - 2 * column_cosines[d, i]
            if 2 * margin_b[d, i] > tolerance * np.sqrt(max(to_a[d, m], np.float32(0))):
                to_a[d, m], _ = _scan(unit_b[d, m], unit_a[d], first_a[d])
                done += M
    return done
