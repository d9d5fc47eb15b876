"""The MVTec AD layout: CATEGORY/test/DEFECT/000.png, CATEGORY/ground_truth/DEFECT/000_mask.png, CATEGORY/train/good.

BTAD and prepared copies of VisA are the same but for the name of the normal folder and of the masks; other usual names
of folders are known (`words`), in any letter case.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from musc.datasets.base import Category, Sample, Skipped, Source
from musc.datasets.listing import Listing, any_image, child, entries, no_images, relative
from musc.datasets.pairing import Masks, key, match, split
from musc.datasets.words import is_masks, kind, normal_folders
from musc.errors import DataError


def is_category(folder: Path) -> bool:
    """Whether `folder` itself is one category: it has a test folder."""
    return child(folder, "test") is not None


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

    The folder `good`, or one with another usual name for normal images, is normal; images that lie in test/ itself are
    unlabeled. Without a ground_truth folder nothing has a mask. With one, an anomalous image whose mask is missing or
    ambiguous is kept without, and noted. Normal training images go to `train`. What else lies in the category or
    beside it is named in `skipped`.

    Raises DataError where there is no test image, or nothing says which of its folders is normal.
    """
    folder = root if is_category(root) else root / name
    test, training = child(folder, "test") or folder / "test", child(folder, "train")
    listing, of_masks, notes = Listing(folder), Listing(folder), list[Skipped]()
    subfolders, _ = entries(test)
    truth = [f for f in (*entries(folder)[0], *subfolders) if is_masks(f.name)]
    defects = [f for f in subfolders if f not in truth]
    masks = [mask for f in truth for mask in of_masks.below(f)]
    listing.skipped += of_masks.skipped
    normal_training = _normal_training(training, good)
    spoken_of = {key(mask, folder)[0][:1] for mask in masks} & {(f.name.casefold(),) for f in defects}
    loose = split(listing.here(test), folder).photographs
    certain = bool(spoken_of or normal_training or loose)
    normal = [f.name for f in defects if f.name.casefold() == good]
    normal = normal or normal_folders([f.name for f in defects], relative(test, folder.parent), certain)

    samples = [Sample(listing.name(path), path) for path in loose]
    for defect in defects:
        found = split(listing.below(defect), folder)
        listing.skipped += found.skipped
        if defect.name in normal:
            samples += [Sample(listing.name(path), path, 0, "good") for path in found.photographs]
        else:
            every = Masks([*masks, *found.masks], folder)
            matched = _masks_of(found.photographs, every, listing, defect, truth, notes)
            samples += [Sample(listing.name(p), p, 1, defect.name, matched.get(p)) for p in found.photographs]
    if not samples:
        raise DataError(no_images(test, listing.left_out()))
    if normal and all(n.casefold() != good for n in normal):
        flawed = ", ".join(f.name for f in defects if f.name not in normal) or "nothing"
        text = f"by its folders, {', '.join(normal)} is normal, {flawed} anomalous."
        notes.append(Skipped(relative(test, folder), text))
    train = [path for f in normal_training for path in split(listing.below(f), folder).photographs]
    beside = _beside(folder, [test, training, *truth]) + ([] if folder == root else _beside_categories(root))
    return Category(
        dataset,
        name,
        tuple(samples),
        tuple(Sample(listing.name(path), path, 0, "good") for path in train),
        folder,
        (*listing.left_out(), *beside),
        tuple(notes),
    )


def _normal_training(training: Path | None, good: str) -> list[Path]:
    """The folders of normal training images."""
    if training is None:
        return []
    if os.path.isdir(training / good):
        return [training / good]
    try:
        return [f for f in entries(training)[0] if kind(f.name) == "good"]
    except DataError:  # training images are extra
        return []


def _masks_of(
    images: Sequence[Path], masks: Masks, listing: Listing, defect: Path, truth: Sequence[Path], notes: list[Skipped]
) -> dict[Path, Source]:
    """The mask of each image of test/DEFECT. Images without one, or with no way to tell which, are named in `notes`."""
    folder, missing = listing.base, list[Skipped]()
    if not masks.at and not truth:
        return {}
    where = relative(truth[0], folder) if truth else relative(defect, folder)

    def without(image: Path, candidates: Sequence[Path]) -> None:
        if candidates:
            listed = " and ".join(relative(m, folder) for m in candidates)
            text = f"{listed} could be the mask of more than one image of that name, or there are several: rename them"
            missing.append(Skipped(listing.name(image), f"{text}. It is scored without a mask."))
        else:
            place = "/".join([where, *image.relative_to(defect.parent).parts[:-1]])
            expected = f"{place}/{image.stem}_mask.png"
            missing.append(Skipped(listing.name(image), f"its mask {expected} is missing: it is scored without."))

    matched = match(images, masks, without)
    if images and not matched and not any(folders[:1] == (defect.name.casefold(),) for folders in masks.folders):
        text = f"none of its {len(images)} images has a mask in {where}/{defect.name}: they are scored without."
        missing = [Skipped(relative(defect, folder), text)]
    notes += missing
    return matched


def _beside(folder: Path, read: Sequence[Path | None]) -> list[Skipped]:
    """What lies in a category beside its test set, and is not read."""
    folders, _ = entries(folder)
    loose = Listing(folder).here(folder)
    said = [_left_out(folder, loose, "beside the test folder", "put them into it")] if loose else []
    for other in folders:
        if other not in read and any_image(other):
            text = f"the folder {relative(other, folder)} holds images, and only test, ground_truth and train are read."
            said.append(Skipped(relative(other, folder), text))
    return said


def _beside_categories(root: Path) -> list[Skipped]:
    """What lies beside the categories of a data set, and is in none of them."""
    folders, _ = entries(root)
    loose = Listing(root).here(root)
    said = [_left_out(root, loose, "beside the categories", "use the layout `folder` for them")] if loose else []
    for other in folders:
        if not is_category(other) and any_image(other):
            text = f"the folder {relative(other, root)} holds images and no test folder: it is no category."
            said.append(Skipped(relative(other, root), text))
    return said


def _left_out(folder: Path, images: Sequence[Path], where: str, remedy: str) -> Skipped:
    first = ", ".join(relative(path, folder) for path in images[:3]) + ", ..." * (len(images) > 3)
    return Skipped(".", f"{len(images)} images {where} are left out ({first}): {remedy} to have them scored.")
