"""Data sets: one lister per layout, each giving a `Category` of `Sample`s.

Nothing is decoded but a few of the files that may be masks of others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from musc.datasets import btad, folder, mvtec_ad, visa
from musc.datasets.base import Category, Rendered, Sample, Skipped, Source, printable
from musc.datasets.listing import child, entries
from musc.datasets.memory import in_memory
from musc.errors import ConfigError, DataError, MuscError

LAYOUTS = ("mvtec_ad", "visa", "btad", "folder", "synthetic")
_LISTERS = {"mvtec_ad": mvtec_ad, "visa": visa, "btad": btad, "folder": folder}
# Paths, arrays, PIL images, samples, or a dict of them by name; one PIL image alone is refused in words.
Images = Category | Path | str | Iterable[Any] | Image.Image

__all__ = [
    "LAYOUTS", "Category", "Images", "Rendered", "Sample", "Skipped", "Source",
    "as_category", "detect_layout", "list_categories", "load", "load_category", "located",
]  # fmt: skip


def detect_layout(root: Path | str) -> str:
    """The layout that a folder looks like, one of LAYOUTS.

    "visa" has split_csv/1cls.csv (or VisA's objects in test/{bad,good}), "btad" CATEGORY/test/{ok,ko}, "mvtec_ad"
    CATEGORY/test; the folder may itself be the category. Anything else is a "folder" of images.
    Raises DataError where it is no folder or may not be listed.
    """
    root = _root(root)
    entries(root)
    if os.path.exists(visa.split_file(root)) or visa.prepared(root) != root:
        return "visa"
    categories = [root] if mvtec_ad.is_category(root) else [root / name for name in mvtec_ad.names(root)]
    if not categories:
        return "folder"
    defects = {name for category in categories for name in _subfolders(child(category, "test"))}
    if defects and defects <= {"ok", "ko"}:
        return "btad"
    if defects <= {"bad", "good"} and visa.OBJECTS.issuperset(c.name for c in categories):
        return "visa"
    return "mvtec_ad"


def list_categories(layout: str | None, root: Path | str | None = None) -> list[str]:
    """Names of the categories (products) under `root`, sorted; layout None looks at the folder.

    Raises ConfigError on an unknown layout, DataError where the folder has no category in that layout.

    Example:
        >>> list_categories("synthetic")[:3]
        ['board', 'bottle_top', 'capsule']
    """
    if layout == "synthetic":
        return _synthetic_names()
    path, lister = _lister(layout, root)
    if not (found := lister.names(path)):
        raise DataError(
            f"{path} has no category in the {layout} layout (CATEGORY/test/DEFECT/image): name the folder above the "
            "categories, or use the layout `folder` for images without labels."
        )
    return found


def load_category(
    layout: str | None, root: Path | str | None = None, name: str | None = None, **options: Any
) -> Category:
    """One category: its images, what is known of them, and the files that were left out.

    Args:
        layout: one of LAYOUTS; None looks at the folder.
        root: the data set's folder, or one category's; the synthetic set has none.
        name: the category; None where there is only one.
        options: good, defects, train, size, seed of the synthetic data set; the others have none.

    Raises:
        DataError: no such folder or category, no image in it, or several categories and no name.
        ConfigError: an unknown layout, or options that it does not have.

    Example:
        >>> tile = load_category("synthetic", name="tile", good=3, defects=1)
        >>> len(tile), tile.labeled, tile.has_masks
        (4, True, True)
    """
    available = list_categories(layout, root)
    if name is None and len(available) > 1:
        raise DataError(f"{root or layout} holds {len(available)} categories: name one of {', '.join(available)}.")
    if name is not None and name not in available:
        raise DataError(f"{root or layout} has no category {name!r}; it has {', '.join(available)}.")
    name = name or available[0]
    if layout == "synthetic":
        from musc.datasets import synthetic

        return synthetic.category(name, **options)
    if options:
        raise ConfigError(f"{', '.join(sorted(options))}: only the synthetic data set has such options.")
    path, lister = _lister(layout, root)
    return lister.load(path, name)


def load(
    root: Path | str | None = None,
    layout: str | None = None,
    categories: Sequence[str] | None = None,
    **options: Any,
) -> list[Category]:
    """Several categories: `categories`, or all that there are (`load_category` has the arguments and errors).

    Where several are read and one has no images, it comes back without samples and with the reason in `skipped`, so
    that the others are still scored. Without a root the synthetic data set is meant.

    Example:
        >>> [category.name for category in load(categories=["tile", "leather"], good=1, defects=1)]
        ['tile', 'leather']
    """
    if layout is None:
        layout = "synthetic" if root is None else detect_layout(root)
    chosen = list(categories) if categories else list_categories(layout, root)
    if len(chosen) == 1:
        return [load_category(layout, root, chosen[0], **options)]
    available = list_categories(layout, root)
    if unknown := [name for name in chosen if name not in available]:
        raise DataError(f"{root or layout} has no category {', '.join(unknown)}; it has {', '.join(available)}.")
    loaded = []
    for name in chosen:
        try:
            loaded.append(load_category(layout, root, name, **options))
        except DataError as error:
            loaded.append(Category(layout, name, (), skipped=(Skipped(name, str(error)),)))
    if not any(loaded):
        raise DataError(f"none of the {len(loaded)} categories can be read: {loaded[0].skipped[0].reason}")
    return loaded


def located(names: Sequence[str], layout: str, root: Path | str) -> dict[str, Sample]:
    """Those of the images of an earlier result that are still in its folder, by name; the name of a file that cannot be
    printed as it is, such as one that is no UTF-8, is found by listing the folder again."""
    found: dict[str, Sample] = {}
    try:
        listed = load_category(layout if layout in LAYOUTS else None, root).samples
        found = {sample.name: sample for sample in listed}
    except MuscError:  # moved, or a list of files and no category
        pass
    for name in names:
        for file in (Path(name), Path(root, name), Path(root, Path(name).name)):
            if name not in found and file.is_file():
                found[name] = Sample(name, file)
    return {name: found[name] for name in names if name in found}


def as_category(images: Images) -> Category:
    """A Category as it is; a folder, listed by its layout; or images, unlabeled and in the given order.

    images: paths, numpy arrays, PIL images (see `memory.in_memory`), samples of a category, or a dict of any of them by
    name. Those in memory without a name are called image_000, image_001, ...

    Raises:
        DataError: an image given twice, or an array that is no image.

    Example:
        >>> import numpy as np
        >>> [sample.name for sample in as_category([np.zeros((8, 8)), np.ones((8, 8))])]
        ['image_000', 'image_001']
    """
    if isinstance(images, Category):
        return images
    if isinstance(images, str | Path):
        return load_category(None, Path(images))
    if isinstance(images, Image.Image) or getattr(images, "ndim", 0) == 2 or _is_colour(images):
        raise DataError("one image alone is given: give a list of images of one product.")
    if not isinstance(images, Iterable):
        raise DataError(f"images are a {type(images).__name__}: give a folder, or paths, arrays or PIL images.")
    if isinstance(images, Mapping):
        named = [(printable(str(name)), image) for name, image in images.items()]
    else:
        named = [(_name_of(image, n), image) for n, image in enumerate(images)]
    if twice := [name for name, count in Counter(name for name, _ in named).items() if count > 1]:
        count = sum(name == twice[0] for name, _ in named)
        raise DataError(f"{twice[0]} is given {count} times: name every image once.")
    files = [os.path.abspath(image) for _, image in named if isinstance(image, str | Path)]
    root = Path(os.path.commonpath([os.path.dirname(file) for file in files])) if len(files) == len(named) > 0 else None
    samples = tuple(_sample(name, image) for name, image in named)
    return Category("images", root.name if root else "", samples, root=root)


def _name_of(image: Any, n: int) -> str:
    if isinstance(image, Sample):
        return image.name
    return printable(Path(image).as_posix()) if isinstance(image, str | Path) else f"image_{n:03d}"


def _sample(name: str, image: Any) -> Sample:
    if isinstance(image, Sample):
        return replace(image, name=name)
    return Sample(name, Path(image) if isinstance(image, str | Path) else in_memory(image, name))


def _is_colour(images: Any) -> bool:
    """Whether an array is one image [H, W, 3 or 4], not several grey ones."""
    return getattr(images, "ndim", 0) == 3 and images.shape[-1] in (1, 3, 4)


def _lister(layout: str | None, root: Path | str | None) -> tuple[Path, Any]:
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"layout = {layout!r}: choose one of {', '.join(LAYOUTS)}.")
    if root is None:
        raise ConfigError(f"the layout {layout} needs the folder of the data set.")
    path = _root(root)
    entries(path)  # names a missing or forbidden folder before any layout looks into it
    return path, _LISTERS[detect_layout(path) if layout is None else layout]


def _subfolders(path: Path | None) -> list[str]:
    try:
        return [f.name for f in entries(path)[0]] if path else []
    except DataError:  # may not be listed: loading it says so
        return []


def _root(root: Path | str) -> Path:
    return Path(os.path.abspath(Path(root).expanduser()))  # so that "." has a name


def _synthetic_names() -> list[str]:
    from musc.datasets import synthetic

    return list(dict.fromkeys([*synthetic.CATEGORIES, *synthetic.HARD]))
