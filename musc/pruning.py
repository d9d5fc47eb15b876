"""What a cache of tokens holds (`features.TokenCache`), and a bound for it: what was not used for the longest goes."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kept:
    """Tokens in a cache by one network and its settings: how many images, bytes, and when last used (seconds)."""

    name: str
    images: int
    size: int
    used: float


def cached(folder: Path) -> list[Kept]:
    """What a folder of cached tokens holds, by network and settings.

    Example:
        >>> cached(Path("no such folder"))
        []
    """
    by_name: dict[str, list[os.stat_result]] = {}
    for path, known in _cached_files(folder):
        by_name.setdefault(path.parent.name, []).append(known)
    return [
        Kept(name, len(all_), sum(s.st_size for s in all_), max(s.st_mtime for s in all_))
        for name, all_ in sorted(by_name.items())
    ]


def prune(folder: Path, max_bytes: int) -> tuple[int, int]:
    """Remove those tokens of a cache that were not used for the longest time, until `max_bytes` are left at most.

    Returns how many images' tokens went, and their bytes. Another process that wants one meanwhile extracts it again.
    """
    files = sorted(_cached_files(folder), key=lambda file: (-file[1].st_mtime, file[0]))
    removed = size = left = 0
    for path, known in files:
        left += known.st_size
        if left > max_bytes:
            path.unlink(missing_ok=True)
            removed, size = removed + 1, size + known.st_size
    return removed, size


def _cached_files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.glob("*/*.safetensors"):
        with suppress(FileNotFoundError):  # another process prunes too
            found.append((path, path.stat()))
    return found
