"""The network's input in the images' own proportions: one size for all images of a category."""

from __future__ import annotations

from collections.abc import Sequence

from musc.datasets.base import Sample
from musc.datasets.images import image_size
from musc.errors import DataError
from musc.sizes import Size, fitted, most_common, written

NAMED = 5  # images that are named in a note


def input_size(samples: Sequence[Sample], side: int, patch: int) -> tuple[Size, list[str]]:
    """The input size that most images ask for, with `side` pixels on the short side, and a note on the others.

    All images of a category share one size, since they are compared patch by patch; those of other proportions are
    squashed to it. Of images that cannot be read nothing is asked; where none can be, the size is a square.

    Example:
        >>> import numpy as np
        >>> from musc.datasets import as_category
        >>> images = as_category([np.zeros((50, 100)), np.zeros((60, 120)), np.zeros((70, 70))])
        >>> input_size(images.samples, side=64, patch=16)
        ((64, 128), ['1 of 3 images have other proportions than 64 x 128 pixels and are squashed to these: image_002.'])
    """
    asked: dict[str, Size] = {}
    for sample in samples:
        try:
            asked[sample.name] = fitted(side, *image_size(sample.image), patch)
        except DataError:  # said when it is extracted
            continue
    if not asked:
        return side, []
    size = most_common(asked.values())
    others = [name for name, wanted in asked.items() if wanted != size]
    if not others:
        return size, []
    shown = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
    said = f"{len(others)} of {len(asked)} images have other proportions than {written(size)} pixels"
    return size, [f"{said} and are squashed to these: {shown}."]
