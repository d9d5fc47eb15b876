"""Photographs of textures, cut into crops, with a defect planted in each second one: real surfaces, known defects.

The photographs are the caller's. scikit-image brings three that suit (brick, gravel, grass); this package needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from musc.datasets.base import Category, Sample
from musc.errors import DataError

CROP = 128  # pixels; a photograph gives 4 x 4 of them that do not overlap
KINDS = ("line", "spot", "foreign texture", "smear", "shade")


@dataclass(frozen=True)
class Picture:
    """A picture that is already in memory, as a data set's source."""

    key: str
    pixels: NDArray[np.uint8]

    def __call__(self) -> Image.Image:
        return Image.fromarray(self.pixels)


def plant(
    image: NDArray[np.float64], foreign: NDArray[np.float64], kind: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """One defect of a kind in KINDS on a grey `image` [S, S], 0 to 255, and its mask.

    Example:
        >>> grey = np.full((64, 64), 100.0)
        >>> changed, mask = plant(grey, grey, KINDS.index("shade"), np.random.default_rng(0))
        >>> float(changed[mask].mean().round()), bool((changed == grey)[~mask].all())
        (55.0, True)
    """
    size = len(image)
    y, x = np.mgrid[:size, :size]
    cy, cx = rng.uniform(0.25 * size, 0.75 * size, 2)
    mask = (y - cy) ** 2 + (x - cx) ** 2 < (size * rng.uniform(0.05, 0.11)) ** 2
    if kind == 0:
        canvas = Image.new("L", (size, size))
        ImageDraw.Draw(canvas).line(list(rng.uniform(0.15 * size, 0.85 * size, 4)), fill=255, width=2)
        mask = np.asarray(canvas) > 0
        changed = np.full_like(image, rng.choice([30.0, 230.0]))
    elif kind == 1:
        changed = np.full_like(image, rng.choice([25.0, 235.0]))
    elif kind == 2:
        changed = foreign - foreign.mean() + image.mean()
    elif kind == 3:
        changed = ndimage.gaussian_filter(image, 5)
    else:
        changed = image * 0.55
    return np.clip(np.where(mask, changed, image), 0, 255), mask


def texture(photographs: Mapping[str, NDArray[np.uint8]], name: str) -> Category:
    """Sixteen crops of one grey photograph, a defect planted in each second one; the others lend foreign texture.

    photographs: at least two, [H, W] each, of 4 CROP pixels or more a side. Which defect and where is drawn anew, and
    alike, from the photograph's place among them. Raises DataError where a photograph is smaller, or alone.

    Example:
        >>> grey = np.random.default_rng(0).integers(0, 255, (512, 512), dtype=np.uint8)
        >>> sand = texture({"sand": grey, "dust": grey.T}, "sand")
        >>> len(sand), sum(sample.label for sample in sand), sand.samples[1].defect
        (16, 8, 'line')
    """
    names, others = _checked(photographs, name)
    rng = np.random.default_rng(names.index(name))
    samples = []
    for number in range(16):
        row, column = divmod(number, 4)
        window = np.s_[row * CROP : (row + 1) * CROP, column * CROP : (column + 1) * CROP]
        image, mask, kind = photographs[name][window].astype(float), None, "good"
        if number % 2:
            other = photographs[others[int(rng.integers(len(others)))]][window].astype(float)
            kind = KINDS[number // 2 % len(KINDS)]
            image, changed = plant(image, other, KINDS.index(kind), rng)
            mask = Picture(f"{name}/{number}/mask", changed.astype(np.uint8) * 255)
        samples.append(Sample(f"{number:03}.png", _grey(f"{name}/{number}", image), number % 2, kind, mask))
    return Category("skimage", name, tuple(samples))


def shared(
    photographs: Mapping[str, NDArray[np.uint8]], name: str, share: float, *, seed: int = 0, alike: bool = True
) -> Category:
    """25 crops of one grey photograph; in the last `share` of them one identical defect: same kind, place, size.

    alike: False draws place, size and strength of the same kind anew for each crop. The crops are 1/5 of the
    photograph's side. Raises DataError as `texture`, and for a share outside 0 to 1.

    Example:
        >>> grey = np.random.default_rng(0).integers(0, 255, (512, 512), dtype=np.uint8)
        >>> sand = shared({"sand": grey, "dust": grey.T}, "sand", 0.4)
        >>> masks = [np.asarray(sample.mask()) for sample in sand if sample.label]
        >>> len(sand), len(masks), all((mask == masks[0]).all() for mask in masks)
        (25, 10, True)
    """
    names, others = _checked(photographs, name)
    if not 0 <= share <= 1:
        raise DataError(f"share = {share}: give a part of the images, from 0 to 1.")
    picture, place = photographs[name], (names.index(name), seed)
    side = min(picture.shape) // 5
    kind = (seed + names.index(name)) % len(KINDS)
    samples = []
    for number in range(25):
        top, left = (side * n for n in divmod(number, 5))
        image = picture[top : top + side, left : left + side].astype(float)
        if number < 25 - round(25 * share):
            key = f"{name}/{side}/{number}"
            samples.append(Sample(f"good/{number:03}.png", _grey(key, image), 0, "good"))
            continue
        rng = np.random.default_rng(place if alike else (*place, number))
        foreign = photographs[others[int(rng.integers(len(others)))]][:side, :side].astype(float)
        image, changed = plant(image, foreign, kind, rng)
        key = f"{name}/{side}/{number}/{seed}/{'alike' if alike else 'fresh'}"
        mask = Picture(f"{key}/mask", changed.astype(np.uint8) * 255)
        samples.append(Sample(f"{KINDS[kind]}/{number:03}.png", _grey(key, image), 1, KINDS[kind], mask))
    return Category("skimage", name, tuple(samples))


def _checked(photographs: Mapping[str, NDArray[np.uint8]], name: str) -> tuple[list[str], list[str]]:
    """All names, and those of the photographs that lend foreign texture."""
    names = list(photographs)
    if len(names) < 2:
        raise DataError("a foreign texture needs a second photograph: give at least two.")
    for known, picture in photographs.items():
        if picture.ndim != 2 or min(picture.shape) < 4 * CROP:
            raise DataError(f"{known} is {list(picture.shape)}: give grey photographs of {4 * CROP} pixels a side.")
    return names, [n for n in names if n != name]


def _grey(key: str, image: NDArray[np.float64]) -> Picture:
    return Picture(key, np.repeat(image.astype(np.uint8)[..., None], 3, 2))
