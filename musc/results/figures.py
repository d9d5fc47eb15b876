"""Pictures of results: colour overlays on one shared scale, their legend, and an overview sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from musc.datasets.base import Sample
from musc.datasets.images import image_size, read_image, read_mask, resize_mask
from musc.datasets.values import as_read
from musc.errors import DataError, ResultError
from musc.results import MuScResult

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable

CMAP = "inferno"  # rises evenly in lightness: readable in grey and by colour-blind eyes
CONTOUR = (0, 229, 255)  # cyan: in no part of inferno, and apart from grey
OPACITY = 0.7  # of the most anomalous pixel; a normal pixel shows the image itself
LONGEST_SIDE = 768  # of a saved overlay, in pixels


def shared_scale(result: MuScResult) -> Normalize:
    """One colour scale for all maps of a result: from the median pixel to the largest.

    More than half of all pixels are normal, so the median is where "nothing to see" lies.
    """
    sample = np.asarray(result.anomaly_maps[:, ::4, ::4])
    low, high = float(np.median(sample)), float(result.raw_image_scores.max())
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


def save_overlays(result: MuScResult, samples: Sequence[Sample], folder: Path, *, again: bool = False) -> None:
    """Write folder/<name>.png for every image, and folder/legend.png; what is there is kept unless `again`.

    With a threshold, a line is drawn around what it marks.

    Raises ResultError where the folder cannot be written.
    """
    scale = shared_scale(result)
    by_name = {sample.name: sample for sample in as_read(samples, result.config.full_scale)}
    try:
        for name, anomaly_map in zip(result.paths, result.anomaly_maps, strict=True):
            path = folder / f"{name}.png"
            if again or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = overlay(_thumbnail(by_name[name]), anomaly_map, scale)
                if result.threshold is not None:
                    picture = contour(picture, binary_mask(anomaly_map, result.threshold.value, picture.size))
                picture.save(path.with_suffix(".tmp"), format="png")
                path.with_suffix(".tmp").replace(path)
        legend(scale).savefig(folder / "legend.png", dpi=120)
    except OSError as error:
        raise ResultError(f"overlays in {folder} cannot be written ({error.strerror or error}).") from error


def binary_mask(anomaly_map: NDArray[np.float32], threshold: float, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose score reaches the threshold, [H, W] for size = (W, H): the map is stretched, then cut.

    Stretching lowers peaks a little. Where it would lose all that the map itself marks, the map is cut first.
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


def save_masks(result: MuScResult, samples: Sequence[Sample], folder: Path, *, again: bool = False) -> None:
    """Write folder/<name>.png for every image, white where the map reaches the threshold, in the image's own size.

    What is there is kept unless `again`; without a threshold the masks of an earlier one are removed. Raises
    ResultError where the folder cannot be written.
    """
    by_name = {sample.name: sample for sample in samples}
    try:
        for name, anomaly_map in zip(result.paths, result.anomaly_maps, strict=True):
            path = folder / f"{name}.png"
            if result.threshold is None:
                path.unlink(missing_ok=True)
            elif again or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                mask = binary_mask(anomaly_map, result.threshold.value, _size(by_name[name], anomaly_map))
                Image.fromarray(mask).save(path.with_suffix(".tmp"), format="png")
                path.with_suffix(".tmp").replace(path)
    except OSError as error:
        raise ResultError(f"masks in {folder} cannot be written ({error.strerror or error}).") from error


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
        first.set_title(f"{label}\nscore {result.image_scores[i]:.2f}", fontsize=9)
        for axes in (first, second):
            axes.set_axis_off()
    _colorbar(figure, scale, figure.add_subplot(grid[2, :]), "anomaly score")
    where = f"{result.dataset} / {result.category}" if result.category else result.dataset
    figure.suptitle(f"{where}: highest and lowest image scores of {len(result)}", fontsize=11)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# For the book's chapters

BLUE, ORANGE = "#0072B2", "#D55E00"  # normal, anomalous: told apart by colour-blind eyes (Okabe and Ito)


def as_seen(samples: Sequence[Sample], size: int) -> list[NDArray[np.uint8]]:
    """The images squashed to size x size as the backbone sees them, [size, size, 3] each."""
    pictures = (read_image(s.image).convert("RGB") for s in samples)
    return [np.asarray(p.resize((size, size), Image.Resampling.BICUBIC)) for p in pictures]


def masks_at(samples: Sequence[Sample], size: int) -> NDArray[np.bool_]:
    """The masks at size x size (protocol `clean`), [N, size, size]; a sample without a mask has no anomalous pixel."""
    masks = np.zeros((len(samples), size, size), dtype=bool)
    for i, sample in enumerate(samples):
        if sample.mask is not None:
            native = read_mask(sample.mask, image_size(sample.image), sample.name)
            masks[i] = resize_mask(native, size).numpy()
    return masks


def patch_labels(masks: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.int8]:
    """Masks [N, H, W] to patches [N, M], row by row: 1 where at least half of a patch is anomalous, 0 where nothing
    is, -1 between. H and W are multiples of the grid's."""
    N, H, W = masks.shape
    rows, columns = grid
    share = masks.reshape(N, rows, H // rows, columns, W // columns).mean(axis=(2, 4)).reshape(N, -1)
    return np.where(share >= 0.5, 1, np.where(share > 0, -1, 0)).astype(np.int8)


def pca_rgb(patch_tokens: Float[Tensor, "N M C"], grid: tuple[int, int]) -> NDArray[np.float64]:
    """The first three principal components of all tokens as red, green and blue, [N, H, W, 3] in [0, 1].

    Equal colours mean similar tokens, within and between the images; which colour it is means nothing.
    """
    N, _, C = patch_tokens.shape
    tokens = patch_tokens.reshape(-1, C).double().cpu().numpy()
    centred = tokens - tokens.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, np.argsort(-values)[:3]]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])  # else the sign is arbitrary
    components = centred @ axes
    low, high = np.percentile(components, [1, 99], axis=0)
    return np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(N, *grid, -1)


def panels(
    rows: Sequence[Sequence[NDArray]],
    *,
    titles: Sequence[Sequence[str]] = (),
    names: Sequence[str] = (),
    outlines: Sequence[Any] = (),
    label: str = "",
    limits: tuple[float, float] | None = None,
    side: float = 1.5,
) -> Figure:
    """Pictures in rows and columns: [H, W, 3] as they are, masks in grey, [H, W] maps in one shared colour scale.

    titles: per row and column. names: of the rows. outlines: per column, or as a list per row and column, masks (or
    None) whose edges are drawn on the maps. label: of the colour bar, which is there if any map is. limits: of its
    scale (default: all maps' extremes).
    """
    maps = [p for row in rows for p in row if p.ndim == 2 and p.dtype != bool]
    low, high = limits or ((min(m.min() for m in maps), max(m.max() for m in maps)) if maps else (0, 1))
    columns = max(len(row) for row in rows)
    title_space = 0.3 * sum(any(t) for t in titles)
    figure = Figure(
        figsize=(side * columns + 0.35 * bool(names) + 0.8 * bool(maps), side * len(rows) + title_space),
        layout="constrained",
    )
    axes = figure.subplots(len(rows), columns, squeeze=False)
    shown = None
    for n, row in enumerate(rows):
        for m, ax in enumerate(axes[n]):
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if m >= len(row):
                continue
            picture = row[m]
            if picture.ndim == 3:
                ax.imshow(picture)
            elif picture.dtype == bool:
                ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
            else:
                H, W = picture.shape
                shown = ax.imshow(picture, cmap=CMAP, vmin=low, vmax=high, extent=(0, 1, 1, 0), aspect=H / W)
                edges = outlines[n] if outlines and isinstance(outlines[0], list) else outlines
                edge = edges[m] if edges else None
                if edge is not None and edge.any():
                    ax.contour(edge, [0.5], colors=[[c / 255 for c in CONTOUR]], linewidths=1, extent=(0, 1, 0, 1))
            if titles and titles[n]:
                ax.set_title(titles[n][m], fontsize=9)
        if names:
            axes[n, 0].set_ylabel(names[n], fontsize=9)
    if shown is not None:
        figure.colorbar(shown, ax=axes, label=label, fraction=0.03, aspect=12 * len(rows))
    return figure


def two_histograms(ax: Axes, normal: NDArray, anomalous: NDArray, bins: NDArray | int = 40) -> None:
    """The values of normal and anomalous patches or images as two outlined histograms, each of area 1."""
    edges = np.histogram_bin_edges(np.concatenate([normal, anomalous]), bins).tolist()
    for values, colour, label in ((normal, BLUE, "normal"), (anomalous, ORANGE, "anomalous")):
        if len(values):
            ax.hist(values, edges, density=True, histtype="stepfilled", color=colour, alpha=0.35)
            ax.hist(values, edges, density=True, histtype="step", color=colour, linewidth=1.6, label=label)
    ax.set_ylabel("density")
    ax.spines[["top", "right"]].set_visible(False)


def neighbour_graph(
    ax: Axes,
    places: NDArray[np.float64],
    weights: NDArray[np.float64],
    scores: NDArray[np.float64],
    names: Sequence[str],
) -> None:
    """A graph of images: an arrow i -> j, labelled w_ij, wherever image j is in image i's window; nodes show scores.

    places: [N, 2]; weights: [N, N], zero where there is no arrow (the diagonal is not drawn); scores: [N] in [0, 1].
    """
    N = len(places)
    for i in range(N):
        for j in range(N):
            if i != j and weights[i, j] != 0:
                both = weights[j, i] != 0
                style = "<->" if both else "->"
                if both and j < i:
                    continue
                arrow = {"arrowstyle": style, "color": "#555555", "linewidth": 1.4, "shrinkA": 19, "shrinkB": 19}
                ax.annotate("", places[j], places[i], arrowprops=arrow)
                x, y = (places[i] + places[j]) / 2
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                ax.text(x, y, f"{weights[i, j]:.2f}", ha="center", va="center", fontsize=9, bbox=box)
    ax.scatter(places[:, 0], places[:, 1], s=1100, c=scores, cmap=CMAP, vmin=0, vmax=1, edgecolors="#555555", zorder=3)
    for place, score, name in zip(places, scores, names, strict=True):
        ink = "black" if score > 0.6 else "white"
        ax.text(place[0], place[1], f"{name}\n{score:.2f}", ha="center", va="center", fontsize=9, color=ink, zorder=4)
    ax.set_axis_off()
    ax.set_aspect("equal")
    low, high = places.min(axis=0) - 0.5, places.max(axis=0) + 0.5  # room for the nodes' own size
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])
