"""Figures 3 to 16 of the paper from this run's own maps and scores: what each shows, and the numbers behind it."""

from __future__ import annotations

import math
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
from musc.reproduce.comparison import COLOURS, NAMES
from musc.reproduce.measure import of_experiment
from musc.reproduce.paper import table
from musc.reproduce.profiles import SYNTHETIC, Profile
from musc.results import figures
from musc.results.pictures import shared_scale

Drawn = tuple[Figure, pd.DataFrame]
Said = list[tuple[str, str, str | float]]
# What the synthetic data set shows in place of the paper's categories.
DEMO = {
    6: ("capsule", "bottle_top", "board"),
    11: ("board",),
    12: ("bottle_top",),
    13: ("screw",),
    14: ("capsule", "grid"),
    15: ("leather", "tile"),
    16: ("weave", "wood"),
}
PAPER = {
    6: ("pill", "cashew", "bottle", "pcb1", "metal_nut", "pipe_fryum"),
    11: ("candle", "capsules", "chewinggum", "fryum"),
    12: ("cashew", "macaroni1", "pcb1", "pcb2"),
    13: ("pcb4", "macaroni2", "pipe_fryum", "pcb3"),
    14: ("bottle", "cable", "capsule", "carpet", "grid", "hazelnut"),
    15: ("leather", "metal_nut", "pill", "screw", "tile", "toothbrush"),
    16: ("transistor", "wood", "zipper"),
}


def pick(lab: Profile, *preferred: str) -> tuple[str, str]:
    """The first of the preferred categories that the profile measures, else the first that it has."""
    every = [(dataset, name) for dataset in lab.roots for name in lab.names(dataset)]
    if not every:
        raise DataError("this profile has no category to draw.")
    return next(((d, n) for wanted in preferred for d, n in every if n == wanted), every[0])


def says(*rows: tuple[str, str, str | float]) -> pd.DataFrame:
    """What the paper says of a figure beside what this run found; numbers to three digits.

    A quantity and what the paper says have at most 50 characters: pandas cuts longer ones off.
    """
    text = [(what, paper, f"{here:.3f}" if isinstance(here, float) else str(here)) for what, paper, here in rows]
    return pd.DataFrame(text, columns=["quantity", "paper", "here"]).set_index("quantity")


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
    dataset, name = pick(lab, "leather", "hazelnut")
    samples, maps = lab.category(dataset, name).samples, degree_maps(lab, dataset, name)
    maps.pop("r in {3, 5}")
    size = next(iter(maps.values())).shape[-1]
    rows = by_area(samples, size)
    chosen = list(dict.fromkeys([rows[0], rows[len(rows) // 2], rows[-1]]))
    figure, masks = _rows(samples, chosen, maps, size)
    found: Said = []
    for i, kind in ((chosen[0], "smallest"), (chosen[-1], "largest")):
        aps = {r: metrics.pixel_metrics(masks[i][None], m[i][None])["ap"] for r, m in maps.items()}
        best = max((r for r in aps if "{" not in r), key=lambda r: aps[r])
        said = "r = 1 suits the small defect" if kind == "smallest" else "r = 5 suits the large defect"
        found.append((f"best degree by pixel AP, {kind} defect", said, best))
        found += [(f"pixel AP of that image, {r}", "", float(ap)) for r, ap in aps.items()]
    return figure, says(*found)


def figure_9(lab: Profile) -> Drawn:
    """The smallest defect of one category for five combinations of degrees."""
    dataset, name = pick(lab, "screw")
    samples, maps = lab.category(dataset, name).samples, degree_maps(lab, dataset, name)
    size = next(iter(maps.values())).shape[-1]
    chosen = by_area(samples, size)[:2]
    figure, masks = _rows(samples, chosen, maps, size)
    i = chosen[0]
    said = {"r in {3, 5}": "lower: a false negative", "r in {1, 3, 5}": "rises again"}
    found = [
        (f"peak on the smallest defect, {r}", said.get(r, ""), float(m[i][masks[i]].max())) for r, m in maps.items()
    ]
    return figure, says(*found)


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
    dataset, name = pick(lab, "leather", "bottle")
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
        if len(normal) or len(anomalous):
            ax.legend(frameon=False, fontsize=9)
    for ax in axes[1]:
        ax.set_xlabel("distance between unit vectors")
    overlap = {"(c)": shared_area(whole, labels, edges), "(d)": shared_area(lowest, labels, edges)}
    return figure, says(
        ("area that the histograms of (c) share", "larger", overlap["(c)"]),
        ("area that the histograms of (d) share", "smaller, in [0.2, 0.4]", overlap["(d)"]),
        ("normal patches, abnormal patches", "", f"{(labels == 0).sum()}, {(labels == 1).sum()}"),
    )


def shared_area(values: NDArray, labels: NDArray, edges: NDArray) -> float:
    """The area under both normalised histograms: 0 where they are apart, 1 where they are equal."""
    heights = [np.histogram(values[labels == k], edges)[0] / max(1, (labels == k).sum()) for k in (0, 1)]
    return float(np.minimum(*heights).sum())


def figure_10(lab: Profile) -> Drawn:
    """Fig. 4 (b) alone, its left corner marked: distances to the few images that show something similar."""
    dataset, name = pick(lab, "leather", "bottle")
    D, labels = patch_distances(lab, dataset, name)
    single = D.transpose(0, 2, 1)
    abnormal, normal = single[labels == 1].ravel(), single[labels == 0]
    limit = float(np.quantile(normal, 0.99))
    figure = Figure(figsize=(6, 3), layout="constrained")
    ax = figure.subplots()
    edges = np.linspace(0, float(D.max()), 49)
    figures.two_histograms(ax, np.empty(0), abnormal, edges)
    ax.axvspan(0, limit, color="#999999", alpha=0.3, label="as close as 99 % of normal distances")
    ax.set_xlabel("distance between unit vectors")
    ax.legend(frameon=False, fontsize=9)
    return figure, says(
        (
            "abnormal patches' distances in the corner",
            "small, marked in red",
            float((abnormal < limit).mean()),
        ),
        ("the same of normal patches' distances", "", float((normal < limit).mean())),
    )


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
    return figure, says(
        ("raw score of normal image (i)", "0.129", float(raw[i])),
        ("raw score of normal image (ii)", "0.079", float(raw[j])),
        ("similarity of their class tokens", "0.987", float(similar[i, j])),
        ("area that normal and abnormal share, before", "large", shared_area(scaled, labels, edges)),
        ("area that normal and abnormal share, after", "smaller", shared_area(after, labels, edges)),
    )


def figure_7(lab: Profile) -> Drawn:
    """AC and AS against X, the share of the lowest distances that Eq. 2 averages."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    found: Said = []
    for dataset in lab.roots:
        frame = of_experiment(lab, dataset, "figure_7")
        wide = frame.pivot_table(index="row", columns="metric", values="value", sort=False)
        if wide.empty:
            continue
        X = [int(row.rstrip("%")) for row in wide.index]
        for ax, metric in zip(axes, ("image_auroc", "pixel_auroc"), strict=True):
            ax.plot(X, wide[metric], "o-", color=COLOURS[dataset], label=NAMES[dataset])
            ax.set(xlabel="X [%]", ylabel=f"{NAMES[metric]} [%]")
        best = wide[["image_auroc", "pixel_auroc"]].mean(axis=1)
        name = NAMES[dataset]
        found.append((f"best X by the mean of AC and AS, {name}", "30%, over both data sets", str(best.idxmax())))
        found += [(f"mean of AC and AS at X = {x}%, {name}", "", float(best[f"{x}%"])) for x in (10, 30, 100)]
    _finish(axes)
    return figure, says(*found)


def figure_8(lab: Profile) -> Drawn:
    """Image AUROC against the window of RsCIN: single windows, all images, two windows together."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    ax = figure.subplots()
    found: Said = []
    for dataset in lab.roots:
        frame = of_experiment(lab, dataset, "figure_8").query("metric == 'image_auroc'").set_index("row")["value"]
        if frame.empty:
            continue
        single = [*map(str, range(2, 10)), "inf"]
        ax.plot(range(len(single)), frame[single], "o-", color=COLOURS[dataset], label=f"{NAMES[dataset]}, one window")
        pair = "{8, 9}" if dataset == "visa" else "{2, 3}"
        ax.axhline(frame[pair], color=COLOURS[dataset], linestyle="--", label=f"{NAMES[dataset]}, {pair}")
        ax.set_xticks(range(len(single)), [*single[:-1], "all"])
        found.append(
            (f"image AUROC, windows {pair}, {NAMES[dataset]}", "above every single window", float(frame[pair]))
        )
        found.append(
            (f"best single window, {NAMES[dataset]}", "", f"k = {frame[single].idxmax()}: {frame[single].max():.3f}")
        )
        found.append((f"all images (k = inf), {NAMES[dataset]}", "lower", float(frame["inf"])))
    ax.set(xlabel="window k, counting the image itself", ylabel="image AUROC [%]")
    _finish([ax])
    return figure, says(*found)


def _finish(axes: Iterable[Axes]) -> None:
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.legend(frameon=False, fontsize=9)


def qualitative(lab: Profile, number: int) -> Drawn:
    """Figures 6 and 11 to 16: images, masks and maps; on the synthetic data set other categories stand in."""
    wanted = {d: DEMO[number] if d == SYNTHETIC else PAPER[number] for d in lab.roots}
    there = [(d, n) for d in lab.roots for n in lab.names(d) if n in wanted[d]]
    if not there and SYNTHETIC in lab.roots:
        there = [(SYNTHETIC, name) for name in lab.names(SYNTHETIC)][:2]
    if not there:
        raise DataError(f"Figure {number} shows {', '.join(PAPER[number])}, and this profile measures none of them.")
    each = max(1, 6 // len(there))
    pictures, masks, maps, titles = [], [], [], []
    found: Said = []
    for dataset, name in there:
        result = lab.result(dataset, name)
        size = result.anomaly_maps.shape[-1]
        by_name = {s.name: s for s in lab.category(dataset, name).samples}
        samples = [by_name[path] for path in result.paths]
        rows = by_area(samples, size)
        chosen = [rows[n] for n in sorted({round(t) for t in np.linspace(0, len(rows) - 1, each + 2)[1:-1]})]
        every = figures.masks_at([samples[i] for i in chosen], size)
        pictures += figures.as_seen([samples[i] for i in chosen], size)
        masks += list(every)
        maps += [np.asarray(result.anomaly_maps[i]) for i in chosen]
        titles += [f"{name}\n{samples[i].defect.replace('_', ' ')}" for i in chosen]
        group = result.metrics.get(f"pixel_{lab.protocol}", {})
        found.append((f"{NAMES[dataset]}, {name}: pixel AUROC, pixel AP [%]", _printed(dataset, name), " ".join(
            f"{100 * group.get(m, math.nan):.1f}" for m in ("auroc", "ap"))))  # fmt: skip
    figure = figures.panels(
        [pictures, masks, maps],
        titles=[titles, [], []],
        names=["image", "mask", "MuSc"],
        outlines=masks,
        label="anomaly score",
    )
    missing = [n for n in PAPER[number] if n not in {n for d, n in there if d != SYNTHETIC}]
    found += [(f"{NAMES[_home(n)]}, {n}: pixel AUROC, pixel AP [%]", _printed(None, n), "not run") for n in missing]
    return figure, says(*found)


def _home(name: str) -> str:
    return "mvtec_ad" if name in set(table(17)["category"]) else "visa"


def _printed(dataset: str | None, name: str) -> str:
    """Pixel AUROC and AP that Tab. 17 or 18 prints for a category; empty for one of the synthetic set."""
    if dataset == SYNTHETIC:
        return ""
    every = pd.concat([table(17), table(18)])
    mine = every[every["category"] == name].set_index("metric")["value"]
    return " ".join(f"{mine[m]:.1f}" for m in ("pixel_auroc", "pixel_ap")) if len(mine) else ""
