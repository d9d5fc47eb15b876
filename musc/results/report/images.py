"""The pictures that a report shows, beside it: of every image a thumbnail, a copy, its map in grey, and its true mask.

They belong to scores and maps and not to a threshold: a map's grey is its score in 256 steps, and the page itself
colours it, cuts it, and draws the line around what is above.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from musc.datasets.base import Sample
from musc.datasets.images import image_size, read_image, read_mask
from musc.datasets.values import as_read
from musc.errors import DataError
from musc.results import MuScResult
from musc.results.folders import legal_names
from musc.results.pictures import shared_scale
from musc.saving import whole

FOLDER = "report"
VERSION = 2  # of what is written here
LEVELS = 256  # steps of the colour scale
THUMBNAIL, COPY = 320, 2048  # longest sides in pixels
BLANK = (238, 238, 238)  # in place of an image that is gone


@dataclass
class Shown:
    """Where the pictures of each image lie, from the result's folder, and what was read of it on the way.

    sizes: (width, height) in pixels of the image itself. scale: the scores at the ends of the maps' grey. truths: ""
    where no mask is known. overlap, alarms: [LEVELS], or empty without masks: at the threshold of that level, the mean
    share of a true region that is above it (what PRO averages), and the share of the normal pixels that is.
    """

    thumbnails: list[str]
    copies: list[str]
    maps: list[str]
    truths: list[str]
    scale: tuple[float, float]
    sizes: list[tuple[int, int]] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    alarms: list[float] = field(default_factory=list)

    @classmethod
    def at(cls, pictures: Sequence[str], maps: Sequence[str], scale: Normalize) -> Shown:
        """The places of images and maps of these legal names (.jpg and .png), below FOLDER."""

        def below(kind: str, names: Sequence[str]) -> list[str]:
            return [f"{FOLDER}/{kind}/{name}" for name in names]

        images = below("thumbnails", pictures), below("images", pictures)
        return cls(*images, below("maps", maps), below("truth", maps), scale_ends(scale))


def save_images(result: MuScResult, samples: Sequence[Sample], folder: Path) -> Shown:
    """Write the pictures below `folder`/report, or find them there from an earlier report of the same scores.

    An image that is gone (deleted since it was scored, or not among `samples`) is shown as a grey field. Raises
    OSError.
    """
    place, of = folder / FOLDER, _digest(result)
    if (found := _written_before(place, of, folder)) is not None:
        return found
    shutil.rmtree(place, ignore_errors=True)
    pictures, maps = legal_names(result.paths, ".jpg"), legal_names(result.paths, ".png")
    by_name = {sample.name: sample for sample in as_read(samples, result.config.full_scale)}
    scale, overlaps = shared_scale(result), Overlaps()
    shown = Shown.at(pictures, maps, scale)
    for i, (name, anomaly_map) in enumerate(zip(result.paths, result.anomaly_maps, strict=True)):
        sample, drawn = by_name.get(name), levels(anomaly_map, scale)
        copy, size = copy_of(sample, drawn.shape)
        shown.sizes.append(size)
        save_image(copy, drawn, folder, (shown.copies[i], shown.thumbnails[i], shown.maps[i]))
        truth = _truth(sample, drawn.shape)
        if truth is not None:
            overlaps.add(drawn, truth)
        if truth is not None and truth.any():
            _write(Image.fromarray(truth), folder / shown.truths[i])
        else:
            shown.truths[i] = ""
    shown.overlap, shown.alarms = overlaps.table()
    with whole(place / "pictures.json") as path:
        path.write_text(json.dumps({"of": of, "shown": asdict(shown)}) + "\n", encoding="utf-8")
    return shown


def save_image(copy: Image.Image, drawn: NDArray[np.uint8], folder: Path, places: tuple[str, str, str]) -> None:
    """Write the copy of one image, its thumbnail and its map in `levels` to their places. Raises OSError."""
    _write(copy, folder / places[0], quality=88)
    small = copy.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    _write(small, folder / places[1], quality=82)
    _write(Image.fromarray(drawn), folder / places[2])


def levels(anomaly_map: NDArray[np.float32], scale: Normalize) -> NDArray[np.uint8]:
    """The map [H, W] in LEVELS steps of the scale, rounded up: a score that reaches a threshold reaches its `level`.

    Example:
        >>> levels(np.float32([[0, 0.5, 1]]), Normalize(0, 1))
        array([[  0, 128, 255]], dtype=uint8)
    """
    low, high = scale_ends(scale)
    share = (np.asarray(anomaly_map, dtype=np.float64) - low) / (high - low)
    return np.ceil((LEVELS - 1) * share.clip(0, 1)).astype(np.uint8)


def scale_ends(scale: Normalize) -> tuple[float, float]:
    """The scores at the two ends of a colour scale."""
    assert scale.vmin is not None  # shared_scale gives both
    assert scale.vmax is not None
    return float(scale.vmin), float(scale.vmax)


class Overlaps:
    """Counts, image by image, how much of the true regions and of the normal pixels lies above each level."""

    def __init__(self) -> None:
        self.shares = np.zeros(LEVELS)  # summed over the regions
        self.regions = 0
        self.normal = np.zeros(LEVELS, dtype=np.int64)  # pixels of each level

    def add(self, drawn: NDArray[np.uint8], truth: NDArray[np.bool_]) -> None:
        """One image: its levels [H, W] and its true mask [H, W]."""
        labels, count = ndimage.label(truth, structure=np.ones((3, 3)))
        for region in range(1, count + 1):
            self.shares += above(np.bincount(drawn[labels == region], minlength=LEVELS))
        self.regions += count
        self.normal += np.bincount(drawn[~truth], minlength=LEVELS)

    def table(self) -> tuple[list[float], list[float]]:
        """Means over the regions, and shares of the normal pixels, each [LEVELS]; empty without a true region."""
        if not self.regions or not self.normal.any():
            return [], []
        rows = (self.shares / self.regions, above(self.normal))
        return tuple([round(float(v), 5) for v in row] for row in rows)  # type: ignore[return-value]


def above(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counts per level to the share that is at or above each.

    Example:
        >>> above(np.array([1, 0, 3]))
        array([1.  , 0.75, 0.75])
    """
    return counts[::-1].cumsum()[::-1] / counts.sum()


def copy_of(sample: Sample | None, shape: tuple[int, ...]) -> tuple[Image.Image, tuple[int, int]]:
    """The picture, at most COPY pixels long, and its own size; of an image that is gone a field of the map's size."""
    if sample is not None:
        try:
            picture = read_image(sample.image)
        except DataError:
            pass
        else:
            size = picture.size
            picture.thumbnail((COPY, COPY))
            return picture, size
    size = (shape[1], shape[0])
    return Image.new("RGB", size, BLANK), size


def _truth(sample: Sample | None, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """The true mask at the map's size; None where it is not known."""
    if sample is None or sample.label is None or (sample.label and sample.mask is None):
        return None
    if sample.mask is None:
        return np.zeros(shape, dtype=bool)
    try:
        grey = read_mask(sample.mask, image_size(sample.image), sample.name)
    except DataError:  # it was named when the metrics were computed
        return None
    return np.asarray(Image.fromarray(grey).resize((shape[1], shape[0]), Image.Resampling.NEAREST)) > 127.5


def _write(picture: Image.Image, path: Path, **options: int) -> None:
    with whole(path) as partial:
        picture.save(partial, format="PNG" if path.suffix == ".png" else "JPEG", **options)


def _digest(result: MuScResult) -> str:
    digest = hashlib.blake2b(f"{VERSION} {result.fingerprint}".encode(), digest_size=16)
    digest.update(result.raw_image_scores.tobytes() + "\0".join(result.paths).encode(errors="surrogatepass"))
    return digest.hexdigest()


def _written_before(place: Path, of: str, folder: Path) -> Shown | None:
    """The pictures that lie there, if they are all there and of the same scores."""
    try:
        note = json.loads((place / "pictures.json").read_text(encoding="utf-8"))
        if note["of"] != of:
            return None
        of_images = {"sizes": [(w, h) for w, h in note["shown"]["sizes"]], "scale": tuple(note["shown"]["scale"])}
        shown = Shown(**{**note["shown"], **of_images})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    files = [*shown.thumbnails, *shown.copies, *shown.maps, *filter(None, shown.truths)]
    return shown if all((folder / file).is_file() for file in files) else None
