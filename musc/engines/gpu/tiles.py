"""How the GPU engine's kernels are cut into programs, and what that takes of shared and of device memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

BLOCK = 32  # tokens: images are padded to whole blocks, so that no sub-tile lies across two of them
ROWS_AT_ONCE = 11264  # of a launch's matrix of cosines: 8 images of a ViT-L, thousands of tiles
AT_ONCE = 16  # images aggregated together
FEW_CHANNELS = 512  # of a token: 2 KiB
SHARE = 0.8  # of the free memory that may be taken: the allocator rounds up


@dataclass(frozen=True)
class Tile:
    """Rows, columns and channels of a tile of cosines, its sub-tiles, and how it is run; then the other kernels'."""

    rows: int = 128
    cols: int = 128
    channels: int = 64
    warps: int = 4
    stages: int = 3
    sub_rows: int = 16
    sub_cols: int = 32
    group: int = 8  # rows of tiles that run one after the other down the columns
    descriptor: bool = True  # operands by Hopper's tensor memory access, not by addresses
    resident: int = 2  # programs per multiprocessor, that take tile after tile; 0: a program per tile
    # `nearest_distances`, and `aggregate`: tokens of a program, images that they are compared with
    tokens: int = 1
    partners: int = 1
    refine_channels: int = 1024
    refine_warps: int = 1

    @property
    def bytes(self) -> int:
        """Shared memory: the stages, of which operands that pass through registers (before Hopper) need one less.

        Where the next tile's operands arrive during the maxima of one, also what warps exchange for these.
        """
        stages = self.stages if self.descriptor else self.stages - 1
        return stages * 2 * (self.rows + self.cols) * self.channels + (1024 * self.warps if self.resident else 0)


# The first that fits is taken: Hopper's, that of Ampere, Ada and small Blackwells (98,304 bytes), and one that fits
# every GPU of compute capability 8.0 and up.
TILES = (
    Tile(),
    Tile(128, 128, 64, warps=8, stages=4, descriptor=False, resident=0),
    Tile(128, 128, 32, warps=8, descriptor=False, resident=0),
)


def default_tile(device: torch.device, C: int = FEW_CHANNELS + 1) -> Tile:
    """The first of TILES that the device's shared memory and generation allow; for C channels."""
    if device.type != "cuda":
        return TILES[-1]
    room = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 99 * 1024)
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    found = next(tile for tile in TILES if (hopper or not tile.descriptor) and tile.bytes + 1024 <= room)
    # a token of few channels is read sooner than the next one's address is known: several are on their way at once
    return replace(found, partners=4, refine_channels=128) if C <= FEW_CHANNELS else found


def power_of_two(n: int) -> int:
    """The smallest that is not less."""
    return 1 << (n - 1).bit_length()


def padded(M: int) -> int:
    """M tokens in whole blocks."""
    return -(-M // BLOCK) * BLOCK


def chunk_images(M: int) -> int:
    """Images per side of a launch."""
    return max(1, ROWS_AT_ONCE // padded(M))


def bytes_needed(D: int, M: int, C: int, tile: Tile, block: int) -> tuple[int, int]:
    """Bytes per image held (float32, and half precision), and of what comes and goes where blocks have so many images:
    a launch's keys, and raw tokens, gathered, with their LayerNorm's sums."""
    image = D * (4 * M * C + 2 * padded(M) * -(-C // tile.channels) * tile.channels)
    rows = min(chunk_images(M), block) * padded(M)
    keys = 8 * D * rows * (rows // tile.sub_rows + rows // tile.sub_cols)
    return image, keys + 3 * 4 * M * C * min(AT_ONCE, 2 * block)


def automatic_block(device: torch.device, P: int, D: int, M: int, C: int, tile: Tile) -> int:
    """Images of a block, of which two are held, that the free memory has room for: at least 1, at most half of P."""
    if device.type != "cuda":
        return 8
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, unused
    image, passing = bytes_needed(D, M, C, tile, P)
    return max(1, min(int((SHARE * free - passing) // (2 * image)), -(-P // 2)))
