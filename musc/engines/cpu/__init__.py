"""The CPU engine: every pair of images once, one Gram matrix for all degrees, winners exact in float32 (README.md).

This module chooses: compiled kernels where they are at hand, and `gram` in torch until they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from musc.engines import gram
from musc.engines.cpu import compiling
from musc.engines.pairs import Plan, Write, plan_pool

log = logging.getLogger("musc.engines")
COMPILING = 20.0  # seconds that the kernels take, about
TOLERANCE = 1e-3  # of distances where precision is not "float32"


@lru_cache
def has_integer_products() -> bool:
    """True where products of 8- and 16-bit integers by AVX2 beat float32's."""
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("avx2"))


@lru_cache
def has_wide_products() -> bool:
    """True where the processor has AVX-512's products of integers too."""
    from musc.engines.cpu import products

    return products.has_wide_products()


def stage_distances(
    image: Callable[[int], Tensor],
    plan: Plan,
    degrees: Sequence[int],
    grid: tuple[int, int],
    block: int | None,
    write: Write,
    advance: Callable[[int], object],
    precision: str = "float32",
) -> None:
    """Writes the distances of every ordered pair in `plan`; image(p): raw tokens of pool image p.

    At most 2 `block` images are held.
    """
    if not has_integer_products():
        log.info("gram: this processor has no AVX2")
        gram.stage_distances(image, plan, degrees, grid, block, write, advance)
        return
    if not compiling.ready():
        M, C = image(0).shape
        seconds = len(plan.pairs()) * M * M * (4e-9 * len(degrees) + 2e-11 * C)  # about, by gram
        compiling.compile_aside(patient=seconds < COMPILING)
        log.info("gram: the kernels are being compiled (%s)", compiling.folder())
        plan = plan.without(gram.stage_distances(image, plan, degrees, grid, block, write, advance, compiling.ready))
        if not plan.pairs():
            return
    _compiled(image, plan, degrees, grid, block, write, advance, precision)


def _compiled(image, plan, degrees, grid, block, write, advance, precision) -> None:
    from musc.engines.cpu import compiled
    from musc.engines.cpu.layout import Layout

    tolerance = 0.0 if precision == "float32" else TOLERANCE
    C = image(0).shape[1]
    layout = Layout(grid[0], grid[1], C, tuple(degrees), has_wide_products(), None, tolerance)
    compiled.stage_distances(image, plan, layout, block, write, advance)


def compile_kernels() -> None:
    """Compiles every kernel by using it, and keeps the machine code for all later processes."""
    for C in (8, 300):
        tokens = torch.randn(2, 12, C, generator=torch.Generator().manual_seed(0))
        nothing = (lambda images, slots, found: None), (lambda count: None)
        _compiled(tokens.__getitem__, plan_pool(2), (1, 3, 5), (3, 4), None, *nothing, "float32")
    compiling.finish()
