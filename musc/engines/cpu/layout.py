"""The CPU engine's memory: what the kernels read of images, and what each thread works in."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import NamedTuple

import numpy as np

from musc.engines.cpu.boxes import LANES
from musc.engines.cpu.products import COLS, COLS_WIDE, ROWS, SPAN

KEPT = 48  # candidates of a token; with more it is compared with all
CHUNK = 64  # columns whose marks fill an integer
NOTHING = np.float32(-8)  # below any cosine


class Grid(NamedTuple):
    """The patch grid as the kernels see it. n columns hold image b's tokens, 8 `vectors` of them a patch row.

    Of these the last ones may be empty. In `Buffers.sums` a patch row takes `pitch` numbers, of which as many are zero
    as the widest neighbourhood reaches: so a shift along x never adds a token from the other end of the grid.
    """

    H: int
    W: int
    vectors: int
    pitch: int
    widest: int  # largest of `halves`
    halves: np.ndarray  # [D] int64, (degree - 1) / 2
    place: np.ndarray  # [n] int64, the token of every column, or -1


class Images(NamedTuple):
    """S images. rows, columns, offset: raw tokens as integers, as `products.multiply` takes them."""

    rows: np.ndarray  # [S, row panels, steps, 6] int32
    columns: np.ndarray  # [S, column panels, steps, 16 or 64] int32
    offset: np.ndarray  # [S, column panels, spans, 16 or 64] int32
    ratio: np.ndarray  # [S] float32, scale of 16-bit integers / scale of 8-bit ones
    unit: np.ndarray  # [S, D, M, C] float32, aggregated tokens of unit length
    row_scale: np.ndarray  # [S, D, M] float32, turns box sums of integers into cosines, together with column_scale
    row_margin: np.ndarray  # [S, D, M] float32, a bound of the error of those, together with column_margin
    column_scale: np.ndarray  # [S, D, n]
    column_margin: np.ndarray  # [S, D, n], NOTHING where no token is to be found
    first: np.ndarray  # [S, D, M] int64, the first token that is equal


class Buffers(NamedTuple):
    """What one thread works in, for one pair after the other."""

    gram: np.ndarray  # [column panels, rows, 16 or 64], of the tokens of some patch rows of a, counted around its end
    zeros: np.ndarray  # [W, 16 or 64], what lies beyond the border
    sums: np.ndarray  # [D, widest + W, numbers], over the neighbourhoods of a patch row of a, for all tokens of b
    upper: np.ndarray  # [n], cosines of one token of a, plus column_margin
    marks: np.ndarray  # [n / 64] int64, a bit for each column that this token may be nearest to
    tops: np.ndarray  # [8 vectors + 8], largest of `upper` in each column of patches, and of all
    rows: np.ndarray  # [2 widest + 1] int64, addresses of patch rows in `gram`
    arrays: np.ndarray  # [D, 6] int64, addresses of what `boxes.score` reads and makes
    candidates: np.ndarray  # [2, KEPT] int64, tokens that may be nearest to this one, or to the one before it
    bounds: np.ndarray  # [2, KEPT], of their cosines, from above
    best: np.ndarray  # [D, n], largest cosine of every column so far, from below
    rivals: np.ndarray  # [D, n, KEPT] int32, tokens of a that may be nearest to a column
    rival_bounds: np.ndarray  # [D, n, KEPT], of their cosines, from above, column_margin left out
    rival_counts: np.ndarray  # [D, n] int32, KEPT + 1: too many
    winner: np.ndarray  # [D, M] int32, tokens of b nearest to those of a, or -1


class BufferPool:
    """Memory of earlier calls for the next ones: a system may take longer to hand out fresh memory than the work that
    is done in it. At most `most` bytes are kept."""

    def __init__(self, most: int) -> None:
        self.most, self.size, self.lock = most, 0, Lock()
        self.pieces: defaultdict[int, list[np.ndarray]] = defaultdict(list)

    def take(self, size: int) -> np.ndarray:
        """Bytes of any content."""
        with self.lock:
            if self.pieces[size]:
                self.size -= size
                return self.pieces[size].pop()
        return np.empty(size, np.uint8)

    def give(self, piece: np.ndarray) -> None:
        """Hands a piece back, in which nobody may work any more."""
        with self.lock:
            if self.size + piece.nbytes > self.most:  # what was kept is of another size, or too much
                self.pieces.clear()
                self.size = 0
            if piece.nbytes <= self.most:
                self.pieces[piece.nbytes].append(piece)
                self.size += piece.nbytes


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
    rotation: tuple[np.ndarray, np.ndarray] | None = None
    tolerance: float = 0.0

    @cached_property
    def grid(self) -> Grid:
        halves = np.array([(r - 1) // 2 for r in self.degrees], dtype=np.int64)
        widest, vectors = int(halves.max()), -(-self.W // LANES)
        pitch = LANES * (vectors + (LANES * vectors < self.W + widest))
        y, x = np.divmod(np.arange(-(-self.H * vectors // 8) * 8 * LANES), LANES * vectors)
        place = np.where((x < self.W) & (y < self.H), y * self.W + x, -1)
        return Grid(self.H, self.W, vectors, pitch, widest, halves, place)

    @property
    def K(self) -> int:
        """Channels whose products take 16 bits."""
        return self.C if self.rotation is None else self.rotation[0].shape[1]

    @property
    def spans(self) -> int:
        """Of the channels whose products take 8 bits."""
        return -(-(self.C - self.K) // (4 * SPAN))

    @property
    def panels(self) -> tuple[int, int]:
        """Of columns: their number and width."""
        cols = COLS_WIDE if self.wide else COLS
        return -(-self.H * self.grid.vectors * LANES // cols), cols

    def _images(self, S: int) -> list[tuple[tuple[int, ...], type]]:
        D, M, n = len(self.degrees), self.H * self.W, len(self.grid.place)
        panels, cols, steps = *self.panels, self.spans * SPAN + (self.K + 1) // 2
        return [
            ((S, -(-M // ROWS), steps, ROWS), np.int32),
            ((S, panels, steps, cols), np.int32),
            ((S, panels, self.spans, cols), np.int32),
            ((S,), np.float32),
            ((S, D, M, self.C), np.float32),
            *[((S, D, M), np.float32)] * 2,
            *[((S, D, n), np.float32)] * 2,
            ((S, D, M), np.int64),
        ]  # type: ignore[return-value]

    def _buffers(self) -> list[tuple[tuple[int, ...], type]]:
        D, n, (panels, cols), grid = len(self.degrees), len(self.grid.place), self.panels, self.grid
        stripes = 1 + -(-2 * grid.widest // ROWS)  # of six patch rows
        return [
            ((panels, stripes * ROWS * self.W, cols), np.float32),
            ((self.W, cols), np.float32),
            ((D, grid.widest + self.W, 2 * LANES + (self.H + grid.widest) * grid.pitch), np.float32),
            ((n,), np.float32),
            ((n // CHUNK,), np.int64),
            ((LANES * grid.vectors + LANES,), np.float32),
            ((2 * grid.widest + 1,), np.int64),
            ((D, 6), np.int64),
            ((2, KEPT), np.int64),
            ((2, KEPT), np.float32),
            ((D, n), np.float32),
            ((D, n, KEPT), np.int32),
            ((D, n, KEPT), np.float32),
            ((D, n), np.int32),
            ((D, self.H * self.W), np.int32),
        ]  # type: ignore[return-value]

    def bytes_per_image(self) -> int:
        return _size(self._images(1))

    def bytes_per_thread(self) -> int:
        return _size(self._buffers()) + 2 * 4 * self.H * self.W * (2 * self.C + 4 * SPAN)  # and rooms to prepare images

    def images(self, S: int) -> tuple[Images, np.ndarray]:
        """Room for S images, and the memory it lies in."""
        arrays, memory = _arrays(self._images(S))
        for array in arrays[:3]:
            array.fill(0)  # what lies beyond the border
        return Images(*arrays), memory

    def buffers(self) -> tuple[Buffers, np.ndarray]:
        """One thread's buffers, and the memory they lie in."""
        arrays, memory = _arrays(self._buffers())
        for array, nothing in zip(arrays[1:5], (0, 0, NOTHING, 0), strict=True):  # beyond the border
            array.fill(nothing)
        return Buffers(*arrays), memory


def _size(kinds: list[tuple[tuple[int, ...], type]]) -> int:
    return sum(-(-int(np.prod(shape)) * np.dtype(kind).itemsize // 64) * 64 for shape, kind in kinds) + 64


def _arrays(kinds: list[tuple[tuple[int, ...], type]]) -> tuple[list[np.ndarray], np.ndarray]:
    """Arrays of given shapes and types in one piece of memory, at multiples of 64 bytes."""
    memory = POOL.take(_size(kinds))
    at = -memory.ctypes.data % 64
    out: list[np.ndarray] = []
    for shape, kind in kinds:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        out.append(memory[at : at + size].view(kind).reshape(shape))
        at += -(-size // 64) * 64
    return out, memory
