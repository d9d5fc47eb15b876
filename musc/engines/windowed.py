"""Aligned parts: patches are compared only with those near their own position, in plain torch operations."""

from __future__ import annotations

import math
from functools import lru_cache, partial

import torch
from torch import Tensor

from musc.engines.blocked import Nearest

VALUES = 1 << 24  # products held at a time (64 MiB in float32)


def check_window(position_window: float) -> float:
    """`position_window` itself. Raises ValueError unless it is a whole number from 0, or infinity."""
    if not (position_window == math.inf or (position_window >= 0 and position_window == int(position_window))):
        raise ValueError(f"position_window {position_window}: give a whole number of patches from 0, or infinity.")
    return position_window


def within(grid: tuple[int, int], window: float) -> Nearest:
    """`blocked.nearest`, restricted to patches at most `window` rows and `window` columns apart on the grid."""
    return partial(nearest, grid=grid, window=int(min(window, max(grid))))


def nearest(a: Tensor, b: Tensor, *, grid: tuple[int, int], window: int, values: int = VALUES) -> tuple[Tensor, Tensor]:
    """Distance of every token of a [M, C] to its nearest of b [M, C] in the window around its place, and the reverse.

    Some patch rows of a meet the patch rows of b within reach of them, and nothing else is ever formed; `values` bounds
    how many products are held at a time, at least one patch row's. As in `blocked.nearest` products only find the
    winners, whose distances are formed as ||a - b||.
    """
    H, W = grid
    half_b, half_a = b.square().sum(-1) / 2, a.square().sum(-1) / 2
    to_b = torch.empty(H * W, dtype=torch.long, device=a.device)
    to_a = torch.zeros(H * W, dtype=torch.long, device=a.device)
    best = torch.full((H * W,), math.inf, dtype=a.dtype, device=a.device)  # of b's tokens, among a's rows so far
    for rows, columns, outside in bands(grid, window, values, a.device):
        product = (a[rows] @ b[columns].T).masked_fill_(outside, -math.inf)
        to_b[rows] = columns.start + (half_b[columns] - product).argmin(dim=1)
        found, where = (half_a[rows, None] - product).min(dim=0)
        nearer = found < best[columns]
        to_a[columns] = torch.where(nearer, rows.start + where, to_a[columns])
        best[columns] = torch.where(nearer, found, best[columns])
    return torch.linalg.vector_norm(a - b[to_b], dim=-1), torch.linalg.vector_norm(b - a[to_a], dim=-1)


@lru_cache(maxsize=4)
def bands(grid: tuple[int, int], window: int, values: int, device: torch.device) -> list[tuple[slice, slice, Tensor]]:
    """Some patch rows of an image, all of another's within reach of them, and which patches of the two are too far."""
    H, W = grid
    reach, step = 2 * window + 1, 1
    while step < min(H, max(4, reach)) and (step + 1) * W * min(step + reach, H) * W <= values:
        step += 1
    beside = (torch.arange(W)[:, None] - torch.arange(W)).abs() > window  # [W, W]: columns too far apart
    out = []
    for top in range(0, H, step):
        bottom = min(top + step, H)
        first, last = max(0, top - window), min(H, bottom + window)
        above = (torch.arange(top, bottom)[:, None] - torch.arange(first, last)).abs() > window
        outside = above[:, None, :, None] | beside[None, :, None, :]  # [rows of one, W, rows of the other, W]
        outside = outside.reshape((bottom - top) * W, (last - first) * W).to(device)
        out.append((slice(top * W, bottom * W), slice(first * W, last * W), outside))
    return out
