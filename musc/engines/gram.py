"""One Gram matrix serves every aggregation degree, and each pair of images is met once: Eq. 1 in readable torch.

The reference for the fast engines, and the engine itself wherever theirs cannot run. Aggregating a token is summing its
r x r neighbourhood (Sec. 3.1; the mean's 1 / r^2 goes in the L2 norm), and an inner product of sums is a sum of inner
products:

    <sum over m' near m of a_m', sum over n' near n of b_n'> = sum over m' near m, n' near n of <a_m', b_n'>.

So one product G = A B^T of raw tokens gives those of every degree, by adding up G over both neighbourhoods: a box
filter in four dimensions. Divided by both norms they are cosines, and the largest cosine is the smallest distance: the
largest of a row is one image's, the largest of a column the other's.

Rounding moves a cosine by up to 1e-6, and so a small distance by far more. Cosines therefore only propose: of every
token that may have the largest the distance is computed, as ||a - b||.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from musc.engines.pairs import Job, by_image

COSINES = 1 << 22  # held at a time (16 MiB in float32), at least those of one pair
HELD = 1 << 24  # numbers of aggregated tokens held, of at least 16 images
GATHERED = 1 << 16  # numbers of tokens gathered at a time: what stays in the cache
CHEAP = 24  # box sums of degree r take as long as a product of CHEAP (r + 2) channels


class Images(NamedTuple):
    """k images of M = H W tokens, at D degrees."""

    raw: Tensor  # [k, M, C], centred
    unit: Tensor  # [k, D, M, C], aggregated and of unit length
    scale: Tensor  # [k, D, M], 1 / length of a neighbourhood's sum
    error: Tensor  # [k, D, M], of cosines: of tokens a and b, at most (error_a + error_b) / 2
    first: Tensor  # [k, D, M], the first token that is equal


def box(values: Tensor, h: int, dims: Sequence[int], spare: Tensor) -> Tensor:
    """Sums over 2h + 1 neighbours along an even number of `dims`, in place, with zeros beyond; spare: as large."""
    for dim in dims if h else ():
        size = values.shape[dim]
        spare.copy_(values)
        for s in range(1, min(h, size - 1) + 1):
            spare.narrow(dim, s, size - s).add_(values.narrow(dim, 0, size - s))
            spare.narrow(dim, 0, size - s).add_(values.narrow(dim, s, size - s))
        values, spare = spare, values
    return values


def prepare(tokens: Tensor, degrees: Sequence[int], grid: tuple[int, int]) -> Images:
    """One image's raw tokens [M, C]. LayerNorm is a shift and a scale per image; the scale goes in the L2 norm too."""
    raw = tokens if tokens.dtype == torch.float64 else tokens.float()
    raw = raw - raw.mean(dtype=torch.float64).to(raw.dtype)
    raw = raw / raw.abs().max().clamp_min(1e-30)  # squares neither over- nor underflow

    def summed(values: Tensor, r: int) -> Tensor:  # [M, c] -> [M, c]
        on_grid = values.reshape(*grid, -1).clone()
        return box(on_grid, r // 2, (0, 1), torch.empty_like(on_grid)).flatten(0, 1)

    unit = torch.stack([summed(raw, r) for r in degrees])  # [D, M, C]
    met = torch.stack([summed(raw.norm(dim=1), r)[:, 0] for r in degrees])  # [D, M]: lengths that were added up
    scale = 1 / unit.norm(dim=2).clamp_min(1e-12)  # [D, M]
    unit *= scale[..., None]
    # rounding errors of C products add up as a random walk, relative to the lengths that were multiplied
    roundoff = torch.finfo(raw.dtype).eps * (8 + math.sqrt(raw.shape[1]))
    error = (roundoff * (met * scale).square()).clamp_max(4)
    return Images(raw, unit, scale, error, torch.stack([first_of_equals(u) for u in unit]))


def first_of_equals(unit: Tensor) -> Tensor:
    """[M, C] -> [M]: for every token the first that equals it, itself for most."""
    order = unit.double().sum(dim=1).argsort(stable=True)  # brings equal ones together
    new = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
    new[1:] = (unit[order[1:]] != unit[order[:-1]]).any(dim=1)
    out = torch.empty_like(order)
    out[order] = order[new][new.cumsum(0) - 1]
    return out


def cosines(
    a: Images, b: Images, degrees: Sequence[int], grid: tuple[int, int], rooms: Sequence[Tensor]
) -> Iterator[Tensor]:
    """Of one image's aggregated tokens with those of k others, for each degree: [k, n, m], n of the others, m its own.

    rooms: three of that shape. The first keeps the Gram matrix; the second, each degree's until the next are made.
    """
    k, M, C = b.raw.shape
    G, out, spare = rooms
    known = False
    for d, r in enumerate(degrees):
        if CHEAP * (r + 2) > C:  # the product of aggregated tokens costs less than box sums
            torch.matmul(b.unit[:, d], a.unit[0, d].T, out=out)
            yield out
            continue
        if not known:
            torch.mm(b.raw.reshape(k * M, C), a.raw[0].T, out=G.view(k * M, M))
            known = True
        out.copy_(G)
        around = (k, *grid, *grid)
        box(out.view(around), r // 2, (1, 2, 3, 4), spare.view(around))
        yield out.mul_(b.scale[:, d, :, None]).mul_(a.scale[0, d])


def nearest(cosine: Tensor, a: Images, b: Images, d: int, grid: tuple[int, int]) -> list[Tensor]:
    """Distances at the d-th degree, out of `cosines`, which are overwritten: of a's tokens and of b's, [k, M] each."""
    k, M, _ = cosine.shape
    H, W = grid
    error_a, error_b = a.error[0, d], b.error[:, d]  # [m], [k, n]
    most = cosine.add_(error_a / 2).add_(error_b[..., None] / 2)  # [k, n, m]: no cosine is larger, or 2 errors smaller
    # largest of every patch column of b, and of every patch row of a: all that is read of most of the cosines
    top_a, top_b = most.view(k, H, W, M).amax(dim=1), most.view(k, M, H, W).amax(dim=3)  # [k, W, m], [k, n, H]
    floor_a = (top_a - error_b.view(k, H, W).amax(dim=1)[..., None]).amax(dim=1) - error_a  # [k, m]
    floor_b = (top_b - error_a.view(H, W).amax(dim=1)).amax(dim=2) - error_b  # [k, n]
    j, x, m = (top_a >= floor_a[:, None]).nonzero(as_tuple=True)
    hit, y = (most.view(k, H, W, M)[j, :, x, m] >= floor_a[j, m][:, None]).nonzero(as_tuple=True)
    found_a = j[hit], y * W + x[hit], m[hit]
    j, n, y = (top_b >= floor_b[..., None]).nonzero(as_tuple=True)
    hit, x = (most.view(k, M, H, W)[j, n, y] >= floor_b[j, n][:, None]).nonzero(as_tuple=True)
    found_b = j[hit], n[hit], y[hit] * W + x
    j, n, m = (torch.cat(both) for both in zip(found_a, found_b, strict=True))  # what may be a nearest pair of tokens
    first_a, first_b = a.first[0, d], b.first[:, d]  # [m], [k, n]
    new = (first_b[j, n] == n) & (first_a[m] == m)  # equals need not be compared twice
    j, n, m = j[new], n[new], m[new]
    to_b, to_a = cosine.new_full((2, k * M), 2.0)
    D, C = a.unit.shape[1], a.unit.shape[3]
    units_b, step = b.unit.reshape(k * D * M, C), max(1, GATHERED // C)
    for js, ns, ms in zip(j.split(step), n.split(step), m.split(step), strict=True):
        tokens_b = units_b.index_select(0, (js * D + d) * M + ns)
        distance = torch.linalg.vector_norm(tokens_b - a.unit[0, d].index_select(0, ms), dim=-1)
        to_b.scatter_reduce_(0, js * M + ms, distance, "amin")
        to_a.scatter_reduce_(0, js * M + ns, distance, "amin")
    return [to_b.view(k, M)[:, first_a], to_a.view(k, M).gather(1, first_b)]


def stage_distances(job: Job, stop: Callable[[], bool] = lambda: False) -> set[tuple[int, int]]:
    """Writes the distances of the job's pairs, both ways, until `stop`; those that were done.

    An image meets several at a time, as many as `COSINES` has room for: operations on one small grid would take less
    time than starting them.
    """
    plan, degrees, grid = job.plan, job.degrees, job.grid
    M, C = job.image(0).shape
    held: dict[int, Images] = {}
    step = max(1, min(COSINES // M**2, plan.P))
    done: set[tuple[int, int]] = set()
    for group in plan.blocks(job.block or max(8, HELD // (len(degrees) * M * C))):
        needed = sorted({p for pair in group for p in pair})
        held = {p: held[p] if p in held else prepare(job.image(p), degrees, grid) for p in needed}
        every = Images(*map(torch.stack, zip(*held.values(), strict=True)))
        rooms = torch.empty(3, step * M**2, dtype=every.raw.dtype)  # once: fresh memory takes longer than work in it
        for i, others in by_image(group):
            a = Images(*[field[needed.index(i), None] for field in every])
            for start in range(0, len(others), step):
                some = others[start : start + step]
                at = [needed.index(p) for p in some]
                in_a_row = at[-1] - at[0] < len(at)
                b = Images(*[f[at[0] : at[-1] + 1] if in_a_row else f[at] for f in every])
                made = cosines(a, b, degrees, grid, rooms[:, : len(some) * M**2].view(3, -1, M, M).unbind())
                found = [nearest(cosine, a, b, d, grid) for d, cosine in enumerate(made)]
                plan.write(job.write, i, some, *map(torch.stack, zip(*found, strict=True)))
                job.advance(len(some))
                done.update((i, p) for p in some)
                if stop():
                    return done
    return done
