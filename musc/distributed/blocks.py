"""Mutual scoring cut into blocks of images: pairs of them are compared (Eq. 1), rows of them reduced (Eq. 2 and 3).

The B (B + 1) / 2 pairs of B blocks can be computed at the same time. The distances of one pair are two arrays, those of
either block's patches to the other block. A row of blocks has all it needs when its block has met every other: it is
reduced to patch scores then, and its distances go. In the order of `Cut.pairs` at most about a quarter of all distances
wait for that at any moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from musc import engines, msm
from musc.engines.pairs import Distances, Plan, plan_pool
from musc.engines.settings import Settings
from musc.errors import ConfigError


@dataclass(frozen=True)
class Cut:
    """The pool of a Plan, its P images by seat in blocks of `size`, the last one maybe smaller."""

    plan: Plan  # by seat: `of`
    size: int
    seats: tuple[int, ...] = ()  # the image on each seat; as they stand, where none are named

    @classmethod
    def of(cls, plan: Plan, size: int) -> Cut:
        """Blocks of a plan's seats: with a drawn pool few of them meet."""
        return cls(plan.seated(), size, tuple(plan.seats))

    def images(self, block: int) -> list[int]:
        """The pool's images of a block, as they stand in the pool."""
        return [self.seats[k] if self.seats else k for k in self.blocks[block]]

    def by_image(self, scores: Float[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        """Scores by seat, as the images stand."""
        if not self.seats:
            return scores
        found = torch.empty_like(scores)
        found[list(self.seats[: self.plan.N])] = scores
        return found

    @cached_property
    def blocks(self) -> list[range]:
        """The seats of each block."""
        P = self.plan.P
        return [range(first, min(first + self.size, P)) for first in range(0, P, self.size)]

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of blocks (a, b), a <= b, that hold a pair of images to compare, row by row."""
        B = range(len(self.blocks))
        return [(a, b) for a in B for b in B[a:] if self.wanted(a, b).any()]

    @cached_property
    def rows(self) -> list[int]:
        """The blocks that hold images to be scored; reference images are not."""
        return [row for row, block in enumerate(self.blocks) if block.start < self.plan.N]

    def wanted(self, a: int, b: int) -> Bool[np.ndarray, "n k"]:
        """Which of the k images of both blocks (of one, where a = b) score which of the first n of them; the other
        k - n are reference images."""
        first, second = self.blocks[a], self.blocks[b]
        images = [*first] if a == b else [*first, *second]
        n, A = sum(p < self.plan.N for p in images), len(first)
        found = (self.plan.slot[images[:n]][:, images] >= 0).numpy()
        if a != b:  # each block's own pairs are those of (a, a) and (b, b)
            found[:A, :A] = False
            found[A:, A:] = False
        return found

    def count(self, a: int, b: int) -> int:
        """The pairs of images that are compared for this pair of blocks."""
        wanted = self.wanted(a, b)
        either = np.zeros((wanted.shape[1], wanted.shape[1]), dtype=bool)
        either[: len(wanted)] = wanted
        return int(np.triu(either | either.T).sum())

    def counts(self, row: int, other: int) -> list[int]:
        """How many images of block `other` score each scored image of block `row`."""
        block, others = self.blocks[row], self.blocks[other]
        of = self.plan.slot[block.start : min(block.stop, self.plan.N), others.start : others.stop] >= 0
        return of.sum(dim=1).tolist()

    def parts(self, row: int) -> list[int]:
        """The blocks that a row must have met, in the order of their images."""
        return [other for other in range(len(self.blocks)) if any(self.counts(row, other))]


def block_size(P: int, D: int, M: int, *, least: int, most_bytes: int, itemsize: int = 4) -> int:
    """Images per block: P in at least `least` even blocks, and the distances of one pair within `most_bytes`.

    Example:
        >>> [block_size(P, 3, 1369, least=8, most_bytes=64 << 20) for P in (200, 230, 2000)]
        [25, 29, 45]
    """
    most = max(1, int((most_bytes / (2 * D * M * itemsize)) ** 0.5))
    return -(-P // max(least, -(-P // most)))


def check_bound(max_bytes: int | None, D: int, M: int, at_once: int = 1, itemsize: int = 4) -> None:
    """Raises ConfigError where max_bytes is too small for the distances of one pair of images, `at_once` of them.

    Example:
        >>> check_bound(1000, D=3, M=196)
        Traceback (most recent call last):
        musc.errors.ConfigError: max_bytes = 1000: the distances of one pair of images take 4704 bytes, and 1 are \
compared at a time. Allow more memory, or take a smaller image_size or fewer degrees.
    """
    pair = 2 * D * M * itemsize
    if max_bytes is not None and max_bytes < at_once * pair:
        raise ConfigError(
            f"max_bytes = {max_bytes}: the distances of one pair of images take {pair} bytes, and {at_once} are "
            "compared at a time. Allow more memory, or take a smaller image_size or fewer degrees."
        )


def compare(
    a: Float[Tensor, "A M C"], b: Float[Tensor, "B M C"] | None, wanted: Bool[np.ndarray, "n k"], settings: Settings
) -> tuple[Tensor, Tensor | None]:
    """Eq. 1 for two blocks of raw patch tokens, or for one with itself (b None), on the tokens' device.

    wanted: see `Cut.wanted`. Returns distances [D, A, J, M] of the patches of a's images to those of b, and
    [D, B, J, M] of b's to those of a (None without b); of the J slots an image uses the first, as many as images score
    it, in their order. Without reference images: those are not scored.
    """
    n, A, M = len(wanted), len(a), a.shape[1]
    slot = torch.from_numpy(np.where(wanted, wanted.cumsum(axis=1) - 1, -1))
    J = int(wanted.sum(axis=1).max())
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    out = torch.empty(len(settings.degrees), n, J, M, dtype=dtype, device=a.device)

    def image(p: int) -> Tensor:
        return a[p] if b is None or p < A else b[p - A]

    s = settings
    engines.compare(image, Plan(slot, J), s.degrees, s.grid, out, s.precision, None, s.position_window, new=0)
    return out[:, :A], None if b is None else out[:, A:]


def reduce(
    parts: Sequence[Distances], counts: Sequence[Sequence[int]], settings: Settings, device: torch.device
) -> Float[Tensor, "A M"]:
    """Eq. 2 and 3's mean over degrees for one row of blocks, on `device`: patch scores of one stage.

    parts: distances [D, A, J, M] to each other block, as `compare` returns them; counts: of each part, how many of its
    slots each image uses.
    """
    scores = []
    for i in range(len(counts[0])):  # image by image: sorting needs no second array of all
        own = [part[:, i, : count[i]] for part, count in zip(parts, counts, strict=True)]
        if device.type == "cpu":
            row = torch.from_numpy(np.concatenate([np.asarray(part) for part in own], axis=1))
        else:
            row = torch.cat([torch.as_tensor(part, device=device) for part in own], dim=1)
        scores.append(msm.interval_average(row, settings.interval, settings.reduction).mean(dim=0))
    return torch.stack(scores)


def check(
    stages: Sequence[Tensor], references: Sequence[Tensor] | None, pool: int | Tensor | None, settings: Settings
) -> Plan:
    """The Plan of a job. Raises ValueError on tokens and settings as `msm.mutual_scores` does, before any work."""
    s = settings
    engines.check_stages(stages, references)
    for n, tokens in enumerate(stages):
        extra = references[n] if references is not None else tokens[:0]
        engines.check_stage(tokens, s.degrees, extra, s.precision, s.position_window, s.block)
        engines.check_all([*tokens, *extra].__getitem__, len(tokens) + len(extra), len(tokens))
    plan = plan_pool(len(stages[0]), 0 if references is None else len(references[0]), pool, s.seed)
    msm.interval_bounds(plan.J, s.interval)
    return plan


def block_tokens(cut: Cut, block: int, tokens: Tensor, references: Tensor | None) -> Float[Tensor, "A M C"]:
    """The tokens of a block's images, on the CPU, in a type that numpy has."""
    images, N = cut.images(block), len(tokens)
    own, extra = [p for p in images if p < N], [p - N for p in images if p >= N]
    first = own[0] if own else 0
    side_by_side = own == list(range(first, first + len(own)))
    found = tokens[first : first + len(own)] if side_by_side else tokens[own]  # a slice is no copy
    if references is not None and extra:
        found = torch.cat([found, references[extra].to(found)])
    found = found.float() if found.dtype == torch.bfloat16 else found
    return found.cpu().contiguous()
