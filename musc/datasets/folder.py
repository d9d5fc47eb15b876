"""Any folder of images, as one product. Labels are known where folders are called as normal and anomalous images are.

The folders normal, abnormal and mask of anomalib, and VisA's Data/Images and Data/Masks, are read this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from musc.datasets.base import Category, Sample, Skipped, printable
from musc.datasets.listing import Listing, no_images
from musc.datasets.masks import Union
from musc.datasets.pairing import Masks, Split, key, match, split
from musc.datasets.words import kind
from musc.errors import DataError


def names(root: Path) -> list[str]:
    """The one category of such a folder: its own name."""
    return [printable(root.name)]


def load(root: Path, name: str) -> Category:
    """Every image in `root` and below as one product: files of a folder first, then its subfolders.

    Unlabeled, unless folders for normal and for anomalous images (`words.kind`), or for normal images and their
    masks, say more. Masks are no images: they are used where images have labels, and otherwise left out.

    Raises DataError where there is no image.
    """
    listing = Listing(root)
    found = split(listing.below(root), root)
    if not found.photographs:
        raise DataError(no_images(root, listing.left_out()))
    labels = {path: _label(path, root, found.masks) for path in found.photographs}
    if not {0, 1} <= {label for label, _ in labels.values()}:
        samples = tuple(Sample(listing.name(path), path) for path in found.photographs)
        return Category("folder", name, samples, root=root, skipped=(*listing.left_out(), *found.left_out(root)))
    return _labeled(listing, name, found, labels)


def _labeled(listing: Listing, name: str, found: Split, labels: dict[Path, tuple[int | None, str]]) -> Category:
    root, notes = listing.base, list[Skipped]()
    anomalous = [path for path, (label, _) in labels.items() if label == 1]

    def without(image: Path, candidates: Sequence[Path]) -> None:
        if found.masks:
            text = f"it has {'several' if candidates else 'no'} masks in this folder: it is scored without."
            notes.append(Skipped(listing.name(image), text))

    masks = match(anomalous, Masks(found.masks, root), without)
    normal = sorted({folder for label, folder in labels.values() if label == 0})
    flawed = sorted({folder for label, folder in labels.values() if label == 1})
    notes.append(Skipped(".", f"by their folders, {', '.join(normal)} is normal, {', '.join(flawed)} anomalous."))
    used = {part for mask in masks.values() for part in (mask.parts if isinstance(mask, Union) else (mask,))}
    idle = Split(found.photographs, [m for m in found.masks if m not in used and not _of_normal(m, root)])
    samples = tuple(
        Sample(listing.name(path), path, label, "good" if label == 0 else folder, masks.get(path))
        for path, (label, folder) in labels.items()
    )
    skipped = (*listing.left_out(), *found.skipped, *idle.left_out(root))
    return Category("folder", name, samples, root=root, skipped=skipped, notes=tuple(notes))


def _label(path: Path, root: Path, masks: Sequence[Path]) -> tuple[int | None, str]:
    """(0 normal, 1 anomalous or None, the folder that says it)."""
    defects = {folder for mask in masks for folder in key(mask, root)[0]}
    for folder in reversed(path.relative_to(root).parts[:-1]):
        if kind(folder):
            return (0 if kind(folder) == "good" else 1), folder
        if folder.casefold() in defects:
            return 1, folder
    return None, ""


def _of_normal(mask: Path, root: Path) -> bool:
    return any(kind(folder) == "good" for folder in mask.relative_to(root).parts[:-1])
