"""The GPU engine: half-precision products fused with the maxima of their rows and columns, winners taken in float32.

One product per degree, unlike the CPU engine's one Gram matrix for all: on tensor cores products are the cheap part,
and fused with its maxima nothing of size M^2 leaves the registers.

Two kernels per launch. `tile_maxima` multiplies some images with some others as one large matrix and keeps, of every
row and of every column, the two largest cosines in each sub-tile of 32 or 16. `nearest_distances` then measures in
float32, as || a - b ||, each token that may be the nearest.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from musc import lnamd
from musc.engines.pairs import Plan
from musc.errors import ConfigError

BLOCK = 32  # tokens: images are padded to whole blocks, so that no sub-tile lies across two of them
ROWS_AT_ONCE = 11264  # of a launch's matrix of cosines: 8 images of a ViT-L, thousands of tiles
AT_ONCE = 8  # images aggregated together
SHARE = 0.8  # of the free memory that may be taken: the allocator rounds up


@dataclass(frozen=True)
class Tile:
    """Rows, columns and channels of a tile of cosines, its sub-tiles, and how it is run."""

    rows: int = 128
    cols: int = 256
    channels: int = 64
    warps: int = 8
    stages: int = 4
    sub_rows: int = 16
    sub_cols: int = 32
    group: int = 8  # rows of tiles that run one after the other down the columns
    descriptor: bool = True  # operands by Hopper's tensor memory access, not by addresses
    persistent: bool = False  # a program per multiprocessor, not per tile
    registers: int | None = None
    second: bool = True  # for timing only: without, results are not exact
    # of the second kernel
    tokens: int = 8
    partners: int = 4
    refine_channels: int = 128
    refine_warps: int = 4

    @property
    def bytes(self) -> int:
        """Shared memory of the stages; where operands pass through registers (before Hopper) one stage needs none."""
        stages = self.stages if self.descriptor else self.stages - 1
        return stages * 2 * (self.rows + self.cols) * self.channels


# the first that fits is taken; the last fits every GPU of compute capability 8.0 and up
TILES = (
    Tile(),
    Tile(128, 128, 64, warps=8, stages=4, descriptor=False),  # 98,304 bytes: Ampere, Ada, and Blackwell's small ones
    Tile(128, 128, 32, warps=8, stages=3, descriptor=False),
)


def default_tile(device: torch.device) -> Tile:
    """The first of TILES that the device's shared memory and generation allow."""
    if device.type != "cuda":
        return TILES[-1]
    room = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 99 * 1024)
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    return next(tile for tile in TILES if (hopper or not tile.descriptor) and tile.bytes + 1024 <= room)


@functools.cache
def available(device: torch.device) -> bool:
    """True where triton can compile for the GPU and that has tensor cores of Ampere or newer; warns where it cannot."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        from musc.engines.gpu import kernels

        out = torch.zeros(1, dtype=torch.int32, device=device)
        kernels.probe[(1,)](out)
        return int(out) == 1
    except Exception as error:  # of many kinds: no C compiler, no driver library, a GPU newer than triton
        warnings.warn(f"GPU: triton cannot compile here ({error}): taking slower products of torch.", stacklevel=2)
        return False


def padded(M: int) -> int:
    """M tokens in whole blocks."""
    return -(-M // BLOCK) * BLOCK


def chunk_images(M: int) -> int:
    """Images per side of a launch."""
    return max(1, ROWS_AT_ONCE // padded(M))


def bytes_needed(D: int, M: int, C: int, tile: Tile, side: int) -> tuple[int, int]:
    """Bytes per image held (float32, and half precision), and of the keys of a launch of side x side pairs."""
    image = D * (4 * M * C + 2 * padded(M) * -(-C // tile.channels) * tile.channels)
    rows = side * padded(M)
    return image, 8 * D * rows * (rows // tile.sub_rows + rows // tile.sub_cols)


def automatic_block(device: torch.device, P: int, D: int, M: int, C: int, tile: Tile) -> int:
    """Images of a block, of which two are held, that the free memory has room for: at least 1, at most half of P."""
    if device.type != "cuda":
        return 8
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, unused
    image, launch = bytes_needed(D, M, C, tile, chunk_images(M))
    room = SHARE * free - launch - AT_ONCE * 6 * 4 * M * C  # aggregation: LayerNorm, two layouts, pool, norm
    return max(1, min(int(room // (2 * image)), -(-P // 2)))


class Held:
    """Blocks of aggregated images on the device, two at most, in float32 and in half precision.

    exact: [D, S, M, C]. half: [D, S, 32 blocks, C padded with zeros]: position 32 s + i holds token i `blocks` + s, so
    that neighbours on the grid, whose cosines are alike, fall into different sub-tiles; past the last token it repeats.
    error: [D, S], 1.01 e + n of the module's docstring, the largest of an image.
    """

    def __init__(
        self,
        image: Callable[[int], Tensor],
        P: int,
        size: int,
        degrees: Sequence[int],
        grid: tuple[int, int],
        tile: Tile,
    ):
        like = image(0)
        M, C = like.shape
        self.image, self.degrees, self.grid = image, degrees, grid
        self.blocks = [range(start, min(start + size, P)) for start in range(0, P, size)]
        self.places: list[int | None] = [None] * min(2, len(self.blocks))
        self.size = size
        D, slots, channels = len(degrees), size * len(self.places), -(-C // tile.channels) * tile.channels
        self.exact = torch.empty(D, slots, M, C, device=like.device)
        self.half = torch.empty(D, slots, padded(M), channels, dtype=torch.float16, device=like.device)
        self.half[..., C:] = 0  # changes no product
        self.error = torch.empty(D, slots, device=like.device)
        position = torch.arange(padded(M), device=like.device)
        self.token = (position % BLOCK * (padded(M) // BLOCK) + position // BLOCK).clamp(max=M - 1)

    def hold(self, block: int, keep: int) -> int:
        """The first slot of a block, which is computed unless it is held; the block `keep` is left where it is."""
        if block not in self.places:
            place = next(n for n, held in enumerate(self.places) if held is None or held != keep)
            self.places[place] = None  # until it is whole
            images = self.blocks[block]
            for start in range(0, len(images), AT_ONCE):
                self._aggregate(images[start : start + AT_ONCE], place * self.size + start)
            self.places[place] = block
        return self.places.index(block) * self.size

    def _aggregate(self, images: Sequence[int], slot: int) -> None:
        tokens = torch.stack([self.image(p) for p in images]).float()  # [n, M, C]
        C = tokens.shape[-1]
        for d, degree in enumerate(self.degrees):
            unit = lnamd.aggregate(tokens, degree, grid=self.grid)
            half = unit.half()
            rounding = torch.linalg.vector_norm(unit - half, dim=-1)
            length = (unit.square().sum(dim=-1) - 1).abs() / 2
            self.exact[d, slot : slot + len(images)] = unit
            self.half[d, slot : slot + len(images), :, :C] = half[:, self.token]
            self.error[d, slot : slot + len(images)] = (1.01 * rounding + length).amax(dim=1)


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
    if tile.persistent:
        programs = min(programs, torch.cuda.get_device_properties(wanted.device).multi_processor_count)
    kernels.tile_maxima[(programs,)](
        *half, wanted, *found,
        D, S, A, B, r.slot_a, r.slot_b, r.a.start, r.b.start, len(wanted), M // BLOCK, C // tile.channels,
        BM=tile.rows, BN=tile.cols, BK=tile.channels, SUB_ROWS=tile.sub_rows, SUB_COLS=tile.sub_cols, GROUP=tile.group,
        DESCRIPTOR=tile.descriptor, PERSISTENT=tile.persistent, DENSE=r.dense, SECOND=tile.second,
        num_warps=tile.warps, num_stages=tile.stages, **({"maxnreg": tile.registers} if tile.registers else {}),
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
        kernels.nearest_distances[(D * A * -(-M // tile.tokens) * -(-B // tile.partners),)](
            held.exact, held.error, best, second, start, out, out.stride(0), slack(C),
            S, A, B, slot, other_slot, *start.stride(), M, C, blocks,
            ROWS=tile.tokens, SUBS=1 << (blocks * (BLOCK // sub) - 1).bit_length(), SUB=sub,
            BC=tile.refine_channels, PARTNERS=tile.partners, num_warps=tile.refine_warps,
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


def stage_distances(
    image: Callable[[int], Tensor],
    plan: Plan,
    degrees: Sequence[int],
    grid: tuple[int, int],
    block: int | None,
    out: Tensor,
    advance: Callable[[int], object],
    tile: Tile | None = None,
) -> None:
    """Fills out [D, N, J, M] with every ordered pair in `plan`; image(p): raw tokens of pool image p.

    block: images per block, of which two are held; from free memory where None. Where memory runs out, what is left is
    done with half the block; no block changes a distance. Raises ConfigError where a single pair does not fit.
    """
    M, C = image(0).shape
    tile = tile or default_tile(image(0).device)
    size = block or automatic_block(image(0).device, plan.P, len(degrees), M, C, tile)
    size = min(size, plan.P)
    left = np.zeros((plan.P, plan.P), dtype=bool)
    left[: plan.N] = (plan.slot >= 0).numpy()
    left = np.triu(left | left.T, 1)
    while not _run(image, plan, degrees, grid, size, out, advance, tile, left):
        # here, and not where it was caught: the exception kept the failed attempt's tensors alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            image_bytes, launch = bytes_needed(len(degrees), M, C, tile, 1)
            raise ConfigError(
                f"GPU memory is full: one pair of images with {M} patches, {C} channels and {len(degrees)} degrees "
                f"needs {(2 * image_bytes + launch) / 2**20:.0f} MiB beyond the features. End other programs on the "
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
                    keys = largest_cosines(held, writer.wanted, region, tile)
                    writer.write(held, keys, region, tile)
                    left[region.a.start : region.a.stop, region.b.start : region.b.stop] = False
                    advance(region.pairs)
    except torch.cuda.OutOfMemoryError:
        return False
    return True
