"""The GPU engine: half-precision products fused with their row and column maxima, winners measured in float32.

One product per degree, unlike the CPU engine's one Gram matrix for all: on tensor cores products are the cheap part.
For M = 1369, C = 1024 a product is 2 M^2 C = 3.8 GFLOP, some 5 us at an assumed 750 TFLOP/s, and fused with its maxima
nothing of size M^2 leaves the registers. A Gram matrix shared by degrees would have to be box-filtered in four
dimensions, with every pass of sums through memory or shared memory. That is an estimate: neither way was timed on a
GPU yet (`python -m benchmarks.gpu` does).

One stream: each launch has thousands of programs and fills the device by itself.

Accuracy: every distance is a true float32 distance to a patch of the other image, so never below the minimum but for
float32's own rounding. Rounding unit vectors with unit roundoff u (2^-9 bfloat16, 2^-12 float16) moves a cosine by at
most 2u (Cauchy-Schwarz), so the winner's squared distance exceeds the minimum by at most 8u in the worst case, and in
practice by far less: rounding errors of C channels nearly cancel. The winners of all tiles within that margin of the
largest cosine are compared in float32; only two candidates in one tile can still be confused.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from musc import lnamd
from musc.engines.pairs import Plan
from musc.errors import ConfigError

CHUNK = 32  # pairs per launch: enough programs to fill the device, partial maxima of 23 MB for a ViT-L
AT_ONCE = 8  # images aggregated together
SHARE = 0.8  # of the free memory that may be taken: the allocator rounds up
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDOFF = {"bfloat16": 2.0**-9, "float16": 2.0**-12}


@dataclass(frozen=True)
class Tile:
    """Rows, columns and channels of a tile, and how it is run. 128 x 128 wastes least of M = 1369 (5 %)."""

    rows: int = 128
    cols: int = 128
    channels: int = 64
    warps: int = 8
    stages: int = 4
    winners: int = 4  # tokens per program of the second kernel


TILE = Tile()


def default_tile(device: torch.device) -> Tile:
    """TILE, with four stages (128 KiB) in flight only where a multiprocessor has as much shared memory."""
    roomy = device.type != "cuda" or torch.cuda.get_device_capability(device) in ((8, 0), (9, 0), (10, 0), (10, 3))
    return TILE if roomy else replace(TILE, stages=2)


def available(device: torch.device) -> bool:
    """True where triton is installed and the GPU has bfloat16 tensor cores (Ampere or newer)."""
    return (
        device.type == "cuda"
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def bytes_needed(D: int, M: int, C: int) -> tuple[int, int]:
    """Bytes per image held (float32, and 16 bits) with its share of aggregation, and per pair of a launch."""
    image = D * M * (4 * C + 2 * -(-C // TILE.channels) * TILE.channels)
    partials = 8 * D * M * (-(-M // TILE.rows) - (-M // TILE.cols))
    return image, partials + 8 * D * M + 32


def automatic_block(device: torch.device, P: int, D: int, M: int, C: int) -> int:
    """Images of a block, of which two are held, that the free memory has room for: at least 1, at most half of P."""
    if device.type != "cuda":
        return 8
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, unused
    image, pair = bytes_needed(D, M, C)
    room = SHARE * free - CHUNK * pair - AT_ONCE * 6 * 4 * M * C  # aggregation: LayerNorm, two layouts, pool, norm
    return max(1, min(int(room // (2 * image)), -(-P // 2)))


class Held:
    """The aggregated tokens of at most `count` images on the device, in float32 and in half precision."""

    def __init__(self, count: int, like: Tensor, degrees: Sequence[int], grid: tuple[int, int], dtype: torch.dtype):
        M, C = like.shape
        padded = -(-C // TILE.channels) * TILE.channels  # zeros change no product
        self.degrees, self.grid = degrees, grid
        self.exact = torch.empty(count, len(degrees), M, C, device=like.device)
        self.half = torch.zeros(count, len(degrees), M, padded, dtype=dtype, device=like.device)
        self.slot: dict[int, int] = {}

    def hold(self, needed: set[int], image: Callable[[int], Tensor]) -> None:
        """Makes `needed` the images held; those already there are kept."""
        self.slot = {p: s for p, s in self.slot.items() if p in needed}
        free = sorted(set(range(len(self.exact))) - set(self.slot.values()))
        missing = sorted(needed - set(self.slot))
        C = self.exact.shape[-1]
        for start in range(0, len(missing), AT_ONCE):
            some = missing[start : start + AT_ONCE]
            slots = free[start : start + len(some)]
            tokens = torch.stack([image(p).float() for p in some])
            for d, degree in enumerate(self.degrees):
                aggregated = lnamd.aggregate(tokens, degree, grid=self.grid)
                for s, unit in zip(slots, aggregated, strict=True):
                    self.exact[s, d] = unit
                    self.half[s, d, :, :C] = unit
            self.slot |= dict(zip(some, slots, strict=True))


def nearest(held: Held, a: Tensor, b: Tensor, margin: float, tile: Tile = TILE) -> tuple[Tensor, Tensor]:
    """Distances of the images in slots a [n] to those in slots b [n], and the reverse: [n, D, M] each."""
    from musc.engines.gpu import kernels

    n = len(a)
    _, D, M, C = held.exact.shape
    rows, cols = -(-M // tile.rows), -(-M // tile.cols)

    def empty(tiles: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(n, D, tiles, M, dtype=dtype, device=a.device)

    row_best, row_arg = empty(cols, torch.float32), empty(cols, torch.int32)
    col_best, col_arg = empty(rows, torch.float32), empty(rows, torch.int32)
    kernels.tile_maxima[(rows * cols * n * D,)](
        held.half, a, b, row_best, row_arg, col_best, col_arg, D, M, held.half.shape[-1],
        BM=tile.rows, BN=tile.cols, BK=tile.channels, WIDEN=a.device.type == "cpu",
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    found = []
    for mine, other, best, arg in ((a, b, row_best, row_arg), (b, a, col_best, col_arg)):
        out = torch.empty(n, D, M, device=a.device)
        kernels.winners[(-(-M // tile.winners) * n * D,)](
            held.exact, mine, other, best, arg, out, margin, D, M, C, best.shape[2],
            ROWS=tile.winners, BC=256, num_warps=2,
        )  # fmt: skip
        found.append(out)
    return found[0], found[1]


def stage_distances(
    image: Callable[[int], Tensor],
    plan: Plan,
    degrees: Sequence[int],
    grid: tuple[int, int],
    block: int | None,
    out: Tensor,
    advance: Callable[[int], object],
    precision: str = "bfloat16",
    tile: Tile | None = None,
) -> None:
    """Fills out [D, N, J, M] with every ordered pair in `plan`; image(p): raw tokens of pool image p.

    block: images per block, of which two are held; from free memory where None. Where memory runs out, what is left is
    done with half the block; no block changes a distance. Raises ConfigError where a single pair does not fit.
    """
    M, C = image(0).shape
    tile = tile or default_tile(image(0).device)
    size = block or automatic_block(image(0).device, plan.P, len(degrees), M, C)
    size = min(size, plan.P)
    done: set[tuple[int, int]] = set()
    while not _run(image, plan, degrees, grid, size, out, advance, precision, tile, done):
        # here, and not where it was caught: the exception kept the failed attempt's tensors alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            need = 2 * bytes_needed(len(degrees), M, C)[0] + bytes_needed(len(degrees), M, C)[1]
            raise ConfigError(
                f"GPU memory is full: one pair of images with {M} patches, {C} channels and {len(degrees)} degrees "
                f"needs {need / 2**20:.0f} MiB beyond the features. End other programs on the GPU, keep the features "
                "on the CPU (device='cpu'), or take a smaller image_size or fewer degrees."
            )
        size = size // 2


def _run(image, plan, degrees, grid, size, out, advance, precision, tile, done) -> bool:
    """All pairs that are not in `done`, which grows; False where memory ran out."""
    try:
        held = Held(min(2 * size, plan.P), image(0), degrees, grid, DTYPES[precision])
        for group in plan.blocks(size):
            left = [pair for pair in group if pair not in done]
            if not left:
                continue
            held.hold(set(sum(left, ())), image)
            slots = torch.tensor([[held.slot[i], held.slot[p]] for i, p in left], dtype=torch.int32).T.contiguous()
            slots = slots.to(held.exact.device)
            step = min(CHUNK, size * size)
            for start in range(0, len(left), step):
                part = left[start : start + step]
                a, b = (side[start : start + step] for side in slots)
                forward, backward = nearest(held, a, b, 4 * ROUNDOFF[precision], tile)
                _write(out, plan, part, forward)
                _write(out, plan, [(p, i) for i, p in part], backward)
                done.update(part)
                advance(len(part))
    except torch.cuda.OutOfMemoryError:
        return False
    return True


def _write(out: Tensor, plan: Plan, pairs: list[tuple[int, int]], distances: Tensor) -> None:
    """Writes distances [n, D, M] of the ordered pairs that the plan wants, in one go, not a launch per pair."""
    wanted = [(n, i, int(plan.slot[i, p])) for n, (i, p) in enumerate(pairs) if i < plan.N and plan.slot[i, p] >= 0]
    if wanted:
        n, i, slot = torch.tensor(wanted).T
        values = distances[n.to(distances.device)].transpose(0, 1)  # [D, n, M]
        out[:, i.to(out.device), slot.to(out.device)] = values.to(out.device, out.dtype)
