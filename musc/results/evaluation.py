"""Labels and masks of a category, and the seven metrics of its scores and maps (Sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from musc import metrics
from musc.config import MASK_PROTOCOLS
from musc.datasets.base import Sample, Skipped
from musc.datasets.images import image_size
from musc.datasets.masks import how_masks_were_read, load_mask, official_rule, resize_mask
from musc.errors import DataError
from musc.results import Metrics
from musc.sizes import Size, rows_columns, written


@dataclass(frozen=True)
class Truth:
    """What is known of the images of a category: `labels` [N] (None: not of all), and `masks` per protocol, [n, H, W],
    of the images `rows`. notes: what is missing."""

    labels: Tensor | None
    rows: list[int]
    masks: dict[str, Tensor]
    notes: list[str]


def read_truth(dataset: str, samples: Sequence[Sample], size: Size | None) -> Truth:
    """Labels and masks, these at the maps' size in pixels (None: no masks); both mask protocols."""
    labels = [s.label for s in samples]
    if None in labels:
        return Truth(None, [], {}, [])
    truth = torch.tensor(labels)
    if len(set(labels)) < 2:
        kind = "anomalous" if labels[0] else "normal"
        return Truth(None, [], {}, [f"no metrics: all {len(labels)} images are {kind}."])
    if size is None:
        return Truth(truth, [], {}, [])
    native, notes = _read_masks(samples)
    if not native:
        return Truth(truth, [], {}, [*notes, "no pixel metrics: no masks."])
    rows = [i for i, s in enumerate(samples) if not s.label or i in native]
    masks = {protocol: torch.zeros(len(rows), *rows_columns(size), dtype=torch.bool) for protocol in MASK_PROTOCOLS}
    for protocol, stack in masks.items():
        for row, i in enumerate(rows):
            if i in native:
                stack[row] = resize_mask(native[i], size, protocol, official_rule(dataset))
        if not stack.any():
            notes.append(f"no pixel metrics with {protocol} masks: no pixel stays anomalous at {written(size)} px.")
    return Truth(truth, rows, {name: stack for name, stack in masks.items() if stack.any()}, notes)


def evaluate(
    truth: Truth,
    scores: Float[Tensor, "N"],
    raw_scores: Float[Tensor, "N"],
    maps: Float[Tensor, "N H W"] | None,
) -> Metrics:
    """All seven metrics, with both mask protocols and both PROs, as far as labels and masks are known.

    maps None: the image metrics only.

    Example:
        >>> truth = Truth(torch.tensor([0, 0, 1]), rows=[], masks={}, notes=[])
        >>> scores = torch.tensor([0.1, 0.2, 0.9])
        >>> evaluate(truth, scores, scores, maps=None)["image"]
        {'auroc': 1.0, 'f1_max': 1.0, 'ap': 1.0}
    """
    if truth.labels is None:
        return {}
    measured: Metrics = {
        "image": metrics.image_metrics(truth.labels, scores),
        "image_before_rscin": metrics.image_metrics(truth.labels, raw_scores),
    }
    if maps is not None and truth.masks:
        chosen = maps if len(truth.rows) == len(maps) else maps[truth.rows]
        ranked = metrics.rank(chosen)
        for protocol, masks in truth.masks.items():
            found = metrics.pixel_metrics(masks, chosen, pro=("exact", "official"), ranked=ranked)
            measured[f"pixel_{protocol}"] = found
    return measured


def _read_masks(samples: Sequence[Sample]) -> tuple[dict[int, Any], list[str]]:
    """The masks of the anomalous images by row; a mask that is missing or does not fit is named, and left out."""
    masks, bad, hows = {}, [], list[str]()
    for i, sample in enumerate(samples):
        if sample.label:
            try:
                if sample.mask is None:
                    raise DataError(f"{sample.name} has no mask.")
                mask = load_mask(sample.mask, image_size(sample.image), sample.name)
                masks[i] = mask.grey
                hows.append(mask.how)
            except DataError as error:
                bad.append(Skipped(sample.name, str(error)))
    given = any(sample.mask is not None for sample in samples if sample.label)
    notes = [f"left out of the pixel metrics: {s.reason}" for s in bad] if given else []
    wide = sum(float((grey > 127).mean()) > 0.5 for grey in masks.values())
    if 2 * wide > len(masks):
        notes.append(f"{wide} of {len(masks)} masks mark more than half of their image: white is anomalous; invert "
                     "them if black is meant.")  # fmt: skip
    return masks, notes + how_masks_were_read(hows)
