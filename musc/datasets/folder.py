"""Any folder of images, without labels or masks; and the listing of files that every layout uses."""

from __future__ import annotations

import os
from pathlib import Path

from musc.datasets.base import Category, Sample, Skipped
from musc.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def names(root: Path) -> list[str]:
    """The one category of such a folder: its own name."""
    return [root.name]


def load(root: Path, name: str) -> Category:
    """Every image in `root` and below, unlabeled, as one product: files of a folder first, then its subfolders.

    Raises DataError where there is none.
    """
    skipped: list[Skipped] = []
    samples = tuple(Sample(relative(path, root), path) for path in images_below(root, root, skipped))
    if not samples:
        raise DataError(no_images(root, skipped))
    return Category("folder", name, samples, root=root, skipped=tuple(skipped))


def entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """(subfolders, files) of a folder, each sorted by name; hidden ones are passed over.

    Raises DataError where the folder is missing, is none, or may not be listed.
    """
    try:
        with os.scandir(folder) as scan:
            found = sorted((e for e in scan if not e.name.startswith(".")), key=lambda e: e.name)
            folders = [e for e in found if _is_folder(e)]
    except FileNotFoundError:
        raise DataError(f"{folder} does not exist: check the path.") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file: name the folder that holds the images.") from None
    except PermissionError:
        raise DataError(f"{folder} cannot be listed, permission denied: allow reading it (chmod +rx).") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}).") from None
    return [folder / e.name for e in folders], [folder / e.name for e in found if e not in folders]


def images_below(folder: Path, base: Path, skipped: list[Skipped]) -> list[Path]:
    """Image files of a folder and all below it. A subfolder that may not be listed goes to `skipped`, named from
    `base`; links that lead back to a folder on the way are not followed."""

    def walk(here: Path, above: tuple[str, ...]) -> list[Path]:
        real = os.path.realpath(here)
        if real in above:
            return []
        try:
            folders, files = entries(here)
        except DataError as error:
            if here == base:
                raise
            skipped.append(Skipped(relative(here, base), str(error)))
            return []
        if any(f.name == "result.json" for f in files):  # pictures that an earlier run saved are no input
            return []
        found = [f for f in files if is_image(f)]
        for subfolder in folders:
            found += walk(subfolder, (*above, real))
        return found

    return walk(folder, ())


def is_image(path: Path) -> bool:
    """Whether the name ends as an image's, in any letter case."""
    return path.suffix.lower() in SUFFIXES


def relative(path: Path, base: Path) -> str:
    """The path from `base`, with forward slashes: the name of a sample."""
    return path.relative_to(base).as_posix()


def no_images(folder: Path, skipped: list[Skipped]) -> str:
    """The text of the error for a folder without a single image."""
    text = f"{folder} holds no image ({', '.join(s[1:] for s in SUFFIXES)})"
    if skipped:
        return f"{text}, and parts of it were left out: {skipped[0].reason}"
    _, files = entries(folder)
    other = f"; it does hold {files[0].name}, and other formats must be converted first" if files else ""
    return f"{text}{other}. Name a folder with at least two images of one product."


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where we may not look: an unreadable file, which is named when it is read
        return False
