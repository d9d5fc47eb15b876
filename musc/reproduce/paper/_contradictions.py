"""Where the printed numbers disagree with one another: found by computing, never typed in."""

from __future__ import annotations

import math

import pandas as pd

from musc.reproduce.paper._claims import ROUNDING, claims
from musc.reproduce.paper._tables import TABLES, table

KEYS = ["dataset", "category", "method", "setting", "backbone", "pretraining"]
KEYS += ["degrees", "interval_low", "interval_high", "reduction", "rscin", "subsets", "metric"]
# What a table that does not vary a setting leaves unsaid: Sec. 4 for MuSc, Tab. 13 for the others' backbones.
OURS = {
    "backbone": "ViT-L-14-336",
    "pretraining": "CLIP",
    "degrees": "1,3,5",
    "interval_low": 0,
    "interval_high": 30,
    "reduction": "mean",
    "rscin": "with",
    "subsets": 1,
}
OTHERS = {"rscin": "without"}
BACKBONES = {"APRIL-GAN": "ViT-L-14-336", "WinCLIP": "ViT-B-16-plus-240", "RegAD": "ResNet-18"}
NAMES = {
    "image_auroc": "image AUROC",
    "image_f1_max": "image F1-max",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_f1_max": "pixel F1-max",
    "pixel_ap": "pixel AP",
    "pro": "PRO",
    "mvtec_ad": "MVTec AD",
    "visa": "VisA",
    "btad": "BTAD",
    "mvtec_ad+visa": "MVTec AD and VisA",
}


def quantities() -> pd.DataFrame:
    """Every printed value of all tables, with all that it measures spelled out in the columns of `table`.

    Settings that a table leaves unsaid are the paper's own (Sec. 4), so equal rows claim to be the same quantity.
    The last three columns are value, table (its number) and note.
    """
    frames = [table(n).assign(table=n) for n in TABLES]
    every = pd.concat(frames, ignore_index=True).dropna(subset="value")
    keys = every.reindex(columns=KEYS).astype(object)
    keys = keys.where(keys.notna() & (keys != ""), None)
    ours = every["method"] == "MuSc"
    for column in KEYS:
        unsaid = keys[column].isna()
        keys.loc[unsaid & ours, column] = OURS.get(column, "")
        keys.loc[unsaid & ~ours, column] = OTHERS.get(column, "")
        if column == "backbone":
            known = unsaid & ~ours & every["method"].isin(BACKBONES)
            keys.loc[known, column] = every.loc[known, "method"].map(BACKBONES)
    return keys.assign(value=every["value"], table=every["table"], note=every["note"])


def _between_tables() -> list[dict[str, object]]:
    """The same quantity, printed with different values."""
    rows: list[dict[str, object]] = []
    for key, group in quantities().groupby(KEYS, sort=False):
        if group["value"].nunique() < 2:
            continue
        what = dict(zip(KEYS, key, strict=True))
        by_value = {value: sorted(set(g["table"])) for value, g in group.groupby("value")}
        printed = [f"{value:.1f} in Tab. {', '.join(map(str, numbers))}" for value, numbers in by_value.items()]
        varied = "" if what["method"] != "MuSc" or what["degrees"] == "1,3,5" else f" with r in {{{what['degrees']}}}"
        doubts = group[group["note"].str.contains("inferred")][["table", "note"]].drop_duplicates()
        doubt = "".join(f" (Tab. {n}: {note}.)" for n, note in doubts.itertuples(index=False))
        low, high = group["value"].min(), group["value"].max()
        rows.append(
            {
                "kind": "tables",
                "where": "Tab. " + ", ".join(str(n) for n in sorted(set(group["table"]))),
                "tables": tuple(sorted(set(group["table"]))),
                **{k: what[k] for k in ("dataset", "category", "method", "setting", "metric", "degrees")},
                "values": "; ".join(printed),
                "lowest": low,
                "highest": high,
                "difference": round(high - low, 3),
                "within_rounding": False,
                "sentence": f"{what['method']}'s {NAMES[str(what['metric'])]} on {NAMES[str(what['dataset'])]}"
                f"{varied} ({what['setting']}) is {' but '.join(printed)}.{doubt}",
            }
        )
    return rows


def half_up(value: float) -> float:
    """To one decimal, halves upward (Python rounds halves of binary fractions either way)."""
    return math.floor(value * 10 + 0.5 + 1e-9) / 10


def means() -> pd.DataFrame:
    """Every printed mean beside the mean of its own table's rows.

    Columns: table, dataset, method, metric, printed, rows (how many), recomputed, agrees (to one decimal), and
    within_rounding: whether unprinted decimals of the rows could make up the difference.
    """
    found = []
    for number, label in ((12, "mean of these 5"), (17, "mean"), (18, "mean")):
        frame = table(number)
        for (method, metric), group in frame.groupby(["method", "metric"], sort=False):
            of_rows = group[~group["category"].str.startswith("mean")]["value"]
            mean = group[group["category"] == label]
            recomputed = round(float(of_rows.mean()), 4)
            printed = float(mean["value"].item())
            found.append(
                {
                    "table": number,
                    "dataset": mean["dataset"].item(),
                    "method": method,
                    "metric": metric,
                    "printed": printed,
                    "rows": len(of_rows),
                    "recomputed": recomputed,
                    "agrees": half_up(recomputed) == printed,
                    # each row and the mean itself lie within 0.05 of what is printed
                    "within_rounding": abs(recomputed - printed) <= 2 * ROUNDING,
                }
            )
    return pd.DataFrame(found)


def _means_of_rows() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for m in means().query("not agrees").to_dict("records"):
        rows.append(
            {
                "kind": "mean",
                "where": f"Tab. {m['table']}",
                "tables": (m["table"],),
                **{k: m[k] for k in ("dataset", "method", "metric")},
                "category": "mean",
                "setting": "0-shot",
                "degrees": "1,3,5" if m["method"] == "MuSc" else "",
                "values": f"printed {m['printed']:.1f}; rows give {m['recomputed']:.3f}",
                "lowest": min(m["printed"], m["recomputed"]),
                "highest": max(m["printed"], m["recomputed"]),
                "difference": round(abs(m["printed"] - m["recomputed"]), 3),
                "within_rounding": m["within_rounding"],
                "sentence": f"Tab. {m['table']} prints {m['printed']:.1f} as the mean {NAMES[m['metric']]} on "
                f"{NAMES[m['dataset']]}; its {m['rows']} rows average to {m['recomputed']:.3f}.",
            }
        )
    return rows


def _text_against_tables() -> list[dict[str, object]]:
    words = {"=": "", "<": "less than ", ">": "more than "}
    rows: list[dict[str, object]] = []
    for c in claims().query("not holds").to_dict("records"):
        section = c["section"]
        where = section if section == "Abstract" else f"{'App.' if section[0] == 'A' else 'Sec.'} {section}"
        numbers = ", ".join(str(n) for n in c["tables"])
        rows.append(
            {
                "kind": "text",
                "where": f"{where}, Tab. {numbers}",
                "tables": c["tables"],
                **dict.fromkeys(("dataset", "category", "method", "setting", "metric", "degrees"), ""),
                "values": f"stated {words[c['relation']]}{c['stated']:g}; Tab. {numbers}: {c['found']:g}",
                "lowest": min(c["stated"], c["found"]),
                "highest": max(c["stated"], c["found"]),
                "difference": round(abs(c["stated"] - c["found"]), 3),
                "within_rounding": c["within_rounding"],
                "sentence": f"{'The abstract' if where == 'Abstract' else where} says “{c['quote']}”; "
                f"in Tab. {numbers} the {c['reading']} is {c['found']:g}.",
            }
        )
    return rows


def contradictions() -> pd.DataFrame:
    """Where the paper's numbers contradict one another, computed from the transcribed tables.

    kind is "tables" (one quantity, printed differently), "mean" (a printed mean against its own rows) or "text" (a
    sentence against its table). Columns: kind, where, tables (tuple of numbers), dataset, category, method, setting,
    metric, degrees (empty for "text"), values, lowest, highest, difference (in the unit printed), within_rounding
    (True where decimals that are not printed could reconcile them) and sentence. What rounding cannot explain comes
    first.
    """
    found = pd.DataFrame([*_between_tables(), *_means_of_rows(), *_text_against_tables()])
    return found.sort_values("within_rounding", kind="stable", ignore_index=True)
