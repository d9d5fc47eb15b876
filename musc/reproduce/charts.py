"""Comparisons as pictures: a point for every number, a dumbbell for every change."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from musc.reproduce.comparison import NAMES, OURS, SOURCES
from musc.reproduce.profiles import SYNTHETIC

COLOURS = {"mvtec_ad": "#0072B2", "visa": "#D55E00", "btad": "#009E73", SYNTHETIC: "#A0527D"}  # after Okabe and Ito
OTHER = "#555555"
SHAPES = {"mvtec_ad": "o", "visa": "s", "btad": "^", SYNTHETIC: "D"}  # so that colour does not tell alone
SIZES = {"paper": 46, "elsewhere": 46, "released": 18, "here": 46}
GRID = "#DDDDDD"


def chosen_metrics(frame: pd.DataFrame) -> list[str]:
    """The two metrics that a table's picture shows: image and pixel AUROC where it has them."""
    there = set(frame["metric"])
    usual = [m for m in ("image_auroc", "pixel_auroc", "time_ms", "gpu_mb", "image_ap") if m in there]
    return ["image_auroc", "time_ms"] if {"image_auroc", "time_ms"} <= there else usual[:2]


def named(frame: pd.DataFrame, labels: Sequence[str]) -> pd.Series:
    """What names each row of a picture: its cells in the columns `labels`, in words."""
    return frame[list(labels)].astype(str).replace(NAMES).agg(" ".join, axis=1).str.replace("  ", " ").str.strip()


def dots(frame: pd.DataFrame, labels: Sequence[str], metrics: Sequence[str] = ()) -> Figure:
    """A row per setting, a panel per metric, a shape per data set. Large and hollow: the paper (bars: its deviation);
    small and hollow: the released code; dotted: what others print; filled: measured here.

    labels: the columns that name a row. metrics: default as `chosen_metrics`. MuSc's rows are bold beside others.
    """
    metrics = metrics or chosen_metrics(frame)
    frame = frame[frame["metric"].isin(metrics)].dropna(subset=list(SOURCES), how="all")
    frame = frame.assign(label=named(frame, labels))
    names = list(dict.fromkeys(frame["label"]))
    figure, axes = _panels(names, metrics)
    seen: dict[str, Artist] = {}
    for ax, metric in zip(axes, metrics, strict=True):
        for line in frame[frame["metric"] == metric].to_dict("records"):
            colour, y = COLOURS.get(line["dataset"], OTHER), names.index(line["label"])
            for source in (s for s in SOURCES if pd.notna(line[s])):
                face = colour if source == "here" else "none"
                point = ax.scatter(
                    line[source], y, s=SIZES[source], marker=SHAPES.get(line["dataset"], "o"), facecolors=face,
                    edgecolors=colour, linewidths=1.5, linestyles=":" if source == "elsewhere" else "-", zorder=3,
                )  # fmt: skip
                seen.setdefault(f"{NAMES.get(line['dataset'], '')} {SOURCES[source]}".strip(), point)
            if pd.notna(line["spread"]):
                ax.errorbar(line["paper"], y, xerr=line["spread"], color=colour, capsize=2, linewidth=1)
    if frame["method"].nunique() > 1:
        ours = set(frame.loc[frame["method"].isin(OURS), "label"])
        for tick in axes[0].get_yticklabels():
            tick.set_fontweight("bold" if tick.get_text() in ours else "normal")
    _legend(figure, seen)
    return figure


def dumbbells(
    frame: pd.DataFrame, labels: Sequence[str], change: tuple[str, str], metrics: Sequence[str] = ()
) -> Figure:
    """What a change does, a line per row and a panel per metric: hollow before, filled after.

    labels: the columns that name a row besides `row`, whose two values `change` are joined. The paper's numbers, and
    those measured here in lines of their own.
    """
    metrics = metrics or chosen_metrics(frame)
    frame = frame.assign(label=named(frame, [c for c in labels if c != "row"]))
    long = frame.melt([*("label", "dataset", "metric", "row")], ["paper", "here"], "source").dropna(subset="value")
    if long["source"].nunique() > 1:
        long["label"] += long["source"].map({"paper": "", "here": ", here"})
    names = list(dict.fromkeys(long["label"]))
    figure, axes = _panels(names, metrics)
    seen: dict[str, Artist] = {}
    for ax, metric in zip(axes, metrics, strict=True):
        wide = long[long["metric"] == metric].pivot_table(index=["label", "dataset"], columns="row", values="value")
        for (label, dataset), line in wide.iterrows():
            colour, y = COLOURS.get(dataset, OTHER), names.index(label)
            before, after = (line[name] for name in change)
            ax.plot([before, after], [y, y], color=colour, linewidth=2, zorder=2)
            for value, face, word in ((before, "white", "without"), (after, colour, "with RsCIN")):
                point = ax.scatter(
                    value, y, s=46, marker=SHAPES.get(dataset, "o"), facecolors=face, edgecolors=colour, linewidths=1.5,
                    zorder=3,
                )  # fmt: skip
                seen.setdefault(f"{NAMES[dataset]} {word}", point)
    _legend(figure, seen)
    return figure


def _panels(names: Sequence[str], metrics: Sequence[str]) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(3.1 * len(metrics) + 1.8, 0.25 * len(names) + 1.3), layout="constrained")
    axes = list(figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0])
    for ax, metric in zip(axes, metrics, strict=True):
        ax.set_xlabel(NAMES[metric] + ("" if "[" in NAMES[metric] else " [%]"))
        ax.grid(axis="both", color=GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.08)
    axes[0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return figure, axes


def _legend(figure: Figure, seen: dict[str, Artist]) -> None:
    if seen:
        names = sorted(seen)
        figure.legend(
            [seen[name] for name in names], names, loc="outside upper center", ncols=2, frameon=False, fontsize=9
        )
