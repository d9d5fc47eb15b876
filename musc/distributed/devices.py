"""Several devices in one process: a thread for each takes pairs of blocks from a queue.

Rows of blocks are dealt out to the devices: where these are GPUs, distances wait on their row's and are reduced there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from musc.distributed import blocks
from musc.distributed.blocks import Cut
from musc.distributed.tasks import load, save
from musc.engines.memory import SHARE, free_bytes
from musc.engines.settings import PLAIN, Settings

MOST = 256 << 20  # bytes of the distances of one pair of blocks
CPU = torch.device("cpu")


@dataclass
class Stage:
    """One stage's tokens, the distances that wait for their row to be complete, and the scores of rows that are."""

    cut: Cut
    settings: Settings
    tokens: list[Tensor]  # of every block, on the CPU
    homes: Sequence[torch.device]  # where distances wait, of row 0, 1, ... in turns
    reducing: Sequence[torch.device]  # and where they are reduced
    folder: Path | None = None  # of what waits, where memory is not to hold it
    waiting: dict[tuple[int, int], Tensor | Path] = field(default_factory=dict)  # by row and other block
    scores: dict[int, Tensor] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def add(self, row: int, other: int, distances: Tensor | None) -> None:
        """Takes in what a row's block is from another; the thread that completes a row reduces it."""
        if distances is None or row not in self.cut.rows:
            return
        if self.folder is not None:
            kept: Tensor | Path = save(self.folder / f"{row}-{other}.npy", distances.cpu().numpy())
        else:  # a copy: the other block's, which go at another time, lie in the same memory
            kept = distances.to(self.homes[row % len(self.homes)], copy=True)
        with self.lock:
            self.waiting[row, other] = kept
            others = self.cut.parts(row)
            if any((row, p) not in self.waiting for p in others):
                return
            parts = [self.waiting.pop((row, p)) for p in others]
        counts = [self.cut.counts(row, p) for p in others]
        found = [load(part) if isinstance(part, Path) else part for part in parts]
        scores = blocks.reduce(found, counts, self.settings, self.reducing[row % len(self.reducing)])
        for part in parts:
            if isinstance(part, Path):
                part.unlink()
        with self.lock:
            self.scores[row] = scores


def mutual_scores(
    stages: Sequence[Float[Tensor, "N M _"]],
    settings: Settings = PLAIN,
    *,
    devices: Sequence[torch.device],
    references: Sequence[Float[Tensor, "R M _"]] | None = None,
    pool: int | Int[Tensor, "N J"] | None = None,
) -> Float[Tensor, "N M"]:
    """`msm.scores` (Eq. 1-3) by several devices of this machine; the scores are the same, on the CPU.

    Args:
        settings: as for one device; block: images per block. Two blocks' tokens are on a device at a time; on a GPU
            those of all, where an eighth of its free memory holds them. max_bytes: what distances may take in memory.
            Where more might wait for their rows (a quarter of all), they wait in files of a temporary folder (in
            `scratch`, if given). None: all wait in memory, that of GPUs where half of what is free there holds them.
        devices: a thread for each, such as two GPUs; one that is named twice gets two threads.
        references, pool: as in `msm.mutual_scores`.

    Raises:
        ValueError: as `msm.mutual_scores`. ConfigError: memory, or max_bytes, does not hold a pair of images.

    Example:
        >>> from musc import msm
        >>> stage = torch.randn(6, 9, 8, generator=torch.Generator().manual_seed(0))
        >>> scores = mutual_scores([stage], devices=[torch.device("cpu")] * 2)
        >>> scores.allclose(msm.mutual_scores([stage]))
        True
    """
    plan = blocks.check(stages, references, pool, settings)
    M, D, max_bytes = stages[0].shape[1], len(settings.degrees), settings.max_bytes
    # bytes that are free for each thread of the GPU that has the least
    room = min([(free_bytes(d) or 0) // list(devices).count(d) for d in devices if d.type == "cuda"], default=0)
    most = room // 16 or MOST
    if max_bytes is not None:
        most = min(most, max_bytes // (4 * len(devices)))
    blocks.check_bound(max_bytes, D, M, len(devices))
    # B blocks make B (B + 1) / 2 pairs, of which those of a block with itself take half the time
    size = settings.block or blocks.block_size(plan.P, D, M, least=3 * len(devices) - 2, most_bytes=most)
    cut = Cut.of(plan, size)
    waits = (plan.N // 4 + size) * plan.J * D * M * 4  # bytes: a quarter of all, and of the row that is completed
    homes = devices if waits <= SHARE * room * len(devices) else [CPU]
    total: Tensor | None = None
    with ExitStack() as leaving:
        folder = None
        if max_bytes is not None and max_bytes // 2 < waits:
            folder = Path(leaving.enter_context(tempfile.TemporaryDirectory(prefix="musc-", dir=settings.scratch)))
        total_pairs, hidden = len(stages) * plan.count, None if settings.progress else True
        bar = leaving.enter_context(tqdm(total=total_pairs, desc="pairs", unit="pair", disable=hidden))
        for n, tokens in enumerate(stages):
            extra = None if references is None else references[n]
            every = [blocks.block_tokens(cut, b, tokens, extra) for b in range(len(cut.blocks))]
            stage = Stage(cut, settings, every, homes, devices, folder)
            _compute(stage, devices, bar, hold=8 * sum(part.nbytes for part in every) <= room)
            scores = cut.by_image(torch.cat([stage.scores[row].cpu() for row in cut.rows]))
            total = scores if total is None else total + scores
    assert total is not None
    return total / len(stages)


def _compute(stage: Stage, devices: Sequence[torch.device], bar: tqdm, hold: bool) -> None:
    """All pairs of blocks of a stage; the first error of any device ends the work of all. hold: tokens that a device
    has had stay there."""
    queue: SimpleQueue[tuple[int, int]] = SimpleQueue()
    for pair in stage.cut.pairs:
        queue.put(pair)
    stop = Event()

    def work(device: torch.device) -> None:
        held: dict[int, Tensor] = {}
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            while not stop.is_set():
                try:
                    a, b = queue.get_nowait()
                except Empty:
                    return
                held = held if hold else {p: tokens for p, tokens in held.items() if p in (a, b)}
                held |= {p: stage.tokens[p].to(device) for p in {a, b} - held.keys()}
                other = None if a == b else held[b]
                forward, backward = blocks.compare(held[a], other, stage.cut.wanted(a, b), stage.settings)
                stage.add(a, b, forward)
                stage.add(b, a, backward)
                with stage.lock:
                    bar.update(stage.cut.count(a, b))

    with ThreadPoolExecutor(len(devices)) as threads:
        try:
            for done in as_completed([threads.submit(work, device) for device in devices]):
                done.result()
        finally:  # an error of one device, or Ctrl-C
            stop.set()
