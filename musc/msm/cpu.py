"""The CPU engine: every pair of images once, one Gram matrix for all degrees, winners exact in float32.

Where the time goes, on two cores with AVX2, per pair of 37 x 37 x 1024 images: the Gram matrix in integers, then its
box filters and maxima for three degrees, then the winners' distances (`benchmarks` has the figures). Rounding to
integers is what makes the Gram matrix cheap; `search` makes the result exact nevertheless. Most of a token's length
lies along the few directions that the images have in common: those take 16 bits, and 8 are enough for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musc.msm import kernels, search
from musc.msm.pairs import Plan

ROUNDING = 2.0**-24  # relative, of one float32 operation
SUMMED = 1e-6  # of a cosine, by float32 box filters
LIKELY = 2.0  # standard deviations of the rounding error that margins cover where precision is not "float32"
TOLERANCE = 1e-3  # of distances where precision is not "float32"
CLIP = 4.0  # standard deviations of 8-bit values that their range holds
DIRECTIONS = 64  # whose products take 16 bits
NARROW = 128  # channels up to which float32 products are no dearer than what follows them


@lru_cache
def has_integer_products() -> bool:
    """True where products of 8- and 16-bit integers by AVX2 beat float32's."""
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("avx2"))


@dataclass(frozen=True)
class Layout:
    """The patch grid as the kernels see it: as columns, a patch row takes `pitch` places, the last ones empty.

    basis: [C, K] orthonormal directions whose products take 16-bit integers and the rest 8-bit ones; None: all take 16
    bits, or float32 where `integer` is False. sure: margins bound every rounding error, not just likely ones.
    """

    H: int
    W: int
    degrees: tuple[int, ...]
    integer: bool
    basis: np.ndarray | None = None
    sure: bool = True

    @cached_property
    def halves(self) -> np.ndarray:
        return np.array([(r - 1) // 2 for r in self.degrees], dtype=np.int64)

    @cached_property
    def widest(self) -> int:
        return int(self.halves.max())

    @cached_property
    def pitch(self) -> int:
        return self.W + self.widest

    @cached_property
    def panels(self) -> int:
        return -(-self.H * self.pitch // kernels.COLS)

    @cached_property
    def n(self) -> int:
        return -(-self.H * self.pitch // search.CHUNK) * search.CHUNK

    @cached_property
    def place(self) -> np.ndarray:
        """The token of every column, or -1."""
        y, x = np.divmod(np.arange(self.n), self.pitch)
        return np.where((x < self.W) & (y < self.H), y * self.W + x, -1)

    def scratch(self) -> tuple[Any, ...]:
        """One thread's buffers: the Gram rows in use, what `search.rows` needs, and every column's candidates."""
        D, n, widest = len(self.degrees), self.n, self.widest
        stripes = 1 + -(-2 * widest // kernels.ROWS)  # of six patch rows
        guarded = n + 2 * widest * (self.pitch + 1)
        ring = np.zeros((stripes * kernels.ROWS * self.W, n), np.float32)
        buffers = (
            np.zeros((D, 2 * widest + 1, n), np.float32),
            np.zeros(guarded, np.float32),
            np.zeros(guarded, np.float32),
            np.zeros(n, np.float32),
            np.zeros(n, np.float32),
            np.zeros(n // search.CHUNK, np.int64),
            np.zeros(n // 8, np.float32),
        )

        def lists(size: int) -> tuple[np.ndarray, ...]:
            shape = D, size, search.KEPT
            return np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros((D, size), np.int32)

        return ring, buffers, (np.zeros((D, n), np.float32), lists(self.H * self.W), lists(n))


@dataclass(frozen=True)
class Image:
    """One image ready to be compared: raw tokens for the search, aggregated unit tokens [D, M, C] for distances.

    rows, columns: raw centred tokens, as integer panels (with `offset` and the two `scales`) or as float32 [M, C] and
    [n, C]. as_rows, as_columns: factors that turn their products into cosines and margins of error of those, per degree
    and token, then the unit tokens, and of each the first that equals it.
    """

    rows: Any
    columns: Any
    offset: np.ndarray
    scales: tuple[float, float]
    unit: np.ndarray
    as_rows: tuple[np.ndarray, ...]
    as_columns: tuple[np.ndarray, ...]


def directions(sample: Tensor, K: int) -> np.ndarray:
    """[C, K] orthonormal: about the directions in which the sample [S, C] is longest, by two power iterations."""
    C = sample.shape[1]
    found = torch.randn(C, K + 8, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        found, _ = torch.linalg.qr(sample.T @ (sample @ found))
    _, _, turn = torch.linalg.svd(sample @ found, full_matrices=False)
    return (found @ turn.T[:, :K]).contiguous().numpy()


def prepare(tokens: Tensor, layout: Layout) -> Image:
    """One image's raw tokens [M, C] as an Image.

    LayerNorm over the whole map is a shift and a scale per image, and the scale goes in the L2 norm: only the shift is
    done. What rounding leaves out of a token is measured, and summed over neighbourhoods as the tokens are. By
    Cauchy and Schwarz it changes a cosine by no more than its share of the aggregated token's length (`_bound`).
    """
    M, C = tokens.shape
    D, H, W, n = len(layout.degrees), layout.H, layout.W, layout.n
    values = tokens.float()
    raw = (values - values.mean(dtype=torch.float64).float()).contiguous().numpy()
    unit, inverse, size = np.empty((D, M, C), np.float32), np.empty((D, M), np.float32), np.empty(M, np.float32)
    for d, h in enumerate(layout.halves):
        kernels.box(raw, H, W, h, unit[d], size)
        inverse[d] = 1 / np.maximum(size, np.float32(1e-20))
        kernels.scale_rows(unit[d], inverse[d])
    length, error = np.empty(M, np.float32), np.zeros(M, np.float32)
    most = float(kernels.lengths(raw, length))
    valid = layout.place >= 0
    offset, scales = np.zeros((layout.panels, 0, kernels.COLS), np.int32), (1.0, 1.0)
    rows: Any
    columns: Any
    if layout.integer:
        rows, columns, offset, scales, along, left = _integers(raw, float(length.max()), most, layout, error)
    else:
        padded = np.zeros((n, C), np.float32)
        padded[valid] = raw
        rows, columns = torch.from_numpy(raw), torch.from_numpy(padded)
    # relative to the aggregated tokens: lengths that meet in a neighbourhood, and of those the parts left out
    met = np.stack([_neighbourhood(length, H, W, h) for h in layout.halves.tolist()]) * inverse
    lost = np.stack([_neighbourhood(error, H, W, h) for h in layout.halves.tolist()]) * inverse
    within = np.zeros((D, M), np.float32)
    if layout.basis is not None:
        kernels.lengths(left, error)
        for d, h in enumerate(layout.halves.tolist()):
            kernels.box(along, H, W, h, along[:1].copy(), size)
            within[d] = size * inverse[d]
            if layout.sure:
                kernels.box(left, H, W, h, left[:1].copy(), size)
            else:  # independent errors of r^2 tokens add up to r of them
                size = _neighbourhood(error, H, W, h) / (2 * h + 1)
            lost[d] += size * inverse[d]
    slack = SUMMED + C * ROUNDING
    beyond = np.sqrt(np.maximum(1 - within**2, 0)) + slack * met  # length outside of the basis
    margin = _bound(lost, beyond, C, layout) + slack * met**2 / 2
    margin = np.minimum(margin, 2).astype(np.float32)
    first = np.stack([_first_of_equals(each) for each in unit])
    inverse /= scales[1]
    column_scale, column_margin = np.zeros((D, n), np.float32), np.full((D, n), search.NOTHING, np.float32)
    own = first == np.arange(M)
    column_scale[:, valid] = np.where(own, inverse, 0)
    column_margin[:, valid] = np.where(own, margin, search.NOTHING)
    return Image(
        rows, columns, offset, scales, unit,
        (inverse, margin, unit, first), (column_scale, column_margin, unit, first),
    )  # fmt: skip


def _integers(
    raw: np.ndarray, longest: float, most: float, layout: Layout, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float], Any, np.ndarray]:
    """`raw` as panels for `kernels.products`; `error` receives the length of what 16 bits leave out of every token.

    Last come the tokens' coordinates in the basis, and what 8 bits leave out of the rest.
    """
    M, C = raw.shape
    high, low, scale8 = raw, np.zeros((M, 0), np.float32), 1.0
    if layout.basis is not None:
        span = 4 * kernels.SPAN
        basis, tokens = torch.from_numpy(layout.basis), torch.from_numpy(raw)
        along = tokens @ basis  # [M, K]
        low = torch.addmm(tokens, along, basis.T, alpha=-1).numpy()
        if C % span:
            low = np.pad(low, ((0, 0), (0, -C % span)))
        high = along.numpy()
        spread = np.sqrt(np.einsum("mc,mc->", low, low) / raw.size)
        scale8 = min(kernels.TOP8 / max(CLIP * spread, 1e-18), kernels.LANE / max(kernels.longest_lane(low), 1e-18))
        most = float(np.abs(high).max())
    scale16 = min(46000 / max(longest, 1e-18), 32000 / max(most, 1e-18))  # sums below 2^31, elements below 2^15
    spans = low.shape[1] // (4 * kernels.SPAN)
    steps = low.shape[1] // 4 + (high.shape[1] + 1) // 2
    rows = np.zeros((-(-M // kernels.ROWS), steps, kernels.ROWS), np.int32)
    columns = np.zeros((layout.panels, steps, kernels.COLS), np.int32)
    offset = np.zeros((layout.panels, spans, kernels.COLS), np.int32)
    scales = np.float32(scale8), np.float32(scale16)
    kernels.pack(low, scales[0], high, scales[1], layout.W, layout.pitch, rows, columns, offset, error)
    return rows, columns, offset, (float(scales[0]), float(scales[1])), high, low


def _bound(lost: np.ndarray, beyond: np.ndarray, C: int, layout: Layout) -> np.ndarray:
    """Margins [D, M] such that the sum of two tokens' margins bounds what rounding does to their cosine.

    lost: length of rounding errors; beyond: of what was rounded; both relative. They enter a cosine as
    lost_a beyond_b + beyond_a lost_b + lost_a lost_b, and x y <= (x^2 / t + t y^2) / 2 for any t makes that a sum.
    """
    if layout.basis is None:
        return lost + lost**2 / 2
    t = CLIP / kernels.TOP8 / np.sqrt(12)
    bound = (lost**2 / t + t * beyond**2 + lost**2) / 2
    return bound if layout.sure else bound * LIKELY / np.sqrt(C)


def _neighbourhood(values: np.ndarray, H: int, W: int, h: int) -> np.ndarray:
    """Sums of values [M] over (2h + 1)^2 neighbourhoods of the patch grid."""
    padded = np.pad(values.reshape(H, W), h)
    views = np.lib.stride_tricks.sliding_window_view(padded, (2 * h + 1, 2 * h + 1))
    return np.asarray(views.sum(axis=(2, 3)).reshape(-1))


def _first_of_equals(tokens: np.ndarray) -> np.ndarray:
    """[M]: for every token the first one that equals it in all channels."""
    M = len(tokens)
    first = np.arange(M)
    start = tokens[:, :1].copy().view(np.int32).ravel()  # most tokens differ in the first channel
    _, index, inverse, counts = np.unique(start, return_index=True, return_inverse=True, return_counts=True)
    for group in np.flatnonzero(counts > 1):
        members = np.flatnonzero(inverse == group)
        equal = (tokens[members] == tokens[members[0]]).all(axis=1)
        first[members[equal]] = index[group]
    return first


def choose(
    image: Callable[[int], Tensor], plan: Plan, layout: Layout, precision: str
) -> tuple[Layout, dict[int, Image]]:
    """`layout` with the cheapest products that suit these tokens, found by trying them on one pair, and that pair.

    No choice changes a distance where precision is "float32". Fewer bits leave more candidates to be compared in full:
    M^2 / 16 such distances take as long as the bits save.
    """
    pairs = plan.pairs()
    M, C = image(0).shape
    if C > NARROW and layout.integer and pairs:
        i, p = pairs[0]
        for way in ways(image, plan, layout, precision):
            held = {q: prepare(image(q), way) for q in (i, p)}
            if compare(held[i], held[p], way, way.scratch())[2] <= M * M // 16:
                return way, held
    return replace(layout, integer=False), {}


def ways(image: Callable[[int], Tensor], plan: Plan, layout: Layout, precision: str) -> list[Layout]:
    """`layout` with every kind of integer products, cheapest first."""
    some = sorted({p for pair in plan.pairs() for p in pair})
    picked = [image(p)[:: -(-layout.H * layout.W // 128)].float() for p in some[:: -(-len(some) // 8)]]
    sample = torch.cat([tokens - tokens.mean() for tokens in picked])
    basis = directions(sample, max(1, min(DIRECTIONS, sample.shape[1] // 4, len(sample) // 2)))
    likely = [replace(layout, basis=basis, sure=False)] if precision != "float32" else []
    return [*likely, replace(layout, basis=basis), layout]


def compare(a: Image, b: Image, layout: Layout, scratch: tuple[Any, ...]) -> tuple[Tensor, Tensor, int]:
    """Distances of every token of a to its nearest in b, and of b to a, per degree: [D, M] each; how many it took."""
    ring, buffers, candidates = scratch
    best, _, (_, _, counts) = candidates
    D, M, _ = a.unit.shape
    H, W, h = layout.H, layout.W, layout.widest
    to_b, to_a, winner = np.empty((D, M), np.float32), np.empty((D, M), np.float32), np.empty((D, M), np.int32)
    best[:] = np.where(b.as_columns[1] > search.NOTHING, search.NOTHING, -search.NOTHING)
    counts[:] = 0
    ratio = np.float32(a.scales[1] * b.scales[1] / (a.scales[0] * b.scales[0]))
    start = 0
    for y in range(0, H, kernels.ROWS):  # a stripe: six patch rows, W panels of six tokens
        known = min(H, y + kernels.ROWS)
        if layout.integer:
            first, last = y // kernels.ROWS * W, -(-known * W // kernels.ROWS)
            kernels.products(a.rows, b.columns, b.offset, ratio, ring, first, last)
        else:
            at = y * W % len(ring)
            torch.mm(a.rows[y * W : known * W], b.columns.T, out=torch.from_numpy(ring[at : at + (known - y) * W]))
        stop = H if known == H else max(start, known - h)
        search.rows(
            ring, start, stop, (H, W, layout.pitch), layout.halves, a.as_rows, b.as_columns,
            layout.place, buffers, candidates, not layout.sure, to_b,
        )  # fmt: skip
        start = stop
    sides = a.as_rows, b.as_columns, layout.place
    if layout.sure:
        done = search.settle(*sides, candidates, to_b, winner, to_a)
    else:
        done = search.settle_rough(*sides, best, to_b.copy(), np.float32(TOLERANCE), to_b, to_a)
    return torch.from_numpy(np.sqrt(to_b)), torch.from_numpy(np.sqrt(to_a)), done


def stage_distances(
    image: Callable[[int], Tensor],
    plan: Plan,
    degrees: Sequence[int],
    grid: tuple[int, int],
    block: int | None,
    write: Callable[[int, int, Tensor], None],
    advance: Callable[[int], object],
    precision: str = "float32",
) -> None:
    """Calls write(i, slot, distances [D, M]) for every ordered pair in `plan`; image(p): raw tokens of pool image p.

    At most 2 `block` images are held. Threads (torch.get_num_threads()) take whole pairs, each with its own buffers.
    """
    layout, held = choose(image, plan, Layout(*grid, tuple(degrees), has_integer_products()), precision)
    block = block or 8
    threads = torch.get_num_threads()
    free: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
    for _ in range(threads):
        free.put(layout.scratch())
    slot = plan.slot.tolist()

    def one(pair: tuple[int, int]) -> None:
        i, p = pair
        scratch = free.get()
        try:
            forward, backward, _ = compare(held[i], held[p], layout, scratch)
        finally:
            free.put(scratch)
        if slot[i][p] >= 0:
            write(i, slot[i][p], forward)
        if p < plan.N and slot[p][i] >= 0:
            write(p, slot[p][i], backward)

    with ThreadPoolExecutor(threads) as pool:
        for group in plan.blocks(block):
            needed = set(sum(group, ()))
            held = {p: im for p, im in held.items() if p in needed}
            missing = sorted(needed - set(held))
            held.update(zip(missing, pool.map(lambda p: prepare(image(p), layout), missing), strict=True))
            for _ in pool.map(one, group):
                advance(1)
