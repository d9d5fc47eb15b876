"""The CPU engine itself: an image is prepared once, then compared with many others in one call of a compiled kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import local

import numpy as np
import torch
from torch import Tensor

from musc.engines.cpu import preparation, search
from musc.engines.cpu.layout import POOL, Images, Layout, memory_of
from musc.engines.cpu.products import SPAN
from musc.engines.pairs import Job, Plan, by_image

log = logging.getLogger("musc.engines")  # says which way was taken
HELD = 64 << 20  # bytes of prepared images; at least 16 images are held
NARROW = 256  # channels up to which 16-bit products cost less than what 8-bit ones ask for


class WorkerPool:
    """Threads that prepare images and compare them, each with its own buffers, and the images held."""

    def __init__(self, threads: int, count: int, layout: Layout) -> None:
        self.layout, self.own = layout, local()
        self.images, memory = layout.images(count)
        self.memory = [memory]
        self.slots: dict[int, int] = {}
        self.prepared: dict[int, Future[None]] = {}
        self.executor = ThreadPoolExecutor(threads, initializer=self._begin)

    def _begin(self) -> None:
        self.own.buffers, memory = self.layout.buffers()
        self.memory.append(memory)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.executor.shutdown(cancel_futures=True)
        del self.images
        self.own = local()  # and not gone: Ctrl-C may have come while a thread was being started
        for memory in self.memory:
            POOL.give(memory)

    def hold(self, needed: Sequence[int], image: Callable[[int], Tensor]) -> None:
        """Starts to prepare the images `needed`, those already there excepted; others make room."""
        self.slots = {p: s for p, s in self.slots.items() if p in set(needed)}
        free = sorted(set(range(len(self.images.ratio))) - set(self.slots.values()))
        for p in (p for p in needed if p not in self.slots):
            self.slots[p] = free.pop(0)
            self.prepared[p] = self.executor.submit(self._prepare, image(p), self.slots[p])

    def _prepare(self, tokens: Tensor, s: int) -> None:
        preparation.prepare(tokens, self.layout, self.images, s, self.own.buffers)

    def compare(self, i: int, others: Sequence[int]) -> Future[tuple[np.ndarray, np.ndarray, int]]:
        """Starts comparing image i with k others: distances [k, D, M] to them and of them, and the number computed."""
        shape = len(others), len(self.layout.degrees), self.layout.H * self.layout.W
        one, slots = self.slots[i], np.array([self.slots[p] for p in others])

        def work() -> tuple[np.ndarray, np.ndarray, int]:
            for p in (i, *others):  # whose preparation was started before, by a thread that is at it or done
                self.prepared[p].result()
            to_others, to_i = np.empty(shape, np.float32), np.empty(shape, np.float32)
            buffers, tolerance = self.own.buffers, np.float32(self.layout.tolerance)
            done = search.compare(self.images, one, slots, self.layout.grid, buffers, tolerance, to_others, to_i)
            return to_others, to_i, done

        return self.executor.submit(work)


def candidate_layouts(image: Callable[[int], Tensor], plan: Plan, layout: Layout) -> list[Layout]:
    """`layout` with 8-bit products, and with 16-bit ones alone."""
    some = sorted({p for pair in plan.pairs() for p in pair})
    picked = [image(p)[:: -(-layout.H * layout.W // 64)].float() for p in some[:: -(-len(some) // 8)]]
    sample = torch.cat([tokens - tokens.mean() for tokens in picked])
    C = sample.shape[1]
    K = max(1, min(preparation.DIRECTIONS, C // 4, len(sample) // 2))
    if (beyond := (C - K) % (4 * SPAN)) < min(2 * SPAN, C - K):  # in 16 bits a few take less than a span of 8-bit ones
        K += beyond
    return [replace(layout, rotation=householder(principal_directions(sample, K))), layout]


def householder(basis: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """`Layout.rotation`, A and V transposed, from an orthonormal basis [C, K] of the directions that matter most.

    A product of K reflections (Householder) takes them to the first K axes: I - V T V^T, with A = V T. So the others
    are C - K coordinates, and not the C of what is left when the tokens' parts in the basis are taken away.
    """
    packed, tau = torch.geqrf(basis.double())
    V = packed.tril(-1) + torch.eye(*basis.shape, dtype=torch.float64)
    T = torch.linalg.inv((V.T @ V).triu(1) + torch.diag(1 / tau.clamp_min(1e-30)))  # tau 0: nothing to do
    return (V @ T).float().contiguous().numpy(), V.T.float().contiguous().numpy()


def principal_directions(sample: Tensor, K: int) -> Tensor:
    """[C, K] orthonormal: about the directions in which the sample [S, C] is longest, by power iterations."""
    found = torch.randn(sample.shape[1], K, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        found, _ = torch.linalg.qr(sample.T @ (sample @ found))
    return found


def too_many_candidates(pool: WorkerPool, image: Callable[[int], Tensor], i: int, p: int) -> bool:
    """Whether products of so few bits leave more distances to be computed for a pair of images than the bits save."""
    pool.hold((i, p), image)
    M = pool.layout.H * pool.layout.W
    return pool.compare(i, [p]).result()[2] > M * M // 16


def stage_distances(job: Job, layout: Layout) -> None:
    """Writes the distances of the job's pairs, both ways.

    Threads (torch.get_num_threads()) each compare one image with several. 8-bit products are tried on the first pair,
    and taken if they pay.
    """
    image, plan = job.image, job.plan
    block = job.block or max(8, HELD // memory_of(Images, layout.sizes(1)) // 2)
    threads, groups = torch.get_num_threads(), plan.blocks(block)
    open_choice = layout.C > NARROW and bool(groups[0])
    for tried in candidate_layouts(image, plan, layout) if open_choice else [layout]:
        with WorkerPool(threads, min(2 * block, plan.P), tried) as pool:
            bits = "16 bits"
            if tried.rotation is not None:
                if too_many_candidates(pool, image, *groups[0][0]):
                    continue
                bits = f"8 bits, {tried.K} directions in 16"
            log.info("compiled: products of %s by %s", bits, "AVX-512 VNNI" if tried.wide else "AVX2")
            for group in groups:
                pool.hold(sorted({p for pair in group for p in pair}), image)
                # a few tasks per thread, that all end at about the same time
                most = max(1, min(64, len(group) // (4 * threads)))
                tasks = [(i, every[k : k + most]) for i, every in by_image(group) for k in range(0, len(every), most)]
                for i, some, task in [(i, some, pool.compare(i, some)) for i, some in tasks]:
                    to_others, to_i, _ = task.result()
                    plan.write(job.write, i, some, to_others.swapaxes(0, 1), to_i.swapaxes(0, 1))  # [D, k, M] each
                    job.advance(len(some))
            return
