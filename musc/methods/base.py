"""The interface of all methods: tokens go in, patch scores and image scores come out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from musc.errors import ConfigError, DataError
from musc.features import Features, check_references
from musc.scoring.maps import anomaly_maps
from musc.sizes import Size, rows_columns


class Blur(NamedTuple):
    """A Gaussian filter over maps, in pixels. sigma 0: none. radius: where it is cut off; None: at 4 sigma."""

    sigma: float
    radius: int | None = None


NO_BLUR, USUAL_BLUR = Blur(0.0), Blur(4.0)  # the papers of one-class methods have sigma 4


@dataclass(frozen=True)
class Scores:
    """What a method says of N images.

    patches: {(rows, columns) of a patch grid: [N, M]}; of several grids, as of MuSc on Swin, the maps add up. images:
    [N] by the method's own rule; None: from the maps, the mean of the share `highest` of their pixels (0: the largest
    one). maps: [N, H, W], of methods that make their own.
    """

    patches: Mapping[tuple[int, int], Tensor]
    images: Float[Tensor, "N"] | None = None
    maps: Float[Tensor, "N H W"] | None = None
    highest: float = 0.0


@runtime_checkable
class Method(Protocol):
    """A way to score images from tokens.

    blur: of its maps. corners: whether maps are upsampled with corners aligned, as MuSc's are.
    """

    blur: ClassVar[Blur]
    corners: ClassVar[bool]

    def score(self, features: Features, references: Features | None = None) -> Scores:
        """Scores of the images of `features`; references: normal images of the same product."""
        ...


def need_references(name: str, features: Features, references: Features | None, least: int = 1) -> Features:
    """`references`. Raises ConfigError where there are fewer than `least` or of another network, DataError where an
    image is in both."""
    if references is None or len(references) < least:
        few = "none are given" if references is None else f"there are {len(references)}"
        raise ConfigError(
            f"{name} compares with normal reference images, at least {least}, and {few}: give some "
            "(--reference-images or --shots), or choose a method that needs none."
        )
    check_references(features, references)
    return references


def need_pool(name: str, features: Features) -> None:
    """Raises DataError for a single image, where a method compares images with each other."""
    if len(features) < 2:
        raise DataError(
            f"one image alone cannot be scored by {name} without references: it compares images of one product with "
            "each other. Add more images of it, or give normal reference images."
        )


def mean_of_highest(scores: Float[Tensor, "N M"], share: float = 0.01) -> Float[Tensor, "N"]:
    """Mean of the highest `share` of each row, floor(share M) values and at least one.

    Example:
        >>> mean_of_highest(torch.tensor([[1.0, 5.0, 3.0, 0.0]]), share=0.5)
        tensor([4.])
    """
    k = max(1, math.floor(share * scores.shape[1] + 1e-9))
    return scores.topk(k, dim=1).values.mean(dim=1)


def method_maps(method: Method, scores: Scores, size: Size) -> Float[Tensor, "N H W"]:
    """Anomaly maps of `size` pixels: patch scores upsampled bilinearly, then the method's blur."""
    if scores.maps is not None:
        return scores.maps
    if method.corners:
        maps = anomaly_maps(dict(scores.patches), size)
    else:
        parts = [
            F.interpolate(s.float().cpu().reshape(len(s), 1, *grid), rows_columns(size), mode="bilinear")[:, 0]
            for grid, s in scores.patches.items()
        ]
        maps = torch.stack(parts).sum(dim=0)
    return blurred(maps, *method.blur) if method.blur.sigma else maps


def image_scores(scores: Scores, maps: Float[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """The method's image scores, where it takes them from its maps, from these.

    Example:
        >>> image_scores(Scores({}), torch.tensor([[[1.0, 5.0], [3.0, 0.0]]]))
        tensor([5.])
    """
    if scores.images is not None:
        return scores.images.float().cpu()
    return mean_of_highest(maps.flatten(1), scores.highest)


def blurred(maps: Float[Tensor, "N H W"], sigma: float, radius: int | None = None) -> Float[Tensor, "N H W"]:
    """A Gaussian filter of standard deviation `sigma` pixels, the border mirrored; see `Blur`.

    Example:
        >>> from scipy.ndimage import gaussian_filter
        >>> maps = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0))
        >>> blurred(maps, 1.0)[0].allclose(torch.from_numpy(gaussian_filter(maps[0].numpy(), 1.0)), atol=1e-6)
        True
    """
    from scipy.ndimage import gaussian_filter

    return torch.stack([torch.from_numpy(gaussian_filter(m.float().cpu().numpy(), sigma, radius=radius)) for m in maps])
