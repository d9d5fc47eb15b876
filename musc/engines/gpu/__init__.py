"""The GPU engine: half-precision products fused with the maxima of their rows and columns, winners taken in float32.

One product per degree, unlike the CPU engine's one Gram matrix for all: on tensor cores products are the cheap part,
and fused with its maxima nothing of size M^2 leaves the registers.

Three kernels. `aggregate` prepares images. Then, launch by launch, `tile_maxima` multiplies some images with some
others as one large matrix and keeps, of every row and of every column, the two largest cosines in each sub-tile of 32
or 16; and `nearest_distances` measures in float32, as || a - b ||, each token that may be the nearest.

The distances are those of float32, whatever the rounding of the products. Let a, b be unit tokens as float32 holds
them, a' and b' in half precision, e_a = || a - a' || and e_b = || b - b' || (measured, not bounded). Then

    | <a, b> - <a', b'> |  =  | <a - a', b> + <a', b - b'> |  <=  e_a || b || + e_b || a' ||  <=  1.01 (e_a + e_b).

A sum of C products in float32 is off by at most C 2^-23 sum_k |a'_k b'_k| <= 1.01 C 2^-23, in any order and also where
the additions cut instead of rounding; a key is off by 2^-18. Ranking by the cosine instead of the distance,
|| a - b ||^2 / 2 = (|| a ||^2 + || b ||^2) / 2 - <a, b>, is off by n_b = | || b ||^2 - 1 | / 2: nothing, but for tokens
of zeros. With E the sum of these, the nearest token's cosine comes out within the margin 2 E of the largest. Everything
within it is measured: of a sub-tile its best, and all its tokens where its second best is within the margin as well.
So no nearer token is missed. With C = 1024, e is about 2e-4 and the margin 1.1e-3.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from musc.engines.gpu.tiles import (
    BLOCK,
    Tile,
    automatic_block,
    bytes_needed,
    chunk_images,
    default_tile,
    power_of_two,
)
from musc.engines.gpu.tokens import Held
from musc.engines.pairs import Job, Plan, plan_pool
from musc.errors import ConfigError


@functools.cache
def available(device: torch.device, grid: tuple[int, int], C: int, degrees: tuple[int, ...]) -> bool:
    """True where the kernels compile and run: tensor cores of Ampere or newer, and triton; warns where they do not.

    It compiles what images of that size need, on two and on three of them.
    """
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    M = grid[0] * grid[1]
    try:
        image = torch.randn(M, C, device=device, generator=torch.Generator(device).manual_seed(0))
        for N in (2, 3):  # all pairs of a launch are wanted, and some are
            out = torch.empty(len(degrees), N, N - 1, M, device=device)
            nothing = (lambda images, slots, found: None), (lambda n: None)
            stage_distances(Job(lambda p: image, plan_pool(N), degrees, grid, *nothing, block=N), out)
            if out.any():
                raise ArithmeticError("a wrong distance")
    except ConfigError:  # memory is full, which no other way through this would mend
        raise
    except Exception as error:  # of many kinds: no C compiler, no driver library, a GPU newer than triton
        warnings.warn(
            f"GPU: triton's kernels cannot compile here, or not run ({error!s:.300}): taking slower products of torch.",
            stacklevel=2,
        )
        return False
    return True


@dataclass(frozen=True)
class Region:
    """The pairs of a launch: images a, held from slot_a on, against images b; dense: all of these pairs are wanted."""

    a: range
    b: range
    slot_a: int
    slot_b: int
    pairs: int

    @property
    def dense(self) -> bool:
        return self.pairs == len(self.a) * len(self.b)


def regions(left: np.ndarray, a: range, b: range, slot_a: int, slot_b: int, side: int) -> Iterator[Region]:
    """The launches of block a against block b for the pairs that are still `left` [P, P]."""
    for i in range(a.start, a.stop, side):
        for p in range(b.start, b.stop, side):
            part = left[i : min(i + side, a.stop), p : min(p + side, b.stop)]
            if part.any():
                rows, cols = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
                images, others = range(i + rows[0], i + rows[-1] + 1), range(p + cols[0], p + cols[-1] + 1)
                slots = slot_a + images.start - a.start, slot_b + others.start - b.start
                yield Region(images, others, *slots, pairs=int(part.sum()))


def largest_cosines(held: Held, wanted: Tensor, region: Region, tile: Tile) -> tuple[Tensor, ...]:
    """The keys of `kernels.tile_maxima` of a region: best and second of rows, then of columns. wanted: [P, P] bytes."""
    from musc.engines.gpu import kernels

    D, S, M, C = held.half.shape
    r, A, B = region, len(region.a), len(region.b)

    def keys(rows: int, cols: int) -> Tensor:
        return torch.empty(D, rows, cols, dtype=torch.int32, device=held.half.device)

    found = (
        *(keys(A * M, B * M // tile.sub_cols) for _ in range(2)),
        *(keys(B * M, A * M // tile.sub_rows) for _ in range(2)),
    )
    half = [held.half.view(-1, C)] * 2
    if tile.descriptor:
        from triton.tools.tensor_descriptor import TensorDescriptor

        half = [TensorDescriptor.from_tensor(half[0], [n, tile.channels]) for n in (tile.rows, tile.cols)]
    programs = D * -(-A * M // tile.rows) * -(-B * M // tile.cols)
    if tile.resident:
        programs = min(programs, tile.resident * torch.cuda.get_device_properties(wanted.device).multi_processor_count)
    kernels.tile_maxima[(programs,)](
        *half, wanted, *found,
        D, S, A, B, r.slot_a, r.slot_b, r.a.start, r.b.start, len(wanted), M // BLOCK, C // tile.channels,
        BM=tile.rows, BN=tile.cols, BK=tile.channels, SUB_ROWS=tile.sub_rows, SUB_COLS=tile.sub_cols, GROUP=tile.group,
        DESCRIPTOR=tile.descriptor, PERSISTENT=tile.resident > 0, DENSE=r.dense,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return found


def slack(C: int) -> float:
    """Bound of a cosine's error beside that of its operands: accumulation, and the key's and the norms' rounding."""
    return 1.1 * C * 2.0**-23 + 2.0**-16


def measure(
    held: Held, keys: tuple[Tensor, ...], region: Region, out: Tensor, upper: Tensor, lower: Tensor, tile: Tile
) -> None:
    """Writes the distances of a region into out [D, ...], both ways, from the keys of `largest_cosines`.

    upper: [A, B], where in out[d] the M distances of image a seen from b start, -1 for nowhere; lower: [B, A], the
    reverse.
    """
    from musc.engines.gpu import kernels

    D, S, M, C = held.exact.shape
    r, blocks = region, held.half.shape[2] // BLOCK
    ways = (
        (keys[0], keys[1], upper, r.slot_a, r.slot_b, tile.sub_cols),
        (keys[2], keys[3], lower, r.slot_b, r.slot_a, tile.sub_rows),
    )
    for best, second, start, slot, other_slot, sub in ways:
        A, B = start.shape
        kernels.nearest_distances[(D * A * -(-M // tile.tokens),)](
            held.exact, held.error, best, second, start, out, out.stride(0), slack(C),
            S, A, B, slot, other_slot, *start.stride(), M, blocks,
            C=C, TOKENS=tile.tokens, PARTNERS=tile.partners, SUBS=power_of_two(blocks * (BLOCK // sub)), SUB=sub,
            BC=min(tile.refine_channels, power_of_two(C)), num_warps=tile.refine_warps,
        )  # fmt: skip


class Writer:
    """Brings distances into out [D, N, J, M]: where that lies on the same device the kernel itself writes there.

    slots: two [P, P], the row of `out` for image i seen from p, and for p seen from i, of the pairs i < p that are
    `left`; -1: none.
    """

    def __init__(self, out: Tensor, plan: Plan, left: np.ndarray, device: torch.device):
        self.out, pairs = out, torch.from_numpy(left)
        slot = torch.full((plan.P, plan.P), -1)
        slot[: plan.N] = plan.slot
        self.wanted = pairs.to(device, torch.uint8)
        self.slots = torch.where(pairs, slot, -1), torch.where(pairs.T, slot, -1)
        self.starts: list[Tensor] = []
        if out.device == device and out.dtype == torch.float32 and out.stride(3) == 1:
            images = torch.arange(plan.P)[:, None] * out.stride(1)
            self.starts = [torch.where(s >= 0, images + s * out.stride(2), -1).to(device) for s in self.slots]

    def write(self, held: Held, keys: tuple[Tensor, ...], region: Region, tile: Tile) -> None:
        """The distances of a region, from the keys of `largest_cosines`."""
        a, b = (slice(images.start, images.stop) for images in (region.a, region.b))
        if self.starts:
            measure(held, keys, region, self.out, self.starts[0][a, b], self.starts[1][b, a], tile)
            return
        D, _, M, _ = held.exact.shape
        slots = self.slots[0][a, b], self.slots[1][b, a]
        number = torch.cat([s.flatten() >= 0 for s in slots]).cumsum(0) - 1  # in `found`, of what is wanted
        found = torch.empty(D, int(number[-1]) + 1, M, device=held.exact.device)
        n = slots[0].numel()
        starts = [
            torch.where(s >= 0, numbers.view_as(s) * M, -1)
            for s, numbers in zip(slots, (number[:n], number[n:]), strict=True)
        ]
        measure(held, keys, region, found, starts[0].to(found.device), starts[1].to(found.device), tile)
        for s, start, images in zip(slots, starts, (region.a, region.b), strict=True):
            i, p = (s >= 0).nonzero(as_tuple=True)
            values = found[:, (start[i, p] // M).to(found.device)]
            self.out[:, (i + images.start).to(self.out.device), s[i, p].to(self.out.device)] = values.to(self.out)


def stage_distances(job: Job, out: Tensor, tile: Tile | None = None) -> None:
    """Fills out [D, N, J, M] with the distances of the job's pairs, both ways; `Job.write` is not called.

    The block follows from free memory where it is None. Where memory runs out, what is left is done with half the
    block; no block changes a distance. Raises ConfigError where a single pair does not fit.
    """
    image, plan, degrees, grid, block, advance = job.image, job.plan, job.degrees, job.grid, job.block, job.advance
    M, C = image(0).shape
    tile = tile or default_tile(image(0).device, C)
    size = block or automatic_block(image(0).device, plan.P, len(degrees), M, C, tile)
    size = min(size, plan.P)
    left = np.zeros((plan.P, plan.P), dtype=bool)
    left[: plan.N] = plan.compared.numpy()
    while not _run(image, plan, degrees, grid, size, out, advance, tile, left):
        # here, and not where it was caught: the exception kept the failed attempt's tensors alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            image_bytes, passing = bytes_needed(len(degrees), M, C, tile, 1)
            raise ConfigError(
                f"GPU memory is full: one pair of images with {M} patches, {C} channels and {len(degrees)} degrees "
                f"needs {(2 * image_bytes + passing) / 2**20:.0f} MiB beyond the features. End other programs on the "
                "GPU, keep the features on the CPU (device='cpu'), or take a smaller image_size or fewer degrees."
            )
        size = size // 2


def _run(image, plan, degrees, grid, size, out, advance, tile, left) -> bool:
    """All pairs that are `left`, which shrinks; False where memory ran out."""
    try:
        held = Held(image, plan.P, plan.P if 2 * size >= plan.P else size, degrees, grid, tile)
        writer = Writer(out, plan, left, held.exact.device)
        side, count = min(chunk_images(held.exact.shape[2]), size), len(held.blocks)
        for a in range(count):
            # boustrophedon: one of the two blocks stays
            for b in range(a, count) if a % 2 == 0 else range(count - 1, a - 1, -1):
                images, others = held.blocks[a], held.blocks[b]
                if not left[images.start : images.stop, others.start : others.stop].any():
                    continue
                slots = held.hold(a, keep=b), held.hold(b, keep=a)
                for region in regions(left, images, others, *slots, side):
                    # no name here for the keys: it would keep them until those of the next launch are there as well
                    writer.write(held, largest_cosines(held, writer.wanted, region, tile), region, tile)
                    left[region.a.start : region.a.stop, region.b.start : region.b.stop] = False
                    advance(region.pairs)
    except torch.cuda.OutOfMemoryError:
        return False
    return True
