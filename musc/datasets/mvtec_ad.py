"""The MVTec AD layout: CATEGORY/test/DEFECT/000.png, CATEGORY/ground_truth/DEFECT/000_mask.png, CATEGORY/train/good.

BTAD and prepared copies of VisA are the same but for the name of the normal folder and of the masks.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from musc.datasets.base import Category, Sample, Skipped
from musc.datasets.folder import entries, images_below, is_image, no_images, relative
from musc.errors import DataError

MASK_ENDINGS = ("_mask", "", "-mask", "_gt")  # what a mask's name may add to its image's, the first found counts


def is_category(folder: Path) -> bool:
    """Whether `folder` itself is one category: it has a test folder."""
    return os.path.isdir(folder / "test")


def names(root: Path) -> list[str]:
    """The categories below `root`, sorted; or `root` itself where it is one.

    Beside categories, a folder that we may not look into counts as one, so that loading it says so.
    """
    if is_category(root):
        return [root.name]
    folders, _ = entries(root)
    known = [f for f in folders if is_category(f)]
    return [f.name for f in folders if f in known or (known and not os.access(f, os.R_OK | os.X_OK))]


def load(root: Path, name: str, *, dataset: str = "mvtec_ad", good: str = "good") -> Category:
    """One category: its test images by sorted defect folder, then sorted file name, with labels and masks.

    The folder `good` is normal and may be absent; images that lie in test/ itself are unlabeled. Without a
    ground_truth folder nothing has a mask. With one, an anomalous image whose mask is missing or ambiguous is kept
    without, and noted. Normal training images go to `train`.

    Raises DataError where there is no test image.
    """
    folder = root if is_category(root) else root / name
    skipped: list[Skipped] = []
    notes: list[Skipped] = []
    defects, loose = entries(folder / "test")
    samples = [Sample(relative(path, folder), path) for path in loose if is_image(path)]
    for defect in defects:
        images = images_below(defect, folder, skipped)
        if defect.name.lower() == good:
            samples += [Sample(relative(path, folder), path, 0, "good") for path in images]
        else:
            masks = match_masks(images, folder, defect.name, notes)
            samples += [Sample(relative(p, folder), p, 1, defect.name, masks.get(p)) for p in images]
    if not samples:
        raise DataError(no_images(folder / "test", skipped))
    normal = folder / "train" / good
    train = images_below(normal, folder, skipped) if os.path.isdir(normal) else []
    return Category(
        dataset,
        name,
        tuple(samples),
        tuple(Sample(relative(path, folder), path, 0, "good") for path in train),
        folder,
        tuple(skipped),
        tuple(notes),
    )


def match_masks(images: Sequence[Path], folder: Path, defect: str, notes: list[Skipped]) -> dict[Path, Path]:
    """The mask of each image of test/DEFECT, matched by name and never by order.

    Images without one, or with no way to tell which, are missing from the answer and named in `notes`.
    """
    test, truth = folder / "test", folder / "ground_truth"
    if not os.path.isdir(truth):
        return {}
    available: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    if os.path.isdir(truth / defect):
        for mask in images_below(truth / defect, folder, notes):
            available[mask.relative_to(truth).parent, mask.stem].append(mask)
    twins = Counter(image.with_suffix("") for image in images)
    matched: dict[Path, Path] = {}
    missing: list[Skipped] = []
    for image in images:
        where = image.relative_to(test).parent
        found = next((m for e in MASK_ENDINGS if (m := available.get((where, image.stem + e)))), [])
        same_format = [m for m in found if m.suffix.lower() == image.suffix.lower()]
        alone = twins[image.with_suffix("")] == 1
        chosen = same_format if len(found) > 1 else found if alone else []
        if len(chosen) == 1:
            matched[image] = chosen[0]
        elif found:
            masks = " and ".join(relative(m, folder) for m in found)
            reason = f"{masks} could be the mask of more than one image of that name, or there are several: rename them"
            missing.append(Skipped(relative(image, folder), f"{reason}. It is scored without a mask."))
        else:
            expected = f"ground_truth/{where.as_posix()}/{image.stem}_mask.png"
            missing.append(Skipped(relative(image, folder), f"its mask {expected} is missing: it is scored without."))
    if images and not available:
        reason = f"none of its {len(images)} images has a mask in ground_truth/{defect}: they are scored without."
        missing = [Skipped(f"test/{defect}", reason)]
    notes += missing
    return matched
