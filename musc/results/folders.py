"""Where results lie: legal names for outputs, and folders that change as a whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from musc.saving import abandoned, marked

ILLEGAL = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f\ud800-\udfff]')  # on some system, or in no encoding
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)  # devices on Windows, with any suffix
LONGEST = 180  # bytes of a name: file systems take 255, and suffixes come on top


def legal_names(names: Sequence[str], suffix: str = "") -> list[str]:
    """A relative path for every name, made of it: below the folder it is joined to, unique, and legal everywhere.

    Roots and ".." are dropped, characters that some system refuses are written as %XX, long parts are cut. Names that
    would then coincide, also on a system that ignores case, get a digest of their own. `suffix` ends every path.

    Example:
        >>> legal_names(["good/1.png", "/data/1.png", "../1.png", "What?.png"], ".png")
        ['good/1.png.png', 'data/1.png.png', '1.png.png', 'What%3F.png.png']
    """
    files: set[str] = set()
    folders: set[str] = set()
    found = []
    for name in names:
        parts = [_legal(part) for part in name.split("/") if part not in ("", ".", "..")] or ["image"]
        path, count = "/".join(parts) + suffix, 0
        while not _free(path, files, folders):
            digest = hashlib.blake2b(f"{name}\0{count}".encode(errors="surrogatepass"), digest_size=4).hexdigest()
            path, count = f"{parts[-1]}~{digest}{suffix}", count + 1
        files.add(_folded(path))
        folders |= set(_parents(_folded(path)))
        found.append(path)
    return found


def _legal(part: str) -> str:
    text = ILLEGAL.sub(lambda match: f"%{ord(match[0]):02X}", unicodedata.normalize("NFC", part))
    if text[-1] in ". ":
        text = f"{text[:-1]}%{ord(text[-1]):02X}"
    if RESERVED.fullmatch(text):
        text = f"_{text}"
    if len(text.encode()) > LONGEST:
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        text = f"{text.encode()[: LONGEST - 9].decode(errors='ignore')}~{digest}"
    return text


def _folded(path: str) -> str:
    """What a file system that ignores case and the way of writing accents takes for the same path."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:n]) for n in range(1, len(parts)))


def _free(path: str, files: set[str], folders: set[str]) -> bool:
    path = _folded(path)
    return path not in files and path not in folders and not any(parent in files for parent in _parents(path))


@contextmanager
def replacing(folder: Path, ours: Collection[str]) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` as a whole when the block ends, and not if it raises.

    Whatever happens in between, also an end of the process, `folder` holds the old content or the new one, or `recover`
    finds one of them beside it. Of the old folder all that is not named in `ours` is carried over. Raises OSError.
    """
    if Path.cwd().is_relative_to(folder.resolve()):  # it would go on working in a folder that is gone
        raise OSError(errno.EBUSY, "the working folder is it, or lies in it", str(folder))
    if folder.is_symlink():  # what it leads to is replaced, and it goes on leading there
        folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):  # it could be moved away, and not emptied
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    recover(folder, ours)
    with marked() as mark:
        partial, complete = (folder.with_name(f".{folder.name}.{mark}.{state}") for state in ("partial", "complete"))
        try:
            partial.mkdir(parents=True)
            yield partial
            os.rename(partial, complete)
            for old in _swapped(complete, folder, folder.with_name(f".{folder.name}.{mark}.old")):
                _carry_over(old, folder, ours)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(complete, ignore_errors=True)


def _swapped(complete: Path, folder: Path, old: Path) -> list[Path]:
    """Puts `complete` in the place of `folder`; where that was moved to: twice, if another process came in between."""
    moved: list[Path] = []
    while True:
        if folder.exists():
            away = old.with_name(f"{old.stem}{len(moved)}.old")
            try:
                os.rename(folder, away)
                moved.append(away)
            except FileNotFoundError:
                continue
        try:
            os.rename(complete, folder)
            return moved
        except OSError:
            if folder.exists() and len(moved) < 100:
                continue
            if moved and not folder.exists():
                os.rename(moved[-1], folder)
            raise


def _carry_over(old: Path, folder: Path, ours: Collection[str]) -> None:
    """What is not ours goes along; where another user's may not be moved it stays, and `old` with it."""
    for entry in old.iterdir():
        if entry.name not in ours and not (folder / entry.name).exists():
            try:
                os.rename(entry, folder / entry.name)
            except PermissionError:
                return
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path, ours: Collection[str]) -> None:
    """Finishes what a process that ended in the middle of `replacing` left beside `folder`: a whole folder is put in
    its place where that is missing, and what was only begun is removed. Raises OSError."""
    if not folder.parent.is_dir():
        return
    left = [p for p in folder.parent.iterdir() if _abandoned(p, folder.name)]
    for path in sorted(left, key=lambda p: p.suffix):  # .complete before .old
        if path.suffix != ".partial" and not folder.exists():
            os.rename(path, folder)
        elif path.suffix == ".old":
            _carry_over(path, folder, ours)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _abandoned(path: Path, name: str) -> bool:
    """Whether this is a temporary folder of `replacing` for the folder `name`, and the process that made it is gone."""
    found = re.fullmatch(rf"\.{re.escape(name)}\.([\w-]+)\.(partial|complete|old)", path.name)
    return found is not None and abandoned(found[1])
