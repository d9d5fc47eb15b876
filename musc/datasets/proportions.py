"""The network's input in the images' own proportions: one size for all images of a category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from musc.datasets.base import Sample
from musc.datasets.images import image_size
from musc.errors import DataError
from musc.sizes import Size, fitted, most_common, rows_columns, written

NAMED = 5  # images that are named in a note


def input_size(samples: Sequence[Sample], side: int, patch: int) -> tuple[Size, list[str]]:
    """The input size that most images ask for, with `side` pixels on the short side, and a note on the others.

    All images of a category share one size, since they are compared patch by patch; those of other proportions are
    squashed to it. Of images that cannot be read nothing is asked; where none can be, the size is a square.

    Example:
        >>> import numpy as np
        >>> from musc.datasets import as_category
        >>> images = as_category([np.zeros((50, 100)), np.zeros((60, 120)), np.zeros((70, 70))])
        >>> size, (note,) = input_size(images.samples, side=64, patch=16)
        >>> size, note[:63]
        ((64, 128), '1 of 3 images have other proportions than 64 x 128 pixels (rows')
    """
    sizes = sizes_of(samples)
    if not sizes:
        return side, []
    size = most_common(fitted(side, *own, patch) for own in sizes.values())
    return size, squashed(sizes, size, patch)


def sizes_of(samples: Sequence[Sample]) -> dict[str, tuple[int, int]]:
    """(width, height) in pixels by name, of the images that can be read."""
    found = {}
    for sample in samples:
        try:
            found[sample.name] = image_size(sample.image)
        except DataError:  # said when it is extracted
            continue
    return found


def squashed(sizes: Mapping[str, tuple[int, int]], to: Size, patch: int) -> list[str]:
    """A note on the images whose proportions are not those of the input size `to`; none where all have these.

    sizes: (width, height) by name.

    Example:
        >>> squashed({"a.png": (100, 50), "b.png": (70, 70)}, to=(64, 128), patch=16)[0][-39:]
        'are squashed to these: b.png (70 x 70).'
    """
    side = min(rows_columns(to))
    others = [f"{name} ({h} x {w})" for name, (w, h) in sizes.items() if fitted(side, w, h, patch) != to]
    if not others:
        return []
    than = f"other proportions than {written(to)} pixels (rows x columns)"
    if len(sizes) == 1:
        return [f"{others[0]} has {than} and is squashed to these."]
    shown = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
    return [f"{len(others)} of {len(sizes)} images have {than} and are squashed to these: {shown}."]
