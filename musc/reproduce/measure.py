"""What this run measures for each table, in tidy rows: dataset, category, method, setting, row, metric, value in %."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from musc import fewshot
from musc.errors import WeightsError
from musc.reproduce import experiments, others
from musc.reproduce.paper import METRICS, table
from musc.reproduce.plugged_in import rscin_gain
from musc.reproduce.profiles import SYNTHETIC, Profile
from musc.saving import whole

KEYS = ["dataset", "category", "method", "setting", "row", "metric"]
GROUP = {"image": "image", "pixel": "pixel_{}", "pro": "pixel_{}"}
# Names in `musc backbones` of the rows of Tab. 8: pre-training, architecture.
TABLE_8 = {
    "dino_vitb16": "DINO ViT-B-16",
    "dino_vitb8": "DINO ViT-B-8",
    "dinov2_vitb14": "DINOv2 ViT-B-14",
    "dinov2_vitl14": "DINOv2 ViT-L-14",
    "ViT-B-32": "CLIP ViT-B-32",
    "ViT-B-16": "CLIP ViT-B-16",
    "ViT-B-16-plus-240": "CLIP ViT-B-16-plus-240",
    "ViT-L-14": "CLIP ViT-L-14",
    "ViT-L-14-336": "CLIP ViT-L-14-336",
    "swin_base": "Swin-B-4",
    "swin_large": "Swin-L-4",
}
TABLE_13 = ("ViT-L-14-336", "ViT-B-16-plus-240")


def source_of(metric: str, protocol: str) -> tuple[str, str]:
    """Where `MuScResult.metrics` keeps a metric of the paper's tables: its group and its name there.

    The PRO of the official masks is the released code's approximation, that of the clean ones is exact.
    """
    if metric == "pro":
        return f"pixel_{protocol}", "pro_official" if protocol == "official" else "pro"
    kind, _, name = metric.partition("_")
    return ("image" if kind == "image" else f"pixel_{protocol}"), name


def frame_of(rows: Iterable[dict], **shared: object) -> pd.DataFrame:
    """Tidy rows; what is not said of one is the zero-shot MuSc, averaged over the categories."""
    usual = {"category": "mean", "method": "MuSc", "setting": "0-shot", "row": ""}
    return pd.DataFrame([usual | shared | row for row in rows], columns=[*KEYS, "value"])


def measured_sets(lab: Profile, number: int) -> list[str]:
    """The data sets of this profile that a table is about; the synthetic one stands in for any."""
    printed = {part for name in table(number)["dataset"] for part in name.split("+")}
    return [name for name in lab.roots if name in printed or name == SYNTHETIC or printed == {""}]


def per_category(lab: Profile, dataset: str, *, hard: bool = False, **changes: object) -> pd.DataFrame:
    """All seven metrics of each category; NaN where one could not be measured."""
    rows = []
    for name in lab.names(dataset, hard=hard):
        found = lab.result(dataset, name, **changes).metrics
        for metric in METRICS:
            group, key = source_of(metric, lab.protocol)
            value = 100 * found.get(group, {}).get(key, math.nan)
            rows.append({"category": name, "metric": metric, "value": value})
    return frame_of(rows, dataset=dataset)


def averaged(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean over the categories."""
    if frame.empty:
        return frame
    keys = [k for k in KEYS if k != "category"]
    return frame.groupby(keys, sort=False, as_index=False)["value"].mean().assign(category="mean")[[*KEYS, "value"]]


def rivals(lab: Profile, number: int, dataset: str, names: Sequence[str]) -> pd.DataFrame:
    """All seven metrics, by category, of the methods in a table besides MuSc that can be run on all of `names`."""
    printed = table(number)
    here = printed["method"].isin(list(others.METHODS)) & (printed["dataset"].isin([dataset]) | (dataset == SYNTHETIC))
    frames = []
    for method, setting in printed[here][["method", "setting"]].drop_duplicates().itertuples(index=False):
        found = {name: others.measured(lab, dataset, name, method, setting) for name in names}
        rows = []
        for name, metrics in found.items():
            for metric in METRICS if metrics else ():
                group, key = source_of(metric, lab.protocol)
                value = 100 * (metrics or {}).get(group, {}).get(key, math.nan)
                rows.append({"category": name, "metric": metric, "value": value})
        if all(found.values()):
            frames.append(frame_of(rows, dataset=dataset, method=method, setting=setting))
    return joined(frames)


def overall(lab: Profile, number: int) -> pd.DataFrame:
    """Tables 1, 2 and 14: the method itself, and those others that are here. Tab. 1 prints MuSc in both blocks."""
    frames = []
    for dataset in measured_sets(lab, number):
        frames += [averaged(per_category(lab, dataset)), averaged(rivals(lab, number, dataset, lab.names(dataset)))]
    found = joined(frames)
    if number != 1 or found.empty:
        return found
    real, drawn = found[found["dataset"] != SYNTHETIC], found[found["dataset"] == SYNTHETIC]
    blocks = [
        real[(real["method"] == "MuSc") | (real["setting"] == shots)].assign(row=f"{shots} block")
        for shots in ("0-shot", "4-shot")
    ]
    return joined([*blocks, drawn])


def by_category(lab: Profile, number: int) -> pd.DataFrame:
    """Tables 17 and 18: each category, and their mean."""
    frames = [per_category(lab, dataset) for dataset in measured_sets(lab, number)]
    return joined([*frames, *map(averaged, frames)])


def oriented(lab: Profile, number: int) -> pd.DataFrame:
    """Table 12: the categories whose products lie in any direction, their mean, and the mean of all of MVTec AD; of
    MuSc, and of WinCLIP where its weights are."""
    printed = set(table(12)["category"]) | {"screw_random"}
    frames = []
    for dataset in measured_sets(lab, number):
        every = per_category(lab, dataset, hard=True)
        frames.append(every[every["category"].isin(printed)])
        whole = dataset in (SYNTHETIC, "mvtec_ad")
        names = [name for name in lab.names(dataset, hard=True) if name in printed or whole]
        found = rivals(lab, number, dataset, names)
        frames.append(found[found["category"].isin(printed)])
        if whole:
            usual = found[found["category"].isin(lab.names(dataset))]
            frames += [averaged(per_category(lab, dataset)), averaged(usual)]
    five = joined(frames)
    five = five[five["category"].isin(set(table(12)["category"]) - {"mean", "mean of these 5"})]
    for method, part in five.groupby("method", sort=False):
        if part["category"].nunique() == 5:
            mean = part.groupby("metric", as_index=False, sort=False)["value"].mean().to_dict("records")
            frames.append(frame_of(mean, dataset="mvtec_ad+visa", category="mean of these 5", method=method))
    return joined(frames)


def ablated(lab: Profile, number: int) -> pd.DataFrame:
    """Tables 3, 4, 5, 7, 9 and 10: every row from one pass over the distances, averaged over the categories."""
    return joined(of_experiment(lab, dataset, f"table_{number}") for dataset in measured_sets(lab, number))


def of_experiment(lab: Profile, dataset: str, experiment: str, **changes: object) -> pd.DataFrame:
    """The mean over the categories of all seven metrics, for every row of an experiment."""
    found = lab.ablation(dataset, experiment, **changes)
    rows = []
    for row in experiments.GRIDS[experiment] if len(found) else ():
        for metric in METRICS:
            group, key = source_of(metric, lab.protocol)
            values = found[(found["row"] == row) & (found["group"] == group) & (found["metric"] == key)]["value"]
            rows.append({"row": row, "metric": metric, "value": 100 * values.mean()})
    return frame_of(rows, dataset=dataset)


def subsets(lab: Profile, number: int) -> pd.DataFrame:
    """Table 7: metrics, and how many images the smallest and the largest part of any category has."""
    frames = [ablated(lab, number)]
    for dataset in measured_sets(lab, number):
        sizes = [len(lab.category(dataset, n)) for n in lab.names(dataset)]
        for s in experiments.GRIDS["table_7"] if sizes else ():
            ends = {"min": min(sizes) // int(s), "max": -(-max(sizes) // int(s))}
            rows = [{"row": s, "metric": f"subset_images_{end}", "value": float(n)} for end, n in ends.items()]
            frames.append(frame_of(rows, dataset=dataset))
    return joined(frames)


def cost(lab: Profile, number: int) -> pd.DataFrame:
    """Table 6: time and memory with s subsets. The paper names no data set: the first one's largest category is run."""
    dataset = next(iter(lab.roots))
    return frame_of(_cost(lab, dataset, lambda s: f"s = {s}"), dataset=SYNTHETIC if dataset == SYNTHETIC else "")


def cost_and_quality(lab: Profile, number: int) -> pd.DataFrame:
    """Table 13: time, memory, image AUROC and PRO for both of its backbones (or the chosen one) and s = 1, 2, 3; and of
    WinCLIP where its weights are."""
    frames = []
    for dataset in measured_sets(lab, number):
        chosen = (lab.config.backbone,) if lab.chosen_backbone or lab.name == "demo" else TABLE_13
        for backbone in chosen:
            found = of_experiment(lab, dataset, "table_7", backbone=backbone)
            found["row"] = f"{backbone}, s = " + found["row"]
            frames += [found, frame_of(_cost(lab, dataset, f"{backbone}, s = {{}}".format, backbone), dataset=dataset)]
        winclip, settings = averaged(rivals(lab, number, dataset, lab.names(dataset))), others.changes(lab, "WinCLIP")
        if len(winclip) and settings:
            backbone = settings.get("backbone", lab.config.backbone)
            cost = zip(("time_ms", "gpu_mb"), lab.cost(dataset, 1, **settings), strict=True)
            rows = [{"metric": metric, "value": value} for metric, value in cost]
            frames += [winclip.assign(row=backbone), frame_of(rows, dataset=dataset, method="WinCLIP", row=backbone)]
    return joined(frames)


def _cost(lab: Profile, dataset: str, label: object, backbone: str | None = None) -> list[dict]:
    changes = {"backbone": backbone} if backbone else {}
    rows = []
    for s in (1, 2, 3) if lab.names(dataset) else ():
        for metric, value in zip(("time_ms", "gpu_mb"), lab.cost(dataset, s, **changes), strict=True):
            rows.append({"row": label(s), "metric": metric, "value": value})  # type: ignore[operator]
    return rows


def backbones(lab: Profile, number: int) -> pd.DataFrame:
    """Table 8: each of its networks, or the chosen one; in `demo` the embedded one beside itself without training."""
    if lab.name == "demo":
        own = lab.config.backbone
        size = lab.musc(SYNTHETIC).backbone.image_size
        variants: dict[str, dict[str, Any]] = {f"{own}, {size} px": {}}
        if own == "procedural" and size != 224:
            variants[f"{own}, 224 px"] = {"image_size": 224}  # patches more and finer
        variants[f"{own}, {size} px, untrained"] = {"weights": "random"}
    else:
        names = (lab.config.backbone,) if lab.chosen_backbone else tuple(TABLE_8)
        variants = {name: {"backbone": name} for name in names}
    frames = []
    for dataset in measured_sets(lab, number):
        for name, changes in variants.items():
            try:
                mean = averaged(per_category(lab, dataset, **changes))
            except WeightsError:
                if len(variants) == 1:
                    raise
                continue  # its weights cannot be had: the row says "not run"
            frames.append(mean.assign(row=TABLE_8.get(name, name)))
    return joined(frames)


def plugged_in(lab: Profile, number: int) -> pd.DataFrame:
    """Table 11: SPADE and PatchCore, on the tokens of our backbone, without and with RsCIN."""
    frames = []
    for dataset in [d for d in measured_sets(lab, number) if d != "visa"]:
        rows = []
        for name in lab.names(dataset):
            pipeline, category = lab.musc(dataset), lab.category(dataset, name)
            file = lab.place / "plugged_in" / f"{pipeline.fingerprint(category)}.csv"
            if not file.exists():
                gain = rscin_gain(category, pipeline)
                with whole(file) as path:
                    gain.to_csv(path, index=False)
            for found in pd.read_csv(file, dtype={"category": str}).to_dict("records"):
                word = {"without": "w/o", "with": "w"}[found["rscin"]]
                shared = {"category": name, "method": found["method"], "setting": "full-shot", "row": word}
                rows += [shared | {"metric": m, "value": found[m]} for m in METRICS if m in found]
        frames.append(averaged(frame_of(rows, dataset=dataset)))
    return joined(frames)


def few_shot(lab: Profile, number: int) -> pd.DataFrame:
    """Tables 15 (MuSc with references) and 16 (MuSc+): the mean over the draws of the references."""
    method = "MuSc" if number == 15 else "MuSc+"
    frames = []
    for dataset in measured_sets(lab, number):
        shots, seeds = ((0, 1, 2, 4, None), 2) if lab.name == "demo" else (fewshot.SHOTS, 5)
        for name in lab.names(dataset):
            found = fewshot.sweep(
                lab.category(dataset, name), lab.musc(dataset), lab.place / "few_shot", shots=shots, seeds=seeds
            )
            mine = found[(found["method"] == method) | (found["setting"] == "0-shot")]
            for metric in METRICS:
                group, key = source_of(metric, lab.protocol)
                chosen = mine[(mine["group"] == group) & (mine["metric"] == key)]
                means = 100 * chosen.groupby(["method", "setting"], sort=False)["value"].mean()
                rows = [
                    {"category": name, "method": m, "setting": s, "metric": metric, "value": v}
                    for (m, s), v in means.items()
                ]
                frames.append(frame_of(rows, dataset=dataset))
    return averaged(joined(frames))


def joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """All rows below each other."""
    kept = [f for f in frames if not f.empty]
    return pd.concat(kept, ignore_index=True) if kept else frame_of([])
