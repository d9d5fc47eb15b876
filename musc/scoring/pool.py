"""A pool of images whose mutual scores are kept up to date while images come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from musc import msm
from musc.config import MuScConfig
from musc.errors import ConfigError, DataError
from musc.scoring.aggregation import prepared

KEEP = ("recent", "reservoir")


@dataclass
class Held:
    """An image of the pool: its raw tokens per stage, and its patches' distances [D, M] per stage to each other one,
    by that one's number. Distances, not scores: an interval average cannot be updated from itself."""

    name: str
    stages: Sequence[Tensor]
    distances: dict[int, list[Tensor]] = field(default_factory=dict)


class MutualPool:
    """Mutual scores (Eq. 1-3) of a growing or bounded pool, kept up to date: one comparison per pair of images, ever.

    Memory: the tokens of P images and 4 D P^2 M bytes of distances per stage. `comparisons` counts pairs of images.

    Args:
        config: degrees, interval, reduction, precision, block and position_window of mutual scoring.
        grids: patch grid (rows, columns) of each stage.
        capacity: images held at most (None: all). keep: "recent" drops the oldest; "reservoir" keeps a uniform random
            sample of all that came, drawn by `seed`.
        references: raw tokens per stage [R, M, C] of normal images that score every image, and are never dropped.
    """

    def __init__(
        self,
        config: MuScConfig,
        grids: Sequence[tuple[int, int]],
        *,
        capacity: int | None = None,
        keep: str = "recent",
        seed: int = 0,
        references: Sequence[Float[Tensor, "R M _"]] | None = None,
    ) -> None:
        if capacity is not None and capacity < 1:
            raise ConfigError(f"capacity = {capacity}: a pool holds at least one image; give None for no bound.")
        if keep not in KEEP:
            raise ConfigError(f"keep = {keep!r}: choose one of {', '.join(KEEP)}.")
        self.config, self.grids, self.capacity, self.keep = config, tuple(grids), capacity, keep
        self.rng = np.random.default_rng(seed)
        R = len(references[0]) if references else 0
        normal = [prepared(stage, config, grid)[0] for stage, grid in zip(references or (), grids, strict=False)]
        self.references = [Held(f"reference {j}", [stage[j] for stage in normal]) for j in range(R)]
        self.shapes = [tuple(stage.shape[1:]) for stage in references or ()]  # of an image's raw tokens, by stage
        self.held: dict[int, Held] = {}  # by number of arrival, oldest first
        self.seen = self.comparisons = 0

    def __len__(self) -> int:
        return len(self.held)

    def push(self, name: str, stages: Sequence[Float[Tensor, "M _"]]) -> list[Float[Tensor, "M"]] | None:
        """Score a new image by the pool, let the pool's scores know of it, and keep it if there is room for it.

        Returns its patch scores per stage, averaged over degrees (Eq. 2); None for the very first image, which nothing
        can score yet. Raises DataError where `name` is in the pool already or its tokens do not fit: the pool stays as
        it was.
        """
        self._check(name, stages)
        others: dict[int, Held] = {-1 - j: ref for j, ref in enumerate(self.references)} | self.held
        c = self.config
        ready = [prepared(tokens, c, grid) for tokens, grid in zip(stages, self.grids, strict=True)]
        new, number = Held(name, [tokens for tokens, _ in ready]), self.seen
        back: dict[int, list[Tensor]] = {p: [] for p in others}
        there: dict[int, list[Tensor]] = {p: [] for p in others}
        for n, (tokens, degrees) in enumerate(ready if others else ()):
            to_pool, from_pool = msm.newcomer_distances(
                tokens,
                [other.stages[n] for other in others.values()],
                degrees,
                grid=self.grids[n],
                precision=c.precision,
                block=c.block,
                position_window=c.position_window,
                checked=self.comparisons > 0,  # the references with the first image, all others when they came
            )
            for slot, p in enumerate(others):
                there[p].append(to_pool[:, slot].clone())  # a copy each: dropping an image frees its memory
                back[p].append(from_pool[:, slot].clone())
        # nothing of the pool changes before all that can fail is done
        new.distances = there
        scores = self._reduce(new) if others else None
        self.comparisons += len(others)
        self.seen += 1
        self.shapes = [tuple(tokens.shape) for tokens in stages]
        admitted = self._make_room()
        if admitted:
            for p, other in self.held.items():
                other.distances[number] = back[p]
            new.distances = {p: d for p, d in there.items() if p < 0 or p in self.held}
            self.held[number] = new
        return scores

    def scores(self) -> dict[str, list[Float[Tensor, "M"]]]:
        """Patch scores per stage of every image held, by all the others held and the references; no new comparison.

        Raises DataError where the pool holds nothing that could score.
        """
        if len(self.held) + len(self.references) < 2 or not self.held:
            raise DataError(
                f"the pool holds {len(self.held)} images and {len(self.references)} references: push at least two."
            )
        return {image.name: self._reduce(image) for image in self.held.values()}

    def _reduce(self, image: Held) -> list[Tensor]:
        c, scores = self.config, []
        for n in range(len(self.grids)):
            distances = torch.stack([stages[n] for stages in image.distances.values()], dim=1)  # [D, J, M]
            scores.append(msm.interval_average(distances, c.interval, c.reduction).mean(dim=0))
        return scores

    def _make_room(self) -> bool:
        """Drop an image where the pool is full; whether the new one may come in."""
        if self.capacity is None or len(self.held) < self.capacity:
            return True
        numbers = list(self.held)
        place = 0 if self.keep == "recent" else int(self.rng.integers(self.seen))  # `seen` counts the new one
        if place >= self.capacity:
            return False
        gone = numbers[place]
        del self.held[gone]
        for other in self.held.values():
            other.distances.pop(gone, None)
        return True

    def _check(self, name: str, stages: Sequence[Tensor]) -> None:
        if any(image.name == name for image in self.held.values()):
            raise DataError(f"{name} is in the pool already: an image that scores itself always looks normal.")
        shapes = [tuple(tokens.shape) for tokens in stages]
        if any(not torch.isfinite(tokens).all() for tokens in stages):
            raise DataError(f"{name}: its tokens hold NaN or infinity; leave the image out.")
        known = self.shapes or shapes
        fits = len(shapes) == len(self.grids) and all(
            s[0] == H * W for s, (H, W) in zip(shapes, self.grids, strict=True)
        )
        if shapes != known or not fits:
            raise DataError(
                f"{name} has tokens of {shapes}, the pool of {known} on grids {list(self.grids)}: "
                "extract all with the same backbone, image size and stages."
            )
