"""Figures 6 and 11 to 16 of the paper: images, masks and maps of category after category."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from musc import metrics
from musc.errors import DataError
from musc.reproduce.draw import Drawn, by_area
from musc.reproduce.profiles import SYNTHETIC, Profile
from musc.results import figures

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


COLUMNS = 6  # images side by side


def qualitative(lab: Profile, number: int) -> Drawn:
    """Defects of a figure's categories, evenly from small to large; on the synthetic data set other products stand in.

    The numbers are of each image that is shown: how much of it the defect covers, whether the map's highest point lies
    on the defect, and the pixel AP of this image alone. Raises DataError where the profile measures none of them.
    """
    wanted = {d: DEMO[number] if d == SYNTHETIC else PAPER[number] for d in lab.roots}
    there = [(d, n) for d in lab.roots for n in lab.names(d) if n in wanted[d]]
    if not there and SYNTHETIC in lab.roots:
        there = [(SYNTHETIC, name) for name in lab.names(SYNTHETIC)][:2]
    if not there:
        raise DataError(f"Figure {number} shows {', '.join(PAPER[number])}, and this profile measures none of them.")
    pictures, masks, maps, titles, found = [], [], [], [], []
    for dataset, name in there:
        result = lab.result(dataset, name)
        size = result.anomaly_maps.shape[-1]
        by_name = {s.name: s for s in lab.category(dataset, name).samples}
        samples = [by_name[path] for path in result.paths]
        rows = by_area(samples, size)
        spread = np.linspace(0, len(rows) - 1, max(1, COLUMNS // len(there)) + 2)[1:-1]
        chosen = [rows[n] for n in sorted({round(t) for t in spread})]
        every = figures.masks_at([samples[i] for i in chosen], size)
        pictures += figures.as_seen([samples[i] for i in chosen], size)
        masks += list(every)
        maps += [np.asarray(result.anomaly_maps[i]) for i in chosen]
        for i, mask in zip(chosen, every, strict=True):
            titles.append(f"{name}\n{samples[i].defect.replace('_', ' ')}")
            found.append(_measured(name, samples[i].defect.replace("_", " "), mask, np.asarray(result.anomaly_maps[i])))
    return _picture(pictures, masks, maps, titles), pd.DataFrame(found).set_index("product"), tuple(dict(there))


def _measured(name: str, defect: str, mask: np.ndarray, anomaly_map: np.ndarray) -> dict[str, object]:
    return {
        "product": name,
        "defect": defect,
        "of the image [%]": float(100 * mask.mean()),
        "highest point on the defect": "yes" if mask.flat[anomaly_map.argmax()] else "no",
        "pixel AP [%]": float(100 * metrics.pixel_metrics(mask[None], anomaly_map[None])["ap"]),
    }


def _picture(pictures: list, masks: list, maps: list, titles: list[str]) -> Figure:
    return figures.panels(
        [pictures, masks, maps],
        titles=[titles, [], []],
        names=["image", "mask", "MuSc"],
        outlines=masks,
        label="anomaly score",
    )
