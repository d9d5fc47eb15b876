"""A connection to a Dask cluster whose workers can do the work, or an error that says what they lack."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musc.distributed import tasks
from musc.errors import ClusterError, ConfigError
from musc.saving import marked

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = 10.0  # seconds in which a scheduler must answer, and have a worker
ABSENCE = 60.0  # seconds that a run waits for a worker where none is left
# Evaluated everywhere as it stands: a worker of another version may have no function of ours to call.
VERSION = (
    "(__import__('musc').__version__, "
    "__import__('musc.sources', fromlist=['numerical_version']).numerical_version())"
)  # fmt: skip


def local_workers(scheduler: str) -> int | None:
    """N of "local:N", None for an address. Raises ConfigError on anything else.

    Example:
        >>> local_workers("local:2"), local_workers("tcp://10.0.0.5:8786")
        (2, None)
    """
    if found := re.fullmatch(r"local:([1-9]\d*)", scheduler):
        return int(found[1])
    if re.fullmatch(r"(tcp|tls|ucx|ucxx|ws|wss|inproc)://.+", scheduler):
        return None
    raise ConfigError(
        f"scheduler = {scheduler!r}: give local:N for N worker processes of this machine, or the address that the "
        "scheduler prints, such as tcp://10.0.0.5:8786."
    )


def connect(scheduler: str) -> tuple[Client, Any]:
    """A client, and the cluster that was started for "local:N". Raises ClusterError where nobody answers."""
    count = local_workers(scheduler)
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ConfigError("a scheduler needs Dask: pip install 'musc[distributed]'") from error
    if count is not None:
        cluster = LocalCluster(
            n_workers=count, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.ERROR
        )
        return Client(cluster, set_as_default=False), cluster
    try:
        client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(
            f"no scheduler answers at {scheduler} (within {PATIENCE:g} s): start one with `dask scheduler`, check the "
            "address that it prints, and that no firewall stands between."
        ) from error
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        client.close()
        raise ClusterError(
            f"the scheduler at {scheduler} has no worker (within {PATIENCE:g} s): start some with "
            f"`dask worker {scheduler}`."
        ) from error
    return client, None


def check_versions(client: Client) -> str:
    """The digest of musc that the client, the scheduler and all workers share.

    Raises ClusterError naming those that have another, or none.
    """
    mine = eval(VERSION)
    found = asked(client, eval, VERSION)
    try:
        found["the scheduler"] = client.run_on_scheduler(eval, VERSION)
    except Exception as error:  # whatever importing musc raises there
        found["the scheduler"] = error
    for name, theirs in found.items():
        if theirs != mine:
            what = f"no musc ({theirs})" if isinstance(theirs, Exception) else f"musc {theirs[0]} ({theirs[1]})"
            others = sum(other != mine for other in found.values()) - 1
            raise ClusterError(
                f"{name} has {what}, and here is musc {mine[0]} ({mine[1]})"
                f"{f'; so have {others} others' if others else ''}: install the same version everywhere, and start the "
                "workers again."
            )
    return mine[1]


def asked(client: Client, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """What a function gives on every worker, or the error that it raises there; a worker that left meanwhile is not
    asked."""
    from distributed.comm import CommClosedError

    found = client.run(function, *args, on_error="return")
    here = client.nthreads() if any(isinstance(said, CommClosedError | OSError) for said in found.values()) else found
    return {worker: said for worker, said in found.items() if worker in here}


def check_folder(client: Client, folder: Path) -> None:
    """Raises ClusterError where a worker does not see what is written in `folder`, or cannot write there."""
    with marked() as mark:
        name = f".probe-{mark}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(mark)
        try:
            said = asked(client, tasks.sees, folder, name, mark)
        finally:
            (folder / name).unlink(missing_ok=True)
    for worker, reason in said.items():
        if reason:
            raise ClusterError(
                f"the worker {worker} cannot use the cache folder {folder} ({reason}): give a folder that all machines "
                "share with --cache, or --no-cache, which sends the tokens through the cluster's memory."
            )


def how_to_go_on(kept: Path | None) -> str:
    """kept: where finished blocks are, if anywhere."""
    return f"Finished blocks are kept in {kept}; the same command goes on from there." if kept else "Try again."


@contextmanager
def failures(client: Client, scheduler: str, kept: Path | None) -> Iterator[None]:
    """What Dask raises where a worker or the scheduler dies, as ours. kept: where finished blocks are."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    again = how_to_go_on(kept)
    try:
        if client.status != "running":  # since an earlier job
            raise CancelledError(client.status)
        yield
    except KilledWorker as error:
        raise ClusterError(
            f"workers died again and again at the same block ({error.task}), most likely for want of memory: give them "
            f"more, or take a smaller --block. {again}"
        ) from error
    except (CancelledError, CommClosedError, TimeoutError) as error:
        raise ClusterError(f"the scheduler at {scheduler} went away. {again}") from error


class Watch:
    """Raises ClusterError when the scheduler went away, or no worker is left for ABSENCE seconds.

    again: what to do then."""

    def __init__(self, client: Client, scheduler: str, again: str, every: float = 2.0) -> None:
        self.client, self.scheduler, self.again, self.every = client, scheduler, again, min(every, ABSENCE)
        self.asked = self.seen = time.monotonic()

    def look(self) -> None:
        """To be called often; it asks now and then."""
        from concurrent.futures import CancelledError

        if self.client.status != "running":
            raise CancelledError(self.client.status)
        now = time.monotonic()
        if now - self.asked < self.every:
            return
        self.asked = now
        if self.client.nthreads():
            self.seen = now
        elif now - self.seen > ABSENCE:
            raise ClusterError(
                f"no worker is left at {self.scheduler}, for {ABSENCE:g} s: start some with "
                f"`dask worker {self.scheduler}`. {self.again}"
            )


def threads_of(workers: int) -> int:
    """Threads of each of so many workers that share this machine's processors."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)
