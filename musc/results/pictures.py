"""Pictures of a result beside it: colour overlays on one shared scale with their legend, masks, and an overview sheet.

They belong to one result and one threshold: what was made for another is made anew, and what is of no image goes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from musc.datasets.base import Sample
from musc.datasets.images import image_size, read_image
from musc.datasets.values import as_read
from musc.errors import DataError, ResultError, cannot_write
from musc.results import MuScResult
from musc.results.folders import legal_names
from musc.saving import whole
from musc.sources import meaning

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable

CMAP = "inferno"  # rises evenly in lightness: readable in grey and by colour-blind eyes
CONTOUR = (0, 229, 255)  # cyan: in no part of inferno, and apart from grey
OPACITY = 0.7  # of the most anomalous pixel; a normal pixel shows the image itself
LONGEST_SIDE = 768  # of a saved overlay, in pixels
LEGEND = "legend"  # no image has this name


def save_pictures(result: MuScResult, samples: Sequence[Sample], folder: Path) -> dict[str, str]:
    """Write the pictures of a result into its folder: overview.png, overlays/NAME.png and masks/NAME.png per image.

    An overlay is at most LONGEST_SIDE pixels long and, with a threshold, outlines what it marks; a mask has the image's
    own size, and is there only with a threshold. Pictures that an interrupted run left are kept where they belong to
    the same result and threshold.

    Returns:
        NAME of every image, by its name in `result.paths`: contained, unique and legal on every system.

    Raises:
        ResultError: the folder cannot be written.
    """
    names = dict(zip(result.paths, legal_names([LEGEND, *result.paths], ".png")[1:], strict=True))
    by_name = {sample.name: sample for sample in as_read(samples, result.config.full_scale)}
    scale = shared_scale(result)

    def draw_overlay(name: str, anomaly_map: NDArray[np.float32]) -> Image.Image:
        picture = overlay(_thumbnail(by_name[name]), anomaly_map, scale)
        if result.threshold is not None:
            picture = contour(picture, binary_mask(anomaly_map, result.threshold.value, picture.size))
        return picture

    def draw_mask(name: str, anomaly_map: NDArray[np.float32]) -> Image.Image:
        assert result.threshold is not None
        size = _size(by_name[name], anomaly_map)
        return Image.fromarray(binary_mask(anomaly_map, result.threshold.value, size))

    try:
        _only_of_this(result, names, folder)
        if not (folder / "overview.png").exists():
            with whole(folder / "overview.png") as path:
                overview(result, samples).savefig(path, dpi=110, format="png")
        legend_path = folder / "overlays" / f"{LEGEND}.png"
        if not legend_path.exists():
            with whole(legend_path) as path:
                legend(scale).savefig(path, dpi=120, format="png")
        kinds = {"overlays": draw_overlay} | ({"masks": draw_mask} if result.threshold is not None else {})
        for name, anomaly_map in zip(result.paths, result.anomaly_maps, strict=True):
            for kind, draw in kinds.items():
                if not (folder / kind / names[name]).exists():
                    with whole(folder / kind / names[name]) as path:
                        draw(name, anomaly_map).save(path, format="png")
    except OSError as error:
        raise ResultError(cannot_write(f"pictures in {folder}", error)) from error
    return names


def _only_of_this(result: MuScResult, names: dict[str, str], folder: Path) -> None:
    """Removes pictures that are not of this result with this threshold, and notes whose those to come are."""
    digest = hashlib.blake2b(meaning(Path(__file__)).encode(), digest_size=16)
    digest.update(f"{result.fingerprint} {result.threshold}".encode() + result.raw_image_scores.tobytes())
    wanted = {"of": digest.hexdigest(), "pictures": names}
    note = folder / "pictures.json"
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != json.loads(json.dumps(wanted)):
        note.unlink(missing_ok=True)  # first: without it nothing that is there counts
        (folder / "overview.png").unlink(missing_ok=True)
        for kind in ("overlays", "masks"):
            shutil.rmtree(folder / kind, ignore_errors=True)
        with whole(note) as path:
            path.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


def shared_scale(result: MuScResult) -> Normalize:
    """One colour scale for all maps of a result: from the median pixel to the largest.

    More than half of all pixels are normal, so the median (inside of a region of interest) is where "nothing to see"
    lies.
    """
    sample = np.asarray(result.anomaly_maps[:, ::4, ::4])
    if result.region is not None:  # outside of which maps are 0
        sample = sample[np.broadcast_to(result.region[:, ::4, ::4], sample.shape)]
    low, high = float(np.median(sample)), float(result.raw_image_scores.max())
    if not np.isfinite(low):
        raise ResultError(f"the anomaly maps of {result.category} hold NaN or infinity: run it again.")
    return Normalize(low, max(high, low + 1e-6), clip=True)


def overlay(image: Image.Image, anomaly_map: NDArray[np.float32], scale: Normalize) -> Image.Image:
    """The anomaly map over its image: the higher the score, the brighter and the more opaque the colour.

    The map is stretched to the image's own shape (it was computed on the squashed square).
    """
    values = Image.fromarray(np.asarray(scale(anomaly_map), dtype=np.float32)).resize(
        image.size, Image.Resampling.BILINEAR
    )
    strength = np.asarray(values)
    colour = matplotlib.colormaps[CMAP](strength)[..., :3]
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] / 255
    alpha = OPACITY * np.sqrt(strength)[..., None]
    mixed = (1 - alpha) * np.repeat(grey, 3, axis=2) + alpha * colour
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def legend(scale: Normalize) -> Figure:
    """The colour bar that belongs to every overlay of a result."""
    figure = Figure(figsize=(4.5, 0.9), layout="constrained")
    _colorbar(figure, scale, figure.subplots(), "anomaly score (distance between unit vectors)")
    return figure


def _colorbar(figure: Figure, scale: Normalize, axes: object, label: str) -> None:
    mappable: ScalarMappable = matplotlib.cm.ScalarMappable(scale, CMAP)
    figure.colorbar(mappable, cax=axes, orientation="horizontal", label=label)  # type: ignore[arg-type]


def binary_mask(anomaly_map: NDArray[np.float32], threshold: float, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose score reaches the threshold, [H, W] for size = (W, H): the map is stretched, then cut.

    Stretching lowers peaks a little. Where it would lose all that the map itself marks, the map is cut first.

    Example:
        >>> binary_mask(np.array([[0.0, 1.0]], dtype=np.float32), threshold=0.5, size=(2, 1))
        array([[False,  True]])
    """
    values = np.asarray(anomaly_map, dtype=np.float32)
    cut = np.float64(threshold)  # compared in float64, as the decisions are
    mask = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)) >= cut
    marked = values >= cut
    if marked.any() and not mask.any():
        height, width = marked.shape
        rows, columns = np.nonzero(marked)
        mask[(2 * rows + 1) * size[1] // (2 * height), (2 * columns + 1) * size[0] // (2 * width)] = True
    return mask


def contour(picture: Image.Image, mask: NDArray[np.bool_], width: int = 2) -> Image.Image:
    """The picture with a line around each region of the mask, `width` pixels wide and outside of it."""
    around = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=width) & ~mask if mask.any() else mask
    pixels = np.array(picture.convert("RGB"))
    pixels[around] = CONTOUR
    return Image.fromarray(pixels)


def _size(sample: Sample, anomaly_map: NDArray[np.float32]) -> tuple[int, int]:
    try:
        return image_size(sample.image)
    except DataError:  # deleted since it was scored
        return anomaly_map.shape[1], anomaly_map.shape[0]


def _thumbnail(sample: Sample, side: int = LONGEST_SIDE) -> Image.Image:
    try:
        image = read_image(sample.image)
    except DataError:  # deleted since it was scored
        return Image.new("RGB", (256, 256), "white")
    image.thumbnail((side, side))
    return image


def overview(result: MuScResult, samples: Sequence[Sample], columns: int = 8) -> Figure:
    """The most anomalous and the most normal images of a result, with their maps, in the order of their scores."""
    by_name = {sample.name: sample for sample in as_read(samples, result.config.full_scale)}
    order = np.argsort(-result.image_scores, kind="stable")
    columns = min(columns, len(order))
    top = columns if len(order) <= columns else -(-columns // 2)
    shown = [*order[:top], *order[len(order) - (columns - top) :]]
    scale = shared_scale(result)

    figure = Figure(figsize=(1.6 * columns, 4.4), layout="constrained")
    grid = figure.add_gridspec(3, columns, height_ratios=[1, 1, 0.07])
    for column, i in enumerate(shown):
        image = _thumbnail(by_name[result.paths[i]], 256)
        first, second = (figure.add_subplot(grid[row, column]) for row in (0, 1))
        first.imshow(image)
        second.imshow(overlay(image, result.anomaly_maps[i], scale))
        label = result.defects[i] or Path(result.paths[i]).stem
        first.set_title(f"{label}\nscore {result.image_scores[i]:.2f}", fontsize=9, parse_math=False)
        for axes in (first, second):
            axes.set_axis_off()
    _colorbar(figure, scale, figure.add_subplot(grid[2, :]), "anomaly score")
    where = f"{result.dataset} / {result.category}" if result.category else result.dataset
    figure.suptitle(f"{where}: highest and lowest image scores of {len(result)}", fontsize=11, parse_math=False)
    return figure
