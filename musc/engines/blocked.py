"""The engine for any device and dtype: one product per pair and degree, in plain torch operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from musc import lnamd
from musc.engines.pairs import Job

Nearest = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of every row of a [m, C] to its nearest row of b [n, C], and the reverse: [m], [n].

    Minima are found in ||b||^2 - 2 <a, b> and only the winners' distances computed, as ||a - b||: the expanded square
    loses all digits where two tokens are nearly equal.
    """
    product = a @ b.T  # [m, n]
    to_b = (b.square().sum(-1) - 2 * product).argmin(dim=1)
    to_a = (a.square().sum(-1)[:, None] - 2 * product).argmin(dim=0)
    return torch.linalg.vector_norm(a - b[to_b], dim=-1), torch.linalg.vector_norm(b - a[to_a], dim=-1)


def stage_distances(job: Job, nearest: Nearest = nearest) -> None:
    """Writes the distances of the job's pairs; nearest: which patches may meet (`windowed.within` restricts them)."""

    def aggregated(p: int) -> list[Tensor]:
        tokens = job.image(p)[None]
        tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
        return [lnamd.aggregate(tokens, degree, grid=job.grid)[0] for degree in job.degrees]

    held: dict[int, list[Tensor]] = {}
    for group in job.plan.blocks(job.block or 8):
        needed = {p for pair in group for p in pair}
        held = {p: held[p] if p in held else aggregated(p) for p in needed}
        for i, p in group:
            found = [nearest(a, b) for a, b in zip(held[i], held[p], strict=True)]
            forward, backward = (torch.stack(side) for side in zip(*found, strict=True))
            job.plan.write(job.write, i, [p], forward[:, None], backward[:, None])
            job.advance(1)
