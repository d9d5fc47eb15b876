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

from musc.engines.cpu.boxes import CHUNK, judge, largest, passing
from musc.engines.cpu.boxes import sums as add

KEPT = 48  # candidates per token; with more the token is compared with all
EQUAL = np.float32(5e-14)  # squared distance of tokens that are equal but for float32's last digits
EXACT = np.float32(1e-6)  # of a cosine found from a distance in float32
NOTHING = np.float32(-8)
FAST = {"reassoc", "contract", "arcp", "nsz"}


@njit(nogil=True, cache=True)
def _around(middle, step, pairs, out):
    """out = the addresses middle, middle - step, middle + step, middle - 2 step, ..., for `pairs` pairs."""
    out[0] = middle
    for t in range(1, pairs + 1):
        out[2 * t - 1], out[2 * t] = middle - t * step, middle + t * step


@njit(nogil=True, cache=True)
def _cyclic(rows, at, first, end, step, pairs, nothing, out):
    """As `_around`, of the rows at, at - step, at + step, ..., counted around their end; `nothing` before the row
    `first` and from `end` on."""
    start, stride, R = rows.ctypes.data, rows.strides[0], rows.shape[0]
    out[0] = start + at % R * stride
    for t in range(1, pairs + 1):
        before, after = at - t * step, at + t * step
        out[2 * t - 1] = start + before % R * stride if before >= first else nothing
        out[2 * t] = start + after % R * stride if after < end else nothing


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


@njit(nogil=True, cache=True)
def _candidates(values, margin, own, tops, hits, found, upper):
    """Columns that may hold the row's largest cosine, given the margins of error; their number (KEPT + 1: too many).

    tops: as `judge` leaves them. hits: [n / 64], scratch.
    """
    floor = NOTHING  # the largest cosine is at least this
    for low in tops[-8:]:
        floor = max(floor, low - own)
    passing(tops, floor - own, hits)
    count = 0
    for chunk in range(hits.shape[0]):
        bits = np.uint64(hits[chunk])
        while bits:
            first = chunk * CHUNK + np.int64(trailing_zeros(bits))  # type: ignore[call-arg]
            bits &= bits - np.uint64(1)
            for i in range(first, first + CHUNK, 8):
                if values[i] + margin[i] >= floor - own:
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


@njit(nogil=True, cache=True, fastmath=FAST)
def _mend(across, along, grid, h):
    """Sums `along` patch rows, of 2h + 1 values `across`: those that reached into another patch row, made anew."""
    H, _, pitch = grid
    for y in range(1, H + 1):
        first = np.uint64(y * pitch)  # of a patch row, h places after the last of the one before
        last = first - np.uint64(h)
        before, after = across[last], across[first]
        for t in range(np.uint64(1), np.uint64(h + 1)):
            before += across[last - t]
            after += across[first + t]
        along[last], along[first] = before, after


@njit(nogil=True, cache=True)
def rows(ring, start, stop, grid, halves, a, b, place, buffers, candidates, rough, cosines):
    """Lists what the tokens of the patch rows start..stop of image a, and all of b, may be nearest to.

    ring: [rows, n], the Gram rows of the patch rows start - h..stop + h, modulo its length. grid: (H, W, pitch).
    halves: h = (degree - 1) / 2 of each degree. a, b: (scale, margin, first of equal tokens) per degree;
    the columns of b lie `pitch` apart per patch row. place: the token of every column, or -1. candidates: for `settle`.
    rough: only find largest cosines, `cosines` of rows and the columns' in candidates[0].
    """
    H, W, pitch = grid
    scale_a, margin_a, first_a = a
    scale_b, margin_b, _ = b
    sums, across, along, zeros, values, marks, tops, hits = buffers
    best, for_rows, for_columns = candidates
    found, upper, count = for_rows
    listed, bounds, counts = for_columns
    n, nothing, widest = len(zeros), zeros.ctypes.data, halves.max()
    wider = np.argsort(halves)[np.count_nonzero(halves == 0) :]  # degrees beyond 1, by size
    guarded = widest * (pitch + 1)
    guard = 4 * guarded  # in bytes
    # addresses of the rows whose sums each step takes (see `boxes`): over v and x of a, over x and y of b
    over_v, over_x, gram = np.empty((3, 2 * widest + 1), np.int64)
    along_of, boxed_of = np.empty((2, len(halves), 2 * widest + 1), np.int64)
    more, outs, one = np.empty(len(halves), np.int64), np.empty(len(halves), np.int64), np.empty((3, 1), np.int64)
    for k, d in enumerate(wider):
        more[k] = halves[d] - (halves[wider[k - 1]] if k else 0)
    for d in range(len(halves)):
        _around(across.ctypes.data + guard, 4, halves[d], along_of[d])
        _around(along.ctypes.data + guard, 4 * pitch, halves[d], boxed_of[d])
    one[1, 0], one[2, 0] = across.ctypes.data + guard, along.ctypes.data + guard
    for y in range(start, stop):
        for x in range(-widest, W):
            ahead = x + widest  # the token (y, ahead) is needed from now on
            if widest and ahead < W:
                for k, d in enumerate(wider):
                    outs[k] = sums.ctypes.data + d * sums.strides[0] + ahead % sums.shape[1] * sums.strides[1]
                _cyclic(ring, y * W + ahead, 0, H * W, W, widest, nothing, over_v)
                add(n, over_v, more, outs, len(wider))
            if x < 0:
                continue
            m = y * W + x
            for d in range(len(halves)):
                if first_a[d, m] != m:  # as the equal token
                    continue
                h, box = halves[d], boxed_of[d]
                if h:
                    one[0, 0] = h
                    _cyclic(sums[d], x, 0, W, 1, h, nothing, over_x)
                    add(n, over_x, one[0], one[1], 1)
                    add(n, along_of[d], one[0], one[2], 1)
                    if W + h > pitch:
                        _mend(across[guarded:], along[guarded:], grid, h)
                else:
                    box = gram
                    box[0] = ring.ctypes.data + m % len(ring) * ring.strides[0]
                if rough:
                    cosines[d, m] = largest(box, h, scale_b[d], scale_a[d, m], best[d], tops)
                    continue
                own = margin_a[d, m]
                judge(box, h, scale_b[d], margin_b[d], best[d], scale_a[d, m], own, values, marks, tops)
                _note(marks, values, own, m, margin_b[d], best[d], listed, bounds, counts, d)
                count[d, m] = _candidates(values, margin_b[d], own, tops, hits, found[d, m], upper[d, m])
                for k in range(min(count[d, m], KEPT)):
                    found[d, m, k] = place[found[d, m, k]]


@njit(nogil=True, cache=True)
def settle(a, b, unit_a, unit_b, place, candidates, to_b, winner, to_a):
    """Squared distances [D, M] of the tokens of a to their nearest in b, and of b to a, after `rows` has seen all of a.

    winner: [D, M], receives which tokens of b those of a are nearest to. Returns the number of distances computed.
    """
    _, _, first_a = a
    _, margin_b, first_b = b
    best, (found, upper, count), (listed, bounds, counts) = candidates
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
            known, kept = np.float32(8), 0
            for t in range(number):
                row = listed[d, i, t]
                if bounds[d, i, t] < best[d, i]:  # overtaken since it was noted
                    continue
                if winner[d, row] == m:  # the distance is known where the row's nearest is this token
                    known = min(known, to_b[d, row])
                else:
                    listed[d, i, kept], bounds[d, i, kept] = row, bounds[d, i, t] + margin_b[d, i]
                    kept += 1
            nearest = _nearest(unit_b[d, m], unit_a[d], listed[d, i], bounds[d, i], kept, known)
            to_a[d, m] = nearest[0]
            done += nearest[2]
    return done


@njit(nogil=True, cache=True)
def settle_rough(a, b, place, column_cosines, tolerance, to_b, to_a, doubtful):
    """Squared distances [D, M] from largest cosines, of rows in `to_b` itself and of columns, as they are.

    doubtful: [2, D, M], False, is set where margins may move a distance by more than `tolerance`.
    """
    _, margin_a, first_a = a
    _, margin_b, first_b = b
    for d in range(to_b.shape[0]):
        for m in range(to_b.shape[1]):
            if first_a[d, m] != m:
                to_b[d, m] = to_b[d, first_a[d, m]]
                continue
            to_b[d, m] = 2 - 2 * to_b[d, m]
            doubtful[0, d, m] = 2 * margin_a[d, m] > tolerance * np.sqrt(max(to_b[d, m], np.float32(0)))
        for i in range(place.shape[0]):
            m = place[i]
            if m < 0:
                continue
            if first_b[d, m] != m:
                to_a[d, m] = to_a[d, first_b[d, m]]
                continue
            to_a[d, m] = 2 - 2 * column_cosines[d, i]
            doubtful[1, d, m] = 2 * margin_b[d, i] > tolerance * np.sqrt(max(to_a[d, m], np.float32(0)))
