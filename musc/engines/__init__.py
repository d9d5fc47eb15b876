"""How Eq. 1 is computed, and nothing else: the distance of every patch to the nearest patch of other images.

`compare` chooses the engine that fits the device and the settings; all of them give the same distances.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from musc import lnamd
from musc.engines import blocked, gpu, windowed
from musc.engines.pairs import Job, Plan
from musc.errors import ConfigError

log = logging.getLogger(__name__)  # says which way was taken, and why

LARGEST = 1e15  # of a token: the sum of the squares of an image's stays below what float32 holds
PRECISIONS = ("float32", "bfloat16", "float16")


def compare(
    image: Callable[[int], Tensor],
    plan: Plan,
    degrees: Sequence[int],
    grid: tuple[int, int] | None,
    out: Tensor,
    precision: str,
    block: int | None,
    position_window: float,
    progress: bool = False,
    new: int | None = None,
) -> None:
    """Fills out [D, N, J, M] by the engine that fits, which it logs; image(p): raw tokens of pool image p.

    Raises ValueError where a token of the first `new` images is not finite (None: of all; others are known to be).
    """
    check_all(image, plan.P if new is None else new, plan.N)
    first = image(0)
    rows, cols = lnamd.square_grid(len(first), grid)
    exact = first.dtype == torch.float64

    # numpy's view of it, where there is one: torch would wake threads of its own for each write
    plain = out.numpy() if out.device.type == "cpu" and out.dtype != torch.bfloat16 else None

    def write(images: list[int], slots: list[int], distances: Tensor | np.ndarray) -> None:
        if plain is not None:
            plain[:, images, slots] = distances
        else:
            out[:, images, slots] = torch.as_tensor(distances).to(out.device, out.dtype)

    with tqdm(total=plan.count, desc="pairs", unit="pair", disable=None if progress else True) as bar:
        job = Job(image, plan, tuple(degrees), (rows, cols), write, bar.update, block)
        if position_window < max(rows, cols) - 1:
            log.info("windowed: patches meet those near their own place only")
            blocked.stage_distances(job, windowed.within((rows, cols), position_window))
        elif first.device.type == "cpu" and not exact:
            from musc.engines import cpu

            cpu.stage_distances(job, precision)
        elif not exact and gpu.available(first.device, (rows, cols), first.shape[1], tuple(degrees)):
            gpu.stage_distances(job, out)
        else:
            log.info("blocked: %s on %s", first.dtype, first.device)
            blocked.stage_distances(job)


def check_all(image: Callable[[int], Tensor], P: int, N: int) -> None:
    """`check_finite` of the first P images: a GPU is waited for once, not for each."""
    if not P:
        return
    low, high = (torch.stack(of) for of in zip(*(torch.aminmax(image(p)) for p in range(P)), strict=True))
    if not ((low > -LARGEST) & (high < LARGEST)).all():
        for p in range(P):
            check_finite(image(p), p, N)


def check_finite(tokens: Tensor, p: int, N: int) -> None:
    """Raises ValueError unless every number of pool image p's tokens is finite, and squares of it are; from N on images
    are references."""
    low, high = torch.aminmax(tokens)  # NaN where one is
    if not (low > -LARGEST and high < LARGEST):
        name = f"image {p}" if p < N else f"reference image {p - N}"
        wrong = (~torch.isfinite(tokens)).any(dim=1).nonzero()[:, 0].tolist()
        if not wrong:
            raise ValueError(f"{name}: patch tokens from {low:g} to {high:g}, whose squares overflow: rescale them.")
        raise ValueError(
            f"{name}: {len(wrong)} patch tokens hold NaN or infinity, the first at patch {wrong[0]}. Extract its "
            "features in float32, or leave the image out."
        )


def memory_map(path: Path | str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
    """An array on disk for `stage_distances` to write into: a tensor of `shape` over a new file of just its size.

    Raises ConfigError where the file system has less room than that, before anything is written.
    """
    path = Path(path)
    size = math.prod(shape) * dtype.itemsize
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise ConfigError(
            f"{path}: distances {tuple(shape)} need {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: choose "
            "another folder, half precision, or fewer images, degrees or stages."
        )
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype).reshape(tuple(shape))


def check_stages(stages: Sequence[Tensor], references: Sequence[Tensor] | None) -> None:
    """Raises ValueError unless there are patch tokens [N, M, C] of at least one stage, of the same N and M in all, and
    references for each, if any."""
    if isinstance(stages, Tensor) or not stages:
        raise ValueError("no stages: give a list with the patch tokens of at least one.")
    for tokens in stages:
        lnamd.check_tokens(tokens)
    if len({tokens.shape[:2] for tokens in stages}) > 1:
        raise ValueError(f"stages of unequal shapes {[tuple(t.shape) for t in stages]}: same images, same patches.")
    if references is not None and len(references) != len(stages):
        raise ValueError(f"{len(stages)} stages, but references of {len(references)}: give the tokens of each.")


def check_stage(
    tokens: Tensor, degrees: Sequence[int], references: Tensor | None, precision: str, window: float, block: int | None
) -> None:
    """Raises ValueError unless tokens are [N, M, C], the settings exist, and references have the same patches."""
    lnamd.check_tokens(tokens)
    check_settings(degrees, precision, block)
    windowed.check_window(window)
    if references is not None and references.shape[1:] != tokens.shape[1:]:
        raise ValueError(
            f"references {tuple(references.shape)} but patch tokens {tuple(tokens.shape)}: same patches and channels."
        )


def check_settings(degrees: Sequence[int], precision: str, block: int | None = None) -> None:
    """Raises ValueError unless the degrees are odd, at least one, the precision exists, and a block holds an image."""
    if block is not None and block < 1:
        raise ValueError(f"block = {block}: give a number of images from 1.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}.")
    if not isinstance(degrees, Sequence):
        raise ValueError(f"degrees = {degrees!r}: give several in a row, such as (1, 3, 5).")
    if not degrees:
        raise ValueError("no degrees: give at least one, such as 1.")
    for degree in degrees:
        lnamd.check_degree(degree)
