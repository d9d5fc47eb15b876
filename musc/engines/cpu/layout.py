"""The CPU engine's layout of the patch grid, and the memory that its kernels work in."""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from threading import RLock
from typing import Any

import numpy as np

from musc.engines.cpu import boxes, products, search

CLIP = 4.6  # standard deviations of 8-bit values that their range holds
CLIP_LIKELY = 5.6  # the same where precision is not "float32": no token is left that needs a full comparison
DIRECTIONS = 64  # whose products take 16 bits


class Spare:
    """Memory that images and threads of earlier calls no longer use, for the next ones: a system may take longer to
    hand out fresh memory than the work that is done in it. At most `most` bytes are kept."""

    def __init__(self, most: int) -> None:
        self.most, self.size, self.lock = most, 0, RLock()
        self.pieces: defaultdict[int, list[np.ndarray]] = defaultdict(list)

    def take(self, size: int) -> np.ndarray:
        """Bytes of any content; they come back when no array lies in them any more."""
        with self.lock:
            if self.pieces[size]:
                memory = self.pieces[size].pop()
                self.size -= size
            else:
                memory = np.empty(size, np.uint8)
        piece = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(piece, self.give, memory).atexit = False
        return piece

    def give(self, memory: np.ndarray) -> None:
        with self.lock:
            if self.size + memory.nbytes > self.most:  # what was kept is of another shape, or too much
                self.pieces.clear()
                self.size = 0
            if memory.nbytes <= self.most:
                self.pieces[memory.nbytes].append(memory)
                self.size += memory.nbytes


SPARE = Spare(256 << 20)


def arrays(*kinds: tuple[tuple[int, ...], type]) -> list[np.ndarray]:
    """Zeros of given shapes and types in one piece of memory."""
    sizes = [-(-int(np.prod(shape)) * np.dtype(kind).itemsize // 64) * 64 for shape, kind in kinds]
    piece = SPARE.take(sum(sizes) + 64)
    ends = np.cumsum([-piece.ctypes.data % 64, *sizes]).tolist()
    out: list[np.ndarray] = []
    for (shape, kind), start in zip(kinds, ends[:-1], strict=True):
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        out.append(piece[start : start + size].view(kind).reshape(shape))
        out[-1].fill(0)
    return out


@dataclass(frozen=True)
class Layout:
    """The patch grid as the kernels see it: as columns, a patch row takes `pitch` places, the last ones empty, one
    fewer than the widest neighbourhood reaches: `search` mends what that lets in.

    wide: integers take AVX-512 VNNI. turn: two matrices [C, K], A and V, such that x - (x A) V^T turns a token so that
    its first K coordinates lie along the directions that matter most; their products take 16-bit integers, the others'
    8-bit ones. None: all take 16 bits, or float32 where `integer` is False. sure: margins bound every rounding
    error, not just likely ones.
    """

    H: int
    W: int
    degrees: tuple[int, ...]
    integer: bool
    wide: bool = False
    turn: tuple[np.ndarray, np.ndarray] | None = None
    sure: bool = True

    @cached_property
    def halves(self) -> np.ndarray:
        return np.array([(r - 1) // 2 for r in self.degrees], dtype=np.int64)

    @cached_property
    def widest(self) -> int:
        return int(self.halves.max())

    @cached_property
    def pitch(self) -> int:
        return self.W + self.widest - (self.W > 1 and self.widest > 0)

    @property
    def cols(self) -> int:
        return products.COLS_WIDE if self.wide else products.COLS

    @property
    def clip(self) -> float:
        return CLIP if self.sure else CLIP_LIKELY

    @property
    def top8(self) -> int:
        return products.TOP8_WIDE if self.wide else products.TOP8

    @cached_property
    def n(self) -> int:
        return -(-self.H * self.pitch // boxes.CHUNK) * boxes.CHUNK

    @cached_property
    def place(self) -> np.ndarray:
        """The token of every column, or -1."""
        y, x = np.divmod(np.arange(self.n), self.pitch)
        return np.where((x < self.W) & (y < self.H), y * self.W + x, -1)

    def operands(self, C: int) -> list[tuple[tuple[int, ...], type]]:
        """Shapes and types of an image's rows, columns and offset as `products.products` takes them."""
        steps, spans = 0, 0
        if self.turn is not None:
            K = self.turn[0].shape[1]
            spans = -(-(C - K) // (4 * products.SPAN))
            steps, C = spans * products.SPAN, K
        steps += (C + 1) // 2
        M, panels = self.H * self.W * self.integer, -(-self.H * self.pitch // self.cols) * self.integer
        shapes = (-(-M // products.ROWS), steps, products.ROWS), (panels, steps, self.cols), (panels, spans, self.cols)
        return [(shape, np.int32) for shape in shapes]

    def workspace(self, C: int) -> tuple[np.ndarray, ...]:
        """For an image in preparation: raw tokens, then room for their coordinates: the most, and twice the first."""
        shapes = (M := self.H * self.W, C), (M, C + 4 * products.SPAN), (M, DIRECTIONS), (M, DIRECTIONS)
        return tuple(arrays(*[(shape, np.float32) for shape in shapes]))

    def scratch(self, C: int) -> tuple[Any, ...]:
        """One thread's buffers: Gram rows in use, what `search.rows` needs, every column's candidates; a workspace."""
        D, n, widest = len(self.degrees), self.n, self.widest
        stripes = 1 + -(-2 * widest // products.ROWS)  # of six patch rows
        guarded = n + 2 * widest * (self.pitch + 1)
        real = [
            (stripes * products.ROWS * self.W, n),
            (D, 2 * widest + 1, n),
            (guarded,),
            (guarded,),
            (n,),
            (n,),
            (n // 8 + 8,),
            (D, n),
        ]
        lists = [((D, size, search.KEPT), kind) for size in (self.H * self.W, n) for kind in (np.int32, np.float32)]
        counts = [((D, size), np.int32) for size in (self.H * self.W, n)]
        found = arrays(
            *[(shape, np.float32) for shape in real],
            *[((n // boxes.CHUNK,), kind) for kind in (np.int64, np.uint8)],
            *lists,
            *counts,
        )
        ring, sums, across, along, zeros, values, tops, best, marks, hits, *found = found
        buffers = sums, across, along, zeros, values, marks, tops, hits
        candidates = best, (found[0], found[1], found[4]), (found[2], found[3], found[5])
        return ring, buffers, candidates, self.workspace(C)
