"""What the workers of a cluster run, and the files that tokens, distances and scores lie in.

A task's result depends on its arguments alone, so it can be run again anywhere. Where all see one folder, distances and
scores are files in it, and a task that finds its result there has nothing to do; else they are what it returns.
"""

from __future__ import annotations

import platform
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool

from musc.backbones import resolve_device
from musc.distributed import blocks
from musc.engines.settings import Settings
from musc.errors import ClusterError
from musc.saving import whole
from musc.sources import numerical_version

Kept = np.ndarray | Path  # an array, or the file that it is in


@dataclass(frozen=True)
class Worker:
    """What a worker is to be: of this version, computing on this device.

    threads: of one task on the CPU (None: what the worker was started with). spread: the workers share a machine and
    nobody has told them which GPU is whose, so that their numbers do.
    """

    version: str
    device: str
    threads: int | None = None
    spread: bool = False

    def ready(self) -> torch.device:
        """The device to compute on. Raises ClusterError on a worker of another version of musc."""
        if numerical_version() != self.version:
            raise ClusterError(f"a worker came whose musc is not the client's ({numerical_version()}): install one.")
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        device = resolve_device(self.device)
        if device.type == "cuda" and self.spread:
            return torch.device(f"cuda:{_number() % torch.cuda.device_count()}")
        return device


@dataclass(frozen=True)
class Place:
    """The files of one stage in a folder that all workers see."""

    folder: Path

    def tokens(self, block: int) -> Path:
        """[A, M, C], of a block's images."""
        return self.folder / f"tokens-{block}.npy"

    def distances(self, row: int, other: int) -> Path:
        """[D, A, J, M], of the patches of block `row` to block `other`."""
        return self.folder / f"distances-{row}-{other}.npy"

    def scores(self, row: int) -> Path:
        """[A, M], of a block's scored images."""
        return self.folder / f"scores-{row}.npy"

    def has(self, row: int, other: int) -> bool:
        """Whether nobody needs these distances any more, or they are there."""
        return self.scores(row).exists() or self.distances(row, other).exists()


def save(path: Path, array: np.ndarray) -> Path:
    """The file, which appears whole."""
    with whole(path) as partial, partial.open("wb") as file:
        np.save(file, array)
    return path


def load(kept: Kept) -> np.ndarray:
    """The array; that of a file is mapped into memory, and a change of it stays there.

    Raises ClusterError where the file is not there: a worker that came after the others were asked may not see the
    folder."""
    if not isinstance(kept, Path):
        return kept
    try:
        return np.load(kept, mmap_mode="c")
    except OSError as error:
        raise ClusterError(
            f"a worker on {platform.node()} cannot read {kept} ({error.strerror or error}): give a folder that all "
            "machines share with --cache, end workers that do not see it, and give the same command again."
        ) from error


def pass_on(array: np.ndarray) -> np.ndarray:
    """Tokens on their way into the cluster's memory."""
    return array


def compare(
    a: Kept, b: Kept | None, wanted: Bool[np.ndarray, "n k"], settings: Settings, worker: Worker,
    place: Place | None, pair: tuple[int, int],
) -> list[np.ndarray]:  # fmt: skip
    """The distances of one pair of blocks, both ways (`blocks.compare`): written to `place`, or returned.

    a, b: tokens of the two blocks (b None where it is one); wanted: see `Cut.wanted`.
    """
    device = worker.ready()
    first = torch.from_numpy(_writable(load(a)))
    ways = [pair, pair[::-1]] if b is not None and len(wanted) > len(first) else [pair]
    if place is not None and all(place.has(*way) for way in ways):
        return []
    second = None if b is None else torch.from_numpy(_writable(load(b))).to(device)
    found = blocks.compare(first.to(device), second, wanted, settings)
    arrays = [distances.cpu().numpy() for distances in found if distances is not None]
    if place is None:
        return arrays
    for way, array in zip(ways, arrays, strict=False):  # the second is empty where b has reference images alone
        if not place.has(*way):
            save(place.distances(*way), array)
    return []


def reduce(
    parts: Sequence[Kept], counts: Sequence[Sequence[int]], settings: Settings, worker: Worker,
    place: Place | None, row: int, done: object = None,
) -> np.ndarray:  # fmt: skip
    """Patch scores of one row of blocks (`blocks.reduce`); its distances are deleted. done: tasks to wait for."""
    device = worker.ready()
    if place is not None and place.scores(row).exists():
        return np.load(place.scores(row))
    try:
        arrays = [load(part) for part in parts]
    except ClusterError:  # a task that was given to two workers: the other has just done it
        if place is not None and place.scores(row).exists():
            return np.load(place.scores(row))
        raise
    if device.type != "cpu":
        arrays = [_writable(array) for array in arrays]
    scores = blocks.reduce(arrays, counts, settings, device).cpu().numpy()
    if place is not None:
        save(place.scores(row), scores)
        for part in parts:
            if isinstance(part, Path):
                with suppress(OSError):
                    part.unlink()
    return scores


def sees(folder: Path, name: str, content: str) -> str:
    """What keeps this worker from using a folder in which the client has left a file; empty where nothing does."""
    try:
        if (folder / name).read_text() != content:
            return "holds something else there"
        with whole(folder / f"{name}-{np.random.default_rng().integers(1 << 60)}") as partial:
            partial.write_text("")
        for mine in folder.glob(f"{name}-*"):
            mine.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def ignore_interrupts() -> None:
    """Leaves Ctrl-C to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _writable(array: np.ndarray) -> np.ndarray:
    """What came over the network may be read-only, which torch does not know."""
    return array if array.flags.writeable else array.copy()


def _number() -> int:
    """Of this worker, on a cluster whose workers are numbered."""
    from distributed import get_worker

    name = str(get_worker().name)
    return int(name) if name.isdigit() else 0
