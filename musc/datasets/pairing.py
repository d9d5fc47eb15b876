"""Which of the images of a folder are masks of others, and whose."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from musc.datasets.base import Skipped, Source
from musc.datasets.listing import relative
from musc.datasets.masks import Union, mask_like
from musc.datasets.words import MASKS, NEUTRAL, OTHER_MODALITIES, kind, plain

# What a mask's name may add to its image's, behind or before it; the first found counts.
ENDINGS = ("_mask", "", "-mask", "_gt")
_WORDS = ("mask", "masks", "gt", "label", "labels", "labelids", "seg", "segmentation", "ground_truth", "groundtruth",
          "annotation", "anno", "ann", "truth", "bin", "binary", "defect_mask")  # fmt: skip
MORE_ENDINGS = tuple(f"{mark}{word}" for mark in ("_", "-", ".", " ", "") for word in _WORDS)
MOST_SIBLINGS = 6  # folders of one scene: pictures, masks, depth, ...
LOOKED_AT = 5  # files of a group that are opened to see whether they are masks
Key = tuple[tuple[str, ...], str]


@dataclass(frozen=True)
class Split:
    """Photographs and masks of a listing; `skipped` names other measurements of the same scenes, such as depth."""

    photographs: list[Path]
    masks: list[Path]
    skipped: tuple[Skipped, ...] = ()

    def left_out(self, base: Path) -> tuple[Skipped, ...]:
        """What is said of masks that are not used."""
        if not self.masks:
            return self.skipped
        names = ", ".join(relative(m, base) for m in self.masks[:3]) + ", ..." * (len(self.masks) > 3)
        text = (
            f"{len(self.masks)} files are taken for masks, by their names and the few values they hold, and are not "
            f"scored: {names}."
        )
        return (*self.skipped, Skipped("masks", text))


def split(images: Sequence[Path], base: Path) -> Split:
    """Tell masks from photographs: files in folders called so, files named after another image (its stem with
    another suffix, or with _mask and the like), and folders that repeat the names of another one; each only where the
    files hold at most a few values and their partners do not. Where nothing else is there, everything is a photograph.
    """
    looks = _Looks()
    masks: set[Path] = set()
    for group in _folders_of_masks(images, base).values():
        if looks.masks(group):
            masks.update(group)
    others, measured = [i for i in images if i not in masks], list[Path]()
    for pairs in _named_after(others).values():
        found, partners = [f for f, _ in pairs], [p for _, p in pairs]
        if looks.masks(found) and not looks.masks(partners):
            masks.update(found)
    others = [i for i in images if i not in masks]
    for group, partners in _folders_alike(others):
        if not {plain(part) for part in group[0].relative_to(base).parts[:-1]}.isdisjoint(OTHER_MODALITIES):
            measured += group
        elif looks.masks(group) and not looks.masks(partners):
            masks.update(group)
    photographs = [i for i in images if i not in masks and i not in measured]
    if not photographs:
        return Split(list(images), [])
    text = f"{len(measured)} files beside the pictures hold other measurements of the same scenes, and are not scored."
    said = (Skipped(relative(measured[0].parent, base), text),) if measured else ()
    return Split(photographs, [i for i in images if i in masks], said)


def key(path: Path, base: Path) -> Key:
    """(folders, stem) of a file, by which an image and its mask find each other: without the folders that only say
    "masks" or "images", in small letters."""
    parts = [part.casefold() for part in path.relative_to(base).parts[:-1] if plain(part) not in MASKS | NEUTRAL]
    return tuple(parts), path.stem.casefold()


class Masks:
    """Masks by the images that they may belong to, matched by name and never by order."""

    def __init__(self, masks: Iterable[Path], base: Path) -> None:
        self.at: dict[Key, list[Path]] = defaultdict(list)
        self.stems: dict[str, list[Path]] = defaultdict(list)
        for mask in masks:
            where, stem = key(mask, base)
            self.at[where, stem].append(mask)
            if not where:  # all masks in one folder, whatever folders the images have
                self.stems[stem].append(mask)
        self.folders = {where for where, _ in self.at}
        self.base = base

    def of(self, image: Path) -> list[Path]:
        """The masks that may be the image's: by its folder and name, or by its name alone in a flat folder of masks."""
        where, stem = key(image, self.base)
        names = [stem + ending for ending in (*ENDINGS, *MORE_ENDINGS)]
        names += [f"{word}{mark}{stem}" for word in ("mask", "gt", "label") for mark in ("_", "-")]
        for found in (self.at.get((where, name)) for name in names):
            if found:
                return found
        return next((self.stems[name] for name in names if name in self.stems), [])

    def parts_of(self, image: Path) -> list[Path]:
        """The masks in a folder that is called as the image: ground_truth/DEFECT/000/*.png."""
        where, stem = key(image, self.base)
        return [m for (folders, _), found in self.at.items() if folders == (*where, stem) for m in found]


def match(images: Sequence[Path], masks: Masks, say: Callable[[Path, list[Path]], None]) -> dict[Path, Source]:
    """The mask of each image that has one. say: called with each other image and the masks that it could have (none,
    or several, or one that another image of the same name could have as well)."""
    twins = Counter(image.with_suffix("") for image in images)
    flat = Counter(image.stem.casefold() for image in images)
    matched: dict[Path, Source] = {}
    for image in images:
        found = masks.of(image)
        same_format = [m for m in found if m.suffix.lower() == image.suffix.lower()]
        alone = twins[image.with_suffix("")] == 1
        if found and not key(found[0], masks.base)[0] and key(image, masks.base)[0]:
            alone = alone and flat[image.stem.casefold()] == 1  # found by name alone
        chosen = same_format if len(found) > 1 else found if alone else []
        parts = [] if found else masks.parts_of(image)
        if len(chosen) == 1:
            matched[image] = chosen[0]
        elif parts and alone:
            matched[image] = parts[0] if len(parts) == 1 else Union(tuple(parts))
        else:
            say(image, found or parts)
    return matched


class _Looks:
    """Whether groups of files look like masks; a file is opened once."""

    def __init__(self) -> None:
        self.seen: dict[Path, bool | None] = {}

    def masks(self, group: Sequence[Path]) -> bool:
        """Whether most of a few files of the group hold what masks hold; what cannot be read decides nothing."""
        step = max(1, len(group) // LOOKED_AT)
        looked = []
        for path in group[::step][:LOOKED_AT]:
            if path not in self.seen:
                self.seen[path] = mask_like(path)
            if self.seen[path] is not None:
                looked.append(self.seen[path])
        return bool(looked) and 2 * sum(map(bool, looked)) > len(looked)


def _folders_of_masks(images: Sequence[Path], base: Path) -> dict[Path, list[Path]]:
    """Files below folders that are called as masks are, by that folder."""
    groups: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        above = [p for p in image.parents if p != base and p.is_relative_to(base) and plain(p.name) in MASKS]
        if above:
            groups[above[-1]].append(image)
    return groups


def _named_after(images: Sequence[Path]) -> dict[tuple[Path, str, str], list[tuple[Path, Path]]]:
    """(file, image it may be the mask of) by folder and what tells their names apart."""
    by_stem: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for image in images:
        by_stem[image.parent, image.stem.casefold()].append(image)
    groups: dict[tuple[Path, str, str], list[tuple[Path, Path]]] = defaultdict(list)
    endings = [e for e in (*ENDINGS, *MORE_ENDINGS) if e]
    for image in images:
        stem = image.stem.casefold()
        for other in by_stem[image.parent, stem]:
            if other != image:
                groups[image.parent, image.suffix.lower(), other.suffix.lower()].append((image, other))
        for ending in endings:
            if stem.endswith(ending) and (partners := by_stem.get((image.parent, stem.removesuffix(ending)))):
                groups[image.parent, ending, ""].append((image, partners[0]))
        for word in ("mask", "gt", "label"):
            for mark in "_-":
                start = word + mark
                if stem.startswith(start) and (partners := by_stem.get((image.parent, stem.removeprefix(start)))):
                    groups[image.parent, start, ""].append((image, partners[0]))
    return groups


def _folders_alike(images: Sequence[Path]) -> list[tuple[list[Path], list[Path]]]:
    """(files of a folder, the files of another one that have the same stems), all of them and at least two."""
    folders: dict[Path, dict[str, Path]] = defaultdict(dict)
    for image in images:
        folders[image.parent][image.stem.casefold()] = image
    beside: dict[Path, list[Path]] = defaultdict(list)
    for folder in folders:
        beside[folder.parent].append(folder)
    alike = []
    for siblings in beside.values():
        if 2 <= len(siblings) <= MOST_SIBLINGS:  # more are parts or views with files of the same names
            for folder, other in permutations(siblings, 2):
                own, theirs = folders[folder], folders[other]
                if len(own) > 1 and not kind(folder.name) and own.keys() <= theirs.keys():
                    alike.append((list(own.values()), [theirs[stem] for stem in own]))
    return alike
