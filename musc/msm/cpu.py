"""The CPU engine: every pair of images once, one Gram matrix for all degrees, winners exact in float32.

Where the time goes, per pair of 37 x 37 x 1024 images: half in the Gram matrix in integers (AVX-512 VNNI or AVX2),
then its box filters and maxima for three degrees, then the winners' distances (`benchmarks` has the figures). Rounding
to integers is what makes the Gram matrix cheap; `search` makes the result exact nevertheless. Most of a token's length
lies along the few directions that the images have in common: those take 16 bits, and 8 are enough for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musc.msm import boxes, gram, kernels, search
from musc.msm.pairs import Plan

ROUNDING = 2.0**-24  # relative, of one float32 operation
SUMMED = 1e-6  # of a cosine, by float32 box filters
LIKELY = 2.0  # standard deviations of the rounding error that margins cover where precision is not "float32"
TOLERANCE = 1e-3  # of distances where precision is not "float32"
CLIP = 4.6  # standard deviations of 8-bit values that their range holds
CLIP_LIKELY = 5.6  # the same where precision is not "float32": no token is left that needs a full comparison
DIRECTIONS = 64  # whose products take 16 bits
NARROW = 128  # channels up to which float32 products are no dearer than what follows them


@lru_cache
def has_integer_products() -> bool:
    """True where products of 8- and 16-bit integers by AVX2 beat float32's."""
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("avx2"))


@lru_cache
def has_wide_products() -> bool:
    """True where the processor has AVX-512's products of integers too."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    return has_integer_products() and all(features.get(name) for name in ("avx512bw", "avx512vnni"))


@dataclass(frozen=True)
class Layout:
    """The patch grid as the kernels see it: as columns, a patch row takes `pitch` places, the last ones empty.

    wide: integers take AVX-512 VNNI. turn: two matrices [C, K], A and V, such that x - (x A) V^T turns a token so that
    its first K coordinates lie along the directions that matter most; their products take 16-bit integers, the others'
    8-bit ones. None: all take 16 bits, or float32 where `integer` is False. sure: margins bound every rounding
    error, not just likely ones.
    """

    H: int
    W: int
    degrees: tuple[int, ...]
    integer: bool
    wide: bool = False
    turn: tuple[np.ndarray, np.ndarray] | None = None
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

    @property
    def cols(self) -> int:
        return gram.COLS_WIDE if self.wide else gram.COLS

    @property
    def clip(self) -> float:
        return CLIP if self.sure else CLIP_LIKELY

    @property
    def top8(self) -> int:
        return gram.TOP8_WIDE if self.wide else gram.TOP8

    @cached_property
    def n(self) -> int:
        return -(-self.H * self.pitch // boxes.CHUNK) * boxes.CHUNK

    @cached_property
    def place(self) -> np.ndarray:
        """The token of every column, or -1."""
        y, x = np.divmod(np.arange(self.n), self.pitch)
        return np.where((x < self.W) & (y < self.H), y * self.W + x, -1)

    def operands(self, C: int) -> list[tuple[tuple[int, ...], type]]:
        """Shapes and types of an image's rows, columns and offset as `gram.products` takes them."""
        steps, spans = 0, 0
        if self.turn is not None:
            K = self.turn[0].shape[1]
            spans = -(-(C - K) // (4 * gram.SPAN))
            steps, C = spans * gram.SPAN, K
        steps += (C + 1) // 2
        M, panels = self.H * self.W * self.integer, -(-self.H * self.pitch // self.cols) * self.integer
        shapes = (-(-M // gram.ROWS), steps, gram.ROWS), (panels, steps, self.cols), (panels, spans, self.cols)
        return [(shape, np.int32) for shape in shapes]

    def workspace(self, C: int) -> tuple[np.ndarray, ...]:
        """For an image in preparation: raw tokens, then room for their coordinates: the most, and twice the first."""
        shapes = (M := self.H * self.W, C), (M, C + 4 * gram.SPAN), (M, DIRECTIONS), (M, DIRECTIONS)
        return tuple(arrays(*[(shape, np.float32) for shape in shapes]))

    def scratch(self, C: int) -> tuple[Any, ...]:
        """One thread's buffers: Gram rows in use, what `search.rows` needs, every column's candidates; a workspace."""
        D, n, widest = len(self.degrees), self.n, self.widest
        stripes = 1 + -(-2 * widest // gram.ROWS)  # of six patch rows
        guarded = n + 2 * widest * (self.pitch + 1)
        real = [
            (stripes * gram.ROWS * self.W, n),
            (D, 2 * widest + 1, n),
            (guarded,),
            (guarded,),
            (n,),
            (n,),
            (n // 8 + 8,),
            (D, n),
        ]
        lists = [((D, size, search.KEPT), kind) for size in (self.H * self.W, n) for kind in (np.int32, np.float32)]
        counts = [((D, size), np.int32) for size in (self.H * self.W, n)]
        found = arrays(
            *[(shape, np.float32) for shape in real],
            *[((n // boxes.CHUNK,), kind) for kind in (np.int64, np.uint8)],
            *lists,
            *counts,
        )
        ring, sums, across, along, zeros, values, tops, best, marks, hits, *found = found
        buffers = sums, across, along, zeros, values, marks, tops, hits
        candidates = best, (found[0], found[1], found[4]), (found[2], found[3], found[5])
        return ring, buffers, candidates, self.workspace(C)


class Units:
    """Aggregated tokens of unit length, [M, C] for the d-th degree, made when first asked for."""

    def __init__(self, tokens: Tensor, layout: Layout) -> None:
        self.tokens, self.layout = tokens, layout
        self.made: dict[int, np.ndarray] = {}

    def __getitem__(self, d: int) -> np.ndarray:
        if d not in self.made:
            raw, unit = np.empty((2, *self.tokens.shape), np.float32)
            kernels.center(self.tokens.float().contiguous().numpy(), raw)
            kernels.box(raw, self.layout.H, self.layout.W, self.layout.halves[d], unit, np.empty(len(raw), np.float32))
            self.made[d] = unit
        return self.made[d]


@dataclass(frozen=True)
class Image:
    """One image ready to be compared: raw tokens for the search, aggregated unit tokens for distances.

    rows, columns: raw centred tokens, as integer panels (with `offset` and the two `scales`) or as float32 [M, C] and
    [n, C]. unit: [D, M, C], or where margins are not sure, and distances rarely wanted, `Units`. as_rows, as_columns:
    factors that turn products into cosines, margins of error of those, per degree and token, and of each token the
    first that equals it.
    """

    rows: Any
    columns: Any
    offset: np.ndarray
    scales: tuple[float, float]
    unit: np.ndarray | Units
    as_rows: tuple[np.ndarray, ...]
    as_columns: tuple[np.ndarray, ...]


def turned(basis: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """`Layout.turn` from an orthonormal basis [C, K] of the directions that matter most.

    A product of K reflections (Householder) takes them to the first K axes: I - V T V^T, with A = V T. So the others
    are C - K coordinates, and not the C of what is left when the tokens' parts in the basis are taken away.
    """
    packed, tau = torch.geqrf(basis.double())
    V = packed.tril(-1) + torch.eye(*basis.shape, dtype=torch.float64)
    T = torch.linalg.inv((V.T @ V).triu(1) + torch.diag(1 / tau.clamp_min(1e-30)))  # tau 0: nothing to do
    return (V @ T).float().numpy(), V.float().contiguous().numpy()


def directions(sample: Tensor, K: int) -> Tensor:
    """[C, K] orthonormal: about the directions in which the sample [S, C] is longest, by two power iterations."""
    C = sample.shape[1]
    found = torch.randn(C, K + 8, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        found, _ = torch.linalg.qr(sample.T @ (sample @ found))
    seen = sample @ found
    _, turn = torch.linalg.eigh(seen.T @ seen)
    return found @ turn[:, -K:]


def arrays(*kinds: tuple[tuple[int, ...], type]) -> list[np.ndarray]:
    """Zeros of given shapes and types in one piece of memory, large enough for the system to back it by large pages."""
    sizes = [-(-int(np.prod(shape)) * np.dtype(kind).itemsize // 64) * 64 for shape, kind in kinds]
    piece = np.empty(sum(sizes) + 64, np.uint8)
    ends = np.cumsum([-piece.ctypes.data % 64, *sizes]).tolist()
    out: list[np.ndarray] = []
    for (shape, kind), start in zip(kinds, ends[:-1], strict=True):
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        out.append(piece[start : start + size].view(kind).reshape(shape))
        out[-1].fill(0)
    return out


def prepare(tokens: Tensor, layout: Layout, workspace: tuple[np.ndarray, ...] | None = None) -> Image:
    """One image's raw tokens [M, C] as an Image.

    LayerNorm over the whole map is a shift and a scale per image, and the scale goes in the L2 norm: only the shift is
    done. What rounding leaves out of a token is measured, and summed over neighbourhoods as the tokens are. By
    Cauchy and Schwarz it changes a cosine by no more than its share of the aggregated token's length (`_bound`).
    """
    M, C = tokens.shape
    D, H, W, n = len(layout.degrees), layout.H, layout.W, layout.n
    workspace = workspace or layout.workspace(C)
    raw = workspace[0]
    kernels.center(tokens.float().contiguous().numpy(), raw)
    rows, columns, offset = arrays(*layout.operands(C))
    unit = np.empty((D, M, C), np.float32) if layout.sure else Units(tokens, layout)
    length, error = np.empty(M, np.float32), np.zeros(M, np.float32)
    size, within = np.empty((D, M), np.float32), np.zeros((D, M), np.float32)
    halves, none = layout.halves.tolist(), np.empty((0, 0), np.float32)
    for d, h in enumerate(halves):
        kernels.box(raw, H, W, h, unit[d] if layout.sure else none, size[d])
    inverse = 1 / np.maximum(size, np.float32(1e-20))
    kernels.lengths(raw, length)
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
    first = np.stack([_first_of_equals(size[d], unit, d) for d in range(D)])
    inverse /= scales[1]
    column_scale, column_margin = np.zeros((D, n), np.float32), np.full((D, n), search.NOTHING, np.float32)
    own = first == np.arange(M)
    column_scale[:, valid] = np.where(own, inverse, 0)
    column_margin[:, valid] = np.where(own, margin, search.NOTHING)
    return Image(*sides, offset, scales, unit, (inverse, margin, first), (column_scale, column_margin, first))


def _integers(
    workspace: tuple[np.ndarray, ...], length: np.ndarray, layout: Layout, *out: np.ndarray
) -> tuple[tuple[float, float], np.ndarray, np.ndarray]:
    """A workspace's raw tokens as panels for `gram.products`, and the scales of the 8-bit and the 16-bit integers.

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
        width = -(-(C - K) // (4 * gram.SPAN)) * 4 * gram.SPAN  # zeros fill the last span
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
            scale8 = min(scale8, gram.LANE / max(float(kernels.longest_lane(low)), 1e-18))
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
    """Sums of values [M] over (2h + 1)^2 neighbourhoods of the patch grid; none of them is negative."""
    sums = np.empty(len(values), np.float32)
    kernels.box(values[:, None], H, W, h, np.empty((0, 0), np.float32), sums)
    return sums


def _first_of_equals(size: np.ndarray, unit: np.ndarray | Units, d: int) -> np.ndarray:
    """[M]: for every aggregated token the first one that equals it in all channels; size: [M], their lengths."""
    first = np.arange(len(size))
    _, index, inverse, counts = np.unique(size, return_index=True, return_inverse=True, return_counts=True)
    for group in np.flatnonzero(counts > 1):  # most tokens differ in length
        members = np.flatnonzero(inverse == group)
        equal = (unit[d][members] == unit[d][members[0]]).all(axis=1)
        first[members[equal]] = index[group]
    return first


@dataclass(frozen=True)
class Crew:
    """Threads that prepare images and compare pairs, each with its own buffers; inside them torch uses one thread."""

    pool: ThreadPoolExecutor
    threads: int
    buffers: Callable[[], tuple[Any, ...]]
    free: SimpleQueue[tuple[Any, ...] | None]

    @classmethod
    @contextmanager
    def of(cls, threads: int, layout: Layout, C: int) -> Iterator[Crew]:
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        crew = cls(pool, threads, lambda: layout.scratch(C), SimpleQueue())
        try:
            for _ in range(threads):
                crew.free.put(None)
                crew._start(lambda scratch: None)  # makes its buffers
            yield crew
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # the threads' own setting is what threads to come would start with

    def _start(self, work: Callable[[tuple[Any, ...]], Any]) -> Future[Any]:
        def one() -> Any:
            scratch = self.free.get()
            try:
                scratch = scratch or self.buffers()
                return work(scratch)
            finally:
                self.free.put(scratch)

        return self.pool.submit(one)

    def prepare(self, image: Callable[[int], Tensor], layout: Layout, p: int) -> Future[Image]:
        return self._start(lambda scratch: prepare(image(p), layout, scratch[-1]))

    def compare(self, a: Future[Image], b: Future[Image], layout: Layout) -> Future[tuple[Tensor, Tensor, int]]:
        """Starts when both images, whose preparation must have been started before, are ready."""
        return self._start(lambda scratch: compare(a.result(), b.result(), layout, scratch))


def choose(
    image: Callable[[int], Tensor], plan: Plan, layout: Layout, precision: str, first: list[tuple[int, int]], crew: Crew
) -> tuple[Layout, dict[int, Future[Image]], dict[tuple[int, int], Future[Any]]]:
    """`layout` with the cheapest products that suit these tokens, and what finding it prepared and compared.

    Found by trying them on the first of the pairs `first`, while other threads prepare what comes next. No choice
    changes a distance where precision is "float32". Fewer bits leave more candidates to be compared in full: M^2 / 16
    such distances take as long as the bits save.
    """
    M, C = image(0).shape
    if C > NARROW and layout.integer and first:
        i, p = first[0]
        ahead = sorted(set(sum(first, ())) - {i, p})[: 2 * (crew.threads - 1)]
        for way in ways(image, plan, layout, precision):
            held = {q: crew.prepare(image, way, q) for q in (i, p)}
            trial = crew.compare(held[i], held[p], way)
            held |= {q: crew.prepare(image, way, q) for q in ahead}
            if trial.result()[2] <= M * M // 16:
                return way, held, {(i, p): trial}
    return replace(layout, integer=False), {}, {}


def ways(image: Callable[[int], Tensor], plan: Plan, layout: Layout, precision: str) -> list[Layout]:
    """`layout` with every kind of integer products, cheapest first."""
    some = sorted({p for pair in plan.pairs() for p in pair})
    picked = [image(p)[:: -(-layout.H * layout.W // 128)].float() for p in some[:: -(-len(some) // 8)]]
    sample = torch.cat([tokens - tokens.mean() for tokens in picked])
    turn = turned(directions(sample, max(1, min(DIRECTIONS, sample.shape[1] // 4, len(sample) // 2))))
    likely = [replace(layout, turn=turn, sure=False)] if precision != "float32" else []
    return [*likely, replace(layout, turn=turn), layout]


def compare(a: Image, b: Image, layout: Layout, scratch: tuple[Any, ...]) -> tuple[Tensor, Tensor, int]:
    """Distances of every token of a to its nearest in b, and of b to a, per degree: [D, M] each; how many it took."""
    ring, buffers, candidates, _ = scratch
    best, _, (_, _, counts) = candidates
    H, W, h = layout.H, layout.W, layout.widest
    D, M = len(layout.degrees), H * W
    to_b, to_a, winner = np.empty((D, M), np.float32), np.empty((D, M), np.float32), np.empty((D, M), np.int32)
    best[:] = np.where(b.as_columns[1] > search.NOTHING, search.NOTHING, -search.NOTHING)
    counts[:] = 0
    ratio = np.float32(a.scales[1] * b.scales[1] / (a.scales[0] * b.scales[0]))
    products = gram.products_wide if layout.wide else gram.products
    start = 0
    for y in range(0, H, gram.ROWS):  # a stripe: six patch rows, W panels of six tokens
        known = min(H, y + gram.ROWS)
        if layout.integer:
            first, last = y // gram.ROWS * W, -(-known * W // gram.ROWS)
            products(a.rows, b.columns, b.offset, ratio, ring, first, last)
        else:
            at = y * W % len(ring)
            torch.mm(a.rows[y * W : known * W], b.columns.T, out=torch.from_numpy(ring[at : at + (known - y) * W]))
        stop = H if known == H else max(start, known - h)
        search.rows(
            ring, start, stop, (H, W, layout.pitch), layout.halves, a.as_rows, b.as_columns,
            layout.place, buffers, candidates, not layout.sure, to_b,
        )  # fmt: skip
        start = stop
    if layout.sure:
        units = a.unit, b.unit
        done = search.settle(a.as_rows, b.as_columns, *units, layout.place, candidates, to_b, winner, to_a)
    else:
        doubtful = np.zeros((2, D, M), np.bool_)
        search.settle_rough(a.as_rows, b.as_columns, layout.place, best, np.float32(TOLERANCE), to_b, to_a, doubtful)
        done = M * int(doubtful.sum())
        for d in np.flatnonzero(doubtful.any((0, 2))).tolist():
            tokens, others, first, of = a.unit[d], b.unit[d], a.as_rows[2][d], b.as_rows[2][d]
            search.rescan(tokens, others, first, of, doubtful[0, d], to_b[d])
            search.rescan(others, tokens, of, first, doubtful[1, d], to_a[d])
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
    layout = Layout(*grid, tuple(degrees), has_integer_products(), has_wide_products())
    slot, groups = plan.slot.tolist(), plan.blocks(block or 8)
    with Crew.of(torch.get_num_threads(), layout, image(0).shape[1]) as crew:
        layout, held, known = choose(image, plan, layout, precision, groups[0] if groups else [], crew)
        for group in groups:
            needed = set(sum(group, ()))
            held = {p: im for p, im in held.items() if p in needed}
            held |= {p: crew.prepare(image, layout, p) for p in sorted(needed - set(held))}
            known |= {(i, p): crew.compare(held[i], held[p], layout) for i, p in group if (i, p) not in known}
            for i, p in group:
                forward, backward, _ = known.pop((i, p)).result()
                if slot[i][p] >= 0:
                    write(i, slot[i][p], forward)
                if p < plan.N and slot[p][i] >= 0:
                    write(p, slot[p][i], backward)
                advance(1)
