"""How Eq. 1 is computed, and nothing else: the distance of every patch to the nearest patch of other images.

`compare` chooses the engine that fits the device and the settings; all of them give the same distances.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from musc import lnamd
from musc.engines import blocked, gpu, windowed
from musc.engines.pairs import Plan
from musc.errors import ConfigError

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
) -> None:
    """Fills out [D, N, J, M] by the engine that fits; image(p): raw tokens of pool image p."""
    first = image(0)
    rows, cols = lnamd.square_grid(len(first), grid)
    exact = first.dtype == torch.float64

    def write(i: int, slot: int, distances: Tensor) -> None:
        out[:, i, slot] = distances

    with tqdm(total=len(plan.pairs()), desc="pairs", unit="pair", disable=None if progress else True) as bar:
        arguments = (image, plan, tuple(degrees), (rows, cols), block, write, bar.update)
        if position_window < max(rows, cols) - 1:
            blocked.stage_distances(*arguments, nearest=windowed.within((rows, cols), position_window))
        elif first.device.type == "cpu" and not exact:
            from musc.engines import cpu

            cpu.stage_distances(*arguments, precision=precision)
        elif not exact and gpu.available(first.device, (rows, cols), first.shape[1], tuple(degrees)):
            gpu.stage_distances(image, plan, tuple(degrees), (rows, cols), block, out, bar.update)
        else:
            blocked.stage_distances(*arguments)


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


def check_settings(degrees: Sequence[int], precision: str) -> None:
    """Raises ValueError unless the degrees are odd, at least one, and the precision exists."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}.")
    if not degrees:
        raise ValueError("no degrees: give at least one, such as 1.")
    for degree in degrees:
        lnamd.check_degree(degree)
