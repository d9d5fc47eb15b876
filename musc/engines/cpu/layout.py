"""The CPU engine's memory: what the kernels read of images, and what each thread works in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from threading import Lock
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numpy import ndarray

from musc.engines.cpu.boxes import LANES
from musc.engines.cpu.products import COLS, COLS_WIDE, ROWS, SPAN

KEPT = 48  # candidates of a token; with more it is compared with all
CHUNK = 64  # columns whose marks fill an integer
NOTHING = np.float32(-8)  # below any cosine


class Grid(NamedTuple):
    """The patch grid as the kernels see it. n columns hold image b's tokens, 8 `vectors` of them a patch row.

    Where no neighbourhood is summed (degree 1 alone) nothing depends on places: rows are then those of a panel, tokens
    follow each other, and the last row may be short. Of these the last ones may be empty. In `Buffers.sums` a patch row
    takes `pitch` numbers, of which as many are zero as the widest neighbourhood reaches: so a shift along x never adds
    a token from the other end of the grid.
    """

    H: int
    W: int
    vectors: int
    pitch: int
    stripe: int  # patch rows of a that are multiplied at a time, a multiple of six tokens
    widest: int  # largest of `halves`
    halves: ndarray  # [D] int64, (degree - 1) / 2
    place: ndarray  # [n] int64, the token of every column, or -1


class Images(NamedTuple):
    """S images. rows, columns, offset: raw tokens as integers, as `products.multiply` takes them."""

    rows: Int32[ndarray, "S row_panels steps 6"]
    columns: Int32[ndarray, "S panels steps cols"]
    offset: Int32[ndarray, "S panels spans cols"]
    ratio: Float32[ndarray, "S"]  # scale of 16-bit integers / scale of 8-bit ones
    unit: Float32[ndarray, "S D M C"]  # aggregated tokens of unit length
    row_scale: Float32[ndarray, "S D M"]  # turns box sums of integers into cosines, together with column_scale
    row_margin: Float32[ndarray, "S D M"]  # a bound of the error of those, together with column_margin
    column_scale: Float32[ndarray, "S D n"]
    column_margin: Float32[ndarray, "S D n"]  # NOTHING where no token is to be found
    first: Int64[ndarray, "S D M"]  # the first token that is equal


class Buffers(NamedTuple):
    """What one thread works in, for one image in preparation (the first three), or for one pair after the other."""

    raw: Float32[ndarray, "M C"]  # its tokens
    high: Float32[ndarray, "M K"]  # of them what takes 16 bits, where 8 bits are in use
    low: Float32[ndarray, "M low"]  # and what takes 8 bits, then zeros
    gram: Float32[ndarray, "panels ring cols"]  # of the tokens of some patch rows of a, counted around its end
    zeros: Float32[ndarray, "W cols"]  # what lies beyond the border
    sums: Float32[ndarray, "D places numbers"]  # over the neighbourhoods of a patch row of a, for all tokens of b
    upper: Float32[ndarray, "n"]  # cosines of one token of a, plus column_margin
    marks: Int64[ndarray, "chunks"]  # a bit for each column that this token may be nearest to
    tops: Float32[ndarray, "tops"]  # largest of `upper` in each column of patches, and of lower bounds of all
    rows: Int64[ndarray, "around"]  # addresses of patch rows in `gram`
    arrays: Int64[ndarray, "6"]  # addresses of what `boxes.score` reads and makes
    candidates: Int64[ndarray, "kept"]  # tokens that may be nearest to this one
    bounds: Float32[ndarray, "kept"]  # of their cosines, from above
    best: Float32[ndarray, "D n"]  # largest cosine of every column so far, from below
    rivals: Int32[ndarray, "D n kept"]  # tokens of a that may be nearest to a column
    rival_bounds: Float32[ndarray, "D n kept"]  # of their cosines, from above
    rival_counts: Int32[ndarray, "D n"]  # KEPT + 1: too many
    winner: Int32[ndarray, "D M"]  # tokens of b nearest to those of a, or -1


class BufferPool:
    """Memory of earlier calls for the next ones: a system may take longer to hand out fresh memory than the work that
    is done in it. At most `most` bytes are kept, the last ones."""

    def __init__(self, most: int) -> None:
        self.most, self.pieces, self.lock = most, list[ndarray](), Lock()

    def take(self, size: int) -> ndarray:
        """Bytes of any content."""
        with self.lock:
            for k, piece in enumerate(self.pieces):
                if piece.nbytes == size:
                    return self.pieces.pop(k)
        return np.empty(size, np.uint8)

    def give(self, piece: ndarray) -> None:
        """Hands a piece back, in which nobody may work any more."""
        with self.lock:
            self.pieces.append(piece)
            while sum(piece.nbytes for piece in self.pieces) > self.most:
                self.pieces.pop(0)


POOL = BufferPool(384 << 20)


@dataclass(frozen=True)
class Layout:
    """How images of an H x W grid and C channels are laid out.

    wide: integers take AVX-512 VNNI, not AVX2. rotation: two matrices, A [C, K] and V^T [K, C], such that x - (x A) V^T
    rotates a token so that its first K coordinates lie along the directions that matter most; their products take
    16-bit integers, the others' 8-bit ones. None: all take 16 bits. tolerance: of a distance; 0: margins bound every
    rounding error, and not just likely ones.
    """

    H: int
    W: int
    C: int
    degrees: tuple[int, ...]
    wide: bool
    rotation: tuple[ndarray, ndarray] | None = None
    tolerance: float = 0.0

    @cached_property
    def grid(self) -> Grid:
        halves = np.array([(r - 1) // 2 for r in self.degrees], dtype=np.int64)
        widest, M, H, W, stripe = int(halves.max()), self.H * self.W, self.H, self.W, ROWS
        if not widest:
            H, W, stripe = -(-M // self.cols), self.cols, ROWS // 2
        vectors = -(-W // LANES)
        pitch = LANES * (vectors + (LANES * vectors < W + widest))
        y, x = np.divmod(np.arange(-(-H * vectors // 8) * 8 * LANES), LANES * vectors)
        place = np.where((x < W) & (y * W + x < M), y * W + x, -1)
        return Grid(H, W, vectors, pitch, stripe, widest, halves, place)

    @property
    def cols(self) -> int:
        """Columns of a panel."""
        return COLS_WIDE if self.wide else COLS

    @property
    def K(self) -> int:
        """Channels whose products take 16 bits."""
        return self.C if self.rotation is None else self.rotation[0].shape[1]

    def sizes(self, S: int) -> dict[str, int]:
        """Of the arrays' axes, for S images."""
        grid, n, cols = self.grid, len(self.grid.place), self.cols
        spans = -(-(self.C - self.K) // (4 * SPAN))
        of_images = {"S": S, "D": len(grid.halves), "M": self.H * self.W, "C": self.C, "n": n, "spans": spans}
        of_images |= {"row_panels": -(-self.H * self.W // ROWS), "steps": spans * SPAN + (self.K + 1) // 2}
        of_images |= {"panels": -(-grid.H * grid.vectors * LANES // cols), "cols": cols}
        return of_images | {
            "K": 0 if self.rotation is None else self.K,
            "low": 4 * SPAN * spans,
            "ring": (1 + -(-2 * grid.widest // grid.stripe)) * grid.stripe * grid.W,
            "W": grid.W,
            "places": grid.widest + grid.W,
            "numbers": 2 * LANES + (grid.H + grid.widest) * grid.pitch,
            "chunks": n // CHUNK,
            "tops": LANES * grid.vectors + LANES,
            "around": 2 * grid.widest + 1,
            "kept": KEPT,
        }

    def images(self, S: int) -> tuple[Images, ndarray]:
        """Room for S images, and the memory it lies in."""
        images, memory = arrays(Images, self.sizes(S))
        for array in (images.rows, images.columns, images.offset):
            array.fill(0)  # what lies beyond the border
        return images, memory

    def buffers(self) -> tuple[Buffers, ndarray]:
        """One thread's buffers, and the memory they lie in."""
        buffers, memory = arrays(Buffers, self.sizes(0))
        for array in (buffers.low, buffers.zeros, buffers.sums, buffers.marks):
            array.fill(0)
        buffers.upper.fill(NOTHING)  # beyond the border
        return buffers, memory


def shapes(kind: type, sizes: dict[str, int]) -> Iterator[tuple[list[int], np.dtype, int]]:
    """Of each array of a kind: shape, type, and bytes up to the next multiple of 64."""
    for hint in get_type_hints(kind).values():
        shape = [sizes[axis] if axis in sizes else int(axis) for axis in hint.dim_str.split()]
        dtype = np.dtype(hint.dtypes[0])
        yield shape, dtype, -(-prod(shape) * dtype.itemsize // 64) * 64


def memory_of(kind: type, sizes: dict[str, int]) -> int:
    """Bytes of all arrays of a kind, and of what may lie before the first one."""
    return sum(size for *_, size in shapes(kind, sizes)) + 64


def arrays(kind: type, sizes: dict[str, int]) -> tuple[Any, ndarray]:
    """All arrays of a kind in one piece of memory, at multiples of 64 bytes, and that memory."""
    memory = POOL.take(memory_of(kind, sizes))
    at, out = -memory.ctypes.data % 64, []
    for shape, dtype, size in shapes(kind, sizes):
        out.append(memory[at : at + prod(shape) * dtype.itemsize].view(dtype).reshape(shape))
        at += size
    return kind(*out), memory
