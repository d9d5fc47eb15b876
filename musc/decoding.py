"""Images on their way to the network: read, hashed, decoded and resized ahead of it, by threads or by processes.

Threads share all with this process and begin at once; Pillow decodes and resizes without Python's lock, so that they
work side by side. Processes share nothing: each imports this package first, and pictures travel to this process. They
can help where many of them feed a fast GPU.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musc.datasets.base import Source
from musc.datasets.images import content_key, preprocess, read_image
from musc.errors import ConfigError, DataError
from musc.sizes import Size

log = logging.getLogger(__name__)  # says where threads do what processes were asked for
Tokens = dict[str, Tensor]
Read = tuple[str, Tensor | Tokens | DataError]  # content key; network input, tokens that were kept, or what was wrong


@dataclass(frozen=True)
class Preparation:
    """From a source to the network's input (`preprocess`). kept: folder of tokens by content key, None where none are
    kept."""

    size: Size
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    kept: Path | None = None

    def input(self, source: Source) -> Tensor:
        """[3, rows, columns]. Raises DataError naming the file."""
        return preprocess(read_image(source), self.size, self.mean, self.std, self.interpolation)

    def array(self, source: Source) -> tuple[str, np.ndarray | DataError | None]:
        """Content key and input, as another process sends them; None for an input whose tokens are kept."""
        try:
            key = content_key(source)
            if self.kept is not None and (self.kept / f"{key}.safetensors").exists():
                return key, None
            return key, self.input(source).numpy()
        except DataError as error:
            return "", error


def read_ahead(
    sources: Sequence[Source],
    preparation: Preparation,
    kept: Callable[[str], Tokens | None],
    workers: int,
    processes: bool,
    ahead: int,
) -> Iterator[Read]:
    """What became of each source, in order, at most `ahead` of them waiting; the same whoever reads.

    kept: an image's tokens by its content key. workers: threads, or processes (0: this thread). Raises ConfigError
    where a process died.
    """

    def here(source: Source) -> Read:
        try:
            key = content_key(source)
            tokens = kept(key)
            return key, preparation.input(source) if tokens is None else tokens
        except DataError as error:
            return "", error

    if workers == 0:
        yield from map(here, sources)
        return
    processes = processes and _can_be_sent(sources)
    pool: Executor = _processes(workers) if processes else ThreadPoolExecutor(workers)
    pending: deque[tuple[Source, Future[Any]]] = deque()

    def first() -> Read:
        source, future = pending.popleft()
        if not processes:
            return future.result()
        key, found = _result(pool, future)
        if found is None:  # its tokens need not travel
            return here(source)
        return key, torch.from_numpy(found) if isinstance(found, np.ndarray) else found

    try:
        for source in sources:
            pending.append((source, pool.submit(preparation.array if processes else here, source)))
            if len(pending) > ahead:  # bounds what lies decoded in memory
                yield first()
        while pending:
            yield first()
    except BrokenProcessPool as error:
        raise ConfigError(
            "a process that decodes images died, most likely for want of memory: take fewer --workers, or --decoding "
            'threads. A script that asks for processes needs `if __name__ == "__main__":` around what it runs.'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _processes(workers: int) -> ProcessPoolExecutor:
    """New interpreters: what a fork would copy, threads at work and a GPU, does not bear it."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)


def _result(pool: Executor, future: Future[Any]) -> Any:
    """`future.result()`. Where a process died while it sent a picture, the pool would wait for the rest for ever."""
    while not wait([future], timeout=1).done:
        workers = list((getattr(pool, "_processes", None) or {}).values())
        results = getattr(pool, "_result_queue", None)
        if results is not None and not all(worker.is_alive() for worker in workers):
            for worker in workers:  # those that live may wait for the dead one's lock
                worker.kill()
            results._writer.close()  # the last end to which somebody could write: now the pool sees that it broke
    return future.result()


def _begin() -> None:
    """Ctrl-C goes to every process of a terminal, and the parent ends its workers; one that is killed ends nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _can_be_sent(sources: Sequence[Source]) -> bool:
    """Whether one source of each kind can go to another process."""
    for kind, source in {type(source): source for source in sources}.items():
        try:
            pickle.dumps(source)
        except Exception as error:  # whatever its parts raise
            log.info("threads decode: %s cannot be sent to a process (%s)", kind.__name__, error)
            return False
    return True
