"""Figures 3 to 5 and 7 to 10 from this run's own distances, maps and scores, and the numbers behind each.

Each returns the picture, its numbers beside what the paper says of them, and the data sets that it was drawn from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from musc import metrics, msm
from musc.datasets.base import Sample
from musc.errors import DataError
from musc.reproduce.charts import COLOURS
from musc.reproduce.comparison import NAMES
from musc.reproduce.measure import of_experiment
from musc.reproduce.profiles import Profile
from musc.results import figures
from musc.results.pictures import shared_scale

Drawn = tuple[Figure, pd.DataFrame, tuple[str, ...]]
Said = list[tuple[str, str, str | float]]


def pick(lab: Profile, *preferred: str) -> tuple[str, str]:
    """The first of the preferred categories that the profile measures, else the first that it has."""
    every = [(dataset, name) for dataset in lab.roots for name in lab.names(dataset)]
    if not every:
        raise DataError("this profile has no category to draw.")
    return next(((d, n) for wanted in preferred for d, n in every if n == wanted), every[0])


def says(*rows: tuple[str, str, str | float]) -> pd.DataFrame:
    """What the paper says of a figure beside what this run found."""
    return pd.DataFrame(rows, columns=["quantity", "paper", "here"], dtype=object).set_index("quantity")


def by_area(samples: Sequence[Sample], size: int) -> list[int]:
    """Rows of the anomalous images, smallest defect first."""
    areas = figures.masks_at(samples, size).sum(axis=(1, 2))
    return [int(i) for i in np.argsort(areas, kind="stable") if areas[i]]


def degree_maps(lab: Profile, dataset: str, name: str) -> dict[str, NDArray[np.float32]]:
    """Anomaly maps [N, H, W] at r = 1, 3, 5 alone and of two unions: Eq. 3 is a mean, so maps are averaged."""
    one = {r: np.asarray(lab.result(dataset, name, degrees=(r,)).anomaly_maps) for r in (1, 3, 5)}
    sets = {"{3, 5}": (3, 5), "{1, 3, 5}": (1, 3, 5)}
    return {f"r = {r}": one[r] for r in one} | {
        f"r in {s}": np.mean([one[r] for r in rs], axis=0) for s, rs in sets.items()
    }


def figure_3(lab: Profile) -> Drawn:
    """Anomaly maps of the smallest, a middle and the largest defect at each aggregation degree."""
    dataset, name = pick(lab, "screw", "hazelnut")
    samples, maps = lab.category(dataset, name).samples, degree_maps(lab, dataset, name)
    maps.pop("r in {3, 5}")
    size = next(iter(maps.values())).shape[-1]
    rows = by_area(samples, size)
    chosen = list(dict.fromkeys([rows[0], rows[len(rows) // 2], rows[-1]]))
    figure, masks = _rows(samples, chosen, maps, size)
    found: Said = []
    for i, kind, said in (
        (chosen[0], "smallest", "r = 1 suits the small defect"),
        (chosen[-1], "largest", "r = 5 suits the large defect"),
    ):
        aps = {r: float(metrics.pixel_metrics(masks[i][None], m[i][None])["ap"]) for r, m in maps.items()}
        best = max((r for r in aps if "{" not in r), key=lambda r: aps[r])
        found.append((f"best single degree, {kind} defect", said, best))
        found += [(f"pixel AP, {kind} defect, {r}", "", ap) for r, ap in aps.items()]
    return figure, says(*found), (dataset,)


def figure_9(lab: Profile) -> Drawn:
    """The two smallest defects of one category for five combinations of degrees."""
    dataset, name = pick(lab, "screw")
    samples, maps = lab.category(dataset, name).samples, degree_maps(lab, dataset, name)
    size = next(iter(maps.values())).shape[-1]
    chosen = by_area(samples, size)[:2]
    figure, masks = _rows(samples, chosen, maps, size)
    i = chosen[0]
    said = {"r in {3, 5}": "lower than r = 3", "r in {1, 3, 5}": "higher than {3, 5}"}
    found = [(f"peak on the defect, {r}", said.get(r, ""), float(m[i][masks[i]].max())) for r, m in maps.items()]
    return figure, says(*found), (dataset,)


def _rows(
    samples: Sequence[Sample], chosen: Sequence[int], maps: dict[str, NDArray], size: int
) -> tuple[Figure, NDArray[np.bool_]]:
    """One row per image: itself, its mask, and its maps, all in one colour scale."""
    masks = figures.masks_at(samples, size)
    seen = figures.as_seen([samples[i] for i in chosen], size)
    low = min(float(m[i].min()) for m in maps.values() for i in chosen)
    high = max(float(m[i].max()) for m in maps.values() for i in chosen)
    columns = len(maps) + 2
    figure = Figure(figsize=(1.45 * columns + 0.9, 1.5 * len(chosen) + 0.3), layout="constrained")
    axes = figure.subplots(len(chosen), columns, squeeze=False)
    for line, i, picture in zip(axes, chosen, seen, strict=True):
        line[0].imshow(picture)
        line[0].set_ylabel(samples[i].defect.replace("_", " "), fontsize=9)
        line[1].imshow(masks[i], cmap="gray", vmin=0, vmax=1)
        for ax, values in zip(line[2:], maps.values(), strict=True):
            shown = ax.imshow(values[i], cmap=figures.CMAP, vmin=low, vmax=high)
            ax.contour(masks[i], [0.5], colors=[[c / 255 for c in figures.CONTOUR]], linewidths=1)
        for ax in line:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
    for ax, title in zip(axes[0], ["image", "mask", *maps], strict=True):
        ax.set_title(title, fontsize=9)
    figure.colorbar(shown, ax=axes, label="anomaly score", fraction=0.03, aspect=12 * len(chosen))
    return figure, masks


def patch_distances(lab: Profile, dataset: str, name: str) -> tuple[NDArray, NDArray]:
    """Distances of Eq. 1 [N, J, M] at r = 3 and l = 2 (the caption of Fig. 4), and the labels [N, M] of the patches."""
    features = lab.features(dataset, name)
    stage = min(1, len(features.grids) - 1)
    grid = features.grids[stage]
    tokens = features.patch_tokens[stage].to(lab.musc(dataset).device)
    D = msm.stage_distances(tokens, (3,), grid=grid, precision=lab.config.precision)[0].cpu().numpy()
    masks = figures.masks_at(features.samples, 8 * grid[0])
    return D, figures.patch_labels(masks, grid)


def figure_4(lab: Profile) -> Drawn:
    """Distances of normal and abnormal patches, one other image at a time and averaged over all or the lowest 30 %."""
    dataset, name = pick(lab, "board", "bottle")
    D, labels = patch_distances(lab, dataset, name)
    X = int(100 * lab.config.interval[1])
    whole = D.mean(axis=1)
    lowest = msm.interval_average(torch.from_numpy(D), lab.config.interval).numpy()
    single = D.transpose(0, 2, 1)  # [N, M, J], so that labels choose patches
    edges = np.linspace(0, float(D.max()), 49)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    none = np.empty(0)
    panels = (
        ("(a) all distances of normal patches", single[labels == 0].ravel(), none),
        ("(b) all distances of abnormal patches", none, single[labels == 1].ravel()),
        ("(c) mean over all images", whole[labels == 0], whole[labels == 1]),
        (f"(d) mean over the lowest {X} %", lowest[labels == 0], lowest[labels == 1]),
    )
    for ax, (title, normal, anomalous) in zip(axes.flat, panels, strict=True):
        figures.two_histograms(ax, normal, anomalous, edges)
        ax.set_title(title, fontsize=10)
    handles, names = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    for ax in axes[1]:
        ax.set_xlabel("distance between unit vectors")
    return (
        figure,
        says(
            ("area that the histograms of (c) share", "larger", shared_area(whole, labels, edges)),
            ("area that the histograms of (d) share", "smaller", shared_area(lowest, labels, edges)),
            ("distances to a patch", "", D.shape[1]),
            ("of these the lowest share", "", msm.interval_bounds(D.shape[1], lab.config.interval)[1]),
            ("normal patches", "", int((labels == 0).sum())),
            ("abnormal patches", "", int((labels == 1).sum())),
        ),
        (dataset,),
    )


def shared_area(values: NDArray, labels: NDArray, edges: NDArray) -> float:
    """The area under both normalised histograms: 0 where they are apart, 1 where they are equal."""
    heights = [np.histogram(values[labels == k], edges)[0] / max(1, (labels == k).sum()) for k in (0, 1)]
    return float(np.minimum(*heights).sum())


def figure_10(lab: Profile) -> Drawn:
    """Fig. 4 (b) alone, its left corner marked: distances to the few images that show something similar."""
    dataset, name = pick(lab, "board", "bottle")
    D, labels = patch_distances(lab, dataset, name)
    single = D.transpose(0, 2, 1)
    abnormal, normal = single[labels == 1].ravel(), single[labels == 0]
    limit = float(np.median(normal))
    figure = Figure(figsize=(6, 3), layout="constrained")
    ax = figure.subplots()
    edges = np.linspace(0, float(D.max()), 49)
    figures.two_histograms(ax, np.empty(0), abnormal, edges)
    ax.axvspan(0, limit, color="#999999", alpha=0.3, label="as near as half of the normal distances")
    ax.set_xlabel("distance between unit vectors")
    ax.legend(frameon=False, fontsize=9)
    found = (
        ("abnormal patches' distances in the corner", "small", float((abnormal < limit).mean())),
        ("normal patches' distances in the corner", "", float((normal < limit).mean())),
    )
    return figure, says(*found), (dataset,)


def figure_5(lab: Profile) -> Drawn:
    """Image scores before and after RsCIN, and the normal image of the highest score with its nearest one."""
    dataset, name = pick(lab, "wood", "grid")
    result = lab.result(dataset, name)
    if result.class_tokens is None or result.labels is None:
        raise DataError(f"Figure 5 needs class tokens and labels, and {name} with {lab.config.backbone} lacks one.")
    raw, after, labels = result.raw_image_scores, result.image_scores, result.labels
    scaled = (raw - raw.min()) / max(float(raw.max() - raw.min()), 1e-12)
    similar = result.class_tokens @ result.class_tokens.T
    np.fill_diagonal(similar, -np.inf)
    i = max(np.flatnonzero(labels == 0), key=lambda n: raw[n])
    j = max(np.flatnonzero((labels == 0) & (np.arange(len(labels)) != i)), key=lambda n: similar[i, n])

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    (top,), (bottom,) = figure.subfigures(2, 1, squeeze=False)
    edges = np.linspace(0, 1, 21)
    for ax, values, title in zip(
        top.subplots(1, 2, sharey=True), (scaled, after), ("(a) before", "(b) after"), strict=True
    ):
        figures.two_histograms(ax, values[labels == 0], values[labels == 1], edges)
        ax.set_title(f"{title} RsCIN", fontsize=10)
        ax.set_xlabel("image score, min-max")
        ax.legend(frameon=False, fontsize=9)
    samples = lab.category(dataset, name).samples
    by_name = {s.name: s for s in samples}
    size, pair = result.anomaly_maps.shape[-1], (i, j)
    pictures = figures.as_seen([by_name[result.paths[n]] for n in pair], size)
    scale = shared_scale(result)
    axes = bottom.subplots(1, 4)
    for n, (row, picture, word) in enumerate(
        zip(pair, pictures, ("(i) highest normal score", "(ii) its nearest"), strict=True)
    ):
        axes[2 * n].imshow(picture)
        axes[2 * n].set_title(f"{word}\n{scaled[row]:.2f} before, {after[row]:.2f} after", fontsize=9, loc="left")
        axes[2 * n + 1].imshow(np.asarray(result.anomaly_maps[row]), cmap=figures.CMAP, norm=scale)
        for ax in axes[2 * n : 2 * n + 2]:
            ax.set_axis_off()
    found = (
        ("raw score of normal image (i)", "0.129", float(raw[i])),
        ("raw score of normal image (ii)", "0.079", float(raw[j])),
        ("similarity of their class tokens", "0.987", float(similar[i, j])),
        ("scaled score of (i) before", "", float(scaled[i])),
        ("scaled score of (i) after", "lower", float(after[i])),
        ("area that both kinds share, before", "large", shared_area(scaled, labels, edges)),
        ("area that both kinds share, after", "smaller", shared_area(after, labels, edges)),
    )
    return figure, says(*found), (dataset,)


def figure_7(lab: Profile) -> Drawn:
    """AC and AS against X, the share of the lowest distances that Eq. 2 averages."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    found: Said = []
    for dataset, wide in _by_row(lab, "figure_7"):
        X = [int(row.rstrip("%")) for row in wide.index]
        for ax, metric in zip(axes, ("image_auroc", "pixel_auroc"), strict=True):
            ax.plot(X, wide[metric], "o-", color=COLOURS[dataset], label=NAMES[dataset])
            ax.set(xlabel="X [%]", ylabel=f"{NAMES[metric]} [%]")
        both = wide[["image_auroc", "pixel_auroc"]].mean(axis=1)
        found.append((f"best X by the mean of AC and AS, {NAMES[dataset]}", "30 %", str(both.idxmax())))
        found += [
            (f"mean of AC and AS at X = {x} %, {NAMES[dataset]}", "", float(both[f"{x}%"])) for x in (10, 30, 100)
        ]
    _finish(axes)
    return figure, says(*found), tuple(lab.roots)


def figure_8(lab: Profile) -> Drawn:
    """Image AUROC against the window of RsCIN: single windows, all images, two windows together, and none."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    ax = figure.subplots()
    found: Said = []
    single = [*map(str, range(2, 10)), "inf"]
    for dataset, wide in _by_row(lab, "figure_8"):
        auroc, name = wide["image_auroc"], NAMES[dataset]
        pair = "{8, 9}" if dataset == "visa" else "{2, 3}"
        ax.plot(range(len(single)), auroc[single], "o-", color=COLOURS[dataset], label=f"{name}, one window")
        ax.axhline(auroc[pair], color=COLOURS[dataset], linestyle="--", label=f"{name}, {pair}")
        found += [
            (f"image AUROC with the windows {pair}, {name}", "above every single window", float(auroc[pair])),
            (f"image AUROC with the best single window, {name}", "", float(auroc[single[:-1]].max())),
            (f"the best single window, {name}", "", f"k = {auroc[single[:-1]].idxmax()}"),
            (f"image AUROC with all images, {name}", "lower", float(auroc["inf"])),
        ]
    ax.set_xticks(range(len(single)), [*single[:-1], "all"])
    ax.set(xlabel="window k, counting the image itself", ylabel="image AUROC [%]")
    _finish([ax])
    return figure, says(*found), tuple(lab.roots)


def _by_row(lab: Profile, experiment: str) -> Iterable[tuple[str, pd.DataFrame]]:
    """Of each data set that was measured, the metrics (columns) of every row of an experiment."""
    for dataset in lab.roots:
        frame = of_experiment(lab, dataset, experiment)
        if len(frame):
            yield dataset, frame.pivot_table(index="row", columns="metric", values="value", sort=False)


def _finish(axes: Iterable[Axes]) -> None:
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.legend(frameon=False, fontsize=9)
