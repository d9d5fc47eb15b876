"""Figures 1 and 2 of the paper, the idea and the method, drawn with real images, tokens, distances and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from musc import lnamd, msm
from musc.errors import DataError
from musc.features import Features
from musc.reproduce.draw import Drawn, Said, patch_distances, pick, says
from musc.reproduce.profiles import Profile
from musc.results import figures

INK = "#555555"
SHOWN = 8  # look-alikes beside a patch
PATCHES = 3  # side of a crop: what one token of r = 3 describes


def figure_1(lab: Profile) -> Drawn:
    """Three ways to tell what is abnormal; and the third's reason: look-alikes of a normal and of an abnormal patch."""
    dataset, name = pick(lab, "bottle_top", "bottle")
    D, labels = patch_distances(lab, dataset, name)  # [N, J, M], [N, M]
    if not (labels == 1).any():
        raise DataError(f"Figure 1 needs an abnormal patch, and no defect of {name} covers half of one.")
    category, features = lab.category(dataset, name), lab.features(dataset, name)
    side = features.grids[0][0]
    scores = msm.interval_average(torch.from_numpy(D), lab.config.interval).numpy()
    i, abnormal = np.unravel_index(np.where(labels == 1, scores, -1).argmax(), scores.shape)
    usual = np.flatnonzero(labels[i] == 0)
    normal = usual[np.argsort(scores[i][usual])[len(usual) // 2]]  # the median of its normal patches
    pictures = figures.as_seen(features.samples, 8 * side)

    figure = Figure(figsize=(9, 5.4))
    (top,), (bottom,) = figure.subfigures(2, 1, height_ratios=(1, 1.05), squeeze=False)
    bank = figures.as_seen(category.train[:4], 8 * side) if category.train else []
    others = [p for n, p in enumerate(pictures) if n != i][:4]
    _ways(top, pictures[i], bank, others, name.replace("_", " "))
    limit = float(np.quantile(D.transpose(0, 2, 1)[labels == 0], 0.99))
    found: Said = []
    axes = bottom.subplots(2, SHOWN + 1, gridspec_kw={"left": 0.05, "right": 0.99, "top": 0.82, "bottom": 0.01})
    for line, patch, kind, colour in (
        (list(axes[0]), normal, "normal", figures.BLUE),
        (list(axes[1]), abnormal, "abnormal", figures.ORANGE),
    ):
        _look_alikes(line, features, pictures, (i, patch), D[i, :, patch], colour)
        line[0].set_ylabel(f"{kind} patch", fontsize=10, color=colour)
        alike = int((D[i, :, patch] < limit).sum())
        found.append((f"images with the like of the {kind} patch", _SAID[kind], alike))
        found.append((f"median distance of the {kind} patch", "", float(np.median(D[i, :, patch]))))
    found.append(("other images", "", D.shape[1]))
    bottom.suptitle("(c) in numbers: a patch, and the nearest one of other images with its distance", fontsize=10)
    return figure, says(*found), (dataset,)


_SAID = {"normal": "relatively many", "abnormal": "only a few"}


def _ways(part: SubFigure, test: NDArray, bank: Sequence[NDArray], others: Sequence[NDArray], product: str) -> None:
    """The paper's three panels: what the test image is compared with."""
    words = (
        ("(a) one-class: a memory bank", "needs many normal images"),
        ("(b) zero-shot by CLIP: text prompts", "needs words for what is normal"),
        ("(c) MuSc: the other unlabeled images", "needs nothing else"),
    )
    for n, (title, need) in enumerate(words):
        ax = part.add_axes((0.01 + 0.335 * n, 0.0, 0.31, 0.92))
        ax.set(xlim=(0, 10), ylim=(0, 8), aspect="equal", anchor="N")
        ax.set_axis_off()
        ax.set_title(title, fontsize=10, y=0.9)
        _picture(ax, test, 0.2, 2.6, 3.0)
        ax.text(1.7, 2.0, "test image", ha="center", fontsize=9)
        ax.annotate("", (5.2, 4.1), (3.4, 4.1), arrowprops={"arrowstyle": "<->" if n == 2 else "->", "color": INK})
        shown = {0: bank, 2: others}.get(n, [])
        for m, picture in enumerate(shown):
            _picture(ax, picture, 5.4 + 2.3 * (m % 2), 4.2 - 2.3 * (m // 2), 2.1)
        if n == 1:
            for y, text in ((5.2, f"“a photo of a\nflawless {product}”"), (3.0, f"“a photo of a\ndamaged {product}”")):
                box = {"boxstyle": "round", "facecolor": "#F2F2F2", "edgecolor": INK}
                ax.text(7.6, y, text, ha="center", va="center", fontsize=9, bbox=box)
        elif n == 0 and not len(shown):
            ax.text(7.6, 4.1, "normal\ntraining images", ha="center", va="center", fontsize=9)
        ax.text(5.0, 0.7, need, ha="center", fontsize=9, style="italic")


def _picture(ax: Axes, picture: NDArray, x: float, y: float, side: float) -> None:
    ax.imshow(picture, extent=(x, x + side, y, y + side), zorder=2)
    ax.set(xlim=(0, 10), ylim=(0, 8))  # imshow changes them


def _look_alikes(
    line: Sequence[Axes], features: Features, pictures: Sequence[NDArray], at: tuple, distances: NDArray, colour: str
) -> None:
    """A patch, and beside it the nearest patch of the images that hold the most alike, by r = 3 and l = 2."""
    i, patch = (int(n) for n in at)
    grid = features.grids[0]
    tokens = lnamd.aggregate(features.patch_tokens[min(1, len(features.grids) - 1)], 3)
    order = np.argsort(distances, kind="stable")[:SHOWN]
    every = [(i, patch, "the patch")]
    for j in order:
        other = int(j) + int(j >= i)  # row i leaves itself out
        nearest = int(torch.cdist(tokens[i, patch][None], tokens[other]).argmin())
        every.append((other, nearest, f"{distances[j]:.2f}"))
    for ax in line[len(every) :]:
        ax.set_axis_off()
    for ax, (image, where, title) in zip(line, every, strict=False):
        ax.imshow(_crop(pictures[image], where, grid))
        ax.set_title(title, fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color=colour, linewidth=2.5 if title == "the patch" else 0.8)


def _crop(picture: NDArray, patch: int, grid: tuple[int, int]) -> NDArray:
    step, reach = picture.shape[0] // grid[0], PATCHES // 2
    row, column = np.clip(divmod(patch, grid[1]), reach, grid[0] - 1 - reach)
    rows, columns = (slice((c - reach) * step, (c + reach + 1) * step) for c in (row, column))
    return picture[rows, columns]


def figure_2(lab: Profile) -> Drawn:
    """The method from left to right on one category: images, tokens, LNAMD, MSM, the map, RsCIN."""
    dataset, name = pick(lab, "bottle_top", "bottle")
    features, result = lab.features(dataset, name), lab.result(dataset, name)
    if result.class_tokens is None:
        raise DataError(f"Figure 2 needs class tokens, and {lab.config.backbone} has none.")
    raw = result.raw_image_scores
    paths = [s.name for s in features.samples]
    place = [result.paths.index(path) for path in paths]
    i = int(np.argmax(raw[place]))
    shown = [i, *(n for n in range(len(paths)) if n != i)][:3]
    stage, side = min(1, len(features.grids) - 1), features.grids[0][0]
    tokens = features.patch_tokens[stage]
    pictures = figures.as_seen([features.samples[n] for n in shown], 8 * side)
    colours = figures.pca_rgb(tokens[shown], features.grids[stage])
    degrees = [lnamd.aggregate(tokens[shown], r) for r in (1, 3, 5)]
    D = (
        msm.patch_to_image_distances(lnamd.aggregate(tokens, 3))[i]
        .numpy()
        .reshape(len(paths) - 1, *features.grids[stage])
    )

    figure = Figure(figsize=(9.5, 4.8))
    grid = figure.add_gridspec(3, 6, left=0.01, right=0.985, top=0.8, bottom=0.08, wspace=0.45, hspace=0.2)
    columns: list[tuple[str, list[NDArray], tuple[str, ...]]] = [
        ("images $D_u$", list(pictures), ("$I_1$", "$I_2$", "$I_3$")),
        (f"patch tokens\nstage {stage + 1}", list(colours), ("$F_1$", "$F_2$", "$F_3$")),
        (
            "LNAMD\nof $I_1$",
            [figures.pca_rgb(t, features.grids[stage])[0] for t in degrees],
            ("r = 1", "r = 3", "r = 5"),
        ),
        ("MSM, Eq. 1\n$a(I_j)$", list(D[:3]), ("by $I_2$", "by $I_3$", "by $I_4$")),
    ]
    for c, (title, pictures_of, names) in enumerate(columns):
        for r, (picture, word) in enumerate(zip(pictures_of, names, strict=True)):
            ax = figure.add_subplot(grid[r, c])
            ax.imshow(
                picture, cmap=figures.CMAP, vmin=float(D.min()), vmax=float(D.max())
            )  # pictures keep their colours
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(word, fontsize=9, labelpad=2)
            if r == 0:
                ax.set_title(title, fontsize=10)
    _last_columns(figure, grid, result, place, i)
    for x, text in ((0.25, "Sec. 3.1"), (0.68, "Sec. 3.2"), (0.93, "Sec. 3.3")):
        figure.text(x, 0.96, text, ha="center", fontsize=10, color=INK)
    for c in range(5):
        figure.text(0.1665 + 0.1715 * c, 0.44, "→", ha="center", va="center", fontsize=18, color=INK)
    found = (
        ("patch tokens of an image", "", tokens.shape[1]),
        ("maximum of the first map", "", float(result.anomaly_maps[place[i]].max())),
        ("score of the first image", "", float(raw[place[i]])),
        ("AUROC before RsCIN", "", result.metrics["image_before_rscin"]["auroc"]),
        ("AUROC after RsCIN", "", result.metrics["image"]["auroc"]),
    )
    return figure, says(*found), (dataset,)


def _last_columns(figure: Figure, grid, result, place: list[int], i: int) -> None:
    """The map with its maximum, and the class tokens' similarities with the scores before and after."""
    anomaly_map = np.asarray(result.anomaly_maps[place[i]])
    ax = figure.add_subplot(grid[1, 4])
    ax.imshow(anomaly_map, cmap=figures.CMAP)
    row, column = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    ax.plot(column, row, "o", markerfacecolor="none", markeredgecolor="white", markersize=9)
    ax.set(xticks=[], yticks=[])
    ax.set_title("Eq. 2, 3:\nanomaly map", fontsize=10)
    ax.set_xlabel(f"maximum $c_1$ = {anomaly_map.max():.2f}", fontsize=9, labelpad=2)
    tokens = result.class_tokens[place]
    ax = figure.add_subplot(grid[0, 5])
    ax.imshow(tokens @ tokens.T, cmap="cividis")
    ax.set(xticks=[], yticks=[])
    ax.set_title("class tokens,\n$W = F F^T$", fontsize=10)
    ax = figure.add_axes((0.868, 0.1, 0.09, 0.38))
    raw, final, labels = (values[place] for values in (result.raw_image_scores, result.image_scores, result.labels))
    scaled = (raw - raw.min()) / np.ptp(raw)
    for before, after, label in zip(scaled, final, labels, strict=True):
        ax.plot(
            [0, 1], [before, after], "o-", markersize=3, linewidth=1, color=figures.ORANGE if label else figures.BLUE
        )
    ax.set_xticks([0, 1], [r"$\mathbf{C}$", r"$\hat{\mathbf{C}}$"])
    ax.set_title("RsCIN, Eq. 5", fontsize=10)
    ax.tick_params(labelsize=8)
    ax.yaxis.tick_right()
    ax.set_xlim(-0.25, 1.25)
    ax.spines[["top", "left"]].set_visible(False)
