"""Eq. 2: many distances per patch become one score."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def interval_bounds(J: int, interval: tuple[float, float] = (0.0, 0.3)) -> tuple[int, int]:
    """Ranks [low, high) of J sorted distances that `interval` keeps: floor(Y J) and floor(X J), at least one of them.

    The released code's floor leaves nothing for N <= 4 (NaN scores); here one distance always stays.
    """
    Y, X = interval
    if not 0 <= Y < X <= 1:
        raise ValueError(f"interval {interval}: give two fractions, 0 <= low < high <= 1; the paper's is (0, 0.3).")
    if J < 1:
        raise ValueError("no distances to average: an image needs at least one other image to be scored by.")
    # 0.3 * 10 and 0.29 * 100 are just below a whole number in binary: a hair is added before the floor.
    low, high = (math.floor(x * J + 1e-9 * J) for x in (Y, X))
    low = min(low, J - 1)
    return low, max(high, low + 1)


def interval_average(
    distances: Float[Tensor, "N J M"], interval: tuple[float, float] = (0.0, 0.3), reduction: str = "mean"
) -> Float[Tensor, "N M"]:
    """Average the smallest share of each patch's distances to the other images.

    Eq. 2 with K = floor(0.3 J): a_bar = (1/K) sum of the K smallest distances. An interval (Y, X) first drops the
    floor(Y J) smallest (Tab. 10); `reduction` takes their mean, minimum or maximum (Tab. 4).

    Args:
        distances: [N, J, M], of each patch to the nearest patch of each of J images.
        interval: (Y, X), fractions of J.
        reduction: "mean", "min" or "max" over the kept distances.

    Returns:
        [N, M], in the unit of the distances.

    Raises:
        ValueError: an interval or a reduction that does not exist, or J = 0.

    Differs from the released code where floor(0.3 J) = 0 (N <= 4): there it averages nothing and gives NaN, here it
    takes the smallest distance.
    """
    J = distances.shape[1]
    low, high = interval_bounds(J, interval)
    if reduction not in ("mean", "min", "max"):
        raise ValueError(f"reduction {reduction!r}: choose mean, min or max.")
    if J == 1:
        return distances[:, 0].clone()
    if reduction == "min":
        return distances.kthvalue(low + 1, dim=1).values if low else distances.amin(dim=1)
    if reduction == "max":
        return distances.kthvalue(high, dim=1).values if high < J else distances.amax(dim=1)
    if low == 0 and high == J:
        return distances.mean(dim=1)
    if distances.device.type == "cpu" and distances.dtype != torch.bfloat16 and not distances.requires_grad:
        # half the time of topk, and it wakes no threads for a few numbers
        kept = torch.from_numpy(np.partition(distances.numpy(), sorted({low, high - 1}), axis=1)[:, low:high])
    else:
        kept = torch.topk(distances, high, dim=1, largest=False, sorted=low > 0).values[:, low:]
    return kept.mean(dim=1)  # of [N, high - low, M]
