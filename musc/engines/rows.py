"""Distances that complete row after row within a bound of memory: what is complete is reduced and dropped.

Every distance is needed until its image's row, the distances to all others, is complete. So images are taken in
bands: a band's rows are completed by comparing its images with all others, and handed out. A comparison gives the
distances of both images; those of an image whose turn comes later wait for it. Of n images at most n^2 / 4 pairs wait
at a time (half of the images done, half not), a quarter of all distances. Where even that is too much, only images of
one group wait for each other, and pairs of two groups are compared twice; or they wait on disk.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from musc.engines.memory import AT_ONCE, SPARE, Cut, Problem
from musc.engines.pairs import Plan
from musc.errors import ConfigError

Slots = Callable[[range, range], Tensor]  # of images i and pool images p: the row of image i that p's distances take
Compare = Callable[[Callable[[int], Tensor], Plan, Tensor], Any]  # an engine: image by number, plan, where to write


def all_others(N: int) -> Slots:
    """Slots where every pool image but the image itself scores it, without a table of N^2 numbers.

    Example:
        >>> all_others(3)(range(1, 3), range(4))
        tensor([[ 0, -1,  1,  2],
                [ 0,  1, -1,  2]])
    """

    def slots(images: range, others: range) -> Tensor:
        i, p = torch.tensor(images)[:, None], torch.tensor(others)
        return torch.where(p == i, -1, p - (p > i).long())

    return slots


def planned(plan: Plan) -> Slots:
    """Slots of a plan."""
    return lambda images, others: plan.slot[images.start : images.stop, others.start : others.stop]


def few(images: Sequence[int], distances: Tensor) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Some of the images after the others, and their distances [D, b, J, M]: on a GPU those of AT_ONCE bytes, since
    one image's do not keep it busy; else one's."""
    row = distances[:, 0].nbytes
    step = max(1, AT_ONCE // row) if distances.device.type == "cuda" else 1
    for k in range(0, len(images), step):
        yield images[k : k + step], distances[:, k : k + step]


class Waiting:
    """Distances of images whose turn comes later, in memory or as files of a folder that goes when this is closed.

    Memory is asked for once, for as many pieces as wait at a time, and a system gives what is written to: pieces of
    their own, which come and go, would leave holes that the next ones do not fit.
    """

    def __init__(self, folder: Path | None, pieces: int, pairs: int, like: Tensor) -> None:
        D, _, _, M = like.shape
        self.parts: defaultdict[int, list[tuple[range, range, Callable[[], Tensor]]]] = defaultdict(list)
        self.folder: Path | None = None
        self.count = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            free, needed = shutil.disk_usage(folder).free, pieces * pairs * D * M * like.element_size()
            if needed > free:
                raise ConfigError(
                    f"{folder}: distances that wait need {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: "
                    "choose another folder, or none (pairs are then compared twice where memory is short)."
                )
            self.folder = Path(tempfile.mkdtemp(prefix="musc-distances-", dir=folder))
            pieces = 0
        self.room = torch.empty(pieces, D * pairs * M, dtype=like.dtype, device=like.device)
        self.free, self.shape, self.pairs = list(range(pieces)), (D, -1, M), pairs

    def put(self, images: range, others: range, found: Tensor, at: Tensor) -> None:
        """Keeps distances `found[:, at]`, [D, k, M], of images of one band to others: of those pairs that have a slot,
        in this order."""
        read: Callable[[], Tensor]
        if self.folder is not None:
            file = self.folder / f"{self.count}.npy"
            np.save(file, found[:, at].cpu().numpy())
            self.count += 1
            read = partial(self._from_disk, file)
        elif self.free and len(at) <= self.pairs:
            piece = self.free.pop()
            read = partial(self._from_room, piece, len(at))
            torch.index_select(found, 1, at.to(found.device), out=self._view(piece, len(at)))
        else:  # where few of all pairs are wanted, more of them than on average may wait
            read = found[:, at].detach
        self.parts[images.start].append((images, others, read))

    def _view(self, piece: int, k: int) -> Tensor:
        D, _, M = self.shape
        return self.room[piece, : D * k * M].view(self.shape)

    def _from_room(self, piece: int, k: int) -> Tensor:
        self.free.append(piece)
        return self._view(piece, k)

    def _from_disk(self, file: Path) -> Tensor:
        found = torch.from_numpy(np.load(file)).to(self.room.device)
        file.unlink()
        return found

    def take(self, first: int, slots: Slots, rows: Tensor) -> None:
        """Brings what waited for the band from image `first` on into its rows [D, B, J, M], and forgets it."""
        for images, others, read in self.parts.pop(first, []):
            slot = slots(images, others)
            i, q = (slot >= 0).nonzero(as_tuple=True)
            rows[:, i, slot[i, q]] = read()

    def close(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class _Call(NamedTuple):
    """What all comparisons of a stage share. space: memory for the distances of the largest one."""

    image: Callable[[int], Tensor]
    slots: Slots
    compare: Compare
    band: int
    space: Tensor


def completed(
    image: Callable[[int], Tensor], problem: Problem, slots: Slots, cut: Cut, compare: Compare, folder: Path | None
) -> Iterator[tuple[range, Tensor]]:
    """Some images after the others, and all of their distances [D, B, J, M], in memory that the next ones will take.

    image: raw tokens of pool image p. folder: where distances wait (None: in memory).
    """
    p, D = problem, len(problem.degrees)
    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
    room = torch.empty(D, cut.band, p.J, p.M, device=p.device, dtype=dtype)
    n = cut.band + max(cut.band, cut.chunk)  # images of the largest comparison
    call = _Call(image, slots, compare, cut.band, room.new_empty(D * 2 * n * (cut.band + 1) * p.M))
    bands = -(-cut.group // cut.band)
    pairs = min(cut.band**2, int(SPARE * cut.band**2 * p.J / p.P) + 1)  # of two bands
    waiting = Waiting(folder, bands**2 // 4, pairs, room)
    try:
        for first in range(0, p.N, cut.group):
            last = min(first + cut.group, p.N)
            for start in range(first, last, cut.band):
                own = range(start, min(start + cut.band, last))
                rows = room[:, : len(own)]
                waiting.take(start, slots, rows)
                for others in pieces(own.start, last, cut):
                    for later, *part in block(call, own, others, rows, both=True):
                        waiting.put(later, own, *part)
                for low, high in ((0, first), (last, p.P)):
                    for others in pieces(low, high, cut):
                        list(block(call, own, others, rows, both=False))
                yield own, rows
    finally:
        waiting.close()


def pieces(low: int, high: int, cut: Cut) -> Iterator[range]:
    """Images from `low` to `high`, some whole bands at a time."""
    step = max(1, cut.chunk // cut.band) * cut.band
    for start in range(low, high, step):
        yield range(start, min(start + step, high))


def block(
    call: _Call, own: range, others: range, rows: Tensor, *, both: bool
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Compares images `own` with `others` (which may begin with them), and writes their distances into `rows`.

    both: also the others' distances to `own`, which come back band by band: its images, distances [D, _, M], and where
    in them the pairs lie that have a slot.
    """
    (D, _, _, M), B, slots = rows.shape, len(own), call.slots
    later = range(max(others.start, own.stop), others.stop) if others.start >= own.start else others
    local = [*own, *later]
    n = len(local)
    wanted = torch.full((n, n), -1)  # row of an image's distances that another one's take
    if others.start == own.start:
        wanted[:B, :B] = slots(own, own)
    if later:
        wanted[:B, B:] = slots(own, later)
    if both and later:
        wanted[B:, :B] = slots(later, own)
    i, q = (wanted >= 0).nonzero(as_tuple=True)
    if not len(i):
        return
    # one piece of memory for all, in which `out[:, i, slot]` lies at i + slot
    found = call.space[: D * (2 * n + len(i)) * M].view(D, 2 * n + len(i), M)
    out = found.as_strided((D, n, n + len(i), M), (found.stride(0), M, M, 1))
    slot = torch.full((n, n), -1)
    slot[i, q] = n + torch.arange(len(i)) - i
    call.compare(lambda k: call.image(local[k]), Plan(slot, n + len(i)), out)
    ahead = int((i < B).sum())
    for k in range(B):
        mine = (i[:ahead] == k).nonzero()[:, 0]
        rows[:, k, wanted[k, q[mine]]] = found[:, n + mine]
    which = (i[ahead:] - B) // call.band
    for number in which.unique().tolist():
        mine = ahead + (which == number).nonzero()[:, 0]
        yield later[number * call.band : (number + 1) * call.band], found, n + mine
