"""LNAMD: local neighborhood aggregation with multiple degrees (Sec. 3.1)."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

EPS = 1e-5  # of the joint LayerNorm


def square_grid(M: int, grid: tuple[int, int] | None = None) -> tuple[int, int]:
    """`grid` checked against M patches, or the square grid where none is given. Raises ValueError.

    Example:
        >>> square_grid(12, grid=(3, 4)), square_grid(9)
        ((3, 4), (3, 3))
    """
    side = math.isqrt(M)
    H, W = grid or (side, side)
    if H * W != M or H < 1 or W < 1:
        said = f"grid {H} x {W} has {H * W} patches" if grid else "that is no square number"
        raise ValueError(f"{M} patch tokens, but {said}: give grid=(rows, columns) of the patch grid.")
    return H, W


def check_degree(degree: int) -> int:
    """`degree` itself. Raises ValueError unless it is odd and positive.

    Example:
        >>> check_degree(3)
        3
    """
    if not isinstance(degree, Integral) or degree < 1 or degree % 2 == 0:
        raise ValueError(f"aggregation degree {degree!r}: give an odd whole number, such as 1, 3 or 5.")
    return degree


def check_tokens(tokens: Any, axes: str = "N M C", what: str = "patch tokens") -> None:
    """Raises ValueError, with the remedy, unless `tokens` are floats in a torch tensor with these axes, none but the
    first of them empty.

    Example:
        >>> import torch
        >>> check_tokens(torch.ones(2, 9, 4, dtype=torch.long))
        Traceback (most recent call last):
        ValueError: patch tokens of torch.int64: give floats, such as tokens.float().
    """
    wanted = f"[{', '.join(axes.split())}]"
    if not isinstance(tokens, Tensor):
        raise ValueError(f"{what} in a {type(tokens).__name__}: give a tensor {wanted}; torch.as_tensor makes one.")
    if tokens.ndim != len(axes.split()) or 0 in tokens.shape[1:]:
        raise ValueError(f"{what} of shape {tuple(tokens.shape)}: give {wanted}.")
    if not tokens.is_floating_point():
        raise ValueError(f"{what} of {tokens.dtype}: give floats, such as tokens.float().")


def layer_norm(patch_tokens: Float[Tensor, "N M C"]) -> Float[Tensor, "N M C"]:
    """Each image's stage map normalised jointly over all patches and channels (no affine parameters, eps 1e-5).

    Example:
        >>> import torch
        >>> tokens = layer_norm(3 + 2 * torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)))
        >>> round(abs(float(tokens.mean())), 4), round(float(tokens.std(correction=0)), 4)
        (0.0, 1.0)
    """
    check_tokens(patch_tokens)
    return F.layer_norm(patch_tokens, patch_tokens.shape[1:], eps=EPS)


def aggregate(
    patch_tokens: Float[Tensor, "N M C"],
    degree: int,
    *,
    grid: tuple[int, int] | None = None,
    normalize: bool = True,
) -> Float[Tensor, "N M C"]:
    """Replace every patch token by the mean of its r x r neighbourhood, of unit length.

    Sec. 3.1: F_hat^r is F_i, seen on its patch grid, under r x r average pooling with stride 1. Three things the paper
    leaves open are as in the released code: each image's map first passes a LayerNorm jointly over (C, H, W) without
    affine parameters; the border is padded with zeros that count in the mean; every aggregated token is L2-normalised.

    Args:
        patch_tokens: [N, M, C], raw tokens of one stage, patches row by row.
        degree: r, odd. r = 1 aggregates nothing (it still normalises).
        grid: (rows, columns) of the patch grid; square where not given.
        normalize: False leaves out the L2 norm.

    Returns:
        [N, M, C], unit vectors, in the input's dtype and on its device.

    Raises:
        ValueError: an even degree, or a grid that does not hold M patches.

    Example:
        >>> import torch
        >>> tokens = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))  # two images of 3 x 3 patches
        >>> aggregate(tokens, 3).shape
        torch.Size([2, 9, 4])
        >>> aggregate(tokens, 3).norm(dim=-1).allclose(torch.ones(2, 9))
        True
    """
    check_tokens(patch_tokens)
    M = patch_tokens.shape[1]
    H, _ = square_grid(M, grid)
    r = check_degree(degree)
    tokens = layer_norm(patch_tokens)
    if r > 1:
        maps = rearrange(tokens, "N (H W) C -> N C H W", H=H)
        tokens = rearrange(F.avg_pool2d(maps, r, stride=1, padding=r // 2), "N C H W -> N (H W) C")
    return F.normalize(tokens, dim=-1) if normalize else tokens
