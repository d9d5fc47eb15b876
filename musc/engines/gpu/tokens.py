"""Aggregated images on the GPU: what its kernels read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from musc import lnamd
from musc.engines.gpu.tiles import AT_ONCE, BLOCK, Tile, padded, power_of_two


class Held:
    """Blocks of aggregated images on the device, two at most, in float32 and in half precision.

    exact: [D, S, M, C]. half: [D, S, 32 blocks, C padded with zeros]: position 32 s + i holds token i `blocks` + s, so
    that neighbours on the grid, whose cosines are alike, fall into different sub-tiles; past the last token it repeats
    some of the first.
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
        self.image, self.degrees, self.grid, self.tile = image, degrees, grid, tile
        self.blocks = [range(start, min(start + size, P)) for start in range(0, P, size)]
        self.places: list[int | None] = [None] * min(2, len(self.blocks))
        self.size = size
        D, slots, channels = len(degrees), size * len(self.places), -(-C // tile.channels) * tile.channels
        self.exact = torch.empty(D, slots, M, C, device=like.device)
        self.half = torch.empty(D, slots, padded(M), channels, dtype=torch.float16, device=like.device)
        self.half[..., C:] = 0  # changes no product
        self.error = torch.empty(D, slots, device=like.device)

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
        from musc.engines.gpu import kernels

        tokens = torch.stack([self.image(p) for p in images]).float()  # [n, M, C]
        n, M, C = tokens.shape
        rows, half_C = self.half.shape[2:]
        variance, mean = torch.var_mean(tokens, dim=(1, 2), correction=0)
        scale = torch.rsqrt(variance + lnamd.EPS)
        for d, degree in enumerate(self.degrees):
            error = torch.empty(n, M, device=tokens.device)
            kernels.aggregate[(-(-rows // self.tile.tokens), n)](
                tokens, mean, scale, self.exact[d, slot:], self.half[d, slot:], error, M, *self.grid, C, half_C,
                rows // BLOCK, R=degree, TOKENS=self.tile.tokens, BC=power_of_two(C),
            )  # fmt: skip
            self.error[d, slot : slot + n] = error.amax(dim=1)
