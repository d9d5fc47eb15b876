"""A procedural data set of inspection photographs: textures, objects and their flaws, drawn on demand from a seed.

Nothing is stored. An image is a function of (category, folder, number, seed, size) alone, so the same arguments give
the same bytes in every process; it does not depend on how many images the category has. A mask is found by taking the
picture twice, with and without the defect and everything else equal, and marking the pixels that differ; of a missing
or displaced part it therefore covers both where the part should be and where it is.

Pixel values come from floating-point arithmetic: another machine or NumPy may round single grey levels differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np
from PIL import Image
from scipy import ndimage

from musc.datasets.base import Category, Sample
from musc.datasets.synthetic import boards, objects, screws, textures
from musc.datasets.synthetic.defects import Defect
from musc.datasets.synthetic.shot import Shot, Surface, photograph
from musc.errors import DataError

GENERATOR_VERSION = 3
"""Part of every image's key: it is raised whenever the pixels of an image change."""


@dataclass(frozen=True)
class Product:
    """How one product is drawn, and what can go wrong with it."""

    build: Callable[[Shot, Defect | None], Surface]
    defects: tuple[str, ...]


PRODUCTS: dict[str, Product] = {
    "board": Product(boards.board, ("missing", "displaced", "solder_bridge", "scratch", "foreign_body")),
    "bottle_top": Product(objects.bottle_top, ("scratch", "dent", "print", "bent_flute", "rust")),
    "capsule": Product(objects.capsule, ("crack", "print", "poke", "scratch", "squeeze")),
    "grid": Product(textures.grid, ("bent", "broken", "glue", "foreign_wire", "rust")),
    "leather": Product(textures.leather, ("cut", "fold", "glue", "poke", "scratch")),
    "screw": Product(screws.screw, ("bent", "scratch_head", "scratch_neck", "thread", "tip")),
    "tile": Product(textures.tile, ("chip", "crack", "glue_strip", "oil", "scratch")),
    "weave": Product(textures.weave, ("cut", "foreign_fibre", "hole", "missing_thread", "pulled_thread", "stain")),
    "wood": Product(textures.wood, ("color", "dent", "hole", "scratch", "stain")),
    "screw_random": Product(screws.screw_random, ("bent", "scratch_head", "scratch_neck", "thread", "tip")),
}
HARD: tuple[str, ...] = ("screw_random",)
CATEGORIES: tuple[str, ...] = tuple(name for name in PRODUCTS if name not in HARD)


@dataclass(frozen=True)
class Photo:
    """One picture of one product. `folder` is "train/good", "test/good" or "test/DEFECT". `planted` makes the defect
    the same (kind, place, size, strength) in every picture of its folder, instead of a fresh one per number."""

    category: str
    folder: str
    number: int
    seed: int = 0
    size: int = 256
    planted: bool = False

    @property
    def key(self) -> str:
        number = f"{self.number}-planted" if self.planted else f"{self.number}"
        return f"synthetic-v{GENERATOR_VERSION}/{self.category}/{self.folder}/{number}/{self.seed}/{self.size}"

    @property
    def defect(self) -> str | None:
        kind = self.folder.split("/")[1]
        return None if kind == "good" else kind

    def pixels(self, *, defect: bool = True, noise: bool = True) -> np.ndarray:
        """The picture [3, size, size], 0 to 255, float; without its `defect` or the sensor's `noise` on request."""
        name, folder = crc32(self.category.encode()), crc32(self.folder.encode())
        shot = Shot((self.seed, name, folder, self.number), self.size)
        flaw = self._flaw(name, folder) if defect and self.defect else None
        return photograph(shot, PRODUCTS[self.category].build(shot, flaw), noise=noise)

    def _flaw(self, name: int, folder: int) -> Defect:
        assert self.defect is not None
        if self.planted:
            return Defect(self.defect, (self.seed, name, folder), extent=0.6, strength=0.7)
        # Additive recurrence with the plastic number: any run of numbers covers sizes and strengths evenly.
        start = np.random.default_rng((self.seed, name, folder)).uniform(size=2)
        extent, strength = (start + (self.number + 1) * np.array([0.7548776662, 0.5698402910])) % 1
        return Defect(self.defect, (self.seed, name, folder, self.number), float(extent), float(strength))

    def __call__(self) -> Image.Image:
        return Image.fromarray(_drawn(self))


@dataclass(frozen=True)
class Mask:
    """The pixels of `photo` that its defect changed: "L", 255 where anomalous, else 0."""

    photo: Photo

    @property
    def key(self) -> str:
        return f"{self.photo.key}/mask"

    def __call__(self) -> Image.Image:
        return Image.fromarray(_changed(self.photo))


def _kept(draw: Callable[[Photo], np.ndarray]) -> Callable[[Photo], np.ndarray]:
    """`draw`, which remembers 128 photos of at most 256 px (34 MB): a run looks at each several times, for its pixels,
    its size, copies of it, overlays."""
    remembering = lru_cache(maxsize=128)(draw)
    return lambda photo: (remembering if photo.size <= 256 else draw)(photo)


@_kept
def _drawn(photo: Photo) -> np.ndarray:
    pixels = np.clip(np.rint(photo.pixels()), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


@_kept
def _changed(photo: Photo) -> np.ndarray:
    changed = np.abs(photo.pixels(noise=False) - photo.pixels(defect=False, noise=False)).max(axis=0)
    return np.where(changed_region(changed), np.uint8(255), np.uint8(0))


def changed_region(change: np.ndarray, faint: float = 4.0, clear: float = 8.0) -> np.ndarray:
    """The region [H, W] that a person would outline, from the change of each pixel in grey levels of 255.

    Pixels that changed by more than `faint` and hang together with one that changed by more than `clear`; gaps of
    two pixels and enclosed holes, where old and new happen to look alike, are filled.
    """
    eight = np.ones((3, 3), bool)
    labels, _ = ndimage.label(change > faint, eight)
    seen = np.unique(labels[change > clear])
    region = np.isin(labels, seen[seen > 0])
    padded = np.pad(region, 2)
    return ndimage.binary_fill_holes(ndimage.binary_closing(padded, eight))[2:-2, 2:-2] | region


def category(
    name: str,
    *,
    good: int = 24,
    defects: int = 16,
    train: int = 16,
    size: int = 256,
    seed: int = 0,
    same_defect: float | None = None,
) -> Category:
    """The test images of one product (`good` normal, `defects` anomalous ones) and `train` normal images.

    The anomalous images take the product's defect kinds in turn. With `same_defect`, a fraction from 0 to 1, that
    share of the good + defects test images has one identical defect (same kind, place on the product, size and
    strength) and all others are normal: the case in which the assumption behind mutual scoring, that an anomaly
    finds few similar patches in the other images, breaks down. `size` is the side in pixels.
    Raises DataError on an unknown name or a share outside 0 to 1.
    """
    if name not in PRODUCTS:
        raise DataError(f"no synthetic category {name!r}: choose one of {', '.join((*CATEGORIES, *HARD))}.")
    kinds = sorted(PRODUCTS[name].defects)
    counts = {kind: len(range(i, defects, len(kinds))) for i, kind in enumerate(kinds)}
    if same_defect is not None:
        if not 0 <= same_defect <= 1:
            raise DataError(f"same_defect = {same_defect}: give the share of images with the defect, from 0 to 1.")
        total = good + defects
        planted = round(same_defect * total)
        counts, good = {kinds[seed % len(kinds)]: planted}, total - planted

    def sample(folder: str, number: int) -> Sample:
        kind = folder.split("/")[1]
        photo = Photo(name, folder, number, seed, size, planted=same_defect is not None and kind != "good")
        mask = None if kind == "good" else Mask(photo)
        return Sample(f"{folder}/{number:03}.png", photo, int(kind != "good"), kind, mask)

    folders = sorted({**counts, "good": good}.items())
    samples = tuple(sample(f"test/{kind}", number) for kind, count in folders for number in range(count))
    return Category("synthetic", name, samples, tuple(sample("train/good", number) for number in range(train)))
