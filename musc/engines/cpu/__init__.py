"""The CPU engine: every pair of images once, one Gram matrix for all degrees, winners exact in float32 (README.md).

This module chooses: compiled kernels where they are at hand, and `gram` in torch until they are.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from musc.engines import gram
from musc.engines.cpu import compiling
from musc.engines.pairs import Job, plan_pool

log = logging.getLogger("musc.engines")
COMPILING = 20.0  # seconds that the kernels take, about
LARGEST = 9  # degree that the kernels sum
TOLERANCE = 1e-3  # of distances where precision is not "float32"


def has_integer_products() -> bool:
    """True where products of 8- and 16-bit integers by AVX2 beat float32's."""
    return compiling.has("avx2")


def has_wide_products() -> bool:
    """True where the processor has AVX-512's products of integers too."""
    return compiling.has("avx2", "avx512bw", "avx512vnni")


def stage_distances(job: Job, precision: str = "float32") -> None:
    """Writes the distances of the job's pairs, both ways."""
    if not has_integer_products() or max(job.degrees) > LARGEST:
        log.info("gram: %s", "a degree beyond the kernels'" if has_integer_products() else "this processor has no AVX2")
        gram.stage_distances(job)
        return
    if not compiling.ready():
        M, C = job.image(0).shape
        seconds = job.plan.count * M * M * (4e-9 * len(job.degrees) + 2e-11 * C)  # about, by gram
        compiling.compile_aside(patient=seconds < COMPILING)
        log.info("gram: the kernels are being compiled (%s)", compiling.folder())
        done = gram.stage_distances(job, compiling.ready)
        job = replace(job, plan=job.plan.without(done))
        if not job.plan.count:
            return
    compute(job, precision)


def compute(job: Job, precision: str) -> None:
    """`stage_distances` by the compiled kernels."""
    from musc.engines.cpu import compiled
    from musc.engines.cpu.layout import Layout

    tolerance = 0.0 if precision == "float32" else TOLERANCE
    layout = Layout(*job.grid, job.image(0).shape[1], job.degrees, has_wide_products(), None, tolerance)
    compiled.stage_distances(job, layout)


def compile_kernels() -> None:
    """Compiles every kernel by using it, and keeps the machine code for all later processes."""
    for C in (8, 300):
        tokens = torch.randn(2, 12, C, generator=torch.Generator().manual_seed(0))
        nowhere = (lambda images, slots, found: None), (lambda count: None)
        compute(Job(tokens.__getitem__, plan_pool(2), (1, 3, 5), (3, 4), *nowhere), "float32")
    compiling.finish()
