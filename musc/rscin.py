"""RsCIN: re-scoring with constrained image-level neighborhood (Sec. 3.3, Eq. 4-5, App. A.1.2).

Stands alone: it needs the image scores of any method and one class token per image, nothing else of this package.
RsCon of MuSc-V2 (arXiv 2511.10047) is the same with another token of the image, its most anomalous patch's:
`rescore(image_scores, salient_tokens(patch_scores, tokens), windows=(7,))`. Its windows are {1, 7}, of which k = 1 is
our term "+ C". No class token is needed: it works for Swin too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def minmax(image_scores: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Image scores scaled to [0, 1] over the category; equal scores all become 0.

    The released code does this before Eq. 5, and the paper does not mention it. It changes no ranking metric.

    Example:
        >>> minmax(torch.tensor([1.0, 3.0, 5.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    if not (isinstance(image_scores, Tensor) and image_scores.ndim == 1 and len(image_scores)):
        what = tuple(image_scores.shape) if isinstance(image_scores, Tensor) else type(image_scores).__name__
        raise ValueError(f"image scores {what}: give a tensor [N] of at least one.")
    scores = image_scores if image_scores.is_floating_point() else image_scores.float()
    low, high = scores.min(), scores.max()
    if not torch.isfinite(high - low):
        raise ValueError("image scores hold NaN or infinity, or overflow: leave those images out first.")
    return (scores - low) / (high - low) if high > low else torch.zeros_like(scores)


def rescore(
    image_scores: Float[Tensor, "N"],
    class_tokens: Float[Tensor, "N D"],
    windows: Sequence[float] = (2, 3),
) -> Float[Tensor, "N"]:
    """Smooth each image's score over the images whose class tokens are most similar to its own.

    Eq. 4-5 with W = F F^T, the window mask M_k (row i marks the k nearest neighbours of image i) and D the row sums
    of M_k * W:  C_hat = (sum_k D^-1 (M_k * W) C + C) / (K + 1).  The neighbours of an image include the image itself,
    so the term "+ C" is the window k = 1, and windows = (1,) returns the min-max scores unchanged.

    Args:
        image_scores: [N], any scale; min-max normalised here first (see `minmax`).
        class_tokens: [N, D]. Similarity is their plain dot product, as in the paper: L2-normalise them for the cosine.
        windows: the k of each window, counting the image itself; `math.inf` takes all N images. The paper uses (2, 3)
            on MVTec AD and BTAD and (8, 9) on VisA. An empty sequence leaves the min-max scores as they are.

    Returns:
        [N], unitless, in the scores' dtype (float32 of whole numbers) and on their device. Values stay in [0, 1] where
        no similarity is negative.

    Raises:
        ValueError: lengths differ, a value is not finite, a window is below 1 or above N, or the kept similarities of
            an image do not sum to a positive number (no weighted mean exists then).

    Differs from the released code where tokens are not unit vectors (DINO, DINOv2): there an image's largest dot
    product may be with another image, and the released code's window then leaves the image itself out. Here the image
    is always its own first neighbour, as "+ C" and Eq. 7 say. Similarities are summed in float64, so that neighbours
    do not depend on the device.

    Example:
        >>> tokens = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # 0 and 1 are alike, and 2 and 3
        >>> rescore(torch.tensor([0.0, 0.2, 0.6, 1.0]), tokens, windows=(2,))
        tensor([0.0500, 0.1500, 0.7000, 0.9000])
    """
    for tensor, ndim in ((image_scores, 1), (class_tokens, 2)):
        if not isinstance(tensor, Tensor) or tensor.ndim != ndim:
            what = f"of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"in a {type(tensor).__name__}"
            raise ValueError(f"values {what}: give tensors, image scores [N] and class tokens [N, D].")
    N = len(image_scores)
    if N == 0 or len(class_tokens) != N:
        raise ValueError(
            f"{N} image scores but {len(class_tokens)} class tokens: give one token per score, at least one."
        )
    if not (torch.isfinite(image_scores).all() and torch.isfinite(class_tokens).all()):
        raise ValueError("image scores or class tokens hold NaN or infinity: leave those images out first.")
    if not isinstance(windows, Sequence) or isinstance(windows, str):
        raise ValueError(f"windows = {windows!r}: give several in a row, such as (2, 3).")
    for k in windows:
        if not (k == math.inf or (1 <= k <= N and k == int(k))):
            raise ValueError(
                f"window {k}: give whole numbers from 1 (the image itself) to N = {N}, or inf for all images."
            )

    scores = minmax(image_scores.double())  # C: [N]
    tokens = class_tokens.double()
    similarity = tokens @ tokens.T  # W: [N, N]
    if not torch.isfinite(similarity).all():
        raise ValueError("products of class tokens overflow: L2-normalise the class tokens.")
    # Self first, whatever the ties; then by falling similarity, and by index where that is equal.
    order = similarity.clone().fill_diagonal_(math.inf).argsort(dim=1, descending=True, stable=True)

    smoothed = scores.clone()  # the term "+ C"
    for k in windows:
        nearest = order[:, : N if k == math.inf else int(k)]  # N_k(I_i): [N, k]
        weights = similarity.gather(1, nearest)  # M_k * W: [N, k]
        total = weights.sum(dim=1)  # D: [N]
        if (total <= 0).any():
            i = int(total.argmin())
            raise ValueError(
                f"the {nearest.shape[1]} nearest similarities of image {i} sum to {total[i]:.3g}: a weighted mean "
                "needs a positive sum. L2-normalise the class tokens, or use smaller windows."
            )
        smoothed += (weights * scores[nearest]).sum(dim=1) / total
    smoothed /= len(windows) + 1
    return smoothed.to(image_scores.dtype) if image_scores.is_floating_point() else smoothed.float()


def salient_tokens(patch_scores: Float[Tensor, "N M"], tokens: Float[Tensor, "_ _ C"]) -> Float[Tensor, "N C"]:
    """The token of each image's highest-scoring patch, of unit length: what RsCon puts in the class token's place.

    s_i = Z_i^m / |Z_i^m| with m = argmax of a_i (the first of equal ones).

    Args:
        patch_scores: [N, M], Eq. 3.
        tokens: [N, M, C], aggregated tokens of one stage on the same patches; in MuSc-V2 those of SNAMD, of the
            second-to-last stage that is used.

    Returns:
        [N, C], unit vectors, in the tokens' dtype.

    Raises:
        ValueError: other images or patches in one than in the other.

    Example:
        >>> tokens = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]])
        >>> salient_tokens(torch.tensor([[0.9, 0.1], [0.2, 0.3]]), tokens)
        tensor([[0.6000, 0.8000],
                [0.0000, 1.0000]])
    """
    if tokens.shape[:2] != patch_scores.shape or 0 in tokens.shape[1:]:
        raise ValueError(f"patch scores {tuple(patch_scores.shape)} but tokens {tuple(tokens.shape)}: same patches.")
    rows = torch.arange(len(tokens), device=tokens.device)
    return F.normalize(tokens[rows, patch_scores.argmax(dim=1).to(tokens.device)], dim=-1)
