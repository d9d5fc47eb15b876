"""How much memory mutual scoring may take, and into which pieces that cuts the work."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from musc.engines import gram
from musc.errors import ConfigError

SHARE = 0.5  # of what is free, where nobody names a bound: features and results grow too
SPARE = 1.25  # room for pairs of two bands, of their number on average: some bands want more of each other
LASTING = 0.98  # of what distances that wait may take: allocators lose some
BAND, CHUNK = 32, 512  # images whose rows are completed together, and what they meet at a time
MIB = 1 << 20
AT_ONCE = 32 * MIB  # of distances that a GPU sorts at a time; as much again goes into what it finds


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device: of a GPU, or of this machine or control group (Linux); None where unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit.isdigit():
            found.append(max(0, int(limit) - int((group / "memory.current").read_text())))
    except (OSError, ValueError, IndexError):
        pass
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return min(found) if found else None


@dataclass(frozen=True)
class Problem:
    """What is to be computed: distances of N images of `grid` patches and C channels to J of P others, D degrees."""

    device: torch.device
    dtype: torch.dtype
    N: int
    P: int
    J: int
    grid: tuple[int, int]
    C: int
    degrees: tuple[int, ...]

    @property
    def M(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def unit(self) -> int:
        """Bytes of one image's distances to one other."""
        return len(self.degrees) * self.M * (8 if self.dtype == torch.float64 else 4)

    @property
    def sparse(self) -> bool:
        """Whether most images do not score most others."""
        return 4 * self.J < self.P

    @property
    def whole(self) -> int:
        """Bytes of all distances at once, and of what keeps account of their pairs."""
        return self.N * self.J * self.unit + 200 * self.N * self.P


@dataclass(frozen=True)
class Cut:
    """Into what the work is cut.

    block: images held at a time, twice, in aggregated form (None: as the engine likes). band: images whose distances
    are completed together. chunk: images that they meet in one call. group: images among which each pair is compared
    once; a pair of two groups is compared twice, once for either image.
    """

    block: int | None
    band: int
    chunk: int
    group: int


def engine_bytes(problem: Problem, block: int) -> int:
    """What an engine holds at most while it compares images, `block` of them against others: an upper estimate."""
    D, M, C, images = len(problem.degrees), problem.M, problem.C, 2 * block
    if problem.device.type == "cuda" and problem.dtype != torch.float64:
        from musc.engines.gpu.tiles import bytes_needed, default_tile

        image, passing = bytes_needed(D, M, C, default_tile(problem.device), block)
        return images * image + passing
    if problem.dtype == torch.float64 or problem.device.type != "cpu":
        return images * D * M * C * 8 + 4 * M * M * 8
    rooms = 3 * 4 * M * M * max(1, min(gram.COSINES // M**2, images))
    plain = 2 * images * 4 * (D + 1) * M * C + 2 * rooms
    from musc.engines import cpu

    if not cpu.has_integer_products():
        return plain
    from musc.engines.cpu.layout import Buffers, Images, Layout, memory_of

    layout = Layout(*problem.grid, C, problem.degrees, cpu.has_wide_products())
    wanted = min(1, 2 * problem.J / problem.P)
    found = int(4 * block**2 * wanted) * problem.unit  # distances of a group of pairs, before they are written
    held = images * memory_of(Images, layout.sizes(1))
    return max(plain, held + torch.get_num_threads() * memory_of(Buffers, layout.sizes(0)) + found)


def cut(problem: Problem, max_bytes: int | None, block: int | None = None, on_disk: bool = False) -> Cut | None:
    """How to stay below `max_bytes`; None: everything at once does.

    max_bytes: None for half of what is free. block: as many images as given, instead of what fits. on_disk: distances
    that wait for others lie on disk, so that no pair need be compared twice.

    Raises ConfigError where not even one image's distances and one pair's comparison fit.
    """
    p, named = problem, max_bytes
    if max_bytes is None:
        free = free_bytes(p.device)
        if free is None:
            return None
        max_bytes = int(SHARE * free)
        if p.whole + 256 * MIB <= max_bytes and (block or not p.sparse):
            return None
    scores = 3 * p.N * p.unit // len(p.degrees)  # [N, M]: so far, of a stage, and the sum
    if p.device.type == "cuda":
        scores += 2 * AT_ONCE
    sizes = [block] if block else [b for b in (32, 16, 8, 4, 2, 1) if b <= max(1, p.P)]
    if p.sparse and not block:
        # few pairs lie in one block of images against another: with all images held each is prepared once
        left = max_bytes - p.whole - scores
        every = next(
            (b for b in (-(-p.P // 2), 512, 256, 128, 64) if b <= p.P and engine_bytes(p, b) <= left / 2), None
        )
        if every:
            return Cut(every, p.N, p.P, p.N)
    for size in sizes[:3] if named is not None else []:  # with fewer images held, each is prepared too often
        if p.whole + scores + engine_bytes(p, size) <= max_bytes:
            return None if block else Cut(size, p.N, p.P, p.N)
    fits = [b for b in sizes if engine_bytes(p, b) <= max_bytes / 4] or sizes[-1:]
    room = max_bytes - scores - engine_bytes(p, fits[0])
    row = p.J * p.unit  # of one image
    least = 4 * row + 8 * p.unit
    if room < least:
        raise ConfigError(
            f"max_bytes = {max_bytes} ({max_bytes / MIB:.0f} MiB): one image's distances to {p.J} others and one "
            f"pair's comparison need {(max_bytes - room + least) / MIB:.0f} MiB beyond the features. Allow more "
            "memory, or take fewer images (references, neighbours, subsets), a smaller image_size or fewer degrees."
        )
    band = max(1, min(BAND, p.N, int(room / 8 // row)))
    chunk = max(1, min(CHUNK, p.P, int(room / 8 // (3 * band * p.unit))))
    call = max(3 * band * chunk, 2 * (band + max(band, chunk)) * (band + 1))  # `rows.completed` asks for the second
    left = room - (band + 3) * row - call * p.unit - 9 * p.N * p.P * (p.J < p.P - 1)
    # n images that wait for each other hold at most n^2 / 4 pairs, of which J of P are wanted
    kept = LASTING * max(0, left) / p.unit  # pairs
    if p.device.type == "cuda":  # elsewhere room in which nothing was written takes no memory
        kept /= min(SPARE, p.P / p.J)
    group = p.N if on_disk else min(p.N, int(2 * math.sqrt(kept * p.P / p.J)))
    return Cut(fits[0], band, chunk, group if group >= p.N else max(band, group // band * band))


def pairs_compared(problem: Problem, cut: Cut | None) -> float:
    """How many comparisons a cut makes of all images with each other, as a share of the pairs that there are."""
    if cut is None or cut.group >= problem.N:
        return 1.0
    N = problem.N
    sizes = [min(cut.group, N - first) for first in range(0, N, cut.group)]
    inside = sum(n * (n - 1) // 2 for n in sizes)
    pairs = N * (N - 1) // 2
    return (inside + 2 * (pairs - inside)) / pairs
