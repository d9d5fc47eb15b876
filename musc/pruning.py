"""What a cache holds, tokens (`features.TokenCache`) and blocks of runs that were given up (`distributed.cluster`), and
a bound for it: what was not used for the longest goes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from musc.saving import abandoned, marked

BLOCKS, RUNNING = "blocks", ".running-"  # the folder of blocks, a folder for each run; and what tells that one goes on


@dataclass(frozen=True)
class Kept:
    """What is kept under one name: so many files, bytes, and when last used (seconds).

    name: of the folder. Tokens: a network and its settings, a file for each image. Blocks: one run, which may go on.
    """

    name: str
    files: int
    size: int
    used: float
    running: bool = False


class Removed(NamedTuple):
    """What went: tokens of so many images, blocks of so many runs, and the bytes of both."""

    images: int
    runs: int
    size: int


def cached(folder: Path) -> list[Kept]:
    """The tokens in a cache, by network and settings.

    Example:
        >>> cached(Path("no such folder"))
        []
    """
    by_name: dict[str, list[os.stat_result]] = {}
    for path, known in _files(folder, "*/*.safetensors"):
        by_name.setdefault(path.parent.name, []).append(known)
    return [_kept(name, all_) for name, all_ in sorted(by_name.items())]


def blocks(folder: Path) -> list[Kept]:
    """The finished blocks in a cache, by run: of a run that goes on, or that was given up and may go on at them.

    Example:
        >>> blocks(Path("no such folder"))
        []
    """
    by_run: dict[Path, list[os.stat_result]] = {}
    for path, known in _files(folder / BLOCKS, "*/**/*"):
        by_run.setdefault(folder / BLOCKS / path.relative_to(folder / BLOCKS).parts[0], []).append(known)
    return [_kept(f"{BLOCKS}/{run.name}", all_, in_use(run)) for run, all_ in sorted(by_run.items())]


def prune(folder: Path, max_bytes: int) -> Removed:
    """Remove what was not used for the longest time, tokens and blocks of runs, until `max_bytes` are left at most.

    The blocks of a run that goes on stay, and count. Another process that wants tokens meanwhile extracts them again.
    """
    runs = blocks(folder)
    found = [(run.used, run.size, folder / run.name) for run in runs if not run.running]
    found += [(known.st_mtime, known.st_size, path) for path, known in _files(folder, "*/*.safetensors")]
    images = gone = size = 0
    left = sum(run.size for run in runs if run.running)
    for _, one, path in sorted(found, key=lambda entry: (-entry[0], entry[2])):
        left += one
        if left > max_bytes:
            size += one
            if path.suffix == ".safetensors":
                path.unlink(missing_ok=True)
                images += 1
            else:
                shutil.rmtree(path, ignore_errors=True)
                gone += 1
    return Removed(images, gone, size)


@contextmanager
def using(run: Path) -> Iterator[None]:
    """While the block goes on, the folder of a run's blocks, which is made, is `in_use`."""
    with marked() as mark:
        run.mkdir(parents=True, exist_ok=True)
        sign = run / f"{RUNNING}{mark}"
        sign.touch()
        try:
            yield
        finally:
            with suppress(OSError):
                sign.unlink(missing_ok=True)


def in_use(run: Path) -> bool:
    """Whether a process is at work in the folder of a run's blocks; one of another machine counts until it says
    otherwise."""
    return any(not abandoned(sign.name.removeprefix(RUNNING)) for sign in run.glob(f"{RUNNING}*"))


def _kept(name: str, files: list[os.stat_result], running: bool = False) -> Kept:
    return Kept(name, len(files), sum(s.st_size for s in files), max(s.st_mtime for s in files), running)


def _files(folder: Path, pattern: str) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another process prunes too
            if path.is_file():
                found.append((path, path.stat()))
    return found
