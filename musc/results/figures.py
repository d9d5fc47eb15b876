"""Figures of the book's chapters: images, masks, maps and tokens side by side, histograms, and the graph of RsCIN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from musc.datasets.base import Sample
from musc.datasets.images import image_size, read_image, read_mask, resize_mask
from musc.results.pictures import CMAP, CONTOUR
from musc.sizes import Size, rows_columns

BLUE, ORANGE = "#0072B2", "#D55E00"  # normal, anomalous: told apart by colour-blind eyes (Okabe and Ito)
SERIES = (BLUE, ORANGE, "#444444")  # several curves, which markers tell apart as well


def as_seen(samples: Sequence[Sample], size: Size) -> list[NDArray[np.uint8]]:
    """The images squashed to `size` pixels as the backbone sees them, [H, W, 3] each."""
    pictures = (read_image(s.image).convert("RGB") for s in samples)
    return [np.asarray(p.resize(rows_columns(size)[::-1], Image.Resampling.BICUBIC)) for p in pictures]


def masks_at(samples: Sequence[Sample], size: Size) -> NDArray[np.bool_]:
    """The masks at `size` pixels (protocol `clean`), [N, H, W]; a sample without a mask has no anomalous pixel."""
    masks = np.zeros((len(samples), *rows_columns(size)), dtype=bool)
    for i, sample in enumerate(samples):
        if sample.mask is not None:
            native = read_mask(sample.mask, image_size(sample.image), sample.name)
            masks[i] = resize_mask(native, size).numpy()
    return masks


def patch_labels(masks: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.int8]:
    """Masks [N, H, W] to patches [N, M], row by row: 1 where at least half of a patch is anomalous, 0 where nothing
    is, -1 between. H and W are multiples of the grid's.

    Example:
        >>> masks = np.zeros((1, 4, 4), dtype=bool)
        >>> masks[0, :2, :2] = masks[0, 3, 3] = True  # the first patch, and a quarter of the last
        >>> patch_labels(masks, grid=(2, 2))
        array([[ 1,  0,  0, -1]], dtype=int8)
    """
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
    import seaborn  # takes a second to import, and few chapters have histograms

    edges = np.histogram_bin_edges(np.concatenate([normal, anomalous]), bins)
    for values, colour, label in ((normal, BLUE, "normal"), (anomalous, ORANGE, "anomalous")):
        if len(values):
            counts, _ = np.histogram(values, edges)  # a hundred million distances are counted here, not by seaborn
            seaborn.histplot(
                x=(edges[:-1] + edges[1:]) / 2, weights=counts, bins=edges.tolist(), stat="density", element="step",
                color=colour, alpha=0.35, linewidth=1.6, label=label, ax=ax,
            )  # fmt: skip
    ax.set_ylabel("density")
    seaborn.despine(ax=ax)


def band(
    ax: Axes, x: Sequence[float], runs: Sequence[Sequence[float]], colour: str, *, keep: float = 0.8, **style: Any
) -> None:
    """A curve through the means of several runs, in a band from quantile to quantile that holds `keep` of them.

    x: [P]; runs: at each of them the values of its runs. Unlike a band of standard deviations, it never leaves the
    values' own range. style: of the line (marker, label, ...).
    """
    low, high = np.array([np.quantile(values, [(1 - keep) / 2, (1 + keep) / 2]) for values in runs]).T
    ax.plot(x, [np.mean(values) for values in runs], color=colour, **style)
    ax.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def overlap(normal: NDArray, anomalous: NDArray, bins: NDArray | int = 60) -> float:
    """The area that two densities share, both counted in the same bins: 1 where they are equal, 0 where apart.

    Example:
        >>> overlap(np.array([0.0, 1.0]), np.array([1.0, 2.0]), bins=np.array([0.0, 0.5, 1.5, 2.0]))
        0.5
    """
    edges = np.histogram_bin_edges(np.concatenate([normal, anomalous]), bins)
    shares = [np.histogram(values, edges)[0] / len(values) for values in (normal, anomalous)]
    return float(np.minimum(*shares).sum())


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
