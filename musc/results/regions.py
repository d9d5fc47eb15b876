"""Regions: every connected part of an image above the threshold, in pixels of the original image, for other programs.

`regions.csv` has a line each; `regions.json` is COCO with the outlines too.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components

from musc.datasets.base import Sample
from musc.datasets.images import image_size
from musc.errors import ConfigError, DataError, ResultError, cannot_write
from musc.results import MuScResult
from musc.results.outlines import outlines
from musc.results.pictures import binary_mask
from musc.saving import whole

EIGHT = np.ones((3, 3), dtype=bool)  # pixels that touch at a corner are connected
COLUMNS = ("path", "region", "x", "y", "width", "height", "centre_x", "centre_y", "area", "mean_score", "highest_score")
FILES = ("regions.csv", "regions.json")


@dataclass(frozen=True)
class Region:
    """One region. Pixels are counted from the upper left corner of the image; a pixel is one unit wide.

    box: (x, y, width, height), whole pixels. centre: (x, y), the mean of its pixels' middles. area: in pixels. mean,
    highest: of its scores. polygons: closed outlines along the pixels' edges, each [x, y, x, y, ...]; a hole is cut
    open by a line of no width. Filled, they are exactly the region's pixels.
    """

    box: tuple[int, int, int, int]
    centre: tuple[float, float]
    area: int
    mean: float
    highest: float
    polygons: tuple[tuple[int, ...], ...]


def check(smallest: int, merge: float) -> None:
    """Raises ConfigError where a setting of the regions is impossible."""
    if smallest < 1:
        raise ConfigError(f"smallest region = {smallest!r}: give a number of pixels from 1.")
    if not 0 <= merge < np.inf:
        raise ConfigError(f"merging distance = {merge!r}: give a distance in pixels from 0.")


def find_regions(
    anomaly_map: NDArray[np.float32],
    threshold: float,
    size: tuple[int, int],
    *,
    smallest: int = 1,
    merge: float = 0,
) -> list[Region]:
    """The regions of one image, largest score first.

    The map [H, W] is stretched to size = (width, height) in pixels and cut, as the files in `masks/` are. Regions whose
    pixels come within `merge` pixels of each other (between the middles of pixels) are one, which keeps its own pixels
    only; then those of less than `smallest` pixels go. A score is that of the stretched map; `highest` counts the map's
    own pixels too, whose peaks stretching lowers.

    Example:
        >>> drawn = np.zeros((4, 6), dtype=np.float32)
        >>> drawn[1:3, 1:3], drawn[3, 5] = 0.8, 0.9
        >>> [(r.box, r.area) for r in find_regions(drawn, 0.5, (6, 4))]
        [((5, 3, 1, 1), 1), ((1, 1, 2, 2), 4)]
        >>> [(r.box, r.area) for r in find_regions(drawn, 0.5, (6, 4), merge=4)]
        [((1, 1, 5, 3), 5)]
    """
    check(smallest, merge)
    mask = binary_mask(anomaly_map, threshold, size)
    labels, count = ndimage.label(mask, structure=EIGHT)
    if merge > 1 and count > 1:
        labels, count = _merged(labels, count, merge)
    values = np.asarray(Image.fromarray(np.float32(anomaly_map)).resize(size, Image.Resampling.BILINEAR))
    peaks = _peaks(np.asarray(anomaly_map), labels, count)
    found = []
    for n, place in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[place] == n
        area = int(inside.sum())
        if area < smallest:
            continue
        top, left = place[0].start, place[1].start
        rows, columns = np.nonzero(inside)
        scores = values[place][inside].astype(np.float64)
        found.append(
            Region(
                box=(left, top, place[1].stop - left, place[0].stop - top),
                centre=(left + float(columns.mean()) + 0.5, top + float(rows.mean()) + 0.5),
                area=area,
                mean=float(scores.mean()),
                highest=max(float(scores.max()), peaks[n]),
                polygons=tuple(outlines(inside, (left, top))),
            )
        )
    return sorted(found, key=lambda r: -r.highest)


def regions_of(
    result: MuScResult,
    samples: Sequence[Sample],
    *,
    smallest: int = 1,
    merge: float = 0,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> tuple[list[list[Region]], list[tuple[int, int]]]:
    """The regions of every image of a result, and the sizes (width, height) they are measured in.

    An image that is gone is measured in pixels of its map. sizes: of the images where they are known already. Raises
    ConfigError without a threshold.
    """
    check(smallest, merge)
    if result.threshold is None:
        raise ConfigError("regions lie above a threshold: choose one with --threshold.")
    by_name = {sample.name: sample for sample in samples}
    if sizes is None:
        shapes = (anomaly_map.shape for anomaly_map in result.anomaly_maps)
        sizes = [_size(by_name.get(name), shape) for name, shape in zip(result.paths, shapes, strict=True)]
    found, at = [], result.threshold.value
    for size, anomaly_map in zip(sizes, result.anomaly_maps, strict=True):
        flagged = float(anomaly_map.max()) >= at
        found.append(find_regions(anomaly_map, at, size, smallest=smallest, merge=merge) if flagged else [])
    return found, list(sizes)


def save_regions(
    result: MuScResult,
    samples: Sequence[Sample],
    folder: Path,
    *,
    smallest: int = 1,
    merge: float = 0,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> list[list[Region]]:
    """Write regions.csv and regions.json into the folder of a result, and return the regions of every image.

    Raises ConfigError as `regions_of`, and ResultError where the folder cannot be written.
    """
    found, sizes = regions_of(result, samples, smallest=smallest, merge=merge, sizes=sizes)
    try:
        with (
            whole(folder / FILES[0]) as path,
            path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for name, of_image in zip(result.paths, found, strict=True):
                for n, r in enumerate(of_image, 1):
                    centre = (f"{v:.2f}" for v in r.centre)
                    writer.writerow([name, n, *r.box, *centre, r.area, f"{r.mean:.6g}", f"{r.highest:.6g}"])
        with whole(folder / FILES[1]) as path:
            text = json.dumps(coco(result, found, sizes, smallest=smallest, merge=merge))
            path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ResultError(cannot_write(f"regions in {folder}", error)) from error
    return found


def coco(
    result: MuScResult,
    found: Sequence[Sequence[Region]],
    sizes: Sequence[tuple[int, int]],
    *,
    smallest: int = 1,
    merge: float = 0,
) -> dict[str, Any]:
    """The regions as COCO's object detection format: one category, an annotation per region, its score beside it."""
    annotations = [
        {
            "id": 0,
            "image_id": i,
            "category_id": 1,
            "iscrowd": 0,
            "bbox": list(r.box),
            "area": r.area,
            "segmentation": [list(p) for p in r.polygons],
            "score": r.highest,
            "mean_score": r.mean,
            "centre": list(r.centre),
        }
        for i, of_image in enumerate(found, 1)
        for r in of_image
    ]
    threshold = result.threshold.value if result.threshold else None
    return {
        "info": {
            "description": f"{result.dataset} {result.category}: regions whose anomaly score reaches the threshold",
            "threshold": threshold,
            "smallest_region": smallest,
            "merging_distance": merge,
            "fingerprint": result.fingerprint,
        },
        "licenses": [],
        "images": [
            {"id": i, "file_name": name, "width": w, "height": h}
            for i, (name, (w, h)) in enumerate(zip(result.paths, sizes, strict=True), 1)
        ],
        "categories": [{"id": 1, "name": "anomaly", "supercategory": ""}],
        "annotations": [{**a, "id": n} for n, a in enumerate(annotations, 1)],
    }


def _merged(labels: NDArray[np.int32], count: int, distance: float) -> tuple[NDArray[np.int32], int]:
    """Labels [H, W], the same for regions that a chain of steps of at most `distance` pixels connects."""
    near: list[tuple[int, int]] = []
    margin = int(distance) + 1
    for n, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        around = (
            slice(max(rows.start - margin, 0), rows.stop + margin),
            slice(max(columns.start - margin, 0), columns.stop + margin),
        )
        here = labels[around]
        if set(np.unique(here).tolist()) - {0, n}:
            away = ndimage.distance_transform_edt(here != n)
            near += [(n, int(m)) for m in np.unique(here[away <= distance]) if m > n]
    pairs = np.array(near, dtype=np.int64).reshape(-1, 2)
    links = sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count + 1, count + 1))
    _, group = connected_components(links, directed=False)  # 0, the background, is linked to none
    kept, names = np.unique(group, return_inverse=True)
    assert group[0] == 0
    return names[labels].astype(np.int32), len(kept) - 1


def _peaks(anomaly_map: NDArray[np.float32], labels: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """[count + 1], the highest of the map's own pixels whose middle lies in each region; -inf where none does."""
    (h, w), (height, width) = anomaly_map.shape, labels.shape
    rows, columns = (2 * np.arange(h) + 1) * height // (2 * h), (2 * np.arange(w) + 1) * width // (2 * w)
    peaks = np.full(count + 1, -np.inf)
    np.maximum.at(peaks, labels[np.ix_(rows, columns)].ravel(), anomaly_map.ravel().astype(np.float64))
    return peaks


def _size(sample: Sample | None, shape: tuple[int, ...]) -> tuple[int, int]:
    if sample is not None:
        try:
            return image_size(sample.image)
        except DataError:  # deleted since it was scored
            pass
    return shape[1], shape[0]
