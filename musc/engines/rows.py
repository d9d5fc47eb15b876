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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musc.engines.memory import Cut, Problem
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


class Waiting:
    """Distances of images whose turn comes later, in memory or as files of a folder that goes when this is closed."""

    def __init__(self, folder: Path | None, most: int) -> None:
        self.parts: defaultdict[int, list[tuple[Tensor, Tensor, Tensor | Path]]] = defaultdict(list)
        self.folder: Path | None = None
        self.count = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if most > free:
                raise ConfigError(
                    f"{folder}: distances that wait need {most / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: "
                    "choose another folder, or none (pairs are then compared twice where memory is short)."
                )
            self.folder = Path(tempfile.mkdtemp(prefix="musc-distances-", dir=folder))

    def put(self, band: int, images: Tensor, slots: Tensor, distances: Tensor) -> None:
        """Keeps distances [D, k, M] of k images of a band, for their rows `slots`."""
        kept: Tensor | Path = distances
        if self.folder is not None:
            kept = self.folder / f"{self.count}.npy"
            np.save(kept, distances.cpu().numpy())
            self.count += 1
        self.parts[band].append((images, slots, kept))

    def take(self, band: int, first: int, rows: Tensor) -> None:
        """Brings what waited for a band into its rows [D, B, J, M], image `first` in row 0, and forgets it."""
        for images, slots, kept in self.parts.pop(band, []):
            if isinstance(kept, Path):
                rows[:, images - first, slots] = torch.from_numpy(np.load(kept)).to(rows.device)
                kept.unlink()
            else:
                rows[:, images - first, slots] = kept

    def close(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def completed(
    image: Callable[[int], Tensor], problem: Problem, slots: Slots, cut: Cut, compare: Compare, folder: Path | None
) -> Iterator[tuple[range, Tensor]]:
    """Some images after the others, and all of their distances [D, B, J, M], in memory that the next ones will take.

    image: raw tokens of pool image p. folder: where distances wait (None: in memory).
    """
    p, D = problem, len(problem.degrees)
    room = torch.empty(
        D, cut.band, p.J, p.M, device=p.device, dtype=torch.float64 if p.dtype == torch.float64 else torch.float32
    )
    waiting = Waiting(folder, cut.group**2 * p.unit * p.J // (4 * p.P))
    try:
        for first in range(0, p.N, cut.group):
            last = min(first + cut.group, p.N)
            for start in range(first, last, cut.band):
                own = range(start, min(start + cut.band, last))
                rows = room[:, : len(own)]
                waiting.take(start, start, rows)
                for others in pieces(own.start, last, cut):
                    for band, *part in block(image, problem, slots, own, others, True, rows, compare, cut.band):
                        waiting.put(start + band * cut.band, *part)
                for low, high in ((0, first), (last, p.P)):
                    for others in pieces(low, high, cut):
                        list(block(image, problem, slots, own, others, False, rows, compare, cut.band))
                yield own, rows
    finally:
        waiting.close()


def pieces(low: int, high: int, cut: Cut) -> Iterator[range]:
    """Images from `low` to `high`, some whole bands at a time."""
    step = max(1, cut.chunk // cut.band) * cut.band
    for start in range(low, high, step):
        yield range(start, min(start + step, high))


def block(
    image: Callable[[int], Tensor],
    problem: Problem,
    slots: Slots,
    own: range,
    others: range,
    both: bool,
    rows: Tensor,
    compare: Compare,
    band: int,
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Compares images `own` with `others` (which may begin with them), and writes their distances into `rows`.

    both: also the others' distances, which come back band by band: how many bands after `own`, images, their slots, and
    distances [D, k, M].
    """
    D, M, B = len(problem.degrees), problem.M, len(own)
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
    found = torch.empty(D, 2 * n + len(i), M, device=rows.device, dtype=rows.dtype)
    out = found.as_strided((D, n, n + len(i), M), (found.stride(0), M, M, 1))
    slot = torch.full((n, n), -1)
    slot[i, q] = n + torch.arange(len(i)) - i
    compare(lambda k: image(local[k]), Plan(slot, n + len(i)), out)
    ahead = int((i < B).sum())
    for k in range(B):
        mine = (i[:ahead] == k).nonzero()[:, 0]
        rows[:, k, wanted[k, q[mine]]] = found[:, n + mine]
    which = (i[ahead:] - B) // band
    for number in which.unique().tolist():
        mine = ahead + (which == number).nonzero()[:, 0]
        images = torch.tensor(local)[i[mine]]
        after = (later.start - own.start) // band + number
        yield after, images, wanted[i[mine], q[mine]], found[:, n + mine]
