"""The VisA layout: split_csv/1cls.csv lists object, split, label, image and mask, with paths from the root.

The copy that many authors prepare from it, [1cls/]OBJECT/test/{bad,good}, is read as well.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from musc.datasets import mvtec_ad
from musc.datasets.base import Category, Sample, Skipped
from musc.errors import DataError
from musc.saving import regular_file

OBJECTS = frozenset(
    ["candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"]
    + [f"pcb{n}" for n in range(1, 5)]
    + ["pipe_fryum"]
)
COLUMNS = ("object", "split", "label", "image", "mask")


def split_file(root: Path) -> Path:
    """Where VisA lists its official split for one class at a time."""
    return root / "split_csv" / "1cls.csv"


def names(root: Path) -> list[str]:
    """The objects that the split lists, sorted; or those of a prepared copy."""
    if not os.path.exists(split_file(root)):
        return mvtec_ad.names(prepared(root))
    return sorted({row["object"] for row in _rows(root)})


def load(root: Path, name: str) -> Category:
    """One object's test images: anomalous ones first, each group sorted by path; its normal training images.

    A file that the split lists and that is not there is skipped by name (an image) or noted (a mask).
    Raises DataError where the split cannot be read or lists no image that is there.
    """
    if not os.path.exists(split_file(root)):
        return mvtec_ad.load(prepared(root), name, dataset="visa")
    skipped: dict[str, Skipped] = {}
    notes: list[Skipped] = []
    samples: dict[str, Sample] = {}
    train: dict[str, Sample] = {}
    for row in _rows(root):
        if row["object"] != name:
            continue
        image = _path(root, row["image"])
        key = image.relative_to(root / name).as_posix() if image.is_relative_to(root / name) else row["image"]
        group = train if row["split"] == "train" else samples
        if not os.path.exists(image):
            skipped[key] = Skipped(key, f"{image} is listed in {split_file(root).name} and is not there.")
        elif key in group:
            notes.append(Skipped(key, f"listed more than once in {split_file(root).name}: the first line counts."))
        elif row["label"] == "normal":
            group[key] = Sample(key, image, 0, "good")
        else:
            mask = _path(root, row["mask"]) if row["mask"] else None
            if mask is None or not os.path.exists(mask):
                what = "has no mask in the split" if mask is None else f"its mask {mask} is missing"
                notes.append(Skipped(key, f"{what}: it is scored without."))
                mask = None
            group[key] = Sample(key, image, 1, row["label"], mask)
    if not samples:
        raise DataError(
            f"{split_file(root)} lists no test image of {name} that is there: unpack VisA whole into {root}."
        )
    ordered = tuple(sorted(samples.values(), key=lambda s: (s.label == 0, s.name)))
    normal = tuple(sorted((s for s in train.values() if s.label == 0), key=lambda s: s.name))
    return Category("visa", name, ordered, normal, root / name, tuple(skipped.values()), tuple(notes))


def _rows(root: Path) -> list[dict[str, str]]:
    path = split_file(root)
    try:
        with regular_file(path) as opened, io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if lacking := [c for c in COLUMNS if c not in (reader.fieldnames or [])]:
                raise DataError(f"{path} lacks the columns {', '.join(lacking)}: use the file that VisA ships.")
            return [{c: (row[c] or "").strip() for c in COLUMNS} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}): use the file that VisA ships.") from None


def _path(root: Path, listed: str) -> Path:
    return root / listed.replace("\\", "/")


def prepared(root: Path) -> Path:
    """The folder of the objects in a prepared copy: `root`, or 1cls below it."""
    return root / "1cls" if os.path.isdir(root / "1cls") else root
