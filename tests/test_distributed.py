"""Mutual scoring by several devices and by a Dask cluster gives the scores of one process, whatever dies on the way."""

import _thread
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from musc import MuSc, cli, msm
from musc.distributed import blocks, connection, devices, tasks
from musc.distributed.blocks import Cut
from musc.distributed.cluster import Cluster
from musc.distributed.tasks import Place
from musc.engines.pairs import plan_pool
from musc.engines.settings import PLAIN, Settings
from musc.errors import ClusterError, ConfigError

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
JOBS = {  # arguments of msm.mutual_scores; references: so many images
    "all": {"block": 3, "max_bytes": 2000},
    "references": {"references": 5, "block": 4},
    "references alone": {"references": 5, "pool": 0, "block": 6},
    "drawn": {"pool": 5, "references": 5, "block": 7},
    "chosen": {"pool": torch.tensor([[(i + s) % 11 for s in (1, 2, 5)] for i in range(11)]), "block": 4},
    "interval": {"interval": (0.1, 0.5), "reduction": "max", "degrees": (1, 5), "block": 6},
    "window": {"position_window": 1.0, "degrees": (1,), "block": 9},
}


def drawn(N, seed=0, M=25, C=16):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(N, M, C, generator=g), torch.randn(N, M, 2 * C, generator=g)]


def arguments(job):
    """Settings, and what else `msm.scores` takes."""
    given = dict(JOBS[job])
    pool = {name: given.pop(name) for name in ("references", "pool") if name in given}
    if "references" in pool:
        pool["references"] = drawn(pool["references"], seed=1)
    return Settings(**given), pool


def expected(stages, settings=PLAIN, pool=None):
    return msm.scores(stages, settings.of_scores(), **(pool or {}))


@pytest.fixture(scope="module")
def threads(tmp_path_factory):
    """A cluster whose two workers are threads of this process: what is right there does not depend on who dies."""
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as local,
        Cluster(local.scheduler_address, cache=tmp_path_factory.mktemp("shared"), device="cpu") as running,
    ):
        yield running


class Processes:
    """A scheduler and workers as one starts them by hand, each a process of its own."""

    def __init__(self, folder):
        self.folder, self.workers = folder, []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        words = ["scheduler", "--host", self.address, "--dashboard-address", ":0"]
        self.scheduler = self.start(words, folder, ROOT)

    def start(self, words, cwd, path):
        command = [sys.executable, "-m", "dask", *words]
        with (self.folder / "said.txt").open("ab") as said:
            environment = os.environ | {"PYTHONPATH": str(path)}
            return subprocess.Popen(command, cwd=cwd, stdout=said, stderr=said, env=environment)

    def worker(self, path=ROOT):
        words = ["worker", self.address, "--no-nanny", "--nthreads", "1", "--dashboard-address", ":0"]
        self.workers.append(self.start([*words, "--local-directory", str(self.folder)], self.folder, path))
        return self.workers[-1]

    def end(self):
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Up and running: on a busy machine they take longer to start than a user has the patience for."""
    from distributed import Client

    running = Processes(tmp_path_factory.mktemp("workers"))
    running.worker(), running.worker()
    try:
        with Client(running.address, timeout=120, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=120)
        yield running
    finally:
        running.end()


@pytest.mark.parametrize("job", JOBS)
def test_several_devices_give_the_scores_of_one(job):
    stages, (settings, pool) = drawn(11), arguments(job)
    found = devices.mutual_scores(stages, settings, devices=[CPU] * 3, **pool)
    torch.testing.assert_close(found, expected(stages, settings, pool), rtol=0, atol=1e-6)


def test_what_waits_takes_no_more_than_its_own():
    """And not the memory of both blocks' distances, of which it is a part."""
    cut = Cut.of(plan_pool(6), 3)
    stage = devices.Stage(cut, PLAIN, [], [CPU], [CPU])
    found = torch.rand(2, 6, 3, 25)
    stage.add(1, 0, found[:, 3:])
    assert stage.waiting[1, 0].equal(found[:, 3:])
    assert stage.waiting[1, 0].untyped_storage().nbytes() == 4 * 2 * 3 * 3 * 25


@pytest.mark.parametrize("job", JOBS)
def test_a_cluster_gives_the_scores_of_one_process(job, threads):
    stages, (settings, pool) = drawn(11), arguments(job)
    found = threads.mutual_scores(stages, settings, **pool)
    torch.testing.assert_close(found, expected(stages, settings, pool), rtol=0, atol=1e-6)
    assert list((threads.cache / "blocks").iterdir()) == []  # nothing is left of a job that ended well


@pytest.mark.parametrize("job", ["drawn", "references"])
def test_tokens_go_through_the_memory_of_a_cluster_too(job, threads, monkeypatch):
    monkeypatch.setattr(threads, "cache", None)
    stages, (settings, pool) = drawn(11), arguments(job)
    found = threads.mutual_scores(stages, settings, **pool)
    torch.testing.assert_close(found, expected(stages, settings, pool), rtol=0, atol=1e-6)


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


def in_the_middle(run, folder, act, count=10):
    """Starts `run` in a thread, acts when `count` files of distances are in the folder, and returns what came of it:
    scores, or an error."""
    found = []

    def work():
        try:
            found.append(run())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 60
    while len(list(folder.rglob("distances-*.npy"))) < count and time.monotonic() < deadline:
        time.sleep(0.005)
    act()
    thread.join(60)
    assert not thread.is_alive()
    return found[0]


def test_a_folder_that_workers_do_not_see(processes, tmp_path, monkeypatch):
    """The same name means another folder for them: that which they were started in."""
    if not Path("/proc/self/cwd").exists():
        pytest.skip("needs a name of a folder that means another one to another process")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ClusterError, match=r"worker tcp://.* cannot use the cache folder /proc/self/cwd/cache \(No such"
    ):
        Cluster(processes.address, cache="/proc/self/cwd/cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_worker_that_is_killed_loses_nothing(processes, tmp_path):
    stages = drawn(40, M=64)[:1]
    with Cluster(processes.address, cache=tmp_path, device="cpu") as cluster:
        cluster.client.wait_for_workers(2, timeout=60)
        found = in_the_middle(
            lambda: cluster.mutual_scores(stages, Settings(block=4)), tmp_path, processes.workers[0].kill
        )
        assert len(cluster.client.nthreads()) == 1
    torch.testing.assert_close(found, expected(stages), rtol=0, atol=1e-6)


def test_a_worker_of_another_version(processes, tmp_path):
    shutil.copytree(ROOT / "musc", tmp_path / "musc", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    with (tmp_path / "musc" / "lnamd.py").open("a") as file:
        file.write("ANOTHER = 1\n")
    client, _ = connection.connect(processes.address)
    with client:
        before = set(client.nthreads())
        other = processes.worker(path=tmp_path)
        client.wait_for_workers(len(before) + 1, timeout=60)
        (theirs,) = set(client.nthreads()) - before
        with pytest.raises(ClusterError, match=f"^{theirs} has musc .*install the same version everywhere"):
            connection.check_versions(client)
        other.kill()


def test_a_run_goes_on_when_the_scheduler_has_died(processes, threads, monkeypatch):
    """By another cluster with the same folder; what is finished is not computed again: a block that was tampered with
    shows in the scores."""
    stages = drawn(40, M=64)[:1]
    with Cluster(processes.address, cache=threads.cache, device="cpu") as cluster:
        error = in_the_middle(
            lambda: cluster.mutual_scores(stages, Settings(block=4)), threads.cache, processes.scheduler.kill, count=20
        )
    assert isinstance(error, ClusterError)
    assert f"the scheduler at {processes.address} went away. Finished blocks are kept in {threads.cache}" in str(error)
    (folder,) = (threads.cache / "blocks").iterdir()
    kept = sorted((folder / "stage0").glob("distances-*.npy"))
    assert len(kept) > 3
    np.save(kept[-1], np.load(kept[-1]) - 1)
    computed = count_calls(monkeypatch, "musc.distributed.tasks.blocks.compare")
    found = threads.mutual_scores(stages, Settings(block=4))
    assert computed[0] < 55 - 3
    row = int(kept[-1].stem.split("-")[1])
    off = (found - expected(stages)).abs().amax(dim=1)
    assert (off[4 * row : 4 * row + 4] > 0.01).all()
    off[4 * row : 4 * row + 4] = 0
    assert off.max() < 1e-6


def test_ctrl_c_cancels_the_tasks_and_keeps_what_is_finished(threads, monkeypatch):
    stages, calls, plain = drawn(40, M=64)[:1], count(), blocks.compare

    def interrupting(*given, **named):
        """Ctrl-C at the eleventh pair of blocks, and time for it to arrive before the last one. Again, as a user would,
        where it was lost: Python drops what is raised while an object is deleted, and futures often are."""
        if (n := next(calls)) in (10, 25, 40):
            _thread.interrupt_main()
        time.sleep(0.05 * (n >= 10))
        return plain(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr("musc.distributed.tasks.blocks.compare", interrupting)
        with pytest.raises(KeyboardInterrupt):
            threads.mutual_scores(stages, Settings(block=4))
    deadline = time.monotonic() + 30  # what a worker was at may end
    while (left := threads.client.run_on_scheduler(unfinished)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    computed = count_calls(monkeypatch, "musc.distributed.tasks.blocks.compare")
    torch.testing.assert_close(threads.mutual_scores(stages, Settings(block=4)), expected(stages), rtol=0, atol=1e-6)
    assert 0 < computed[0] <= 55 - 5


def unfinished(dask_scheduler):
    return len(dask_scheduler.tasks)


def count_calls(monkeypatch, name):
    """How often a function is called from now on; it does what it did."""
    calls, plain = [0], blocks.compare

    def counted(*given, **named):
        calls[0] += 1
        return plain(*given, **named)

    monkeypatch.setattr(name, counted)
    return calls


@pytest.mark.parametrize("wrong", ["local:0", "local", "local:two", "10.0.0.5:8786"])
def test_a_scheduler_s_name_is_checked(wrong, tiny_config, tiny_backbone, photos):
    with pytest.raises(ConfigError, match=f"scheduler = '{wrong}': give local:N"):
        MuSc(tiny_config, backbone=tiny_backbone, scheduler=wrong).run(photos)
    with pytest.raises(SystemExit):
        cli.main(["run", str(photos), "--scheduler", wrong])


def test_a_scheduler_that_is_not_there(monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE", 1.0)
    with pytest.raises(ClusterError, match=r"no scheduler answers at tcp://127.0.0.1:9 \(within 1 s\)"):
        Cluster("tcp://127.0.0.1:9")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"consistency": "warn"}, "consistency = 'warn' is not shared out"),
        ({"tiles": 2, "tile_pool": "all"}, "tile_pool = 'all' is not shared out"),
        ({"method": "padim"}, "method = 'padim' is not for a scheduler or several devices"),
    ],
)
def test_what_cannot_be_shared_out_is_said_before_the_work(settings, text, tiny_config, tiny_backbone, photos):
    for shared in ({"scheduler": "local:2"}, {}):
        config = tiny_config.replace(**settings, device="cpu" if shared else "cpu,cpu")
        with pytest.raises(ConfigError, match=text):
            MuSc(config, backbone=tiny_backbone, **shared).run(photos, photos if "method" in settings else None)


def test_no_worker_is_left(tmp_path, monkeypatch):
    """The run says so and where it goes on; with a worker again, it does."""
    from distributed import LocalCluster

    monkeypatch.setattr(connection, "ABSENCE", 0.5)
    stages = drawn(40, M=64)[:1]
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as local,
        Cluster(local.scheduler_address, cache=tmp_path, device="cpu") as cluster,
    ):
        job = partial(cluster.mutual_scores, stages, Settings(block=4))
        look = connection.Watch.look

        def after_the_worker_has_gone(watch):
            """What it has done is lost before it is taken: those tasks are pending again."""
            while len(list(tmp_path.rglob("distances-*.npy"))) < 10:
                time.sleep(0.005)
            local.scale(0)
            while watch.client.nthreads():
                time.sleep(0.005)
            watch.look = partial(look, watch)

        with monkeypatch.context() as patch:
            patch.setattr(connection.Watch, "look", after_the_worker_has_gone)
            error = in_the_middle(job, tmp_path, lambda: None)
        assert isinstance(error, ClusterError)
        said = f"no worker is left at {local.scheduler_address}, for 0.5 s: .*Finished blocks are kept in {tmp_path}"
        assert re.match(said, str(error))
        local.scale(1)
        computed = count_calls(monkeypatch, "musc.distributed.tasks.blocks.compare")
        found = job()
    assert 0 < computed[0] <= 55 - 5
    torch.testing.assert_close(found, expected(stages), rtol=0, atol=1e-6)


def test_a_worker_that_comes_later_and_does_not_see_the_folder(threads, tmp_path):
    with pytest.raises(ClusterError, match=r"a worker on .* cannot read .*tokens-0.npy \(No such file"):
        tasks.compare(tmp_path / "tokens-0.npy", None, np.ones((1, 1), bool), PLAIN, threads.worker, None, (0, 0))


def test_a_row_that_another_worker_has_just_reduced(threads, tmp_path):
    place = Place(tmp_path)
    part = tmp_path / "distances-0-0.npy"
    given = [[part], [[1]], PLAIN, threads.worker, place, 0]
    with pytest.raises(ClusterError, match="cannot read"):
        tasks.reduce(*given)
    np.save(place.scores(0), np.arange(3.0))
    assert tasks.reduce(*given).tolist() == [0, 1, 2]


def test_a_bound_too_small_for_one_pair(threads):
    stages, pair = drawn(5), 2 * 3 * 25 * 4
    two = partial(devices.mutual_scores, devices=[CPU] * 2)
    for score, bound in ((threads.mutual_scores, pair - 1), (two, 2 * pair - 1)):
        with pytest.raises(ConfigError, match=rf"one pair of images take {pair} bytes"):
            score(stages, Settings(max_bytes=bound))
    assert not list((threads.cache / "blocks").glob("*"))


def test_tokens_that_are_not_finite_are_named(threads):
    stages = drawn(5)
    stages[1][3, 2, 1] = float("nan")
    with pytest.raises(ValueError, match="image 3: 1 patch tokens hold NaN"):
        threads.mutual_scores(stages)


def test_a_disk_without_room(threads, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(ConfigError, match=r"tokens and distances need 0\.0 GiB there"):
        threads.mutual_scores(drawn(5))
    assert not list((threads.cache / "blocks").glob("*"))


def test_the_commands_give_the_same_files(photos, threads, tmp_path, tiny_config, tiny_backbone):
    words = ["run", str(photos), "--backbone", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "64"]
    words += ["--stages", "1,2", "--workers", "0", "--no-overlays"]
    for out, more in (("one", ["--device", "cpu"]), ("two", ["--device", "cpu,cpu"]),
                      ("local", ["--device", "cpu", "--scheduler", "local:1"])):  # fmt: skip
        assert cli.main([*words, "--out", str(tmp_path / out), *more]) == 0
    files = [(tmp_path / out).rglob("scores.csv") for out in ("one", "two", "local")]
    one, two, local = (next(found).read_text() for found in files)
    assert one == two == local
    assert not list((tmp_path / "local/.cache/blocks").iterdir())


# --- the page of the book

PAGE = (ROOT / "book/distributed.md").read_text(encoding="utf-8")
PLACES = {"mvtec_anomaly_detection/": "parts", "/shared": "cache", "cuda:0,cuda:1": "cpu,cpu"}


@pytest.fixture
def reader(photos, threads, tmp_path, monkeypatch, tiny_backbone):
    """The folders that the page names, a small network in place of every other, and `threads` as every cluster."""
    shutil.copytree(photos, tmp_path / "parts/part/test/good")
    (tmp_path / "parts/part/test/spot").mkdir()
    (tmp_path / "parts/part/test/good/5.png").rename(tmp_path / "parts/part/test/spot/0.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("musc.pipeline.load_backbone", lambda *_, **__: tiny_backbone)
    monkeypatch.setattr(connection, "local_workers", lambda scheduler: None)
    monkeypatch.setattr("musc.distributed.cluster.local_workers", lambda scheduler: None)
    plain = connection.connect
    monkeypatch.setattr("musc.distributed.cluster.connect", lambda _: plain(threads.scheduler))
    return tmp_path


def test_the_page_s_commands_run(reader, capsys):
    commands = re.findall(r"^(musc .*)$", PAGE, re.M)
    assert len(commands) == 3
    for line in commands:
        words = [PLACES.get(word, word) for word in line.split()[1:]]
        assert cli.main([*words, "--no-overlays", "--workers", "0"]) == 0, (line, capsys.readouterr().err)


def test_the_page_s_python_runs(reader):
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "jobqueue" not in b]
    names = {"__name__": "__main__"}
    exec(block.replace("MuScConfig()", "MuScConfig(workers=0)"), names)
    assert len(names["result"].paths) == 6


def test_the_page_s_dask_commands_have_these_options():
    from distributed.cli.dask_worker import main as worker

    (words,) = [line.split() for line in re.findall(r"^dask (worker .*)$", PAGE, re.M)]
    known = {option for parameter in worker.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert len(known) > 20
