"""Paper, released code and this run beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from musc.reproduce.experiments import GRIDS
from musc.reproduce.measure import KEYS
from musc.reproduce.paper import METRICS, released_code, table

OURS = ("MuSc", "MuSc+")
NAMES = {
    "mvtec_ad": "MVTec AD",
    "visa": "VisA",
    "btad": "BTAD",
    "mvtec_ad+visa": "MVTec AD and VisA",
    "synthetic": "synthetic",
    "image_auroc": "image AUROC",
    "image_f1_max": "image F1-max",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_f1_max": "pixel F1-max",
    "pixel_ap": "pixel AP",
    "pro": "PRO",
    "time_ms": "time [ms per image]",
    "gpu_mb": "GPU memory [MB]",
    "subset_images_min": "least images",
    "subset_images_max": "most images",
    "released": "released",
    "": "not named",
}
COLOURS = {"mvtec_ad": "#0072B2", "visa": "#D55E00", "btad": "#009E73", "synthetic": "#CC79A7"}  # Okabe and Ito
MISSING = "missing from our copy of the paper"
DEFAULT = {3: "{1, 3, 5}", 4: "(f) 30% + mean", 5: "w", 6: "s = 1", 7: "1", 8: "CLIP ViT-L-14-336", 9: "{1, 3, 5}"}
DEFAULT |= {10: "0% ~ 30%", 13: "ViT-L-14-336, s = 1"}  # the rows that are the method as released


def printed(number: int) -> pd.DataFrame:
    """A table of the paper with its own columns gathered in `row`, named as `experiments.GRIDS` names them."""
    frame = table(number)
    frame["row"] = [_row(number, line) for line in frame.to_dict("records")]
    frame = frame.rename(columns={"value": "paper"})
    return frame.drop_duplicates([*KEYS, "paper"])[[*KEYS, "paper", "note"]].reset_index(drop=True)


def _row(number: int, line: dict) -> str:
    match number:
        case 3 | 9:
            return "{" + line["degrees"].replace(",", ", ") + "}"
        case 4:
            return next(name for name in GRIDS["table_4"] if name.startswith(f"({line['row']})"))
        case 5 | 11:
            return {"without": "w/o", "with": "w"}[line["rscin"]]
        case 6:
            return f"s = {line['subsets']}"
        case 7:
            return str(line["subsets"])
        case 8:
            return f"{line['pretraining']} {line['backbone']}".strip()
        case 10:
            return f"{line['interval_low']}% ~ {line['interval_high']}%"
        case 13:
            subsets = line["subsets"]
            return line["backbone"] + ("" if pd.isna(subsets) else f", s = {subsets}")
    return ""


def compare(number: int, here: pd.DataFrame, run_here: Sequence[str] = OURS) -> pd.DataFrame:
    """The tidy comparison of one table: dataset, category, method, setting, row, metric, paper, released, here, status.

    here: tidy rows of `measure`. run_here: the methods that this package can run. status: "measured"; "not run" (it
    could be, and was not); "quoted" (the paper's number of another method). Empty cells are NaN. What was measured on a
    data set that the paper has not (the synthetic one) comes in rows of its own, below, without the paper's number.
    """
    left = printed(number)
    metrics = list(dict.fromkeys(left["metric"]))
    here = here[here["metric"].isin(metrics)].rename(columns={"value": "here"})
    frame = left.merge(here, how="outer", on=KEYS, sort=False, indicator=True)
    order = {key: n for n, key in enumerate(map(tuple, left[KEYS].to_numpy()))}
    late = {key: len(order) + n for n, key in enumerate(map(tuple, here[KEYS].to_numpy()))}
    frame = frame.sort_values(
        "metric", key=lambda _: [(late | order)[key] for key in map(tuple, frame[KEYS].to_numpy())]
    )
    frame["released"] = _released(number, frame)
    quoted = ~frame["method"].isin(run_here)
    frame["status"] = np.where(frame["here"].notna(), "measured", np.where(quoted, "quoted", "not run"))
    frame["note"] = frame["note"].fillna("")
    return frame[[*KEYS, "paper", "released", "here", "status", "note"]].reset_index(drop=True)


def _released(number: int, frame: pd.DataFrame) -> list[float]:
    known: dict[tuple, float] = released_code().set_index(["dataset", "category", "metric"])["value"].to_dict()
    usual = (frame["method"] == "MuSc") & (frame["setting"] == "0-shot") & (frame["row"] == DEFAULT.get(number, ""))
    keys = zip(frame["dataset"], frame["category"], frame["metric"], strict=True)
    return [known.get(key, np.nan) if u else np.nan for key, u in zip(keys, usual, strict=True)]


def side_by_side(frame: pd.DataFrame, rows: Sequence[str], across: Sequence[str]) -> pd.DataFrame:
    """A comparison as a reader wants it: paper, released code and here next to each other, as text.

    rows, across: columns of the comparison that become rows and columns, "source" among them. An empty cell of `here`
    says "not run" or "quoted"; the paper's own gaps stay empty, and what our copy of it lacks says "missing". Rows and
    columns without any entry are left out. Where the source stands in the rows, quoted methods have one row, "paper
    (quoted)".
    """
    in_rows, long = "source" in rows, []
    if tuple(rows) == ("dataset", "row"):  # one block per data set, where the paper has one column
        first = list(dict.fromkeys(frame["dataset"]))
        frame = frame.sort_values("dataset", key=lambda names: names.map(first.index), kind="stable")
    for line in frame.to_dict("records"):
        digits = 0 if line["metric"] in ("time_ms", "gpu_mb") or line["metric"].startswith("subset") else 1
        quoted = line["status"] == "quoted"
        for source in ("paper", "released", "here"):
            text = "" if pd.isna(line[source]) else f"{line[source]:.{digits}f}"
            if source == "paper" and MISSING in line["note"]:
                text = "missing"
            if source == "here" and not text:
                text = "" if in_rows and quoted else line["status"]
            label = "paper (quoted)" if in_rows and quoted and source == "paper" else NAMES.get(source, source)
            long.append({**line, "source": label, "text": text, "order": ("paper", "released", "here").index(source)})
    wide = pd.DataFrame(long)
    for column in ("dataset", "metric"):
        wide[column] = wide[column].replace(NAMES)
    keys = [*rows, *across]
    place = {
        key: n for n, key in enumerate(dict.fromkeys(map(tuple, wide[[k for k in rows if k != "source"]].to_numpy())))
    }
    groups = [k for k in across if k != "source"]
    beside = {key: n for n, key in enumerate(dict.fromkeys(map(tuple, wide[groups].to_numpy())))}
    wide["place"] = [place[key] for key in map(tuple, wide[[k for k in rows if k != "source"]].to_numpy())]
    wide["beside"] = [beside[key] for key in map(tuple, wide[groups].to_numpy())]
    wide = wide[wide["text"] != ""].drop_duplicates(keys)
    cells = wide.set_index(keys)["text"].unstack(list(across)).fillna("")
    first = wide.sort_values(["place", "order"] if in_rows else ["place"], kind="stable")
    rows_in_order = list(dict.fromkeys(map(tuple, first[list(rows)].to_numpy())))
    columns = list(
        dict.fromkeys(map(tuple, wide.sort_values(["beside", "order"], kind="stable")[list(across)].to_numpy()))
    )
    cells = cells.loc[rows_in_order if len(rows) > 1 else [r[0] for r in rows_in_order]]
    cells = cells[columns if len(across) > 1 else [c[0] for c in columns]]
    return cells.rename_axis(columns=[None] * cells.columns.nlevels)


def dots(frame: pd.DataFrame, labels: Sequence[str], metrics: Sequence[str] = ()) -> Figure:
    """A comparison as a picture: a row per setting, hollow what the paper prints, filled what was measured here.

    labels: the columns that name a row. metrics: one panel each (default: image and pixel AUROC where they are there).
    """
    there = [m for m in (*METRICS, "time_ms") if m in set(frame["metric"])]
    metrics = metrics or [m for m in ("image_auroc", "pixel_auroc", "time_ms") if m in there][:2] or there[:1]
    frame = frame[frame["metric"].isin(metrics)].assign(
        label=frame[list(labels)].astype(str).replace(NAMES).agg(" ".join, axis=1).str.strip()
    )
    names = list(dict.fromkeys(frame["label"]))
    figure = Figure(figsize=(3.6 * len(metrics) + 1.4, 0.24 * len(names) + 1.3), layout="constrained")
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    seen: dict[str, Artist] = {}
    for ax, metric in zip(axes, metrics, strict=True):
        for line in frame[frame["metric"] == metric].to_dict("records"):
            colour = COLOURS.get(line["dataset"], "#555555")
            y = names.index(line["label"])
            for source, style in (("paper", {"facecolors": "none"}), ("here", {"facecolors": colour})):
                if pd.notna(line[source]):
                    name = f"{NAMES.get(line['dataset'], 'largest category')}, {source}"
                    seen[name] = ax.scatter(line[source], y, s=44, edgecolors=colour, linewidths=1.5, zorder=3, **style)
        unit = "" if "[" in NAMES[metric] else " [%]"
        ax.set_xlabel(NAMES[metric] + unit)
        ax.grid(axis="both", color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    if seen:
        figure.legend(list(seen.values()), list(seen), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure
