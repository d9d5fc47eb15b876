"""Outlines of a region along the edges of its pixels, as polygons that fill to exactly the region."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

Corner = tuple[int, int]  # x, y of a pixel's corner


def outlines(region: NDArray[np.bool_], origin: Corner = (0, 0)) -> list[tuple[int, ...]]:
    """Polygons [x, y, x, y, ...] whose union is the region [H, W], moved by `origin`; at corners where pixels touch
    they part, and each hole is joined to its outline by a cut of no width, since COCO's polygons have no holes.

    Example:
        >>> outlines(np.array([[True, True], [True, False]]))
        [(0, 0, 2, 0, 2, 1, 1, 1, 1, 2, 0, 2)]
    """
    loops = _loops(region)
    outer = [loop for loop in loops if _area(loop) > 0]
    for hole in sorted((loop for loop in loops if _area(loop) < 0), key=min):
        _cut_open(outer, hole)
    return [tuple(v for x, y in loop for v in (x + origin[0], y + origin[1])) for loop in sorted(outer, key=min)]


def _loops(region: NDArray[np.bool_]) -> list[list[Corner]]:
    """Closed walks around the region, pixels on the right hand as y points down: outer ones turn clockwise on the
    screen (positive area), those around holes the other way. Only corners are kept."""
    padded = np.pad(region, 1)
    inner = padded[1:-1, 1:-1]
    ahead: dict[Corner, list[Corner]] = defaultdict(list)
    for (dy, dx), start, end in (
        ((-1, 0), (0, 0), (1, 0)),  # upper edges, to the right
        ((0, 1), (1, 0), (1, 1)),  # right edges, down
        ((1, 0), (1, 1), (0, 1)),  # lower edges, to the left
        ((0, -1), (0, 1), (0, 0)),  # left edges, up
    ):
        beside = padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx]
        for y, x in np.argwhere(inner & ~beside).tolist():
            ahead[x + start[0], y + start[1]].append((x + end[0], y + end[1]))
    loops = []
    for first in sorted(ahead):
        while ahead[first]:
            loops.append(_walk(first, ahead))
    return loops


def _walk(first: Corner, ahead: dict[Corner, list[Corner]]) -> list[Corner]:
    """One loop from `first`, taken out of `ahead`; where two pixels touch at a corner it stays with its own pixel."""
    loop, here, step = [first], first, (0, 0)
    while True:
        right = (here[0] - step[1], here[1] + step[0])  # a right turn goes around the same pixel
        there = right if right in ahead[here] else ahead[here][0]
        ahead[here].remove(there)
        new = (there[0] - here[0], there[1] - here[1])
        if new == step:
            loop[-1] = there
        else:
            loop.append(there)
        here, step = there, new
        if here == first:
            return loop[:-1]


def _area(loop: list[Corner]) -> float:
    x, y = np.array(loop, dtype=np.int64).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _cut_open(outer: list[list[Corner]], hole: list[Corner]) -> None:
    """Join a hole to the outline around it, along the row of its topmost, leftmost corner, going left."""
    y, x = min((y, x) for x, y in hole)
    best: tuple[int, int, int] | None = None  # where to: x, loop, edge
    for n, loop in enumerate(outer):
        for m, (a, b) in enumerate(zip(loop, loop[1:] + loop[:1], strict=True)):
            if a[0] == b[0] <= x and min(a[1], b[1]) <= y <= max(a[1], b[1]) and (best is None or a[0] > best[0]):
                best = (a[0], n, m)
    assert best is not None  # a hole lies inside of something
    at, n, m = best
    start = hole.index((x, y))
    around = [*hole[start:], *hole[:start], (x, y)]
    joined = [*outer[n][: m + 1], (at, y), *around, (at, y), *outer[n][m + 1 :]]
    outer[n] = [p for p, before in zip(joined, joined[-1:] + joined[:-1], strict=True) if p != before]
