"""Mutual scoring by the workers of a Dask cluster: pairs of blocks are tasks, and so are rows of blocks."""

from __future__ import annotations

import hashlib
import logging
import operator
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from musc.distributed import blocks, tasks
from musc.distributed.blocks import Cut
from musc.distributed.connection import (
    PATIENCE,
    Watch,
    check_folder,
    check_versions,
    connect,
    failures,
    how_to_go_on,
    local_workers,
    threads_of,
)
from musc.distributed.tasks import Kept, Place, Worker
from musc.engines.settings import PLAIN, Settings
from musc.errors import ConfigError
from musc.pruning import BLOCKS, in_use, using

if TYPE_CHECKING:
    from distributed import Future

log = logging.getLogger(__name__)  # says what an earlier run has left
MOST = 64 << 20  # bytes of the distances of one pair of blocks
LEAST = 8  # blocks, so that 36 pairs of them can be shared out


class Cluster:
    """The workers of a Dask cluster, connected and checked: they have this musc, and see the cache.

    Args:
        scheduler: "local:N", N worker processes of this machine, started here; or the address of a scheduler.
        cache: a folder that all workers see. Tokens and finished blocks are kept there, so that a run that was stopped
            goes on where it was. None: in a temporary folder for local workers, in the cluster's memory for others.
        device: what workers compute on: "auto" (a GPU where a worker has one), "cpu" or "cuda". A number is ignored:
            every worker takes the first device that it sees.

    Raises:
        ConfigError: the scheduler's name is no name, or Dask is not installed.
        ClusterError: no scheduler or no worker answers, one has another musc, or cannot use the cache.

    Example:
        >>> from musc import msm
        >>> stage = torch.randn(6, 9, 8, generator=torch.Generator().manual_seed(0))
        >>> with Cluster("local:1") as cluster:  # doctest: +SKIP
        ...     cluster.mutual_scores([stage]).allclose(msm.mutual_scores([stage]))
        True
    """

    def __init__(self, scheduler: str, *, cache: Path | str | None = None, device: str = "auto") -> None:
        self.scheduler = scheduler
        self.cache = None if cache is None else Path(cache).expanduser().absolute()
        self.client, self.cluster = connect(scheduler)
        self.closing = ExitStack()
        try:
            count = local_workers(scheduler)
            version = check_versions(self.client)
            if self.cache is None and count is not None:
                self.cache = Path(self.closing.enter_context(tempfile.TemporaryDirectory(prefix="musc-")))
            if self.cache is not None:
                check_folder(self.client, self.cache)
            if count is not None:  # Ctrl-C goes to every process of a terminal, and this one ends them
                self.client.run(tasks.ignore_interrupts)
            threads = None if count is None else threads_of(count)
            self.worker = Worker(version, device.partition(":")[0], threads, spread=count is not None)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the cluster; local workers end."""
        for one in (self.client, self.cluster):
            if one is not None:
                with suppress(Exception):  # a scheduler that is gone cannot be told
                    one.close()
        self.closing.close()

    def mutual_scores(
        self,
        stages: Sequence[Float[Tensor, "N M _"]],
        settings: Settings = PLAIN,
        *,
        references: Sequence[Float[Tensor, "R M _"]] | None = None,
        pool: int | Int[Tensor, "N J"] | None = None,
    ) -> Float[Tensor, "N M"]:
        """`msm.scores` (Eq. 1-3) by the workers; the scores are the same, on the CPU.

        settings: as for one process; block: images per block, a task holds two blocks. max_bytes: the distances of one
        task take a quarter of it at most, unless `block` says else. scratch: not used; distances wait in the cache, or
        in the cluster's memory. references, pool: as in `msm.mutual_scores`.

        Raises ValueError as `msm.mutual_scores`, ClusterError where scheduler or workers go away, ConfigError where the
        cache has no room, or max_bytes is too small for one pair of images.
        """
        plan = blocks.check(stages, references, pool, settings)
        M, D, max_bytes = stages[0].shape[1], len(settings.degrees), settings.max_bytes
        most = MOST if max_bytes is None else min(MOST, max_bytes // 4)
        blocks.check_bound(max_bytes, D, M)
        cut = Cut.of(plan, settings.block or blocks.block_size(plan.P, D, M, least=LEAST, most_bytes=most))
        hidden = None if settings.progress else True
        settings = settings.of_scores()  # what tasks and their files depend on
        extra = [None] * len(stages) if references is None else references
        tokens = [
            [blocks.block_tokens(cut, b, *both) for b in range(len(cut.blocks))]
            for both in zip(stages, extra, strict=True)
        ]
        folder = self._folder(tokens, cut, settings)
        total = len(stages) * plan.count
        with ExitStack() as during:
            bar = during.enter_context(tqdm(total=total, desc="pairs", unit="pair", disable=hidden))
            if folder is not None:
                during.enter_context(using(folder))
            run = Run(self, cut, settings, folder, bar)
            with failures(self.client, self.scheduler, folder):
                try:
                    for n, every in enumerate(tokens):
                        run.submit(n, every)
                    scores = run.gather()
                except BaseException:  # Ctrl-C too
                    run.cancel()
                    raise
        if folder is not None and not in_use(folder):  # by another process that was given the same
            shutil.rmtree(folder, ignore_errors=True)
        parts = [torch.cat([torch.from_numpy(scores[n, row]) for row in cut.rows]) for n in range(len(stages))]
        return cut.by_image(torch.stack(parts).sum(dim=0) / len(stages))

    def _folder(self, tokens: list[list[Tensor]], cut: Cut, settings: Settings) -> Path | None:
        """Where the files of this job lie, by a digest of all that its blocks depend on."""
        if self.cache is None:
            return None
        digest = hashlib.blake2b(digest_size=10)
        digest.update(repr((self.worker.version, settings, cut.size, cut.plan.N)).encode())
        digest.update(cut.plan.slot.numpy().data)
        for every in tokens:
            for block in every:
                digest.update(repr((block.dtype, tuple(block.shape))).encode())
                digest.update(block.numpy().reshape(-1).data)
        folder = self.cache / BLOCKS / digest.hexdigest()
        sizes = sum(block.nbytes for every in tokens for block in every)
        distances = len(settings.degrees) * cut.plan.N * cut.plan.J * tokens[0][0].shape[1] * 4
        need, free = sizes + distances // 3, shutil.disk_usage(self.cache).free  # a quarter waits, and what is written
        if not folder.exists() and need > free:
            raise ConfigError(
                f"{self.cache}: tokens and distances need {need / 2**30:.1f} GiB there and {free / 2**30:.1f} GiB are "
                "free: choose another folder with --cache, or fewer images, degrees or stages."
            )
        return folder


class Run:
    """One job on a cluster: its tasks, in an order in which rows of blocks complete one after the other."""

    def __init__(self, cluster: Cluster, cut: Cut, settings: Settings, folder: Path | None, bar: tqdm) -> None:
        from distributed import as_completed

        self.cluster, self.cut, self.settings, self.folder, self.bar = cluster, cut, settings, folder, bar
        self.name = f"musc-{uuid.uuid4().hex[:12]}"  # keys of an earlier, cancelled run are not taken up
        self.waiting = as_completed(loop=cluster.client.loop)
        self.images: dict[Any, int] = {}  # pairs of images, by key of a pair of blocks
        self.rows: dict[Any, tuple[int, int]] = {}  # stage and row, by key
        self.scores: dict[tuple[int, int], Any] = {}
        self.submitted = 0

    def submit(self, n: int, tokens: list[Tensor]) -> None:
        """The tasks of stage n: pairs of blocks row by row, and before all others each row that is complete."""
        place = None if self.folder is None else Place(self.folder / f"stage{n}")
        sources: list[Any] = [self._tokens(n, b, block, place) for b, block in enumerate(tokens)]
        parts: dict[tuple[int, int], Any] = {}
        before: dict[int, list[Future]] = {row: [] for row in range(len(tokens))}
        for a, b in self.cut.pairs:
            ways = [(row, other) for row, other in {(a, b), (b, a)} if row in self.cut.rows]
            if place is not None:
                parts |= {way: place.distances(*way) for way in ways}
                if all(place.has(*way) for way in ways):
                    self.bar.update(self.cut.count(a, b))
                    continue
            done = self._compare(n, a, b, sources, place)
            for row, other in ways:
                before[row].append(done)
                if place is None:
                    side = 0 if (row, other) == (a, b) else 1
                    parts[row, other] = self._add(operator.getitem, done, side, key=("side", n, row, other))
        log.info("stage %d: %d of %d pairs of blocks are to be done", n, self.submitted, len(self.cut.pairs))
        self.submitted = 0
        for row in self.cut.rows:
            self._reduce(n, row, parts, before[row] if place is not None else [], place)

    def gather(self) -> dict[tuple[int, int], Any]:
        """Waits for all tasks: patch scores by stage and row. Raises what a task raised."""
        watch = Watch(self.cluster.client, self.cluster.scheduler, how_to_go_on(self.folder))
        while len(self.scores) < len(self.rows):
            watch.look()
            for future in self.waiting.next_batch(block=False) or [None]:
                if future is None:
                    time.sleep(0.05)
                else:
                    self._take(future)
        return self.scores

    def _take(self, future: Future) -> None:
        """What a task that ended has left. Raises what it raised.

        Its worker may be gone since: then it is pending again, and to wait for it here would be to wait for a worker.
        """
        if future.status in ("error", "cancelled"):
            future.result()
        if future.key not in self.rows:
            self.bar.update(self.images[future.key])
            return
        if future.status == "finished":
            with suppress(TimeoutError):
                self.scores[self.rows[future.key]] = future.result(timeout=PATIENCE)
                return
        self.waiting.add(future)

    def cancel(self) -> None:
        """Tells the scheduler to drop what has not begun; tasks that are at work end, and are kept."""
        with suppress(Exception):  # which is gone, maybe
            self.cluster.client.cancel(list(self.waiting.futures), force=True)

    def _add(self, function: Any, *args: Any, key: tuple[Any, ...], priority: int = 1) -> Future:
        name = "-".join(map(str, (self.name, *key)))
        return self.cluster.client.submit(function, *args, key=name, priority=priority, pure=False)

    def _tokens(self, n: int, b: int, block: Tensor, place: Place | None) -> Kept | Future:
        import dask

        if place is None:
            quiet = {"distributed.admin.large-graph-warning-threshold": "1TB"}  # large is what is asked for
            with dask.config.set(quiet):
                return self._add(tasks.pass_on, block.numpy(), key=("tokens", n, b))
        if not place.tokens(b).exists():
            tasks.save(place.tokens(b), block.numpy())
        return place.tokens(b)

    def _compare(self, n: int, a: int, b: int, sources: list[Any], place: Place | None) -> Future:
        other = None if a == b else sources[b]
        wanted, worker = self.cut.wanted(a, b), self.cluster.worker
        done = self._add(
            tasks.compare, sources[a], other, wanted, self.settings, worker, place, (a, b),
            key=("compare", n, a, b), priority=-len(self.images) - 1,
        )  # fmt: skip
        self.images[done.key] = self.cut.count(a, b)
        self.submitted += 1
        self.waiting.add(done)
        return done

    def _reduce(self, n: int, row: int, parts: dict[tuple[int, int], Any], before: list[Future], place: Any) -> None:
        others = self.cut.parts(row)
        counts = [self.cut.counts(row, other) for other in others]
        done = self._add(
            tasks.reduce, [parts[row, other] for other in others], counts, self.settings, self.cluster.worker, place,
            row, before, key=("reduce", n, row),
        )  # fmt: skip
        self.rows[done.key] = n, row
        self.waiting.add(done)
