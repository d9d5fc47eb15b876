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
from functools import lru_cache
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musc.engines.cpu import products, search
from musc.engines.cpu.image import Image, in_full, prepare
from musc.engines.cpu.layout import DIRECTIONS, Layout
from musc.engines.pairs import Plan

TOLERANCE = 1e-3  # of distances where precision is not "float32"
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
    picked = [image(p)[:: -(-layout.H * layout.W // 64)].float() for p in some[:: -(-len(some) // 8)]]
    sample = torch.cat([tokens - tokens.mean() for tokens in picked])
    turn = turned(directions(sample, max(1, min(DIRECTIONS, sample.shape[1] // 4, len(sample) // 2))))
    likely = [replace(layout, turn=turn, sure=False)] if precision != "float32" else []
    return [*likely, replace(layout, turn=turn), layout]


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
    multiply = products.products_wide if layout.wide else products.products
    start = 0
    for y in range(0, H, products.ROWS):  # a stripe: six patch rows, W panels of six tokens
        known = min(H, y + products.ROWS)
        if layout.integer:
            first, last = y // products.ROWS * W, -(-known * W // products.ROWS)
            multiply(a.rows, b.columns, b.offset, ratio, ring, first, last)
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
            in_full(a, b, d, doubtful[0, d], to_b[d])
            in_full(b, a, d, doubtful[1, d], to_a[d])
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
