"""What a report says, gathered from a result: the page's data, and its tables of settings, weights and timings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np

from musc.config import MuScConfig
from musc.results import MuScResult
from musc.results.pictures import CMAP
from musc.results.regions import Region
from musc.results.report.images import Shown

STOPS = 33  # of the colour map, which the page interpolates


def page_data(
    result: MuScResult, shown: Shown, regions: Sequence[Sequence[Region]] | None, marks: Mapping[str, int]
) -> dict[str, Any]:
    """What the page's script reads: columns with a value per image, by falling raw score; addresses are quoted.

    regions: per image, at the threshold of the result. marks: 0 (good) or 1 (bad) by path.
    """
    order = np.argsort(-result.raw_image_scores, kind="stable").tolist()
    t = result.threshold

    def column(values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in order]

    return {
        "key": result.fingerprint,
        "scale": shown.scale,
        "colours": matplotlib.colormaps[CMAP](np.linspace(0, 1, STOPS))[:, :3].round(4).T.tolist(),
        "threshold": None if t is None or not math.isfinite(t.value) else t.value,
        "paths": column(result.paths),
        "raw": column(result.raw_image_scores.tolist()),
        "score": column([round(s, 5) for s in result.image_scores.tolist()]),
        "labels": None if result.labels is None else column(result.labels.tolist()),
        "defects": column(result.defects),
        "sizes": column(shown.sizes),
        "files": [column([quote(p) for p in row]) for row in (
            shown.thumbnails, shown.copies, shown.maps, shown.truths)],
        "regions": None if regions is None else column(
            [[[*r.box, r.area, round(r.highest, 4)] for r in of] for of in regions]),
        "overlap": shown.overlap,
        "alarms": shown.alarms,
        "marks": {path: int(mark) for path, mark in marks.items()},
    }  # fmt: skip


def facts(result: MuScResult) -> list[tuple[str, list[tuple[str, str]]]]:
    """The tables at the page's end: metrics, settings (the given ones first), weights and versions, timings."""
    c, t = result.config, result.threshold
    defaults = {f.name: f.default for f in dataclasses.fields(MuScConfig)}
    settings = {name: value for name, value in c.to_dict().items() if value is not None}
    given = [name for name in settings if getattr(c, name) != defaults[name]]
    decided = []
    if t is not None:
        rate = "not known" if t.false_alarm_rate is None else f"{100 * t.false_alarm_rate:.2g} % of the normal images"
        decided = [("value", f"{t.value:.6g}"), ("method", t.method), ("false alarms, estimated", rate)]
        decided += [("note", t.note)] if t.note else []
    measured = [
        (f"{group.replace('_', ' ')}: {name.replace('_', ' ')}", f"{100 * value:.1f} %")
        for group, values in result.metrics.items()
        for name, value in values.items()
    ]
    tables = [
        ("Threshold", decided),
        ("Metrics", measured),
        ("Settings that were given", [(name, _text(settings[name])) for name in given]),
        ("Settings at their defaults", [(n, _text(v)) for n, v in settings.items() if n not in given]),
        ("Network", [("backbone", c.backbone), ("weights", result.weights)]),
        ("Versions and machine", list(result.environment.items())),
        ("Seconds", [(name, f"{seconds:.2f}") for name, seconds in result.timings.items()]),
        ("Images", [("folder", result.root), ("fingerprint", result.fingerprint)]),
    ]
    filled = [(title, [(name, value) for name, value in rows if value]) for title, rows in tables]
    return [(title, rows) for title, rows in filled if rows]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
