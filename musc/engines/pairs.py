"""Which images score which: the pool of every image, and the unordered pairs to compare."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Distances = Tensor | np.ndarray
Write = Callable[[list[int], list[int], Distances], None]  # of k images i and their rows `slot`: distances [D, k, M]


@dataclass(frozen=True)
class Plan:
    """Image i is scored by pool image p into row slot[i, p] of its J distances; -1: p does not score i.

    slot: [N, P]. The pool is the N images themselves, then the reference images (P = N + R). order: the pool's images
    so that those that score each other are near (None: as they stand).
    """

    slot: Tensor
    J: int
    order: tuple[int, ...] | None = None

    @property
    def N(self) -> int:
        return self.slot.shape[0]

    @property
    def P(self) -> int:
        return self.slot.shape[1]

    @property
    def seats(self) -> list[int]:
        """The pool's images in `order`, the references last."""
        return list(range(self.P) if self.order is None else self.order)

    def seated(self) -> Plan:
        """The plan by seat: image k and pool image k are those on the k-th seat. The rows of distances stay."""
        return self if self.order is None else Plan(self.slot[self.seats[: self.N]][:, self.seats], self.J)

    @property
    def compared(self) -> Tensor:
        """[N, P], every pair (i, p), i < p, of which at least one image scores the other: each is compared once."""
        wanted = self.slot >= 0
        wanted[:, : self.N] |= wanted[:, : self.N].T.clone()
        return wanted.triu(1)

    @property
    def count(self) -> int:
        """How many pairs are compared. Of 2000 images a list of them takes seconds, longer than a GPU to compare."""
        return int(self.compared.sum())

    def pairs(self) -> list[tuple[int, int]]:
        """The pairs that are compared."""
        return [(i, p) for i, p in self.compared.nonzero().tolist()]

    def without(self, done: Collection[tuple[int, int]]) -> Plan:
        """The plan of all other pairs."""
        slot = self.slot.clone()
        for i, p in done:
            slot[i, p] = -1
            if p < self.N:
                slot[p, i] = -1
        return Plan(slot, self.J)

    def blocks(self, size: int) -> list[list[tuple[int, int]]]:
        """The pairs, grouped so that those of one group touch at most 2 `size` images."""
        if 2 * size >= self.P:
            return [self.pairs()]
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for i, p in self.pairs():
            groups.setdefault((i // size, p // size), []).append((i, p))
        order: list[tuple[int, int]] = []
        for first in sorted({a for a, _ in groups}):
            row = sorted(g for g in groups if g[0] == first)
            # consecutive groups share a block of images where they can: where all are there, to and fro
            held = order[-1] if order else ()
            order += row[::-1] if row[-1][1] in held and row[0][1] not in held else row
        return [groups[g] for g in order]

    def write(self, write: Write, i: int, others: Sequence[int], to_others: Distances, to_i: Distances) -> None:
        """Writes what the plan wants of distances of image i to k others, and of theirs to it: [D, k, M] each."""
        rows = self._rows
        forward = [k for k, p in enumerate(others) if rows[i][p] >= 0]
        backward = [k for k, p in enumerate(others) if p < self.N and rows[p][i] >= 0]
        if forward:
            write([i] * len(forward), [rows[i][others[k]] for k in forward], to_others[:, forward])
        if backward:
            write([others[k] for k in backward], [rows[others[k]][i] for k in backward], to_i[:, backward])

    @cached_property
    def _rows(self) -> list[list[int]]:
        return self.slot.tolist()


@dataclass(frozen=True)
class Job:
    """What an engine is to do: the distances of every pair in `plan`, both ways, at every degree."""

    image: Callable[[int], Tensor]  # raw tokens [M, C] of pool image p
    plan: Plan
    degrees: tuple[int, ...]
    grid: tuple[int, int]  # rows and columns, M of them
    write: Write  # takes distances
    advance: Callable[[int], object]  # takes a number: so many more pairs are done
    block: int | None = None  # images that are held, at most twice as many; changes no distance


def by_image(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    """The pairs (i, p) as images i, each with all of its p: to be compared with many at a time."""
    out: dict[int, list[int]] = {}
    for i, p in pairs:
        out.setdefault(i, []).append(p)
    return list(out.items())


def plan_pool(N: int, R: int = 0, pool: int | Tensor | None = None, seed: int = 0) -> Plan:
    """The Plan of N images and R reference images.

    pool: None, all others; a number, that many of the others per image, drawn by `seed`; [N, J], the others by index.
    References always score, and with pool = 0 they score alone. Raises ValueError where an image is left with nothing
    to be scored by.
    """
    if N + R < 2:
        raise ValueError(
            f"{N} image and {R} reference images: mutual scoring compares images of one product with each other. "
            "Give at least two images, or one and a reference image."
        )
    chosen, seats = torch.zeros(N, N, dtype=torch.bool), None
    if pool is None or (isinstance(pool, int) and pool >= max(1, N - 1)):
        chosen = ~torch.eye(N, dtype=torch.bool)
    elif isinstance(pool, int):
        if pool < (0 if R else 1):
            raise ValueError(
                f"pool = {pool}: give the number of images that score each image, from 1 (from 0 with references)."
            )
        if pool:
            chosen, seats = _random_circle(N, pool, seed)
    else:
        rows, pool = torch.arange(N)[:, None], torch.as_tensor(pool)
        shaped = pool.ndim == 2 and len(pool) == N and not pool.is_floating_point()
        if not shaped or (pool == rows).any() or pool.min() < 0 or pool.max() >= N:
            raise ValueError(f"pool {tuple(pool.shape)}: give, for each of {N} images, the indices of others.")
        chosen[rows, pool] = True
        if len(chosen.sum(dim=1).unique()) > 1:
            raise ValueError("pool: an image is named twice in one row; every row needs equally many different images.")
    wanted = torch.cat([chosen, torch.ones(N, R, dtype=torch.bool)], dim=1)  # [N, N + R]
    slot = torch.where(wanted, wanted.cumsum(dim=1) - 1, -1)
    order = None if seats is None else (*seats.tolist(), *range(N, N + R))
    return Plan(slot, int(wanted[0].sum()), order)


def _random_circle(N: int, R: int, seed: int) -> tuple[Tensor, Tensor]:
    """[N, N] mask with R others per row, every other one equally likely, and the images [N] by seat.

    The images sit in a random circle and each is scored by the R that sit nearest, R / 2 on either side: a comparison
    serves both of its images, N R / 2 comparisons rather than N R, and neighbours share what they need. For odd R the
    last one sits opposite; an odd circle has no such seat, and the next one on one side takes its place.
    """
    seat = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    offsets = [s for step in range(1, R // 2 + 1) for s in (step, -step)]
    if R % 2:
        offsets.append(N // 2 if N % 2 == 0 else R // 2 + 1)
    mask = torch.zeros(N, N, dtype=torch.bool)
    for s in offsets:
        mask[seat, seat.roll(s)] = True
    return mask, seat
