"""What lies in a folder and below it: images, subfolders, and what is left out, by name."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from musc.datasets.base import Skipped, printable
from musc.datasets.decode import is_picture, readable_suffixes
from musc.errors import DataError

# By name; what else Pillow reads is recognised by its content.
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jfif",
    ".jpe", ".jp2", ".j2k", ".jpx", ".avif", ".tga", ".dib", ".apng", ".mpo", ".qoi",
)  # fmt: skip
# Pictures, but of formats that Pillow does not read (a plug-in of it that is loaded adds to SUFFIXES by content).
UNREAD = (
    ".heic", ".heif", ".jxl", ".exr", ".hdr", ".svg", ".eps", ".pdf", ".dcm", ".raw", ".dng", ".cr2", ".cr3", ".nef",
    ".arw", ".orf", ".raf", ".rw2", ".mp4", ".avi", ".mov", ".mkv", ".npy", ".npz",
)  # fmt: skip
# Files that often lie beside images in great numbers, and need not be opened to know that they are none.
NO_PICTURES = (".txt", ".json", ".xml", ".csv", ".yaml", ".yml", ".md", ".html", ".py", ".zip", ".log")
SYSTEM = frozenset(["thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "lost+found",
                    "$recycle.bin", "system volume information", "picasa.ini"])  # fmt: skip
RESULT_FIELDS = {"format", "fingerprint", "config", "weights"}  # of the result.json of a `MuScResult`
WATCH_FIELDS = {"folder", "against"}  # of the watch.json of `Watch`
# What `musc compare` and `musc reproduce` draw, where the table of that name lies beside it.
OUR_PLOTS = re.compile(r"(comparison|(?:table|figure)_\d+)(_stand_in)?\.png")
NAMED = 6  # groups of left-out files that are named


class Listing:
    """The images below `base`, in the order in which folders list them; what is no image is collected on the way."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.skipped: list[Skipped] = []
        self.other: list[Path] = []
        self._names: dict[Path, str] = {}
        self._taken: set[str] = set()

    def name(self, path: Path) -> str:
        """The printable name of a sample: its path from `base`, with forward slashes; no two files share one."""
        if path not in self._names:
            name = plain_name = relative(path, self.base)
            again = 2
            while name in self._taken:  # of a name that is no UTF-8 and one that spells its bytes out
                name, again = f"{plain_name}~{again}", again + 1
            self._names[path] = name
            self._taken.add(name)
        return self._names[path]

    def below(self, folder: Path) -> list[Path]:
        """Image files of a folder, then of all below it. A subfolder that may not be listed is skipped by name; links
        that lead back to a folder on the way are not followed; results of earlier runs are no input."""
        return self._walk(folder, folder, ())

    def here(self, folder: Path) -> list[Path]:
        """Image files right in a folder."""
        _, files, special = scan(folder)
        return self._images(files, special)

    def left_out(self) -> tuple[Skipped, ...]:
        """Everything that was left out, files that are no images in groups."""
        unread = [f for f in self.other if f.suffix.lower() in UNREAD]
        rest = [f for f in self.other if f.suffix.lower() not in UNREAD]
        said = list(self.skipped)
        if rest:
            said.append(Skipped(".", f"left out, no images: {self._groups(rest)}."))
        if unread:
            text = f"left out, in formats that cannot be read here: {self._groups(unread)}. Convert them to PNG."
            said.append(Skipped(".", text))
        return tuple(said)

    def _groups(self, files: Sequence[Path]) -> str:
        counts = Counter(f.suffix.lower() for f in files)
        first = {f.suffix.lower(): f for f in reversed(files)}
        texts = [
            f"{n} {printable(suffix) or 'without a suffix'}" if n > 1 else relative(first[suffix], self.base)
            for suffix, n in counts.most_common()
        ]
        more = [f"{len(texts) - NAMED} other kinds"] if len(texts) > NAMED else []
        return ", ".join([*texts[:NAMED], *more])

    def _walk(self, here: Path, top: Path, above: tuple[str, ...]) -> list[Path]:
        real = os.path.realpath(here)
        if real in above:
            return []
        try:
            folders, files, special = scan(here)
        except DataError as error:
            if here == top == self.base:
                raise
            self.skipped.append(Skipped(relative(here, self.base), str(error)))
            return []
        if is_output(here):
            return []
        found = self._images(files, special)
        for subfolder in folders:
            found += self._walk(subfolder, top, (*above, real))
        return found

    def _images(self, files: Sequence[Path], special: Sequence[Path]) -> list[Path]:
        for path in special:
            name = relative(path, self.base)
            self.skipped.append(Skipped(name, f"{name} is a pipe, socket or device, and is left out."))
        names = {f.name for f in files}
        images = [f for f in files if is_image(f) and not _is_our_plot(f, names)]
        kept = set(images)
        self.other += [f for f in files if f not in kept]
        return images


def scan(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """(subfolders, files, pipes and other special files) of a folder, each sorted by name; hidden and system ones are
    passed over.

    Raises DataError where the folder is missing, is none, or may not be listed.
    """
    try:
        with os.scandir(folder) as found:
            listed = sorted((e for e in found if not _is_hidden(e.name)), key=lambda e: e.name)
            kinds = [_kind(e) for e in listed]
    except FileNotFoundError:
        raise DataError(f"{printable(str(folder))} does not exist: check the path.") from None
    except NotADirectoryError:
        raise DataError(f"{printable(str(folder))} is a file: name the folder that holds the images.") from None
    except PermissionError:
        raise DataError(
            f"{printable(str(folder))} cannot be listed, permission denied: allow reading it (chmod +rx)."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{printable(str(folder))} cannot be listed ({reason}).") from None
    folders, files, special = (
        [folder / e.name for e, k in zip(listed, kinds, strict=True) if k == wanted]
        for wanted in ("folder", "file", "special")
    )
    return folders, files, special


def entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """(subfolders, files) of a folder, as `scan`."""
    folders, files, _ = scan(folder)
    return folders, files


def child(folder: Path, name: str) -> Path | None:
    """The subfolder of that name in any letter case, the exact one first; None where there is none."""
    if os.path.isdir(folder / name):
        return folder / name
    try:
        return next((f for f in entries(folder)[0] if f.name.casefold() == name), None)
    except DataError:  # said when the folder is loaded
        return None


def is_image(path: Path) -> bool:
    """Whether the name ends as an image's, in any letter case; or the content is an image's, whatever the name."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return suffix in readable_suffixes()
    return suffix not in NO_PICTURES and is_picture(path)


def any_image(folder: Path, depth: int = 4) -> Path | None:
    """Some image in a folder or below it, by name alone; None where there is none, or none may be seen."""

    def walk(here: Path, left: int) -> Iterator[Path]:
        try:
            folders, files = entries(here)
        except DataError:
            return
        if is_output(here):
            return
        yield from (f for f in files if f.suffix.lower() in SUFFIXES)
        for subfolder in folders if left else ():
            yield from walk(subfolder, left - 1)

    return next(walk(folder, depth), None)


def result_header(folder: Path) -> dict[str, Any] | None:
    """What result.json says in the folder of an earlier run's result, whose pictures are no input; None elsewhere."""
    path = folder / "result.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) and set(header) >= RESULT_FIELDS else None


def is_output(folder: Path) -> bool:
    """Whether a folder holds the result of an earlier run, or what `musc watch` wrote: its pictures are no input."""
    if result_header(folder) is not None:
        return True
    try:
        note = json.loads((folder / "watch.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(note, dict) and set(note) == WATCH_FIELDS


def relative(path: Path, base: Path) -> str:
    """The path from `base`, with forward slashes, printable: the name of a sample."""
    return printable(path.relative_to(base).as_posix())


def no_images(folder: Path, left_out: Sequence[Skipped]) -> str:
    """The text of the error for a folder without a single image."""
    common = ", ".join(s[1:] for s in SUFFIXES[:7])
    text = f"{printable(str(folder))} holds no image ({common}, ... as Pillow reads them)"
    closed = [s for s in left_out if s.name != "."]
    if closed:
        return f"{text}, and parts of it were left out: {closed[0].reason}"
    _, files = entries(folder)
    other = f"; it does hold {printable(files[0].name)}, and other formats must be converted first" if files else ""
    return f"{text}{other}. Name a folder with at least two images of one product."


def _is_our_plot(file: Path, names: set[str]) -> bool:
    found = OUR_PLOTS.fullmatch(file.name)
    return found is not None and f"{found[1]}.csv" in names


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in SYSTEM


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        # a link to nowhere counts as a file, which is named when it is read
        return "file" if entry.is_file() or not os.path.exists(entry.path) else "special"
    except OSError:  # a link to where we may not look
        return "file"
