"""Mutual scoring by several devices and by a Dask cluster gives the scores of one process, whatever dies on the way."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from musc import MuSc, cli, msm
from musc.distributed import blocks, connection, devices
from musc.distributed.blocks import Cut
from musc.distributed.cluster import Cluster
from musc.engines.pairs import plan_pool
from musc.errors import ClusterError, ConfigError

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
JOBS = {  # arguments of msm.mutual_scores; references: so many images
    "all": {},
    "references": {"references": 5, "block": 4},
    "references alone": {"references": 5, "pool": 0},
    "drawn": {"pool": 5, "references": 5, "block": 7},
    "interval": {"interval": (0.1, 0.5), "reduction": "max", "degrees": (1, 5)},
    "window": {"position_window": 1.0, "block": 1},
}


def drawn(N, seed=0, M=25, C=16):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(N, M, C, generator=g), torch.randn(N, M, 2 * C, generator=g)]


def arguments(job):
    given = dict(JOBS[job])
    if "references" in given:
        given["references"] = drawn(given["references"], seed=1)
    return given


def expected(stages, given):
    return msm.mutual_scores(stages, **{k: v for k, v in given.items() if k != "block"})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two worker processes of this machine."""
    with Cluster("local:2", cache=tmp_path_factory.mktemp("shared")) as running:
        yield running


@pytest.fixture
def in_memory(cluster, monkeypatch):
    """The same, as a cluster that shares no folder."""
    monkeypatch.setattr(cluster, "cache", None)
    return cluster


@pytest.mark.parametrize("job", JOBS)
def test_several_devices_give_the_scores_of_one(job):
    stages, given = drawn(13), arguments(job)
    found = devices.mutual_scores(stages, devices=[CPU] * 3, **given)
    torch.testing.assert_close(found, expected(stages, given), rtol=0, atol=1e-6)


@pytest.mark.parametrize("job", JOBS)
def test_a_cluster_gives_the_scores_of_one_process(job, cluster):
    stages, given = drawn(13), arguments(job)
    found = cluster.mutual_scores(stages, **given)
    torch.testing.assert_close(found, expected(stages, given), rtol=0, atol=1e-6)
    assert list((cluster.cache / "blocks").iterdir()) == []  # nothing is left of a job that ended well


def test_tokens_go_through_the_memory_of_a_cluster_too(in_memory):
    stages, given = drawn(13), arguments("drawn")
    found = in_memory.mutual_scores(stages, **given)
    torch.testing.assert_close(found, expected(stages, given), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("N", "R", "pool", "size"), [(7, 0, None, 3), (7, 4, None, 3), (9, 2, 3, 2), (5, 3, 0, 4)])
def test_every_pair_of_images_is_compared_once(N, R, pool, size):
    plan = plan_pool(N, R, pool)
    cut = Cut(plan, size)
    assert sum(cut.count(*pair) for pair in cut.pairs) == len(plan.pairs())
    for row in cut.rows:
        for i, image in enumerate(i for i in cut.blocks[row] if i < N):
            assert sum(cut.counts(row, other)[i] for other in cut.parts(row)) == (plan.slot[image] >= 0).sum()


def test_a_quarter_of_the_distances_waits_at_most():
    """In the order of the pairs, a row being reduced as soon as it is complete."""
    cut, waiting, most = Cut(plan_pool(200), 5), set(), 0
    for a, b in cut.pairs:
        waiting |= {(a, b), (b, a)}
        most = max(most, len(waiting))
        for row in (a, b):
            if all((row, other) in waiting for other in range(len(cut.blocks))):
                waiting -= {(row, other) for other in range(len(cut.blocks))}
    assert most / len(cut.blocks) ** 2 < 0.3


def in_the_middle(run, folder, act, count=20):
    """Starts `run` in a thread, acts when `count` files of distances are there (None: in a moment), returns what came
    of it: scores, or an error."""
    found = []

    def work():
        try:
            found.append(run())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 60
    while folder is not None and len(list(folder.rglob("distances-*"))) < count and time.monotonic() < deadline:
        time.sleep(0.005)
    if folder is None:
        time.sleep(1)
    act()
    thread.join(60)
    assert not thread.is_alive()
    return found[0]


@pytest.mark.parametrize("shared", [True, False], ids=["folder", "memory"])
def test_a_worker_that_is_killed_loses_nothing(shared, cluster, monkeypatch):
    stages = drawn(40, M=100, C=32)
    folder = cluster.cache / "blocks" if shared else None
    if not shared:
        monkeypatch.setattr(cluster, "cache", None)
    before = cluster.client.run(os.getpid)
    found = in_the_middle(
        lambda: cluster.mutual_scores(stages, block=2), folder, lambda: os.kill(min(before.values()), signal.SIGKILL)
    )
    torch.testing.assert_close(found, expected(stages, {}), rtol=0, atol=1e-6)
    cluster.client.wait_for_workers(2, timeout=60)
    assert min(before.values()) not in cluster.client.run(os.getpid).values()
